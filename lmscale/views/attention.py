# Shape letters: B batch, H heads, K key/value heads, T queries, S keys, V head width.
"""What a model's attention looks at: the weights of every layer, without a second model.

The model runs as it is, in fp32 on the CPU; while it does, each of torch's fused attentions is
computed by its definition, softmax(q kᵀ / √V + bias) (Vaswani et al. 2017, equation 1), and the
softmax is kept. A family of an installed package is seen as well, if it calls
``torch.nn.functional.scaled_dot_product_attention`` or takes a softmax of all its scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lmscale.errors import ConfigError
from lmscale.evaluation.generate import Generation
from lmscale.evaluation.prompts import Prompt
from lmscale.evaluation.sampling import Sampling
from lmscale.model.family import CrossModel, Model
from lmscale.tokenizer.base import Tokenizer
from lmscale.views.looks import CROSS, OWN, READ
from lmscale.views.sides import Sides, Speller, add_written

MOST_BYTES = 4 * 2**30  # of the weights of all layers


@dataclass(frozen=True, kw_only=True)
class LayerAttention:
    """The weights of one layer."""

    part: str
    """``own``: of the text over itself; of a model that reads one sequence and writes another also
    ``read``, of what it reads over itself, and ``cross``, of what it writes over what it reads.
    """
    layer: int
    """From 0, of its part."""
    module: str
    """Its name in the model."""
    shares_HTS: np.ndarray
    """f32: how much each head's query looks at each key; every row sums to 1."""


def find_attention(model: Model, sides: Sides) -> list[LayerAttention]:
    """The weights of all layers, in their order, for one text.

    Raises ``ConfigError`` for a model without attention, and for a text whose weights would take
    more than ``MOST_BYTES``.
    """
    model = model.float().eval()
    with torch.no_grad(), recording(model) as seen:
        run_model(model, sides)
    if not seen:
        raise ConfigError(
            f"The run's model is of the family {model.family}, which has no attention to look at."
        )
    layers: list[LayerAttention] = []
    counts: dict[str, int] = {}
    for module, shares_BHTS in seen:
        part = _part_of(module) if isinstance(model, CrossModel) else OWN
        layer = counts[part] = counts.get(part, -1) + 1
        shares = shares_BHTS[0].float().numpy()
        layers.append(LayerAttention(part=part, layer=layer, module=module, shares_HTS=shares))
    return layers


def _part_of(module: str) -> str:
    if module.partition(".")[0] == "encoder":
        return READ
    return CROSS if module.rpartition(".")[2] == "cross" else OWN


def run_model(model: Model, sides: Sides) -> Tensor:
    """Hidden states [1, T, D] of ``sides.own``."""
    ids_1T = torch.tensor([sides.own.ids], device=model.device)
    begins_1T = torch.zeros_like(ids_1T, dtype=torch.bool)
    begins_1T[:, 0] = True
    if isinstance(model, CrossModel):
        assert sides.read is not None
        read_1S = torch.tensor([sides.read.ids], device=model.device)
        begins_1S = torch.zeros_like(read_1S, dtype=torch.bool)
        begins_1S[:, 0] = True
        source = model.lay_out(begins_1S, mask_documents=False)
        return model(ids_1T, model.lay_out_target(begins_1T, read_1S, source))
    if sides.sees_whole:
        layout = model.lay_out_prefixes(begins_1T, torch.ones_like(begins_1T))
    else:
        layout = model.lay_out(begins_1T, mask_documents=False)
    return model(ids_1T, layout)


def write_answer(
    model: Model, tokenizer: Tokenizer, sides: Sides, speller: Speller, max_tokens: int
) -> Sides:
    """The sides with what the model itself writes, the likeliest token each time."""
    assert sides.read is not None
    prompt = Prompt(ids=sides.own.ids, source=sides.read.ids, ends=sides.ends)
    written = Generation(model, tokenizer, prompt, Sampling(is_greedy=True), max_tokens=max_tokens)
    return add_written(sides, speller, list(written))


@contextmanager
def recording(model: nn.Module) -> Iterator[list[tuple[str, Tensor]]]:
    """While it is open, a list that grows by (module's name, weights [B, H, T, S]) with every
    attention that the model computes.
    """
    open_modules: list[str] = []
    seen: list[tuple[str, Tensor]] = []

    def enter(name: str) -> Callable[..., None]:
        return lambda module, inputs: open_modules.append(name)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        open_modules.pop()

    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(enter(name)))
        hooks.append(module.register_forward_hook(leave))
    try:
        with _Recorder(lambda shares: seen.append((open_modules[-1], shares))):
            yield seen
    finally:
        for hook in hooks:
            hook.remove()


class _Recorder(TorchFunctionMode):
    """Hands on the weights of what is called inside of it."""

    def __init__(self, keep: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._keep, self._num_bytes = keep, 0

    def _reserve(self, shape_BHTS: Sequence[int]) -> None:
        """Raises ``ConfigError`` where a layer's weights would be too many with those before."""
        self._num_bytes += 4 * math.prod(shape_BHTS)
        if self._num_bytes > MOST_BYTES:
            raise ConfigError(
                f"The weights of all layers and heads take more than {MOST_BYTES / 2**30:.0f} GiB "
                f"for {shape_BHTS[2]:,} tokens. Shorten the text."
            )

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        result = func(*args, **kwargs)
        if func in (Tensor.softmax, torch.softmax, F.softmax) and result.ndim == 4:
            self._reserve(result.shape)
            self._keep(result)
        return result

    def _attend(
        self,
        q_BHTV: Tensor,
        k_BKSV: Tensor,
        v_BKSV: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa:
            group = q_BHTV.shape[1] // k_BKSV.shape[1]
            k_BKSV, v_BKSV = (x.repeat_interleave(group, dim=1) for x in (k_BKSV, v_BKSV))
        self._reserve((*q_BHTV.shape[:3], k_BKSV.shape[2]))
        divisor = q_BHTV.shape[-1] ** 0.5 if scale is None else 1 / scale
        scores_BHTS = q_BHTV @ k_BKSV.mT / divisor
        if is_causal:
            attn_mask = torch.ones_like(scores_BHTS[0, 0], dtype=torch.bool).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores_BHTS = scores_BHTS.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            scores_BHTS = scores_BHTS + attn_mask
        shares_BHTS = scores_BHTS.softmax(-1)
        self._keep(shares_BHTS)
        return shares_BHTS @ v_BKSV
