"""Small tokenizers of every model of Hugging Face's `tokenizers`, made without training, and their files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

END = "<|endoftext|>"
PAIRS = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ġ", "a"), ("e", "r"), ("i", "n"), ("in", "g"), ("Ã", "©"), ("Ċ", "Ċ")]
LETTERS = [chr(code) for code in range(33, 127)] + ["é", "文"]


def byte_level() -> Tokenizer:
    """Return a byte-level BPE, as those of GPT-2 and Llama 3."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*alphabet, *("".join(pair) for pair in PAIRS)]
    tokenizer = Tokenizer(models.BPE({name: number for number, name in enumerate(names)}, PAIRS))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    end = (END, tokenizer.token_to_id(END))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[end])
    return tokenizer


def word_piece() -> Tokenizer:
    """Return a WordPiece with lower case, as BERT's, which adds tokens at the ends of a text and cuts long texts."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    names = [*special, "the", "##ing", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    tokenizer = Tokenizer(models.WordPiece({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(special)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    return tokenizer


def unigram() -> Tokenizer:
    """Return a Unigram, as T5's, whose model has the special token among its pieces."""
    scores = {"<unk>": 0.0, "</s>": 0.0, "▁": -2.0, "▁the": -3.0, "ing": -4.0, **dict.fromkeys(LETTERS, -5.0)}
    tokenizer = Tokenizer(models.Unigram([*scores.items()], 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {"BPE": byte_level, "WordPiece": word_piece, "Unigram": unigram}
SEPARATORS = {"BPE": END, "WordPiece": "[SEP]", "Unigram": "</s>"}


def write_tokenizer(path: Path, tokenizer: Tokenizer | None = None, **changes: Any) -> Path:
    """Write a tokenizer's file, with other values of some of its keys; return its path."""
    facts = json.loads((tokenizer or byte_level()).to_str())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts | changes))
    return path


def whole(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids that the library gives for a whole text in which no special token is named."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return list(tokenizer.encode(text, add_special_tokens=False).ids)
