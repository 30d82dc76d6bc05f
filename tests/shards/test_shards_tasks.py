"""The tasks of an array make the shards that one process makes, whatever becomes of each."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kill_points import open_killer
from shard_cases import small_base, with_shards
from tiny_run import start_lmscale

from lmscale.config import dump_config
from lmscale.errors import DataError
from lmscale.files.reading import sha256_file
from lmscale.shards.build import build_shards, shards_progress
from lmscale.shards.verify import verify_dataset
from lmscale.tasks.target import ArrayTask


def everything(folder: Path) -> dict[str, str]:
    """The hash of every file below, hidden ones too."""
    return {
        str(path.relative_to(folder)): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return small_base(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def expected(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "shards"
    build_shards(with_shards(base, folder))
    return everything(folder)


@settings(max_examples=20, deadline=None)
@given(num_tasks=st.integers(1, 20), seed=st.integers(0, 99), redone=st.booleans())
def test_any_number_of_tasks_in_any_order_makes_the_same_shards(
    base, expected, tmp_path_factory, num_tasks, seed, redone
):
    config = with_shards(base, tmp_path_factory.mktemp("tasks") / "shards")
    order = random.Random(seed).sample(range(num_tasks), num_tasks)
    if redone:
        order = [*order[:-1], *order[:1], order[-1]]
    summaries = [build_shards(config, ArrayTask(number, num_tasks)) for number in order]
    assert everything(Path(config.shards.folder)) == expected
    new = [d.folder.name for summary in summaries for d in summary.built.values() if d.is_new]
    assert sorted(new) == ["heldout", "train"]


def test_a_finished_task_run_again_does_nothing(base, tmp_path):
    config = with_shards(base, tmp_path / "shards")
    first = build_shards(config, ArrayTask(1, 3))
    again = build_shards(config, ArrayTask(1, 3))
    assert first.units_done > 0 and first.units_found == 0
    assert (again.units_done, again.units_found) == (0, first.units_done)
    missing = {progress.missing for progress in shards_progress(config, 3)}
    assert (0, 2) in missing


def test_another_number_of_tasks_loses_nothing_and_does_nothing_twice(base, expected, tmp_path):
    config = with_shards(base, tmp_path / "shards")
    first = build_shards(config, ArrayTask(1, 2))
    later = [build_shards(config, ArrayTask(number, 5)) for number in range(5)]
    assert sum(summary.units_found for summary in later) == first.units_done
    assert everything(tmp_path / "shards") == expected


def test_one_process_goes_on_with_what_tasks_have_done(base, expected, tmp_path):
    config = with_shards(base, tmp_path / "shards")
    build_shards(config, ArrayTask(0, 2))
    shards = {path.stat().st_ino for path in (tmp_path / "shards").rglob("part-*.tar")}
    build_shards(config)
    assert shards <= {path.stat().st_ino for path in (tmp_path / "shards").rglob("*.tar")}
    assert everything(tmp_path / "shards") == expected


def test_a_changed_configuration_between_tasks_is_named_and_mixes_nothing(base, expected, tmp_path):
    config = with_shards(base, tmp_path / "shards")
    other = with_shards(base, tmp_path / "shards", block_tokens=2048)
    build_shards(config, ArrayTask(0, 3))
    summary = build_shards(other, ArrayTask(1, 3))
    train = summary.unfinished[str(tmp_path / "shards/topics/train")].progress
    assert (train.missing, train.foreign) == ((0, 2), ("0-of-3",))
    for number in (1, 2):
        build_shards(config, ArrayTask(number, 3))
    assert everything(tmp_path / "shards") == expected
    with pytest.raises(DataError, match="with another shards.max_bytes or shards.block_tokens"):
        build_shards(other, ArrayTask(0, 2))
    for number in range(2):
        build_shards(other, ArrayTask(number, 2), force=True)
    assert verify_dataset(tmp_path / "shards/topics/train") == []
    assert everything(tmp_path / "shards") != expected


def test_a_shard_that_was_lost_is_made_again_by_its_task(base, expected, tmp_path):
    config = with_shards(base, tmp_path / "shards")
    for number in range(3):
        build_shards(config, ArrayTask(number, 4))
    lost = next((tmp_path / "shards").rglob(".train.building/*/parts/part-*.tar"))
    lost.unlink()
    with pytest.raises(DataError, match=r"1 of \d+ pieces of work .* Run task \d of 4 again"):
        build_shards(config, ArrayTask(3, 4))
    (missing,) = {task for progress in shards_progress(config, 4) for task in progress.missing}
    assert build_shards(config, ArrayTask(missing, 4)).units_done == 1
    assert everything(tmp_path / "shards") == expected


def test_a_shard_lost_while_they_are_numbered_is_made_again(base, expected, tmp_path, monkeypatch):
    config = with_shards(base, tmp_path / "shards")
    build_shards(config, ArrayTask(0, 2))
    with monkeypatch.context() as patch:

        def end_here(folder):
            raise KeyboardInterrupt

        patch.setattr("lmscale.tasks.finishing.fsync_folder", end_here)  # all shards are moved
        with pytest.raises(KeyboardInterrupt):
            build_shards(config, ArrayTask(1, 2))
    next((tmp_path / "shards").rglob("topics-000003.tar")).unlink()
    with pytest.raises(DataError, match=r"4 of 4 pieces of work .* Run task 0, 1 of 2 again"):
        build_shards(config, ArrayTask(1, 2))
    for number in range(2):
        build_shards(config, ArrayTask(number, 2))
    assert everything(tmp_path / "shards") == expected


def test_real_processes_at_once_build_it_though_one_is_killed(base, expected, tmp_path):
    config = with_shards(base, tmp_path / "shards")
    yaml = tmp_path / "run.yaml"
    yaml.write_text(dump_config(config))

    def start(number):
        return start_lmscale("shards", "build", yaml, "--task", f"{number}/3", "--json")

    tasks = [start(number) for number in range(3)]
    while not list((tmp_path / "shards").rglob("part-*.tar")) and tasks[1].poll() is None:
        time.sleep(0.001)
    os.killpg(tasks[1].pid, signal.SIGKILL)
    printed = [task.communicate(timeout=60)[0] for task in tasks]
    codes = [task.returncode for task in tasks]
    assert codes in ([0, -9, 0], [0, 0, 0]), printed
    if codes[1]:
        status = start_lmscale("shards", "status", yaml, "--tasks", "3", "--json")
        assert json.loads(status.communicate(timeout=60)[0])["missing"] == [1]
    again = start(1)
    again.communicate(timeout=60)
    assert again.returncode == 0
    assert everything(tmp_path / "shards") == expected


WORK = """
from lmscale.config import parse_config
from lmscale.tasks.target import ArrayTask
from lmscale.shards.build import build_shards
config = parse_config({config!r})
def work():
    build_shards(config, ArrayTask(0, 2))
"""


@pytest.mark.slow
def test_a_task_killed_before_any_change_of_the_disk_is_mended_by_running_it_again(
    tmp_path,
):
    base = small_base(tmp_path, num_texts=30)
    build_shards(with_shards(base, tmp_path / "alone"))
    expected = everything(tmp_path / "alone")
    config = with_shards(base, tmp_path / "shards")
    build_shards(config, ArrayTask(1, 2))
    shutil.copytree(tmp_path / "shards", tmp_path / "begun")
    with open_killer(WORK.format(config=dump_config(config))) as kill_at:
        for change in itertools.count(1):
            was_killed = kill_at(change)
            build_shards(config, ArrayTask(0, 2))
            assert everything(tmp_path / "shards") == expected, change
            if not was_killed:
                break
            shutil.rmtree(tmp_path / "shards")
            shutil.copytree(tmp_path / "begun", tmp_path / "shards")
    assert change > 20
