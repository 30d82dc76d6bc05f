"""Adapters of ours as PEFT names and shapes them on a model of transformers."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmscale.config.hf.architecture import Head
from lmscale.config.lora import LoraConfig
from lmscale.exchange.rules import Rule
from lmscale.model.lora import Adapted

PREFIX = "base_model.model."  # PEFT's, before every name of the model that it wraps
_TASKS: Mapping[Head, str] = {
    "tokens": "CAUSAL_LM",
    "pairs": "SEQ_2_SEQ_LM",
    "texts": "SEQ_CLS",
    "tags": "TOKEN_CLS",
    "answers": "QUESTION_ANS",
}
"""PEFT's name of what a class of theirs does; of others it has none."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Rows of one of their matrices, [first, last), and the part of ours that they are rows of."""

    part: int
    first: int
    last: int
    first_of_part: int


@dataclass(frozen=True, kw_only=True)
class TheirAdapter:
    """One adapter of theirs: of each part of ours that its matrix holds, in their order, A's rows
    and B's columns. Where there are several, B is block-diagonal.
    """

    matrix: str
    """Our name of the matrix that this is one of."""
    module: str
    """Theirs, in the model that PEFT wraps."""
    rows: int
    pieces: tuple[Piece, ...]

    def rank(self, own: int) -> int:
        """Its rank, where each of our adapters has the rank ``own``."""
        return own * len(self.pieces)


def plan_adapters(model: nn.Module, rules: Sequence[Rule]) -> tuple[TheirAdapter, ...]:
    """Their adapters of a model with adapters, which may lie on the device ``meta``. ``rules``:
    those of the model without.
    """
    by_name = {rule.name: rule for rule in rules}
    return tuple(
        adapter
        for name, module in model.named_modules()
        if isinstance(module, Adapted) and f"{name}.weight" in by_name
        for adapter in _plan_matrix(by_name[f"{name}.weight"], module.parts)
    )


def _plan_matrix(rule: Rule, parts: Sequence[int]) -> Iterator[TheirAdapter]:
    first = 0
    for name, rows in zip(rule.theirs, rule.rows, strict=True):
        pieces, start = [], 0
        for number, size in enumerate(parts):
            low, high = max(first, start), min(first + rows, start + size)
            if low < high:
                pieces.append(
                    Piece(
                        part=number, first=low - first, last=high - first, first_of_part=low - start
                    )
                )
            start += size
        module = name.removesuffix(".weight")
        yield TheirAdapter(matrix=rule.name, module=module, rows=rows, pieces=tuple(pieces))
        first += rows


def render_adapter(
    adapter: TheirAdapter, a: Tensor, b_of_parts: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Their two tensors by name, fp32 and contiguous, of our A of all parts and the B of each."""
    rank = len(a) // len(b_of_parts)
    theirs_a = torch.cat([a.split(rank)[piece.part] for piece in adapter.pieces])
    theirs_b = torch.zeros(adapter.rows, adapter.rank(rank))
    for column, piece in enumerate(adapter.pieces):
        b = b_of_parts[piece.part][piece.first_of_part :][: piece.last - piece.first]
        theirs_b[piece.first : piece.last, column * rank : (column + 1) * rank] = b
    name = f"{PREFIX}{adapter.module}"
    return {f"{name}.lora_A.weight": theirs_a.float(), f"{name}.lora_B.weight": theirs_b}


def render_adapter_config(
    lora: LoraConfig,
    adapters: Sequence[TheirAdapter],
    *,
    base: str,
    head: Head | None,
    matrices: Collection[str],
    is_transposed: bool,
    saved_modules: Sequence[str],
) -> dict[str, Any]:
    """adapter_config.json. ``base``: where the adapted model lies; ``matrices``: the modules of all
    of its matrices; ``is_transposed``: they are stored [in, out]; ``saved_modules``: those that the
    folder has whole; ``head`` None: PEFT knows no task of the class.
    """
    ranks = {adapter.module: adapter.rank(lora.rank) for adapter in adapters}
    by_rank = {rank: [m for m, own in ranks.items() if own == rank] for rank in {*ranks.values()}}
    usual = lora.rank if lora.rank in by_rank else max(by_rank, key=lambda r: len(by_rank[r]))
    others = {
        name: rank
        for rank, modules in by_rank.items()
        if rank != usual
        for name in _shorten(modules, matrices)
    }
    # PEFT gives no such pattern its own scale under rsLoRA: there alpha says all of it.
    is_stabilized = lora.rank_stabilized and not others
    root = math.sqrt(usual) if is_stabilized else usual
    return {
        "peft_type": "LORA",
        "task_type": _TASKS.get(head) if head else None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": usual,
        "lora_alpha": _whole(lora.scale * root),
        "use_rslora": is_stabilized,
        "lora_dropout": lora.dropout,
        "target_modules": _shorten(ranks, matrices),
        "rank_pattern": others,
        "alpha_pattern": {name: _whole(lora.scale * rank) for name, rank in others.items()},
        "modules_to_save": list(saved_modules) or None,
        "fan_in_fan_out": is_transposed,
        "bias": "none",
    }


def _shorten(modules: Collection[str], matrices: Collection[str]) -> list[str]:
    """The fewest last words of names that stand for these modules and for no other matrix; whole
    names where a last word would.
    """
    chosen, named = {*modules}, []
    for module in modules:
        last = module.rpartition(".")[2]
        same = {name for name in matrices if name.rpartition(".")[2] == last}
        named.append(last if same <= chosen else module)
    return list(dict.fromkeys(named))


def _whole(number: float) -> int | float:
    """As people write it: 16, not 16.0; what is a rounding away from it, too."""
    return round(number) if math.isclose(number, round(number), rel_tol=1e-12) else number
