"""Whether the files of a tokenizer, loaded by transformers, give the ids that lmscale gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmscale.exchange.framing import Framing
from lmscale.exchange.their_library import import_transformers, quiet
from lmscale.tokenizer.base import OWN, Tokenizer
from lmscale.tokenizer.foreign import SentencePieceTokenizer
from lmscale.tokenizer.hugging_face import HuggingFaceTokenizer

HARD_TEXTS = (
    "",
    " ",
    "  two  spaces   three ",
    " " * 300,
    "\t\n\r\n\n\n",
    "line\r\nline\ttab\x00nul\x1besc\x7f\u00a0\u3000\u2028",
    "\u2581 a real\u2581mark \u2581\u2581",
    "<s>hello</s><unk><pad><0x0A><0xFF><0x1G>",
    "a</s> b<s",
    "[MASK][CLS] [SEP]<extra_id_0><fim_prefix><|end|><|endoftext|>",
    "e\u0301 \u0301\u0301 \u00e9 \ufb01 \uff21 \u2460 \u212b \u00bd",
    "\u200b\ufeffbom\u200d \ufffd \ufffe \U0010ffff \u2585 \u2047",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea",
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
    "中文和 English 混排，1234567890。　全角　空格\n第二行",
    "日本語 한국어 العربية हिन्दी ไทย Ελληνικά Русский",
    "def f(x):\n    return x ** 2  # 平方\n\n\tif (a<b) && c>>=1: print(f'{x!r:>10}')\n",
    "https://example.org/a?b=c&d=%20#e  3.14159 1,000,000 -0x7f",
)
"""Beside documents, these show where two programs differ: spaces, forms, bytes, and text that reads
like special tokens.
"""
_MOST_NAMES = 64  # of special tokens in a hard text: some tokenizers have thousands
_EXAMPLES = 3
MOST_TOKENS = 0.05  # where some may differ; some 0.02 % of random pieces do
# Their classes that take the files as they are. transformers 5.24 has another for Qwen 2 alone,
# among the architectures that lmscale knows, whatever tokenizer_config.json says.
_GENERAL = ("TokenizersBackend", "PreTrainedTokenizerFast")


@dataclass(frozen=True, kw_only=True)
class TokenizerCheck:
    """What was compared, and what differs."""

    texts: int
    differing: int
    """Texts with other ids."""
    tokens: int
    differing_tokens: int
    """Of ours, those that theirs does not have as often."""
    undecoded: int
    """Texts whose ids, as lmscale gives them, do not become lmscale's text there."""
    examples: tuple[str, ...]
    must_agree: bool
    """Whether one text that differs is a fault: not of unigram, which may choose another cut of
    the same score, nor of another program's SentencePiece model: the library tokenizers loses a
    mark behind a character of a compatibility form, and cuts elsewhere beside added symbols.
    """
    with_names: int = 0
    """Texts that hold names of special tokens, which are those tokens there and text here."""
    strayed: int = 0
    """Texts without such names that get other ids if nothing is said of special tokens."""
    most_texts: float = 1.0
    """Where some may differ, the share of the texts that may; of tokens, ``MOST_TOKENS``."""
    misframed: tuple[str, ...] = ()
    """What else is not as the run has it."""

    @property
    def problem(self) -> str:
        """Why the files cannot stand for the tokenizer; empty: they can."""
        found = [*self.misframed]
        if self.undecoded:
            found.append(f"{self.undecoded:,} of {self.texts:,} texts come back otherwise")
        if self.differing and self.must_agree:
            found.append(f"{self.differing:,} of {self.texts:,} texts get other ids")
        elif self.differing > self.most_texts * self.texts:
            found.append(
                f"{self.differing:,} of {self.texts:,} texts get other ids, and up to "
                f"{self.most_texts:.0%} may"
            )
        elif self.differing_tokens > MOST_TOKENS * self.tokens:
            found.append(
                f"{self.differing_tokens:,} of {self.tokens:,} tokens have other ids, and up to "
                f"{MOST_TOKENS:.0%} may"
            )
        if self.strayed and self.must_agree:
            found.append(
                f"{self.strayed:,} texts without names of special tokens get other ids unless "
                "split_special_tokens=True"
            )
        if not found:
            return ""
        examples = f" Such as {', '.join(self.examples)}." if self.examples else ""
        return (
            f"The exported tokenizer, loaded by transformers, is not the run's: {'; '.join(found)}."
            f"{examples}"
        )

    def describe(self) -> str:
        """For people, where nothing is wrong."""
        of_names = ""
        if self.with_names:
            of_names = (
                f"; names of special tokens, such as </s>, are text in lmscale and those tokens in "
                f"transformers ({self.with_names:,} of the texts), but with "
                "split_special_tokens=True"
            )
        if not self.differing:
            return f"the same ids for all of {self.texts:,} texts{of_names}"
        return (
            f"other ids for {self.differing:,} of {self.texts:,} texts, "
            f"{self.differing_tokens:,} of {self.tokens:,} tokens "
            f"({self.differing_tokens / self.tokens:.2%}){of_names}"
        )


