"""config.json and generation_config.json of an export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lmscale.evaluation.run import FoundRun
from lmscale.exchange.plan_export import ExportPlan
from lmscale.tokenizer.codec import Tokenizer

THEIR_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def special_ids(found: FoundRun) -> dict[str, int | None]:
    """Their names of special ids → the run's; None where it has none, for their defaults are those
    of other tokenizers. bos is None too where no document that the run has read begins with it: it
    would be a vector that nothing has trained.
    """
    tokenizer = found.tokenizer
    return {
        "bos_token_id": found.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }


def barred_ids(tokenizer: Tokenizer, num_rows: int) -> list[int]:
    """Ids that ``lmscale generate`` never writes either: special ones but eos, and rows that no
    text has trained.
    """
    is_barred = np.ones(num_rows, dtype=bool)
    is_barred[: tokenizer.vocab_size] = tokenizer.token_bytes() == 0
    is_barred[tokenizer.eos_id] = False
    return np.flatnonzero(is_barred).tolist()


def render_config(plan: ExportPlan, found: FoundRun, dtype: str) -> dict[str, Any]:
    """config.json."""
    return {
        "architectures": [plan.class_name],
        "model_type": plan.architecture.model_type,
        "dtype": THEIR_DTYPES[dtype],
        **plan.architecture.render(plan.section, plan.sizes),
        **special_ids(found),
    }


def render_generation(plan: ExportPlan, found: FoundRun) -> Mapping[str, Any]:
    """generation_config.json."""
    barred = barred_ids(found.tokenizer, plan.sizes.vocab_size)
    return {**special_ids(found), **({"suppress_tokens": barred} if barred else {})}
