"""Checkpoints damaged in every way: what is not whole is passed over with the reason, and never
loaded.
"""

import json
import logging
import shutil
import tempfile
from pathlib import Path

import fsspec
import pytest
import torch
from damaged_files import (
    FILES,
    STEPS,
    cut,
    damage,
    empty,
    flip_first,
    flip_middle,
    grow,
    halve,
    remove,
    scramble,
    three_checkpoints,
)
from handmade_checkpoints import first, render, save, search, step_taken, weights_of, write_part
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmscale.checkpoint.find import find_sound, load_manifest
from lmscale.checkpoint.layout import step_folder
from lmscale.checkpoint.load import load_weights, open_weights
from lmscale.checkpoint.manifest import parse_manifest
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.checkpoint.places.remote_place import RemotePlace
from lmscale.errors import CheckpointError, RefusedError
from lmscale.files.cache import NodeCache
from lmscale.ranks.ranks import Ranks

ALONE = Ranks()


@pytest.fixture
def place(tmp_path):
    """Checkpoints of steps 2, 4 and 6, to be damaged."""
    return three_checkpoints(tmp_path / "checkpoints")


DAMAGES = {
    flip_first: "does not have the hash",
    flip_middle: "does not have the hash",
    cut: "bytes instead of",
    halve: "bytes instead of",
    empty: "bytes instead of",
    grow: "bytes instead of",
    scramble: "does not have the hash",
    remove: "is missing",
}
# Whatever a manifest's first or middle byte is: it is no JSON any more, or another hash.
OF_MANIFEST = "not a checkpoint's manifest|does not match its own hash|cannot be read|version"


def test_the_newest_whole_checkpoint_is_resumed(place):
    assert place.list_steps() == [6, 4, 2]
    assert find_sound(place, ALONE).step == 6
    assert step_taken(place) == 6


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (change, name)
        for change in DAMAGES
        for name in FILES
        if (change, name) != (cut, FILES[0])  # its last byte is a newline: JSON needs none
    ],
)
def test_a_damaged_checkpoint_is_named_with_the_reason_and_the_one_before_is_resumed(
    place, change, name, caplog
):
    path = damage(place, 6, name, change)
    looking = search(place)
    with caplog.at_level(logging.WARNING):
        assert next(looking).manifest.step == 4
    if (change, name) == (remove, FILES[0]):
        assert looking.passed_over == []  # without a manifest it never was one
        return
    (passed,) = looking.passed_over
    assert (passed.step, passed.name) == (6, place.name_of(6))
    why = OF_MANIFEST if name == FILES[0] else DAMAGES[change]
    with pytest.raises(CheckpointError, match=f"{path}.*({why})"):
        raise CheckpointError(passed.why)
    assert f"checkpoint of step 6 passed over: {passed.why[0]}" in caplog.text


def test_a_save_that_was_never_committed_is_named_when_it_is_cleared_away(place, caplog):
    place.begin(8)
    write_part(place, 8, 0, 2)
    with caplog.at_level(logging.WARNING):
        place.discard_uncommitted()
    assert "step-000000008 was never committed: it is cleared away" in caplog.text
    assert place.list_steps(committed=False) == [] and step_taken(place) == 6


def test_weights_that_are_not_finite_are_passed_over(place):
    save(place, 8, is_finite=False)
    looking = search(place)
    assert next(looking).manifest.step == 6
    assert looking.passed_over[0].why == (f"{place.name_of(8)} holds weights that are not finite.",)


@pytest.mark.parametrize("seal", [{"sha256": "0" * 64}, {}])
@pytest.mark.parametrize(("version", "is_newer"), [(99, True), (1, False), ("x", False)])
def test_a_checkpoint_of_another_version_is_told_as_such_and_no_older_one_taken_for_a_newer(
    place, version, is_newer, seal
):
    def of_another_time(content):
        tree = json.loads(content)
        del tree["sha256"]
        return json.dumps(tree | {"version": version, "files": []} | seal).encode()

    path = damage(place, 6, FILES[0], of_another_time)
    if is_newer:
        with pytest.raises(RefusedError, match=r"written by a newer lmscale \(version 99") as told:
            step_taken(place)
        assert "move" not in str(told.value)
        return
    looking = search(place)
    assert next(looking).manifest.step == 4
    assert looking.passed_over[0].why[0].startswith(f"{path}: version {version!r} of the check")


def test_a_version_that_a_flipped_bit_has_changed_is_damage(place):
    def flip(content):
        assert content.count(b'"version":2') == 1
        return content.replace(b'"version":2', b'"version":6')

    damage(place, 6, FILES[0], flip)
    with pytest.raises(CheckpointError, match="does not match its own hash"):
        load_manifest(place, 6)
    assert step_taken(place) == 4


def test_a_changed_value_in_a_manifest_is_found_although_it_is_good_json(place):
    def skip_samples(content):
        tree = json.loads(content)
        tree["state"]["progress"]["n"] += 12  # 12 samples would never be used
        return json.dumps(tree).encode()

    damage(place, 6, FILES[0], skip_samples)
    with pytest.raises(CheckpointError, match="does not match its own hash"):
        load_manifest(place, 6)
    assert step_taken(place) == 4


