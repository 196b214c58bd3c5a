"""Tokenizers in files of Hugging Face's `tokenizers` (`tokenizer.json`): reading, checks, encoding of whole texts."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hpcdistill.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NAME = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
VERSION = "1.0"
USUAL_SEPARATORS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[EOS]")
HIDDEN = "\U0010ffff"  # begins the name of a special token that no text may give; no character has this number
PART_CHARACTERS = 1 << 11  # approximate size of a part that is encoded at once
WORD_END = re.compile(r"[A-Za-z](?= [A-Za-z])")
WORD_CONTEXT = 64  # characters on each side of a cut between words that are encoded to check it
CUT_CONTEXT = 2000  # characters on each side of a cut that are encoded to check it
CUT_TRIALS = 16


class TokenizerChoice(NamedTuple):
    """Tokenizer that a user has chosen, and how it is used."""

    path: Path
    """The file, or a folder with a file `tokenizer.json`."""
    separator: str | None = None
    """Token after each document; "" for none; None for the tokenizer's own end-of-text token."""
    parse_special: bool = False
    """Read the names of special tokens in the text as these tokens, instead of as ordinary text."""


@dataclass(frozen=True)
class TokenizerFile:
    """Tokenizer of a file; small enough to be sent to other processes, which load the tokenizer once."""

    path: Path
    digest: str
    """Digest of the content of the file."""
    vocabulary: int
    """Number of token ids, with the added tokens."""
    separator: str | None
    """Token after each document, if any."""
    separator_id: int | None
    """Id of the separator, if any."""
    parse_special: bool
    """See `TokenizerChoice`."""
    has_words: bool
    """True if its pre-tokenizer splits a text into words, which are encoded one by one."""

    @property
    def json(self) -> str:
        """Content of the file."""
        return _read(self.path)[0]

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without the special tokens that the tokenizer adds at its ends."""
        ids: list[int] = []
        for part in self.parts(text):
            ids += self._ids(part)
        return ids

    def parts(self, text: str) -> list[str]:
        """Return consecutive parts of a text that have the tokens of the whole, and are encoded faster.

        The library takes 600 bytes for a token, and those of a part are in a core's cache. Words are encoded one by
        one, so that a cut between words changes no token, unless the tokenizer treats the ends of a text in its own
        way. That is seen in the tokens near the cut, and then there is none.
        """
        if not self.has_words or len(text) < 2 * PART_CHARACTERS:
            return [text]
        found = (
            WORD_END.search(text, begin, begin + PART_CHARACTERS // 2)
            for begin in range(PART_CHARACTERS, len(text) - PART_CHARACTERS, PART_CHARACTERS)
        )
        places = [match.end() for match in found if match]
        cuts = [place for place in places if self._is_alike(text, place, WORD_CONTEXT)]
        return [text[begin:end] for begin, end in pairwise([0, *cuts, len(text)])]

    def cut(self, text: str) -> tuple[int, bool]:
        """Return a place near the end of a text at which to cut it, and whether the tokens near it then stay the same.

        Ends of lines are tried first, then spaces, each from the last one on.
        """
        most = len(text) - CUT_CONTEXT
        first = None
        for mark, after in (("\n", 1), (" ", 0)):
            found = most
            for _ in range(CUT_TRIALS):
                found = text.rfind(mark, most // 2, found)
                if found < 0:
                    break
                place = found + after
                first = place if first is None else first
                if self._is_alike(text, place, CUT_CONTEXT):
                    return place, True
        return first or most, False

    def _is_alike(self, text: str, place: int, context: int) -> bool:
        """Return whether a cut at `place` keeps the tokens of so many characters on each side of it."""
        before, behind = text[place - context : place], text[place : place + context]
        return self._ids(before + behind) == self._ids(before) + self._ids(behind)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._library.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    @property
    def _library(self) -> Tokenizer:
        return _load(self.path, self.digest, self.parse_special)


def read_tokenizer(choice: TokenizerChoice) -> TokenizerFile:
    """Read and check a tokenizer.

    Raises:
        UserError: there is no such file; it is damaged, or of a version or kind that the library cannot read; there is
            no such separator, or the tokenizer does not say which token ends a text.
    """
    try:
        import tokenizers  # noqa: F401
    except ImportError:
        raise UserError(f"--tokenizer {choice.path} is read with tokenizers; pip install tokenizers") from None
    path = _find(choice.path)
    content, digest = _read(path)
    facts = _parse(path, content)
    library = _load(path, digest, choice.parse_special)
    ids = {name.removeprefix(HIDDEN): id_ for name, id_ in library.get_vocab(with_added_tokens=True).items()}
    if not ids:
        raise UserError(f"--tokenizer {path} has no tokens; name one that was trained")
    separator = _separator(path, choice.separator, set(ids), _special(facts))
    separator_id = None if separator is None else ids[separator]
    return TokenizerFile(
        path,
        digest,
        max(ids.values()) + 1,
        separator,
        separator_id,
        choice.parse_special,
        _has_words(library),
    )


def _has_words(library: Tokenizer) -> bool:
    """Return whether no token spans two words."""
    words = library.pre_tokenizer.pre_tokenize_str("word word") if library.pre_tokenizer else []
    return any(span == (0, 4) for _, span in words)


def _find(path: Path) -> Path:
    found = path / NAME if path.is_dir() else path
    if not found.exists():
        raise UserError(
            f"--tokenizer {found}: no such file; name a {NAME}, or a folder that has one. transformers makes one of "
            f"other files: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )
    return found


def _read(path: Path) -> tuple[str, str]:
    """Return the content of a file and its digest."""
    try:
        content = path.read_bytes()
        return content.decode(), hashlib.blake2b(content, digest_size=16).hexdigest()
    except OSError as error:
        raise UserError(f"--tokenizer {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(
            f"--tokenizer {path} is not JSON; name a {NAME}. transformers makes one of SentencePiece's files: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        ) from None


def _parse(path: Path, content: str) -> dict[str, Any]:
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"--tokenizer {path} is not valid JSON ({error}); restore it, or download it again") from None
    if not isinstance(facts, dict) or not isinstance(facts.get("model"), dict):
        raise UserError(f"--tokenizer {path} is JSON, but has no tokenizer in it; name a {NAME}")
    if (version := facts.get("version")) != VERSION:
        raise UserError(
            f"--tokenizer {path} is of format version {version!r}; {VERSION!r} is supported: upgrade tokenizers and "
            "hpcdistill, or save it in that version"
        )
    return facts


@lru_cache(maxsize=1)  # processes that are forked later have it as well
def _load(path: Path, digest: str, parse_special: bool) -> Tokenizer:
    """Load a tokenizer for whole texts: without truncation, padding, dropout and post-processor.

    Raises:
        UserError: the library cannot read the file, or the file has changed.
    """
    content, found = _read(path)
    if found != digest:
        raise UserError(f"--tokenizer {path} has changed meanwhile; run the same command again")
    facts = _parse(path, content)
    facts["post_processor"] = None  # it adds special tokens only, but takes a tenth of the time
    if facts["model"].get("dropout"):  # random: other tokens at each encoding
        facts["model"]["dropout"] = None
    tokenizer = _from_json(path, facts)
    if not parse_special and (read := _read_as_special(tokenizer, facts)):
        try:
            tokenizer = _from_json(path, _hide(facts, read))
            read = _read_as_special(tokenizer, facts)
        except UserError:  # a token that others are merged into
            pass
        if read:
            raise UserError(
                f"--tokenizer {path} reads {min(read)!r} in a text as its special token, and cannot do otherwise; "
                "allow that with --parse-special-tokens"
            )
    return tokenizer


def _from_json(path: Path, facts: dict[str, Any]) -> Tokenizer:
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(facts))
    except BaseException as error:  # the library's panics are no `Exception`s
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        kind = facts["model"].get("type")
        raise UserError(
            f"--tokenizer {path} cannot be read by tokenizers {tokenizers.__version__}, which knows the models BPE, "
            f"WordPiece, Unigram and WordLevel (this is {kind!r}): {error}; restore the file, or upgrade tokenizers"
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _special(facts: dict[str, Any]) -> list[str]:
    """Return the names of the special tokens."""
    return [token["content"] for token in facts.get("added_tokens") or [] if token["special"]]


def _read_as_special(tokenizer: Tokenizer, facts: dict[str, Any]) -> set[str]:
    """Return the special tokens whose names in a text become these tokens, although that is switched off.

    The model itself may know them as ordinary tokens. The token for unknown text is of no concern.
    """
    tokenizer.encode_special_tokens = True
    unknown = facts["model"].get("unk_token")
    names = [name for name in _special(facts) if name != unknown]
    return {name for name in names if name in tokenizer.encode(name, add_special_tokens=False).tokens}


def _hide(facts: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Return a tokenizer's JSON with other names for some of its tokens, which keep their ids."""
    model = facts["model"]
    vocabulary = model["vocab"]
    renamed: Any
    if isinstance(vocabulary, dict):
        renamed = {HIDDEN + name if name in names else name: id_ for name, id_ in vocabulary.items()}
    else:
        renamed = [[HIDDEN + name if name in names else name, score] for name, score in vocabulary]
    added = [
        {**token, "content": HIDDEN + token["content"]} if token["content"] in names else token
        for token in facts["added_tokens"]
    ]
    return {**facts, "model": {**model, "vocab": renamed}, "added_tokens": added}


def _separator(path: Path, wanted: str | None, known: set[str], special: Sequence[str]) -> str | None:
    if wanted == "":
        return None
    some = (
        f"its special tokens: {' '.join(special[:10])}{' …' * (len(special) > 10)}" if special else "no special token"
    )
    if wanted is not None:
        if wanted not in known:
            raise UserError(f"--separator {wanted!r} is not a token of {path}; it has {some}")
        return wanted
    own = _end_of_text(path)
    usual = [name for name in USUAL_SEPARATORS if name in special]
    if own in known:
        return own
    if len(usual) == 1:
        return usual[0]
    raise UserError(
        f"--tokenizer {path} does not say which token ends a text; choose one with --separator TOKEN, or "
        f"--separator '' for none; it has {some}"
    )


def _end_of_text(path: Path) -> str | None:
    """Return the end-of-text token that the settings beside a tokenizer name, if any."""
    try:
        token = json.loads((path.parent / SETTINGS).read_text()).get("eos_token")
    except (OSError, ValueError, AttributeError):
        return None
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None
