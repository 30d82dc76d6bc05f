"""What an imported model was trained for, as far as its files say: the objective of the import.

It says which sets the model can be scored on, and which of its tokenizer's ids an objective needs:
a run that begins with the import takes both over, or has another objective.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lmscale.exchange.import_config import SourceConfig
from lmscale.tokenizer.base import Tokenizer

SENTINELS = 100  # as objective.sentinels has them, and T5
_PIECES = {
    "mask": ("[MASK]", "<mask>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
}


def plan_objective(source: SourceConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The keys of a run's configuration, ``objective`` and ``tokenizer.ids`` among them, and the
    settings of the model and the stream that go with these.
    """
    ids = find_ids(source, tokenizer)
    section = source.section
    if section.family == "encoder":
        return _plan_encoder(source, ids)
    if section.family != "encoder_decoder":
        return {}
    if {"start", "sentinel_0"} <= ids.keys():
        wanted = {n: i for n, i in ids.items() if n not in _PIECES}
        return {"objective": {"name": "spans"}, "tokenizer": {"ids": wanted}, "stream": _ONE_TEXT}
    wanted = {name: ids[name] for name in ("start", "end", "mask") if name in ids}
    if len(wanted) == 3:
        return {"objective": {"name": "infill"}, "tokenizer": {"ids": wanted}, "stream": _ONE_TEXT}
    return {"objective": {"name": "pairs"}, "tokenizer": {"ids": wanted}, "stream": _WHOLE}


_ONE_TEXT = {"mask_documents": False}
_WHOLE = {"packing": "best_fit"}


def _plan_encoder(source: SourceConfig, ids: dict[str, int]) -> dict[str, Any]:
    outputs = source.section.model_dump()
    if classes := outputs["token_classes"]:
        return {
            "objective": {"name": "tags", "names": _names(source, classes)},
            "stream": _WHOLE,
        }
    parts = {name: ids[name] for name in ("mask", "cls", "sep") if name in ids}
    if source.head == "order" and len(parts) == 3:
        return {
            "objective": {"name": "masked_next"},
            "tokenizer": {"ids": parts},
            "stream": _ONE_TEXT,
        }
    classes = outputs["text_classes"]
    if classes > 1:
        return {
            "objective": {"name": "classes", "names": _names(source, classes)},
            "stream": _WHOLE,
        }
    if outputs["pooler"] or "mask" not in ids:
        return {
            "objective": {"name": "numbers"},
            "model": {"pooler": True, "text_classes": 1},
            "stream": _WHOLE,
        }
    return {"objective": {"name": "masked"}, "tokenizer": {"ids": {"mask": ids["mask"]}}}


def _names(source: SourceConfig, count: int) -> list[str]:
    labels = source.tree.get("id2label") or {}
    names = [str(labels.get(str(number), f"label_{number}")) for number in range(count)]
    is_sound = len({*names}) == count and all(name and name.isprintable() for name in names)
    return names if is_sound else [f"label_{number}" for number in range(count)]


def find_ids(source: SourceConfig, tokenizer: Tokenizer) -> dict[str, int]:
    """The tokenizer's ids by the names that objectives have for them."""
    pieces = {tokenizer.piece(number): number for number in range(tokenizer.vocab_size)}
    return dict(_find_ids(source, tokenizer, pieces))


def _find_ids(
    source: SourceConfig, tokenizer: Tokenizer, pieces: dict[str, int]
) -> Iterator[tuple[str, int]]:
    for name, spellings in _PIECES.items():
        number = next((pieces[piece] for piece in spellings if piece in pieces), None)
        if number is not None:
            yield name, number
    start = source.tree.get("decoder_start_token_id")
    if isinstance(start, int) and 0 <= start < tokenizer.vocab_size:
        yield "start", start
        yield "end", tokenizer.eos_id
    sentinels = [pieces.get(f"<extra_id_{number}>") for number in range(SENTINELS)]
    for number, sentinel in enumerate(sentinels):
        if None not in sentinels and sentinel is not None:
            yield f"sentinel_{number}", sentinel