def verify_tokenizer(
    tokenizer: Tokenizer, folder: Path, texts: Iterable[str], *, framing: Framing
) -> TokenizerCheck:
    """Load the folder by ``AutoTokenizer`` and compare ids and decoding, of ``texts`` and of
    ``hard_texts``; what stands around a text; and that special tokens have their ids.
    """
    theirs = load_theirs(folder)
    unknown = tokenizer.unk_id  # two programs write it in two ways
    counts: Counter[str] = Counter()
    examples: list[str] = []
    names = {str(token).casefold() for token in theirs.added_tokens_decoder.values()}
    for text in (*hard_texts(tokenizer), *texts):
        ours = tokenizer.encode(text).tolist()
        given = encode_as_text(theirs, text)
        is_undecoded = unknown not in ours and theirs.decode(ours) != tokenizer.decode(ours)
        counts["texts"] += 1
        counts["tokens"] += len(ours)
        counts["undecoded"] += is_undecoded
        counts["differing"] += given != ours
        if theirs(text, add_special_tokens=False, verbose=False).input_ids != given:
            has_name = any(name in text.casefold() for name in names)
            counts["with_names" if has_name else "strayed"] += 1
        counts["differing_tokens"] += (Counter(ours) - Counter(given)).total()
        if (given != ours or is_undecoded) and len(examples) < _EXAMPLES:
            examples.append(ascii(text if len(text) <= 60 else f"{text[:60]}…"))
    return TokenizerCheck(
        **counts,
        examples=tuple(examples),
        must_agree=_must_agree(tokenizer),
        most_texts=_most_texts(tokenizer),
        misframed=tuple(_find_misframed(tokenizer, theirs, framing)),
    )


def hard_texts(tokenizer: Tokenizer) -> Iterator[str]:
    """``HARD_TEXTS``, and what reads like the tokenizer's own special tokens."""
    yield from HARD_TEXTS
    names = [*tokenizer.special_tokens][:_MOST_NAMES]
    if names:
        yield " a".join(names)
        yield "".join(names)
        yield " ".join(name[:-1] for name in names)


def load_theirs(folder: Path) -> Any:
    """What ``AutoTokenizer`` makes of a folder; nothing is fetched and no code of it runs."""
    transformers = import_transformers()
    with quiet(transformers):
        return transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )


def encode_as_text(theirs: Any, text: str) -> list[int]:
    """Their ids of a text in which no special token is meant."""
    return theirs(
        text, add_special_tokens=False, split_special_tokens=True, verbose=False
    ).input_ids


def _must_agree(tokenizer: Tokenizer) -> bool:
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return True
    return tokenizer.format == OWN and tokenizer.kind != "unigram"


def _most_texts(tokenizer: Tokenizer) -> float:
    """What is wrong in every text, such as the space in front, is few tokens of each. Unigram's
    ties and forms of characters may be in any text.
    """
    if isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.keeps_characters:
        return 0.1 if tokenizer.kind == "bpe" else 1.0
    return 1.0


def _find_misframed(tokenizer: Tokenizer, theirs: Any, framing: Framing) -> list[str]:
    found = []
    if (made := type(theirs).__name__) not in _GENERAL:
        found.append(f"beside this config.json it builds a {made}, not what the files say")
    found += [
        f"{role} is {getattr(theirs, f'{role}_id')}, not {number}"
        for role, number in framing.roles.items()
        if getattr(theirs, f"{role}_id") != number
    ]
    for piece, number in tokenizer.special_tokens.items():
        if (given := theirs.convert_tokens_to_ids(piece)) != number:
            found.append(f"{piece} is {given}, not {number}")
        elif number not in theirs.added_tokens_decoder:
            found.append(f"{piece} is no special token")
    if not framing.is_known:
        return found
    first, second = "one", "two"
    ours = [tokenizer.encode(text).tolist() for text in (first, second)]
    given = theirs(first, split_special_tokens=True).input_ids
    if given != framing.frame(ours[0]):
        found.append(f"a text becomes {given}, not {framing.frame(ours[0])}")
    given = theirs(first, second, split_special_tokens=True).input_ids
    if given != framing.frame(*ours):
        found.append(f"two texts become {given}, not {framing.frame(*ours)}")
    return found
