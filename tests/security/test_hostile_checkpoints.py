"""A checkpoint is read by its maker's own word: what that word may make a reader do is nothing."""

import hashlib
import json
import struct

import numpy as np
import pytest
import torch
from hostile import Trap, make_trap
from safetensors.torch import save

from lmscale.checkpoint.find import find_damage, load_manifest
from lmscale.checkpoint.identity import describe_differences
from lmscale.checkpoint.layout import FileEntry, Manifest, parse_manifest
from lmscale.checkpoint.place import LocalPlace
from lmscale.checkpoint.resume import load_weights
from lmscale.checkpoint.survey import Listed
from lmscale.cli.checkpoint_view import render_checkpoint, render_listed
from lmscale.errors import CheckpointError

WEIGHTS = torch.arange(8, dtype=torch.float32)
SOUND = save({"w:master:0": WEIGHTS})


def write(
    root, content=SOUND, *, name="rank-00000.safetensors", fragments=(("w", 0, 8),), **changes
):
    """A checkpoint of one file, sealed by whoever wrote it: all of its hashes are right."""
    folder = root / "step-000000007"
    folder.mkdir(parents=True)
    entry = FileEntry(
        name=name,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        fragments=tuple(fragments),
    )
    (folder / "rank-00000.safetensors").write_bytes(content)
    manifest = Manifest(
        **{
            "step": 7,
            "parameters": {"w": (2, 4)},
            "states": {"w": ("master",)},
            "optimizer": {"kind": "adamw", "step": 7},
            "loss_scale": None,
            "state": {},
            "identity": {},
            "written_by": {},
            "is_finite": True,
            "files": (entry,),
            **changes,
        }
    )
    (folder / "manifest.json").write_text(json.dumps(manifest.to_json()))
    return LocalPlace(root)


def safetensors_of(header, data=bytes(32)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def row(start, end, shape=(8,), dtype="F32"):
    return {"w:master:0": {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}}


def test_a_sound_one_is_read(tmp_path):
    assert torch.equal(load_weights(write(tmp_path))["w"], WEIGHTS.view(2, 4))


@pytest.mark.parametrize("form", ["pickle", "torch.save", "numpy"])
def test_a_pickle_in_a_checkpoint_is_refused_and_never_loaded(tmp_path, form):
    mark = tmp_path / "it ran"
    trap = make_trap(mark)
    if form == "torch.save":
        torch.save({"w": Trap(mark)}, tmp_path / "x.pt")
        trap = (tmp_path / "x.pt").read_bytes()
    if form == "numpy":
        np.save(tmp_path / "x.npy", np.array([Trap(mark)], dtype=object), allow_pickle=True)
        trap = (tmp_path / "x.npy").read_bytes()
    place = write(tmp_path / "checkpoints", trap)
    with pytest.raises(CheckpointError, match="w:master:0 should have 8 elements"):
        load_weights(place)
    assert not mark.exists()


LIES = {
    "more bytes than the file has": safetensors_of(row(0, 2**40, (2**38,))),
    "a negative offset": safetensors_of(row(-32, 0)),
    "ends before it begins": safetensors_of(row(32, 0)),
    "a shape larger than its bytes": safetensors_of(row(0, 32, (2**61,))),
    "a shape smaller than its bytes": safetensors_of(row(0, 32, (4,))),
    "bytes that belong to nobody": safetensors_of(row(0, 16, (4,))),
    "two tensors in one place": safetensors_of(
        {**row(0, 32), "x": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}
    ),
    "an unknown dtype": safetensors_of(row(0, 32, dtype="OBJECT")),
    "a header longer than the file": struct.pack("<Q", 2**60) + b"{}",
    "a header that is no JSON": safetensors_of(b"{" * 100),
    "another tensor": save({"v:master:0": WEIGHTS}),
    "fewer elements": save({"w:master:0": WEIGHTS[:4].clone()}),
    "another shape": save({"w:master:0": WEIGHTS.view(2, 4).clone()}),
    "nothing": b"",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_an_error_and_no_crash(tmp_path, lie):
    place = write(tmp_path, LIES[lie])
    assert find_damage(place, 7, load_manifest(place, 7).files) == [], "by its hash it is sound"
    with pytest.raises(CheckpointError, match="w:master:0 should have 8 elements, as the manifest"):
        load_weights(place)


@pytest.mark.parametrize(
    "name", ["../rank.safetensors", "/etc/passwd", "a/b", "a\\b", "..", "", "~/x", "x\n", "s3:x"]
)
def test_a_file_name_that_leads_elsewhere_is_refused(tmp_path, name):
    (tmp_path / "rank.safetensors").write_bytes(SOUND)
    place = write(tmp_path / "checkpoints", name=name)
    with pytest.raises(CheckpointError, match="refused: the file name"):
        load_manifest(place, 7)


@pytest.mark.parametrize(
    "fragment",
    [("w", -4, 8), ("w", 0, -1), ("w", 4, 8), ("w", 0, 2**70), ("v", 0, 8), ("w", 0.0, 8)],
)
def test_a_piece_outside_of_its_tensor_is_refused(tmp_path, fragment):
    place = write(tmp_path, fragments=[fragment])
    with pytest.raises(CheckpointError, match="refused: rank-00000.safetensors: a piece of"):
        load_manifest(place, 7)


@pytest.mark.parametrize("shape", [(2**40, 2**40), (-1, 8), (2.0,), ("8",)])
def test_a_shape_that_no_tensor_has_is_refused_before_memory_is_taken(tmp_path, shape):
    place = write(tmp_path, parameters={"w": shape})
    with pytest.raises(CheckpointError, match="refused: w has the shape"):
        load_manifest(place, 7)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "7", "{}", '{"version": 2, "sha256": ""}'])
