"""Runs of Weights & Biases with the numbers of the metrics."""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path

from hpcdistill.training.trackers.tracker import RunFacts, Tracker


class Wandb(Tracker):
    """Run of one group, in the folder `wandb` of the run's; nothing is sent unless WANDB_MODE is "online".

    Each start of a training makes a folder with the same run ID, which `wandb sync --append` joins.

    Args:
        project: name of the project.
        folder: folder of the run.
        facts: facts of this training.

    Raises:
        Exception: the run cannot be made.
    """

    def __init__(self, project: str, folder: Path, facts: RunFacts) -> None:
        import wandb

        os.environ.setdefault("WANDB_MODE", "offline")
        super().__init__(f"Weights & Biases in {folder / 'wandb'}")
        self._run = wandb.init(
            project=project,
            id=blake2b(facts.identity.encode(), digest_size=8).hexdigest(),
            name=f"{facts.name}-g{facts.group}",
            group=facts.name,
            config=facts.header,
            dir=folder,
            resume="allow",
            settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True),
        )

    def _write(self, step: int, numbers: dict[str, float]) -> None:
        self._run.log(numbers, step=step)

    def _close(self) -> None:
        self._run.finish()
