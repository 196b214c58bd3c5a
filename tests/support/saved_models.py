"""Checkpoints of tiny untrained models, and stores for them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpcdistill.data.rows.store import Fields, Rows, write_rows
from hpcdistill.data.tokens.store import write_store
from hpcdistill.models.registry import build_model, config_class
from hpcdistill.models.saved import describe_model
from hpcdistill.storage.checkpoints import Checkpoints
from hpcdistill.storage.run_dir import RunDir
from hpcdistill.tasks.registry import open_task

MODELS = {"row": {"name": "dnn", "widths": (4,), "embedding": 2}, "token": {"name": "lstm", "hidden": 4, "layers": 1}}


def clicks(path: Path, labels: tuple[int, ...] = (0, 1) * 50, bayes_log_loss: float | None = None) -> Path:
    """Write a store whose validation part has these labels; return its path."""
    chance, count = np.random.default_rng(0), len(labels)
    dense, ids = chance.random((count, 2), np.float32), chance.integers(3, size=(count, 1), dtype=np.int32)
    some = Rows(dense, ids, np.array(labels, np.uint8))
    bayes = None if bayes_log_loss is None else {"validation": bayes_log_loss}
    write_rows(path, [("train", some), ("validation", some)], Fields(["a", "b"], {"c": 3}), "clicks", bayes)
    return path


def text(path: Path, train: bytes = b"abcd") -> Path:
    """Write a store whose validation part is 12 sequences of 8 tokens; return its path."""
    write_store(path, [("train", train * 50), ("validation", b"abc" * 33)], "text")
    return path


def save(
    run: Path, data: Path, group: int = 0, seed: int = 0, length: int = 8, model: dict[str, Any] | None = None
) -> Path:
    """Save an untrained model as the best and newest checkpoint of a group; return the path of the best."""
    task = open_task(data)
    settings = {"path": data, "sequence_length": length, "batch_size": 5}
    config = config_class()(run_dir=run, data=settings, model=model or MODELS[task.unit])
    torch.manual_seed(seed)
    built = build_model(config.model, task.store)
    state = {"step": 1, "config": config.model_dump(mode="json"), "model": built.state_dict(), **describe_model(built)}
    Checkpoints(RunDir(run), group, keep=2, owner={}).save(1, state, is_best=True)
    return RunDir(run).best_checkpoint(group)
