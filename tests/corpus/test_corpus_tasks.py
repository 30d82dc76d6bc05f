"""The tasks of an array make the corpus that one process makes, whatever becomes of each."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kill_points import open_killer
from tiny_run import start_lmscale

from lmscale.config.corpus import CorpusConfig
from lmscale.corpus.build import build_corpus, corpus_progress, cut_into_runs
from lmscale.corpus.documents import load_corpus_manifest, read_documents
from lmscale.errors import DataError
from lmscale.tasks.target import ArrayTask


def write_raw(folder: Path, files: list[list[str]], name: str = "raw") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, texts in enumerate(files):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"{name}{number:02d}.jsonl").write_text(lines, encoding="utf-8")


def make_config(tmp_path: Path, **changes) -> CorpusConfig:
    tree = {
        "folder": str(tmp_path / "corpus"),
        "sources": {"s": {"inputs": [f"{tmp_path}/raw/*.jsonl"]}},
        "heldout_fraction": 0.3,
        "part_bytes": 1,
    }
    return CorpusConfig.model_validate({**tree, **changes})


def elsewhere(config: CorpusConfig, folder: Path, **changes) -> CorpusConfig:
    return config.model_copy(update={"folder": str(folder), **changes})


def contents(folder: str | Path) -> dict[str, bytes]:
    """Every file below, hidden ones too."""
    root = Path(folder)
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def build_by_tasks(config: CorpusConfig, order: list[int]) -> list:
    return [build_corpus(config, ArrayTask(number, len(order))) for number in order]


# Few texts, so that most come again in the same file and in others; some are too long or too short.
TEXTS = st.sampled_from(["", "a", "bb bb", "ccc", "dd\ndd", "e" * 30, "f f f f f f f f f f", "ä"])
FILES = st.lists(st.lists(TEXTS, max_size=6), min_size=1, max_size=7)


@settings(max_examples=60, deadline=None)
@given(
    files=FILES,
    num_tasks=st.integers(1, 7),
    part_bytes=st.sampled_from([1, 60, 10**6]),
    on_overlong=st.sampled_from(["split", "truncate", "drop"]),
    drop_exact_duplicates=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_number_of_tasks_in_any_order_makes_the_same_corpus(
    tmp_path_factory, files, num_tasks, part_bytes, on_overlong, drop_exact_duplicates, seed
):
    tmp_path = tmp_path_factory.mktemp("corpus")
    write_raw(tmp_path / "raw", [[*texts, f"own text {n}"] for n, texts in enumerate(files)])
    config = make_config(
        tmp_path,
        part_bytes=part_bytes,
        max_chars=12,
        on_overlong=on_overlong,
        drop_exact_duplicates=drop_exact_duplicates,
        heldout_fraction=0.2,
    )
    whole = elsewhere(config, tmp_path / "whole", part_bytes=10**9)  # all in one run, in memory
    alone = elsewhere(config, tmp_path / "alone")
    try:
        expected = build_corpus(whole).built["s"].manifest
    except DataError as error:  # all of it may be held out
        with pytest.raises(DataError) as caught:
            build_by_tasks(config, list(range(num_tasks)))
        assert caught.value.problems == error.problems
        return
    build_corpus(alone)
    order = random.Random(seed).sample(range(num_tasks), num_tasks)
    *_, last = build_by_tasks(config, order)
    assert contents(config.folder) == contents(alone.folder)
    found = last.built["s"].manifest
    for split in ("train", "heldout"):
        same = list(read_documents(f"{config.folder}/s/{split}"))
        assert same == list(read_documents(f"{whole.folder}/s/{split}"))
        assert found.documents(split) == len(same)
        assert found.text_bytes(split) == sum(len(text.encode()) for text in same)
    assert replace(found, splits={}) == replace(expected, splits={})


def test_the_first_of_equal_texts_stays_and_only_files_that_hold_another_are_written_again(
    tmp_path,
):
    write_raw(tmp_path / "raw", [["one", "two"], ["three", "four"], ["five", "one", "six"]])
    config = make_config(tmp_path, heldout_fraction=0)
    build_corpus(config, ArrayTask(0, 2))
    parts = [path / "train" for path in Path(config.folder).glob(".s.building/parts/*")]
    before = {path.stat().st_ino for part in parts for path in part.iterdir()}
    build_corpus(config, ArrayTask(1, 2))
    files = sorted(Path(config.folder, "s", "train").iterdir())
    lines = [[json.loads(line)["text"] for line in path.read_text().splitlines()] for path in files]
    assert lines == [["one", "two"], ["three", "four"], ["five", "six"]]
    after = [path.stat().st_ino for path in files]
    assert before <= set(after)
    assert load_corpus_manifest(f"{config.folder}/s").dropped == {"duplicate": 1}


def test_a_file_of_which_nothing_is_left_is_not_listed(tmp_path):
    write_raw(tmp_path / "raw", [["one", "two"], ["two", "one"], ["three"]])
    config = make_config(tmp_path, heldout_fraction=0)
    build_corpus(config)
    files = load_corpus_manifest(f"{config.folder}/s").splits["train"]
    assert [file.name for file in files] == ["documents-00000.jsonl", "documents-00001.jsonl"]
    assert list(read_documents(f"{config.folder}/s/train")) == ["one", "two", "three"]


@given(sizes=st.lists(st.integers(0, 100), max_size=20), at_least=st.integers(1, 150))
def test_runs_of_files_cover_them_all(sizes, at_least):
    runs = cut_into_runs(sizes, at_least)
    assert list(itertools.chain(*(range(a, b) for a, b in runs))) == list(range(len(sizes)))
    assert all(sum(sizes[a:b]) >= at_least for a, b in runs[:-1])
    assert all(sum(sizes[a : b - 1]) < at_least for a, b in runs)


def some_files(count: int) -> list[list[str]]:
    """Ten texts a file, some of them in all files."""
    return [
        [f"text {n} of {k}" if n % 3 else f"text {n} of all" for n in range(10)]
        for k in range(count)
    ]


@pytest.fixture
def config(tmp_path):
    write_raw(tmp_path / "raw", some_files(12))
    return make_config(tmp_path)


@pytest.fixture
def expected(config, tmp_path):
    alone = elsewhere(config, tmp_path / "alone")
    build_corpus(alone)
    return contents(alone.folder)


def test_a_finished_task_run_again_does_nothing(config):
    first = build_corpus(config, ArrayTask(1, 3))
    again = build_corpus(config, ArrayTask(1, 3))
    assert (first.units_done, first.units_found) == (4, 0)
    assert (again.units_done, again.units_found) == (0, 4)
    assert again.unfinished["s"].progress.missing == (0, 2)


def test_another_number_of_tasks_loses_nothing_and_does_nothing_twice(config, expected):
    """The case in which markers that hold a number alone lost half of the input."""
    first = build_by_tasks(config, [0, 1])[:1]
    assert first[0].units_done == 6
    shutil.rmtree(f"{config.folder}/s")
    build_corpus(config, ArrayTask(1, 2))
    summaries = build_by_tasks(config, [0, 1, 2, 3])
    assert sum(summary.units_done for summary in summaries) == 6
    assert sum(summary.units_found for summary in summaries) == 6
    assert contents(config.folder) == expected


def test_one_process_goes_on_with_what_tasks_have_done(config, expected):
    build_corpus(config, ArrayTask(0, 3))
    assert build_corpus(config).units_found == 4
    assert contents(config.folder) == expected


def test_a_changed_configuration_between_tasks_is_named_and_mixes_nothing(config, expected):
    build_corpus(config, ArrayTask(0, 2))
    other = config.model_copy(update={"min_chars": 2})
    summary = build_corpus(other, ArrayTask(1, 2))
    progress = summary.unfinished["s"].progress
    assert (progress.missing, progress.foreign) == ((0,), ("0-of-2",))
    assert not os.path.exists(f"{config.folder}/s")
    # The marker that the other has left under the same name does not stand for this one.
    (progress,) = corpus_progress(config, 2)
    assert (progress.missing, progress.foreign) == ((1,), ("1-of-2",))
    build_corpus(config, ArrayTask(1, 2))
    assert contents(config.folder) == expected


def test_after_an_input_was_mended_only_its_run_of_files_is_done_again(config, tmp_path):
    broken = tmp_path / "raw" / "raw07.jsonl"
    whole = broken.read_text()
    broken.write_text(whole[:-20])
    done = build_corpus(config, ArrayTask(0, 2))
    with pytest.raises(DataError, match=r"raw07.jsonl:10: not JSON"):
        build_corpus(config, ArrayTask(1, 2))
    (progress,) = corpus_progress(config, 2)
    assert progress.missing == (1,)
    time.sleep(0.01)
    broken.write_text(whole)
    again = build_corpus(config, ArrayTask(1, 2))
    assert again.units_done == 5  # those that came before it were done
    assert again.unfinished["s"].progress.foreign == ("0-of-2",)
    redone = build_corpus(config, ArrayTask(0, 2))
    assert (redone.units_done, redone.units_found) == (0, done.units_done)
    assert redone.built["s"].is_new


def test_the_limit_of_broken_records_holds_for_all_parts_together(config, tmp_path):
    for number in (1, 8):
        with open(tmp_path / "raw" / f"raw{number:02d}.jsonl", "a") as file:
            file.write("{broken\n")

    def allowing(count):
        sources = {"s": {**config.sources["s"].model_dump(), "max_bad_records": count}}
        return CorpusConfig.model_validate({**config.model_dump(), "sources": sources})

    build_corpus(allowing(1), ArrayTask(0, 2))
    with pytest.raises(DataError, match=r"2 broken records; .* = 1 allows 1") as caught:
        build_corpus(allowing(1), ArrayTask(1, 2))
    assert re.findall(r"jsonl:(\d+)[,:]", caught.value.problems[0]) == ["11", "11"]
    assert corpus_progress(allowing(1), 2)[0].missing == (0,)  # all that is missing is the end
    summaries = build_by_tasks(allowing(2), [0, 1])
    assert [summary.units_done for summary in summaries] == [0, 0]
    assert summaries[1].built["s"].manifest.dropped["broken"] == 2


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[12] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("spoil", [lambda file: shutil.rmtree(file.parents[1]), flip_a_bit])
def test_a_part_that_was_lost_or_damaged_is_made_again_by_its_task(config, expected, spoil):
    for number in (0, 1):
        build_corpus(config, ArrayTask(number, 3))
    file = next(Path(config.folder).glob(".s.building/parts/*/train/*"))
    spoil(file)
    with pytest.raises(DataError, match=r"1 of 12 pieces of work are not there .* Run task") as e:
        build_corpus(config, ArrayTask(2, 3))
    (missing,) = corpus_progress(config, 3)[0].missing
    assert f"Run task {missing} of 3 again" in str(e.value)
    assert build_corpus(config, ArrayTask(missing, 3)).units_done == 1
    assert contents(config.folder) == expected


def test_a_file_lost_while_its_parts_are_put_together_is_made_again(config, expected, monkeypatch):
    build_corpus(config, ArrayTask(0, 2))
    with monkeypatch.context() as patch:

        def end_here(folder):
            raise KeyboardInterrupt

        patch.setattr("lmscale.tasks.finishing.fsync_folder", end_here)  # all files are moved
        with pytest.raises(KeyboardInterrupt):
            build_corpus(config, ArrayTask(1, 2))
    moved = sorted(Path(config.folder).glob(".s.building/*/train/documents-*.jsonl"))
    assert len(moved) == 12
    moved[0].unlink()  # as it came from its part
    moved[-1].unlink()  # written without duplicates
    with pytest.raises(DataError, match=r"1\d of 12 pieces of work .* Run task 0, 1 of 2 again"):
        build_corpus(config, ArrayTask(1, 2))
    build_by_tasks(config, [0, 1])
    assert contents(config.folder) == expected


def test_force_replaces_what_was_built_otherwise_and_only_that(config, expected):
    other = config.model_copy(update={"min_chars": 3})
    build_corpus(other)
    with pytest.raises(DataError, match=r"other settings \(min_chars\).*--force"):
        build_corpus(config, ArrayTask(0, 1))
    for number in range(2):
        build_corpus(config, ArrayTask(number, 2), force=True)
    assert contents(config.folder) == expected
    again = build_corpus(config, ArrayTask(0, 2), force=True)
    assert (again.units_done, again.built["s"].is_new) == (0, False)


def test_sources_are_shared_too_and_each_is_there_as_soon_as_it_is_whole(tmp_path):
    write_raw(tmp_path / "raw", some_files(8), "big")
    write_raw(tmp_path / "raw", some_files(1), "small")
    inputs = {name: {"inputs": [f"{tmp_path}/raw/{name}*.jsonl"]} for name in ("big", "small")}
    config = make_config(tmp_path, sources=inputs)
    summaries = build_by_tasks(config, [3, 2, 1, 0])
    assert [summary.units_done for summary in summaries] == [3, 2, 2, 2]
    states = [sorted(summary.built) for summary in summaries]
    assert states[-1] == ["big", "small"]
    assert ["small"] in states[:-1]


def write_yaml(config: CorpusConfig, path: Path) -> Path:
    path.write_text(json.dumps({"run": {"name": "t"}, "corpus": config.model_dump(mode="json")}))
    return path


def test_real_processes_at_once_build_it_though_one_is_killed(config, expected, tmp_path):
    yaml = write_yaml(config, tmp_path / "run.yaml")

    def start(number):
        return start_lmscale("corpus", "build", yaml, "--task", f"{number}/4", "--processes", "1")

    tasks = [start(number) for number in range(4)]
    while not list(Path(config.folder).glob(".s.building/parts/*")) and tasks[2].poll() is None:
        time.sleep(0.001)
    with suppress(ProcessLookupError):  # it has ended before
        os.killpg(tasks[2].pid, signal.SIGKILL)
    printed = [task.communicate(timeout=60)[0] for task in tasks]
    assert [task.returncode for task in tasks] in ([0, 0, -9, 0], [0, 0, 0, 0])
    again = start(2)
    printed.append(again.communicate(timeout=60)[0])
    assert again.returncode == 0
    assert contents(config.folder) == expected
    assert sum("s: built" in text for text in printed) == 1, printed


def test_tasks_that_end_together_have_one_finisher(config, expected, tmp_path):
    """All markers but the last one's are there; several copies of the last come at once."""
    yaml = write_yaml(config, tmp_path / "run.yaml")
    for number in range(3):
        build_corpus(config, ArrayTask(number, 4))
    command = ("corpus", "build", yaml, "--task", "3/4", "--processes", "1")
    copies = [start_lmscale(*command) for _ in range(4)]
    printed = [copy.communicate(timeout=120)[0] for copy in copies]
    assert contents(config.folder) == expected
    assert sum("s: built" in text for text in printed) == 1, printed
    for copy, text in zip(copies, printed, strict=True):
        assert copy.returncode in (0, 2), text
        assert "Traceback" not in text


