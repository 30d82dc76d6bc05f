"""The layout's arithmetic, and fragments read back by any other division than wrote them."""

from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lmscale.checkpoint import LocalPlace
from lmscale.checkpoint.layout import (
    FileEntry,
    Manifest,
    find_gaps,
    list_steps,
    parse_manifest,
    plan_reads,
    step_folder,
    tensor_name,
)
from lmscale.checkpoint.resume import FragmentReader
from lmscale.errors import CheckpointError

KINDS = ("master", "exp_avg")


def make_manifest(parameters, files) -> Manifest:
    return Manifest(
        step=7,
        parameters=parameters,
        states=dict.fromkeys(parameters, KINDS),
        optimizer={"name": "AdamW", "step": 7},
        loss_scale=None,
        state={"progress": {"step": 7, "n": 84}, "ratio": 0.1},
        identity={"run": "tiny"},
        written_by={"world_size": 2},
        is_finite=True,
        files=tuple(files),
    )


def file_of(name, *fragments) -> FileEntry:
    return FileEntry(name=name, bytes=1, sha256="0" * 64, fragments=fragments)


@st.composite
def cuts(draw, numel):
    """Where a flattened parameter is cut: a partition into runs, in order."""
    places = draw(st.sets(st.integers(1, numel - 1), max_size=4)) if numel > 1 else set()
    return [*pairwise([0, *sorted(places), numel])]


@st.composite
def divisions(draw):
    """Sizes of parameters; how they were cut and dealt to files; how they are read."""
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    num_files = draw(st.integers(1, 4))
    written = [
        (number, run, draw(st.integers(0, num_files - 1)))
        for number, size in enumerate(sizes)
        for run in draw(cuts(size))
    ]
    read = [(number, run) for number, size in enumerate(sizes) for run in draw(cuts(size))]
    return sizes, draw(st.permutations(written)), read


@settings(max_examples=60, deadline=None)
@given(divisions())
def test_whatever_division_was_written_any_other_reads_the_same_elements(division):
    sizes, written, read = division
    whole = {
        (number, kind): torch.rand(size) for number, size in enumerate(sizes) for kind in KINDS
    }
    with TemporaryDirectory() as temporary, ExitStack() as stack:
        place = LocalPlace(Path(temporary))
        place.begin(7)
        files = {}
        for number, (low, high), file in written:
            tensors, fragments = files.setdefault(f"rank-{file:05d}.safetensors", ({}, []))
            fragments.append((f"p{number}", low, high - low))
            for kind in KINDS:
                tensors[tensor_name(f"p{number}", kind, low)] = whole[number, kind][
                    low:high
                ].clone()
        for name, (tensors, _) in files.items():
            save_file(tensors, step_folder(place.root, 7) / name)
        manifest = make_manifest(
            {f"p{number}": (size,) for number, size in enumerate(sizes)},
            [file_of(name, *fragments) for name, (_, fragments) in files.items()],
        )
        assert find_gaps(manifest) == []
        reader = FragmentReader(place, manifest, stack)
        for number, (low, high) in read:
            for kind in KINDS:
                target = torch.full((high - low,), float("nan"))
                reader.read_into(target, f"p{number}", kind, low)
                assert torch.equal(target, whole[number, kind][low:high])


def test_elements_that_no_file_holds_are_an_error_not_garbage(tmp_path):
    place = LocalPlace(tmp_path)
    place.begin(7)
    save_file({"p:master:0": torch.ones(4)}, step_folder(tmp_path, 7) / "f")
    manifest = make_manifest({"p": (6,)}, [file_of("f", ("p", 0, 4))])
    with ExitStack() as stack, pytest.raises(CheckpointError, match="p has only 2 of the elements"):
        FragmentReader(place, manifest, stack).read_into(torch.empty(3), "p", "master", 2)


@pytest.mark.parametrize(
    ("fragments", "is_whole"),
    [
        ([("p", 0, 6)], True),
        ([("p", 3, 3), ("p", 0, 3)], True),
        ([("p", 0, 3), ("p", 4, 2)], False),
        ([("p", 0, 4), ("p", 3, 3)], False),
        ([("p", 0, 6), ("p", 0, 6)], False),
        ([("p", 1, 5)], False),
        ([("p", 0, 5)], False),
        ([("p", 0, 7)], False),
        ([], False),
    ],
)
def test_a_parameter_must_be_covered_exactly_once(fragments, is_whole):
    manifest = make_manifest({"p": (2, 3)}, [file_of("f", *fragments)])
    assert (find_gaps(manifest) == []) == is_whole


def test_reads_are_planned_over_all_files_in_the_order_of_the_elements():
    files = [file_of("b", ("p", 2, 2), ("q", 0, 1)), file_of("a", ("p", 0, 2))]
    assert plan_reads(files) == {"p": ((0, 2, "a"), (2, 2, "b")), "q": ((0, 1, "b"),)}


def as_text(manifest) -> str:
    import json

    return json.dumps(manifest.to_json(), indent=1) + "\n"


def test_a_manifest_is_read_back_equal():
    manifest = make_manifest({"p": (2, 3)}, [file_of("f", ("p", 0, 6))])
    assert parse_manifest(as_text(manifest), Path("x")) == manifest


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_flipped_bit_in_a_manifest_changes_what_is_read(data):
    manifest = make_manifest({"p": (2, 3)}, [file_of("f", ("p", 0, 6))])
    content = bytearray(as_text(manifest).encode())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        read = parse_manifest(content.decode(), Path("x"))
    except (CheckpointError, UnicodeDecodeError):
        return
    assert read == manifest  # one kind of white space became another


def test_steps_beyond_nine_digits_are_found(tmp_path):
    for step in (999_999_999, 1_000_000_000):
        folder = step_folder(tmp_path, step)
        folder.mkdir()
        (folder / "manifest.json").touch()
    assert list_steps(tmp_path) == [1_000_000_000, 999_999_999]
