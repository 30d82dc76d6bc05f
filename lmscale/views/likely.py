# Shape letters: T time, V vocabulary.
"""What a model takes for likely: behind a text, or in the place of each mask."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lmscale.config import RunConfig
from lmscale.model.family import Model
from lmscale.views.attention import run_model
from lmscale.views.sides import Sides, find_places


@dataclass(frozen=True, kw_only=True)
class Likely:
    """The likeliest ids in one place, the likeliest first."""

    place: int
    """Of the token that they stand behind, or of the mask."""
    ids: tuple[int, ...]
    probabilities: tuple[float, ...]
    entropy: float
    """In nats, of all ids in use: exp(entropy) as many equally likely ones would be as unsure."""


def find_likely(model: Model, config: RunConfig, sides: Sides, *, most: int) -> list[Likely]:
    """The likeliest ids behind the text, or in each mask's place, by the model in fp32: the ids of
    the tokenizer and the objective; rows of the embedding that stand for nothing count as 0.

    Raises ``ConfigError`` where the model predicts no token.
    """
    places = find_places(config, sides)
    model = model.float().eval()
    with torch.no_grad():
        hidden_TD = run_model(model, sides)[0]
        logits_TV = model.head(hidden_TD[places])[:, : config.num_ids].double()
    return [_rank(place, logits_TV[row], most) for row, place in enumerate(places)]


def _rank(place: int, logits_V: Tensor, most: int) -> Likely:
    log_p_V = logits_V.log_softmax(-1)
    best = log_p_V.topk(min(most, len(log_p_V)))
    entropy = -(log_p_V.exp() * log_p_V).nansum().item()
    return Likely(
        place=place,
        ids=tuple(best.indices.tolist()),
        probabilities=tuple(math.exp(value) for value in best.values.tolist()),
        entropy=entropy,
    )
