"""What a model costs, computed from its settings without building it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Flops:
    """FLOPs per token of a forward and a backward pass, without recomputation: the M of MFU.

    A multiplication and an addition are two FLOPs; the backward pass costs twice the forward.
    Masked documents shorten attention further; neither convention counts that.
    """

    dense: float
    """6N + what every token spends on looking at the whole window (PaLM, app. B)."""
    causal: float
    """The same with a look at the half of the window that a causal mask leaves."""

    @property
    def forward(self) -> float:
        """A forward pass alone, by the dense convention."""
        return self.dense / 3


@dataclass(frozen=True, kw_only=True)
class Account:
    """What a model of given settings and sizes costs."""

    parameters: Mapping[str, int]
    """Part of the model → its number of parameters; a tied matrix counts once."""
    computing: int
    """Parameters that a token is multiplied with, the N of ``Flops``: a look-up multiplies nothing.

    With tied embeddings this is nanoGPT's ``get_num_params()``.
    """
    flops: Flops
    """Of a token in a window of ``Sizes.sequence_length``."""
    state_per_token: int
    """Numbers that generation keeps of every token so far, such as keys and values."""

    @property
    def total(self) -> int:
        return sum(self.parameters.values())

    def weight_bytes(self, element_bytes: int) -> int:
        """Bytes of the weights in a precision of so many bytes."""
        return self.total * element_bytes

    def state_bytes(self, element_bytes: int, *, tokens: int) -> int:
        """Bytes that generation keeps of a sequence of so many tokens."""
        return self.state_per_token * tokens * element_bytes
