"""The layout's arithmetic, and fragments read back by any other division than wrote them."""

import hashlib
import json
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lmscale.checkpoint.layout import find_gaps, plan_reads, step_folder, tensor_name
from lmscale.checkpoint.load import FragmentReader
from lmscale.checkpoint.manifest import (
    FileEntry,
    Manifest,
    OptimizerKind,
    Untrained,
    parse_manifest,
)
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.errors import CheckpointError

KINDS = ("master", "exp_avg")


def make_manifest(parameters, files) -> Manifest:
    return Manifest(
        step=7,
        parameters=parameters,
        states=dict.fromkeys(parameters, KINDS),
        optimizer=OptimizerKind(kind="adamw", step=7),
        loss_scale=None,
        state={"progress": {"step": 7, "n": 84}, "ratio": 0.1},
        identity={"run": "tiny"},
        written_by={"world_size": 2},
        is_finite=True,
        files=tuple(files),
    )


def file_of(name, *fragments) -> FileEntry:
    return FileEntry(name=name, bytes=1000, sha256="0" * 64, fragments=fragments)


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


def as_saved(manifest) -> str:
    return manifest.to_bytes().decode()


def as_laid_out(manifest) -> str:
    """By somebody else: with other white space, in another order."""
    return json.dumps(dict(reversed(manifest.to_json().items())), indent=1) + "\n"


@pytest.mark.parametrize("form", [as_saved, as_laid_out])
def test_a_manifest_is_read_back_equal_and_with_the_same_hash(form):
    manifest = make_manifest({"ä": (2, 3)}, [file_of("f", ("ä", 0, 6)), file_of("g")])
    read = parse_manifest(form(manifest), Path("x"))
    assert read == manifest and as_saved(read) == as_saved(manifest)
    assert read.hash == manifest.hash == manifest.to_json()["sha256"]


def test_a_manifest_that_was_changed_has_another_hash():
    manifest = make_manifest({"p": (2, 3)}, [file_of("f", ("p", 0, 6))])
    read = parse_manifest(as_saved(manifest), Path("x"))
    changed = replace(read, rewinds=1)
    assert changed.hash != read.hash
    assert parse_manifest(as_saved(changed), Path("x")).rewinds == 1


def test_fragments_are_numbered_by_the_sorted_names_of_the_trained_and_then_of_the_others():
    frozen = {name: Untrained(shape=(2,), dtype="F32", kind="frozen") for name in ("c", "a")}
    names = ("b.10", "b.2", "Z", "c", "a")
    files = [file_of("f", *((name, 0, 2) for name in names)), file_of("g")]
    manifest = replace(make_manifest({n: (2,) for n in names[:3]}, files), replicated=frozen)
    numbers, offsets, elements = manifest.to_json()["files"][0]["fragments"]
    assert (numbers, offsets, elements) == ([1, 2, 0, 4, 3], [0] * 5, [2] * 5)
    assert parse_manifest(as_laid_out(manifest), Path("x")).files == manifest.files


@pytest.mark.parametrize("number", [-1, 1, True, 0.0, "p", None, [0]])
def test_a_number_that_is_no_parameters_is_refused(number):
    manifest = make_manifest({"p": (2, 3)}, [file_of("f", ("p", 0, 6))])
    with pytest.raises(CheckpointError, match=r"refused: f: a piece of .*of no tensor"):
        parse_manifest(sealed_with(manifest, [[number], [0], [6]]), Path("x"))


@pytest.mark.parametrize("columns", [[], [[0], [0]], [[0], [0, 1], [6]], [0, 0, 6], {"p": 6}])
def test_fragments_that_are_no_three_lists_of_one_length_are_an_error(columns):
    manifest = make_manifest({"p": (2, 3)}, [file_of("f")])
    with pytest.raises(CheckpointError, match="not a checkpoint's manifest"):
        parse_manifest(sealed_with(manifest, columns), Path("x"))


def sealed_with(manifest, columns) -> str:
    """With these fragments of its one file, and the hash that goes with them."""
    tree = manifest.to_json()
    del tree["sha256"]
    tree["files"][0]["fragments"] = columns
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return json.dumps(tree | {"sha256": hashlib.sha256(text.encode()).hexdigest()})


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from([as_saved, as_laid_out]))
def test_no_flipped_bit_in_a_manifest_changes_what_is_read(data, form):
    manifest = make_manifest({"p": (2, 3)}, [file_of("f", ("p", 0, 6))])
    content = bytearray(form(manifest).encode())
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
    assert LocalPlace(tmp_path).list_steps() == [1_000_000_000, 999_999_999]
