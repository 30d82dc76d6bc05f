"""A checkpoint's manifest: no value of another kind is taken, and none steers a terminal."""

import math
from dataclasses import fields

import pytest
from sealed import draft, seal, write

from lmscale.checkpoint.differences import describe_differences
from lmscale.checkpoint.find import Search, find_sound, load_manifest
from lmscale.checkpoint.manifest import FileEntry, Manifest, parse_manifest
from lmscale.checkpoint.retention import Listed, Rule, survey
from lmscale.cli.checkpoint_view import render_checkpoint, render_listed
from lmscale.errors import CheckpointError
from lmscale.files.strangers import MAX_DEPTH
from lmscale.guard.state import GuardState, StepFigures, read_guard_state
from lmscale.ranks.ranks import Ranks
from lmscale.stream.mixture import Segment
from lmscale.stream.stream import StreamState
from lmscale.train.progress import Progress, read_progress


@pytest.mark.parametrize("field", [field.name for field in fields(Manifest)])
@pytest.mark.parametrize("value", [[1], -1, "x", math.nan, True])
def test_no_field_of_a_manifest_is_taken_with_a_value_of_another_kind(field, value):
    is_what_it_should_be = field == "is_finite" and value is True
    if not is_what_it_should_be:
        with pytest.raises(CheckpointError):
            parse_manifest(seal(**{field: value}), "x")


@pytest.mark.parametrize("field", [field.name for field in fields(FileEntry)])
@pytest.mark.parametrize("value", [[1], -1, None, True, 2**63, {"x": 1}])
def test_no_field_of_a_file_is_taken_with_a_value_of_another_kind(field, value):
    with pytest.raises(CheckpointError):
        parse_manifest(seal(file={field: value}), "x")


def nested(depth):
    return [nested(depth - 1)] if depth else []


def of(name, value):
    """The tree of one leaf whose path is ``name``."""
    for key in reversed(name.split(".")):
        value = {key: value}
    return value


# What is read of what is nested: values of the right kind, then of wrong ones.
READ = {
    "step": ([0], [2**63, 7.0, None]),
    "rewinds": ([1], [2**63, 10**4000, 1.0]),
    "weights": (["", "0" * 16], ["0" * 15, None]),
    "written_by.time": ([0, 1.7e9], ["x", 1e300, 1e12, -1, math.nan, math.inf, True, 10**4000]),
    "optimizer": ([{"kind": "adamw"}, {"kind": "sgd", "step": None}], [{}, {"step": 7}]),
    "optimizer.kind": ([], [1, None, []]),
    "optimizer.step": ([], ["7", -1, 10**4000, math.inf]),
    "loss_scale": ([None, {"cur_scale": 2.0**64}], [{"cur_scale": "2"}, {"cur_scale": math.inf}]),
    "probe": ([None, {"loss": 1.0, "windows": 4}], [{}, {"loss": 1.0}, {"windows": 4}]),
    "probe.loss": ([], ["x", None]),
    "state": ([{}, {"x": [1]}], [None, [], {"x": nested(MAX_DEPTH)}, {"x": 10**4000}]),
    "identity.run": (["x", 7, None], [nested(MAX_DEPTH), 10**4000, -(10**4000)]),
    "written_by.world_size": ([2, "x"], [nested(MAX_DEPTH), 10**4000]),
    "states": ([{"w": ["master"]}], [{}, {"w": ["exp_avg"]}, {"w": ["master", 1]}, {"v": ["x"]}]),
    "replicated.w": ([], [{"shape": [2, 4], "dtype": "F32", "kind": "buffer"}]),
    "replicated.b": (
        [{"shape": [0], "dtype": "BOOL", "kind": "frozen"}],
        [
            *(1, {}, {"shape": [0], "dtype": "F32"}, {"shape": [0], "kind": "buffer"}),
            *({"shape": [0], "dtype": "OBJ", "kind": "buffer"},),
            *({"shape": [0], "dtype": ["F32"], "kind": "buffer"},),
            *({"shape": [0], "dtype": "F32", "kind": "x"},),
            *({"shape": 0, "dtype": "F32", "kind": "buffer"},),
        ],
    ),
}


@pytest.mark.parametrize("name", READ)
def test_what_is_read_of_a_manifests_nested_values_is_taken_only_when_it_is_of_its_kind(name):
    right, wrong = READ[name]
    for value in right:
        assert parse_manifest(seal(**of(name, value)), "x")
    for value in wrong:
        with pytest.raises(CheckpointError, match="refused: ") as caught:
            parse_manifest(seal(**of(name, value)), "x")
        assert all(len(problem) < 300 for problem in caught.value.problems)


SEGMENT = {"start": 0, "quotas": {"a": 1}, "base": {"a": 0}}
STREAM = {"version": 2, "seed": 0, "n": 7, "geometry": {}, "segments": [SEGMENT]}
NUMBERS = {"loss": 1.0, "gradient_norm": "inf", "learning_rate": 0.1, "is_skipped": False}
STEP = {"step": 1, "first_n": 0, "samples": 1, **NUMBERS}
# What a run keeps over a restart, as it is read where the run goes on: what it says, and a reader.
KEPT = {
    Progress: ({"n": 7}, lambda tree: read_progress(of_state(progress=tree), where="x")),
    StreamState: (STREAM, StreamState.from_json),
    Segment: (SEGMENT, lambda tree: StreamState.from_json(STREAM | {"segments": [tree]})),
    GuardState: ({"window": [[1.0, 2]]}, lambda tree: guard_of(tree)),
    StepFigures: (STEP, lambda tree: guard_of({"bad": [STEP, tree]})),
}


