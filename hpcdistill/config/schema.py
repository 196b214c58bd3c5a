"""Keys of a run's configuration, but those of the model families.

The command line (`--section.key=value`) overrides the TOML file, which overrides the defaults; unknown keys are errors.
Each key's docstring is its help in `hpcdistill train --help`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Union

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from hpcdistill.config.paths import UserPath
from hpcdistill.config.section import DEFAULT_MODEL, ModelConfig, Section


class DataConfig(Section):
    """Training and validation data."""

    path: UserPath
    """Store made by `hpcdistill prepare`; its kind determines the task."""
    batch_size: PositiveInt = 16
    """Sequences, rows or images per group and step; each rank of the group takes an equal share."""
    sequence_length: PositiveInt = 64
    """Tokens per sequence; for text."""
    image_size: PositiveInt | None = None
    """Width and height of the model's input in pixels; for images. Without it, the stored size, or 224 where images are
    stored encoded."""
    partition: Literal["disjoint", "same"] = "disjoint"
    """'disjoint': each group trains on its own part of the data; 'same': every group trains on all of it, in its own
    order."""


class OptimizerConfig(Section):
    """Optimizer and learning rate."""

    name: Literal["adam", "sgd"] = "adam"
    """Update rule."""
    lr: PositiveFloat = 1e-2
    """Learning rate after the warm-up."""
    warmup: NonNegativeInt = 0
    """Steps of the warm-up, in which the learning rate rises linearly to `lr`."""
    decay: Literal["none", "linear", "cosine"] = "none"
    """Decay of the learning rate from the end of the warm-up to zero after the last step."""
    momentum: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Momentum of 'sgd'."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay: decoupled from the gradient with 'adam' (AdamW), part of the gradient with 'sgd'."""


class CodistillConfig(Section):
    """Distillation between groups (Anil et al. 2018, Algorithm 1)."""

    weight: NonNegativeFloat = 1.0
    """Weight of the distillation term; 0 turns codistillation off."""
    ramp: NonNegativeInt = 0
    """Steps after the burn-in in which the weight of the distillation term rises linearly to its full value."""
    teachers: Literal["peers", "checkpoints", "uniform", "unigram"] = "peers"
    """Teachers: the other groups ('peers'); trained models ('checkpoints', two-phase distillation); or, as label
    smoothing, the same probability for every class ('uniform') or its frequency in the training data ('unigram')."""
    checkpoints: tuple[UserPath, ...] = ()
    """Trained models to learn from, such as runs/a/checkpoints/g0-best.h5; with teachers 'checkpoints'."""
    temperature: PositiveFloat = 1.0
    """Temperature of both distributions in the distillation term."""
    burn_in: NonNegativeInt = 400
    """Steps before distillation begins."""
    exchange_interval: PositiveInt = 50
    """Steps between two publications of a group's weights."""
    max_staleness: PositiveInt | None = None
    """Steps after which a teacher is excluded if no new snapshot of it has arrived. Without it, 20 exchange
    intervals."""
    fused_linear: bool = False
    """Fuse the loss with the model's head, so that the logits of a large vocabulary are never all in memory."""
    teacher_precision: Literal["full", "bf16"] = "full"
    """Precision of the teachers' forward pass: 'full' is that of the student, 'bf16' may be faster."""

    @property
    def with_peers(self) -> bool:
        """True if groups learn from each other."""
        return self.weight > 0 and self.teachers == "peers"


class ExchangeConfig(Section):
    """Exchange of snapshots between groups."""

    transport: Literal["window", "files"] = "window"
    """'window': MPI one-sided windows, between groups of one job; 'files': a folder in run_dir, between groups that may
    be separate jobs."""
    topology: Literal["all", "ring", "pairs", "k-random"] = "all"
    """Peers of a group: 'all' other groups, the next one in a 'ring', its partner in 'pairs' (0, 1; 2, 3; ...), or
    `degree` others drawn at random for each exchange interval ('k-random')."""
    degree: PositiveInt = 1
    """Number of peers that 'k-random' draws."""
    codec: Literal["fp32", "bf16", "int8"] = "fp32"
    """Encoding of published weights: 'fp32' unchanged; 'bf16' in half the bytes, with a relative error of 0.4 %; 'int8'
    in a quarter of the bytes, with an error of 0.4 % of the largest of 256 neighbours. Running statistics are always
    sent unchanged."""


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


