"""What transformers cannot say of a section, and its weights can take up. No torch.

::

    section ──plan_folding──→ Folding: another section of the same function, that an architecture
                              can be, and by which numbers the weights differ

Factors go into the weights beside them (muP's, a scale of attention); what is missing comes as
zeros (biases, a type of tokens). ``exchange/folding.py`` does it to the tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from lmscale.config.hf.architecture import Architecture
from lmscale.config.hf.choose import describe_gaps, find_nearest
from lmscale.config.model import (
    DecoderConfig,
    EncoderConfig,
    EncoderDecoderConfig,
    ModelConfig,
    MupConfig,
    RopeScalingConfig,
    Sizes,
)

_QUERIES = "blocks.*.attention."


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Parameters that are multiplied."""

    pattern: str
    """Of their names, as ``fnmatch`` has it."""
    by: float
    rows: int | None = None
    """Only the first ones of each; None: all."""


@dataclass(frozen=True, kw_only=True)
class Folding:
    """A section that computes the same, by other weights."""

    section: ModelConfig
    """Its parameters that the run does not have are zeros."""
    scales: tuple[Scale, ...] = ()
    told: tuple[str, ...] = ()
    """What was folded, for people; nothing: section and weights are the run's."""

    def then(self, other: Folding) -> Folding:
        """Both, where ``other`` was made of this one's section."""
        scales, told = self.scales + other.scales, self.told + other.told
        return Folding(section=other.section, scales=scales, told=told)


Step = Callable[[ModelConfig], Folding | None]


def plan_folding(
    section: ModelConfig,
    sizes: Sizes,
    *,
    avoided: Collection[str] = (),
    model_type: str | None = None,
) -> tuple[Architecture, Folding]:
    """The architecture that the section is, or that it is with the least folded; none of the
    ``avoided``, or that of ``model_type`` alone. Raises ``ConfigError`` as ``choose_architecture``
    does.
    """
    plain = _fold(Folding(section=section), (_fold_mup, _fold_ntk))
    useful = [step for step in _OPTIONAL if step(plain.section) is not None]
    counts = range(len(useful) + 1)
    best: tuple[Architecture, list[str]] | None = None
    for steps in (steps for count in counts for steps in combinations(useful, count)):
        folded = _fold(plain, steps)
        nearest, gaps = find_nearest(folded.section, sizes, avoided=avoided, model_type=model_type)
        if not gaps:
            return nearest, folded
        if best is None or len(gaps) < len(best[1]):
            best = nearest, gaps
    assert best is not None, "no step at all is tried first"
    raise describe_gaps(*best)


def _fold(folding: Folding, steps: tuple[Step, ...]) -> Folding:
    for step in steps:
        more = step(folding.section)
        folding = folding if more is None else folding.then(more)
    return folding


def _change(section: ModelConfig, **changed: Any) -> ModelConfig:
    return section.model_copy(update=changed)


def _fold_mup(section: ModelConfig) -> Folding | None:
    """The head alone reads the last norm."""
    if not isinstance(section, DecoderConfig) or not section.mup.base_width:
        return None
    return Folding(
        section=_change(section, mup=MupConfig()),
        scales=(
            *(_scale_queries(section) if section.mup.base_head_width else ()),
            *_scale_last_norm("norm", 1 / section.width_ratio),
        ),
        told=("muP's factors are in the weights",),
    )


def _fold_ntk(section: ModelConfig) -> Folding | None:
    if not isinstance(section, DecoderConfig) or section.rope_scaling.kind != "ntk":
        return None
    width, factor = section.resolved_head_width, section.rope_scaling.factor
    theta = section.rope_theta * factor ** (width / max(width - 2, 1))
    changed = {"rope_theta": theta, "rope_scaling": RopeScalingConfig()}
    return Folding(
        section=_change(section, **changed), told=(f"rope_theta is {theta:g}, as ntk raises it",)
    )


def _fold_attention_width(section: ModelConfig) -> Folding | None:
    if not isinstance(section, DecoderConfig) or section.attention_scale is None:
        return None
    return Folding(
        section=_change(section, attention_width=None),
        scales=tuple(_scale_queries(section)),
        told=("attention_width is in the weights of the queries",),
    )


def _fold_logit_scale(section: ModelConfig) -> Folding | None:
    if not isinstance(section, EncoderDecoderConfig) or not section.norm_first:
        return None
    if section.scaled_logits or not section.tied_embeddings:
        return None
    return Folding(
        section=_change(section, scaled_logits=True),
        scales=tuple(_scale_last_norm("decoder.norm", math.sqrt(section.width))),
        told=("the decoder's last norm takes back that its outputs are divided by √width there",),
    )


def _fold_embedding_scale(section: ModelConfig) -> Folding | None:
    if not isinstance(section, DecoderConfig) or section.tied_embeddings:
        return None
    if not section.scaled_embeddings:
        return None
    return Folding(
        section=_change(section, scaled_embeddings=False),
        scales=(Scale(pattern="embedding.weight", by=math.sqrt(section.width)),),
        told=("the embeddings are multiplied by √width",),
    )


def _add_token_type(section: ModelConfig) -> Folding | None:
    if not isinstance(section, EncoderConfig) or section.token_types:
        return None
    changed = _change(section, token_types=1)
    return Folding(section=changed, told=("one type of tokens with a vector of 0 is added",))


def _add_biases(section: ModelConfig) -> Folding | None:
    if getattr(section, "bias", True):
        return None
    return Folding(section=_change(section, bias=True), told=("biases of 0 are added",))


def _add_qkv_biases(section: ModelConfig) -> Folding | None:
    if not isinstance(section, DecoderConfig) or section.bias or section.qkv_bias:
        return None
    told = ("biases of 0 of queries, keys and values are added",)
    return Folding(section=_change(section, qkv_bias=True), told=told)


_OPTIONAL: tuple[Step, ...] = (
    _add_token_type,
    _fold_attention_width,
    _fold_logit_scale,
    _fold_embedding_scale,
    _add_qkv_biases,
    _add_biases,
)


def _scale_queries(section: DecoderConfig) -> Iterator[Scale]:
    """By which attention's scores are other than 1 / √head_width times the products."""
    width = section.resolved_head_width
    by = (section.attention_scale or width**-0.5) * math.sqrt(width)
    if section.qk_norm:
        yield Scale(pattern=f"{_QUERIES}query_norm.weight", by=by)
        return
    for leaf in ("weight", "bias"):
        yield Scale(pattern=f"{_QUERIES}qkv.{leaf}", by=by, rows=section.heads * width)


def _scale_last_norm(norm: str, by: float) -> Iterator[Scale]:
    for leaf in ("weight", "bias"):
        yield Scale(pattern=f"{norm}.{leaf}", by=by)
