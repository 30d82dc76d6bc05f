"""Tasks share units without gap or overlap, and only markers of the same build count."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmscale.errors import ConfigError, DataError
from lmscale.tasks.array_tasks import ArrayTask, SharedBuild, deal, parse_task, read_progress
from lmscale.tasks.building import conclude
from lmscale.tasks.finishing import tidy
from lmscale.tasks.target import UnitsMissing

SIZES = st.lists(st.one_of(st.integers(0, 5), st.integers(0, 10**12)), max_size=40)


@given(sizes=SIZES, num_tasks=st.integers(1, 50), first=st.integers(0, 60))
def test_units_are_dealt_in_runs_of_about_equal_size(sizes, num_tasks, first):
    owners = deal(sizes, num_tasks, first=first)
    assert len(owners) == len(sizes)
    assert all(0 <= owner < num_tasks for owner in owners)
    turned = [(owner - first) % num_tasks for owner in owners]
    assert turned == sorted(turned)
    share = sum(size + 1 for size in sizes) / num_tasks
    for _, run in itertools.groupby(zip(owners, sizes, strict=True), key=lambda pair: pair[0]):
        held = [size + 1 for _, size in run]
        assert sum(held) <= share + max(held)


@given(sizes=SIZES, num_tasks=st.integers(1, 9))
def test_every_unit_has_one_task(sizes, num_tasks, tmp_path_factory):
    build = SharedBuild(final=tmp_path_factory.getbasetemp() / "x", key="k", sizes=tuple(sizes))
    units = [build.units_of(ArrayTask(number, num_tasks)) for number in range(num_tasks)]
    assert sorted(itertools.chain(*units)) == list(range(len(sizes)))


def test_a_task_is_written_as_its_number_of_how_many():
    assert parse_task("0/1") == ArrayTask(0, 1)
    assert parse_task("7/8") == ArrayTask(7, 8)
    assert str(ArrayTask(7, 8)) == "task 7 of 8"
    for text in ("8/8", "-1/8", "1", "1/0", "a/b", "1/8/2", " 1/8", "١/٨"):
        with pytest.raises(ConfigError, match=r"--task .* from 0 to N - 1"):
            parse_task(text)


@pytest.fixture
def build(tmp_path):
    return SharedBuild(final=tmp_path / "out", key="0123456789abcdef0", sizes=(5, 5, 5, 5))


def end(build, number, count, *, finish=None):
    """What a task does once its units are there."""

    def move(turn):
        turn.check()
        build.work.mkdir()
        build.work.rename(build.final)

    return conclude(
        build,
        ArrayTask(number, count),
        report={"seconds": 1.0},
        is_built=build.final.exists,
        finish=finish or move,
    )


def test_the_task_that_finds_all_markers_finishes(build):
    assert end(build, 1, 2).state == "waiting"
    assert read_progress(build, 2, is_built=False).missing == (0,)
    assert end(build, 1, 2).state == "waiting"  # again: nothing has changed
    assert end(build, 0, 2).state == "finished"
    assert build.final.is_dir() and not build.folder.exists()
    assert end(build, 0, 2).state == "already"


def test_a_marker_tells_what_it_is_of(build):
    end(build, 1, 3)
    (marker,) = build.markers.iterdir()
    content = json.loads(marker.read_text())
    assert marker.name == "1-of-3.json"
    assert content["hash"] == build.marker_hash(3)
    assert content["key"] == build.key
    assert content["units"] == 2


def test_a_task_without_units_leaves_no_marker_and_is_not_waited_for(tmp_path):
    build = SharedBuild(final=tmp_path / "out", key="k" * 16, sizes=(5,), rank=2)
    assert end(build, 1, 5).state == "waiting"
    assert read_progress(build, 5, is_built=False).missing == (4,)
    assert end(build, 4, 5).state == "finished"


@pytest.mark.parametrize(
    "change", [{"key": "another configuration"}, {"sizes": (5, 5, 5, 6)}, {"sizes": (5, 5, 5)}]
)
def test_a_marker_of_another_build_does_not_count_and_is_named(build, change):
    end(replace(build, **change), 0, 2)
    progress = read_progress(build, 2, is_built=False)
    assert (progress.ended, progress.foreign) == (frozenset(), ("0-of-2",))
    assert end(build, 1, 2).state == "waiting"
    assert end(build, 0, 2).state == "finished"


def test_a_marker_of_another_number_of_tasks_does_not_count(build):
    for number in range(3):
        end(build, number, 4)
    progress = read_progress(build, 2, is_built=False)
    assert (progress.ended, progress.foreign, progress.other_counts) == (frozenset(), (), (4,))
    assert progress.missing == (0, 1)
    # Renamed to look like this array's, it still does not count.
    (build.markers / "0-of-4.json").rename(build.markers / "0-of-2.json")
    assert read_progress(build, 2, is_built=False).foreign == ("0-of-2",)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"hash": 3}', "null"])
def test_a_marker_that_cannot_be_read_does_not_count(build, content):
    build.markers.mkdir(parents=True)
    (build.markers / "0-of-1.json").write_text(content)
    progress = read_progress(build, 1, is_built=False)
    assert (progress.missing, progress.foreign) == ((0,), ("0-of-1",))


def test_units_that_were_lost_are_named_by_their_task_which_is_missing_again(build):
    def lose(turn):
        raise UnitsMissing([3])

    end(build, 0, 4, finish=lose)
    end(build, 1, 4, finish=lose)
    end(build, 2, 4, finish=lose)
    with pytest.raises(DataError, match=r"1 of 4 pieces of work .* Run task 3 of 4 again"):
        end(build, 3, 4, finish=lose)
    assert read_progress(build, 4, is_built=False).missing == (3,)
    assert end(build, 3, 4).state == "finished"


def test_where_only_the_end_is_missing_one_task_is(build):
    def fail(turn):
        raise DataError("no space")

    end(build, 0, 2)
    with pytest.raises(DataError, match="no space"):
        end(build, 1, 2, finish=fail)
    assert read_progress(build, 2, is_built=False).missing == (0,)
    assert end(build, 0, 2).state == "finished"


def test_tidying_leaves_what_other_settings_made(build):
    other = replace(build, key="fedcba9876543210f")
    end(build, 0, 2)
    end(other, 1, 2)
    other.work.mkdir()
    (other.work / "file").touch()
    build.work.mkdir()
    tidy(build)
    assert not build.work.exists()
    assert [path.name for path in build.markers.iterdir()] == ["1-of-2.json"]
    (other.work / "file").unlink()
    tidy(other)
    assert not build.folder.exists()
