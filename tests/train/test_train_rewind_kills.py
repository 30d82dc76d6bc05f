"""A run that is killed anywhere in a rewind is the run that was rewound in peace, bit by bit."""

import json
from pathlib import Path

import pytest
import torch
from forked_processes import run_process
from rewind_kills import AT_KILL, BAD, STEPS, config_of

from lmscale.checkpoint.load import load_weights
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.history.history import read_rewinds
from lmscale.objective.objective import build_preparation
from lmscale.stream.audit import audit_run
from lmscale.train.evidence import EVIDENCE_FILE

pytestmark = [pytest.mark.ranks, pytest.mark.slow]
HERE = Path(__file__).parent
# Before and in the evidence, before the row and behind it, in the files of the start that follows,
# and in its first save.
MOMENTS = (1, 5, 6, 7, 16, 20, 28)


@pytest.fixture(scope="module")
def runs(tiny_data, tmp_path_factory):
    root = tmp_path_factory.mktemp("rewinds")
    moments = map(str, (0, *MOMENTS))
    code, said = run_process("script", [HERE / "rewind_kills.py", tiny_data, root, *moments])
    assert code == 0, said[-6000:]
    return root


def test_a_run_with_bad_samples_jumps_them_and_ends_well(runs, tiny_data):
    run = runs / "0"
    (rewind,) = read_rewinds(run)
    assert (rewind.at_step, rewind.to_step, rewind.to_n) == (7, 4, 48)
    assert (rewind.jump_from_n, rewind.jump_samples) == (BAD.start, len(BAD))
    report = audit_run(config_of(tiny_data, run), run, build_preparation)
    assert report.is_clean
    assert (report.steps, report.jumped) == (STEPS, len(BAD))
    evidence = json.loads((run / "guard/step-000000007" / EVIDENCE_FILE).read_text())
    assert [row["n"] for row in evidence["samples"]["texts"]] == list(BAD)
    assert [row["is_skipped"] for row in evidence["steps"]] == [False] * 5 + [True] * 2
    assert all(sum(row["nonfinite"].values()) == 0 for row in evidence["parameters"].values())


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_in_a_rewind_changes_nothing(runs, tiny_data, moment):
    whole, broken = runs / "0", runs / str(moment)
    assert (broken / "ledger.jsonl").read_text() == (whole / "ledger.jsonl").read_text()
    rows = [
        [{**vars(rewind), "time": 0} for rewind in read_rewinds(run)] for run in (whole, broken)
    ]
    assert rows[0] == rows[1]
    assert audit_run(config_of(tiny_data, broken), broken, build_preparation).is_clean
    expected, found = (
        load_weights(LocalPlace(whole / "checkpoints")),
        load_weights(LocalPlace(broken / "checkpoints")),
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    names = [path.name for path in (broken / "guard").iterdir()]
    assert names == ["step-000000007"]
    manifests = [
        json.loads((run / f"checkpoints/step-{STEPS:09d}/manifest.json").read_text())
        for run in (whole, broken)
    ]
    guards = [manifest["state"]["guard"] for manifest in manifests]
    assert guards[0] == guards[1]
    assert [manifest["rewinds"] for manifest in manifests] == [1, 1]


def test_the_kills_fall_before_the_row_and_behind_it(runs):
    rows = [json.loads((runs / str(moment) / AT_KILL).read_text()) for moment in MOMENTS]
    assert rows == sorted(rows) and rows.count(0) > 1 and rows.count(1) > 1
