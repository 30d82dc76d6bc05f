"""What real ranks do for test_checkpoint_elastic.py: save at every topology, load into every other.

Loaders begin with other weights, with steps behind them and, the first time, with half a step
accumulated.
"""

import json
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

from forked_ranks import one_group
from plain_save import save_checkpoint
from toy_engine import Setup, accumulate_garbage, build, content_of, take_step

from lmscale.checkpoint.find import load_manifest
from lmscale.checkpoint.fragments import owned_fragments
from lmscale.checkpoint.load import FragmentReader, load_checkpoint
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.errors import CheckpointError
from lmscale.ranks.collectives import gather_json

SAVED_STEP, LAST_STEP = 2, 4


def train_and_save(folder, setup, ranks):
    engine = build(setup, seed=1)
    for step in range(1, SAVED_STEP + 1):
        take_step(engine, step)
    save(folder / setup.name, engine, ranks)
    content = content_of(engine)
    figures = go_on(engine, LAST_STEP)
    return {"saved": content, "figures": figures, "end": content_of(engine)}


def save(folder, engine, ranks):
    save_checkpoint(LocalPlace(folder), engine, step=SAVED_STEP, identity={}, ranks=ranks)


def load(folder, engine, **changes):
    place = LocalPlace(folder)
    load_checkpoint(place, replace(load_manifest(place, SAVED_STEP), **changes), engine)


def go_on(engine, last_step):
    return [take_step(engine, step) for step in range(SAVED_STEP + 1, last_step + 1)]


def load_and_train(folder, engine, setup, *, is_last):
    """One step, which the weights decide; two, and so by the optimizer's states as well, of the
    same topology and of the last source.
    """
    is_own = folder.name == setup.name
    with counting_reads() as counts:
        load(folder, engine)
    owned = sum(f.elements * len(f.tensors) for f in owned_fragments(engine))
    reads = gather_json([sum(counts), owned])
    seen = {"saved": content_of(engine), "reads": reads, "figures": []}
    seen["figures"] = go_on(engine, LAST_STEP if is_own or is_last else SAVED_STEP + 1)
    # Where the topology is the same, the end is too, bit by bit.
    return seen | ({"end": content_of(engine)} if is_own else {})


@contextmanager
def counting_reads():
    """The number of elements of every read of a file."""
    counts: list[int] = []
    read_into = FragmentReader.read_into

    def counting(self, target, *place):
        counts.append(target.numel())
        read_into(self, target, *place)

    with mock.patch.object(FragmentReader, "read_into", counting):
        yield counts


def refuse(folder, ranks):
    """What is said to loads that must not happen, on every rank."""
    said = {}
    adamw, sgd = Setup(world_size=2, stage=1), Setup(world_size=2, stage=1, kind="sgd")

    def try_to_load(name, engine, source, **changes):
        try:
            load(folder / source, engine, **changes)
            said[name] = gather_json("loaded")
        except CheckpointError as error:
            said[name] = gather_json(list(error.problems))

    engine = build(sgd, seed=2)
    try_to_load("another optimizer", engine, adamw.name)
    with_factors = build(Setup(world_size=2, stage=1, kind="adafactor"), seed=2)
    try_to_load("another optimizer, with factors", with_factors, adamw.name)
    without = build(sgd, seed=2, momentum=0)
    take_step(without, 1)
    save(folder / "no momentum", without, ranks)
    try_to_load("no momentum", engine, "no momentum")
    try_to_load("momentum that is not used", without, sgd.name)
    engine = build(adamw, seed=2)
    try_to_load("another hash", engine, adamw.name, weights="0" * 16)
    try_to_load("no hash", engine, adamw.name, weights="")
    thawed = build(adamw, seed=2, thawed=True)
    try_to_load("another frozen block", thawed, adamw.name)
    return said


def start(folder: Path, number: int):
    """Do the jobs of one start: a list of [setup, sources]; no sources: train and save."""
    jobs = json.loads((folder / f"jobs-{number}.json").read_text())
    saw = {}
    with one_group() as ranks:
        # ZeRO 3 last: DeepSpeed 0.19.8 replaces torch.nn.functional.linear there, for the process.
        for row, sources in sorted(jobs, key=lambda job: job[0]["stage"]):
            setup = Setup(**row)
            if not sources:
                saw[setup.name] = train_and_save(folder, setup, ranks)
                continue
            engine = build(setup, seed=2)
            take_step(engine, 50)
            accumulate_garbage(engine)
            for source in sources:
                saw[f"{source} to {setup.name}"] = load_and_train(
                    folder / source, engine, setup, is_last=source == sources[-1]
                )
        if ranks.world_size == 2 and jobs[0][1]:
            saw["refused"] = refuse(folder, ranks)
    if ranks.is_first:
        (folder / f"saw-{number}.json").write_text(json.dumps(saw))


def write_jobs(folder: Path, number: int, jobs: list[tuple[Setup, list[str]]]):
    rows = [[asdict(setup), sources] for setup, sources in jobs]
    (folder / f"jobs-{number}.json").write_text(json.dumps(rows))
