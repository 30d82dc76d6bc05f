# Shape letters: B prompts, T time, L longest prompt, S what is read, D model width, V vocabulary, E
# ends.
"""The likeliest texts behind many prompts, written side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmscale.evaluation.generate import find_barred
from lmscale.evaluation.prompts import Prompt
from lmscale.model.family import CrossModel, Model
from lmscale.ranks.collectives import gather_json
from lmscale.ranks.mesh import Axis
from lmscale.tokenizer.base import Tokenizer
from lmscale.watch import heartbeat


@dataclass(frozen=True, kw_only=True)
class Written:
    """A text that a model has written."""

    ids: tuple[int, ...]  # without the one that ended it
    is_ended: bool  # by the model itself; else there was no more room


def plan_batches(prompts: Sequence[Prompt], *, max_tokens: int, batch_tokens: int) -> list[list]:
    """Numbers of the prompts of each batch, longest first, so that prompts of about one length
    stand together; of those that are seen as a whole, only such of one length.

    ``batch_tokens``: rows × (what is read, the prompt and the text), at most, but for a row that is
    longer. The same for every number of ranks.
    """

    def size(number: int) -> tuple[int, int]:
        prompt = prompts[number]
        return len(prompt.source or ()), len(prompt.ids)

    batches: list[list[int]] = []
    most = 0
    for number in sorted(range(len(prompts)), key=lambda number: (*size(number), -number))[::-1]:
        is_alike = not prompts[number].sees_whole or (
            bool(batches) and size(number) == size(batches[-1][0])
        )
        if batches and is_alike and len(batches[-1]) < most:
            batches[-1].append(number)
            continue
        most = max(1, batch_tokens // (sum(size(number)) + max_tokens))
        batches.append([number])
    return batches


def write_answers(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    batch_tokens: int,
    data: Axis,
    advance: Callable[[float], None] = lambda prompts: None,
    between_batches: Callable[[], None] = lambda: None,
) -> list[Written]:
    """The greedy text of at most ``max_tokens`` tokens behind each prompt, in their order, on every
    rank: what ``Generation`` gives of each alone.

    Of the batches, data rank r takes those at r, r + data ranks, …: the model is whole on each. A
    prompt has to fit (``find_misfits``); all are asked alike, with the same ends.
    """
    if not prompts:
        return []
    ends, writes = prompts[0].ends | {tokenizer.eos_id}, prompts[0].writes
    assert all(prompt.ends | {tokenizer.eos_id} == ends for prompt in prompts)
    barred_V = find_barred(model, tokenizer, ends | writes).to(model.device)
    batches = plan_batches(prompts, max_tokens=max_tokens, batch_tokens=batch_tokens)
    own: list[tuple[int, list[int], bool]] = []
    for turn in range(0, len(batches), data.size):
        chosen = batches[turn + data.rank] if turn + data.rank < len(batches) else []
        if chosen:
            batch = [prompts[number] for number in chosen]
            written = _write_batch(model, batch, barred_V, ends, max_tokens)
            own += [(n, ids, done) for n, (ids, done) in zip(chosen, written, strict=True)]
        heartbeat.tick()
        advance(sum(map(len, batches[turn : turn + data.size])))
        between_batches()
    texts = {number: (ids, done) for rows in gather_json(own) for number, ids, done in rows}
    return [
        Written(ids=tuple(texts[number][0]), is_ended=texts[number][1])
        for number in range(len(prompts))
    ]


@torch.no_grad()
def _write_batch(
    model: Model,
    prompts: Sequence[Prompt],
    barred_V: Tensor,
    ends: frozenset[int],
    max_tokens: int,
) -> list[tuple[list[int], bool]]:
    """Ids without the end, and whether there was one. All rows are as long at any time: where a
    longer prompt still has tokens of its own, these come in the place of the likeliest ones.
    """
    device = model.device
    prompt_BL, lengths_B = _lay([prompt.ids for prompt in prompts], device)
    longest = prompt_BL.shape[1]
    capacity = min(longest + max_tokens, model.max_positions)
    state = _read_sources(model, prompts, capacity)
    read = model.read_prefix if prompts[0].sees_whole else model.extend
    place = int(lengths_B.min())
    given_BT = prompt_BL[:, :place]
    ends_E = torch.tensor(sorted(ends), device=device)
    is_done_B = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    columns = [given_BT]
    while True:
        hidden_BTD = read(given_BT, state)
        logits_BV = model.head(hidden_BTD[:, -1]).float()
        token_B = logits_BV.masked_fill(barred_V, -torch.inf).argmax(-1)
        if place < longest:
            is_given_B = place < lengths_B
            token_B = torch.where(is_given_B, prompt_BL[:, place], token_B)
        else:
            is_given_B = torch.zeros_like(is_done_B)
        columns.append(token_B[:, None])
        place += 1
        is_full_B = place - lengths_B >= max_tokens
        is_done_B |= ~is_given_B & (torch.isin(token_B, ends_E) | is_full_B)
        if place >= capacity or bool(is_done_B.all()):
            break
        given_BT, read = token_B[:, None], model.extend
    return [
        _cut(row[length : length + max_tokens], ends)
        for row, length in zip(torch.cat(columns, 1).tolist(), lengths_B.tolist(), strict=True)
    ]


def _read_sources(model: Model, prompts: Sequence[Prompt], capacity: int) -> Any:
    """The state of as many rows, which has taken up what is read."""
    state = model.build_state(batch=len(prompts), capacity=capacity)
    if isinstance(model, CrossModel):
        sources = [prompt.source or () for prompt in prompts]
        source_BS, lengths_B = _lay(sources, model.device)
        is_even = bool((lengths_B == lengths_B[0]).all())
        model.read_source(source_BS, state, None if is_even else lengths_B)
    return state


def _lay(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """int64 [B, longest], 0 behind what is shorter; and the lengths, int64 [B]."""
    lengths = [len(row) for row in rows]
    laid = torch.zeros(len(rows), max(lengths), dtype=torch.int64)
    for number, row in enumerate(rows):
        laid[number, : len(row)] = torch.tensor(row)
    return laid.to(device), torch.tensor(lengths, device=device)


def _cut(ids: list[int], ends: frozenset[int]) -> tuple[list[int], bool]:
    end = next((place for place, token in enumerate(ids) if token in ends), None)
    return (ids, False) if end is None else (ids[:end], True)