def of_state(**state):
    return parse_manifest(seal(state=state), "x")


def guard_of(tree):
    return read_guard_state(of_state(guard=tree), where="x")


@pytest.mark.parametrize(
    ("kind", "field"), [(kind, field.name) for kind in KEPT for field in fields(kind)]
)
@pytest.mark.parametrize("value", ["x", [{}], True, {"x": [2**63]}, 10**400])
def test_nothing_that_a_run_keeps_is_taken_with_a_value_of_another_kind(kind, field, value):
    right, read = KEPT[kind]
    assert read(right)
    is_what_it_should_be = field == "is_skipped" and value is True
    if not is_what_it_should_be:
        with pytest.raises(CheckpointError) as caught:
            read(right | {field: value})
        assert all(len(problem) < 300 for problem in caught.value.problems)


WRONG = {
    Progress: [{"n": "7"}, {"n": 2**63}, {"tokens": math.nan}, {"x": 1}],
    StreamState: [{"n": math.inf}, {"seed": -1}, {"segments": []}, {"segments": [{"start": 0}]}],
    Segment: [{"quotas": {"a": "x"}}, {"quotas": {"a": 0}}, {"quotas": {}}, {"base": {"a": None}}],
    GuardState: [{"window": [[1]]}, {"window": [["x", 1]]}, {"recent_bad": [math.inf]}, {"x": 1}],
    StepFigures: [{"samples": -1}, {"loss": None}, {"gradient_norm": [math.nan]}, {"x": 1}],
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_nested_in_what_a_run_keeps_is_checked_as_well(kind):
    right, read = KEPT[kind]
    for change in WRONG[kind]:
        with pytest.raises(CheckpointError):
            read(right | change)


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ({"bytes": -1}, "files.0.bytes is -1"),
        ({"bytes": 2**63}, f"files.0.bytes is {2**63}"),
        ({"sha256": "0" * 63}, "files.0.sha256 is '00000"),
        ({"sha256": "A" * 64}, "files.0.sha256 is 'AAAA"),
    ],
)
def test_a_file_whose_bytes_or_hash_no_file_has_is_refused(entry, found):
    with pytest.raises(CheckpointError, match=found):
        parse_manifest(seal(file=entry), "x")


def test_a_file_that_is_named_twice_is_refused():
    (entry,) = draft().to_json()["files"]
    other = entry | {"name": "other"}
    with pytest.raises(CheckpointError, match="rank-00000.safetensors is named twice") as caught:
        parse_manifest(seal(files=[entry, other, entry]), "x")
    assert len(caught.value.problems) == 1


def test_a_checkpoint_with_an_identity_that_is_none_is_passed_over_for_an_older_one(tmp_path):
    write(tmp_path, step=6)
    place = write(tmp_path)
    (tmp_path / "step-000000007" / "manifest.json").write_text(seal(identity=[1]))
    search = Search([place], Ranks(), identity={})
    assert next(search).manifest.step == 6
    assert "identity is [1]" in search.passed_over[0].why[0]
    found = find_sound(place, Ranks())
    assert found is not None and found.step == 6


@pytest.mark.parametrize(
    "changes",
    [
        {"written_by": [1]},
        {"rewinds": "x"},
        {"written_by": {"time": 1e300}},
        {"file": {"bytes": 10**4000}},
        {"state": 7},
    ],
)
def test_a_manifest_that_says_what_none_can_is_listed_as_unreadable(tmp_path, changes):
    place = write(tmp_path)
    (tmp_path / "step-000000007" / "manifest.json").write_text(seal(**changes))
    (one,) = survey(place, Rule(keep_last=1))
    assert one.state == "unreadable" and "refused: " in one.problems[0]
    assert render_listed(one)


def test_half_a_character_in_a_manifest_is_shown_escaped(tmp_path):
    place = write(tmp_path, identity={"run": "\ud800"}, written_by={"precision": "\udfff"})
    one = Listed(
        step=7,
        name="step-000000007",
        state="committed",
        is_good=True,
        manifest=load_manifest(place, 7),
    )
    assert "\\ud800" in render_checkpoint(one, {}) and "\\udfff" in " ".join(render_listed(one))


def test_a_version_that_is_no_number_is_quoted():
    with pytest.raises(CheckpointError, match="version") as caught:
        parse_manifest(seal(version=ESCAPE), "x")
    assert str(caught.value).isprintable()


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
    with pytest.raises(
        CheckpointError, match="reason is '.*', which is none of regular, asked"
    ) as caught:
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
        optimizer={"kind": ESCAPE, "step": 7},
        loss_scale={ESCAPE: 1},
        state={"progress": {"n": 1}, "stream": STREAM | {"segments": [mixture(ESCAPE)]}},
    )
    one = Listed(
        step=7,
        name="step-000000007",
        state="committed",
        is_good=True,
        manifest=load_manifest(place, 7),
    )
    shown = render_checkpoint(one, {})
    assert shown.count("title") == 9
    assert all(line.isprintable() for line in [*shown.split("\n"), *render_listed(one)])
    assert not any(line.startswith("new line") for line in shown.split("\n"))


def mixture(name):
    return SEGMENT | {"quotas": {name: 1}}
