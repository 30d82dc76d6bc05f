"""LMSCALE_FAULTS on the real command: refused, obeyed, and met once, also by later starts."""

import json
import math
import signal

import pytest
from tiny_run import committed_steps, ledger_of, run_lmscale, settings, write_tiny_config

from lmscale.runs.faults import VARIABLE

pytestmark = [pytest.mark.ranks, pytest.mark.slow]


@pytest.fixture(scope="module")
def lmscale():
    return run_lmscale


@pytest.fixture
def go_on(tiny_data, tmp_path, lmscale):
    """Starts a run that allows faults, with those given, as a lone rank; again and again."""
    folder = tmp_path / "run"
    allowed = {"run.allow_faults": True, "train.steps": 6, "checkpoint.every_steps": 2}
    config = write_tiny_config(tmp_path / "run.yaml", tiny_data, folder, allowed)

    def start(faults, overrides=None):
        given = {VARIABLE: faults}
        return lmscale("train", config, *settings(overrides or {}), environment=given)

    start.folder = folder
    return start


def norms_of(folder):
    """Step → gradient norm; one that is not finite reads as infinite."""
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    key = "train/gradient_norm"
    return {row["step"]: math.inf if row[key] is None else row[key] for row in rows if key in row}


def test_a_run_that_does_not_allow_faults_ends_with_2_and_says_so(go_on):
    ended = go_on("kill:step=2", {"run.allow_faults": False})
    assert ended.code == 2
    assert f"{VARIABLE} is set ('kill:step=2'), and this run does not allow faults" in ended.output
    assert not go_on.folder.exists(), "a refused start claims nothing"


def test_faults_that_are_not_understood_end_a_run_with_2(go_on):
    ended = go_on("explode; kill:at=lunch; nan:rank=1")
    assert ended.code == 2
    assert "there is no fault 'explode'" in ended.output
    assert "there is no moment 'lunch'" in ended.output
    assert "there is no rank 1 among 1" in ended.output
    assert not go_on.folder.exists(), "a refused start claims nothing"


def test_a_run_that_is_killed_by_a_fault_passes_it_when_it_is_started_again(go_on):
    assert go_on("kill:step=4,at=step.update").code == -signal.SIGKILL
    ended = go_on("kill:step=4,at=step.update")
    assert ended.code == 0, ended.output
    assert len(ledger_of(go_on.folder)) == 6


@pytest.mark.parametrize("moment", ["save.written", "save.committed"])
def test_a_checkpoint_that_is_cut_is_passed_over_by_the_next_start(go_on, moment):
    waiting = {"checkpoint.asynchronous": False}
    assert go_on(f"cut:step=4,at={moment}; kill:step=6", waiting).code == -signal.SIGKILL
    assert committed_steps(go_on.folder) == [2, 4]
    ended = go_on("")
    assert ended.code == 0, ended.output
    assert "at step 2" in ended.output and "step-000000004" in ended.output


def test_a_shard_that_a_loader_worker_finds_missing_ends_the_run_with_2(go_on):
    ended = go_on("drop-shard", {"stream.workers": 1})
    assert ended.code == 2, ended.output
    assert "the shard is listed in the manifest and missing" in ended.output
    assert go_on("drop-shard", {"stream.workers": 1}).code == 0


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_flipped_gradient_reaches_the_optimizer_at_every_stage(go_on, stage):
    ended = go_on("flip-gradient:step=3", {"engine.zero_stage": stage, "guard.spike_window": 0})
    assert ended.code == 0, ended.output
    norms = norms_of(go_on.folder)
    assert norms[3] > 1e18 and max(norms[step] for step in norms if step != 3) < 10


def test_a_loss_that_is_not_a_number_makes_the_gradient_none_either(go_on):
    ended = go_on("nan:step=3")
    assert ended.code == 0, ended.output
    norms = norms_of(go_on.folder)
    assert not math.isfinite(norms[3]) and all(map(math.isfinite, (norms[2], norms[4])))
