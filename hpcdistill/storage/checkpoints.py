"""Checkpoints of a group: one file for each step, of which the newest and the best are kept."""

from __future__ import annotations

import logging
from pathlib import Path

from hpcdistill.errors import UserError
from hpcdistill.storage.run_dir import RunDir
from hpcdistill.storage.state_file import State, difference, load_state, save_state

logger = logging.getLogger(__name__)

KIND = "checkpoint"


class Checkpoints:
    """Checkpoints of one group, of which the newest `keep` usable ones and the best one are kept.

    Args:
        run: folder of the run.
        group: group whose checkpoints these are.
        keep: number to keep, at least 2, so that one that becomes damaged has a predecessor.
        owner: facts that a run must share with a checkpoint to resume from it; JSON values by name.
    """

    def __init__(self, run: RunDir, group: int, keep: int, owner: State) -> None:
        self._run = run
        self._group = group
        self._keep = keep
        self._owner = owner
        self._best = run.best_checkpoint(group)
        self._usable: dict[Path, bool] = {}  # those that this process has written or read

    def save(self, step: int, state: State, is_best: bool) -> None:
        """Write `state` as the checkpoint of `step`, then remove those older than the newest `keep` usable ones.

        A checkpoint of a later step is renamed: a former start left it, from which this run has not resumed.

        Args:
            step: steps made.
            state: state to write.
            is_best: also link it as g*-best.h5, a name that is kept when that of its step is removed.

        Raises:
            OSError: the file cannot be written; the previous checkpoints are still there.
        """
        path = self._run.checkpoint(self._group, step)
        save_state(path, KIND, {"owner": self._owner, "state": state})
        self._usable[path] = True
        if is_best:
            self._link_best(path, state)
        usable = 0
        for old_step, old in self._run.find_checkpoints(self._group).items():
            if old_step > step:
                _set_aside(old)
            elif usable == self._keep:
                old.unlink(missing_ok=True)
            else:
                usable += self._is_usable(old)

    def save_best(self, state: State) -> None:
        """Write `state` as g*-best.h5 only.

        Raises:
            OSError: the file cannot be written; the previous best one is still there.
        """
        save_state(self._best, KIND, {"owner": self._owner, "state": state})

    @property
    def has_best(self) -> bool:
        """True if there is a best checkpoint."""
        return self._best.exists()

    def remove_temporary_files(self) -> None:
        """Remove the files that a former start of this run was writing when it was killed."""
        for path in self._run.find_temporary_checkpoints(self._group):
            path.unlink(missing_ok=True)

    def newest(self, strict: bool) -> State | None:
        """Read the newest usable checkpoint; return None if there is no checkpoint at all.

        Args:
            strict: accept the newest checkpoint only, instead of falling back to its predecessors.

        Raises:
            UserError: there are checkpoints but none is usable, or with `strict` the newest is not; or it is of another
                run.
        """
        paths = list(self._run.find_checkpoints(self._group).values())
        for path in paths:
            try:
                content = _load(path)
            except UserError as error:
                if strict:
                    raise UserError(f"--resume=strict: {error}") from None
                logger.warning(f"{error}; trying the one before")
                self._usable[path] = False
                continue
            self._require_own(path, content["owner"])
            self._usable[path] = True
            state: State = content["state"]
            return state
        if paths:
            raise UserError(
                f"none of the {len(paths)} checkpoints of group {self._group} in {self._best.parent} is usable (see "
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
            logger.warning(
                f"checkpoint {path} is of an older version and does not tell {', '.join(sorted(unknown))}; make "
                "sure that it is unchanged"
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
        except OSError:  # as on filesystems without hard links
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
    logger.warning(f"{path} is of a later step than the run, which went on from an earlier one; it is now {aside.name}")
