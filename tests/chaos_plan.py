"""What chaos.py does to a run: drawn from a seed, with what must become of it. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from lmscale.runs.faults import SAVE_MOMENTS

ENOUGH = 400  # steps of a start, which a fault ends before; the real end is set after the last one
RETRIES = 3  # of a write and of a read: fewer failures than that are harmless
RANK0_MOMENTS = ("save.commit", "save.committed")
STEP_MOMENTS = ("step.begin", "step.forward", "step.gradient", "step.update")
# Tight, so that a hang costs seconds; only where one is planned, because a machine may be slow.
TIGHT_WATCH = {
    "watch.heartbeat_seconds": 0.25,
    "watch.report_seconds": 2.0,
    "watch.limit_seconds": 4.0,
    "watch.start_limit_seconds": 90.0,
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """A run of its own, and what must be true of it in the end."""

    name: str
    share: float  # of all faults
    is_fixed: bool = False  # one topology: the weights must be bit-equal to the undisturbed run's
    harmless: tuple[str, ...] = ("delay", "fail-fsync", "fail-read")
    deadly: Mapping[str, int] = field(default_factory=dict)  # kind → weight
    settings: Mapping[str, object] = field(default_factory=dict)
    is_rewound: bool = False  # samples are jumped: audited, but not compared with a calm run
    every_steps: tuple[int, ...] = (1, 2, 3, 5)  # between two saves

    @property
    def is_exact(self) -> bool:
        """Whether the faults may not change the weights."""
        return not {"nan", "flip-gradient"} & set(self.harmless)


DEADLY = {
    "kill": 26,
    "kill all": 16,
    "kill from outside": 20,
    "stop": 8,
    "hang": 4,
    "full-disk": 7,
    "fail-fsync": 7,
    "drop-shard": 6,
    "fail-read": 6,
}
GUARD = {
    "guard.spike_window": 0,
    "guard.compare_every_steps": 1,
    "guard.max_nonfinite_steps": 100,
}
FAMILIES = (
    Family(name="one topology", share=0.35, is_fixed=True, deadly=DEADLY),
    Family(name="any topology", share=0.35, deadly=DEADLY),
    Family(
        name="guarded",
        share=0.2,
        harmless=("nan", "flip-gradient", "delay", "fail-fsync"),
        deadly={**DEADLY, "flip-weight": 20},
        settings=GUARD,
    ),
    Family(
        name="rewound",
        share=0.1,
        harmless=("nan", "delay"),
        deadly={"divergence": 30, "kill": 15, "kill all": 10, "kill from outside": 10},
        settings={**GUARD, "guard.max_nonfinite_steps": 2, "guard.jump_steps": 2}
        | {"guard.max_rewinds": 100_000},
        is_rewound=True,
        every_steps=(1, 2),  # a rewind wants a checkpoint from before the first bad step
    ),
)

# What is done to the disk after a start has ended, and its weight.
DAMAGES = {"none": 60, "cut": 9, "flip": 9, "manifest": 6, "torn": 8, "ledger": 8}


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start, what hits it, and how it must end."""

    number: int
    num_ranks: int
    overrides: Mapping[str, object]
    deadly: str
    faults: tuple[str, ...]  # of LMSCALE_FAULTS; the deadly one last, if it is one of them
    codes: tuple[int, ...]  # one of which the start must end with
    delay: float  # seconds until the kill from outside
    victims: tuple[int, ...]  # its ranks
    steps: int  # until the request to stop
    is_cut: bool  # a checkpoint that it commits may be damaged
    damage: str

    @property
    def is_deadly_injected(self) -> bool:
        """Whether the deadly fault must be found in faults.jsonl."""
        return self.deadly not in ("kill from outside", "stop")

    @property
    def max_lost_steps(self) -> int:
        """How far behind the last step its newest checkpoint may be."""
        every = int(str(self.overrides["checkpoint.every_steps"]))
        return 2 * every if self.overrides["checkpoint.asynchronous"] else every


