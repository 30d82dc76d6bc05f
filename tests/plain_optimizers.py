"""The toy trained by torch alone, with every kind of optimizer: what the engine is compared with.

Torch's own, Adafactor's of matrices that are split; of schedule-free AdamW its authors'; of Muon
and Lion the papers' formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from schedulefree import AdamWScheduleFree
from torch import nn
from toy_engine import (
    GLOBAL_WINDOWS,
    LEARNING_RATE,
    LENGTH,
    UP_PARTS,
    WIDTH,
    Toy,
    draw_windows,
    kind_of,
)

from lmscale.config.training import OptimizerConfig

STEPS = 3
CONFIG = OptimizerConfig(momentum=0.9)


def polar_by_formula(matrix):
    """Jordan et al. 2024: X ← aX + b(XXᵀ)X + c(XXᵀ)²X, five times; in float64."""
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x - 4.7750 * (a @ x) + 2.0315 * (a @ a @ x)
    return x


class MuonByFormula(torch.optim.Optimizer):
    """Each part of ``up`` by itself; ``is_whole``: all matrices as they are stored."""

    def __init__(self, parameters, *, is_whole=False, **settings):
        super().__init__(parameters, settings)
        self.is_whole = is_whole

    @torch.no_grad()
    def step(self):  # pyright: ignore
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("m", torch.zeros_like(p, dtype=torch.float64))
                momentum.mul_(0.9).add_(0.1 * p.grad)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                is_up = p.shape == (sum(UP_PARTS), WIDTH)
                rows = UP_PARTS if is_up and not self.is_whole else (len(p),)
                for part, ahead in zip(
                    p.split(rows), (0.9 * momentum + 0.1 * p.grad).split(rows), strict=True
                ):
                    scale = group["lr"] * 0.2 * math.sqrt(max(part.shape))
                    part.sub_((scale * polar_by_formula(ahead)).float())


class LionByFormula(torch.optim.Optimizer):
    """Chen et al. 2023, algorithm 2: by sign(β1 m + (1 - β1) g); then m ← β2 m + (1 - β2) g."""

    @torch.no_grad()
    def step(self):  # pyright: ignore
        near, far = CONFIG.betas
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].get("m", torch.zeros_like(p))
                direction = (near * m + (1 - near) * p.grad).sign()
                p.sub_(group["lr"] * (direction + group["weight_decay"] * p))
                self.state[p]["m"] = far * m + (1 - far) * p.grad


class AdafactorOfParts(torch.optim.Adafactor):
    """torch's own, given each part of ``up``, weight and bias, as a parameter: a view."""

    def __init__(self, groups, **settings):
        self.wholes = [p for group in groups for p in group["params"]]
        self.parts = {p: [*map(nn.Parameter, self.split(p.detach()))] for p in self.wholes}
        super().__init__(
            [
                {**g, "params": [part for p in g["params"] for part in self.parts[p]]}
                for g in groups
            ],
            **settings,
        )

    @staticmethod
    def split(value):
        return value.split(UP_PARTS if len(value) == sum(UP_PARTS) else len(value))

    def step(self):  # pyright: ignore
        for p in self.wholes:
            for part, gradient in zip(self.parts[p], self.split(p.grad), strict=True):
                part.grad = gradient
        super().step()

    def zero_grad(self, set_to_none=True):
        for p in self.wholes:
            p.grad = None


def train_plainly(
    kind,
    muon: Callable[..., torch.optim.Optimizer] = MuonByFormula,
    adafactor: type[torch.optim.Optimizer] = AdafactorOfParts,
):
    """Weights after three steps of torch alone, in one process and one batch."""
    toy = Toy(1)
    trained = {name: p for name, p in toy.named_parameters() if p.requires_grad}
    is_matrix = {name: kind == "muon" and kind_of(name) == "linear" for name in trained}
    decayed = {name: kind_of(name) in CONFIG.decay for name in trained}

    def groups(wanted):
        rows = [(name, p) for name, p in trained.items() if is_matrix[name] == wanted]
        return [
            {"params": [p for name, p in rows if decayed[name] == is_decayed], "weight_decay": wd}
            for is_decayed, wd in ((True, CONFIG.weight_decay), (False, 0.0))
            if any(decayed[name] == is_decayed for name, _ in rows)
        ]

    optimizers: list[torch.optim.Optimizer]
    if kind == "sgd":
        optimizers = [torch.optim.SGD(groups(False), lr=LEARNING_RATE, momentum=0.9)]
    elif kind == "adafactor":
        settings = {"lr": LEARNING_RATE, "eps": (1e-30, 1e-3), "foreach": False}
        optimizers = [adafactor(groups(False), **settings)]
    elif kind == "schedule_free":
        reference = AdamWScheduleFree(
            groups(False), lr=LEARNING_RATE, betas=CONFIG.betas, eps=CONFIG.eps, foreach=False
        )
        reference.train()
        optimizers = [reference]
    elif kind == "lion":
        optimizers = [LionByFormula(groups(False), {"lr": LEARNING_RATE})]
    else:
        adam = {"betas": CONFIG.betas, "eps": CONFIG.eps, "foreach": False}
        build_adam = torch.optim.Adam if kind == "adam" else torch.optim.AdamW
        optimizers = [build_adam(groups(False), lr=LEARNING_RATE, **adam)]
    if kind == "muon":
        optimizers.append(muon(groups(True), lr=LEARNING_RATE))
    for step in range(1, STEPS + 1):
        (toy(draw_windows(step)) / (GLOBAL_WINDOWS * LENGTH)).backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), CONFIG.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return {name: p.detach().reshape(-1) for name, p in trained.items()}


def torchs_muon(groups, *, lr):
    return torch.optim.Muon(groups, lr=lr, momentum=0.9, adjust_lr_fn="match_rms_adamw")


PLAIN = {
    "adamw": lambda: train_plainly("adamw"),
    "adam": lambda: train_plainly("adam"),
    "lion": lambda: train_plainly("lion"),
    "muon": lambda: train_plainly("muon"),
    "adafactor": lambda: train_plainly("adafactor"),
    "schedule_free": lambda: train_plainly("schedule_free"),
    "sgd": lambda: train_plainly("sgd"),
    "whole muon": lambda: train_plainly("muon", partial(MuonByFormula, is_whole=True)),
    "whole adafactor": lambda: train_plainly("adafactor", adafactor=torch.optim.Adafactor),
    "torch's muon": lambda: train_plainly("muon", torchs_muon),
}
