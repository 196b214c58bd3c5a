"""Data that a user's function returns."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from hpcdistill.config.data import DataConfig
from hpcdistill.data.batches import Share
from hpcdistill.data.datasets.faults import user_code
from hpcdistill.data.store import PARTS, Store
from hpcdistill.discovery import NamedCall
from hpcdistill.errors import UserError

NAMES = dict(zip(PARTS, ("training", "validation"), strict=True))
CONTRACT = (
    "return a pair, training and validation data: each a dataset with __getitem__ and __len__, a "
    "torch.utils.data.IterableDataset, or a loader of batches"
)


class FactoryData(Store):
    """Training and validation data that `data.factory` returns for one rank.

    Attributes:
        parts: the data by the name of the part: a map-style dataset, an `IterableDataset`, or a loader of batches.
        shards_itself: True if the function takes its rank's share, so that data in order is of this rank alone.
        classes: number of classes, or size of the vocabulary; None if the targets are 0 or 1.

    Args:
        config: names the function and its arguments.
        share: share of this rank in the training data. In the validation data each rank of a group has a share.

    Raises:
        UserError: the function cannot be imported or called, raises, or returns something else.
    """

    KIND = "data of a factory"

    def __init__(self, config: DataConfig, share: Share) -> None:
        assert config.factory is not None, "only for data.factory"
        self.setting = f"data.factory = {config.factory!r}"
        self.source = config.factory
        self.classes = config.classes
        call = NamedCall("data", config.factory, config.args, share=share, batch_size=share.of_batch(config.batch_size))
        with user_code(f"{self.setting} failed"):
            made = call()
        if not isinstance(made, tuple) or len(made) != len(PARTS):
            raise UserError(f"{self.setting} returned {_described(made)}; {CONTRACT}")
        self.parts: dict[str, Any] = dict(zip(PARTS, made, strict=True))
        for part, data in self.parts.items():
            self._check(part, data)
        self.shards_itself = "share" in call.arguments
        self.identity = self._identity(config)

    @property
    def vocabulary(self) -> int:
        """Number of classes.

        Raises:
            UserError: `data.classes` is not set.
        """
        if self.classes is None:
            raise UserError(f"{self.setting} has targets of 0 or 1, where a vocabulary is needed; set --data.classes")
        return self.classes

    def size(self, part: str) -> int | None:
        """Return the number of examples of `part`; None if it is not a map-style dataset."""
        return len(self.parts[part]) if is_map_style(self.parts[part]) else None

    def close(self) -> None:
        """Do nothing: Python frees what the function has made."""

    def _identity(self, config: DataConfig) -> str:
        """Return the numbers of examples, and a digest of the function's name and arguments.

        A change of the data itself cannot be seen.
        """
        sizes = " and ".join(
            f"{'any number of' if self.size(part) is None else self.size(part)} {NAMES[part]}" for part in PARTS
        )
        named = json.dumps([config.factory, config.args, config.classes], sort_keys=True)
        return f"{sizes} examples, digest {hashlib.blake2b(named.encode(), digest_size=8).hexdigest()}"

    def _check(self, part: str, data: Any) -> None:
        if is_map_style(data):
            if not hasattr(data, "__len__"):
                raise UserError(
                    f"{self.setting}: the {NAMES[part]} data, {_described(data)}, has __getitem__ but no __len__, "
                    "which is needed to share it out; add it, or return a torch.utils.data.IterableDataset"
                )
        elif not hasattr(data, "__iter__"):
            raise UserError(f"{self.setting} returned {_described(data)} as {NAMES[part]} data; {CONTRACT}")


def is_map_style(data: Any) -> bool:
    """Return whether `data` is a dataset whose examples have numbers."""
    return hasattr(data, "__getitem__") and not isinstance(data, (IterableDataset, DataLoader, dict))


def _described(value: Any) -> str:
    """Return the type of what a function has returned, and the types in a small tuple or list."""
    name = type(value).__name__
    if isinstance(value, (tuple, list)) and len(value) <= 4:
        return f"a {name} of {', '.join(type(each).__name__ for each in value) or 'nothing'}"
    return name
