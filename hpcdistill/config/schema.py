"""Configuration of a run: its sections, and the checks of keys that depend on each other.

The command line (`--section.key=value`) overrides the TOML file, which overrides the defaults; unknown keys are errors.
Each key's docstring is its help in `hpcdistill train --help`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Union

from pydantic import Field, NonNegativeInt, PositiveInt, create_model, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from hpcdistill.config.codistill import CodistillConfig, ExchangeConfig
from hpcdistill.config.data import DataConfig
from hpcdistill.config.optimizer import OptimizerConfig
from hpcdistill.config.paths import UserPath
from hpcdistill.config.section import DEFAULT_MODEL, ModelConfig
from hpcdistill.config.train import CheckpointConfig, TrainConfig


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
    gradients: Literal["horovod", "torch"] = "horovod"
    """Library that averages gradients inside each group: 'horovod', or 'torch' for torch's DistributedDataParallel."""
    data: DataConfig = Field(default_factory=dict, validate_default=True)  # type: ignore[arg-type] # says what is missing
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
                "use --groups=2 or more, --codistill.weight=0 for plain synchronous SGD, or --codistill.teachers=self"
            )
        return self

    @model_validator(mode="after")
    def _check_schedule(self) -> Config:
        optimizer, steps = self.optimizer, self.train.steps
        if (optimizer.decay == "wsd") != (optimizer.decay_steps is not None):
            raise ValueError(
                f"optimizer.decay = '{optimizer.decay}' with optimizer.decay_steps = {optimizer.decay_steps}; set "
                "--optimizer.decay_steps to the steps of the decay with --optimizer.decay=wsd, and only then"
            )
        if optimizer.decay_steps and optimizer.warmup + optimizer.decay_steps > steps:
            raise ValueError(
                f"optimizer.warmup = {optimizer.warmup} and optimizer.decay_steps = {optimizer.decay_steps} are more "
                f"steps than train.steps = {steps}; lower one of them"
            )
        return self

    @model_validator(mode="after")
    def _check_profile(self) -> Config:
        if self.train.profile_steps and self.train.profile_begin > self.train.steps:
            raise ValueError(
                f"train.profile_begin = {self.train.profile_begin} is beyond train.steps = {self.train.steps}; lower "
                "--train.profile_begin, or omit --train.profile_steps"
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
