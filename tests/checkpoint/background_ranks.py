"""What real ranks do for test_checkpoint_background.py: saves in the background, in every way."""

import errno
import json
import os
import threading
from contextlib import closing, suppress
from dataclasses import replace

import torch
from forked_ranks import one_group
from plain_save import save_checkpoint
from rank_cases import Case, opened

from lmscale.checkpoint.find import load_manifest
from lmscale.checkpoint.layout import MANIFEST, step_folder
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.errors import LmscaleError, NoSpaceError
from lmscale.files import remote
from lmscale.files.reading import sha256_file
from lmscale.ranks.attempt import Attempt
from lmscale.ranks.collectives import barrier, gather_json
from lmscale.ranks.ranks import is_lost_connection
from lmscale.runs.lease import Lease
from lmscale.train.loop import train_steps
from lmscale.train.progress import ProgressCounter
from lmscale.train.saver import Saver
from lmscale.train.votes import SAVE_FAILED

DATA = "data.txt"  # names the folder of the tiny data
STAGES = {  # by world size: each with its optimizer of DeepSpeed's, once
    1: ("fp32-zero1", "bf16-zero2", "fp32-zero3"),
    3: ("fp32-zero0", "bf16-zero0", "bf16-zero1", "fp32-zero2", "bf16-zero3"),
}
PATIENCE_SECONDS = 60


def start(folder, number):
    with one_group() as ranks:
        runs = folder / str(ranks.world_size)
        saw = {name: part(runs, ranks) for name, part in PARTS.items()}
        if ranks.is_first:
            (folder / f"saw-{ranks.world_size}.json").write_text(json.dumps(saw))
        if ranks.world_size > 1:
            lost(runs, ranks)


