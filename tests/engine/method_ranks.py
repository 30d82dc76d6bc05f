"""What real ranks do for test_engine_methods.py: train by every optimizer at every stage."""

import json
from itertools import product
from pathlib import Path

from forked_ranks import one_group
from toy_engine import Setup, build, take_step

from lmscale.checkpoint.fragments import owned_fragments
from lmscale.checkpoint.manifest import MASTER
from lmscale.ranks.collectives import gather_json

STEPS = 3


def setups_for(world_size: int) -> list[Setup]:
    found = [
        Setup(world_size=world_size, stage=stage, kind=kind)
        for stage, kind in product((0, 1, 2, 3), ("adamw", "muon", "sgd"))
    ]
    if world_size == 2:
        found += [
            Setup(world_size=2, stage=stage, kind=kind, offload="optimizer")
            for stage, kind in product((1, 2, 3), ("muon", "sgd"))
        ]
        found.append(Setup(world_size=2, stage=3, kind="muon", offload="both"))
        found += [Setup(world_size=2, stage=s, kind="muon", precision="bf16") for s in (0, 1, 2, 3)]
    # ZeRO 3 last: DeepSpeed 0.19.8 replaces torch.nn.functional.linear there, for the process.
    return sorted(found, key=lambda setup: setup.stage)


def start(folder: Path, number: int):
    """Setup's name → (weights after three steps, flattened; method by parameter)."""
    saw = {}
    with one_group() as ranks:
        for setup in setups_for(ranks.world_size):
            engine = build(setup, seed=1)
            for step in range(1, STEPS + 1):
                take_step(engine, step)
            saw[setup.name] = (whole_weights(engine), dict(engine.methods))
    if ranks.is_first:
        (folder / f"methods-{number}.json").write_text(json.dumps(saw))


def whole_weights(engine):
    own = [
        (fragment.parameter, fragment.offset, fragment.tensors[MASTER].tolist())
        for fragment in owned_fragments(engine)
        if MASTER in fragment.tensors
    ]
    weights = {}
    for name, offset, values in sorted(row for of_rank in gather_json(own) for row in of_rank):
        assert len(weights.setdefault(name, [])) == offset
        weights[name] += values
    return weights
