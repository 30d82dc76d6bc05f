# Shape letters: B rows (samples), W tokens of a row, N documents, or tagged tokens, of all rows.
"""Labelled documents and tagged words, the half without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lmscale.config import RunConfig
from lmscale.config.kinds import Ability
from lmscale.config.supervised import LabelledConfig, TextLabelsConfig
from lmscale.objective.augment import AugmentedPreparation, mark_words
from lmscale.objective.objective import Objective
from lmscale.objective.pieces import find_pieces
from lmscale.objective.token_kinds import token_kinds
from lmscale.shards.members import LABELS, PARTS, TAGS
from lmscale.stream.batches import TOKENS, Field, Preparation, Prepared, Rows
from lmscale.tokenizer.codec import load_kept_tokenizer

if TYPE_CHECKING:
    from torch import nn

    from lmscale.model.family import Model


@dataclass(frozen=True, kw_only=True)
class LabelledPreparation:
    """Finds the places that are scored, and their labels: of a document its first token, or its
    last one where tokens see those before them alone; of a tagged word the token that has its tag.
    """

    member: str  # LABELS or TAGS
    label_dtype: str
    has_pairs: bool = False
    at_end: bool = False

    @property
    def fields(self) -> tuple[Field, ...]:
        return (
            Field("ids", TOKENS, ("B", "W")),
            Field("starts", "int32", ("N",)),
            Field("lengths", "int32", ("B",)),
            Field("positions", "int32", ("N",)),  # flat, of what is scored
            Field("labels", self.label_dtype, ("N",)),
            *((Field("types", "uint8", ("B", "W")),) if self.has_pairs else ()),
        )

    def prepare(self, rows: Rows) -> Prepared:
        values = rows.members[self.member]
        if self.member == TAGS:
            is_there_BW = np.arange(rows.tokens.shape[1]) < rows.lengths[:, None]
            positions = np.flatnonzero((values >= 0) & is_there_BW)
            labels = values.reshape(-1)[positions]
        else:
            pieces = find_pieces(rows, mask_documents=True)
            is_there_N = pieces.lengths > 0
            last_N = pieces.lengths - 1 if self.at_end else 0
            positions, labels = (pieces.starts + last_N)[is_there_N], values[is_there_N]
        arrays = {
            "ids": rows.tokens,
            "starts": rows.starts,
            "lengths": rows.lengths,
            "positions": positions.astype(np.int32),
            "labels": labels.astype(self.label_dtype),
        }
        if self.has_pairs:
            arrays["types"] = mark_second_texts(rows)
        return Prepared(arrays, targets=len(labels))

    def target_ids(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """None: no text is predicted."""
        return arrays["ids"][:0, 0]


def mark_second_texts(rows: Rows) -> np.ndarray:
    """uint8 [B, W]: 1 for the tokens of the second text of each pair, its eos included."""
    pieces = find_pieces(rows, mask_documents=True)
    is_there_N = pieces.lengths > 0
    starts_N, ends_N = pieces.starts[is_there_N], (pieces.starts + pieces.lengths)[is_there_N]
    steps = np.zeros(rows.tokens.size + 1, dtype=np.int8)
    np.add.at(steps, starts_N + rows.members[PARTS][is_there_N], 1)
    np.add.at(steps, ends_N, -1)
    return steps[:-1].cumsum(dtype=np.int8).astype(np.uint8).reshape(rows.tokens.shape)


def _prepare(config: RunConfig) -> Preparation:
    settings = config.objective
    assert isinstance(settings, LabelledConfig)
    kind = settings.labels.kind
    preparation = LabelledPreparation(
        member=TAGS if kind == "tags" else LABELS,
        label_dtype="float32" if kind == "numbers" else "int32",
        has_pairs=settings.has_pairs,
        at_end=Ability.BIDIRECTIONAL not in config.model.offers,
    )
    if not isinstance(settings, TextLabelsConfig) or not settings.augment.is_on:
        return preparation
    tokenizer = load_kept_tokenizer(config.folder, config.tokenizer.folder)
    return AugmentedPreparation(
        inner=preparation,
        config=settings.augment,
        seed=config.run.seed,
        kinds=token_kinds(tokenizer),
        written_as=mark_words(tokenizer),
    )


def _build(model: Model, config: RunConfig) -> nn.Module:
    from lmscale.objective.labelled_scoring import build_labelled_scoring

    settings = config.objective
    assert isinstance(settings, LabelledConfig)
    kind = settings.labels.kind
    assert kind != "spans"  # whose objective is another one
    smoothing = getattr(settings, "label_smoothing", 0.0)  # of classes alone
    return build_labelled_scoring(model, kind, label_smoothing=smoothing)


LABELLED = Objective(prepare=_prepare, build=_build)
