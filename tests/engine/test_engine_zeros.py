"""What is 0 when training begins stays 0, whatever the optimizer, the stage and the number of
ranks, and over a checkpoint; all else is trained.
"""

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from forked_ranks import one_group, run_starts
from plain_save import save_checkpoint
from toy_engine import Setup, build, content_of, take_step

from lmscale.checkpoint.find import load_manifest
from lmscale.checkpoint.fragments import owned_fragments
from lmscale.checkpoint.load import load_checkpoint
from lmscale.checkpoint.manifest import MASTER
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.config.training import ZEROS
from lmscale.errors import CheckpointError
from lmscale.ranks.collectives import gather_json

pytestmark = pytest.mark.ranks
STEPS, STOP_AFTER = 3, 2
KINDS = ("adamw", "adam", "adafactor", "lion", "muon", "schedule_free", "sgd")
EMPTY = "blocks.2.down.weight"  # a matrix that is 0 as a whole begins so, and was not pruned
# The stage and ranks that a checkpoint of another stage goes on at.
CUTS = {"muon": (0, 3), "adamw": (3, 1), "schedule_free": (2, 0)}


def setups() -> list[Setup]:
    found = [Setup(world_size=2, stage=s, kind=kind) for s, kind in product((0, 1, 2, 3), KINDS)]
    for stage, precision in ((0, "bf16"), (1, "bf16"), (2, "bf16"), (3, "bf16")):
        found.append(Setup(world_size=2, stage=stage, kind="muon", precision=precision))
    found += [Setup(world_size=2, stage=s, kind="muon", offload="optimizer") for s in (1, 3)]
    return sorted(found, key=lambda setup: setup.stage)  # 3 last: it changes torch for good


def prune(name: str, value: torch.Tensor) -> torch.Tensor:
    """Every third element of matrices is 0; of biases, and of one whole matrix, all are."""
    if value.dim() == 1 or name == EMPTY:
        return torch.zeros_like(value) if "bias" in name or name == EMPTY else value
    flat = value.detach().clone().view(-1)
    flat[::3] = 0
    return flat.view(value.shape)


def held(engine) -> dict[str, list[list[float]]]:
    """Parameter → [offset, weights, marks] of each run of elements, of all ranks."""
    own = {}
    for piece in owned_fragments(engine):
        if MASTER in piece.tensors:
            kinds = (piece.tensors[MASTER].tolist(), piece.tensors[ZEROS].int().tolist())
            own.setdefault(piece.parameter, []).append([piece.offset, *kinds])
    whole = {}
    for rank in gather_json(own):
        for name, rows in rank.items():
            whole.setdefault(name, []).extend(rows)
    return {name: sorted(rows) for name, rows in whole.items()}


def start(folder: Path, number: int) -> None:
    saw = {}
    with one_group() as ranks:
        for setup in setups() if number == 0 else ():
            engine = build(setup, seed=1, prune=prune)
            for step in range(1, STEPS + 1):
                take_step(engine, step)
            saw[setup.name] = held(engine)
        for kind, stages in CUTS.items():
            place = LocalPlace(folder / kind)
            setup = Setup(world_size=ranks.world_size, stage=stages[number], kind=kind)
            engine = build(setup, seed=1 + number, prune=prune)
            if number == 0:
                for step in range(1, STOP_AFTER + 1):
                    take_step(engine, step)
                saved = save_checkpoint(place, engine, step=STOP_AFTER, identity={}, ranks=ranks)
                assert saved
            else:
                load_checkpoint(place, load_manifest(place, STOP_AFTER), engine)
            saw[f"{kind} content {number}"] = content_of(engine)
            if number == 1:
                take_step(engine, STEPS)
                saw[f"{kind} cut"] = held(engine)
        if number == 1:
            saw["refused"] = load_from_one_that_keeps_none(folder, ranks)
    if ranks.is_first:
        (folder / f"saw-{number}.json").write_text(json.dumps(saw))


def load_from_one_that_keeps_none(folder: Path, ranks) -> str:
    place = LocalPlace(folder / "without")
    without = build(Setup(world_size=1, stage=1), seed=1)
    save_checkpoint(place, without, step=1, identity={}, ranks=ranks)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(
            place, load_manifest(place, 1), build(Setup(world_size=1, stage=1), seed=1, prune=prune)
        )
    return str(caught.value)


@pytest.fixture(scope="module")
def saw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zeros")
    run_starts(Path(__file__), folder, (2, 1))
    read = [json.loads((folder / f"saw-{number}.json").read_text()) for number in range(2)]
    return {**read[0], **read[1]}


def join(rows) -> tuple[torch.Tensor, torch.Tensor]:
    """All weights of a parameter, f32, and which of them are held, bool; 1-D."""
    assert [row[0] for row in rows] == [sum(len(r[1]) for r in rows[:i]) for i in range(len(rows))]
    weights, marks = (torch.tensor([x for row in rows for x in row[i]]) for i in (1, 2))
    return weights, marks.bool()


@pytest.mark.parametrize("name", [s.name for s in setups()] + [f"{kind} cut" for kind in CUTS])
def test_zeros_stay_and_all_else_is_trained(saw, name):
    shapes = 0
    for parameter, rows in saw[name].items():
        weights, marks = join(rows)
        is_matrix = "norm" not in parameter and not parameter.endswith("bias")
        expected = torch.zeros_like(marks)
        if is_matrix and parameter != EMPTY:
            expected[::3] = True
            shapes += 1
        assert torch.equal(marks, expected), parameter
        assert torch.equal(weights[marks], torch.zeros(int(marks.sum())))
        assert not torch.signbit(weights[marks]).any()  # +0, as an export is to have it
        others = weights[~marks]
        # What began as 0 is trained as well; Lion's steps, all of one size, may lead back to it.
        assert (others != 0).float().mean() > 0.5, parameter
    assert shapes == 4  # embedding, and the matrices of two blocks that are trained, but one


@pytest.mark.parametrize("kind", CUTS)
def test_a_checkpoint_says_at_another_stage_and_world_size_which_zeros_stay(saw, kind):
    assert saw[f"{kind} content 0"] == saw[f"{kind} content 1"]
    weights = {p: join(rows)[0] for p, rows in saw[f"{kind} cut"].items()}
    whole = {p: join(rows)[0] for p, rows in saw[f"{kind}-fp32-zero2-ranks2-accumulate2"].items()}
    for parameter, expected in whole.items():
        # fp32's rounding in sums of another order, as in test_engine_equal_weights.py.
        assert float((weights[parameter] - expected).abs().max()) < 6e-6


def test_a_checkpoint_that_does_not_say_which_zeros_stay_is_refused(saw):
    assert "has no zeros of" in saw["refused"] and "a folder of its own" in saw["refused"]
