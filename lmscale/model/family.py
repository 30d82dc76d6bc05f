# Shape letters: B batch, T time, D model width, V vocabulary.
"""What every family's model is to the rest of lmscale: a few methods, and a head to score with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmscale.model.initialize import Declared


class Head(nn.Module):
    """Owns the output matrix, [V, D], and hands it to whoever scores the hidden states.

    ZeRO-3 gathers a module's parameters around its forward and backward: a loss that uses the
    matrix has to run inside this forward, not beside it.
    """

    def __init__(self, weight: nn.Parameter, *, std: float) -> None:
        super().__init__()
        self.weight = weight
        self.std = std

    def forward(self, hidden: Tensor, score: Callable[[Tensor, Tensor], Any] = F.linear) -> Any:
        """``score(hidden, weight)``; by default the logits."""
        return score(hidden, self.weight)

    def declare(self) -> Mapping[str, Declared]:
        return {"weight": Declared(kind="head", std=self.std)}


class Model(nn.Module, ABC):
    """Ids → hidden states. ``init_weights`` or a checkpoint gives the parameters values.

    An objective calls ``lay_out``, the model, and ``head`` with its way of scoring; a text
    generator ``build_state``, ``extend`` and ``head``.
    """

    head: Head

    def __init__(self, *, vocab_size: int, max_positions: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.max_positions = max_positions

    @abstractmethod
    def lay_out(self, begins_BT: Tensor, *, mask_documents: bool) -> Any:
        """What ``forward`` needs beside the ids, made once a micro-batch; the family's own value.

        ``begins_BT`` is bool, True where a document begins. With ``mask_documents`` no document
        may depend on another of its row.
        """

    @abstractmethod
    def forward(self, ids_BT: Tensor, layout: Any) -> Tensor:
        """Hidden states [B, T, D] of int64 ids; ``self.head`` turns them into logits or a loss."""

    def blocks_to_compile(self) -> Iterable[nn.Module]:
        """The repeated parts, each free of data-dependent Python: for ``engine.compile``."""
        return ()

    def build_state(self, *, batch: int, capacity: int) -> Any:
        """What generation keeps of at most ``capacity`` tokens a row; nothing is seen yet.

        A causal family has this method and ``extend``; nobody calls those of another.
        """
        raise NotImplementedError(f"{type(self).__name__} generates no text")

    def extend(self, ids_BT: Tensor, state: Any) -> Tensor:
        """Hidden states [B, T, D] of new tokens behind those in ``state``, which takes them up."""
        raise NotImplementedError(f"{type(self).__name__} generates no text")

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device
