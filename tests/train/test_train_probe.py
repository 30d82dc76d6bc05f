"""checkpoint.probe_windows: the loss of known windows, at a save and again once it was loaded."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rank_cases import Case, run_cases
from tiny_run import committed_steps

from lmscale.checkpoint.find import load_manifest
from lmscale.checkpoint.layout import MANIFEST, step_folder
from lmscale.checkpoint.manifest import Probe
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.files.atomic import to_json_bytes
from lmscale.train.probe import find_probe_difference

PROBE = Probe(windows=5, loss=6.0, precision="fp32", device="cpu")
SETTINGS = {"checkpoint.probe_windows": 5, "checkpoint.every_steps": 2, "train.steps": 6}
RUN = "probed"


@pytest.mark.parametrize(
    ("loss", "more", "differs"),
    [
        (6.0, {}, False),
        (6.004, {}, False),
        (6.1, {}, True),
        (float("nan"), {}, True),
        (6.1, {"precision": "bf16"}, False),
        (7.0, {"precision": "bf16"}, True),
    ],
)
def test_a_loss_that_is_another_one_is_told_with_room_for_another_precision(loss, more, differs):
    now = replace(PROBE, loss=loss, **more)
    assert (find_probe_difference(PROBE, now) is not None) == differs


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_was_not_finite_when_it_was_saved_is_no_difference_where_it_is_not_now(loss):
    saved = replace(PROBE, loss=loss)
    assert find_probe_difference(saved, saved) is None
    assert find_probe_difference(saved, PROBE) is not None


@pytest.fixture(scope="module")
def saw(tiny_data, tmp_path_factory):
    """Saved by 2 ranks; gone on with by 1 rank, of another stage, after a manifest was altered."""
    root = tmp_path_factory.mktemp("probe")

    def case(name, run, **overrides):
        settings = SETTINGS | {key.replace("__", "."): value for key, value in overrides.items()}
        return Case(
            name=name, data=str(tiny_data), folder=str(root / run), overrides=settings, stop_after=4
        )

    run_cases({2: [case("first", RUN), case("first of another", "lied")]}, root / "starts")
    lie(root / "lied")
    second = [
        replace(case("second", RUN, engine__zero_stage=3), stop_after=None),
        replace(case("second of another", "lied"), stop_after=None),
        replace(case("third", RUN, stream__sources__b__weight=0, train__steps=8), stop_after=None),
    ]
    return run_cases({1: second}, root / "more starts"), root


def lie(run: Path) -> None:
    """Let the newest checkpoint say that its loss was another one; its own hash is right."""
    place = LocalPlace(run / "checkpoints")
    step = place.list_steps()[0]
    manifest = load_manifest(place, step)
    assert manifest.probe is not None
    told = replace(manifest, probe=replace(manifest.probe, loss=1.0))
    (step_folder(place.root, step) / MANIFEST).write_bytes(to_json_bytes(told.to_json()))


def test_what_loads_as_it_was_saved_is_gone_on_with_in_any_topology(saw):
    reports, root = saw
    assert [report.step for report in reports["second"]] == [5, 6]
    manifest = load_manifest(LocalPlace(root / RUN / "checkpoints"), 6)
    assert manifest.probe is not None and manifest.probe.windows == 5


def test_a_checkpoint_that_computes_another_loss_is_passed_over_with_the_reason(saw):
    reports, root = saw
    assert [report.step for report in reports["second of another"]] == [3, 4, 5, 6]
    (row,) = map(json.loads, (root / "lied" / "resumes.jsonl").read_text().splitlines())
    assert row["step"] == 2
    assert "was 1.000000 when it was saved" in row["passed_over"][0]["why"][0]


def test_a_source_that_has_left_the_mixture_keeps_no_save_from_being_made(saw):
    reports, root = saw
    assert [report.step for report in reports["third"]] == [7, 8]
    assert committed_steps(root / RUN)[-1] == 8
    assert load_manifest(LocalPlace(root / RUN / "checkpoints"), 8).probe is None
