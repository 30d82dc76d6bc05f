"""A checkpoint loads into every ZeRO stage and world size, and training goes on as if not stopped.

The toy has tied weights, a frozen block and buffers (toy_engine.py); elastic_ranks.py is what the
ranks do. Every loader is an engine that has trained, so a rewind is tested at the same time.
"""

import json
from itertools import product
from pathlib import Path

import pytest
import torch
from elastic_ranks import LAST_STEP, SAVED_STEP, write_jobs
from forked_ranks import run_starts
from toy_engine import Setup, Toy

from lmscale.checkpoint.find import load_manifest
from lmscale.checkpoint.load import load_weights, open_weights
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.ranks.fingerprint import add_fingerprints, fingerprint

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

WORLD_SIZES = (1, 2, 4)
STAGES = (0, 1, 2, 3)
TABLE = [Setup(world_size=w, stage=s) for w, s in product(WORLD_SIZES, STAGES)]
OFFLOADED = [Setup(world_size=2, stage=s, offload="optimizer") for s in (1, 2, 3)]
OFFLOADED += [Setup(world_size=2, stage=3, offload="both")]
BF16 = [Setup(world_size=2, stage=s, precision="bf16") for s in STAGES]
# At ZeRO 1 another optimizer of DeepSpeed's than without the offload.
BF16 += [Setup(world_size=2, stage=1, precision="bf16", offload="optimizer")]
MUON = [Setup(world_size=2, stage=s, kind="muon") for s in (0, 1, 3)]
MUON += [Setup(world_size=4, stage=s, kind="muon") for s in (1, 3)]
MUON += [Setup(world_size=2, stage=2, kind="muon", offload="optimizer")]
SGD = [Setup(world_size=size, stage=stage, kind="sgd") for size, stage in ((2, 1), (1, 0), (4, 3))]
OTHER_BATCHES = [
    Setup(world_size=2, stage=2, accumulation=1),
    Setup(world_size=2, stage=3, accumulation=4),
]


def pairs_of_table():
    """Of the four choices (two world sizes, two stages) any three decide the fourth, so that every
    three of them meet in all their values; and each setup meets itself.
    """
    sizes = len(WORLD_SIZES)
    return [
        (
            Setup(world_size=WORLD_SIZES[number], stage=a),
            Setup(world_size=WORLD_SIZES[(number + b - a) % sizes], stage=b),
        )
        for number, a, b in product(range(sizes), STAGES, STAGES)
    ]


def pairs_around(setups):
    """Each to itself and to the next: all are a source and a target twice."""
    return [(a, setups[(i + far) % len(setups)]) for i, a in enumerate(setups) for far in range(2)]


FP32 = [
    *pairs_of_table(),
    *pairs_around(OFFLOADED),
    *product((Setup(world_size=4, stage=0),), OFFLOADED),
    *zip(OFFLOADED, 2 * (Setup(world_size=1, stage=2), Setup(world_size=4, stage=3)), strict=True),
    *pairs_around(MUON),
    *pairs_around(SGD),
    *product((Setup(world_size=2, stage=2), Setup(world_size=4, stage=1)), OTHER_BATCHES),
]
LOW = [
    *pairs_around(BF16),
    *product((Setup(world_size=4, stage=3),), BF16),  # fp32 → bf16
    *product(BF16, (Setup(world_size=1, stage=0),)),  # bf16 → fp32
]
# fp32's rounding in sums of another order, after two steps; the losses are about 6. Measured 8e-7.
TOLERANCE = 1e-5
# bf16 has 8 bits.
BF16_RELATIVE = 2**-9


@pytest.fixture(scope="module")
def saw(tmp_path_factory):
    """Setup's name → its uninterrupted run; "A to B" → what B did with A's checkpoint."""
    folder = tmp_path_factory.mktemp("elastic")
    sources: dict[Setup, list[str]] = {}
    for source, target in (*FP32, *LOW):
        sources.setdefault(target, []).append(source.name)
    savers = {source for source, _ in (*FP32, *LOW)}
    for number, (is_saving, size) in enumerate(product((True, False), WORLD_SIZES)):
        jobs = [(s, []) for s in savers] if is_saving else list(sources.items())
        write_jobs(folder, number, [job for job in jobs if job[0].world_size == size])
    run_starts(Path(__file__).parent / "elastic_ranks.py", folder, (*WORLD_SIZES, *WORLD_SIZES))
    found = {"folder": folder}
    for number in range(2 * len(WORLD_SIZES)):
        found |= json.loads((folder / f"saw-{number}.json").read_text())
    return found


def name_pair(pair):
    return f"{pair[0].name}-to-{pair[1].name}"


def test_any_three_of_two_world_sizes_and_two_stages_meet_in_every_combination():
    rows = {(a.world_size, a.stage, b.world_size, b.stage) for a, b in pairs_of_table()}
    for left_out in range(4):
        of_three = {row[:left_out] + row[left_out + 1 :] for row in rows}
        values = (WORLD_SIZES, STAGES, WORLD_SIZES, STAGES)
        assert of_three == set(product(*values[:left_out], *values[left_out + 1 :]))
    assert set(zip(TABLE, TABLE, strict=True)) <= set(pairs_of_table())


