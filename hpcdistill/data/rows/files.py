"""Search for the files of a table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from hpcdistill.data.prepare.compression import GZIP, ZSTD
from hpcdistill.errors import UserError

logger = logging.getLogger(__name__)

PARQUET = (".parquet", ".pq", ".parq")
LINES = (".csv", ".tsv", ".tab", ".txt", ".psv")
MAGIC = b"PAR1"
SHOWN = 3


def find_files(inputs: Sequence[Path]) -> tuple[list[Path], bool]:
    """Return the files of a table, in folders in the order of their names, and whether they are Parquet.

    Names that begin with a dot or an underscore, such as Spark's `_SUCCESS`, are ignored in folders.

    Raises:
        UserError: a folder has no such files, or there are files of both formats.
    """
    files = [file for path in inputs for file in (_in_folder(path) if path.is_dir() else [path])]
    parquet = [_is_parquet(file) for file in files]
    if any(parquet) and not all(parquet):
        raise UserError(
            f"--input has Parquet files, such as {files[parquet.index(True)]}, and others, such as "
            f"{files[parquet.index(False)]}; prepare files of one kind together"
        )
    return files, all(parquet)


def _in_folder(folder: Path) -> list[Path]:
    children = sorted(child for child in folder.iterdir() if not child.name.startswith((".", "_")))
    folders = [child for child in children if child.is_dir()]
    if folders:
        raise UserError(
            f"--input {folder} has folders in it, such as {folders[0].name}, whose names are not columns of the files; "
            f"name the folders with the files, such as {folder}/*"
        )
    files = [child for child in children if _is_parquet(child)] or [child for child in children if _is_lines(child)]
    if not files:
        raise UserError(f"--input {folder} has no file whose name ends in {', '.join([*PARQUET, *LINES])}")
    if others := [child.name for child in children if child not in files]:
        listed = ", ".join(others[:SHOWN]) + ", …" * (len(others) > SHOWN)
        logger.warning(f"{folder}: {len(others)} files of other kinds are passed over: {listed}")
    return files


def _is_lines(file: Path) -> bool:
    endings = [suffix.lower() for suffix in file.suffixes[-2:]]
    return bool(endings) and (endings[-1] in LINES or (endings[-1] in GZIP + ZSTD and endings[0] in LINES))


def _is_parquet(file: Path) -> bool:
    if file.suffix.lower() in PARQUET:
        return True
    try:
        with file.open("rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False  # reading will name the error