def opened_case(folder, name, ranks, **overrides):
    steps = {"train.steps": 8, "checkpoint.every_steps": 2, "checkpoint.keep_last": 3}
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    case = Case(
        name=name,
        data=(folder.parent / DATA).read_text(),
        folder=str(folder / name),
        overrides=steps | {"batch.micro_windows": 12 // ranks.world_size} | dotted,
    )
    return opened(case, ranks)


class GatedPlace(LocalPlace):
    """Writes nothing of the gated steps until its gate is opened."""

    def __init__(self, place, *steps):
        super().__init__(place.root)
        self.steps, self.gate = steps, threading.Event()

    def write_file(self, step, name, pieces):
        if step in self.steps and not self.gate.wait(PATIENCE_SECONDS):
            raise AssertionError("nobody has opened the gate")
        super().write_file(step, name, pieces)


class FailingPlace(LocalPlace):
    """Fails with ``errors``, one after the other, on one rank."""

    def __init__(self, place, *errors):
        super().__init__(place.root)
        self.errors = list(errors)

    def write_file(self, step, name, pieces):
        if self.errors:
            next(iter(pieces))
            raise self.errors.pop(0)
        super().write_file(step, name, pieces)


class FullPlace(LocalPlace):
    """A disk of ``max_bytes``, for all ranks together."""

    def __init__(self, place, max_bytes):
        super().__init__(place.root)
        self.max_bytes = max_bytes

    def write_file(self, step, name, pieces):
        def counted():
            own, written = step_folder(self.root, step) / name, 0  # some of it in a buffer still
            for piece in pieces:
                # What the other ranks write meanwhile may be counted or not: both are a full disk.
                others = (path for path in self.root.rglob("*.safetensors") if path != own)
                written += len(piece)
                if sum(map(size_of, others)) + written > self.max_bytes:
                    raise OSError(errno.ENOSPC, "no space is left, says the test")
                yield piece

        super().write_file(step, name, counted())


def size_of(path):
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def train(run, saver, counter, hook=lambda report: None):
    """Train to the end, and say at which step each save was seen to have failed."""
    for report in train_steps(
        run.engine,
        run.loader,
        run.config,
        stop=lambda: SAVE_FAILED if saver.failed() else None,
        first_step=run.start.step,
    ):
        counter(report)
        hook(report)
        saver(report)
    saver.finish()


def try_to_train(run, **more):
    """The step after which training ended, and with what error."""
    counter = ProgressCounter(run.start)
    with closing(Saver(run=run, counter=counter, ledger=None)) as saver:
        try:
            train(run, saver, counter, **more)
        except LmscaleError as error:
            return [counter.now.step, type(error).__name__, *error.problems]
        except KeyError as error:
            return [counter.now.step, "KeyError", str(error)]
    return [counter.now.step]


def hashes(place, step):
    return {path.name: sha256_file(path) for path in step_folder(place.root, step).glob("rank-*")}


def same_bytes(folder, ranks):
    """A save that is written two steps after its copy, and one that training waited for."""
    found = {}
    for name in STAGES[ranks.world_size]:
        precision, stage = name.split("-zero")
        settings = {"engine__precision": precision, "engine__zero_stage": int(stage)}
        with opened_case(folder, name, ranks, train__steps=4, **settings) as run:
            waited = LocalPlace(run.folder / "waited")
            gated = GatedPlace(run.place, 2)
            run = replace(run, place=gated)
            counter = ProgressCounter(run.start)
            before = []

            def hook(report, run=run, waited=waited, gated=gated, before=before):
                if report.step == 2:
                    save_checkpoint(waited, run.engine, step=2, identity={}, ranks=ranks)
                    before.append(weights_of(run))
                if report.step == 4:
                    before.append(weights_of(run))
                    gated.gate.set()

            with closing(Saver(run=run, counter=counter, ledger=None)) as saver:
                train(run, saver, counter, hook)
            barrier()
            manifests = [load_manifest(place, 2) for place in (gated, waited)]
            found[name] = {
                "has trained on": gather_json(not torch.equal(*before)),
                "files are equal": hashes(gated, 2) == hashes(waited, 2),
                "number of files": len(manifests[0].files),
                "manifests are equal": manifests[0].files == manifests[1].files
                and manifests[0].weights == manifests[1].weights,
                "reasons": [load_manifest(gated, step).reason for step in (2, 4)],
            }
    return found


def weights_of(run):
    from lmscale.checkpoint.fragments import owned_fragments

    return torch.cat(
        [view.clone() for f in owned_fragments(run.engine) for view in f.tensors.values()]
    )


def failing(folder, ranks):
    """The last rank meets each kind of error in its background save of step 2, which lasts until
    the others have begun to train on.
    """
    found = {}
    kinds = {
        "refused": [PermissionError(errno.EACCES, "refused, says the test")],
        "passing": [OSError(errno.EIO, "passes, says the test")] * 2,
        "lasting": [OSError(errno.EIO, "lasts, says the test")] * 9,
        "bug": [KeyError("a bug, says the test")],
    }
    remote.FIRST_DELAY_SECONDS = 0.0
    for name, errors in kinds.items():
        with opened_case(folder, f"failing-{name}", ranks, checkpoint__retries=2) as run:
            if ranks.rank == ranks.world_size - 1:
                run = replace(run, place=FailingPlace(run.place, *errors))
            found[name] = gather_json([try_to_train(run), run.place.list_steps()])
    return found


def skipping(folder, ranks):
    """Steps that were saved where a save is slow: left out, or waited for."""
    found = {}
    for rule in ("skip", "wait"):
        with opened_case(folder, rule, ranks, checkpoint__when_busy=rule, train__steps=7) as run:
            gated = GatedPlace(run.place, 2)
            orders: list[list[int]] = []

            def hook(report, gated=gated, orders=orders, rule=rule):
                orders.append(gated.list_steps())
                # Skipping, the save of step 4 comes while that of step 2 is held up. Waiting, the
                # gate must be open before step 4, or nothing would go on.
                if report.step == (5 if rule == "skip" else 3):
                    gated.gate.set()

            ended = try_to_train(replace(run, place=gated), hook=hook)
            found[rule] = gather_json([ended, gated.list_steps(), orders[2], orders[3]])
    return found


def full(folder, ranks):
    """A disk that is full: first with old checkpoints to remove, then without."""
    found = {}
    with opened_case(folder, "full", ranks, train__steps=6, checkpoint__keep_last=9) as run:
        # 0.62 MB each: two of them fit.
        found["makes room"] = gather_json(
            [
                try_to_train(replace(run, place=FullPlace(run.place, 1_400_000))),
                run.place.list_steps(),
            ]
        )
    with opened_case(folder, "full", ranks, train__steps=8, checkpoint__keep_last=9) as run:
        # Beside what stands of step 6 not even the file of one of three ranks fits (0.21 MB), nor,
        # then, does any verdict depend on what the others have flushed.
        place = FullPlace(run.place, 700_000)
        found["start"] = run.start.step
        found["gives up"] = gather_json(
            [try_to_train(replace(run, place=place)), place.list_steps()]
        )
    with opened_case(folder, "full", ranks, train__steps=8, checkpoint__keep_last=9) as run:
        found["again"] = [run.start.step, *try_to_train(run), run.place.list_steps()]
    return found


def refused(folder, ranks):
    """Rank 0 cannot write its rows any more after step 3."""
    with opened_case(folder, "refused", ranks) as run:
        counter = ProgressCounter(run.start)
        with closing(Saver(run=run, counter=counter, ledger=None)) as saver:

            def hook(report):
                if report.step == 4 and ranks.is_first:
                    saver.refuse(NoSpaceError("the ledger's disk is full, says the test"))

            try:
                train(run, saver, counter, hook)
            except NoSpaceError as error:
                return gather_json([counter.now.step, *error.problems, run.place.list_steps()])
    return gather_json([])


def overtaken(folder, ranks):
    """Another copy of the run takes the lease while step 2 is being written."""
    with opened_case(folder, "overtaken", ranks) as run:
        gated = GatedPlace(run.place, 2)
        mine = Lease(Attempt(job="7", restart=0), run.folder if ranks.is_first else None)
        if ranks.is_first:
            mine.take(["n1"])

        def hook(report):
            if report.step == 3:
                if ranks.is_first:
                    Lease(Attempt(job="7", restart=1), run.folder).take(["n2"])
                barrier()
                gated.gate.set()

        ended = try_to_train(replace(run, place=gated, lease=mine), hook=hook)
        committed = (step_folder(gated.root, 2) / MANIFEST).exists()
    return gather_json([ended, committed])


class LatePlace(LocalPlace):
    """An older copy's manifest of step 2 comes late, right before ours."""

    is_late = True

    def commit(self, step, manifest):
        if step == 2 and self.is_late:
            self.is_late = False
            (step_folder(self.root, 2) / MANIFEST).write_bytes(b"of an older copy")
        return super().commit(step, manifest)


def late(folder, ranks):
    """What is there of step 2 in the end, and what of it is damaged."""
    with opened_case(folder, "late", ranks, train__steps=4) as run:
        place = LatePlace(run.place.root)
        ended = try_to_train(replace(run, place=place))
        files = load_manifest(place, 2).files
        damage = [place.describe_damage(2, entry) for entry in files]
        return gather_json([ended, len(files), damage, place.list_steps()])


def lost(folder, ranks):
    """What the first rank sees that waits for a save when another one dies in it. The last part."""
    with opened_case(folder, "lost", ranks) as run:
        gated = GatedPlace(run.place, 2)
        counter = ProgressCounter(run.start)
        saver = Saver(run=replace(run, place=gated), counter=counter, ledger=None)
        counter.now = type(run.start)(step=2, n=24)
        saver.save(wait=False)
        if not ranks.is_first:
            os._exit(0)  # all but the first: its writer waits for their entries for ever
        gated.gate.set()
        try:
            saver.finish()
        except RuntimeError as error:
            seen = is_lost_connection(error)
        else:
            seen = False
        saver.close()
        (folder.parent / f"saw-{ranks.world_size}-lost.json").write_text(json.dumps(seen))
        os._exit(0)  # the group is broken


PARTS = {
    "same bytes": same_bytes,
    "failing": failing,
    "skipping": skipping,
    "full": full,
    "refused": refused,
    "overtaken": overtaken,
    "late": late,
}
