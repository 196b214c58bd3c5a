"""Sections `train` and `checkpoint` of a configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from hpcdistill.config.section import Section


class TrainConfig(Section):
    """Length of the training, its step, and its validation."""

    steps: PositiveInt = 1000
    """Optimizer steps."""
    precision: Literal["float32", "bf16", "bf16-weights"] = "float32"
    """'float32'; 'bf16': float32 weights, and forward passes under torch's autocast to bfloat16; 'bf16-weights':
    weights, gradients and optimizer in bfloat16, in half the memory, where small updates are lost to rounding."""
    tf32: bool = False
    """Let NVIDIA GPUs round the inputs of float32 matrix products to TF32, with a relative error of 0.05 %, which is
    several times as fast. Without it, torch's default: convolutions and LSTMs alone use TF32."""
    accumulate: PositiveInt = 1
    """Micro-batches of a step: each rank splits its share of the batch into as many, one after the other, in less
    memory. `data.batch_size` stays the batch of a step."""
    clip_norm: PositiveFloat | None = None
    """Largest norm of a step's gradient, averaged over the group; a longer gradient is scaled down to it. Without it,
    gradients are not clipped."""
    compile: bool = False
    """Compile the student's forward and backward by torch.compile, which takes a minute at the start."""
    activation_checkpointing: bool = False
    """Recompute each block of the model in the backward pass instead of keeping its activations: less memory, and up
    to a third more time. For models with blocks in an nn.ModuleList, and those of Hugging Face."""
    validate_every: PositiveInt = 200
    """Steps between two validations."""
    validation_items: PositiveInt | None = None
    """Maximum number of sequences, rows or images of a validation, evenly spread over the validation part. Without it,
    1024 sequences, 65,536 rows or 10,000 images."""
    average: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Decay of an exponential moving average of the weights, such as 0.99. The average is validated and published
    in place of the weights. 0 for no average."""
    tensorboard: bool = False
    """Write TensorBoard event files into run_dir/tensorboard, too (needs the package tensorboard)."""
    wandb: str | None = None
    """Project of Weights & Biases to which the metrics are copied, too: offline into run_dir/wandb, unless the
    environment variable WANDB_MODE says otherwise (needs the package wandb)."""
    mlflow: str | None = None
    """Experiment of MLflow to which the metrics are copied, too: in run_dir/mlruns, unless the environment variable
    MLFLOW_TRACKING_URI says otherwise (needs the package mlflow-skinny or mlflow)."""
    profile_steps: int = Field(default=0, ge=0, le=100)
    """Steps that torch.profiler records on each group's leader, into run_dir/profile; 0 for none."""
    profile_begin: PositiveInt = 10
    """First step that is recorded there."""

    @field_validator("precision", mode="before")
    @classmethod
    def _refuse_fp16(cls, value: Any) -> Any:
        if value in ("fp16", "float16", "half"):
            raise ValueError(
                f"'{value}' has so small a range that it needs a loss scaler, which this program does not have; use "
                "--train.precision=bf16, which has the range of float32"
            )
        return value

    @model_validator(mode="after")
    def _check_average(self) -> TrainConfig:
        if self.average and self.precision == "bf16-weights":
            raise ValueError(
                f"train.average = {self.average:g} with train.precision = 'bf16-weights': bfloat16 rounds the small "
                "steps of an average away; use --train.precision=bf16, or --train.average=0"
            )
        return self


class CheckpointConfig(Section):
    """Checkpoints to restart from."""

    interval: PositiveInt = 500
    """Steps between two checkpoints; the last step always writes one."""
    keep: int = Field(default=2, ge=2)
    """Number of checkpoints kept beside the best one; at least 2, so that a damaged one has a predecessor."""
