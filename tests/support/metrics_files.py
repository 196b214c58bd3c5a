"""Metrics files of runs that were not trained."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcdistill.storage.run_dir import RunDir

CONFIG = {"groups": 2, "train": {"steps": 200}}


def write(run: Path, group: int, *records: dict[str, Any], config: dict[str, Any] = CONFIG, **header: Any) -> Path:
    """Write one group's metrics; return the file."""
    path = RunDir(run).metrics(group)
    lines = [{"config": config, "starts": [{"step": 0}], **header}, *records]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def write_losses(run: Path, *losses: Sequence[float], batch: int = 16, unit: str = "token") -> Path:
    """Make a run with one group for each of `losses`, which are those of steps 100, 200… at ten steps a second."""
    run.mkdir()
    config = {"groups": len(losses), "data": {"batch_size": batch}}
    for group, of_group in enumerate(losses):
        records = [
            {"step": step, "seconds": step / 10, "validation_loss": loss}
            for step, loss in zip(range(100, 10000, 100), of_group, strict=False)
        ]
        write(run, group, *records, config=config, ranks_per_group=2, data_source="a <book>", unit=unit)
    return run
