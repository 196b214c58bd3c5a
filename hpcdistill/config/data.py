"""Section `data` of a configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from hpcdistill.config.paths import UserPath
from hpcdistill.config.section import Arguments, Section

OF_FACTORY = ("args", "classes", "workers")
"""Keys that describe the data of `factory`."""


class DataConfig(Section):
    """Training and validation data: a store, or data of your own."""

    path: UserPath | None = None
    """Store made by `hpcdistill prepare`; its kind determines the task."""
    factory: str | None = Field(default=None, pattern=r"^[\w.]+:\w+$")
    """In place of a store: function that returns a pair of training and validation data, as package.module:function;
    each is a torch dataset or a loader of batches."""
    args: Arguments = Field(default={})
    """Keyword arguments of data.factory."""
    classes: int | None = Field(default=None, ge=2)
    """Number of classes, or size of the vocabulary, of data.factory. Without it, the targets are 0 or 1."""
    workers: NonNegativeInt = 0
    """Processes of each rank that read the data of data.factory. Without them, and for stores, a thread reads."""
    batch_size: PositiveInt = 16
    """Sequences, rows, images or examples per group and step; each rank of the group takes an equal share."""
    sequence_length: PositiveInt = 64
    """Tokens per sequence; for text."""
    image_size: PositiveInt | None = None
    """Width and height of the model's input in pixels; for images. Without it, the stored size, or 224 where images are
    stored encoded."""
    partition: Literal["disjoint", "same"] = "disjoint"
    """'disjoint': each group trains on its own part of the data; 'same': every group trains on all of it, in its own
    order."""

    @property
    def source(self) -> str:
        """Path or function that the data comes from."""
        return str(self.path or self.factory)

    @model_validator(mode="after")
    def _check_source(self) -> DataConfig:
        if self.path is None and self.factory is None:
            raise ValueError(
                "data.path is missing; name a store with --data.path=…, or a function with --data.factory=…"
            )
        if self.path is not None and self.factory is not None:
            raise ValueError(
                f"data.path = {self.path} and data.factory = {self.factory!r} exclude each other; omit one of them"
            )
        for name in OF_FACTORY:
            value = getattr(self, name)
            if self.factory is None and value != type(self).model_fields[name].default:
                raise ValueError(f"data.{name} = {value} is for data.factory, not for the store in data.path; omit it")
        return self
