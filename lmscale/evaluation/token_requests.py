# Shape letters: B requests, T time, W row (T + 1), N scored positions, C of one chunk, D model
# width, V ids in use.
"""How likely a text is behind another one: requests of ids, scored by a run's own model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmscale.config import RunConfig
from lmscale.model.attention import cap_softly
from lmscale.model.family import Model
from lmscale.objective.scores import Scoring, to_device
from lmscale.ranks.collectives import broadcast_object, broadcast_tensors, sum_float64
from lmscale.ranks.mesh import Axis
from lmscale.watch import heartbeat


class Answer(NamedTuple):
    """What a model says of a request's scored ids."""

    log_p: float  # their sum, in nats
    is_greedy: bool  # whether each of them is the likeliest one


@dataclass(frozen=True, kw_only=True)
class TokenRequests:
    """Rows of ids; of each row those from ``starts`` on are scored, given all before them."""

    ids: np.ndarray  # int32 [sum of lengths], row behind row
    lengths: np.ndarray  # int32 [requests]: at least 2
    starts: np.ndarray  # int32 [requests]: at least 1

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True, kw_only=True)
class ScoringPlan:
    """How requests are put through a model."""

    batch_tokens: int  # rows × columns of a forward pass, at most, but for a row that is longer
    num_ids: int  # rows of the output matrix that stand for something
    chunk_tokens: int  # whose logits exist at once
    shows_contexts: bool  # whether what stands before ``starts`` is seen as a whole


def plan_scoring(config: RunConfig, *, shows_contexts: bool) -> ScoringPlan:
    """As many tokens a forward pass as a training's micro-batch has."""
    return ScoringPlan(
        batch_tokens=config.batch.micro_windows * config.stream.sequence_length,
        num_ids=config.num_ids,
        chunk_tokens=getattr(config.objective, "chunk_tokens", 2048),
        shows_contexts=shows_contexts,
    )


def pack_requests(pairs: Sequence[tuple[Sequence[int], int]]) -> TokenRequests:
    """(ids of a row, where the scored ones begin) → the rows in one array."""
    rows = [np.asarray(ids, dtype=np.int32) for ids, _ in pairs]
    return TokenRequests(
        ids=np.concatenate(rows),
        lengths=np.array([len(row) for row in rows], dtype=np.int32),
        starts=np.array([start for _, start in pairs], dtype=np.int32),
    )


def share_requests(requests: TokenRequests | None, device: torch.device) -> TokenRequests:
    """Rank 0's requests, on every rank. ``device``: where the group's collectives take tensors."""
    own = None if requests is None else (requests.ids, requests.lengths, requests.starts)
    sizes: list[int] = broadcast_object(None if own is None else [len(array) for array in own])
    if own is None:
        own = tuple(np.empty(size, dtype=np.int32) for size in sizes)
    tensors = [torch.from_numpy(array).to(device) for array in own]
    broadcast_tensors(tensors)
    ids, lengths, starts = (tensor.cpu().numpy() for tensor in tensors)
    return TokenRequests(ids=ids, lengths=lengths, starts=starts)


