"""A save that is due while another one is under way, under ``checkpoint.when_busy: skip``."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from pathlib import Path

import pytest
from forked_ranks import run_starts

pytestmark = [pytest.mark.ranks, pytest.mark.slow]
PATIENCE_SECONDS = 60
SKIP = {"train.steps": 9, "checkpoint.every_steps": 2, "checkpoint.when_busy": "skip"}
SKIP |= {"checkpoint.keep_last": 9}
RUNS = {
    "shared": SKIP,
    # Due at every step.
    "local": SKIP | {"checkpoint.local.folder": "DISK", "checkpoint.local.every_minutes": 1e-9},
}


def start(folder: Path, number: int) -> None:
    """What each rank does: the first save of a run is held up until the loop waits for it."""
    from forked_ranks import one_group
    from rank_cases import Case, opened

    from lmscale.ranks.collectives import gather_json

    saw = {}
    with one_group() as ranks:
        for name, overrides in RUNS.items():
            disk = str(folder / f"disk{ranks.rank}")
            overrides = {k: disk if v == "DISK" else v for k, v in overrides.items()}
            data = (folder / "data.txt").read_text()
            case = Case(name=name, data=data, folder=str(folder / name), overrides=overrides)
            with opened(case, ranks) as run:
                waits = train(run)
                saw[name] = gather_json([waits, run.place.list_steps()])
        if ranks.is_first:
            (folder / "saw.json").write_text(json.dumps(saw))


def train(run):
    """[after which step the loop has waited, for the save of which step], of every wait."""
    from lmscale.train.loop import train_steps
    from lmscale.train.progress import ProgressCounter
    from lmscale.train.saver import Saver

    counter, gate, waits = ProgressCounter(run.start), threading.Event(), []
    with closing(Saver(run=run, counter=counter, ledger=None)) as saver:
        place = (saver._local_tier or saver._tier).place
        write_file, wait = place.write_file, saver._writer.wait

        def write_when_open(*arguments):
            assert gate.wait(PATIENCE_SECONDS), "nobody has waited for the save"
            write_file(*arguments)

        def wait_and_open(job):
            waits.append([counter.now.step, job.step])
            gate.set()
            return wait(job)

        place.write_file, saver._writer.wait = write_when_open, wait_and_open
        for report in train_steps(
            run.engine,
            run.loader,
            run.config,
            save=saver.wants,
        ):
            counter(report)
            saver(report)
        saver.finish()
    return waits


@pytest.fixture(scope="module")
def seen(tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saver")
    (folder / "data.txt").write_text(str(tiny_data))
    run_starts(Path(__file__), folder, (2,))
    return json.loads((folder / "saw.json").read_text())


def test_of_saves_that_are_due_never_two_in_a_row_are_left_out(seen):
    """Else a writer that hangs would go unnoticed: the loop moves, and nothing is saved."""
    for waits, steps in seen["shared"]:
        assert waits[0] == [6, 2], "the save of step 4 is left out, that of 6 waits"
        assert 4 not in steps and {2, 6, 9} <= set(steps)


def test_a_save_to_the_nodes_own_disks_pushes_no_shared_one_out(seen):
    for waits, steps in seen["local"]:
        assert waits[0] == [2, 1]
        assert 2 in steps
