"""Whether text comes back from a tokenizer, and what follows from it, in sentences for people."""

from __future__ import annotations

from collections.abc import Iterator

from lmscale.tokenizer.base import Tokenizer


def describe_exactness(tokenizer: Tokenizer) -> str:
    """Whether every text comes back, and what that means for bits per byte."""
    if tokenizer.is_exact:
        return "yes, every text comes back as it was"
    lost = f"no: {'; '.join(tokenizer.losses)}"
    if tokenizer.token_bytes() is not None:
        return f"{lost} (as corpus.normalization: NFC leaves it)"
    return f"{lost}. Bits per byte are of the documents' bytes"


def describe_consequences(tokenizer: Tokenizer) -> Iterator[str]:
    """What a tokenizer means for shards made with it, where it is not as lmscale's own are."""
    if not tokenizer.is_exact:
        yield f"exact: {describe_exactness(tokenizer)}"
    if tokenizer.format == "tokenizers":
        yield (
            "encoded by the library tokenizers, which takes two to three times as long as BPE by "
            "SentencePiece (lmscale tokenizer compare measures it)"
        )
