"""`hpcdistill prepare text`: text files and folders into a token store, byte by byte or with a learned vocabulary."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from hpcdistill.data.hashing import VALIDATION_SHARE
from hpcdistill.data.store import TokenStore, write_store
from hpcdistill.data.store_file import PARTS
from hpcdistill.data.tokenizer import check_vocabulary, train_tokenizer
from hpcdistill.errors import UserError, warn

END_OF_FILE = b"\0"  # after each file; no text contains it
PIECE_BYTES = 1 << 16  # a word cut in two so rarely does no harm
SAMPLE_BYTES = 1 << 25  # learning takes 0.2 GB of memory with prose or code, about 3 GB where no word occurs twice


class Text(NamedTuple):
    """What goes into one part: some bytes of a file, and what to append."""

    part: str
    file: Path
    begin: int
    size: int
    end: bytes = b""


def prepare_text(
    inputs: Sequence[Path],
    output: Path,
    include: str = "*",
    exclude: Sequence[str] = (),
    vocabulary: int | None = None,
) -> None:
    """Turn text into a token store; a zero byte ends each file of several.

    About 5 % of the files, chosen by a hash of their names, become the validation part; of a single file its end.
    Files that hold a zero byte are binary and left out.

    Args:
        inputs: files, and folders that are searched recursively.
        output: the HDF5 file to make.
        include: which file names of a folder to take, as a glob.
        exclude: names of files and folders to pass over, as globs.
        vocabulary: how many tokens to learn from the training part; by default one byte is one token.

    Raises:
        UserError: an input does not exist, no text is found, or there can be no such vocabulary.
    """
    if vocabulary is not None:
        check_vocabulary(vocabulary)
    files = [file for path in inputs for file in _files(path, include, exclude)]
    if not files:
        raise UserError(f"no file matches {include!r} in {', '.join(map(str, inputs))}; check --input, --include")
    texts = _split_one(files[0]) if len(files) == 1 else _split(inputs, files)
    sizes = {part: sum(text.size for text in texts if text.part == part) for part in PARTS}
    if not all(sizes.values()):
        raise UserError(f"too little text for a training and a validation part: {sizes} bytes; add files to --input")
    tokenizer = train_tokenizer(_sample(texts), vocabulary) if vocabulary is not None else None
    write_store(output, _pieces(texts, "writing"), ", ".join(map(str, inputs)), tokenizer)
    with TokenStore(output) as store:
        _tell(store, vocabulary)


def _tell(store: TokenStore, wanted: int | None) -> None:
    if wanted is not None and store.vocabulary < wanted:
        warn(
            f"--vocabulary {wanted}: the text is enough for {store.vocabulary} tokens only, and the store has those; "
            "for more, add files to --input"
        )
    print(
        f"{store.path}: {store.size('train'):,} training and {store.size('validation'):,} validation tokens, "
        f"{store.vocabulary:,} different ones, {store.bytes_per_token('train'):.2f} bytes each"
    )


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


def _split(inputs: Sequence[Path], files: Sequence[Path]) -> list[Text]:
    return [
        Text(_part(_relative(file, inputs)), file, 0, file.stat().st_size, END_OF_FILE)
        for file in tqdm(files, desc="looking for text", unit="file")
        if _is_text(file)
    ]


def _split_one(file: Path) -> list[Text]:
    if not _is_text(file):
        raise UserError(f"{file} is not text: it holds a zero byte")
    size = file.stat().st_size
    cut = int(size * (1 - VALIDATION_SHARE))
    return [Text("train", file, 0, cut), Text("validation", file, cut, size - cut)]


def _is_text(file: Path) -> bool:
    return all(END_OF_FILE not in piece for piece in _read(file, 0, file.stat().st_size))


def _read(file: Path, begin: int, size: int) -> Iterator[bytes]:
    with file.open("rb") as stream:
        stream.seek(begin)
        while piece := stream.read(min(size, PIECE_BYTES)):
            size -= len(piece)
            yield piece


def _pieces(texts: Sequence[Text], purpose: str) -> Iterator[tuple[str, bytes]]:
    """The part and the bytes of each piece; shows how far it is."""
    with tqdm(desc=purpose, total=sum(text.size for text in texts), unit="B", unit_scale=True) as bar:
        for text in texts:
            rest = text.size
            for piece in _read(text.file, text.begin, text.size):
                rest -= len(piece)
                yield text.part, piece if rest else piece + text.end
                bar.update(len(piece))


def _sample(texts: Sequence[Text]) -> Iterator[bytes]:
    """At most `SAMPLE_BYTES` of the training part and a piece more, evenly spread over it."""
    training = [text for text in texts if text.part == "train"]
    total = sum(text.size for text in training)
    seen = taken = 0
    for _, piece in _pieces(training, "learning the vocabulary"):
        if taken * total <= seen * SAMPLE_BYTES:
            taken += len(piece)
            yield piece
        seen += len(piece)


def _relative(file: Path, inputs: Sequence[Path]) -> str:
    root = next((path for path in inputs if path.is_dir() and file.is_relative_to(path)), file.parent)
    return str(file.relative_to(root))


def _part(name: str) -> str:
    """The same for a file wherever its folder lies, and independent of the other files."""
    fraction = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64
    return "validation" if fraction < VALIDATION_SHARE else "train"
