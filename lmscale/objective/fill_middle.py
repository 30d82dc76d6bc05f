# Shape letters: N pieces of all rows, M tokens of a piece.
"""Fill-in-the-middle (Bavarian et al. 2022, arXiv 2207.14255), the half without torch: documents
whose middle is moved behind what follows it. They are scored as by ``causal_scoring``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lmscale.config import RunConfig
from lmscale.config.objective import FillMiddleConfig
from lmscale.objective.causal import CAUSAL, CausalPreparation
from lmscale.objective.objective import Objective
from lmscale.objective.pieces import Pieces, draw_by_place, find_pieces, scale_words
from lmscale.stream.batches import Field, Prepared, Rows
from lmscale.stream.order import philox_key
from lmscale.tokenizer.codec import load_kept_tokenizer

NUM_MARKS = 3
SHORTEST = 8  # shorter pieces stay as they are; a piece has a word for each of its tokens


@dataclass(frozen=True, kw_only=True)
class FillMiddlePreparation:
    """Rearranges some documents within the places that they have, so that a row keeps its length.

    The three marks take the places of the document's last three tokens, which are left out; a bos
    stays in front and an eos at the end.
    """

    config: FillMiddleConfig
    seed: int
    marks: tuple[int, int, int]
    """Ids that stand before the prefix, the suffix and the middle."""
    bos_id: int | None
    eos_id: int
    mask_documents: bool
    fields: tuple[Field, ...] = (
        Field("tokens", "uint32", ("B", "W")),
        Field("starts", "int32", ("N",)),
        Field("lengths", "int32", ("B",)),
    )

    def prepare(self, rows: Rows) -> Prepared:
        """The targets are those of causal modelling: every token but a document's first."""
        causal = self._causal.prepare(rows)
        tokens = rows.tokens.astype(np.uint32)
        self._rearrange(tokens.reshape(-1), find_pieces(rows, mask_documents=True), rows)
        return Prepared({**causal.arrays, "tokens": tokens}, targets=causal.targets)

    def target_ids(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Those of text; the marks stand for none."""
        ids = self._causal.target_ids(arrays)
        return ids[~np.isin(ids, self.marks)]

    @property
    def _causal(self) -> CausalPreparation:
        return CausalPreparation(mask_documents=self.mask_documents)

    def _rearrange(self, flat: np.ndarray, pieces: Pieces, rows: Rows) -> None:
        """In place. ``flat``: the rows' tokens one after another, [R × W]."""
        words = draw_by_place(philox_key(self.seed, "fill_middle"), rows)
        chances = np.array([self.config.rate, self.config.suffix_first])
        for start, length in zip(pieces.starts.tolist(), pieces.lengths.tolist(), strict=True):
            if length < SHORTEST:
                continue
            is_moved, is_suffix_first = words[start : start + 2] >> np.uint64(32) < chances * 2**32
            if is_moved:
                piece = flat[start : start + length]
                cuts = words[start + 2 : start + 4]
                piece[:] = self._move_middle(piece, cuts, is_suffix_first=bool(is_suffix_first))

    def _move_middle(
        self, piece_M: np.ndarray, words: np.ndarray, *, is_suffix_first: bool
    ) -> np.ndarray:
        first = int(piece_M[0] == self.bos_id)
        last = len(piece_M) - int(piece_M[-1] == self.eos_id)
        text = piece_M[first : last - NUM_MARKS]
        cut, end = sorted(scale_words(words, np.array([len(text) + 1] * 2)).tolist())
        prefix, middle, suffix = text[:cut], text[cut:end], text[end:]
        before, after, between = ([mark] for mark in self.marks)
        # The paper's PSM, and its SPM in the form that shares PSM's marks (appendix D there).
        parts = (before, prefix, after, suffix, between, middle)
        if is_suffix_first:
            parts = (before, after, suffix, between, prefix, middle)
        return np.concatenate([piece_M[:first], *parts, piece_M[last:]])


def _prepare(config: RunConfig) -> FillMiddlePreparation:
    settings, ids = config.objective, config.objective_ids
    assert isinstance(settings, FillMiddleConfig)
    tokenizer = load_kept_tokenizer(config.folder, config.tokenizer.folder)
    return FillMiddlePreparation(
        config=settings,
        seed=config.run.seed,
        marks=(ids["prefix"], ids["suffix"], ids["middle"]),
        bos_id=tokenizer.bos_id,
        eos_id=tokenizer.eos_id,
        mask_documents=config.stream.mask_documents,
    )


FILL_MIDDLE = Objective(prepare=_prepare, build=CAUSAL.build)
