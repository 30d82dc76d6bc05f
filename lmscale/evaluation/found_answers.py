# Shape letters: B windows, T tokens of a window, C = 1 + tokens of a context.
"""Answers that a run finds in contexts of any length, with their probability."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmscale.evaluation.questions import (
    AskedQuestion,
    ReadWindow,
    check_answering,
    plan_reading,
)
from lmscale.evaluation.run import LoadedRun
from lmscale.model.encoder import Encoder
from lmscale.objective.answers_scoring import find_best_spans, place_logits
from lmscale.tokenizer.spans import find_characters

BATCH_TOKENS = 8192  # padding included


@dataclass(frozen=True, kw_only=True)
class FoundAnswer:
    """The likeliest answer, or that the context has none."""

    text: str
    """As it stands in the context; "": it has none."""
    begin: int
    end: int
    """Characters of the context"""
    probability: float
    """That it begins and ends there, among all places of the context and that there is none."""


def find_answers(
    loaded: LoadedRun,
    questions: Sequence[AskedQuestion],
    *,
    advance: Callable[[float], None] = lambda windows: None,
) -> list[FoundAnswer]:
    """One for each question. Raises ``ConfigError`` and ``DataError``.

    A context that is longer than a window is read in several that overlap. Of a token that lies in
    more than one of them the one counts in which it has most around it, and that there is no answer
    is what the window least sure of it says (Devlin et al.'s run_squad.py).
    """
    longest = check_answering(loaded.config).longest_answer
    contexts, windows = plan_reading(questions, loaded.config, loaded.tokenizer, loaded.bos_id)
    read: dict[int, list[tuple[ReadWindow, Tensor]]] = {}
    for batch in _batches(windows):
        for window, logits_2C in zip(batch, _read(loaded, batch), strict=True):
            read.setdefault(window.number, []).append((window, logits_2C))
        advance(len(batch))
    answers = []
    for number, (question, context) in enumerate(zip(questions, contexts, strict=True)):
        log_p_2C = join_windows(read[number], len(context)).log_softmax(-1)
        best = find_best_spans(log_p_2C[:, None], longest)
        first, last, score = (float(each) for each in best)
        begin = end = 0
        if first:
            span = int(first) - 1, int(last) - 1
            begin, end = find_characters(loaded.tokenizer, question.context, context, *span)
        text = question.context[begin:end]
        answers.append(
            FoundAnswer(text=text, begin=begin, end=end, probability=float(np.exp(score)))
        )
    return answers


def join_windows(read: Sequence[tuple[ReadWindow, Tensor]], tokens: int) -> Tensor:
    """The logits of a whole context, f32 [2, 1 + tokens], of those of its windows."""
    whole_2C = torch.full((2, 1 + tokens), -torch.inf)
    around = torch.full((tokens,), -1)
    for window, logits_2C in read:
        within = torch.arange(window.length)
        places = slice(window.begin, window.begin + window.length)
        # What stands around a token is what there is on its shorter side, where that is cut off.
        is_first, is_last = window.begin == 0, window.begin + window.length == tokens
        left = within + tokens * is_first
        right = window.length - 1 - within + tokens * is_last
        own = torch.minimum(left, right)
        is_better = own > around[places]
        around[places] = torch.where(is_better, own, around[places])
        part = whole_2C[:, 1 + window.begin : 1 + window.begin + window.length]
        part.copy_(torch.where(is_better, logits_2C[:, 1:], part))
    none = min((logits_2C[:, 0] for _, logits_2C in read), key=lambda each: float(each.sum()))
    whole_2C[:, 0] = none
    return whole_2C


def _batches(windows: Sequence[ReadWindow]) -> Iterator[list[ReadWindow]]:
    """Of windows of like length, so that little is padding."""
    batch: list[ReadWindow] = []
    for window in sorted(windows, key=lambda each: len(each.ids)):
        if batch and (len(batch) + 1) * len(window.ids) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


@torch.inference_mode()
def _read(loaded: LoadedRun, batch: Sequence[ReadWindow]) -> list[Tensor]:
    """The logits, f32 [2, 1 + length], of each window, on the CPU."""
    model, device = loaded.model, loaded.model.device
    assert isinstance(model, Encoder)  # of the objective
    width = max(len(window.ids) for window in batch)
    ids = np.full((len(batch), width), loaded.tokenizer.eos_id, dtype=np.int64)
    types = np.zeros_like(ids)
    for row, window in enumerate(batch):
        ids[row, : len(window.ids)] = window.ids
        types[row, window.num_before : len(window.ids)] = 1
    ids_BT, types_BT = (torch.from_numpy(each).to(device) for each in (ids, types))
    lengths_B = torch.tensor([len(window.ids) for window in batch], device=device)
    begins_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    begins_BT[:, 0] = True
    layout = model.lay_out(begins_BT, mask_documents=True, lengths_B=lengths_B)
    documents = torch.arange(len(batch), device=device) * width
    before, lengths = (
        torch.tensor([getattr(window, name) for window in batch], device=device)
        for name in ("num_before", "length")
    )
    hidden_BTD = model(ids_BT, layout, types_BT)
    logits_2BC = place_logits(model, hidden_BTD, documents, documents + before, lengths).cpu()
    return [logits_2BC[:, row, : 1 + window.length] for row, window in enumerate(batch)]
