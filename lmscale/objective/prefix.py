"""Prefix language modelling (Dong et al. 2019; Raffel et al. 2020, section 3.2.1), the half without
torch: where the part ends that is seen as a whole. The other half is ``causal_scoring``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lmscale.config import RunConfig
from lmscale.objective.causal import CAUSAL
from lmscale.objective.objective import Objective
from lmscale.objective.pieces import Pieces, draw_by_place, find_pieces, scale_words
from lmscale.stream.batches import TOKENS, Field, Prepared, Rows
from lmscale.stream.order import philox_key


@dataclass(frozen=True, kw_only=True)
class PrefixPreparation:
    """Draws the length of each document's prefix: every one is alike likely that leaves a target.

    A document of one token is all prefix.
    """

    seed: int
    mask_documents: bool
    fields: tuple[Field, ...] = (
        Field("tokens", TOKENS, ("B", "W")),
        Field("starts", "int32", ("N",)),
        Field("lengths", "int32", ("B",)),
        Field("prefixes", "int32", ("N",)),  # tokens, of each start's document
    )

    def prepare(self, rows: Rows) -> Prepared:
        pieces = find_pieces(rows, mask_documents=self.mask_documents)
        prefixes = self.find_prefixes(rows, pieces)
        arrays = {
            "tokens": rows.tokens,
            "starts": pieces.starts,
            "lengths": rows.lengths,
            "prefixes": prefixes.astype(np.int32),
        }
        return Prepared(arrays, targets=int(np.maximum(pieces.lengths - prefixes, 0).sum()))

    def find_prefixes(self, rows: Rows, pieces: Pieces) -> np.ndarray:
        """Tokens of each piece's prefix, whole numbers [N]."""
        words = draw_by_place(philox_key(self.seed, "prefix"), rows)[pieces.starts]
        return 1 + scale_words(words, np.maximum(pieces.lengths - 1, 1))

    def target_ids(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        return arrays["tokens"][find_targets(arrays)]


def find_targets(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which tokens are behind their document's prefix, bool [B, W]."""
    tokens, starts = arrays["tokens"], arrays["starts"]
    edges = np.zeros(tokens.size + 1, dtype=np.int32)
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + arrays["prefixes"], -1)
    is_prefix = (edges[:-1].cumsum() > 0).reshape(tokens.shape)
    return ~is_prefix & (np.arange(tokens.shape[1]) < arrays["lengths"][:, None])


def _prepare(config: RunConfig) -> PrefixPreparation:
    return PrefixPreparation(seed=config.run.seed, mask_documents=config.stream.mask_documents)


PREFIX = Objective(prepare=_prepare, build=CAUSAL.build)