@pytest.mark.parametrize("pair", FP32, ids=name_pair)
def test_training_goes_on_as_if_it_had_not_been_interrupted(saw, pair):
    source, target = pair
    alone, resumed = saw[source.name], saw[f"{source.name} to {target.name}"]
    assert 1 <= len(resumed["figures"]) <= LAST_STEP - SAVED_STEP
    # Bit by bit: masters, states, frozen parameters, buffers.
    assert resumed["saved"] == alone["saved"]
    assert set(alone["saved"]) == {"master", "frozen", "buffer", *states_of(source)}
    if source == target:
        assert resumed == resumed | alone
    for step, expected in zip(resumed["figures"], alone["figures"], strict=False):
        assert step == pytest.approx(expected, rel=0, abs=TOLERANCE)  # [loss, gradient norm]


def states_of(setup):
    return ("exp_avg", "exp_avg_sq") if setup.kind == "adamw" else _MOMENTUM[setup.kind]


_MOMENTUM = {"sgd": ("momentum_buffer",), "muon": ("momentum_buffer", "exp_avg", "exp_avg_sq")}


@pytest.mark.parametrize("pair", LOW, ids=name_pair)
def test_low_precision_resumes_from_the_same_masters(saw, pair):
    source, target = pair
    alone, resumed = saw[source.name], saw[f"{source.name} to {target.name}"]
    kinds = ("master", "exp_avg", "exp_avg_sq")
    assert [resumed["saved"][k] for k in kinds] == [alone["saved"][k] for k in kinds]
    if source.precision == target.precision:  # else what is frozen is rounded
        assert resumed["saved"] == alone["saved"]
    if source == target:
        assert resumed == resumed | alone
    for (loss, _), (expected, _) in zip(resumed["figures"], alone["figures"], strict=False):
        assert loss == pytest.approx(expected, rel=BF16_RELATIVE)


def test_a_step_moves_the_loss_far_beyond_the_tolerances(saw):
    for setup in (*TABLE, *BF16, *MUON, *SGD):
        (first, _), (second, _) = saw[setup.name]["figures"]
        assert abs(first - second) > 0.01 * first


@pytest.mark.parametrize("pair", [p for p in FP32 if p[0] in TABLE], ids=name_pair)
def test_every_element_is_read_by_one_rank_and_no_rank_reads_more_than_its_part(saw, pair):
    reads = saw[f"{pair[0].name} to {pair[1].name}"]["reads"]
    assert len(reads) == pair[1].world_size
    replicas = replicated_elements() * (pair[1].world_size > 1)
    assert all(read == owned for read, owned in reads)
    total = sum(read for read, _ in reads)
    assert max(read for read, _ in reads) <= total / len(reads) * 1.3 + replicas


def replicated_elements():
    toy = Toy(1)
    tensors = (*(p for p in toy.parameters() if not p.requires_grad), *toy.buffers())
    return sum(tensor.numel() for tensor in tensors)


@pytest.mark.parametrize("setup", [*TABLE, *OFFLOADED, *MUON, *SGD, *BF16], ids=lambda s: s.name)
def test_whole_tensors_are_read_without_ranks_one_at_a_time(saw, setup):
    place = LocalPlace(saw["folder"] / setup.name)
    manifest = load_manifest(place, SAVED_STEP)
    toy = Toy(0)
    expected = {name: tuple(tensor.shape) for name, tensor in toy.state_dict().items()}
    del expected["head.weight"]  # tied
    masters, frozen = [], []
    shapes = {}
    with open_weights(place, manifest) as read:
        for name in (*manifest.parameters, *manifest.replicated):
            tensor = read(name)
            shapes[name] = tuple(tensor.shape)
            row = manifest.replicated.get(name)
            kind = "master" if row is None else row.kind
            if kind == "master":
                assert tensor.dtype == torch.float32
                masters.append(fingerprint(tensor, name=name))
            elif kind == "frozen":
                frozen.append(fingerprint(tensor, name=name))
    assert shapes == expected
    assert f"{add_fingerprints(masters):016x}" == manifest.weights
    assert add_fingerprints(masters) == saw[setup.name]["saved"]["master"]
    assert add_fingerprints(frozen) == saw[setup.name]["saved"]["frozen"]
    assert manifest.optimizer.kind == setup.kind
    weights = load_weights(place)
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == expected


def test_what_is_never_trained_is_saved_unchanged(saw):
    weights = load_weights(LocalPlace(saw["folder"] / TABLE[-1].name))
    begin = Toy(1).state_dict()
    kept = {name for name in weights if torch.equal(weights[name], begin[name])}
    assert kept == {name for name in weights if name.startswith("blocks.1.")} | {
        "temperature",
        "shift",
    }


REFUSALS = {
    "another optimizer": "holds the states of engine.optimizer.kind = adamw, but this run is "
    "configured for sgd. Set it back to adamw",
    "another optimizer, with factors": "but this run is configured for adafactor. Set it back to "
    "adamw",
    "no momentum": "has no momentum_buffer of embedding.weight, only master. Restore the section "
    "engine.optimizer",
    "another hash": "but those that were saved had 0000000000000000, although every file is as",
    "another frozen block": "blocks.1.norm.weight is a frozen parameter (7,) in the checkpoint and "
    "(7,) in this model",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_does_not_fit_is_refused_on_all_ranks_with_what_to_do(saw, name):
    of_ranks = saw["refused"][name]
    assert of_ranks[0] == of_ranks[1]
    assert REFUSALS[name] in "\n".join(of_ranks[0])


@pytest.mark.parametrize("name", ["no hash", "momentum that is not used"])
def test_what_is_not_needed_may_be_missing_or_left_over(saw, name):
    assert saw["refused"][name] == ["loaded", "loaded"]
