"""What tokenizers are and how they compare, as text for people."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmscale.config import load_config
from lmscale.config.assets import list_configs
from lmscale.config.special_tokens import is_reserved
from lmscale.corpus.documents import load_corpus_manifest, read_documents
from lmscale.errors import ConfigError, DataError
from lmscale.files.printing import align_rows
from lmscale.files.reading import read_plain, reading
from lmscale.tokenizer.base import SPACE_MARK, Tokenizer
from lmscale.tokenizer.codec import load_tokenizer
from lmscale.tokenizer.exactness import describe_exactness
from lmscale.tokenizer.importing import read_foreign
from lmscale.tokenizer.train import sample_passages

_MOST_TOKENS = 32
_CONFIGS = (".yaml", ".yml")
_BY = {"lmscale": "SentencePiece, by lmscale", "sentencepiece": "SentencePiece"}


def open_named(path: Path, overrides: Sequence[str] = ()) -> tuple[str, Tokenizer]:
    """The tokenizer of a run's YAML file, or of a folder or file, and where it lies."""
    config = path if path.exists() else list_configs().get(str(path), path)
    if config.suffix in _CONFIGS:
        folder = load_config(config, overrides).tokenizer.folder
        return folder, load_tokenizer(folder)
    return str(path), read_foreign(path, needs_eos=False)


def render_tokenizer(tokenizer: Tokenizer) -> str:
    """Several lines, the first without indentation."""
    special = " ".join(f"{k}={v} {tokenizer.piece(v)}" for k, v in tokenizer.special_ids.items())
    tokens = list_tokens(tokenizer.special_tokens)
    lines = {
        "fingerprint": tokenizer.fingerprint,
        "special ids": special or "none",
        **({"special tokens": tokens} if tokens else {}),
        **tokenizer.describe(),
        "exact": describe_exactness(tokenizer),
    }
    if source := tokenizer.made_by.get("imported_from"):
        lines["imported from"] = f"{source} (sha256 {tokenizer.made_by['sha256'][:12]}…)"
    by = _BY.get(tokenizer.format, tokenizer.format)
    width = max(map(len, lines))
    return "\n".join(
        [
            f"{tokenizer.kind}, {tokenizer.vocab_size:,} pieces ({by})",
            *(f"  {name:{width}}  {value}" for name, value in lines.items()),
        ]
    )


def list_tokens(tokens: Mapping[str, int]) -> str:
    """``<|im_start|>=4 <|im_end|>=5``, of many the first; ids in a row of reserved ones as one."""
    named = [f"{piece}={number}" for piece, number in tokens.items() if not is_reserved(piece)]
    reserved = [number for piece, number in tokens.items() if is_reserved(piece)]
    more = len(named) - _MOST_TOKENS
    shown = [*named[:_MOST_TOKENS], *([f"and {more:,} more (--json lists them)"] * (more > 0))]
    if reserved:
        shown.append(f"{len(reserved):,} reserved ({min(reserved)} to {max(reserved)})")
    return " ".join(shown)


def render_pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Each piece and its id. Byte-level pieces as the text that they stand for: their letters stand
    for bytes, and say nothing to people.
    """
    is_byte_level = getattr(tokenizer, "is_byte_level", False)
    return " ".join(
        f"{_spell_byte_level(tokenizer, number) if is_byte_level else tokenizer.piece(number)}"
        f"({number})"
        for number in ids
    )


def spell(tokenizer: Tokenizer, number: int) -> str:
    """The text that an id stands for, or of a special one its piece; a byte that is of no whole
    character, and what cannot be printed, as ``\\xNN``.
    """
    content = tokenizer.decode_bytes([number])
    return spell_bytes(content or tokenizer.piece(number).encode(errors="backslashreplace"))


def spell_bytes(content: bytes) -> str:
    """The text of the bytes; those that are of no whole character, and what cannot be printed, as
    ``\\xNN``.
    """
    text = content.decode("utf-8", errors="backslashreplace")
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _spell_byte_level(tokenizer: Tokenizer, number: int) -> str:
    return spell(tokenizer, number).replace(" ", SPACE_MARK)


def read_texts(text: Path | None, paths: Sequence[Path], *, max_bytes: int) -> list[str]:
    """Passages of a file, or of a run's held-out documents. Raises ``ConfigError``."""
    source = text or next((path for path in paths if path.suffix in _CONFIGS), None)
    if source is None:
        raise ConfigError("Nothing to encode: give --text FILE, or a run's YAML file.")
    if source.suffix in _CONFIGS:
        corpus = load_config(source).corpus
        folders = [Path(corpus.folder) / name for name in corpus.sources]
        total = sum(load_corpus_manifest(folder).text_bytes("heldout") for folder in folders)
        texts = (each for folder in folders for each in read_documents(folder / "heldout"))
        empty = f"{source}: its corpus has no held-out documents. Give --text FILE."
    else:
        with reading(source, "Give --text a file of UTF-8 text."):
            content = read_plain(source)
            texts, total = [content.decode("utf-8")], len(content)
        empty = f"{source}: holds no text."
    passages = list(sample_passages(texts, total_bytes=total, max_bytes=max_bytes))
    if not passages:
        raise DataError(empty)
    return passages


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One tokenizer on a text."""

    tokenizer: str
    kind: str
    pieces: int
    tokens: int
    bytes_per_token: float
    unknown: float
    """Share of the tokens that are the unknown one."""
    is_exact: bool
    came_back: float
    """Share of the passages that decoding gave back as they were."""
    megabytes_per_second: float
    """Of encoding, in CPU time of one core."""


def measure(named: str, tokenizer: Tokenizer, texts: Sequence[str]) -> Comparison:
    """Encode and decode the texts."""
    tokenizer.encode(texts[0])
    start = time.process_time()
    encoded = [tokenizer.encode(text) for text in texts]
    seconds = max(time.process_time() - start, 1e-9)
    num_bytes = sum(len(text.encode()) for text in texts)
    num_tokens = sum(map(len, encoded))
    unknown = 0
    if tokenizer.unk_id is not None:
        unknown = sum(int(np.count_nonzero(ids == tokenizer.unk_id)) for ids in encoded)
    same = sum(tokenizer.decode(ids) == text for ids, text in zip(encoded, texts, strict=True))
    return Comparison(
        tokenizer=named,
        kind=tokenizer.kind,
        pieces=tokenizer.vocab_size,
        tokens=num_tokens,
        bytes_per_token=num_bytes / max(num_tokens, 1),
        unknown=unknown / max(num_tokens, 1),
        is_exact=tokenizer.is_exact,
        came_back=same / len(texts),
        megabytes_per_second=num_bytes / seconds / 1e6,
    )


def render_comparison(rows: Sequence[Comparison]) -> str:
    """A table, one tokenizer a line."""
    cells = [
        ["tokenizer", "kind", "pieces", "tokens", "bytes/token", "unknown", "exact", "back", "MB/s"]
    ]
    for row in rows:
        cells.append(
            [
                *(row.tokenizer, row.kind, f"{row.pieces:,}", f"{row.tokens:,}"),
                *(f"{row.bytes_per_token:.2f}", f"{row.unknown:.2%}"),
                *("yes" if row.is_exact else "no", f"{row.came_back:.1%}"),
                f"{row.megabytes_per_second:.1f}",
            ]
        )
    return align_rows(cells, left=(0, 1))
