"""From text to batches: nothing lost, nothing twice, damage named."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from damaged_store import DAMAGES, make_damaged_store
from hypothesis import given
from hypothesis import strategies as st

from hpcdistill.config import DataConfig
from hpcdistill.data.batches import Share
from hpcdistill.data.sequences import sequence_batches, sequence_validation_batches
from hpcdistill.data.store import TokenStore, write_store
from hpcdistill.data.text import prepare_text
from hpcdistill.errors import UserError


def counting_store(path: Path, tokens: int, validation: int = 500) -> TokenStore:
    """A store whose tokens tell their own place, modulo 251 (no divisor of any sequence length used here)."""
    text = bytes(i % 251 for i in range(max(tokens, validation)))
    write_store(path, [("train", text[:tokens]), ("validation", text[:validation])], source="numbers")
    return TokenStore(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return counting_store(tmp_path_factory.mktemp("store") / "data.h5", 240 * 7 + 1)


def draw(store: TokenStore, groups: int, size: int, batch: int, drawn: int, seed: int) -> list[torch.Tensor]:
    """Inputs of batch number `drawn` by world rank."""
    config = DataConfig(path=store.path, batch_size=batch, sequence_length=7)
    result = []
    for world_rank in range(groups * size):
        group, rank = divmod(world_rank, size)
        batches = sequence_batches(store, config, Share(group, groups, rank, size, (seed, group)))
        batches.drawn = drawn
        (inputs,), targets = next(batches)
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        result.append(inputs)
    return result


@given(groups=st.integers(1, 4), size=st.integers(1, 3), share=st.integers(1, 4), seed=st.integers(0, 99))
def test_one_pass_gives_each_sequence_to_one_rank_once(
    store: TokenStore, groups: int, size: int, share: int, seed: int
) -> None:
    per_pass = (240 // groups) // (size * share)
    for number in (0, 1):
        firsts: list[tuple[int, ...]] = []
        for index in range(per_pass):
            for inputs in draw(store, groups, size, size * share, number * per_pass + index, seed):
                firsts += [tuple(row.tolist()) for row in inputs]
        assert len(firsts) == len(set(firsts)) == per_pass * groups * size * share


def test_a_cursor_set_again_gives_the_same_batches(store: TokenStore) -> None:
    config = DataConfig(path=store.path, batch_size=16, sequence_length=7)
    straight, resumed = (sequence_batches(store, config, Share(seed=(3,))) for _ in range(2))
    expected = [next(straight).target for _ in range(30)]  # more than two passes
    resumed.drawn = 10
    assert all(torch.equal(next(resumed).target, batch) for batch in expected[10:])


def test_passes_and_seeds_differ_in_order(store: TokenStore) -> None:
    first = draw(store, 1, 1, 100, 0, seed=0)[0]
    assert not torch.equal(first, draw(store, 1, 1, 100, 2, seed=0)[0])
    assert not torch.equal(first, draw(store, 1, 1, 100, 0, seed=1)[0])


def test_ranks_share_the_validation_sequences(store: TokenStore) -> None:
    config = DataConfig(path=store.path, batch_size=16, sequence_length=7)
    whole = torch.cat([batch.target for batch in sequence_validation_batches(store, config, 0, 1)])
    parts = torch.cat(
        [batch.target for rank in range(3) for batch in sequence_validation_batches(store, config, rank, 3)]
    )
    assert whole.shape == ((500 - 1) // 7, 7)
    assert sorted(whole.tolist()) == sorted(parts.tolist())


@pytest.mark.parametrize(
    ("batch", "size", "length", "message"),
    [
        (9, 2, 7, "batch_size = 9 cannot be split evenly over the 2 ranks"),
        (400, 1, 7, "fewer than data.batch_size = 400"),
        (1, 1, 9999, "gives each of 1 groups 0 sequences of 9999 tokens"),
    ],
)
def test_batches_that_cannot_be_are_refused(
    store: TokenStore, batch: int, size: int, length: int, message: str
) -> None:
    config = DataConfig(path=store.path, batch_size=batch, sequence_length=length)
    with pytest.raises(UserError, match=message):
        sequence_batches(store, config, Share(size=size))


def test_text_folders_keep_every_byte_and_split_by_file(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    (folder / "skipped").mkdir(parents=True)
    (folder / "skipped" / "x.txt").write_bytes(b"never")
    (folder / "binary.txt").write_bytes(b"a\0b")
    (folder / "other.md").write_bytes(b"never either")
    written = {f"{number}.txt": f"file {number} \xff\r\n".encode("latin1") for number in range(200)}
    for name, text in written.items():
        (folder / name).write_bytes(text)
    prepare_text([folder], tmp_path / "data.h5", include="*.txt", exclude=["skipped"])
    with TokenStore(tmp_path / "data.h5") as store:
        parts = [bytes(store.read(part, 0, store.size(part)).astype(np.uint8)) for part in ("train", "validation")]
        assert store.source == str(folder)
    files = [part.split(b"\0")[:-1] for part in parts]
    assert sorted(files[0] + files[1]) == sorted(written.values())
    assert 0 < len(files[1]) < 30


def test_a_single_file_is_split_at_its_end(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_bytes(bytes(range(1, 101)) * 10)
    prepare_text([tmp_path / "book.txt"], tmp_path / "data.h5")
    with TokenStore(tmp_path / "data.h5") as store:
        assert (store.size("train"), store.size("validation")) == (950, 50)


def test_no_text_is_an_error_and_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        prepare_text([tmp_path / "nowhere"], tmp_path / "data.h5")
    with pytest.raises(UserError, match=r"no file matches '\*\.py'"):
        prepare_text([tmp_path], tmp_path / "data.h5", include="*.py")
    assert not (tmp_path / "data.h5").exists()


def test_a_flipped_bit_is_found_when_it_is_read(tmp_path: Path) -> None:
    counting_store(tmp_path / "data.h5", 200_000).close()
    content = bytearray((tmp_path / "data.h5").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "data.h5").write_bytes(content)
    with TokenStore(tmp_path / "data.h5") as store, pytest.raises(UserError, match="the file is damaged"):
        store.read("train", 0, 200_000)


def test_a_token_outside_the_vocabulary_is_named(tmp_path: Path) -> None:
    counting_store(tmp_path / "data.h5", 1000).close()
    with h5py.File(tmp_path / "data.h5", "a") as file:
        file.attrs["vocabulary"] = 100
    with TokenStore(tmp_path / "data.h5") as store, pytest.raises(UserError, match="token 250 in 'train'"):
        store.read("train", 0, 1000)


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_a_store_is_refused_with_the_remedy(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "data.h5"
    make_damaged_store(path, damage, lambda path: counting_store(path, 100_000).close())
    with pytest.raises(UserError, match=r"prepare (text|the data again)"):
        TokenStore(path)
