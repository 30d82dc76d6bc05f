"""config.json and generation_config.json of an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmscale.config.token_ids import find_sentinels
from lmscale.exchange.framing import Framing
from lmscale.exchange.plan_export import ExportPlan
from lmscale.tokenizer.base import Tokenizer

THEIR_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def special_ids(framing: Framing, objective_ids: Mapping[str, int]) -> dict[str, int | None]:
    """Their names of special ids → the run's; None where it has none, for their defaults are those
    of other tokenizers. ``objective_ids``: by the objective's names.

    bos is None too where no document that the run has read begins with it: it would be a vector
    that nothing has trained.
    """
    ids = {f"{role}_token_id": framing.roles.get(f"{role}_token") for role in ("bos", "eos", "pad")}
    start = {"decoder_start_token_id": objective_ids["start"]} if "start" in objective_ids else {}
    return ids | start


def end_ids(tokenizer: Tokenizer, framing: Framing) -> list[int]:
    """What ends a text that is written, as in ``lmscale generate``: the objective's end, if it has
    one, and a document's.
    """
    return [*dict.fromkeys([framing.roles["eos_token"], tokenizer.eos_id])]


def barred_ids(
    tokenizer: Tokenizer, framing: Framing, objective_ids: Mapping[str, int], num_rows: int
) -> list[int]:
    """Ids that no model learns to write: special ones but what ends a text and the objective's
    sentinels, and rows that no text has trained. Not a tokenizer's other special tokens: who tunes
    the model to write them would find them barred.
    """
    is_barred = np.ones(num_rows, dtype=bool)
    is_barred[: tokenizer.vocab_size] = ~tokenizer.is_writable()
    own = {*tokenizer.special_tokens.values()} - {*objective_ids.values()}
    is_barred[list(own)] = False
    is_barred[end_ids(tokenizer, framing)] = False
    is_barred[[objective_ids[name] for name in find_sentinels(objective_ids)]] = False
    return np.flatnonzero(is_barred).tolist()


def render_config(
    plan: ExportPlan, framing: Framing, objective_ids: Mapping[str, int], dtype: str
) -> dict[str, Any]:
    """config.json."""
    return {
        "dtype": THEIR_DTYPES[dtype],
        **plan.target.settings,
        **special_ids(framing, objective_ids),
    }


def render_generation(
    framing: Framing,
    objective_ids: Mapping[str, int],
    *,
    ends: Sequence[int],
    barred: Sequence[int],
) -> dict[str, Any]:
    """generation_config.json."""
    several = {"eos_token_id": list(ends)} if len(ends) > 1 else {}
    suppressed = {"suppress_tokens": list(barred)} if barred else {}
    return special_ids(framing, objective_ids) | several | suppressed
