"""What two real ranks do for the tests of checkpoints, in one start; each part fills ``saw``."""

import json
import resource
from contextlib import ExitStack, closing
from pathlib import Path

import torch
from forked_ranks import one_group
from handmade_checkpoints import save
from plain_save import save_checkpoint
from rank_cases import Case, opened, train

from lmscale.checkpoint.find import find_sound
from lmscale.checkpoint.find_weights import find_weights
from lmscale.checkpoint.fragments import held_fragments, owned_fragments
from lmscale.checkpoint.layout import step_folder
from lmscale.checkpoint.load import load_weights
from lmscale.checkpoint.manifest import MASTER
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.errors import LmscaleError
from lmscale.ranks.collectives import barrier, gather_json
from lmscale.train.progress import ProgressCounter
from lmscale.train.saver import Saver

DATA = "data.txt"  # names the folder of the tiny data
# In fp32 the other stages are test_checkpoint_elastic.py's, of a toy.
STAGES = ("fp32-zero0", "bf16-zero0", "bf16-zero1", "bf16-zero2", "bf16-zero3")


def start(folder, number):
    with one_group() as ranks:
        saw = {name: part(folder, ranks) for name, part in PARTS.items()}
    if ranks.is_first:
        (folder / "saw.json").write_text(json.dumps(saw))


def case(folder, name, **overrides):
    steps = {"train.steps": 6, "checkpoint.every_steps": 2, "checkpoint.keep_last": 3}
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    data = (folder / DATA).read_text()
    return Case(name=name, data=data, folder=str(folder / name), overrides=steps | dotted)


def specimen(folder, ranks):
    """Checkpoints of steps 2, 4 and 6, by two ranks."""
    with opened(case(folder, "specimen"), ranks) as run:
        train(run)


def masters(folder, ranks):
    """Whether the weights read back as whole tensors are the engine's fp32 masters, bit by bit."""
    equal = {}
    for name in STAGES:
        precision, stage = name.split("-zero")
        settings = {"engine__zero_stage": int(stage), "engine__precision": precision}
        with opened(case(folder, name, **settings), ranks) as run:
            train(run, stop_after=2)
            weights = load_weights(LocalPlace(run.folder / "checkpoints"))
            held = list(held_fragments(run.engine))
            same = [
                torch.equal(
                    fragment.tensors[MASTER],
                    weights[fragment.parameter].view(-1)[
                        fragment.offset : fragment.offset + fragment.elements
                    ],
                )
                for fragment in held
            ]
            owned = sum(fragment.elements for fragment in owned_fragments(run.engine))
            total = sum(weight.numel() for weight in weights.values())
            equal[name] = gather_json([all(same), len(same), owned, total])
    return equal


def leftover(folder, ranks):
    """The files of a checkpoint saved where a killed save, of more ranks, had left its own."""
    this = case(folder, "leftover")
    torn = step_folder(Path(this.folder) / "checkpoints", 2)
    if ranks.is_first:
        torn.mkdir(parents=True)
        for rank in (0, 7):
            (torn / f"rank-{rank:05d}.safetensors").write_bytes(b"half")
    barrier()
    with opened(this, ranks) as run:
        resumed_from = run.start.step
        train(run, stop_after=2)
    return {
        "resumed from": resumed_from,
        "files": sorted(path.name for path in torn.iterdir()),
        "resumable": step_of(find_sound(run.place, ranks)),
    }


def not_finite(folder, ranks):
    """A checkpoint with one NaN, on the last rank, and what retention made of it."""
    this = case(folder, "not-finite", train__steps=4, checkpoint__keep_last=1)
    with opened(this, ranks) as run:
        train(run, stop_after=2)
        counter = ProgressCounter(run.start)
        if ranks.rank == 1:
            next(iter(owned_fragments(run.engine))).tensors[MASTER][0] = float("nan")
        counter.now = type(run.start)(step=3, n=36)
        with closing(Saver(run=run, counter=counter, ledger=None)) as saver:
            saver.save()
        found = {"steps": run.place.list_steps()}
        found["resumable"] = step_of(find_sound(run.place, ranks))
    with opened(this, ranks) as run:  # goes on from step 2 and undoes step 3
        found["resumed from"] = run.start.step
        train(run)
    found["steps at the end"] = run.place.list_steps()
    return found


def full_disk(folder, ranks):
    """One rank cannot write; then it can again."""
    this = case(folder, "full-disk")
    with opened(this, ranks) as run:
        train(run, stop_after=2)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if ranks.rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        first = try_to_save(run, ranks, step=3)
        found = {
            "problems": gather_json(first),
            "resumable": step_of(find_sound(run.place, ranks)),
        }
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        found["again"] = gather_json(try_to_save(run, ranks, step=3))
        found["resumable then"] = step_of(find_sound(run.place, ranks))
    return found


def try_to_save(run, ranks, *, step):
    try:
        save_checkpoint(run.place, run.engine, step=step, identity=run.identity, ranks=ranks)
    except LmscaleError as error:
        return [type(error).__name__, *error.problems]
    return []


def walk_back(folder, ranks):
    """What both ranks resume from when only the file that the second one checks is damaged."""
    root = folder / "specimen" / "checkpoints"
    damaged = root / "step-000000006" / "rank-00001.safetensors"
    whole = damaged.read_bytes()
    barrier()
    if ranks.is_first:
        damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    found = gather_json(step_of(find_sound(LocalPlace(root), ranks)))
    barrier()
    if ranks.is_first:
        damaged.write_bytes(whole)
    return found


def two_views(folder, ranks):
    """What every rank says when each finds another whole checkpoint of the step it is to read."""
    place = LocalPlace(folder / f"seen-by-{ranks.rank}")
    save(place, 6, identity={"run": f"{ranks.rank}"})
    try:
        find_weights(place, 6, ranks=ranks)
    except LmscaleError as error:
        return gather_json(error.problems)
    return gather_json([])


def another_model(folder, ranks):
    """What every rank says to a run whose folder holds checkpoints of another model."""
    other = case(folder, "specimen", model__layers=3, model__activation="gelu")
    try:
        with ExitStack() as stack:
            stack.enter_context(opened(other, ranks))
    except LmscaleError as error:
        return gather_json([type(error).__name__, *error.problems])
    return gather_json([])


def step_of(manifest):
    return None if manifest is None else manifest.step


PARTS = {
    "specimen": specimen,
    "walk back": walk_back,
    "two views": two_views,
    "another model": another_model,
    "masters": masters,
    "leftover": leftover,
    "not finite": not_finite,
    "full disk": full_disk,
}
