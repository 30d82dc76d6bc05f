"""A tokenizer's folder: its model and ``meta.json``, which says what the model is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lmscale.config.data import TokenizerConfig
from lmscale.errors import DataError
from lmscale.files.atomic import write_bytes, write_json
from lmscale.files.reading import read_plain, reading
from lmscale.files.strangers import parse_json, quote
from lmscale.files.tokenizer_files import (
    HF_NAME,
    KEPT_FOLDER,
    META_NAME,
    MODEL_NAME,
    OLD_META_NAME,
    find_meta,
)
from lmscale.tokenizer.base import OWN, Tokenizer, fingerprint_of
from lmscale.tokenizer.foreign import SentencePieceTokenizer
from lmscale.tokenizer.hugging_face import HuggingFaceTokenizer
from lmscale.tokenizer.own import OwnTokenizer

logger = logging.getLogger(__name__)

FORMATS: dict[str, Callable[[bytes, dict[str, Any], Mapping[str, int]], Tokenizer]] = {
    each.format: each for each in (OwnTokenizer, SentencePieceTokenizer, HuggingFaceTokenizer)
}
AGAIN = "Restore it, or train or import the tokenizer again with --force."


def render_meta(tokenizer: Tokenizer) -> dict[str, Any]:
    """What ``meta.json`` says."""
    meta = {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "fingerprint": tokenizer.fingerprint,
        "special_ids": tokenizer.special_ids,
        **({"special_tokens": tokens} if (tokens := tokenizer.special_tokens) else {}),
        "made_by": tokenizer.made_by,
    }
    if isinstance(tokenizer, OwnTokenizer):
        return meta
    return {"format": tokenizer.format, **meta, "losses": list(tokenizer.losses)}


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer's two files; the second has the hash of the first, and takes the place of
    another tokenizer of lmscale's that was there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = model_name(tokenizer.format)
    old = _read_old(folder)
    try:
        write_bytes(folder / name, tokenizer.model)
        write_json(folder / META_NAME, render_meta(tokenizer))
    except OSError:
        with suppress(OSError):  # such as of a full disk: only an empty folder can go
            folder.rmdir()
        raise
    if old and old != name:
        with suppress(FileNotFoundError):
            (folder / old).unlink()


def refuse_strangers(tokenizer: Tokenizer, folder: Path) -> None:
    """Raise ``DataError`` where ``save_tokenizer`` would replace a file that lmscale did not write;
    what a killed one left is the tokenizer's own model.
    """
    model = folder / model_name(tokenizer.format)
    strangers = _find_strangers(folder, model.name)
    if strangers != [model.name] or read_plain(model) != tokenizer.model:
        _refuse(folder, strangers)


def refuse_certain_strangers(folder: Path, *, is_bpe: bool, vocab_size: int) -> None:
    """The same before a tokenizer of that size is trained, as far as it is certain by then: a model
    of its kind and size alone may be what a killed training left.
    """
    kind: type[Tokenizer] = HuggingFaceTokenizer if is_bpe else OwnTokenizer
    model = folder / model_name(kind.format)
    strangers = _find_strangers(folder, model.name)
    if strangers == [model.name]:
        with suppress(DataError, OSError):
            if FORMATS[kind.format](read_plain(model), {}, {}).vocab_size == vocab_size:
                return
    _refuse(folder, strangers)


def _find_strangers(folder: Path, model: str) -> list[str]:
    """Those of the two files of a tokenizer that are there and that lmscale did not write."""
    old = _read_old(folder)
    is_own = {META_NAME, old} if old else set()
    return [name for name in (model, META_NAME) if (folder / name).exists() and name not in is_own]


def _refuse(folder: Path, strangers: Sequence[str]) -> None:
    if strangers:
        raise DataError(
            f"{folder} holds {' and '.join(strangers)}, which lmscale did not write there. Name "
            "another folder, or replace what it holds with --force."
        )


def model_name(format: str) -> str:
    """The file in a tokenizer's folder that holds the model."""
    return HF_NAME if format == HuggingFaceTokenizer.format else MODEL_NAME


