"""Documents encoded by a given tokenizer: each one whole, then the separator, whatever the format and the processes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcdistill.cli.main import main
from hpcdistill.data.store import PARTS
from hpcdistill.data.tokens import measure, records, tokenizer_file, whole_documents
from hpcdistill.data.tokens.parts import is_chosen
from hpcdistill.data.tokens.prepare_text import prepare_text
from hpcdistill.data.tokens.store import StoredTokenizer, TokenStore
from hpcdistill.data.tokens.tokenizer_file import TokenizerChoice
from hpcdistill.errors import UserError
from peak_memory import peak_of
from texts import RECORDS, TEXTS, json_lines, parquet, told, write
from tokenizer_files import END, SEPARATORS, TOKENIZERS, byte_level, unigram, whole, write_tokenizer

pytestmark = pytest.mark.launch

LIBRARY = byte_level()
END_ID = LIBRARY.token_to_id(END)


@pytest.fixture
def choice(tmp_path: Path) -> TokenizerChoice:
    return TokenizerChoice(write_tokenizer(tmp_path / "tokenizer.json"))


def encoded(inputs: list[Path], choice: TokenizerChoice, **options: Any) -> list[list[int]]:
    """Prepare a store; return the tokens of both parts."""
    output = inputs[0].parent / "encoded.h5"
    prepare_text(inputs, output, tokenizer=choice, **{"processes": 1, **options})
    with TokenStore(output) as store:
        return [store.read(part, 0, store.size(part)).tolist() for part in PARTS]


def expected(*texts: str) -> list[int]:
    return [token for text in texts for token in [*whole(LIBRARY, text), END_ID]]


@settings(max_examples=10)  # each starts processes
@given(texts=st.lists(st.text(min_size=1), min_size=1), kind=st.sampled_from([*TOKENIZERS]), name=st.sampled_from("jp"))
def test_each_document_is_encoded_whole_and_followed_by_the_separator(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], kind: str, name: str
) -> None:
    folder, library = tmp_path_factory.mktemp("text"), TOKENIZERS[kind]()
    path = write_tokenizer(folder / "tokenizer.json", library)
    write(folder, {"a.jsonl": json_lines(texts), "a.parquet": parquet(texts), "b.txt": b"validation"})
    file = "a.jsonl" if name == "j" else "a.parquet"
    choice = TokenizerChoice(path, SEPARATORS[kind])
    parts = encoded([folder / file], choice, validation=[folder / "b.txt"])
    end = library.token_to_id(SEPARATORS[kind])
    assert parts[0] == [token for text in texts for token in [*whole(library, text), end]]
    assert parts[1] == [*whole(library, "validation"), end]


@pytest.mark.parametrize("name", RECORDS)
def test_records_of_all_formats_are_chosen_by_their_hash(tmp_path: Path, choice: TokenizerChoice, name: str) -> None:
    write(tmp_path, {name: RECORDS[name](TEXTS)})
    chosen = [is_chosen(text.encode()) for text in TEXTS]
    parts = [[text for text, mark in zip(TEXTS, chosen, strict=True) if mark is part] for part in (False, True)]
    assert encoded([tmp_path / name], choice) == [expected(*texts) for texts in parts]


def test_the_end_of_a_single_text_is_cut_between_characters(tmp_path: Path, choice: TokenizerChoice) -> None:
    text = "文é" * 5000
    write(tmp_path, {"a.txt": text.encode()})
    train, validation = encoded([tmp_path / "a.txt"], choice)
    place = -(-int(len(text.encode()) * 0.95) // 5) * 2
    assert train[-1] == validation[-1] == END_ID
    parts = [LIBRARY.decode(part[:-1], skip_special_tokens=False) for part in (train, validation)]
    assert parts[0] + parts[1] == text
    assert abs(len(parts[0]) - place) <= 1


def test_stores_name_the_tokenizer_and_the_size_of_the_text(tmp_path: Path, choice: TokenizerChoice) -> None:
    write(tmp_path / "in", {"a.jsonl": json_lines(TEXTS), "b.txt": "Words é\r\n".encode()})
    prepare_text([tmp_path / "in"], tmp_path / "a.h5", tokenizer=choice)
    prepare_text([tmp_path / "in"], tmp_path / "b.h5", tokenizer=choice._replace(separator=""))
    with TokenStore(tmp_path / "a.h5") as a, TokenStore(tmp_path / "b.h5") as b:
        assert a.vocabulary == b.vocabulary == LIBRARY.get_vocab_size(with_added_tokens=True)
        assert a.tokenizer == StoredTokenizer(choice.path.read_text(), "utf-8", END)
        assert b.tokenizer == StoredTokenizer(choice.path.read_text(), "utf-8", None)
        sizes = [a.size(part) - b.size(part) for part in PARTS]
        assert sum(sizes) == len(TEXTS) + 1
        total = sum(len(text.encode()) for text in TEXTS) + len("Words é\r\n".encode())
        assert sum(a.bytes_per_token(part) * a.size(part) for part in PARTS) == pytest.approx(total)
        tokens = a.read("train", 0, a.size("train"))
        text = LIBRARY.decode(tokens[tokens != END_ID].tolist(), skip_special_tokens=False)
        assert len(text.encode("utf-8")) == pytest.approx(a.bytes_per_token("train") * a.size("train"))
        assert a.identity != b.identity
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["train"].dtype == np.uint16


def test_a_learned_tokenizer_is_told_from_a_given_one(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": b"words " * 1000})
    prepare_text([tmp_path / "a.txt"], tmp_path / "a.h5", vocabulary=300)
    prepare_text([tmp_path / "a.txt"], tmp_path / "b.h5")
    with TokenStore(tmp_path / "a.h5") as learned, TokenStore(tmp_path / "b.h5") as plain:
        assert learned.tokenizer is not None
        assert (learned.tokenizer.encoding, learned.tokenizer.separator) == ("latin-1", None)
        assert plain.tokenizer is None
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["tokenizer"].attrs["encoding"]  # as older stores
        file.attrs["version"] = 1
    with TokenStore(tmp_path / "a.h5") as older:
        assert older.tokenizer is not None
        assert older.tokenizer.encoding == "latin-1"


def test_equal_inputs_give_equal_stores_for_any_number_of_processes(
    tmp_path: Path, choice: TokenizerChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"a.jsonl": json_lines(TEXTS)})
    other = TokenizerChoice(write_tokenizer(tmp_path / "other.json", unigram()))
    identities = []
    for given_choice, processes, least in ((choice, 1, 1 << 18), (choice, 3, 1000), (other, 2, 1 << 18)):
        monkeypatch.setattr(records, "BLOCK_BYTES", least)
        monkeypatch.setattr(whole_documents, "TASK_BYTES", (least, 1 << 23))
        encoded([tmp_path / "a.jsonl"], given_choice, processes=processes)
        with TokenStore(tmp_path / "encoded.h5") as store:
            identities.append(store.identity)
    assert identities[0] == identities[1] != identities[2]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_long_texts_are_cut_where_no_token_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(whole_documents, "LONGEST", 5000)
    monkeypatch.setattr(tokenizer_file, "CUT_CONTEXT", 100)
    text = "the thing é\n\n  文 in \n" * 2000
    write(tmp_path, {"a.txt": text.encode(), "b.txt": b"validation"})
    library = TOKENIZERS[name]()
    choice = TokenizerChoice(write_tokenizer(tmp_path / "tokenizer.json", library), SEPARATORS[name])
    train, _ = encoded([tmp_path / "a.txt"], choice, validation=[tmp_path / "b.txt"])
    assert train == [*whole(library, text), library.token_to_id(SEPARATORS[name])]
    assert told(capsys) == []


def test_cuts_that_change_tokens_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: TokenizerChoice, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(whole_documents, "LONGEST", 1 << 20)
    write(tmp_path, {"a.txt": b"the" * 500_000, "b.txt": b"validation"})
    other = TokenizerChoice(write_tokenizer(tmp_path / "other.json", unigram()))
    encoded([tmp_path / "a.txt"], other, validation=[tmp_path / "b.txt"])
    assert "texts of more than 1 MiB are encoded in parts; at 1 cuts this tokenizer gives other" in told(capsys)[0]


# Bad input


def test_bad_records_are_told_in_order_for_any_number_of_processes(
    tmp_path: Path, choice: TokenizerChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(measure, "TASK_BYTES", 1000)
    lines = json_lines(TEXTS).splitlines(keepends=True)
    bad = [5, 100, 250, 399]
    for number in bad:
        lines[number] = b"no JSON\n"
    write(tmp_path, {"a.jsonl": b"".join(lines), "b.txt": b"caf\xe9", "c.jsonl": b"no JSON"})
    messages = []
    for processes in (1, 3):
        with pytest.raises(UserError) as refusal:
            encoded([tmp_path / name for name in ("a.jsonl", "b.txt", "c.jsonl")], choice, processes=processes)
        messages.append(str(refusal.value))
    assert messages[0] == messages[1]
    assert "1 so far, the first of them\n  a.jsonl line 6:" in messages[0]
    parts = encoded([tmp_path / "a.jsonl"], choice, max_bad=len(bad), processes=3)
    assert sum(part.count(END_ID) for part in parts) == len(TEXTS) - len(bad)


def test_text_that_is_not_utf_8_is_bad(
    tmp_path: Path, choice: TokenizerChoice, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"{number} words" for number in range(200)]
    contents = {f"in/{number}.txt": text.encode() for number, text in enumerate(texts)}
    write(tmp_path, {**contents, "in/bad.txt": b"one\ntwo caf\xe9 three", "in/cut.txt": "é".encode()[:1]})
    rows = parquet([text.encode() for text in texts] + [b"caf\xe9", b"zero \0"])
    write(tmp_path, {"in/a.parquet": rows})
    message = (
        r"(?s)bad records: 3 so far.*a.parquet row 201: .*bad.txt line 2: not UTF-8 \(to convert.*caf.xe9.*cut.txt"
    )
    with pytest.raises(UserError, match=message):
        encoded([tmp_path / "in"], choice, max_bad=2)
    assert not (tmp_path / "encoded.h5").exists()
    parts = encoded([tmp_path / "in"], choice, max_bad=3)
    assert sum(part.count(END_ID) for part in parts) == 2 * len(texts) + 1
    assert "passed over bad records: 3" in told(capsys)[0]


def test_too_little_text_leaves_no_store(tmp_path: Path, choice: TokenizerChoice) -> None:
    write(tmp_path, {"a.txt": b"", "b.txt": "文".encode()})
    for name in ("a.txt", "b.txt"):
        with pytest.raises(UserError, match=r"too (little text|few tokens) for a training and a validation part"):
            encoded([tmp_path / name], choice)
        assert not (tmp_path / "encoded.h5").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokenizer", "TOKENIZER", "--vocabulary", "300"], "--vocabulary 300 learns a vocabulary, and --tokenizer"),
        (["--separator", END], "--separator, --parse-special-tokens and --processes are for --tokenizer"),
        (["--processes", "0"], "are for --tokenizer; add it, or leave them out"),
        (["--tokenizer", "TOKENIZER", "--separator", "<eos>"], "--separator '<eos>' is not a token of"),
        (["--tokenizer", "TOKENIZER", "--processes", "0"], "--processes 0 must be at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tmp_path: Path, choice: TokenizerChoice, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, {"a.txt": b"words " * 100})
    options = [str(choice.path) if option == "TOKENIZER" else option for option in options]
    command = ["prepare", "text", "--input", str(tmp_path / "a.txt"), "--output", str(tmp_path / "a.h5")]
    with pytest.raises(SystemExit, match="2"):
        main([*command, *options])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a.h5").exists()


# Interruption and memory


def test_an_interrupted_command_continues_from_its_pieces(
    tmp_path: Path, choice: TokenizerChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, {"a.jsonl": json_lines(TEXTS)})
    straight = encoded([tmp_path / "a.jsonl"], choice)
    (tmp_path / "encoded.h5").unlink()

    def interrupted(output: Path, folder: Path, write: Callable[[Path], object], things: str) -> None:
        write(folder / "whole.h5")  # which takes all pieces
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(whole_documents, "write_whole", interrupted)
        with pytest.raises(KeyboardInterrupt):
            encoded([tmp_path / "a.jsonl"], choice)
    assert not (tmp_path / "encoded.h5").exists()
    monkeypatch.setattr(whole_documents.TokenizerFile, "encode", lambda *_: os._exit(1))
    assert encoded([tmp_path / "a.jsonl"], choice) == straight
    assert not [*tmp_path.glob("encoded.h5.*")]
    with pytest.raises(UserError, match="a process was killed"):  # another separator: none of the pieces fit
        encoded([tmp_path / "a.jsonl"], choice._replace(separator="the"))


def test_memory_does_not_grow_with_the_text(
    tmp_path: Path, choice: TokenizerChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_documents, "LONGEST", 1 << 16)
    monkeypatch.setattr(whole_documents, "TASK_BYTES", (1 << 15, 1 << 15))
    few, many = tmp_path / "few.txt", tmp_path / "many.txt"
    few.write_bytes(b"the thing in the text\n" * 20_000)
    with many.open("wb") as file:  # piece by piece, so that no memory is left for the reader to reuse
        for _ in range(6):
            file.write(few.read_bytes())
    output = tmp_path / "encoded.h5"
    peaks = [
        peak_of(lambda path=path: prepare_text([path], output, tokenizer=choice, processes=1)) for path in (few, many)
    ]
    more = many.stat().st_size - few.stat().st_size
    # Encoded at once, each of 1.3 million tokens more would take over 100 bytes.
    assert peaks[1] - peaks[0] < 10 * more, f"bytes: {peaks}, for {more} more of text"
