"""Batches of rows: each row is read once per pass, by one rank; restarts continue from any cursor."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpcdistill.data.batches import Batch, Share
from hpcdistill.data.rows import batches
from hpcdistill.data.rows.batches import RowBatches, assign_blocks, row_validation_batches
from hpcdistill.data.rows.store import Fields, Rows, RowStore, write_rows
from hpcdistill.errors import UserError

pytestmark = pytest.mark.alone

BLOCK, POOL = 8, 24
ROWS = st.sampled_from([1, 7, 8, 9, 50, 64, 120, 257, 400])


@pytest.fixture(scope="module", autouse=True)
def _small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "CHUNK_ROWS", BLOCK)
        patch.setattr(batches, "POOL_ROWS", POOL)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@cache
def counting_store(folder: Path, rows: int, validation: int = 100) -> RowStore:
    """Write a store in which every value of a row is the number of the row."""
    path = folder / f"{rows}-{validation}.h5"
    pieces = [("train", counting_rows(rows)), ("validation", counting_rows(validation))]
    write_rows(path, pieces, Fields(["number"], {"double": 2**20}), "")
    return RowStore(path)


def counting_rows(count: int) -> Rows:
    numbers = np.arange(count)
    return Rows(
        numbers[:, None].astype(np.float32), 2 * numbers[:, None].astype(np.int32), (numbers % 2).astype(np.uint8)
    )


def numbers(batch: Batch) -> list[int]:
    """Return the numbers of the rows of a batch; check that all columns agree."""
    (dense, categorical), label = batch.inputs, batch.target
    assert [column.dtype for column in (dense, categorical, label)] == [torch.float32, torch.int32, torch.float32]
    result: list[int] = dense[:, 0].int().tolist()
    assert categorical[:, 0].tolist() == [2 * number for number in result]
    assert label.tolist() == [number % 2 for number in result]
    return result


def one_pass(batches: RowBatches) -> list[list[int]]:
    return [numbers(next(batches)) for _ in range(batches._per_pass)]


worlds = {
    "groups": st.integers(1, 4),
    "size": st.integers(1, 3),
    "share": st.integers(1, 40),
    "seed": st.integers(0, 9),
}


def owned_by(rows: int, part: int, parts: int) -> set[int]:
    begins, lengths = assign_blocks(rows, part, parts)
    return {row for begin, length in zip(begins, lengths, strict=True) for row in range(begin, begin + length)}


@given(rows=st.integers(1, 2000), parts=st.integers(1, 9))
def test_each_row_is_dealt_to_one_part_and_the_parts_are_equal(rows: int, parts: int) -> None:
    owned = [owned_by(rows, part, parts) for part in range(parts)]
    assert sorted(row for part in owned for row in part) == list(range(rows))
    assert max(map(len, owned)) - min(map(len, owned)) <= 1
    assert all(length <= BLOCK for part in range(parts) for length in assign_blocks(rows, part, parts)[1])


@pytest.mark.parametrize("rows", [60, 400, 5000])
def test_parts_are_alike_where_rows_are_sorted(rows: int) -> None:
    """Each part of a table sorted by its label has the same share of ones."""
    for part in range(3):
        ones = sum(row >= rows // 2 for row in owned_by(rows, part, 3))
        assert ones / len(owned_by(rows, part, 3)) == pytest.approx(0.5, abs=0.06)


@given(rows=ROWS, **worlds)
def test_one_pass_gives_each_row_to_one_rank_once(
    folder: Path, rows: int, groups: int, size: int, share: int, seed: int
) -> None:
    store, batch = counting_store(folder, rows), size * share
    for group in range(groups):
        owned = owned_by(rows, group, groups)
        if len(owned) < batch:
            remedy = "partition=same" if groups > 1 else "or lower --data.batch_size$"
            with pytest.raises(UserError, match=f"gives group {group} of {groups} {len(owned)} rows.*{remedy}"):
                RowBatches(store, batch, Share(group, groups, 0, size, (seed, group)))
            continue
        ranks = [RowBatches(store, batch, Share(group, groups, rank, size, (seed, group))) for rank in range(size)]
        for _ in range(2):
            drawn = [row for rank in ranks for rows_of_batch in one_pass(rank) for row in rows_of_batch]
            assert len(drawn) == len(set(drawn)) == len(owned) // batch * batch
            assert set(drawn) <= owned


@given(rows=ROWS.filter(lambda rows: rows >= 120), cursor=st.integers(0, 50), **worlds)
def test_from_any_cursor_it_goes_on_the_same(
    folder: Path, rows: int, cursor: int, groups: int, size: int, share: int, seed: int
) -> None:
    store, batch = counting_store(folder, rows), size * min(share, 8)
    rank = size - 1
    mine = Share(groups - 1, groups, rank, size, (seed, groups - 1))
    straight, resumed = (RowBatches(store, batch, mine) for _ in range(2))
    expected = [numbers(next(straight)) for _ in range(cursor + 20)]
    next(resumed)  # puts another pool in memory
    resumed.drawn = cursor
    assert [numbers(next(resumed)) for _ in range(20)] == expected[cursor:]
    assert resumed.drawn == cursor + 20


def test_passes_seeds_and_groups_differ_in_order(folder: Path) -> None:
    store = counting_store(folder, 400)
    batches = RowBatches(store, 100, Share())
    first, second = one_pass(batches), one_pass(batches)
    assert first != second
    assert first != one_pass(RowBatches(store, 100, Share(seed=(1,))))
    order = [
        [row // BLOCK // 2 for row in one_pass(RowBatches(store, 1, Share(group, 2, seed=(group,))))[0]]
        for group in (0, 1)
    ]
    assert order[0] != order[1]


def test_a_pool_mixes_blocks_and_the_file_is_read_in_blocks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, reads = counting_store(folder, 400), []
    read = store.read
    monkeypatch.setattr(store, "read", lambda *args: reads.append(args) or read(*args))
    drawn = one_pass(RowBatches(store, 4, Share()))
    assert reads == [("train", begin, BLOCK) for _, begin, _ in reads]
    assert sorted(begin for _, begin, _ in reads) == list(range(0, 400, BLOCK))
    assert [begin for _, begin, _ in reads] != sorted(begin for _, begin, _ in reads)
    assert any(len({row // BLOCK for row in batch}) > 2 for batch in drawn)


def test_a_batch_that_does_not_split_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="batch_size = 9 cannot be split evenly over the 2 ranks"):
        RowBatches(counting_store(folder, 400), 9, Share(size=2))


@given(rows=ROWS, size=st.integers(1, 4), batch=st.integers(1, 50))
def test_ranks_share_the_validation_rows(folder: Path, rows: int, size: int, batch: int) -> None:
    store = counting_store(folder, 1, rows)
    if rows < size:
        with pytest.raises(UserError, match=f"{rows} validation rows, fewer than the {size} ranks"):
            row_validation_batches(store, batch, 0, size)
        return
    shares = [row_validation_batches(store, batch, rank, size) for rank in range(size)]
    assert all(shares)
    assert all(len(piece.target) <= batch for share in shares for piece in share)
    assert sorted(row for share in shares for piece in share for row in numbers(piece)) == list(range(rows))


def test_a_large_validation_part_is_sampled_evenly(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "VALIDATION_BLOCKS", 3)
    (batch,) = row_validation_batches(counting_store(folder, 1, 8 * BLOCK), 1000, 0, 1)
    assert numbers(batch) == [block * BLOCK + i for block in (0, 3, 7) for i in range(BLOCK)]
