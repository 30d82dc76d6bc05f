"""What the guard does when several ranks diverge: is it one rank's memory, or the samples?"""

import json
from pathlib import Path

import pytest
from forked_ranks import run_starts
from guarded_ranks import REFUSED, STARTS, WRONG
from tiny_run import ledger_of, run_lmscale, settings, write_tiny_config

from lmscale.files.jsonl import read_rows
from lmscale.files.run_files import CORRUPTIONS_FILE
from lmscale.history.rewinds import read_rewinds
from lmscale.ranks.attempt import node_name
from lmscale.runs.faults import VARIABLE
from lmscale.runs.goodput import goodput
from lmscale.train.evidence import EVIDENCE_FILE

pytestmark = [pytest.mark.ranks, pytest.mark.slow]
NUM_RANKS = 2


@pytest.fixture(scope="module")
def runs(tiny_data, tmp_path_factory):
    """The folder of all runs, in which each start has left how it ended."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "data.txt").write_text(str(tiny_data))
    run_starts(Path(__file__).with_name("guarded_ranks.py"), folder, (NUM_RANKS,) * len(STARTS))
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


@pytest.mark.parametrize("stage", range(4))
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
