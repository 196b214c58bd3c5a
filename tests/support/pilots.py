"""Metrics of pilots whose noise scale, ensemble gap and slope are known."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from metrics_files import write

BURN_IN = 400


def write_pilot(
    run: Path,
    *,
    batch: int = 16,
    ranks: int = 1,
    groups: int = 2,
    noise_scale: float = 16.0,
    noise: float = 0.05,
    noise_every: int = 50,
    square: float = 1.0,
    gap: float = 0.05,
    slope: float = 0.2,
    training_slope: float | None = None,
    loss_noise: float = 0.001,
    passes: float = 0.5,
    unit: str = "token",
    steps: int = 4000,
    until: int = BURN_IN,
    validate_every: int = 50,
    seconds: dict[str, float] | None = None,
    teacher: float | None = None,
    seed: int = 0,
    **header: Any,
) -> Path:
    """Write the metrics of each group until step `until`; `noise` is the relative error of a measurement."""
    run.mkdir()
    rng = np.random.default_rng(seed)
    parts = {"data": 0.001, "teachers": 0.0, "exchange": 0.001, "averaging": 0.0, "compute": 0.03} | (seconds or {})
    codistill = {"burn_in": BURN_IN, "weight": 1.0 if groups > 1 else 0.0, "teachers": "peers"}
    config = {
        "groups": groups,
        "seed": seed,
        "data": {"batch_size": batch, "partition": "disjoint"},
        "train": {"steps": steps, "validate_every": validate_every},
        "codistill": codistill,
    }
    facts = {
        "config": config,
        "ranks_per_group": ranks,
        "parts": 2 * ranks,
        "cores": 64,
        "ranks_on_node": groups * ranks,
        "gradient_bytes": 4_000_000,
        "device": "cpu",
        "unit": unit,
        "data_source": "a book",
        "training_size": 1_000_000,
    }
    for group in range(groups):
        records = []
        for step in range(10, until + 1, 10):
            taught = step > BURN_IN and groups > 1
            now = parts | ({"teachers": teacher * (groups - 1)} if taught and teacher else {})
            loss = 3.0 - (slope if training_slope is None else training_slope) * math.log(step)
            values: dict[str, Any] = {
                "loss": loss + loss_noise * rng.standard_normal(),
                "steps": 10,
                "part_seconds": now,
            }
            values["staleness"] = {str(each): 50 for each in range(groups) if each != group} if taught else {}
            if step % noise_every == 0 and not taught:
                errors = noise * rng.standard_normal(2)
                values |= {"gradient_square": square + errors[0], "gradient_variance": noise_scale * (1 + errors[1])}
            records.append({"step": step, "seconds": step / 20, **values})
            if step % validate_every == 0:
                validation = 3.1 - slope * math.log(step) + loss_noise * rng.standard_normal()
                values = {"validation_loss": validation, "passes": passes * step / BURN_IN, "train_validation_gap": 0.1}
                if groups > 1 and not taught:
                    values["ensemble_gap"] = gap * (1 + 0.02 * rng.standard_normal())
                records.append({"step": step, "seconds": step / 20, **values})
        write(run, group, *records, **facts | header)
    return run
