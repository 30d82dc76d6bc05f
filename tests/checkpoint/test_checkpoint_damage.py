"""Real checkpoints, damaged in every way: what is not whole is passed over, and never loaded."""

import json
import logging
import shutil

import pytest

from lmscale.checkpoint import find_resumable, list_steps, load_manifest, load_model_weights
from lmscale.checkpoint.layout import step_folder
from lmscale.checkpoint.resume import check_same_model
from lmscale.errors import CheckpointError
from lmscale.runtime.ranks import Ranks

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

ALONE = Ranks()
FILES = ("manifest.json", "rank-00000.safetensors", "rank-00001.safetensors")


def flip_first(path):
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


def flip_middle(path):
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def grow(path):
    path.write_bytes(path.read_bytes() + b"\0")


def remove(path):
    path.unlink()


DAMAGES = (flip_first, flip_middle, cut, empty, grow, remove)


def test_the_newest_whole_checkpoint_is_resumed(checkpoints):
    assert list_steps(checkpoints) == [6, 4, 2]
    assert find_resumable(checkpoints, ALONE).step == 6


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (damage, name)
        for damage in DAMAGES
        for name in FILES
        if (damage, name) != (cut, FILES[0])  # its last byte is a newline: JSON needs none
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_resumed(
    checkpoints, damage, name, caplog
):
    damage(checkpoints / "step-000000006" / name)
    with caplog.at_level(logging.WARNING):
        assert find_resumable(checkpoints, ALONE).step == 4
    if (damage, name) != (remove, "manifest.json"):  # without a manifest it never was one
        assert "checkpoint of step 6 passed over" in caplog.text
        assert str(checkpoints / "step-000000006" / name) in caplog.text


def test_two_damaged_checkpoints_are_passed_over(checkpoints):
    cut(checkpoints / "step-000000006" / FILES[1])
    flip_middle(checkpoints / "step-000000004" / FILES[0])
    assert find_resumable(checkpoints, ALONE).step == 2


def test_when_all_are_damaged_the_run_does_not_start_from_scratch(checkpoints):
    for step, damage in zip((2, 4, 6), (cut, flip_middle, empty), strict=True):
        damage(step_folder(checkpoints, step) / FILES[1])
    with pytest.raises(CheckpointError) as caught:
        find_resumable(checkpoints, ALONE)
    assert len(caught.value.problems) == 4
    for step in (2, 4, 6):
        assert any(f"step-{step:09d}/rank-00000" in problem for problem in caught.value.problems)
    assert "None of the 3 checkpoints" in caught.value.problems[-1]
    assert "move the folder away to start the run from the beginning" in caught.value.problems[-1]


def test_a_run_that_never_saved_starts_from_scratch(tmp_path):
    assert find_resumable(tmp_path / "checkpoints", ALONE) is None
    (tmp_path / "checkpoints" / "step-000000001").mkdir(parents=True)  # a torn first save
    assert find_resumable(tmp_path / "checkpoints", ALONE) is None


def test_what_is_no_checkpoints_folder_is_not_looked_at(checkpoints):
    shutil.copytree(checkpoints / "step-000000006", checkpoints / "step-000000009.old")
    shutil.copytree(checkpoints / "step-000000006", checkpoints / "copy of step-000000009")
    (checkpoints / "step-000000010").touch()
    assert list_steps(checkpoints) == [6, 4, 2]


def test_a_changed_value_in_a_manifest_is_found_although_it_is_good_json(checkpoints):
    path = checkpoints / "step-000000006" / "manifest.json"
    tree = json.loads(path.read_text())
    tree["state"]["progress"]["n"] += 12  # 12 samples would never be used
    path.write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match="does not match its own hash"):
        load_manifest(checkpoints, 6)
    assert find_resumable(checkpoints, ALONE).step == 4


def test_a_manifest_of_another_version_is_refused_by_its_number(checkpoints):
    path = checkpoints / "step-000000006" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    with pytest.raises(CheckpointError, match="version 99 of the checkpoint format"):
        load_manifest(checkpoints, 6)


@pytest.mark.parametrize("name", FILES[1:])
@pytest.mark.parametrize("damage", DAMAGES)
def test_weights_are_never_read_from_a_damaged_file(checkpoints, damage, name):
    damage(checkpoints / "step-000000004" / name)
    with pytest.raises(CheckpointError, match=f"step-000000004/{name}"):
        load_model_weights(checkpoints.parent, step=4)
    assert load_model_weights(checkpoints.parent)  # the newest


def test_a_step_that_was_not_saved_is_refused_with_those_that_were(checkpoints):
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 5. There are: 6, 4, 2\."):
        load_model_weights(checkpoints.parent, step=5)
    shutil.rmtree(checkpoints)
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        load_model_weights(checkpoints.parent)


def test_models_that_differ_are_told_apart_parameter_by_parameter(checkpoints):
    manifest = load_manifest(checkpoints, 6)
    shapes = dict(manifest.parameters)
    check_same_model(checkpoints, manifest, shapes)
    gone, wider = list(shapes)[:2]
    shapes["new.weight"] = shapes.pop(gone)
    shapes[wider] = (*shapes[wider], 7)
    with pytest.raises(CheckpointError) as caught:
        check_same_model(checkpoints, manifest, shapes)
    text = str(caught.value)
    assert "is a checkpoint of another model" in text
    assert "new.weight is not in the checkpoint" in text
    assert f"{gone} is only in the checkpoint" in text
    assert f"{wider} is {manifest.parameters[wider]} in the checkpoint and {shapes[wider]}" in text


def test_of_many_differences_the_first_are_told(checkpoints):
    manifest = load_manifest(checkpoints, 6)
    with pytest.raises(CheckpointError) as caught:
        check_same_model(checkpoints, manifest, {})
    assert f"and {len(manifest.parameters) - 8} more" in str(caught.value)
