"""Which architecture of transformers a section is, and which section a config.json is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

from lmscale.config.hf.architecture import Architecture, UnreadableError, find_gaps
from lmscale.config.hf.decoders import DECODERS
from lmscale.config.hf.encoder_decoders import ENCODER_DECODERS
from lmscale.config.hf.encoders import ENCODERS
from lmscale.config.model import FAMILIES, ModelConfig, Sizes
from lmscale.errors import ConfigError, DataError

ARCHITECTURES = {each.model_type: each for each in (*DECODERS, *ENCODERS, *ENCODER_DECODERS)}
"""By their ``model_type``."""


def choose_architecture(section: ModelConfig, sizes: Sizes) -> Architecture:
    """The first architecture that can be the section. Raises ``ConfigError`` where none can, with
    the settings that the nearest one has otherwise.
    """
    nearest, gaps = find_nearest(section, sizes)
    if gaps:
        raise describe_gaps(nearest, gaps)
    return nearest


def find_nearest(
    section: ModelConfig,
    sizes: Sizes,
    *,
    avoided: Collection[str] = (),
    model_type: str | None = None,
) -> tuple[Architecture, list[str]]:
    """The first architecture with the fewest settings that it has otherwise than the section, and
    these; none of the ``avoided``, or that of ``model_type``, which must be of the family. Raises
    ``ConfigError`` for a family that has none.
    """
    if model_type is not None:
        only = ARCHITECTURES[model_type]
        return only, [*find_gaps(only, section, sizes)]
    its = (each for each in ARCHITECTURES.values() if each.family == section.family)
    candidates = [each for each in its if each.exports and each.model_type not in avoided]
    if not candidates:
        raise ConfigError(
            f"model.family = {section.family}: transformers has no such models, so that this one "
            "cannot become one of Hugging Face's. It is used by lmscale evaluate and generate; for "
            "others' programs train another family: "
            f"{', '.join(dict.fromkeys(each.family for each in ARCHITECTURES.values()))}."
        )
    gaps = [(each, [*find_gaps(each, section, sizes)]) for each in candidates]
    return min(gaps, key=lambda pair: len(pair[1]))


def describe_gaps(nearest: Architecture, gaps: list[str]) -> ConfigError:
    """The error of a section that no architecture can be."""
    return ConfigError(
        "model: no architecture of transformers computes this. The nearest one is "
        f"{nearest.model_type}; change these to have it: {', '.join(gaps)}."
    )


def read_section(tree: Mapping[str, Any], where: str) -> tuple[Architecture, ModelConfig]:
    """The architecture and the section of a whole config.json (``where``, for messages), with
    ``vocab_size`` and ``max_positions`` as they are there. Raises ``DataError``.
    """
    model_type = tree.get("model_type")
    architecture = ARCHITECTURES.get(str(model_type))
    if architecture is None:
        near = get_close_matches(str(model_type), ARCHITECTURES, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise DataError(
            f"{where}: model_type = {model_type!r} is an architecture that lmscale does not have."
            f"{hint} It has {', '.join(ARCHITECTURES)}."
        )
    try:
        settings = architecture.read(tree)
    except UnreadableError as error:
        raise DataError([f"{where}: {problem}" for problem in error.problems]) from None
    except KeyError as error:
        raise DataError(f"{where}: the setting {error} is missing.") from None
    sizes = {"vocab_size": tree["vocab_size"]}
    if architecture.positions_key:
        unread = architecture.padding_rows if architecture.counts_padding else 0
        sizes["max_positions"] = tree[architecture.positions_key] - unread
    section = FAMILIES.own[architecture.family]
    return architecture, section(family=architecture.family, **sizes, **settings)
