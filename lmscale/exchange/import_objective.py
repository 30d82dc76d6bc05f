"""What an imported model was trained for, as far as its files say: the objective of the import.

It says which sets the model can be scored on: a run that begins with the import takes it over, or
has another objective.
"""

from __future__ import annotations

from typing import Any

from lmscale.config.token_ids import SENTINELS, NamedIds
from lmscale.exchange.import_config import SourceConfig


def plan_objective(source: SourceConfig, ids: NamedIds) -> dict[str, Any]:
    """The keys of a run's configuration: ``objective``, and the settings of the model and the
    stream that go with it. ``ids``: those of the tokenizer that objectives have names for.
    """
    section = source.section
    if section.family == "encoder":
        return _plan_encoder(source, ids)
    if section.family != "encoder_decoder":
        return {}
    if {"start", SENTINELS} <= ids.keys():
        return {"objective": {"name": "spans"}, "stream": _ONE_TEXT}
    if {"start", "mask"} <= ids.keys():
        return {"objective": {"name": "infill"}, "stream": _ONE_TEXT}
    return {"objective": {"name": "pairs"}, "stream": _WHOLE}


_ONE_TEXT = {"mask_documents": False}
_WHOLE = {"packing": "best_fit"}


def _plan_encoder(source: SourceConfig, ids: NamedIds) -> dict[str, Any]:
    outputs = source.section.model_dump()
    if classes := outputs["token_classes"]:
        return {
            "objective": {"name": "tags", "names": _names(source, classes)},
            "stream": _WHOLE,
        }
    if source.head == "order" and {"mask", "cls", "sep"} <= ids.keys():
        return {"objective": {"name": "masked_next"}, "stream": _ONE_TEXT}
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
    return {"objective": {"name": "masked"}}


def _names(source: SourceConfig, count: int) -> list[str]:
    labels = source.tree.get("id2label") or {}
    names = [str(labels.get(str(number), f"label_{number}")) for number in range(count)]
    is_sound = len({*names}) == count and all(name and name.isprintable() for name in names)
    return names if is_sound else [f"label_{number}" for number in range(count)]
