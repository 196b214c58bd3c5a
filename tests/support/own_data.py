"""Data of a user's own: datasets, and the functions that `data.factory` names."""

import os
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

from hpcdistill.config.data import DataConfig
from hpcdistill.data.batches import Share

CLASSES = 5


class Numbers(Dataset[Any]):
    """Map-style dataset whose example n is the number n; an example of `bad` is something else."""

    def __init__(self, count: int, bad: dict[int, str] | None = None, seconds: float = 0.0) -> None:
        self.count, self.bad, self.seconds = count, bad or {}, seconds

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Any:
        time.sleep(self.seconds)
        if self.bad.get(number) == "raises":
            raise ValueError(f"example {number} is bad")
        if self.bad.get(number) == "dies":
            os._exit(3)
        return torch.tensor([float(number)]), number % CLASSES


class Drawn(Numbers):
    """Numbers with a random number beside each."""

    def __getitem__(self, number: int) -> Any:
        return (torch.tensor([float(number)]), torch.rand(1)), number % CLASSES


class Stream(IterableDataset[Any]):
    """Iterable dataset of the same numbers, which records its passes."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.epochs: list[int] = []

    def __iter__(self) -> Iterator[Any]:
        for number in range(self.count):
            yield torch.tensor([float(number)]), number % CLASSES

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


class StatefulStream(Stream):
    """Stream that continues from its state, and counts the examples that it has read."""

    def __init__(self, count: int, state: Any = None) -> None:
        super().__init__(count)
        self.next = 0
        self.read = 0
        self.extra = state

    def __iter__(self) -> Iterator[Any]:
        while self.next < self.count:
            self.next += 1
            self.read += 1
            yield torch.tensor([float(self.next - 1)]), (self.next - 1) % CLASSES
        self.next = 0

    def state_dict(self) -> dict[str, Any]:
        return {"next": self.next, "extra": self.extra}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.next = state["next"]


class Words(Dataset[Any]):
    """Sequences of 6 tokens passed by name; the last two targets are ignored."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, number: int) -> Any:
        tokens = torch.arange(number, number + 7) % CLASSES
        target = tokens[1:].clone()
        target[-2:] = -100
        return {"tokens": tokens[:-1], "mask": torch.ones(6, dtype=torch.bool)}, target


def numbers(count: int = 40, validation: int = 12, bad: Any = None, seconds: float = 0.0) -> Any:
    bad = {int(number): kind for number, kind in (bad or {}).items()}
    return Numbers(count, bad, seconds), Numbers(validation)


def drawn(count: int = 40) -> Any:
    return Drawn(count), Drawn(12)


def words() -> Any:
    return Words(), Words()


def stream(count: int = 40) -> Any:
    return Stream(count), Stream(12)


def stateful_stream(count: int = 40) -> Any:
    return StatefulStream(count), Stream(12)


def own_share(share: Share, count: int = 40) -> Any:
    """Return streams that are this rank's already."""
    train = [(torch.tensor([float(n)]), n % CLASSES) for n in range(count)][share.shard :: share.shards]
    return _Listed(train), _Listed(
        [(torch.tensor([float(n)]), n % CLASSES) for n in range(12)][share.rank :: share.size]
    )


class _Listed(IterableDataset[Any]):
    def __init__(self, examples: list[Any]) -> None:
        self.examples = examples

    def __iter__(self) -> Iterator[Any]:
        yield from self.examples


def loaders(share: Share, batch_size: int, count: int = 40) -> Any:
    """Return loaders of this rank's share."""
    train = [(torch.tensor([float(n)]), n % CLASSES) for n in range(count)][share.shard :: share.shards]
    validation = [(torch.tensor([float(n)]), n % CLASSES) for n in range(12)][share.rank :: share.size]
    return DataLoader(train, batch_size, drop_last=True), DataLoader(validation, batch_size)


def stateful_loaders(share: Share, batch_size: int, count: int = 40) -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    data = Numbers(count)
    sampler: Any = DistributedSampler(data, share.shards, share.shard)  # an order of its own in each pass
    _, validation = loaders(share, batch_size)
    return StatefulDataLoader(data, batch_size, sampler=sampler, drop_last=True), validation


def loaders_of_five(share: Share) -> Any:
    return loaders(share, 5)


def unshared_loaders() -> Any:
    return DataLoader(Numbers(8)), DataLoader(Numbers(8))


def unequal(share: Share) -> Any:
    """Return datasets whose lengths depend on the rank."""
    return Numbers(40 + share.rank + 8 * share.part), Numbers(12)


class NoLength:
    """Map-style dataset without a length."""

    def __getitem__(self, number: int) -> Any:
        raise NotImplementedError


def without_length() -> Any:
    return NoLength(), Numbers(12)


def no_pair() -> Any:
    return Numbers(40)


def no_data() -> Any:
    return Numbers(40), 7


def raises() -> Any:
    raise OSError("the disk is gone")


def examples(kind: str) -> Any:
    """Return datasets with examples of a wrong form."""
    one = torch.zeros(1)
    wrong: dict[str, Any] = {
        "no target": one,
        "text": ("a", 0),
        "by name, text": ({"a": "b"}, 0),
        "float target": (one, 0.5),
        "int32 target": (one, torch.tensor(0, dtype=torch.int32)),
        "class 5": (one, 5),
        "class -1": (one, -1),
        "dictionary": {"input_ids": one, "labels": 0},
    }
    if kind == "unequal":
        return [(torch.zeros(n + 1), 0) for n in range(40)], [(one, 0)] * 12
    return [wrong[kind]] * 40, [(one, 0)] * 12


def config(
    function: str, workers: int = 0, batch_size: int = 4, classes: int | None = CLASSES, **args: Any
) -> DataConfig:
    """Return the section of a configuration that names a function of this module."""
    return DataConfig(
        factory=f"own_data:{function}", args=args, workers=workers, batch_size=batch_size, classes=classes
    )
