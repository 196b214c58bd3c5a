"""Folder of a run: the names of all its files, and the checkpoints that a user's words mean."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hpcdistill.errors import UserError


@dataclass(frozen=True)
class RunDir:
    """Folder of a run, which knows the name of every file in it."""

    path: Path

    @property
    def report(self) -> Path:
        """Page with the curves of the run."""
        return self.path / "report.html"

    @property
    def exchange(self) -> Path:
        """Folder of the snapshots that groups exchange through files."""
        return self.path / "exchange"

    def metrics(self, group: int) -> Path:
        """Return the metrics file of a group."""
        return self.path / f"metrics-g{group}.jsonl"

    def tensorboard(self, group: int) -> Path:
        """Return the folder of a group's TensorBoard events."""
        return self.path / "tensorboard" / f"g{group}"

    def profile(self, group: int) -> Path:
        """Return the folder of the traces of a group's leader."""
        return self.path / "profile" / f"g{group}"

    def owner(self, group: int) -> Path:
        """Return the file that says which process may write a group's files."""
        return self.path / f"owner-g{group}.json"

    def checkpoint(self, group: int, step: int) -> Path:
        """Return the checkpoint of a group after `step` steps."""
        return self._checkpoints / f"g{group}-step{step:010d}.h5"

    def best_checkpoint(self, group: int) -> Path:
        """Return the checkpoint of a group with the lowest validation loss."""
        return self._checkpoints / f"g{group}-best.h5"

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def find_metrics(self) -> dict[int, Path]:
        """Find the metrics files that exist, by group; groups may be separate jobs that have not all begun."""
        found = ((re.fullmatch(r"metrics-g(\d+)\.jsonl", path.name), path) for path in self.path.glob("metrics-g*"))
        return dict(sorted((int(match[1]), path) for match, path in found if match))

    def find_checkpoints(self, group: int) -> dict[int, Path]:
        """Find the checkpoints of a group that exist, by step, newest first; without the best one's second name."""
        pattern = re.compile(rf"g{group}-step(\d{{10}})\.h5")
        found = ((pattern.fullmatch(path.name), path) for path in self._checkpoints.glob(f"g{group}-*.h5"))
        return dict(sorted(((int(match[1]), path) for match, path in found if match), reverse=True))

    def find_groups(self) -> list[int]:
        """Find the groups that have checkpoints."""
        found = (re.fullmatch(r"g(\d+)-(?:best|step\d{10})\.h5", path.name) for path in self._checkpoints.glob("g*.h5"))
        return sorted({int(match[1]) for match in found if match})

    def find_temporary_checkpoints(self, group: int) -> list[Path]:
        """Find the checkpoints of a group that are being written, or were when their writer was killed."""
        return list(self._checkpoints.glob(f".g{group}-*"))

    def make(self) -> list[Path]:
        """Make the folder, and check that files can be written there.

        Returns:
            The folders that did not exist before, the innermost first.

        Raises:
            UserError: files cannot be written there: it is read-only, full, over quota, or not a folder.
        """
        made = [folder for folder in (self.path, *self.path.parents) if not os.path.lexists(folder)]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path) as file:
                file.write(bytes(4096))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            remove_empty(made)
            raise UserError(
                f"run_dir = {self.path} cannot be written to: {error.strerror}; make room there, or choose another "
                "--run_dir"
            ) from None
        return made

    def require_no_checkpoints(self, group: int | None = None) -> None:
        """Check that a new run can begin here.

        Args:
            group: group whose checkpoints count; None for any file that looks like a checkpoint.

        Raises:
            UserError: there are checkpoints.
        """
        found = sorted(self._checkpoints.glob("*.h5")) if group is None else list(self.find_checkpoints(group).values())
        if found:
            raise UserError(
                f"run_dir = {self.path} holds a run already ({found[0].name}); "
                "add --resume to go on with it, or choose another --run_dir"
            )


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove those folders, in this order, that are empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def named_checkpoints(name: str, which: str) -> dict[str, Path]:
    """Find the checkpoints that a user means by `name`, each under a name that tells it from the others.

    Args:
        name: a checkpoint file; a run folder, for one checkpoint of each of its groups; or RUN:GROUP, for that group's.
        which: "best" or "last" of a group's checkpoints.

    Raises:
        UserError: there is none.
    """
    path, wanted = Path(name), None
    if path.is_file():
        return {name: path}
    if not path.exists() and (match := re.fullmatch(r"(.+):(\d+)", name)):
        path, wanted = Path(match[1]), int(match[2])
    found = _find_each(RunDir(path), which)
    if not found:
        raise UserError(
            f"{path} is no checkpoint file, and no run folder with a {which} checkpoint; name one of them, such as "
            "runs/mine, runs/mine:0 for its group 0, or runs/mine/checkpoints/g0-best.h5"
        )
    if wanted is None:
        return {f"{path}:{group}": checkpoint for group, checkpoint in found.items()}
    if wanted not in found:
        raise UserError(
            f"{name} names group {wanted}, but {path} has {which} checkpoints of group "
            f"{', '.join(map(str, found))} only; choose one of these"
        )
    return {name: found[wanted]}


def _find_each(run: RunDir, which: str) -> dict[int, Path]:
    """Find the best or the last checkpoint of each group that has one."""
    found = {}
    for group in run.find_groups():
        paths = [run.best_checkpoint(group)] if which == "best" else list(run.find_checkpoints(group).values())
        if paths and paths[0].exists():
            found[group] = paths[0]
    return found
