"""Data of one's own for `hpcdistill train`: texts in a folder that Hugging Face's `datasets` has saved.

mpirun -np 2 python -m hpcdistill train examples/own_data.toml
"""

from typing import Any

import torch
from datasets import load_from_disk
from torch import Tensor
from torch.utils.data import Dataset


class Texts(Dataset[tuple[Tensor, Tensor]]):
    """Beginnings of texts, as bytes: int64 tokens [length], and the next token of each; -100 after the end."""

    def __init__(self, rows: Any, length: int) -> None:
        self.rows, self.length = rows, length

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        tokens, target = torch.zeros(self.length, dtype=torch.int64), torch.full((self.length,), -100)
        text = torch.tensor([*self.rows[number]["text"].encode()[: self.length + 1]])
        tokens[: len(text) - 1], target[: len(text) - 1] = text[:-1], text[1:]
        return tokens, target


def load(folder: str, length: int) -> tuple[Texts, Texts]:
    """Return training and validation data; each rank calls this with the keys of [data.args]."""
    splits = load_from_disk(folder)
    return Texts(splits["train"], length), Texts(splits["test"], length)