class Config(BaseSettings):
    """Configuration of a run; `with_models` completes its section `model`."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, nested_model_default_partial_update=True
    )

    run_dir: UserPath
    """Folder for metrics, checkpoints and the report; the same on every rank."""
    groups: PositiveInt = 2
    """Number of groups."""
    group: NonNegativeInt | None = None
    """Number of the group that this job is, from 0, where each group is a separate job (needs transport 'files')."""
    group_sizes: tuple[PositiveInt, ...] | None = None
    """Number of ranks of each group, such as 4,2. Without it, the ranks are split evenly."""
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    """Seed of initial weights, shuffling and dropout; groups and ranks derive their own seeds from it."""
    data: DataConfig
    model: ModelConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    codistill: CodistillConfig = CodistillConfig()
    exchange: ExchangeConfig = ExchangeConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="before")
    @classmethod
    def _default_model_name(cls, values: dict[str, Any]) -> dict[str, Any]:
        if isinstance(values.get("model"), dict):
            return values | {"model": {"name": DEFAULT_MODEL} | values["model"]}
        return values

    @field_validator("group_sizes", mode="before")
    @classmethod
    def _parse_none(cls, value: Any) -> Any:
        return None if value == [None] else value  # --group_sizes=None arrives as [None]

    @model_validator(mode="after")
    def _check_single_group(self) -> Config:
        if self.groups == 1 and self.codistill.with_peers:
            raise ValueError(
                f"groups = 1 has no peers to learn from, but codistill.weight = {self.codistill.weight:g}; "
                "use --groups=2 or more, or --codistill.weight=0 for plain synchronous SGD"
            )
        return self

    @model_validator(mode="after")
    def _check_checkpoints(self) -> Config:
        if bool(self.codistill.checkpoints) != (self.codistill.teachers == "checkpoints"):
            raise ValueError(
                f"codistill.teachers = '{self.codistill.teachers}' with {len(self.codistill.checkpoints)} "
                "codistill.checkpoints; name checkpoints with --codistill.teachers=checkpoints, and only then"
            )
        return self

    @model_validator(mode="after")
    def _check_max_staleness(self) -> Config:
        patience, interval = self.codistill.max_staleness, self.codistill.exchange_interval
        if patience is not None and patience <= interval:
            raise ValueError(
                f"codistill.max_staleness = {patience} ends before a teacher publishes again, after "
                f"codistill.exchange_interval = {interval}; use a few intervals, or omit it"
            )
        return self

    @model_validator(mode="after")
    def _check_pairs(self) -> Config:
        if self.exchange.topology == "pairs" and self.codistill.with_peers and self.groups % 2:
            raise ValueError(
                f"exchange.topology = 'pairs' leaves one of groups = {self.groups} without a partner; "
                "use an even number of groups, or --exchange.topology=ring"
            )
        return self

    @model_validator(mode="after")
    def _check_degree(self) -> Config:
        if self.exchange.topology == "k-random" and self.codistill.with_peers and self.exchange.degree >= self.groups:
            raise ValueError(
                f"exchange.degree = {self.exchange.degree}, but each of groups = {self.groups} has "
                f"{self.groups - 1} peers; use at most {self.groups - 1}"
            )
        return self

    @model_validator(mode="after")
    def _check_single_group_job(self) -> Config:
        if self.group is None:
            return self
        if self.group >= self.groups:
            raise ValueError(
                f"group = {self.group}, but groups = {self.groups} are numbered from 0; use --group=0 to "
                f"--group={self.groups - 1}"
            )
        if self.codistill.with_peers and self.exchange.transport != "files":
            raise ValueError(
                f"group = {self.group} makes this job one group, but exchange.transport = "
                f"'{self.exchange.transport}' joins groups of one job; add --exchange.transport=files or omit --group"
            )
        return self

    @model_validator(mode="after")
    def _check_group_sizes(self) -> Config:
        if self.group_sizes is not None and len(self.group_sizes) != self.groups:
            raise ValueError(
                f"group_sizes = {','.join(map(str, self.group_sizes))} has {len(self.group_sizes)} numbers for "
                f"groups = {self.groups}; give one for each group"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the file and the command line only: no environment variables."""
        return (init_settings,)


def with_models(families: Sequence[type[ModelConfig]]) -> type[Config]:
    """Return the `Config` whose section `model` belongs to one of `families`, the one that its `name` says."""
    default_first = sorted(families, key=lambda family: (family.family() != DEFAULT_MODEL, family.family()))
    section = Field(default_factory=default_first[0], discriminator="name")
    union: Any = Union[tuple(default_first)]  # noqa: UP007 - there is no other way to write it for a list
    return create_model("Config", __base__=Config, model=(union, section))
