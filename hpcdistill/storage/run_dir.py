"""The folder of a run: whether it takes files, and which checkpoints it holds."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from hpcdistill.errors import UserError


def make_run_dir(path: Path) -> list[Path]:
    """Make the folder, and see that it takes files, before hours of training find out that it does not.

    Returns:
        The folders that were not there before, the innermost first.

    Raises:
        UserError: it does not: read-only, full, over quota, or there is something else of that name.
    """
    made = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        remove_empty(made)
        raise UserError(
            f"run_dir = {path} cannot be written to: {error.strerror}; make room there, or choose another --run_dir"
        ) from None
    return made


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove those folders, in this order, that are empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def checkpoint_paths(folder: Path, group: int) -> list[Path]:
    """A group's checkpoints in `folder`, newest first."""
    pattern = re.compile(rf"g{group}-step\d{{10}}\.h5")
    return sorted((path for path in folder.glob("*.h5") if pattern.fullmatch(path.name)), reverse=True)


def named_checkpoints(name: str, which: str) -> dict[str, Path]:
    """The checkpoints that a user means by `name`, each by a name of its own.

    Args:
        name: a checkpoint file; a run folder, for one checkpoint of each of its groups; or RUN:GROUP, for that group's.
        which: of a group's checkpoints, the "best" or the "last" one.

    Raises:
        UserError: there is none.
    """
    path, wanted = Path(name), None
    if path.is_file():
        return {name: path}
    if not path.exists() and (match := re.fullmatch(r"(.+):(\d+)", name)):
        path, wanted = Path(match[1]), int(match[2])
    found = _of_each_group(path / "checkpoints", which)
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


def _of_each_group(folder: Path, which: str) -> dict[int, Path]:
    found = ((re.fullmatch(r"g(\d+)-(?:best|step\d{10})\.h5", path.name)) for path in folder.glob("g*.h5"))
    groups = sorted({int(match[1]) for match in found if match})
    if which == "best":
        of_group = {group: [folder / f"g{group}-best.h5"] for group in groups}
    else:
        of_group = {group: checkpoint_paths(folder, group) for group in groups}
    return {group: paths[0] for group, paths in of_group.items() if paths and paths[0].exists()}


def require_no_checkpoints(run_dir: Path, checkpoints: Sequence[Path]) -> None:
    """See that a new run does not begin where there is one.

    Raises:
        UserError: there are checkpoints.
    """
    if checkpoints:
        raise UserError(
            f"run_dir = {run_dir} holds a run already ({checkpoints[0].name}); "
            "add --resume to go on with it, or choose another --run_dir"
        )
