"""What the planner knows of a family of models."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from lmscale.config.model import Sizes
from lmscale.plan.parameters import ParameterShape
from lmscale.plan.tape import Array, Tape


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The sizes of a micro-batch, and what hides its tokens from each other."""

    windows: int
    length: int  # tokens of a window that the model reads; of an encoder-decoder those it writes
    read_length: int = 0  # of an encoder-decoder, those it reads
    masks_documents: bool = True
    shows_prefixes: bool = False
    pads: bool = False
    """Whether rows may end in padding that nothing may look at."""


def _name_head(config: Any) -> str:
    return "embedding.weight" if config.tied_embeddings else "head.weight"


@dataclass(frozen=True, kw_only=True)
class PlannedFamily:
    """How the parameters and operators of a family follow from its settings, as its section's
    ``planning`` names it.
    """

    list_parameters: Callable[[Any, Sizes], Iterable[ParameterShape]]
    """Settings and sizes → the parameters, in torch's order, a tied one once; without adapters."""
    write: Callable[[Tape, Any, Sizes, Batch], Array]
    """Put the operators of a forward pass on a tape; the hidden states [B, T, D]."""
    begins_anew: Callable[[str], bool] = lambda name: False
    """As ``Model.begins_anew``."""
    write_head: Callable[[Tape, Any, Array], Array] = lambda tape, config, hidden: hidden
    """What the head does before its product, to hidden states [N, D]."""
    head_parameter: Callable[[Any], str] = _name_head
    """The name of the head's matrix, which may be the embedding's."""
