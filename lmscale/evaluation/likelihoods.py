# Shape letters: B rows, T time, D model width.
"""How likely the words are that two sentences share: of a model that writes from left to right, or
of one that fills in what is hidden.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from lmscale.config.kinds import Ability
from lmscale.config.masked import MaskedConfig
from lmscale.evaluation.bias import Filled, Scored, count_shared
from lmscale.evaluation.token_requests import (
    pack_requests,
    pick_log_p,
    plan_scoring,
    score_requests,
)
from lmscale.evaluation.written import batch_tokens
from lmscale.objective.objective import build_scoring
from lmscale.ranks.collectives import sum_float64
from lmscale.ranks.mesh import Axis
from lmscale.watch import heartbeat

if TYPE_CHECKING:
    from lmscale.evaluation.run import LoadedRun


def score_filled(
    loaded: LoadedRun,
    filled: Sequence[Filled],
    *,
    data: Axis,
    advance: Callable[[float], None] = lambda rows: None,
    between_batches: Callable[[], None] = lambda: None,
) -> list[Scored | None]:
    """Of each the log p of the tokens that both its sentences share; None where there are none, or
    where the model does not see as much. The same tokens are scored in both, so that what the
    groups' own words cost falls out.
    """
    is_masked = isinstance(loaded.config.objective, MaskedConfig)
    tokenizer, config = loaded.tokenizer, loaded.config
    front = tokenizer.eos_id if loaded.bos_id is None else loaded.bos_id
    begin = [] if is_masked and loaded.bos_id is None else [front]
    end = [tokenizer.eos_id] if is_masked else []
    rows: list[tuple[list[int], list[int]]] = []  # ids, and the places that are scored
    shared: list[int] = []
    for each in filled:
        both = [
            [*begin, *tokenizer.encode(text).tolist(), *end] for text in (each.said, each.other)
        ]
        before, behind = count_shared(*both)
        fits = max(map(len, both)) <= config.max_positions
        for ids in both:
            first = range(len(begin), before) if is_masked else range(0)
            last = range(max(len(begin), len(ids) - behind), len(ids) - len(end))
            rows.append((ids, [*first, *last] if fits else []))
        shared.append(len(rows[-1][1]) if behind > len(end) else 0)
    kept = [place for place, count in enumerate(shared) if count]
    wanted = [rows[2 * place + side] for place in kept for side in (0, 1)]
    score = _score_hidden if is_masked else _score_next
    log_p = score(loaded, wanted, data=data, advance=advance, between_batches=between_batches)
    scored: list[Scored | None] = [None] * len(filled)
    for number, place in enumerate(kept):
        scored[place] = Scored(log_p[2 * number], log_p[2 * number + 1], shared[place])
    return scored


def _score_next(
    loaded: LoadedRun,
    rows: Sequence[tuple[list[int], list[int]]],
    *,
    data: Axis,
    advance: Callable[[float], None],
    between_batches: Callable[[], None],
) -> list[float]:
    if not rows:
        return []
    config = loaded.config
    answers = score_requests(
        build_scoring(loaded.model, config).eval(),
        pack_requests([(ids, places[0]) for ids, places in rows]),
        plan_scoring(config, shows_contexts=Ability.PREFIX in config.objective.needs),
        data=data,
        device=loaded.model.device,
        advance=advance,
        between_batches=between_batches,
    )
    return [answer.log_p for answer in answers]


@torch.no_grad()
def _score_hidden(
    loaded: LoadedRun,
    rows: Sequence[tuple[list[int], list[int]]],
    *,
    data: Axis,
    advance: Callable[[float], None],
    between_batches: Callable[[], None],
) -> list[float]:
    """A row of a batch for each place, which is hidden there; rows of one length stand together.
    The ranks deal out the batches.
    """
    model, config = loaded.model, loaded.config
    mask_id = config.objective_ids["mask"]
    plan = plan_scoring(config, shows_contexts=False)
    asked = [(number, place) for number, (_, places) in enumerate(rows) for place in places]
    batches = _plan_batches([len(rows[number][0]) for number, _ in asked], batch_tokens(config))
    log_p = np.zeros(len(asked))  # each written by one rank, and 0 on all others
    for turn in range(0, len(batches), data.size):
        if turn + data.rank < len(batches):
            chosen = batches[turn + data.rank]
            ids_BT = torch.tensor([rows[asked[n][0]][0] for n in chosen], device=model.device)
            places_B = torch.tensor([asked[n][1] for n in chosen], device=model.device)
            rows_B = torch.arange(len(chosen), device=model.device)
            labels_B = ids_BT[rows_B, places_B]
            ids_BT[rows_B, places_B] = mask_id
            begins_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
            begins_BT[:, 0] = True
            hidden_BTD = model(ids_BT, model.lay_out(begins_BT, mask_documents=False))
            pick = partial(pick_log_p, labels_N=labels_B, plan=plan)
            log_p_B, _ = model.head(hidden_BTD[rows_B, places_B], pick)
            log_p[chosen] = log_p_B.double().cpu().numpy()
        heartbeat.tick()
        advance(sum(map(len, batches[turn : turn + data.size])) * len(rows) / len(asked))
        between_batches()
    owners = np.array([number for number, _ in asked], dtype=np.int64)
    values = np.array(sum_float64(log_p.tolist()))
    return np.bincount(owners, weights=values, minlength=len(rows)).tolist()


def _plan_batches(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Numbers of rows of one length each, and of no more tokens, but for a row that is longer."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    batches = []
    for length, group in itertools.groupby(order, key=lengths.__getitem__):
        numbers, at_once = list(group), max(1, most // length)
        batches += [numbers[n : n + at_once] for n in range(0, len(numbers), at_once)]
    return batches
