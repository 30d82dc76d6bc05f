"""What an objective hands to a model, and how it scores what comes out, for the planner."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lmscale.config import RunConfig
from lmscale.config.masked import MaskedConfig
from lmscale.config.model import ModelConfig
from lmscale.config.objective import MixtureConfig
from lmscale.config.objective_base import NextTokenConfig, ObjectiveConfig
from lmscale.config.supervised import LabelledConfig
from lmscale.plan.families.family import Batch, PlannedFamily
from lmscale.plan.loss import Scoring, write_loss
from lmscale.plan.operators import flatten, linear, pointwise
from lmscale.plan.tape import FLOAT, Array, Tape, reshape

LABELLED_TEXT = 64  # tokens of a labelled text, of which windows hold as many as fit: a guess


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How an objective reads a window and scores its hidden states."""

    length: int  # tokens of a window that the model is called with
    read_length: int = 0
    targets: int = 0  # positions of a window whose logits are made
    classes: int = 0
    """Outputs of a layer of classes, each scored for ``class_rows`` states of a window."""
    class_rows: int = 0
    is_first_token: bool = False
    """Whether these are the first ones of the windows, as a view of all."""
    trains_head: bool = True  # whether the head that predicts tokens has a part in it
    pads: bool = False
    shows_prefixes: bool = False
    counts_hits: bool = False
    masks_documents: bool = True

    def batch(self, micro_windows: int) -> Batch:
        return Batch(
            windows=micro_windows,
            length=self.length,
            read_length=self.read_length,
            masks_documents=self.masks_documents,
            shows_prefixes=self.shows_prefixes,
            pads=self.pads,
        )


def read_objective(config: RunConfig) -> Reading:
    """That of the run's objective. One of an installed package counts as next tokens where its
    section has their keys; else nothing of its own is counted.
    """
    objective, length = config.objective, config.stream.sequence_length
    masks = config.stream.mask_documents
    if config.pair_lengths is not None:
        read, written = config.pair_lengths
        return Reading(
            length=written,
            read_length=read,
            targets=written,
            counts_hits=True,
            masks_documents=masks,
            pads=True,
        )
    if isinstance(objective, LabelledConfig):
        is_tags = objective.outputs == "token_classes"
        rows = length if is_tags else max(1, length // LABELLED_TEXT)
        return Reading(
            length=length,
            classes=objective.num_outputs,
            class_rows=rows,
            trains_head=False,
            pads=True,
        )
    masked = _masked_rate(objective)
    if masked:
        return Reading(
            length=length,
            targets=math.ceil(masked * length),
            classes=getattr(config.model, "text_classes", 0),
            class_rows=1,
            is_first_token=True,
            counts_hits=True,
            masks_documents=masks,
            pads=True,
        )
    if isinstance(objective, NextTokenConfig):
        prefixes = getattr(objective, "shows_prefixes", False)
        return Reading(
            length=length, targets=length, masks_documents=masks, shows_prefixes=prefixes
        )
    return Reading(length=length, masks_documents=masks)


def _masked_rate(objective: ObjectiveConfig) -> float:
    """Share of the tokens whose logits are made; 0 where it is not some of them."""
    each = [*objective.each().values()]
    masked = [one for one in each if isinstance(one, MaskedConfig)]
    # Of the groups of three that hold no chosen one, ``shuffle`` are shuffled.
    rates = [one.rate + one.shuffle * (1 - one.rate) ** 3 for one in masked]
    if not masked:
        return 0.0
    if isinstance(objective, MixtureConfig):
        return sum(share * rate for share, rate in zip(objective.shares, rates, strict=True))
    return rates[0]


def write_scoring(
    tape: Tape, config: RunConfig, family: PlannedFamily, reading: Reading, hidden: Array
) -> None:
    """Put on the tape what the objective does with hidden states [B, T, D]."""
    windows, width = hidden.shape[0], hidden.shape[-1]
    if reading.classes and reading.class_rows:
        _write_classes(tape, config.model, reading, windows, hidden)
    if not reading.targets:
        return
    states = flatten(hidden, width)
    if reading.targets < reading.length:
        rows = reading.targets * windows
        states = pointwise(tape, "targets", [hidden], (rows, width), kind="lookup")
    states = family.write_head(tape, config.model, states)
    parameter = family.head_parameter(config.model)
    scoring = Scoring(
        vocab_size=config.vocab_size,
        chunk_tokens=getattr(config.objective, "chunk_tokens", states.shape[0]),
        is_trained=tape.is_trained(parameter),
        is_capped=bool(getattr(config.model, "logit_softcap", 0.0)),
        counts_hits=reading.counts_hits,
        teacher_width=width if getattr(config.objective, "teacher", "") else 0,
    )
    write_loss(tape, states, scoring)


def _write_classes(
    tape: Tape, model: ModelConfig, reading: Reading, windows: int, hidden: Array
) -> None:
    rows = reading.class_rows * windows
    width = hidden.shape[-1]
    if reading.is_first_token:
        (states,) = tape.split("classified", hidden, [(rows, width)])
    elif reading.class_rows == reading.length:
        states = reshape(hidden, rows, width)
    else:
        states = pointwise(tape, "classified", [hidden], (rows, width), kind="lookup")
    if getattr(model, "pooler", False):
        states = linear(tape, "pooler", states, width, bias=bool(getattr(model, "bias", False)))
        states = pointwise(tape, "pooler.tanh", [states], states.shape, saves_output=True)
    has_tags = bool(getattr(model, "token_classes", 0))
    name = "token_classifier" if has_tags else "classifier"
    logits = linear(tape, name, states, reading.classes, bias=model.family == "encoder")
    pointwise(tape, "class_loss", [logits], (), itemsize=FLOAT, saved=[logits], launches=4)
