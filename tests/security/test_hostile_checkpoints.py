"""A checkpoint is read by its maker's own word: what that word may make a reader do is nothing."""

import json
import struct

import numpy as np
import pytest
import torch
from hostile import Trap, make_trap
from safetensors.torch import save
from sealed import SOUND, WEIGHTS, seal, write

from lmscale.checkpoint.find import find_damage, load_manifest
from lmscale.checkpoint.load import load_weights
from lmscale.checkpoint.manifest import ITEM_BYTES, parse_manifest
from lmscale.checkpoint.write_file import DTYPE_NAMES
from lmscale.errors import CheckpointError


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
    "a header longer than the file": struct.pack("<Q", 2**60) + b"{}" + bytes(32),
    "a header that is no JSON": safetensors_of(b"{" * 100),
    "another tensor": save({"v:master:0": WEIGHTS}),
    "fewer elements": save({"w:master:0": WEIGHTS[:4].clone()}),
    "another shape": save({"w:master:0": WEIGHTS.view(2, 4).clone()}),
    "nothing but zeros": bytes(40),
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


SHAPES = {
    "too many elements": (2**40, 2**40),
    "the fewest that are too many": (2**30, 2**30),
    "a negative one": (-1, 8),
    "a fraction": (2.0,),
    "a text": ("8",),
    "none, in a dimension of too many": (0, 2**70),
    "none, in dimensions that are too many together": (0, 2**30, 2**30),
    "too many dimensions": (1,) * 65,
    "a million dimensions": (2**59,) * 1_000_000,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_trained", [True, False])
def test_a_shape_that_no_tensor_has_is_refused_before_memory_is_taken(shape, is_trained):
    size = list(SHAPES[shape])
    row = {"shape": size, "dtype": "F32", "kind": "buffer"}
    trained = {"parameters": {"w": size}, "states": {"w": ["master"]}}
    changes = trained if is_trained else {"parameters": {}, "states": {}, "replicated": {"w": row}}
    where = "parameters.w" if is_trained else "replicated.w.shape"
    with pytest.raises(CheckpointError, match=f"refused: {where}"):
        parse_manifest(seal(file={"fragments": [[], [], []]}, **changes), "x")


PIECES = {
    "a tensor larger than its file": ([2**38], [[0], [0], [2**38]]),
    "a piece larger than its file": ([2**38], [[0], [0], [27]]),
    "one piece again and again": ([2, 4], [[0] * 4, [0] * 4, [8] * 4]),
}


@pytest.mark.parametrize("case", PIECES)
def test_pieces_that_need_more_bytes_than_their_file_has_are_refused(case):
    shape, pieces = PIECES[case]
    assert len(SOUND) == 104, "26 elements of 4 bytes, if it had no header"
    with pytest.raises(CheckpointError, match=r"its pieces need \d+ bytes, and it has 104"):
        parse_manifest(seal(parameters={"w": shape}, file={"fragments": pieces}), "x")


def test_of_a_trained_tensor_all_kinds_are_counted_in_its_files_bytes():
    pieces = {"fragments": [[0], [0], [13]]}
    states = {"w": ["master", "exp_avg"]}
    assert parse_manifest(seal(parameters={"w": [13]}, states=states, file=pieces), "x")
    states["w"].append("exp_avg_sq")
    with pytest.raises(CheckpointError, match="need 156 bytes"):
        parse_manifest(seal(parameters={"w": [13]}, states=states, file=pieces), "x")


def test_the_bytes_of_an_element_are_known_of_every_dtype_that_is_stored():
    assert {name: dtype.itemsize for dtype, name in DTYPE_NAMES.items()} == ITEM_BYTES


@pytest.mark.parametrize("step", [7, None])
def test_no_memory_is_taken_for_a_tensor_of_which_no_file_has_a_piece(tmp_path, step):
    place = write(tmp_path, parameters={"w": (2**58,)}, fragments=())
    with pytest.raises(CheckpointError, match=f"elements around 0 of {2**58} are missing"):
        load_weights(place, step)
