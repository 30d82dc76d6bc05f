"""Dialogues (instruction tuning over many turns), the half without torch: what the assistant says
is predicted behind all that was said before. The other half is ``causal_scoring``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lmscale.config import RunConfig
from lmscale.objective.causal import CAUSAL
from lmscale.objective.objective import Objective
from lmscale.shards.members import REPLIES
from lmscale.stream.batches import TOKENS, Field, Prepared, Rows


@dataclass(frozen=True, kw_only=True)
class DialoguePreparation:
    """Hands over which tokens are targets: those of the answers, with what ends each."""

    fields: tuple[Field, ...] = (
        Field("tokens", TOKENS, ("B", "W")),
        Field("starts", "int32", ("N",)),
        Field("lengths", "int32", ("B",)),
        Field("chosen", "uint8", ("B", "W")),
    )

    def prepare(self, rows: Rows) -> Prepared:
        is_there = np.arange(rows.tokens.shape[1]) < rows.lengths[:, None]
        chosen = rows.members[REPLIES] * is_there
        chosen[:, 0] = 0  # nothing stands before it
        chosen.reshape(-1)[rows.starts] = 0
        arrays = {
            "tokens": rows.tokens,
            "starts": rows.starts,
            "lengths": rows.lengths,
            "chosen": chosen,
        }
        return Prepared(arrays, targets=int(chosen.sum()))

    def target_ids(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return arrays["tokens"][arrays["chosen"] == 1]


def _prepare(config: RunConfig) -> DialoguePreparation:
    return DialoguePreparation()


DIALOGUE = Objective(prepare=_prepare, build=CAUSAL.build)
