"""Restart files: one for each group and step, of which the newest and the best stay."""

from __future__ import annotations

from pathlib import Path

from hpcdistill.errors import UserError, warn
from hpcdistill.run_dir import checkpoint_paths
from hpcdistill.state_file import State, difference, load_state, save_state

KIND = "checkpoint"


class Checkpoints:
    """The checkpoints of one group in `folder`, of which the newest `keep` and the best one stay.

    Args:
        folder: made when needed.
        group: whose.
        keep: how many, at least 2, so that a damaged one has a predecessor.
        owner: what the run must have in common with a checkpoint to go on from it; JSON values by name.
    """

    def __init__(self, folder: Path, group: int, keep: int, owner: State) -> None:
        self._folder = folder
        self._group = group
        self._keep = keep
        self._owner = owner

    def save(self, step: int, state: State, is_best: bool) -> None:
        """Write `state` as the checkpoint of `step`, then remove the oldest beyond `keep`.

        Args:
            step: of the run.
            state: to be written.
            is_best: let it be known as g*-best.h5 too, whose name outlives that of its step.

        Raises:
            OSError: nothing was lost; the previous checkpoints are still there.
        """
        path = self._folder / f"g{self._group}-step{step:010d}.h5"
        save_state(path, KIND, {"owner": self._owner, "state": state})
        if is_best:
            link = path.with_name(f".{path.name}.best")
            link.unlink(missing_ok=True)
            link.hardlink_to(path)
            link.replace(self._folder / f"g{self._group}-best.h5")
        for old in self.paths()[self._keep :]:
            old.unlink(missing_ok=True)

    def paths(self) -> list[Path]:
        """This group's checkpoints, newest first."""
        return checkpoint_paths(self._folder, self._group)

    def remove_litter(self) -> None:
        """What was being written when a former start of this run was killed."""
        for path in self._folder.glob(f".g{self._group}-step*"):
            path.unlink(missing_ok=True)

    def newest(self, strict: bool) -> State | None:
        """The newest usable state, or None where there is no checkpoint at all.

        Args:
            strict: accept only the newest checkpoint, rather than fall back to its predecessors.

        Raises:
            UserError: there are checkpoints and none is usable; with `strict`, the newest is not.
        """
        paths = self.paths()
        for path in paths:
            try:
                return self._load_own(path)
            except UserError as error:
                if strict:
                    raise UserError(f"--resume=strict: {error}") from None
                warn(f"{error}; trying the one before")
        if paths:
            raise UserError(
                f"none of the {len(paths)} checkpoints of group {self._group} in {self._folder} is usable (see "
                "above); restore one, or choose another --run_dir to start afresh"
            )
        return None

    def _load_own(self, path: Path) -> State:
        content = load_state(path, KIND)
        for name, mine in self._owner.items():
            theirs = content["owner"].get(name)
            if theirs != mine:
                raise UserError(f"checkpoint {path} is of another run: {difference(name, theirs, mine)}")
        state: State = content["state"]
        return state
