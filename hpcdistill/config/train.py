"""Sections `train` and `checkpoint` of a configuration."""

from __future__ import annotations

from pydantic import Field, PositiveInt

from hpcdistill.config.section import Section


class TrainConfig(Section):
    """Length of the training, and its validation."""

    steps: PositiveInt = 1000
    """Optimizer steps."""
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


class CheckpointConfig(Section):
    """Checkpoints to restart from."""

    interval: PositiveInt = 500
    """Steps between two checkpoints; the last step always writes one."""
    keep: int = Field(default=2, ge=2)
    """Number of checkpoints kept beside the best one; at least 2, so that a damaged one has a predecessor."""
