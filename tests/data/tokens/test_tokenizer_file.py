"""Tokenizers in files: the library's tokens for each text, special ones only if asked for, and refusals that help."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcdistill.data.tokens import tokenizer_file
from hpcdistill.data.tokens.tokenizer_file import TokenizerChoice, TokenizerFile, read_tokenizer
from hpcdistill.errors import UserError
from tokenizer_files import END, SEPARATORS, TOKENIZERS, byte_level, unigram, whole, write_tokenizer

pytestmark = pytest.mark.alone

TEXT = st.text() | st.lists(st.sampled_from(["the", " the", "ing", "é", "文", "\n\n", "  ", "\0", "A"])).map("".join)


@pytest.fixture(scope="module", params=TOKENIZERS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def given_file(kind: str, tmp_path_factory: pytest.TempPathFactory) -> TokenizerFile:
    path = write_tokenizer(tmp_path_factory.mktemp("given") / "tokenizer.json", TOKENIZERS[kind]())
    return read_tokenizer(TokenizerChoice(path, SEPARATORS[kind]))


def ids_of(tokenizer: TokenizerFile, *texts: str) -> list[list[int]]:
    return [tokenizer.encode(text) for text in texts]


@given(texts=st.lists(TEXT))
def test_tokens_are_those_of_the_library_for_each_text(given_file: TokenizerFile, kind: str, texts: list[str]) -> None:
    library = TOKENIZERS[kind]()
    assert ids_of(given_file, *texts) == [whole(library, text) for text in texts]


@given(text=TEXT)
def test_bytes_come_back_from_a_byte_level_tokenizer(text: str) -> None:
    library = byte_level()
    assert library.decode(whole(library, text), skip_special_tokens=False) == text


def test_special_tokens_in_a_text_are_text_unless_asked_for(kind: str, given_file: TokenizerFile) -> None:
    separator = SEPARATORS[kind]
    assert given_file.separator_id == TOKENIZERS[kind]().token_to_id(separator)
    (plain,) = ids_of(given_file, f"the{separator}the")
    parsing = read_tokenizer(TokenizerChoice(given_file.path, separator, parse_special=True))
    (parsed,) = ids_of(parsing, f"the{separator}the")
    assert given_file.separator_id not in plain
    assert parsed.count(given_file.separator_id) == 1
    assert given_file.vocabulary == parsing.vocabulary == TOKENIZERS[kind]().get_vocab_size(with_added_tokens=True)


def test_added_tokens_count_and_may_leave_gaps(tmp_path: Path) -> None:
    library = byte_level()
    library.add_tokens(["added"])
    assert read_tokenizer(TokenizerChoice(write_tokenizer(tmp_path / "a.json", library))).vocabulary == 256 + 9 + 2
    facts = json.loads(library.to_str())["model"]
    gap = {**facts, "vocab": {**facts["vocab"], "Ċ": 70_000}}
    path = write_tokenizer(tmp_path / "b.json", library, model=gap, added_tokens=[])
    assert read_tokenizer(TokenizerChoice(path, "")).vocabulary == 70_001


def test_tokens_do_not_depend_on_chance(tmp_path: Path) -> None:
    model = {**json.loads(byte_level().to_str())["model"], "dropout": 0.9}
    tokenizer = read_tokenizer(TokenizerChoice(write_tokenizer(tmp_path / "tokenizer.json", model=model)))
    assert ids_of(tokenizer, *["the thing"] * 20) == [whole(byte_level(), "the thing")] * 20


# Separator

SETTINGS: list[tuple[dict[str, Any] | None, list[str], str | None, str | None]] = [
    (None, [END], None, END),
    (None, ["</s>", "<pad>"], None, "</s>"),
    ({"eos_token": "<pad>"}, ["</s>", "<pad>"], None, "<pad>"),
    ({"eos_token": {"content": "<pad>"}}, [END, "<pad>"], None, "<pad>"),
    ({"eos_token": "unknown"}, [END], None, END),
    ({"eos_token": "<pad>"}, ["</s>", "<pad>"], "</s>", "</s>"),
    (None, [], "the", "the"),
    (None, [END], "", None),
]


@pytest.mark.parametrize(("settings", "special", "wanted", "expected"), SETTINGS)
def test_the_separator_is_the_wanted_or_the_own_one(
    tmp_path: Path, settings: dict[str, Any] | None, special: list[str], wanted: str | None, expected: str | None
) -> None:
    tokenizer_with(tmp_path, special)
    if settings:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert read_tokenizer(TokenizerChoice(tmp_path, wanted)).separator == expected


def tokenizer_with(folder: Path, special: list[str]) -> None:
    library = byte_level()
    library.add_special_tokens(special)
    facts = json.loads(library.to_str())
    added = [token for token in facts["added_tokens"] if token["content"] in special]
    for number, token in enumerate(added):
        token["id"] = len(facts["model"]["vocab"]) + number
    write_tokenizer(folder / "tokenizer.json", library, added_tokens=added)


@pytest.mark.parametrize(
    ("special", "wanted", "message"),
    [
        ([], None, r"does not say which token ends a text; .*--separator TOKEN, or --separator '' .*no special token"),
        (["[SEP]", "[PAD]"], None, r"does not say .*; it has its special tokens: \[SEP\] \[PAD\]$"),
        ([END, "</s>"], None, r"does not say which .*<\|endoftext\|> </s>"),
        ([END], "<eos>", r"--separator '<eos>' is not a token of .*; it has its special tokens: <\|endoftext\|>"),
    ],
)
def test_a_separator_that_is_not_clear_is_refused(
    tmp_path: Path, special: list[str], wanted: str | None, message: str
) -> None:
    tokenizer_with(tmp_path, special)
    with pytest.raises(UserError, match=message):
        read_tokenizer(TokenizerChoice(tmp_path, wanted))


# Files that cannot be used

MODEL = json.loads(byte_level().to_str())["model"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x0a\x0e\x0a\x05<unk>\xff", r"is not JSON; .*SentencePiece.*save_pretrained"),
        (b'{"version": "1.0", "model": {"ty', r"is not valid JSON \(Unterminated string.*\); restore it"),
        (b"[" * 100_000, r"is not valid JSON"),
        (b'{"vocab": {}}', r"is JSON, but has no tokenizer in it; name a tokenizer.json"),
        ({"version": "2.0"}, r"is of format version '2.0'; '1.0' is supported: upgrade tokenizers"),
        ({"model": {**MODEL, "type": "Magic"}}, r"cannot be read by tokenizers .*\(this is 'Magic'\)"),
        ({"model": {**MODEL, "merges": [["no", "token"]]}}, r"cannot be read by .*out of vocabulary.*; restore"),
        ({"model": {**MODEL, "vocab": {"a": 2**32}}}, r"cannot be read by .*expected u32"),
        ({"model": {**MODEL, "vocab": {}, "merges": []}, "added_tokens": []}, r"has no tokens"),
    ],
)
def test_files_that_cannot_be_used_are_refused(tmp_path: Path, content: bytes | dict[str, Any], message: str) -> None:
    path = tmp_path / "tokenizer.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write_tokenizer(path, **content)
    with pytest.raises(UserError, match=rf"--tokenizer {path}:? {message}"):
        read_tokenizer(TokenizerChoice(path))


def test_a_panic_of_the_library_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_tokenizer(tmp_path / "a.json", normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})
    with pytest.raises(UserError, match=r"cannot be read by tokenizers .*charsmap.*; restore the file"):
        read_tokenizer(TokenizerChoice(path))


def test_a_file_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=rf"--tokenizer {tmp_path}/tokenizer.json: no such file; .*save_pretrained"):
        read_tokenizer(TokenizerChoice(tmp_path))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match="is read with tokenizers; pip install tokenizers"):
        read_tokenizer(TokenizerChoice(tmp_path))


def test_special_tokens_that_cannot_be_hidden_are_told(tmp_path: Path) -> None:
    library = byte_level()
    library.add_special_tokens(["the"])  # a token of the merges
    path = write_tokenizer(tmp_path / "a.json", library)
    with pytest.raises(UserError, match=r"'the'.*--parse-special-tokens"):
        read_tokenizer(TokenizerChoice(path))
    assert read_tokenizer(TokenizerChoice(path, parse_special=True)).separator == END


# Cuts of long texts

WORDS = ["the", "thing", "a", "The", "x" * 100, "é", "文", "1", "'s", "the thing a", END, "</s>", "[SEP]"]
GAPS = st.sampled_from([" ", " ", " ", "  ", "\n", " \n\n", "\t ", "-", ""])


@settings(max_examples=50)
@given(words=st.lists(st.tuples(st.sampled_from(WORDS), GAPS), min_size=20, max_size=200))
def test_parts_have_the_tokens_of_the_whole(given_file: TokenizerFile, words: list[tuple[str, str]]) -> None:
    text = "".join(word + gap for word, gap in words)
    expected = ids_of(given_file, text)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(tokenizer_file, "PART_CHARACTERS", 20)
        assert "".join(given_file.parts(text)) == text
        assert ids_of(given_file, text) == expected


def test_texts_are_cut_between_words_if_no_token_spans_them(tmp_path: Path) -> None:
    text = "the thing " * 2000
    kinds = {
        "words": None,
        "bytes": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False, "trim_offsets": True},
        "prefix": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True, "trim_offsets": True},
    }
    counts = {}
    for name, pre_tokenizer in kinds.items():
        changes: dict[str, Any] = {} if pre_tokenizer is None else {"pre_tokenizer": pre_tokenizer}
        if name == "prefix":  # each text begins with a letter that the whole does not have
            changes["normalizer"] = {"type": "Prepend", "prepend": "a"}
        path = write_tokenizer(tmp_path / f"{name}.json", **changes)
        counts[name] = len(read_tokenizer(TokenizerChoice(path)).parts(text))
    assert counts == {"words": 9, "bytes": 1, "prefix": 1}


@settings(max_examples=20)
@given(words=st.lists(st.sampled_from(["the", "thing", "é文", "\n", "\n\n", "  ", "1"]), min_size=400, max_size=500))
def test_a_cut_changes_no_token_or_it_is_told(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    text = " ".join(words)
    for name in TOKENIZERS:
        path = write_tokenizer(tmp_path_factory.getbasetemp() / name / "tokenizer.json", TOKENIZERS[name]())
        tokenizer = read_tokenizer(TokenizerChoice(path, SEPARATORS[name]))
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(tokenizer_file, "CUT_CONTEXT", 100)
            place, is_alike = tokenizer.cut(text)
        assert 0 < place < len(text)
        if is_alike:
            parts = ids_of(tokenizer, text, text[:place], text[place:])
            assert parts[0] == parts[1] + parts[2]
        else:
            assert name != "WordPiece"


def test_a_tokenizer_that_marks_each_beginning_is_cut_unlike(tmp_path: Path) -> None:
    path = write_tokenizer(tmp_path / "a.json", unigram())
    tokenizer = read_tokenizer(TokenizerChoice(path))
    assert tokenizer.cut("the\n" * 2000)[1] is False
    assert tokenizer.cut("the " * 2000)[1] is True
    assert tokenizer.cut("the" * 4000) == (10_000, False)
