"""What the guard does when several ranks diverge: is it one rank's memory, or the samples?"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forked_ranks import run_starts
from tiny_run import ledger_of, run_lmscale, settings, write_tiny_config

from lmscale.files.jsonl import read_rows
from lmscale.files.run_files import CORRUPTIONS_FILE
from lmscale.history.history import read_rewinds
from lmscale.ranks.attempt import node_name
from lmscale.runs.faults import VARIABLE
from lmscale.runs.goodput import goodput
from lmscale.train.evidence import EVIDENCE_FILE

# ---- On the ranks: guarded runs

FLIP_AFTER = 5  # step: compared before the updates of 4 and 8, and before every save
WRONG = 1  # the rank
NAN_AT = (6, 7)  # steps
REFUSED = 4  # the step of a checkpoint that a rank may not look at
SETTINGS = {
    "run.allow_faults": True,
    "train.steps": 10,
    "batch.micro_windows": 6,
    "engine.zero_stage": 0,
    "checkpoint.every_steps": 2,
    "checkpoint.keep_last": 9,
    "checkpoint.asynchronous": False,
    "watch.heartbeat_seconds": 0,
    "guard.max_nonfinite_steps": 2,
    "guard.jump_steps": 2,
    "guard.compare_every_steps": 4,
}
NAN = "; ".join(f"nan:rank=0,step={step}" for step in NAN_AT)
FLIP = f"flip-weight:rank={WRONG},step={FLIP_AFTER},bit=1"
# The run, the faults, other settings. One after the other, each on two ranks.
STARTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("flipped", FLIP, {"checkpoint.every_steps": 100}),
    ("flipped before a save", FLIP, {}),
    ("flipped before a save", FLIP, {}),
    *((f"bad samples {stage}", NAN, {"engine.zero_stage": stage}) for stage in (0, 3)),
    ("no way back", NAN, {"guard.jump_steps": 7, "checkpoint.every_steps": 6}),
    ("refused", NAN, {}),
    ("damaged since", NAN, {}),
    ("not compared", FLIP, {"guard.compare_every_steps": 0, "guard.on_divergence": "stop"}),
)


def start(folder: Path, number: int) -> None:
    """What each rank of a start does; how it ended goes to ended-NUMBER-RANK.json."""
    from tiny_run import tiny_config

    from lmscale.cli.train import run_training
    from lmscale.errors import LmscaleError

    name, faults, overrides = STARTS[number]
    os.environ["LMSCALE_FAULTS"] = faults
    BREAKS.get(name, lambda: None)()
    data = Path((folder / "data.txt").read_text())
    ended: dict[str, Any] = {"class": None, "code": 0, "said": ""}
    try:
        run_training(tiny_config(data, folder / name, SETTINGS | overrides))
    except LmscaleError as error:
        said = {"class": type(error).__name__, "code": error.exit_code, "said": str(error)}
        ended |= said | {"summary": error.summary}
    (folder / f"ended-{number}-{os.environ['RANK']}.json").write_text(json.dumps(ended))


def refuse() -> None:
    """One rank may not read the manifest that the guard wants to go back to."""
    from lmscale.checkpoint.places.place import LocalPlace

    read = LocalPlace.read_manifest

    def refused(self: LocalPlace, step: int) -> str:
        if step == REFUSED and os.environ["RANK"] == str(WRONG):
            raise PermissionError(errno.EACCES, "Permission denied")
        return read(self, step)

    LocalPlace.read_manifest = refused


def damage() -> None:
    """What the guard goes back to turns out wrong once it is loaded."""
    from lmscale.train import assemble

    load = assemble._load

    def loaded(found: Any, run: Any) -> Any:
        problems = load(found, run)
        return ["its loss is another one"] if found.manifest.step == 4 else problems

    assemble._load = loaded


BREAKS: dict[str, Callable[[], None]] = {"refused": refuse, "damaged since": damage}


# ---- The tests


pytestmark = [pytest.mark.ranks, pytest.mark.slow]
NUM_RANKS = 2


@pytest.fixture(scope="module")
def runs(tiny_data, tmp_path_factory):
    """The folder of all runs, in which each start has left how it ended."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "data.txt").write_text(str(tiny_data))
    run_starts(Path(__file__), folder, (NUM_RANKS,) * len(STARTS))
    return folder


def ended(runs, name, *, again=False):
    """How the ranks of a run's first or second start ended, who all say the same."""
    number = [at for at, row in enumerate(STARTS) if row[0] == name][again]
    found = [
        json.loads((runs / f"ended-{number}-{rank}.json").read_text()) for rank in range(NUM_RANKS)
    ]
    assert found[0] == found[1]
    return found[0]


