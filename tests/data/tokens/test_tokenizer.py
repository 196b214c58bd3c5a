"""Learned vocabularies: any bytes can be decoded, and equal texts give equal vocabularies."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcdistill.cli.main import main
from hpcdistill.data.tokens import tokenizer
from hpcdistill.data.tokens.parts import is_chosen
from hpcdistill.data.tokens.prepare_text import prepare_text
from hpcdistill.data.tokens.store import TokenStore, write_store
from hpcdistill.data.tokens.tokenizer import encode, train_tokenizer
from peak_memory import peak_of

pytestmark = pytest.mark.alone

tokenizers = pytest.importorskip("tokenizers")

WORDS = [
    b"group",
    b"teaches",
    b"    return self.peer\n",
    b"\r\n\r\n",
    b"na\xc3\xafve",
    b"na\xefve",
    b"1804",
    b"\0\0",
    b" ",
]
LEARNED = train_tokenizer([b"".join(WORDS) * 10, b" ".join(WORDS) * 10], 400)


def tokens_of(*pieces: bytes) -> list[list[int]]:
    return [tokens.tolist() for _, tokens, _ in encode([("train", piece) for piece in pieces], LEARNED)]


def stored_text(path: Path, part: str) -> bytes:
    """Decode the store without hpcdistill, as other programs do."""
    with h5py.File(path, locking=False) as file:
        learned = tokenizers.Tokenizer.from_str(file["tokenizer"].asstr()[()])
        return bytes(learned.decode(file[part][()].tolist(), skip_special_tokens=False).encode("latin-1"))


def random_words(count: int, length: int = 5) -> bytes:
    letters = b"abcdefghijklmnopqrstuvwxyz"
    generator = random.Random(3)
    return b"".join(bytes(generator.choices(letters, k=length)) + b"\n" for _ in range(count))


@given(pieces=st.lists(st.binary() | st.lists(st.sampled_from(WORDS) | st.binary(max_size=2)).map(b"".join)))
def test_any_bytes_come_back(pieces: list[bytes]) -> None:
    for piece, tokens in zip(pieces, tokens_of(*pieces), strict=True):
        assert LEARNED.decode(tokens, skip_special_tokens=False).encode("latin-1") == piece


def test_pieces_keep_their_order_part_and_size_over_many_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "BATCH_PIECES", 3)
    pieces = [("train" if number % 3 else "validation", b"group %d" % number) for number in range(20)]
    encoded = list(encode(iter(pieces), LEARNED))
    assert [(part, size) for part, _, size in encoded] == [(part, len(piece)) for part, piece in pieces]
    assert [tokens.tolist() for _, tokens, _ in encoded] == tokens_of(*(piece for _, piece in pieces))


def test_single_bytes_are_their_own_tokens_and_words_are_one() -> None:
    assert tokens_of(*(bytes([byte]) for byte in range(256))) == [[byte] for byte in range(256)]
    assert [len(tokens) for tokens in tokens_of(b"group", b" group", b"\r\n\r\n", b"na\xc3\xafve", b"1804")] == [1] * 5


@pytest.mark.parametrize("word", [b"group", b"   ", b"\r\n", b"=", b"1", b"\xff", b"\x01"])
def test_no_token_has_the_end_of_a_file_in_it(word: bytes) -> None:
    learned = train_tokenizer([(word + b"\0") * 100 + b"\0" * 100], 1000)
    assert [token for token in learned.get_vocab() if "\0" in token] == ["\0"]


def test_what_occurs_once_is_not_learned() -> None:
    assert train_tokenizer([b"once"], 300).get_vocab_size() == 256
    assert train_tokenizer([b"twice\n", b"twice"], 300).get_vocab_size() == 256 + len("twice") - 1


def test_what_has_no_words_is_cut() -> None:
    learned = train_tokenizer([kind * 100_000 for kind in (b"a", b"\xe4", b"1", b"=", b" ", b"\n")], 5000)
    assert max(map(len, learned.get_vocab())) <= 65  # a word may begin with a space


def test_a_folder_becomes_tokens_of_its_training_part(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(100):
        only = b" validation" if is_chosen(b"%d.txt" % number) else b" training"
        (folder / f"{number}.txt").write_bytes(only * 50 + b"\r\n\xff %d\n" % number)
    prepare_text([folder], tmp_path / "tokens.h5", vocabulary=300)
    prepare_text([folder], tmp_path / "bytes.h5")
    with TokenStore(tmp_path / "tokens.h5") as tokens, TokenStore(tmp_path / "bytes.h5") as plain:
        for part in ("train", "validation"):
            whole = bytes(plain.read(part, 0, plain.size(part)).astype(np.uint8))
            assert stored_text(tmp_path / "tokens.h5", part) == whole
            assert tokens.bytes_per_token(part) == len(whole) / tokens.size(part)
        assert tokens.bytes_per_token("train") > 4
        assert tokens.read("train", 0, 99).dtype == np.int64
    with h5py.File(tmp_path / "tokens.h5") as file:
        known = json.loads(file["tokenizer"].asstr()[()])["model"]["vocab"]
    assert " training" in known
    assert not [token for token in known if "valid" in token]


@pytest.mark.parametrize(("vocabulary", "dtype"), [(257, np.uint16), (1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_tokens_have_the_smallest_type_that_holds_them(tmp_path: Path, vocabulary: int, dtype: type) -> None:
    (tmp_path / "a.txt").write_bytes(random_words(5000, 60) * 2)
    prepare_text([tmp_path / "a.txt"], tmp_path / "data.h5", vocabulary=vocabulary)
    with h5py.File(tmp_path / "data.h5") as file:
        assert file.attrs["vocabulary"] == vocabulary
        assert file["train"].dtype == dtype
        assert file["train"][()].max() < vocabulary
    assert stored_text(tmp_path / "data.h5", "train") == (tmp_path / "a.txt").read_bytes()[: int(610_000 * 0.95)]


def test_the_same_text_gives_the_same_store_and_other_vocabularies_others(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(random_words(20_000))
    identities = []
    for vocabulary in (1000, 1000, 1001, None):
        prepare_text([tmp_path / "a.txt"], tmp_path / "data.h5", vocabulary=vocabulary)
        with TokenStore(tmp_path / "data.h5") as store:
            identities.append(store.identity)
    assert identities[0] == identities[1]
    assert len(set(identities)) == 3


def test_the_same_tokens_that_mean_something_else_have_another_identity(tmp_path: Path) -> None:
    other = train_tokenizer([b"other words" * 10], 300)
    for name, learned in (("one", LEARNED), ("other", other)):  # neither has a token for these two bytes
        write_store(tmp_path / name, [("train", b"\x01\x02"), ("validation", b"\x01")], "bytes", learned)
    with TokenStore(tmp_path / "one") as one, TokenStore(tmp_path / "other") as two:
        assert one.read("train", 0, 2).tolist() == two.read("train", 0, 2).tolist()
        assert one.identity != two.identity


def test_a_vocabulary_is_learned_from_a_sample_of_all_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcdistill.data.tokens.prepare_text.PIECE_BYTES", 100)
    monkeypatch.setattr("hpcdistill.data.tokens.prepare_text.SAMPLE_BYTES", 5000)
    (tmp_path / "a.txt").write_bytes(b"".join(b"%c" % letter * 10_000 for letter in b"abcdefghij"))
    seen: list[bytes] = []

    def train(pieces: Iterator[bytes], vocabulary: int) -> object:
        seen.extend(pieces)
        return train_tokenizer(seen, vocabulary)

    monkeypatch.setattr("hpcdistill.data.tokens.prepare_text.train_tokenizer", train)
    prepare_text([tmp_path / "a.txt"], tmp_path / "data.h5", vocabulary=300)
    sample = b"".join(seen)
    assert 4900 <= len(sample) <= 5100
    assert all(400 <= sample.count(letter) <= 600 for letter in b"abcdefghi")
    assert 200 <= sample.count(b"j") <= 300  # half of them are in the validation part


def test_too_little_text_for_so_many_tokens_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_bytes(b"to be or not to be\n" * 40)
    command = ["prepare", "text", "--input", str(tmp_path / "a.txt"), "--output", str(tmp_path / "data.h5")]
    assert main([*command, "--vocabulary", "5000"]) == 0
    with TokenStore(tmp_path / "data.h5") as store:
        assert 256 < store.vocabulary < 300
        told = capsys.readouterr()
        assert f"--vocabulary 5000: the text gives only {store.vocabulary} tokens" in told.err
        assert f"{store.vocabulary} different ones, {store.bytes_per_token('train'):.2f} bytes each" in told.out


@pytest.mark.launch
def test_memory_does_not_grow_with_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcdistill.data.tokens.prepare_text.SAMPLE_BYTES", 1 << 18)
    monkeypatch.setattr(tokenizer, "BATCH_PIECES", 4)
    words = random_words(20_000)
    few, many = tmp_path / "few", tmp_path / "many"
    few.write_bytes(words * 5)
    many.write_bytes(words * 50)
    peaks = [peak_of(lambda path=path: prepare_text([path], tmp_path / "a.h5", vocabulary=400)) for path in (few, many)]
    more = many.stat().st_size - few.stat().st_size
    # Encoded at once, each token would take over 100 bytes.
    assert peaks[1] - peaks[0] < 10 * more, f"bytes: {peaks}, for {more} more of text"
