"""Completion (instruction tuning), the half without torch: a pair's second text is predicted behind
its first one. The other half is ``causal_scoring``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lmscale.config import RunConfig
from lmscale.objective.causal import CAUSAL
from lmscale.objective.objective import Objective
from lmscale.objective.pieces import Pieces
from lmscale.objective.prefix import PrefixPreparation
from lmscale.shards.members import PARTS
from lmscale.stream.batches import Rows


@dataclass(frozen=True, kw_only=True)
class CompletionPreparation(PrefixPreparation):
    """The prefix of a document is the first text of its pair."""

    def find_prefixes(self, rows: Rows, pieces: Pieces) -> np.ndarray:
        return np.minimum(rows.members[PARTS], pieces.lengths)


def _prepare(config: RunConfig) -> CompletionPreparation:
    return CompletionPreparation(seed=config.run.seed, mask_documents=True)


COMPLETION = Objective(prepare=_prepare, build=CAUSAL.build)