def test_what_is_no_manifest_is_an_error_and_no_crash(text):
    with pytest.raises(CheckpointError):
        parse_manifest(text, "manifest.json")


def test_a_manifest_in_another_steps_folder_is_refused(tmp_path):
    place = write(tmp_path)
    (tmp_path / "step-000000007").rename(tmp_path / "step-000000009")
    with pytest.raises(CheckpointError, match="of step 7"):
        load_manifest(place, 9)


ESCAPE = "\x1b]0;title\x07\x1b[2J\nnew line"


def test_a_reason_that_no_save_has_is_refused_and_quoted(tmp_path):
    with pytest.raises(CheckpointError, match="for the reason '.*', which is none") as caught:
        load_manifest(write(tmp_path, reason=ESCAPE), 7)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "changes", [{"parameters": {ESCAPE: (-1,)}}, {"name": ESCAPE}, {"fragments": ((ESCAPE, 0, 8),)}]
)
def test_a_name_that_is_told_of_a_manifest_steers_no_terminal(tmp_path, changes):
    with pytest.raises(CheckpointError) as caught:
        load_manifest(write(tmp_path, **changes), 7)
    assert "title" in str(caught.value)
    assert all(problem.isprintable() for problem in caught.value.problems)


def test_a_setting_of_another_run_steers_no_terminal():
    found = describe_differences({"model": {ESCAPE: ESCAPE}}, {"model": {}}, where="here")
    assert len(found) == 1 and found[0].isprintable()


def test_what_a_manifest_says_of_itself_is_shown_on_its_own_line_and_steers_no_terminal(tmp_path):
    writer = dict.fromkeys(("precision", "world_size", "zero_stage", "torch"), ESCAPE)
    place = write(
        tmp_path,
        states={"w": ("master", ESCAPE)},
        identity={"run": ESCAPE},
        written_by=writer,
        optimizer={"kind": ESCAPE, "step": ESCAPE},
        loss_scale={ESCAPE: ESCAPE},
        weights=ESCAPE,
        state={"progress": {"n": 1, "tokens": 2}, "stream": {"segments": [mixture(ESCAPE)]}},
    )
    one = Listed(step=7, name="step-000000007", state="committed", manifest=load_manifest(place, 7))
    shown = render_checkpoint(one, {})
    assert shown.count("title") == 12
    assert all(line.isprintable() for line in [*shown.split("\n"), *render_listed(one)])
    assert not any(line.startswith("new line") for line in shown.split("\n"))


def mixture(name):
    return {"start": 0, "quotas": {name: 1}}