def test_a_rank_with_a_flipped_bit_is_named_where_the_guard_would_have_blamed_the_samples(runs):
    how = ended(runs, "flipped")
    assert (how["class"], how["code"]) == ("CorruptionError", 75)
    assert how["summary"] == f"ranks 0-1 on {node_name()} differ"
    assert "Before the update of step 8, ranks 0-1" in how["said"]
    assert not read_rewinds(runs / "flipped")
    assert not (runs / "flipped" / "guard").exists()


def test_what_one_rank_alone_holds_is_in_no_checkpoint_and_the_run_ends_instead_of_the_save(runs):
    name = "flipped before a save"
    how = ended(runs, name)
    assert (how["class"], how["code"]) == ("CorruptionError", 75)
    assert "Before the save of step 6, ranks 0-1" in how["said"]
    (row,) = read_rows(runs / name / CORRUPTIONS_FILE)
    assert (row["at_step"], row["ranks"], row["hosts"]) == (6, [0, 1], [node_name()])
    assert ended(runs, name, again=True)["code"] == 0
    *_, resumed = read_rows(runs / name / "resumes.jsonl")
    assert (resumed["step"], resumed["passed_over"]) == (4, [])
    assert len(ledger_of(runs / name)) == 10


@pytest.mark.parametrize("stage", (0, 3))
def test_ranks_that_are_alike_are_rewound(runs, stage):
    assert ended(runs, f"bad samples {stage}")["code"] == 0
    assert not (runs / f"bad samples {stage}" / CORRUPTIONS_FILE).exists()
    (rewind,) = read_rewinds(runs / f"bad samples {stage}")
    assert (rewind.at_step, rewind.to_step) == (7, 4)


def test_a_run_that_cannot_be_rewound_says_so_for_all_of_its_ranks(runs):
    how = ended(runs, "no way back")
    assert (how["class"], how["code"]) == ("GuardError", 76)
    assert "The run could not be rewound" in how["said"]
    assert "(rank" not in how["said"]
    assert (runs / "no way back" / "guard" / "step-000000007" / EVIDENCE_FILE).is_file()


def test_a_checkpoint_that_one_rank_may_not_look_at_ends_a_rewind_like_a_start(runs):
    how = ended(runs, "refused")
    assert (how["class"], how["code"]) == ("RefusedError", 2)
    assert f"step-{REFUSED:09d}/manifest.json cannot be read" in how["said"]
    assert f"(rank {WRONG})" in how["said"]
    assert not read_rewinds(runs / "refused")


def test_steps_that_a_rewind_undoes_beyond_its_target_are_not_productive(runs):
    assert ended(runs, "damaged since")["code"] == 0
    (rewind,) = read_rewinds(runs / "damaged since")
    assert rewind.to_step == 4
    rows = read_rows(runs / "damaged since" / "attempts.jsonl")
    assert [row["to_step"] for row in rows if row["event"] == "rewind"] == [2]
    found = goodput(rows)
    assert found.wall_seconds == pytest.approx(rows[-1]["time"] - rows[0]["time"])


def test_where_ranks_are_never_compared_the_guard_compares_them_neither(runs):
    how = ended(runs, "not compared")
    assert (how["class"], how["code"]) == ("GuardError", 76)
    assert not (runs / "not compared" / CORRUPTIONS_FILE).exists()


@pytest.fixture(scope="module")
def lmscale():
    return run_lmscale


def test_a_save_that_fails_meanwhile_does_not_hide_what_the_guard_stops_for(
    lmscale, tiny_data, tmp_path
):
    given = {
        "run.allow_faults": True,
        "train.steps": 12,
        "guard.on_divergence": "stop",
        "guard.max_nonfinite_steps": 3,
    }
    config = write_tiny_config(tmp_path / "c.yaml", tiny_data, tmp_path / "run", given)
    # The save of step 6 has not failed yet when the guard looks at step 7.
    faults = "delay:seconds=1,step=6,at=save.write; full-disk:step=6,at=save.write,times=50"
    nan = "; ".join(f"nan:step={step}" for step in (5, 6, 7))
    how = lmscale("train", config, environment={VARIABLE: f"{faults}; {nan}"})
    assert how.code == 76, how.output
    assert "3 steps in a row were not finite, so the run stopped" in how.output
    assert "No space is left in" in how.output


def test_steps_that_a_rewind_undoes_are_not_called_unsaved(lmscale, tiny_data, tmp_path):
    given = {"run.allow_faults": True, "train.steps": 8, "checkpoint.keep_last": 9}
    given |= {"guard.max_nonfinite_steps": 2, "guard.jump_steps": 2}
    config = write_tiny_config(tmp_path / "c.yaml", tiny_data, tmp_path / "run", given)
    faults = {VARIABLE: "nan:step=6; nan:step=7"}
    how = lmscale("train", config, *settings({}), environment=faults)
    assert how.code == 0, how.output
    assert "rewind 1: from step 7 back to step 4" in how.output
    assert "3 steps that were done after step 4 are undone" in how.output
    assert "not saved" not in how.output
