"""Tiny runs of every family, by all kinds of objectives: what a test draws from by a seed.

A recipe is settings by dotted keys, for ``tiny_config`` and ``build_tiny_data``.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

LSTM = {"family": "recurrent", "layers": 2, "width": 32}
ENCODER = {"family": "encoder", "layers": 2, "width": 32, "heads": 4}
PAIRS = {"family": "encoder_decoder", "layers": 1, "width": 32, "heads": 4}
BART = {
    "positions": "learned", "norm": "layernorm", "norm_eps": 1e-5, "norm_first": False,
    "activation": "gelu_exact", "bias": True, "scaled_logits": False, "init_std": 0.1,
}  # fmt: skip
ORDER = {"pooler": True, "token_types": 2, "text_classes": 2}
ONE_TEXT = {"stream.mask_documents": False}

Recipes = Mapping[str, Mapping[str, Any]]  # by name

RECIPES: Recipes = {
    "llama": {},
    "transformer_xl": {"model.sliding_windows": [9], "model.segments": 4},
    "mup": {"model.mup.base_width": 8},  # matrices have a learning rate of their own
    "lora": {"model.lora": {"rank": 4, "targets": ["qkv", "down"]}, "run.allow_faults": True},
    "prefix": {"objective": {"name": "prefix"}},
    "mixture": {
        "objective": {
            "name": "mixture",
            "parts": {
                "left": {"weight": 3},
                "middle": {"weight": 2, "objective": {"name": "fill_middle"}},
                "prefix": {"objective": {"name": "prefix"}},
            },
        },
    },
    "lstm": {"model": LSTM},
    "gru fill_middle": {"model": LSTM | {"cell": "gru"}, "objective": {"name": "fill_middle"}},
    "masked": {
        "model": ENCODER | {"activation_checkpoint_every": 1},
        "objective": {"name": "masked", "unit": "spans"},
    },
    "masked_order": {  # a loss of two terms
        "model": ENCODER | ORDER,
        "objective": {"name": "masked_order", "unit": "words"},
        **ONE_TEXT,
    },
    "masked_next": {  # a row is of two samples
        "model": ENCODER | ORDER | {"text_classes": 3},
        "objective": {"name": "masked_next", "previous": True, "shuffle": 0.05},
        **ONE_TEXT,
    },
    "t5": {
        "model": PAIRS | {"activation_checkpoint_every": 1},
        "objective": {"name": "spans"},
        **ONE_TEXT,
    },
    "ul2": {
        "model": PAIRS | {"activation": "swiglu", "tied_embeddings": False},
        "objective": {"name": "denoisers"},
        **ONE_TEXT,
    },
    "bart": {"model": PAIRS | BART, "objective": {"name": "infill"}, **ONE_TEXT},
}


def family_of(recipe: str, recipes: Recipes = RECIPES) -> str:
    return recipes[recipe].get("model", {}).get("family", "decoder")


def draw_recipes(seed: object, count: int, recipes: Recipes = RECIPES) -> list[str]:
    """``count`` names in an order that the seed draws: the families take turns, and every recipe
    comes once before one comes again.
    """
    of_family: dict[str, list[str]] = {}
    for name in random.Random(f"recipes/{seed}").sample(list(recipes), len(recipes)):
        of_family.setdefault(family_of(name, recipes), []).append(name)
    order = [name for turn in zip_longest(*of_family.values()) for name in turn if name]
    return [order[place % len(order)] for place in range(count)]