def plan_attempt(
    family: Family, seed: int, number: int, *, start: int, is_to_rewind: bool = False
) -> Attempt:
    """Attempt ``number`` of a family's run, which will go on after step ``start``.

    ``is_to_rewind``: whatever is drawn, it diverges where it can.
    """
    draw = random.Random(f"{seed}/{family.name}/{number}")
    num_ranks = 2 if family.is_fixed else draw.choice((1, 2, 3, 4))
    every = draw.choice(family.every_steps)
    stage = 1 if family.is_fixed else draw.choice((0, 1, 2, 3))
    overrides: dict[str, object] = {
        "train.steps": start + ENOUGH,
        "engine.zero_stage": stage,
        "batch.micro_windows": 3 if family.is_fixed else draw.choice((1, 2, 3, 12)),
        "stream.workers": draw.choices((0, 1, 2), (70, 15, 15))[0],
        "checkpoint.every_steps": every,
        "checkpoint.asynchronous": draw.random() < 0.7,
        "checkpoint.when_busy": "wait",
        "checkpoint.retries": RETRIES,
        **family.settings,
    }
    deadly = draw.choices(list(family.deadly), list(family.deadly.values()))[0]
    harmless_kinds = family.harmless
    if deadly == "flip-weight" and num_ranks == 1:
        deadly = "kill"  # one rank has nobody to differ from
    if family.is_rewound and start == 0:  # nothing is there to rewind to
        deadly, harmless_kinds = "kill", ("delay",)
    elif is_to_rewind:
        deadly = "divergence"
    if deadly == "flip-weight" and stage == 3:
        overrides["engine.zero_stage"] = draw.choice((0, 1, 2))  # there nothing is held twice
    at_step = start + draw.randint(2, 9)
    last, codes = _plan_deadly(deadly, draw, num_ranks, at_step, every, overrides)
    kinds = draw.choices(harmless_kinds, k=draw.choice((0, 1, 2, 3, 4)))
    # Failures of several faults would add up to more than the retries.
    kinds = [k for i, k in enumerate(kinds) if not k.startswith("fail") or k not in kinds[:i]]
    harmless = [_plan_harmless(k, draw, num_ranks, start, at_step, every) for k in kinds]
    if deadly == "divergence":
        harmless += [f"nan:rank=0,step={step}" for step in (at_step, at_step + 1)]
    # Not the run's first one: a run whose checkpoints are all damaged does not start from scratch.
    is_cut = start > 0 and deadly in ("kill", "kill all") and draw.random() < 0.15
    if is_cut:
        at = draw.choice(("save.written", "save.committed"))
        rank = 0 if at in RANK0_MOMENTS else draw.randrange(num_ranks)
        harmless.append(f"cut:rank={rank},at={at}")
    faults = [*harmless, *([last] if last else [])]
    everyone = tuple(range(num_ranks))
    return Attempt(
        number=number,
        num_ranks=num_ranks,
        overrides=overrides,
        deadly=deadly,
        faults=tuple(f"{fault},id={number}.{i}" for i, fault in enumerate(faults)),
        codes=codes,
        delay=draw.choice((draw.uniform(0, 0.5), draw.uniform(0.3, 2.5))),
        victims=draw.choice((everyone, (draw.choice(everyone),))),
        steps=draw.randint(1, 6),
        is_cut=is_cut,
        damage=draw.choices(list(DAMAGES), list(DAMAGES.values()))[0],
    )


def _plan_deadly(
    deadly: str,
    draw: random.Random,
    num_ranks: int,
    at_step: int,
    every: int,
    overrides: dict[str, object],
) -> tuple[str, tuple[int, ...]]:
    """The fault that ends the start, if it is one of LMSCALE_FAULTS, and the start's exit code."""
    rank = draw.randrange(num_ranks)
    save = -(-at_step // every) * every
    if deadly in ("kill", "kill all", "hang"):
        moments = STEP_MOMENTS + SAVE_MOMENTS
        # As a rank starts, where the watchdog is patient with a hang.
        at = draw.choice(moments if deadly == "hang" else (*moments, "read.shard"))
        if at == "read.shard":
            return f"{deadly.split()[0]}:rank={rank},at={at}", (1,)
        step = save if at in SAVE_MOMENTS else at_step
        who = f"rank={0 if at in RANK0_MOMENTS else rank},"
        if deadly == "kill all" and at not in RANK0_MOMENTS:
            who = ""
        if deadly == "hang":
            overrides |= TIGHT_WATCH
        return f"{deadly.split()[0]}:{who}at={at},step={step}", (1,)
    if deadly == "full-disk":
        at = draw.choice(("save.write", "save.commit"))
        return f"full-disk:rank={0 if at in RANK0_MOMENTS else rank},at={at},times=99", (75,)
    if deadly == "fail-fsync":
        return f"fail-fsync:rank={rank},times=99", (1,)
    if deadly == "drop-shard":
        return f"drop-shard:rank={rank}", (2,)
    if deadly == "fail-read":
        overrides["stream.cache.retries"] = 1
        return f"fail-read:rank={rank},times=99", (1,)
    if deadly == "flip-weight":
        return f"flip-weight:rank={rank},step={at_step}", (75,)
    if deadly == "divergence":  # the guard rewinds; then comes a kill, in what is done again
        return f"kill:rank={rank},step={at_step + 3}", (1,)
    return "", (75,) if deadly == "stop" else (1,)


def _plan_harmless(
    kind: str, draw: random.Random, num_ranks: int, start: int, at_step: int, every: int
) -> str:
    """A fault that the run survives."""
    rank, step = draw.randrange(num_ranks), draw.randint(start + 1, at_step)
    if kind == "delay":
        at = draw.choice((*STEP_MOMENTS, *SAVE_MOMENTS, "read.shard"))
        rank = 0 if at in RANK0_MOMENTS else rank
        return f"delay:rank={rank},at={at},seconds={draw.uniform(0.02, 0.4):.2f}"
    if kind == "fail-fsync":
        return f"fail-fsync:rank={rank},times={draw.randint(1, RETRIES - 1)}"
    if kind == "fail-read":
        return f"fail-read:rank={rank},times={draw.randint(1, 2)}"
    return f"{kind}:rank={rank},step={step}"
