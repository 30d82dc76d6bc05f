"""Tasks share units without gap or overlap, and only markers of the same build count."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmscale.errors import ConfigError, DataError
from lmscale.tasks.finishing import Unfinished, conclude, marker_hash, read_progress, tidy
from lmscale.tasks.target import ArrayTask, Target, UnitsMissing, deal, parse_task


@dataclass(frozen=True)
class ToyUnit:
    """A piece of work that is done always."""

    bytes: int

    def is_done(self) -> bool:
        return True

    def do(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class ToyTarget(Target[str]):
    """A folder with nothing but its manifest, which holds the target's key."""

    kind, setting, contents = "toy", "toys.folder", ()

    name: str = "toy"
    what: str = "toys"
    fail: Callable[[], None] = field(default=lambda: None)

    def load(self, folder: Path) -> str:
        return json.loads((folder / "manifest.json").read_text())["key"]

    def key_of(self, manifest: str) -> str:
        return manifest

    def files_of(self, manifest: str) -> Iterable[tuple[str, int]]:
        return ()

    def describe_difference(self, manifest: str) -> str:
        return "from another key"

    def assemble(self, processes: int):
        self.fail()
        return {"key": self.key}, []


def toy_target(final: Path, key: str, sizes: Iterable[int], rank: int = 0) -> ToyTarget:
    return ToyTarget(final=final, key=key, units=tuple(map(ToyUnit, sizes)), rank=rank)


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
    build = toy_target(tmp_path_factory.getbasetemp() / "x", "k", sizes)
    units = [build.units_of(ArrayTask(number, num_tasks)) for number in range(num_tasks)]
    assert sorted(map(id, itertools.chain(*units))) == sorted(map(id, build.units))


def test_a_task_is_written_as_its_number_of_how_many():
    assert parse_task("0/1") == ArrayTask(0, 1)
    assert parse_task("7/8") == ArrayTask(7, 8)
    assert str(ArrayTask(7, 8)) == "task 7 of 8"
    for text in ("8/8", "-1/8", "1", "1/0", "a/b", "1/8/2", " 1/8", "١/٨"):
        with pytest.raises(ConfigError, match=r"--task .* from 0 to N - 1"):
            parse_task(text)


@pytest.fixture
def build(tmp_path):
    return toy_target(tmp_path / "out", "0123456789abcdef0", (5, 5, 5, 5))


def end(build, number, count, *, fail=None):
    """What a task does once its units are there, and what is told of it."""
    target = replace(build, fail=fail) if fail else build
    told = conclude(target, ArrayTask(number, count), seconds=1.0, processes=1)
    if isinstance(told, Unfinished):
        return "waiting"
    return "finished" if told.is_new else "already"


def test_the_task_that_finds_all_markers_finishes(build):
    assert end(build, 1, 2) == "waiting"
    assert read_progress(build, 2).missing == (0,)
    assert end(build, 1, 2) == "waiting"  # again: nothing has changed
    assert end(build, 0, 2) == "finished"
    assert build.final.is_dir() and not build.folder.exists()
    assert end(build, 0, 2) == "already"


def test_a_marker_tells_what_it_is_of(build):
    end(build, 1, 3)
    (marker,) = (build.folder / "tasks").iterdir()
    content = json.loads(marker.read_text())
    assert marker.name == "1-of-3.json"
    assert content["hash"] == marker_hash(build, 3)
    assert content["key"] == build.key
    assert content["units"] == 2


def test_a_task_without_units_leaves_no_marker_and_is_not_waited_for(tmp_path):
    build = toy_target(tmp_path / "out", "k" * 16, (5,), rank=2)
    assert end(build, 1, 5) == "waiting"
    assert read_progress(build, 5).missing == (4,)
    assert end(build, 4, 5) == "finished"


@pytest.mark.parametrize(
    ("key", "sizes"), [("another configuration", (5,) * 4), (None, (5, 5, 5, 6)), (None, (5,) * 3)]
)
def test_a_marker_of_another_build_does_not_count_and_is_named(build, key, sizes):
    end(toy_target(build.final, key or build.key, sizes), 0, 2)
    progress = read_progress(build, 2)
    assert (progress.ended, progress.foreign) == (frozenset(), ("0-of-2",))
    assert end(build, 1, 2) == "waiting"
    assert end(build, 0, 2) == "finished"


def test_a_marker_of_another_number_of_tasks_does_not_count(build):
    for number in range(3):
        end(build, number, 4)
    progress = read_progress(build, 2)
    assert (progress.ended, progress.foreign, progress.other_counts) == (frozenset(), (), (4,))
    assert progress.missing == (0, 1)
    # Renamed to look like this array's, it still does not count.
    (build.folder / "tasks" / "0-of-4.json").rename(build.folder / "tasks" / "0-of-2.json")
    assert read_progress(build, 2).foreign == ("0-of-2",)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"hash": 3}', "null"])
def test_a_marker_that_cannot_be_read_does_not_count(build, content):
    (build.folder / "tasks").mkdir(parents=True)
    (build.folder / "tasks" / "0-of-1.json").write_text(content)
    progress = read_progress(build, 1)
    assert (progress.missing, progress.foreign) == ((0,), ("0-of-1",))


def test_units_that_were_lost_are_named_by_their_task_which_is_missing_again(build):
    def lose():
        raise UnitsMissing([3])

    end(build, 0, 4, fail=lose)
    end(build, 1, 4, fail=lose)
    end(build, 2, 4, fail=lose)
    with pytest.raises(DataError, match=r"1 of 4 pieces of work .* Run task 3 of 4 again"):
        end(build, 3, 4, fail=lose)
    assert read_progress(build, 4).missing == (3,)
    assert end(build, 3, 4) == "finished"


def test_where_only_the_end_is_missing_one_task_is(build):
    def fail():
        raise DataError("no space")

    end(build, 0, 2)
    with pytest.raises(DataError, match="no space"):
        end(build, 1, 2, fail=fail)
    assert read_progress(build, 2).missing == (0,)
    assert end(build, 0, 2) == "finished"


def test_tidying_leaves_what_other_settings_made(build):
    other = replace(build, key="fedcba9876543210f")
    end(build, 0, 2)
    end(other, 1, 2)
    other.work.mkdir()
    (other.work / "file").touch()
    build.work.mkdir()
    tidy(build)
    assert not build.work.exists()
    assert [path.name for path in (build.folder / "tasks").iterdir()] == ["1-of-2.json"]
    (other.work / "file").unlink()
    tidy(other)
    assert not build.folder.exists()
