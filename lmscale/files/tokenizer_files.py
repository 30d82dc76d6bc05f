"""Names in a tokenizer's folder that both the launcher and the tokenizer itself go by."""

from __future__ import annotations

from pathlib import Path

from lmscale.files.jsonl import read_object

KEPT_FOLDER = "tokenizer"  # in a run's folder: what its weights cannot be used without
MODEL_NAME = "tokenizer.model"  # of SentencePiece
HF_NAME = "tokenizer.json"  # Hugging Face's
META_NAME = "meta.json"
TEMPLATE_NAME = "chat_template.jinja"  # how dialogues are written, as transformers names it
OLD_META_NAME = HF_NAME  # lmscale's until it had META_NAME


def find_meta(folder: Path) -> Path | None:
    """What says which tokenizer a folder holds; None: nothing does. ``OLD_META_NAME`` counts where
    nothing has today's name, and may then be another program's.
    """
    paths = (folder / name for name in (META_NAME, OLD_META_NAME))
    return next((path for path in paths if path.exists()), None)


def read_fingerprint(folder: Path) -> str:
    """Of the tokenizer in a folder; "" where it is not known."""
    meta = find_meta(folder)
    return "" if meta is None else str(read_object(meta).get("fingerprint", ""))


def read_vocab_size(folder: Path) -> int | None:
    """Pieces of the tokenizer in a folder; None where they are not known."""
    meta = find_meta(folder)
    found = None if meta is None else read_object(meta).get("vocab_size")
    return found if type(found) is int else None


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds what says which tokenizer it is, and a model of either kind."""
    if (folder / META_NAME).is_file():
        return any((folder / name).is_file() for name in (MODEL_NAME, HF_NAME))
    return (folder / OLD_META_NAME).is_file() and (folder / MODEL_NAME).is_file()