def _read_old(folder: Path) -> str:
    """The file that belongs to the tokenizer in a folder, and not to another one; "": none does."""
    with suppress(OSError, ValueError):  # no such file, or no JSON
        meta = parse_json(read_plain(folder / META_NAME))
        is_own = isinstance(meta, dict) and "made_by" in meta
        return model_name(str(meta.get("format"))) if is_own else ""
    with suppress(OSError, ValueError):
        meta = parse_json(read_plain(folder / OLD_META_NAME))
        return OLD_META_NAME if isinstance(meta, dict) and "made_by" in meta else ""
    return ""


def load_kept_tokenizer(run_folder: Path, elsewhere: str | Path) -> Tokenizer:
    """The tokenizer that a run keeps in its own folder, which may have been copied to another
    machine; where it keeps none, or a damaged one, that of the folder ``elsewhere``.
    """
    if not (run_folder / KEPT_FOLDER).exists():
        return load_tokenizer(elsewhere)
    try:
        return load_tokenizer(run_folder / KEPT_FOLDER)
    except DataError as error:
        try:
            tokenizer = load_tokenizer(elsewhere)
            logger.warning("%s It is taken from %s instead.", error.problems[0], elsewhere)
            return tokenizer
        except DataError as other:
            raise DataError([*error.problems, *other.problems]) from None


def load_configured(config: TokenizerConfig) -> Tokenizer:
    """That of ``tokenizer.folder``. Raises ``DataError`` where it is missing or damaged, or without
    a special token that the configuration names.
    """
    tokenizer = load_tokenizer(config.folder)
    lacking = [each for each in config.all_special_tokens if each not in tokenizer.special_pieces]
    if lacking:
        more = f" and {len(lacking) - 1:,} more" if len(lacking) > 1 else ""
        raise DataError(
            f"{config.folder}: its tokenizer has no special token {lacking[0]}{more}, as "
            "tokenizer.special_tokens and reserved_tokens say. Train one with them in another "
            "tokenizer.folder (with other tokens it is another tokenizer, which needs shards of "
            "its own), or leave them out."
        )
    return tokenizer


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer in a folder. Raises ``DataError`` when it is missing or damaged."""
    folder = Path(folder)
    missing = (
        "there is no tokenizer here. Run `lmscale tokenizer train CONFIG` first, or set "
        "tokenizer.folder."
    )
    path = find_meta(folder) or folder / META_NAME
    with reading(path, AGAIN, missing=missing):
        meta = parse_json(read_plain(path))
        if path.name == OLD_META_NAME and isinstance(meta, dict) and "added_tokens" in meta:
            raise DataError(
                f"{path} is a tokenizer of Hugging Face's, which a run reads once it is imported: "
                f"lmscale tokenizer import {folder} --out FOLDER, and set tokenizer.folder to that."
            )
        format, special_ids = _parse_meta(meta)
    model_path = folder / model_name(format)
    with reading(model_path, AGAIN, missing=missing):
        model = read_plain(model_path)
    if fingerprint_of(format, model, special_ids) != meta.get("fingerprint"):
        raise DataError(
            f"{model_path}: its sha256 is not the fingerprint in {path.name}: one of the "
            f"two is damaged or from another tokenizer. {AGAIN}"
        )
    try:
        tokenizer = FORMATS[format](model, meta["made_by"], special_ids)
    except DataError as error:
        raise DataError(f"{model_path}: {error} {AGAIN}") from None
    if meta.get("special_tokens", tokenizer.special_tokens) != tokenizer.special_tokens:
        raise DataError(
            f"{path}: its special_tokens are not those of {model_path.name}, which alone decides "
            f"their ids. {AGAIN}"
        )
    return tokenizer


def _parse_meta(meta: Any) -> tuple[str, dict[str, int]]:
    """Format and special ids. Raises ``ValueError`` for what lmscale did not write."""
    if not isinstance(meta, dict) or not isinstance(meta.get("made_by"), dict):
        raise ValueError("it is not what lmscale writes")
    format = meta.get("format", OWN)
    if not isinstance(format, str) or format not in FORMATS:
        known = ", ".join(FORMATS)
        raise ValueError(f"its format is {quote(format)}, which is none of {known}")
    special_ids = meta.get("special_ids")
    if format == OWN:  # the model names them
        return format, {}
    if not isinstance(special_ids, dict) or "eos" not in special_ids:
        raise ValueError("its special_ids name no eos")
    return format, special_ids
