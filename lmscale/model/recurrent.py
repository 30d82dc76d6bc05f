# Shape letters: B batch, T time, N = B·T tokens of a micro-batch, D width, P pieces of rows.
"""Recurrent language models: an embedding, layers of LSTM, GRU or plain cells, and a head.

A document begins with a state of zeros. torch's cells cannot forget inside of a row, so rows are
cut into pieces where documents begin, and the pieces run as one packed sequence.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lmscale.config.model import RecurrentConfig, Sizes
from lmscale.model.family import Family, Head, Model
from lmscale.model.initialize import Declared, Embedding
from lmscale.plan.account import GATES, account_recurrent

logger = logging.getLogger(__name__)
CUDNN_WITH_BF16 = 91300  # as cuDNN counts: 9.13.0

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


@dataclass(frozen=True, kw_only=True)
class PieceLayout:
    """The order in which tokens are read: all pieces' first ones, their second ones, and so on."""

    tokens: Tensor
    """int64 [N]: flat places in [B, T], on the model's device."""
    alive: Tensor
    """int64 [longest piece], on the CPU: how many pieces have a token of that number."""


@dataclass
class RecurrentState:
    """What generation keeps: the cells' own state, [layers, B, D] or for LSTMs two; None: zeros."""

    value: Any = None


def lay_out_pieces(begins_BT: Tensor) -> PieceLayout:
    """``begins_BT`` is bool, True where a piece begins, which a row's first token always does."""
    # On the host: cuDNN wants the number of pieces there.
    first_P = begins_BT.cpu().flatten().nonzero()[:, 0]
    length_P = torch.diff(first_P, append=torch.tensor([begins_BT.numel()]))
    order_P = length_P.argsort(descending=True, stable=True)  # those alive are the first ones
    first_P, length_P = first_P[order_P], length_P[order_P]
    time_T = torch.arange(int(length_P[0]))
    alive_T = (length_P > time_T[:, None]).sum(1)
    time_N = time_T.repeat_interleave(alive_T)
    piece_N = torch.arange(len(time_N)) - (alive_T.cumsum(0) - alive_T)[time_N]
    tokens_N = first_P[piece_N] + time_N
    return PieceLayout(tokens=tokens_N.to(begins_BT.device), alive=alive_T)


class Recurrent(Model):
    """Dropout is between layers, behind the embedding and before the head (Zaremba et al. 2014)."""

    def __init__(self, config: RecurrentConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self.config = config
        std = config.resolved_init_std
        self.embedding = Embedding(sizes.vocab_size, config.width, std=std)
        self.dropout = nn.Dropout(config.dropout)
        self.cells = CELLS[config.cell](
            config.width,
            config.width,
            num_layers=config.layers,
            dropout=config.dropout if config.layers > 1 else 0.0,
        )
        self.head = Head(
            self.embedding.weight
            if config.tied_embeddings
            else nn.Parameter(torch.empty(sizes.vocab_size, config.width)),
            std=std,
        )

    def lay_out(
        self, begins_BT: Tensor, *, mask_documents: bool, lengths_B: Tensor | None = None
    ) -> PieceLayout:
        if not mask_documents:
            begins_BT = torch.zeros_like(begins_BT)
            begins_BT[:, 0] = True
        return lay_out_pieces(begins_BT)

    def forward(self, ids_BT: Tensor, layout: PieceLayout) -> Tensor:
        x_ND = self.dropout(self.embedding(ids_BT.flatten()[layout.tokens]))
        if x_ND.is_cuda and x_ND.dtype == torch.bfloat16:
            warn_of_old_cudnn(torch.backends.cudnn.version())
        read, _ = self.cells(PackedSequence(x_ND, layout.alive))
        hidden_ND = torch.empty_like(read.data)
        hidden_ND[layout.tokens] = self.dropout(read.data)
        return hidden_ND.view(*ids_BT.shape, -1)

    def build_state(self, *, batch: int, capacity: int) -> RecurrentState:
        return RecurrentState()

    def extend(self, ids_BT: Tensor, state: RecurrentState) -> Tensor:
        hidden_TBD, state.value = self.cells(self.embedding(ids_BT.T), state.value)
        return hidden_TBD.transpose(0, 1)

    def declare(self) -> Mapping[str, Declared]:
        parts = (self.config.width,) * GATES[self.config.cell]
        weight = Declared(kind="linear", std=self.config.resolved_init_std, parts=parts)
        bias = Declared(kind="bias", parts=parts)
        return {
            f"cells.{name}_{source}_l{layer}": declared
            for layer in range(self.config.layers)
            for source in ("ih", "hh")
            for name, declared in (("weight", weight), ("bias", bias))
        }


@functools.cache  # once a process
def warn_of_old_cudnn(version: int | None) -> None:
    """Where bf16 is asked for on CUDA; ``version`` None: torch has no cuDNN."""
    if version is None or version < CUDNN_WITH_BF16:
        logger.warning(
            "cuDNN (%s) has no recurrent cells in bf16 before 9.13 (91300): torch's own take their "
            "place, step by step, which is much slower. Take a torch with a newer cuDNN, or "
            "engine.precision: fp16 or fp32.",
            version,
        )


RECURRENT = Family(build=Recurrent, account=account_recurrent)