def plan_batches(lengths: np.ndarray, *, batch_tokens: int) -> list[np.ndarray]:
    """Numbers of the requests of each forward pass: the longest first, so that rows of about one
    length stand together. The same for every number of ranks.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    batches, first = [], 0
    while first < len(order):
        columns = max(1, int(lengths[order[first]]) - 1)
        batches.append(order[first : first + max(1, batch_tokens // columns)])
        first += len(batches[-1])
    return batches


@torch.no_grad()
def score_requests(
    scoring: nn.Module,
    requests: TokenRequests,
    plan: ScoringPlan,
    *,
    data: Axis,
    device: torch.device,
    advance: Callable[[float], None] = lambda requests: None,
    between_batches: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """The answers to all requests, in their order, on every rank.

    Of the batches, data rank r takes those at r, r + data ranks, …; all ranks do equally many
    forward passes, because ZeRO-3 gathers parameters in each. ``scoring`` is the run's scoring
    module or the engine around it, and in evaluation mode; ``advance`` and ``between_batches`` as
    of ``evaluate_set``.
    """
    if not len(requests):
        return []
    batches = plan_batches(requests.lengths, batch_tokens=plan.batch_tokens)
    firsts = np.cumsum(requests.lengths) - requests.lengths
    values = np.zeros((2, len(requests)))  # each written by one rank, and 0 on all others
    with scoring_by(scoring, partial(score_rows, plan=plan)):
        for turn in range(0, len(batches), data.size):
            number = turn + data.rank
            chosen = batches[number if number < len(batches) else 0]
            log_p_B, is_greedy_B = scoring(
                **to_device(_fill_rows(requests, firsts, chosen), device)
            )
            if number < len(batches):
                values[0, chosen] = log_p_B.double().cpu().numpy()
                values[1, chosen] = is_greedy_B.cpu().numpy()
            heartbeat.tick()
            advance(sum(map(len, batches[turn : turn + data.size])))
            between_batches()
    summed = np.array(sum_float64(values.reshape(-1).tolist())).reshape(values.shape)
    return [Answer(float(log_p), bool(greedy)) for log_p, greedy in summed.T]


def _fill_rows(
    requests: TokenRequests, firsts: np.ndarray, chosen: np.ndarray
) -> dict[str, np.ndarray]:
    """Rows of a batch, filled up on the right, where nothing before them looks."""
    lengths = requests.lengths[chosen]
    rows = np.zeros((len(chosen), int(lengths.max())), dtype=np.int32)
    for row, first, length in zip(rows, firsts[chosen], lengths, strict=True):
        row[:length] = requests.ids[first : first + length]
    return {"tokens": rows, "lengths": lengths, "firsts": requests.starts[chosen]}


@contextmanager
def scoring_by(scoring: nn.Module, score: Callable[..., object]) -> Iterator[None]:
    """For the time of the block a run's scoring module, or that in the engine ``scoring``, scores
    its model by another function: what ZeRO-3 gathers is gathered in the same way.
    """
    inner = scoring if isinstance(scoring, Scoring) else scoring.module
    assert isinstance(inner, Scoring)
    usual, inner.score = inner.score, score  # type: ignore[assignment]
    try:
        yield
    finally:
        inner.score = usual


def score_rows(
    model: Model, *, tokens: Tensor, lengths: Tensor, firsts: Tensor, plan: ScoringPlan
) -> tuple[Tensor, Tensor]:
    """Of rows [B, W], the sum of log p from column ``firsts`` on to ``lengths``, f64 [B], and
    whether each of these ids is the likeliest, bool [B].
    """
    ids_BW = tokens.long()
    columns_T = torch.arange(1, ids_BW.shape[1], device=ids_BW.device)
    is_scored_BT = (columns_T >= firsts[:, None]) & (columns_T < lengths[:, None])
    begins_BT = torch.zeros_like(is_scored_BT)
    begins_BT[:, 0] = True
    if plan.shows_contexts:
        layout = model.lay_out_prefixes(begins_BT, columns_T - 1 < firsts[:, None])
    else:
        layout = model.lay_out(begins_BT, mask_documents=False)
    hidden_BTD = model(ids_BW[:, :-1], layout)
    labels_N = ids_BW[:, 1:][is_scored_BT]
    pick = partial(pick_log_p, labels_N=labels_N, plan=plan)
    log_p_N, is_best_N = model.head(hidden_BTD[is_scored_BT], pick)
    # Spread over the rows and added there: the order of the sum depends on nothing but the row.
    log_p_BT = torch.zeros_like(is_scored_BT, dtype=torch.float64)
    log_p_BT[is_scored_BT] = log_p_N.double()
    is_greedy_BT = ~is_scored_BT
    is_greedy_BT[is_scored_BT] = is_best_N
    return log_p_BT.sum(1), is_greedy_BT.all(1)


def pick_log_p(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None = None,
    *,
    labels_N: Tensor,
    plan: ScoringPlan,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """The labels' log p, f32 [N], and whether no id is likelier, bool [N].

    Of the embedding's padding rows, which stand for nothing, none takes part: an exported model has
    none.
    """
    weight_VD = weight_VD[: plan.num_ids]
    bias_V = None if bias_V is None else bias_V[: plan.num_ids]
    log_p_N = torch.empty(len(labels_N), dtype=torch.float32, device=hidden_ND.device)
    is_best_N = torch.empty(len(labels_N), dtype=torch.bool, device=hidden_ND.device)
    for first in range(0, len(labels_N), plan.chunk_tokens):
        chunk = slice(first, first + plan.chunk_tokens)
        logits_CV = cap_softly(F.linear(hidden_ND[chunk], weight_VD, bias_V), softcap)
        log_p_CV = torch.log_softmax(logits_CV, dim=-1, dtype=torch.float32)
        log_p_N[chunk] = log_p_CV.gather(1, labels_N[chunk, None])[:, 0]
        is_best_N[chunk] = log_p_CV.argmax(-1) == labels_N[chunk]
    return log_p_N, is_best_N
