"""Batches of tokens: none is lost or repeated, and damage is named."""

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from damaged_store import DAMAGES, make_damaged_store
from hpcdistill.config.data import DataConfig
from hpcdistill.data.batches import Share
from hpcdistill.data.tokens import documents
from hpcdistill.data.tokens.batches import sequence_batches, sequence_validation_batches
from hpcdistill.data.tokens.prepare_text import prepare_text
from hpcdistill.data.tokens.store import TokenStore, write_store
from hpcdistill.errors import UserError
from hpcdistill.storage.hdf5_check import digest
from peak_memory import peak_of

pytestmark = pytest.mark.alone


def counting_store(path: Path, tokens: int, validation: int = 500) -> TokenStore:
    """Write a store whose tokens are their positions modulo 251, which no sequence length here divides."""
    content = bytes(i % 251 for i in range(max(tokens, validation)))
    write_store(path, [("train", content[:tokens]), ("validation", content[:validation])], source="numbers")
    return TokenStore(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return counting_store(tmp_path_factory.mktemp("store") / "data.h5", 240 * 7 + 1)


def draw(store: TokenStore, groups: int, size: int, batch: int, drawn: int, seed: int) -> list[torch.Tensor]:
    """Return the inputs of batch number `drawn`, by world rank."""
    config = DataConfig(path=store.path, batch_size=batch, sequence_length=7)
    result = []
    for world_rank in range(groups * size):
        group, rank = divmod(world_rank, size)
        batches = sequence_batches(store, config, Share(group, groups, rank, size, (seed, group)))
        batches.drawn = drawn
        mine = next(batches)
        (inputs,), targets = mine.inputs, mine.target
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
    for name, content in written.items():
        (folder / name).write_bytes(content)
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


def test_bytes_are_tokens_also_in_stores_that_do_not_say_so(tmp_path: Path) -> None:
    counting_store(tmp_path / "data.h5", 1000).close()
    for _ in ("new", "old"):
        with TokenStore(tmp_path / "data.h5") as store:
            assert store.vocabulary == 256
            assert [store.bytes_per_token(part) for part in ("train", "validation")] == [1, 1]
            assert store.read("train", 250, 2).tolist() == [250, 0]
        with h5py.File(tmp_path / "data.h5", "a") as file:
            file.attrs["version"] = 1
            for part in ("train", "validation"):
                file[part].attrs.pop("bytes", None)


def test_a_store_does_not_depend_on_how_its_text_was_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    written = {f"{number}.txt": bytes(range(1, 1 + number)) for number in range(100)}
    for name, content in written.items():
        (folder / name).write_bytes(content)
    contents = []
    for size in (1 << 16, 7, 1):
        monkeypatch.setattr("hpcdistill.data.tokens.prepare_text.PIECE_BYTES", size)
        monkeypatch.setattr(documents, "READ_BYTES", size)
        prepare_text([folder], tmp_path / "data.h5")
        with TokenStore(tmp_path / "data.h5") as store:
            parts = [store.read(part, 0, store.size(part)).tolist() for part in ("train", "validation")]
            contents.append((store.identity, parts))
    assert contents[0] == contents[1] == contents[2]


def test_other_bytes_have_another_identity(tmp_path: Path) -> None:
    identities = set()
    for pieces in ([("train", b"ab"), ("validation", b"c")], [("train", b"a"), ("validation", b"bc")]):
        write_store(tmp_path / "data.h5", pieces, source="bytes")
        with TokenStore(tmp_path / "data.h5") as store:
            identities.add(store.identity)
    assert len(identities) == 2


@pytest.mark.parametrize("vocabulary", [-1, 0, 256, (1 << 20) + 1, 10**30])
def test_a_vocabulary_that_cannot_be_is_refused(tmp_path: Path, vocabulary: int) -> None:
    with pytest.raises(UserError, match=rf"--vocabulary {vocabulary} must be from 257 .* to 1048576; .*without it"):
        prepare_text([tmp_path], tmp_path / "data.h5", vocabulary=vocabulary)


def test_a_vocabulary_without_tokenizers_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match="pip install tokenizers, or leave out --vocabulary"):
        prepare_text([tmp_path], tmp_path / "data.h5", vocabulary=300)


@pytest.mark.parametrize("content", [b"", b"a"])
def test_too_little_text_leaves_the_store_that_is_there(tmp_path: Path, content: bytes) -> None:
    counting_store(tmp_path / "data.h5", 1000).close()
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match="too little text for a training and a validation part"):
        prepare_text([tmp_path / "a.txt"], tmp_path / "data.h5")
    with TokenStore(tmp_path / "data.h5") as store:
        assert store.size("train") == 1000


@pytest.mark.launch
def test_memory_does_not_grow_with_a_file(tmp_path: Path) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    few.write_bytes(b"bytes\n" * 10_000)
    with many.open("wb") as file:  # piece by piece, so that no memory is left for the reader to reuse
        for _ in range(1000):
            file.write(few.read_bytes())
    peaks = [peak_of(lambda path=path: prepare_text([path], tmp_path / "data.h5")) for path in (few, many)]
    more = many.stat().st_size - few.stat().st_size
    assert peaks[1] - peaks[0] < more / 2, f"bytes: {peaks}, for {more} more of text"


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
        file.attrs["digest"] = digest(file)
    with TokenStore(tmp_path / "data.h5") as store, pytest.raises(UserError, match="token 250 in 'train'"):
        store.read("train", 0, 1000)


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_a_store_is_refused_with_the_remedy(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "data.h5"
    make_damaged_store(path, damage, lambda path: counting_store(path, 100_000).close())
    with pytest.raises(UserError, match=r"prepare (text|the data again)"):
        TokenStore(path)
