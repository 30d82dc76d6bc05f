"""Checkpoints that may hold a rank's wrong values are not gone on from."""

import shutil
from dataclasses import replace

import pytest
import torch
from forked_commands import open_commands
from handmade_checkpoints import manifest_of
from tiny_run import tiny_config, write_tiny_config

from lmscale.checkpoint.manifest_file import parse_manifest
from lmscale.errors import CheckpointError, DataError
from lmscale.evaluation.run import load_run
from lmscale.files.run_files import CORRUPTIONS_FILE
from lmscale.history.corruptions import (
    Corruption,
    describe_tainted,
    find_untainted,
    read_corruptions,
    record_corruption,
    refuse_scratch,
)
from lmscale.ranks.ranks import Ranks

FOUND = Corruption(
    clean_step=1000,
    at_step=2000,
    zero_stage=0,
    attempt=3,
    attempt_time=1.8e9,
    ranks=(3,),
    hosts=("n2",),
    is_certain=True,
    names=("w",),
    time=1.8e9,
)


def saved(step, *, attempt=3, attempt_time=1.8e9):
    writer = {"attempt": attempt, "attempt_time": attempt_time}
    return manifest_of(step, [], written_by=writer)


def test_what_was_saved_between_the_last_clean_comparison_and_the_difference_is_tainted():
    tainted = [step for step in range(0, 3000, 100) if describe_tainted(saved(step), [FOUND])]
    assert tainted == list(range(1100, 2000, 100))
    said = describe_tainted(saved(1500), [FOUND])
    assert said is not None
    assert said.startswith("may hold the wrong values of rank 3 on n2: the ranks were found to")
    assert "alike for the last time at step 1000" in said


def test_the_same_steps_done_again_are_not_tainted():
    assert describe_tainted(saved(1500, attempt=4), [FOUND]) is None
    assert describe_tainted(saved(1500, attempt_time=1.9e9), [FOUND]) is None


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_where_a_master_has_one_owner_a_wrong_copy_taints_nothing(stage):
    assert describe_tainted(saved(1500), [replace(FOUND, zero_stage=stage)]) is None


def test_rows_are_read_as_they_were_written_and_a_torn_one_counts_not(tmp_path):
    assert read_corruptions(tmp_path) == ()
    record_corruption(tmp_path, FOUND)
    with open(tmp_path / CORRUPTIONS_FILE, "a") as file:
        file.write('{"clean_step": 10')
    assert read_corruptions(tmp_path) == (FOUND,)
    later = replace(FOUND, at_step=9000, attempt=0)
    record_corruption(tmp_path, later)
    assert read_corruptions(tmp_path) == (FOUND, later)


def test_a_row_that_is_none_is_a_mistake_with_its_line(tmp_path):
    (tmp_path / CORRUPTIONS_FILE).write_text('{"clean_step": 1}\n')
    with pytest.raises(DataError, match="corruptions.jsonl, line 1: not a corruption"):
        read_corruptions(tmp_path)


def test_a_run_does_not_begin_anew_because_all_that_it_saved_is_tainted():
    refuse_scratch(["checkpoints/step-4: the guard has undone step 4 since"])
    with pytest.raises(CheckpointError, match="does not begin anew by itself"):
        refuse_scratch([f"checkpoints/step-4: {describe_tainted(saved(1500), [FOUND])}"])


def test_retention_keeps_one_that_a_difference_found_next_would_leave(tiny_data, tmp_path):
    changes = {"engine.zero_stage": 0, "guard.compare_every_steps": 1000}
    config = tiny_config(tiny_data, tmp_path, changes)
    ranks = Ranks(rank=0, world_size=2)

    def kept(newest, *, first_step=0, ranks=ranks, config=config, every_steps=100):
        steps = range(0, newest + 1, every_steps)
        return find_untainted(steps, config, ranks, newest=newest, first_step=first_step)

    assert (kept(1900), kept(2000), kept(2100)) == (1000, 2000, 2000)
    assert kept(2900, first_step=2500) == 2500
    assert kept(2900, every_steps=700) == 1400
    assert kept(1900, ranks=Ranks()) is None, "nobody to differ from"
    sharded = tiny_config(tiny_data, tmp_path, {**changes, "engine.zero_stage": 1})
    assert kept(1900, config=sharded) is None
    unseen = tiny_config(tiny_data, tmp_path, {**changes, "guard.compare_every_steps": 0})
    assert kept(1900, config=unseen) is None


@pytest.fixture(scope="module")
def lmscale(tmp_path_factory):
    with open_commands(tmp_path_factory.mktemp("output")) as commands:
        yield commands


@pytest.fixture(scope="module")
def trained(lmscale, tiny_data, tmp_path_factory):
    """A run that saved at steps 2, 4 and 6, and its configuration."""
    folder = tmp_path_factory.mktemp("trained")
    overrides = {"train.steps": 6, "checkpoint.every_steps": 2, "checkpoint.keep_last": 3}
    config = write_tiny_config(folder / "c.yaml", tiny_data, folder / "run", overrides)
    ended = lmscale("train", config)
    assert ended.code == 0, ended.output
    return folder / "run", config


@pytest.fixture
def run(trained):
    """The run's folder as it was, with a difference found since; and its configuration."""
    folder, config = trained
    shutil.copytree(folder, before := folder.with_name("before"))
    yield folder, config
    shutil.rmtree(folder)
    before.rename(folder)


def taint(folder, *, clean_step):
    text = (folder / "checkpoints" / "step-000000006" / "manifest.json").read_text()
    writer = parse_manifest(text, "a test").written_by
    found = replace(
        FOUND,
        clean_step=clean_step,
        at_step=7,
        attempt=writer["attempt"],
        attempt_time=writer["attempt_time"],
    )
    record_corruption(folder, found)


@pytest.mark.slow
def test_a_start_goes_on_from_before_what_may_be_tainted(lmscale, run):
    folder, config = run
    taint(folder, clean_step=2)
    device = torch.device("cpu")
    newest, second = (load_run(folder, step=step, device=device).model for step in (None, 2))
    assert all(map(torch.equal, newest.parameters(), second.parameters()))
    ended = lmscale("train", config)
    assert ended.code == 0, ended.output
    assert "resumed from" in ended.output and "at step 2" in ended.output
    for step in (4, 6):
        assert f"step-{step:09d}: may hold the wrong values of rank 3 on n2" in ended.output
    again = lmscale("train", config)  # what was saved since is none of that attempt's
    assert again.code == 0 and "all 6 steps were done before" in again.output


@pytest.mark.slow
def test_a_start_with_nothing_else_to_go_on_from_says_so(lmscale, run):
    folder, config = run
    taint(folder, clean_step=0)
    ended = lmscale("train", config)
    assert ended.code == 2
    assert "No other checkpoint is left" in ended.output
