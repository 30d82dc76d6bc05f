"""The YAML of a run that goes on from an import: complete but for the data, to be edited."""

from __future__ import annotations

from typing import Any

import yaml

from lmscale.config import RunConfig

CONTINUE_FILE = "continue.yaml"
_DATA = """
# The data: see docs/your-own-text.md. Then: lmscale corpus build, shards build, train.
# corpus:
#   folder: data/mine/corpus
#   sources:
#     mine: {inputs: ["data/mine/*.jsonl"]}
# shards: {folder: data/mine/shards}
# (in stream, above)
#   sources:
#     mine: {shards: data/mine/shards/mine/train}
# train: {steps: 1000}
"""


def render_continue(config: RunConfig, *, has_drawn: bool) -> str:
    """Of an import's configuration. Of a bare encoder, whose head was drawn anew (``has_drawn``),
    a run with the mask that its tokenizer has: it was most likely trained so.
    """
    settings = config.model.model_dump(mode="json", exclude_defaults=True)
    model = {"family": config.model.family, **settings, "vocab_size": config.vocab_size}
    objective = config.objective.model_dump(mode="json", exclude_defaults=True)
    stream: dict[str, Any] = config.stream.model_dump(mode="json", exclude_defaults=True)
    name = config.objective.name
    if has_drawn and name == "numbers" and "mask" in config.tokenizer.ids:
        model = {k: v for k, v in model.items() if k not in ("pooler", "text_classes")}
        name, objective, stream = "masked", {}, {}
    folder = config.folder.absolute()
    tree = {
        "run": {
            "name": f"{config.run.name}-continued",
            "folder": str(folder.parent / f"{folder.name}-continued"),
            "init_from": str(folder),
        },
        "model": model,
        "tokenizer": config.tokenizer.model_dump(mode="json", include={"folder", "vocab_size"})
        | (
            {"ids": config.tokenizer.model_dump(mode="json")["ids"]} if config.tokenizer.ids else {}
        ),
        "objective": {"name": name, **objective},
        "stream": {**stream, "sequence_length": config.stream.sequence_length},
    }
    said = f"# Goes on from the import {config.run.name}. To be edited: names, lengths, the data.\n"
    return said + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100) + _DATA
