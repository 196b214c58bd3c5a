"""Restart files: one for each group and step, of which the newest and the best stay."""

from __future__ import annotations

from pathlib import Path

from hpcdistill.errors import UserError, warn
from hpcdistill.storage.run_dir import checkpoint_paths
from hpcdistill.storage.state_file import State, difference, load_state, save_state

KIND = "checkpoint"


class Checkpoints:
    """The checkpoints of one group in `folder`, of which the newest `keep` usable ones and the best one stay.

    Args:
        folder: made when needed.
        group: whose.
        keep: how many, at least 2, so that one that becomes damaged has a predecessor.
        owner: what the run must have in common with a checkpoint to go on from it; JSON values by name.
    """

    def __init__(self, folder: Path, group: int, keep: int, owner: State) -> None:
        self._folder = folder
        self._group = group
        self._keep = keep
        self._owner = owner
        self._best = folder / f"g{group}-best.h5"
        self._usable: dict[Path, bool] = {}  # what this process has written or looked at

    def save(self, step: int, state: State, is_best: bool) -> None:
        """Write `state` as the checkpoint of `step`, then remove those older than the newest `keep` usable ones.

        One of a later step, left behind by a start that this run has not gone on from, is set aside.

        Args:
            step: of the run.
            state: to be written.
            is_best: let it be known as g*-best.h5 too, whose name outlives that of its step.

        Raises:
            OSError: nothing was lost; the previous checkpoints are still there.
        """
        path = self._folder / f"g{self._group}-step{step:010d}.h5"
        save_state(path, KIND, {"owner": self._owner, "state": state})
        self._usable[path] = True
        if is_best:
            self._link_best(path, state)
        usable = 0
        for old in self.paths():
            if old.name > path.name:
                _set_aside(old)
            elif usable == self._keep:
                old.unlink(missing_ok=True)
            else:
                usable += self._is_usable(old)

    def save_best(self, state: State) -> None:
        """Write `state` as g*-best.h5 alone.

        Raises:
            OSError: nothing was lost; the previous best one is still there.
        """
        save_state(self._best, KIND, {"owner": self._owner, "state": state})

    @property
    def has_best(self) -> bool:
        """Existence of a best checkpoint."""
        return self._best.exists()

    def paths(self) -> list[Path]:
        """This group's checkpoints, newest first."""
        return checkpoint_paths(self._folder, self._group)

    def remove_litter(self) -> None:
        """Remove what was being written when a former start of this run was killed."""
        for path in self._folder.glob(f".g{self._group}-*"):
            path.unlink(missing_ok=True)

    def newest(self, strict: bool) -> State | None:
        """The newest usable state, or None where there is no checkpoint at all.

        Args:
            strict: accept only the newest checkpoint, rather than fall back to its predecessors.

        Raises:
            UserError: there are checkpoints and none is usable; with `strict`, the newest is not; or it is of another
                run.
        """
        paths = self.paths()
        for path in paths:
            try:
                content = _load(path)
            except UserError as error:
                if strict:
                    raise UserError(f"--resume=strict: {error}") from None
                warn(f"{error}; trying the one before")
                self._usable[path] = False
                continue
            self._require_own(path, content["owner"])
            self._usable[path] = True
            state: State = content["state"]
            return state
        if paths:
            raise UserError(
                f"none of the {len(paths)} checkpoints of group {self._group} in {self._folder} is usable (see "
                "above); restore one, or choose another --run_dir to start afresh"
            )
        return None

    def _require_own(self, path: Path, owner: State) -> None:
        known = {name: mine for name, mine in self._owner.items() if name in owner}
        differences = [difference(name, owner[name], mine) for name, mine in known.items() if owner[name] != mine]
        if differences:
            raise UserError(
                f"checkpoint {path} is of another run: {', '.join(differences)}; give the options of that run again, "
                "or choose another --run_dir"
            )
        if unknown := self._owner.keys() - known.keys():
            warn(
                f"checkpoint {path} is of an older version and does not tell {', '.join(sorted(unknown))}; see that "
                "this is as it was"
            )

    def _is_usable(self, path: Path) -> bool:
        if path not in self._usable:
            try:
                _load(path)
                self._usable[path] = True
            except UserError:
                self._usable[path] = False
        return self._usable[path]

    def _link_best(self, path: Path, state: State) -> None:
        link = path.with_name(f".{path.name}.best")
        try:
            link.unlink(missing_ok=True)
            link.hardlink_to(path)
            link.replace(self._best)
        except OSError:  # as of filesystems without hard links
            self.save_best(state)


def _load(path: Path) -> State:
    content = load_state(path, KIND)
    owner, state = content.get("owner"), content.get("state")
    if not isinstance(owner, dict) or not isinstance(state, dict):
        raise UserError(f"checkpoint {path} holds no state of a run")
    step = state.get("step")
    if type(step) is not int or step < 0:
        raise UserError(f"checkpoint {path} is of step {step!r}, which is none")
    return content


def _set_aside(path: Path) -> None:
    aside = path.with_name(f"{path.name}.aside")
    path.replace(aside)
    warn(f"{path} is of a later step than the run, which went on from an earlier one; it is now {aside.name}")
