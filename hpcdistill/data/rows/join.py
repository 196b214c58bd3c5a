"""Joining of pieces into a store of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from hpcdistill.data.arrays import Array
from hpcdistill.data.prepare.pieces import in_order, write_whole
from hpcdistill.data.rows.store import Fields, Rows, write_rows
from hpcdistill.data.store import PARTS


def join_pieces(
    output: Path,
    paths: list[Path],
    rows: Callable[[Path], tuple[Rows, Array]],
    fields: Fields,
    source: str,
    bayes_log_loss: Mapping[str, float] | None = None,
) -> None:
    """Write the store from its pieces, and print its size.

    Args:
        output: the store, which appears only when it is complete.
        paths: the pieces.
        rows: function that reads a piece: its rows, and a mask of those of the validation part, bool [rows].
        fields: see `write_rows`.
        source: see `write_rows`.
        bayes_log_loss: see `write_rows`.

    Raises:
        UserError: a part has no rows.
    """

    def write(whole: Path) -> dict[str, int]:
        return write_rows(whole, _by_part(paths, rows), fields, source, bayes_log_loss)

    sizes = write_whole(output, paths[0].parent, write, "rows")
    print(
        f"{output}: {sizes['train']:,} training and {sizes['validation']:,} validation rows, {len(fields.dense)} dense "
        f"and {len(fields.categorical)} categorical fields with {sum(fields.categorical.values()):,} ids"
    )


def _by_part(paths: list[Path], rows: Callable[[Path], tuple[Rows, Array]]) -> Iterator[tuple[str, Rows]]:
    """Yield the rows of each part of each piece; a thread reads the next piece while one is written."""

    def split(path: Path) -> list[tuple[str, Rows]]:
        all_rows, validation = rows(path)
        first = len(validation) - int(validation.sum())
        if validation[:first].any():
            return [(part, all_rows.at(mask)) for part, mask in zip(PARTS, (~validation, validation), strict=True)]
        # The training part comes first: slices need no copy.
        return [("train", all_rows.at(slice(first))), ("validation", all_rows.at(slice(first, None)))]

    with ThreadPoolExecutor(1) as thread:
        started = (thread.submit(split, path) for path in paths)
        for parts in tqdm(in_order(started, 1), desc="joining", total=len(paths), unit="piece"):
            yield from parts
