"""The section ``model.lora``: adapters of low rank beside matrices that stay as they begin."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase

from pydantic import Field, NonNegativeInt

from lmscale.config.base import Section
from lmscale.errors import ConfigError

MAX_RANK = 2**16


class LoraConfig(Section):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685)."""

    rank: NonNegativeInt = Field(default=0, le=MAX_RANK)
    """Of the adapters: each of the chosen matrices W gives (W + scale · B A) x, and A and B alone
    are trained, with layers for a task that begin anew. Needs ``run.init_from``, in all but tests.
    0: no adapters, all is trained.
    """
    alpha: float | None = Field(default=None, gt=0, le=1e6)
    """The scale is alpha / rank; default: alpha = rank, so that it is 1."""
    rank_stabilized: bool = False
    """The scale is alpha / √rank instead (Kalajdzievski 2023, rsLoRA)."""
    dropout: float = Field(default=0.0, ge=0, le=0.99)
    """Of what A reads."""
    targets: tuple[str, ...] = Field(default=(), max_length=1000, strict=False)
    """Which matrices have adapters, by their names, such as ["qkv", "out"], or by patterns of whole
    ones, such as ["blocks.1?.feed_forward.*"]; default: all but those of layers for a task.
    Queries, keys and values, or gate and up, have each their own, though stored together.
    """

    def find_problems(self) -> Iterator[str]:
        others = [name for name in type(self).model_fields if name != "rank"]
        given = [n for n in others if getattr(self, n) != type(self).model_fields[n].default]
        if self.rank == 0 and given:
            yield f"rank = 0 gives no adapters, but {given[0]} is given; set rank, such as to 8"

    @property
    def scale(self) -> float:
        """What B A is multiplied by; 0 where there is none."""
        if self.rank == 0:
            return 0.0
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


def choose_matrices(names: Collection[str], lora: LoraConfig) -> set[str]:
    """Those of a model's matrices, by the names of their modules, that ``lora`` gives adapters.

    Raises ``ConfigError`` with every problem.
    """
    if not names:
        raise ConfigError(
            f"model.lora.rank = {lora.rank}, but the model has no matrix that is made of lmscale's "
            "Linear, which alone can have adapters. Leave model.lora out."
        )
    chosen = set() if lora.targets else {*names}
    problems = []
    for target in lora.targets:
        named = {name for name in names if _is_named(name, target)}
        chosen |= named
        if not named:
            short = dict.fromkeys(name.rpartition(".")[2] for name in names)
            problems.append(
                f"model.lora.targets: no matrix is named {target!r}, nor does it match one's whole "
                f"name, such as {next(iter(names))}. There are: {', '.join(short)}."
            )
    if problems:
        raise ConfigError(problems)
    return chosen


def _is_named(name: str, target: str) -> bool:
    return name.rpartition(".")[2] == target or fnmatchcase(name, target)
