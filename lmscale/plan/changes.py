"""A configuration with other values, as advice and ladders vary it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmscale.config import RunConfig


def change(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """The configuration with other values, by section.key. Raises pydantic's ``ValidationError``, a
    ``ValueError``, where they do not go together.
    """
    if not values:
        return config
    tree = config.model_dump(mode="json")
    for name, value in values.items():
        *sections, key = name.split(".")
        place = tree
        for section in sections:
            place = place[section]
        place[key] = value
    return RunConfig.model_validate(tree)
