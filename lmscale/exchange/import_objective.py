"""What an imported model was trained for, as far as its files say: the objective of the import.

It says which sets the model can be scored on: a run that begins with the import takes it over, or
has another objective.
"""

from __future__ import annotations

from typing import Any, Literal

from lmscale.config.token_ids import SENTINELS, NamedIds
from lmscale.errors import ConfigError
from lmscale.exchange.import_config import SourceConfig

Written = Literal["spans", "infill", "pairs"]
"""What an encoder-decoder was trained to write: the spans that were left out, the text as it was,
or what belongs to another text, such as its translation.
"""
_NEEDS: dict[Written, set[str]] = {
    "spans": {"start", SENTINELS},
    "infill": {"start", "mask"},
    "pairs": set(),
}


def plan_objective(
    source: SourceConfig, ids: NamedIds, wanted: Written | None = None
) -> dict[str, Any]:
    """The keys of a run's configuration: ``objective``, and the settings of the model and the
    stream that go with it. ``ids``: those of the tokenizer that objectives have names for.
    ``wanted``: of an encoder-decoder, in place of the first one that has its ids there: no file
    says whether it was trained further, to answer. Raises ``ConfigError`` where that cannot be.
    """
    section = source.section
    if wanted and section.family != "encoder_decoder":
        raise ConfigError(
            f"--objective {wanted} is for models that read one text and write another, and this "
            f"one is of the family {section.family}. Leave it out."
        )
    if section.family == "encoder":
        return _plan_encoder(source, ids)
    if section.family == "decoder" and (classes := section.model_dump()["text_classes"]):
        return {"objective": _plan_classes(source, classes), "stream": _WHOLE}
    if section.family != "encoder_decoder":
        return {}
    possible = [name for name, needed in _NEEDS.items() if needed <= ids.keys()]
    if wanted and wanted not in possible:
        lacking = ", ".join(sorted(_NEEDS[wanted] - ids.keys()))
        raise ConfigError(
            f"--objective {wanted}: the tokenizer has no ids for it ({lacking}). It has those of "
            f"{', '.join(possible)}."
        )
    name = wanted or possible[0]
    return {"objective": {"name": name}, "stream": _WHOLE if name == "pairs" else _ONE_TEXT}


_ONE_TEXT = {"mask_documents": False}
_WHOLE = {"packing": "best_fit"}


def _plan_encoder(source: SourceConfig, ids: NamedIds) -> dict[str, Any]:
    outputs = source.section.model_dump()
    if source.head == "answers":
        return {"objective": {"name": "answers"}, "stream": _WHOLE}
    if classes := outputs["token_classes"]:
        return {
            "objective": {"name": "tags", "names": _names(source, classes)},
            "stream": _WHOLE,
        }
    if source.head == "order" and {"mask", "cls", "sep"} <= ids.keys():
        return {"objective": {"name": "masked_next"}, "stream": _ONE_TEXT}
    classes = outputs["text_classes"]
    if classes > 1:
        return {"objective": _plan_classes(source, classes), "stream": _WHOLE}
    if outputs["pooler"] or "mask" not in ids:
        return {
            "objective": {"name": "numbers"},
            "model": {"pooler": True, "text_classes": 1},
            "stream": _WHOLE,
        }
    return {"objective": {"name": "masked"}}


def _plan_classes(source: SourceConfig, classes: int) -> dict[str, Any]:
    """Of a classifier of texts."""
    if classes == 1:
        return {"name": "numbers"}
    return {"name": "classes", "names": _names(source, classes)}


def _names(source: SourceConfig, count: int) -> list[str]:
    labels = source.tree.get("id2label") or {}
    names = [str(labels.get(str(number), f"label_{number}")) for number in range(count)]
    is_sound = len({*names}) == count and all(name and name.isprintable() for name in names)
    return names if is_sound else [f"label_{number}" for number in range(count)]