def test_a_checkpoint_under_another_steps_name_is_passed_over(place):
    shutil.copytree(step_folder(place.root, 4), step_folder(place.root, 8))
    looking = search(place)
    assert next(looking).manifest.step == 6
    assert looking.passed_over[0].why == (
        f"{place.name_of(8)}/manifest.json is the manifest of step 4: somebody has renamed its "
        "folder.",
    )


def test_several_damaged_checkpoints_are_passed_over(place):
    damage(place, 6, FILES[1], cut)
    damage(place, 4, FILES[2], flip_middle)
    looking = search(place)
    assert next(looking).manifest.step == 2
    assert [one.step for one in looking.passed_over] == [6, 4]


def test_when_all_are_damaged_the_run_does_not_start_from_scratch(place):
    for step, change in zip(STEPS, (cut, flip_middle, empty), strict=True):
        damage(place, step, FILES[1], change)
    with pytest.raises(CheckpointError) as caught:
        first(place)
    assert len(caught.value.problems) == 4
    for step in STEPS:
        assert any(f"step-{step:09d}/rank-00000" in problem for problem in caught.value.problems)
    assert caught.value.problems[-1] == (
        f"None of the 3 checkpoints in {place.location} can be used. Restore one, or move the "
        "folder away to start the run from the beginning."
    )


@pytest.mark.parametrize("name", FILES[1:])
@pytest.mark.parametrize("change", DAMAGES)
def test_weights_are_never_read_from_a_damaged_file(place, change, name):
    damage(place, 4, name, change)
    with pytest.raises(CheckpointError, match=f"step-000000004/{name}"):
        load_weights(place, step=4)
    assert torch.equal(load_weights(place)["w"], weights_of(6))  # the newest


def test_a_file_of_another_node_is_named_when_it_is_to_be_loaded(place):
    manifest = load_manifest(place, 6)
    damage(place, 6, FILES[2], remove)
    with pytest.raises(CheckpointError, match=f"step-000000006/{FILES[2]} is not to be found here"):
        with open_weights(place, manifest) as read:
            read("w")


@pytest.fixture(scope="module", params=["folder", "url"])
def specimen(request, tmp_path_factory):
    """A place with three checkpoints, and a way to get at the bytes of any file."""
    folder = tmp_path_factory.mktemp("specimen")
    if request.param == "folder":
        place = LocalPlace(folder / "checkpoints")
        files = Bytes(fsspec.filesystem("file"), str(folder / "checkpoints"))
    else:
        cache = NodeCache(folder=Path(tempfile.mkdtemp(dir=folder)), max_bytes=2**40, retries=0)
        place = RemotePlace("memory://damage", retries=0, cache=cache)
        files = Bytes(fsspec.filesystem("memory"), "/damage")
    for step in STEPS:
        save(place, step)
    return place, files


class Bytes:
    """All files below a folder of any file system, to be changed and put back."""

    def __init__(self, filesystem, root):
        self._filesystem, self._root = filesystem, root

    def read(self):
        return {path: self._filesystem.cat_file(path) for path in self._filesystem.find(self._root)}

    def write(self, contents):
        for path in self._filesystem.find(self._root):
            self._filesystem.rm_file(path)
        for path, content in contents.items():
            self._filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._filesystem.pipe_file(path, content)


@st.composite
def corruptions(draw):
    """Which file, and how it is changed: (share of the files, share of the bytes, what)."""
    share = st.floats(0, 1, exclude_max=True)
    kind = draw(st.sampled_from(["flip", "cut", "grow", "replace", "swap", "remove"]))
    return draw(share), draw(share), draw(share), kind, draw(st.binary(min_size=1, max_size=64))


def corrupt(contents, corruption):
    which, where, other, kind, junk = corruption
    names = sorted(contents)
    if not names:
        return
    name = names[int(which * len(names))]
    content = contents[name]
    at = int(where * len(content))
    if kind == "flip" and content:
        contents[name] = content[:at] + bytes([content[at] ^ (junk[0] or 1)]) + content[at + 1 :]
    elif kind == "cut":
        contents[name] = content[:at]
    elif kind == "grow":
        contents[name] = content + junk
    elif kind == "replace":
        contents[name] = content[:at] + junk + content[at + len(junk) :]
    elif kind == "swap":
        second = names[int(other * len(names))]
        contents[name], contents[second] = contents[second], content
    elif kind == "remove":
        del contents[name]


@given(st.lists(corruptions(), min_size=1, max_size=5))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_happens_to_the_files_other_weights_than_were_saved_are_never_loaded(
    specimen, damages
):
    place, files = specimen
    whole = files.read()
    contents = dict(whole)
    for one in damages:
        corrupt(contents, one)
    try:
        files.write(contents)
        untouched = [
            step
            for step in STEPS
            if all(
                contents.get(path) == content
                for path, content in whole.items()
                if f"step-{step:09d}" in path
            )
        ]
        try:
            found = first(place)
        except CheckpointError:
            found = None
        step = 0 if found is None else found.manifest.step
        assert step >= max(untouched, default=0)
        if found is not None:
            assert found.manifest == parse_manifest(render(found.manifest).decode(), "")
            assert found.manifest.state["progress"]["n"] == 12 * step
            assert torch.equal(load_weights(place, step)["w"], weights_of(step))
    finally:
        files.write(whole)