KILLED = """
from lmscale.config.corpus import CorpusConfig
from lmscale.corpus.build import build_corpus
from lmscale.tasks.target import ArrayTask
config = CorpusConfig.model_validate({config!r})
def work():
    build_corpus(config, ArrayTask(1, 2))
"""


def test_a_task_killed_before_any_change_of_the_disk_is_mended_by_running_it_again(
    tmp_path,
):
    write_raw(tmp_path / "raw", some_files(3))
    config = make_config(tmp_path)
    alone = elsewhere(config, tmp_path / "alone")
    build_corpus(alone)
    build_corpus(config, ArrayTask(0, 2))
    shutil.copytree(config.folder, tmp_path / "begun")
    with open_killer(KILLED.format(config=config.model_dump())) as kill_at:
        for change in itertools.count(1):
            was_killed = kill_at(change)
            build_corpus(config, ArrayTask(1, 2))
            assert contents(config.folder) == contents(alone.folder), change
            if not was_killed:
                break
            shutil.rmtree(config.folder)
            shutil.copytree(tmp_path / "begun", config.folder)
    assert change > 40


def test_an_index_is_uint64_and_sorted(config):
    build_corpus(config, ArrayTask(0, 2))
    for path in Path(config.folder).glob(".s.building/parts/*/index.npy"):
        index = np.load(path)
        assert (index.dtype, index.shape) == (np.uint64, (5, 10))
        assert (np.diff(index[0].astype(np.float64)) >= 0).all()
