"""The tokenizer of a folder of transformers', as a run's own."""

from __future__ import annotations

from pathlib import Path

from lmscale.errors import DataError
from lmscale.exchange.exported import MARK
from lmscale.files.jsonl import read_object
from lmscale.files.reading import read_plain, reading
from lmscale.files.tokenizer_files import HF_NAME, MODEL_NAME
from lmscale.tokenizer.base import Tokenizer
from lmscale.tokenizer.hugging_face import build
from lmscale.tokenizer.importing import read_foreign
from lmscale.tokenizer.own import OwnTokenizer


def read_tokenizer(place: Path) -> Tokenizer:
    """That of a folder or file. Of a folder that lmscale has exported it is the very tokenizer of
    that run, with its fingerprint. Raises ``ConfigError`` and ``DataError``.
    """
    model = place / MODEL_NAME
    exported = str(read_object(place / MARK).get("tokenizer") or "")
    if exported and model.exists():
        with reading(model, "Export the run again."):
            content = read_plain(model)
        try:
            tokenizer = OwnTokenizer(content, {"exported_from": place.resolve().name})
            if tokenizer.fingerprint == exported:
                return tokenizer
        except DataError:
            pass  # it is another program's, and what stands beside it says more of it
    return read_foreign(place)


def find_bos(place: Path, tokenizer: Tokenizer) -> int | None:
    """The id that stands before every text that the tokenizer's own program encodes; None: none."""
    folder = place if place.is_dir() else place.parent
    tree = read_object(folder / HF_NAME)
    if "added_tokens" in tree and tokenizer.bos_id is not None:
        return tokenizer.bos_id if build(tree).encode("a").ids[:1] == [tokenizer.bos_id] else None
    settings = read_object(folder / "tokenizer_config.json")
    return tokenizer.bos_id if settings.get("add_bos_token") else None
