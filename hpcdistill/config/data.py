"""Section `data` of a configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from hpcdistill.config.paths import UserPath
from hpcdistill.config.section import Section


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
