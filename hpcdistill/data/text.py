"""`hpcdistill prepare text`: text files and folders into a token store, byte by byte."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from tqdm import tqdm

from hpcdistill.data.store import write_store
from hpcdistill.errors import UserError

VALIDATION_SHARE = 0.05
END_OF_FILE = b"\0"  # after each file; no text contains it


def prepare_text(inputs: Sequence[Path], output: Path, include: str = "*", exclude: Sequence[str] = ()) -> None:
    """Turn text into a token store; one byte is one token, and a zero byte ends each file.

    About 5 % of the files, chosen by a hash of their names, become the validation part; of a single file its end.
    Files that hold a zero byte are binary and left out.

    Args:
        inputs: files, and folders that are searched recursively.
        output: the HDF5 file to make.
        include: which file names of a folder to take, as a glob.
        exclude: names of files and folders to pass over, as globs.

    Raises:
        UserError: an input does not exist, or no text is found.
    """
    files = [file for path in inputs for file in _files(path, include, exclude)]
    if not files:
        raise UserError(f"no file matches {include!r} in {', '.join(map(str, inputs))}; check --input, --include")
    pieces = _split_one(files[0]) if len(files) == 1 else _split(inputs, files)
    sizes = write_store(output, pieces, source=", ".join(str(path) for path in inputs))
    if not all(sizes.values()):
        output.unlink()
        raise UserError(f"too little text for a training and a validation part: {sizes}; add files to --input")
    print(f"{output}: {sizes['train']:,} training and {sizes['validation']:,} validation tokens")


def _files(path: Path, include: str, exclude: Sequence[str]) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        for child in sorted(path.iterdir()):
            excluded = child.is_symlink() or any(fnmatch(child.name, pattern) for pattern in exclude)
            if not excluded and (child.is_dir() or fnmatch(child.name, include)):
                yield from _files(child, include, exclude)
    else:
        raise UserError(f"--input {path}: no such file or folder")


def _split(inputs: Sequence[Path], files: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    for file in tqdm(files, desc="reading", unit="file"):
        text = file.read_bytes()
        if END_OF_FILE not in text:
            yield _part(_relative(file, inputs)), text + END_OF_FILE


def _split_one(file: Path) -> Iterator[tuple[str, bytes]]:
    text = file.read_bytes()
    if END_OF_FILE in text:
        raise UserError(f"{file} is not text: it holds a zero byte")
    cut = int(len(text) * (1 - VALIDATION_SHARE))
    yield "train", text[:cut]
    yield "validation", text[cut:]


def _relative(file: Path, inputs: Sequence[Path]) -> str:
    root = next((path for path in inputs if path.is_dir() and file.is_relative_to(path)), file.parent)
    return str(file.relative_to(root))


def _part(name: str) -> str:
    """The same for a file wherever its folder lies, and independent of the other files."""
    fraction = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64
    return "validation" if fraction < VALIDATION_SHARE else "train"
