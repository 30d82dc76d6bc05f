"""What the guard leaves behind names the samples and shows the parameters that went wrong."""

import errno
import json
import math
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from evidence_ranks import SPIKE, report
from forked_ranks import one_group, run_starts
from rank_cases import Case
from tiny_run import tiny_config

from lmscale.checkpoint import find
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.config.safety import GuardConfig
from lmscale.errors import DataError, GuardError, TransientError
from lmscale.guard.divergence import Divergence
from lmscale.guard.guard import Guard, RewindRequest
from lmscale.guard.state import GuardState
from lmscale.history.history import History
from lmscale.ranks.ranks import Ranks
from lmscale.runs.lease import NO_LEASE
from lmscale.stream.stream import open_stream
from lmscale.tokenizer.codec import load_tokenizer
from lmscale.train import evidence as evidence_module
from lmscale.train.evidence import EVIDENCE_FILE, describe_window, evidence_folder, judge
from lmscale.train.session import rewind

STAGES = (0, 1, 2, 3)


def load_evidence(folder):
    return json.loads((folder / EVIDENCE_FILE).read_text())


@pytest.fixture(scope="module")
def told(tiny_data, tmp_path_factory):
    """(stage, ranks) → the evidence, and what the ranks saw before."""
    root = tmp_path_factory.mktemp("evidence")
    cases = [
        Case(
            name=f"zero{stage}",
            data=str(tiny_data),
            folder=str(root / f"zero{stage}"),
            overrides={"engine.zero_stage": stage},
        )
        for stage in STAGES
    ]
    (root / "cases.json").write_text(json.dumps([asdict(case) for case in cases]))
    run_starts(Path(__file__).parent / "evidence_ranks.py", root, (1, 2))
    found = {}
    for stage in STAGES:
        for ranks in (1, 2):
            folder = root / f"zero{stage}" / f"ranks-{ranks}"
            seen = json.loads((folder / f"seen-{ranks - 1}.json").read_text())
            found[stage, ranks] = (load_evidence(folder / "guard" / "step-000000025"), seen)
    return found


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_a_weight_that_is_nan_and_a_spiking_layer_are_visible_at_every_stage(told, stage, ranks):
    evidence, seen = told[stage, ranks]
    parameters = evidence["parameters"]
    bad = {name: row["nonfinite"] for name, row in parameters.items()}
    expected = {kind: 0 for kind in ("exp_avg", "exp_avg_sq", "master")}
    assert bad.pop(seen["broken"]) == expected | {"master": 1}
    assert all(counts == expected for counts in bad.values())
    spike = parameters[seen["spiking"]]
    assert spike["norms"]["exp_avg"] == pytest.approx(SPIKE * math.sqrt(spike["elements"]))
    for name, row in parameters.items():
        sound = seen["sound"][name]
        assert row["elements"] == sound["elements"]
        # The norm of the weight with the NaN is that of its other elements.
        assert row["norms"]["master"] == pytest.approx(sound["norms"]["master"], rel=1e-2)


@pytest.mark.ranks
@pytest.mark.slow
def test_the_norms_do_not_depend_on_stage_or_ranks(told):
    expected = told[0, 1][1]["sound"]
    for _, seen in told.values():
        assert list(seen["sound"]) == list(expected)  # in the model's order
        for name, row in seen["sound"].items():
            assert row["elements"] == expected[name]["elements"]
            assert row["norms"]["master"] == pytest.approx(expected[name]["norms"]["master"])


@pytest.mark.ranks
@pytest.mark.slow
def test_why_and_after_what_is_told(told):
    evidence, _ = told[2, 2]
    assert evidence["why"] == "5 steps in a row were not finite"
    assert (evidence["decision"], evidence["at_step"]) == ("rewind", 25)
    assert evidence["bad_steps"] == [21, 22, 23, 24, 25]
    assert [row["step"] for row in evidence["steps"]] == list(range(1, 26))
    assert evidence["steps"][-1] == {
        "step": 25,
        "first_n": 288,
        "samples": 12,
        "loss": "nan",
        "gradient_norm": 1.0,
        "learning_rate": 3e-4,
        "is_skipped": True,
    }
    assert evidence["thresholds"]["config"]["max_nonfinite_steps"] == 5
    assert evidence["thresholds"]["limits"] is None  # 128 good steps were not there yet
    samples = evidence["samples"]
    assert (samples["first"], samples["count"]) == (9 * 12, 16 * 12)
    assert sum(samples["sources"].values()) == 16 * 12
    assert len(samples["texts"]) == 64


@pytest.fixture(scope="module")
def reading(tiny_data, tmp_path_factory):
    config = tiny_config(tiny_data, tmp_path_factory.mktemp("reading"))
    with open_stream(config.stream, seed=1) as stream:
        yield stream, load_tokenizer(config.tokenizer.folder)


def window_of(first, count):
    return Divergence(
        why="a test",
        at_step=9,
        jump_from_n=first,
        jump_samples=count,
        not_after_step=3,
        limits=None,
        state=GuardState(),
    )


def test_the_samples_have_their_numbers_their_source_and_the_beginning_of_their_text(reading):
    stream, tokenizer = reading
    window = describe_window(stream, tokenizer, window_of(24, 12))
    assert [row["n"] for row in window["texts"]] == list(range(24, 36))
    sources, _ = stream.mixture.locate(24, 12)
    for row, source in zip(window["texts"], sources, strict=True):
        assert row["source"] == stream.mixture.names[source]
        tokens = stream.read_rows(row["n"], 1).tokens[0]
        assert row["text"] == tokenizer.decode(tokens)[:300] != ""
    assert window["sources"] == {"a": 9, "b": 3} or sum(window["sources"].values()) == 12


def test_many_samples_are_shown_by_some_from_all_over_the_window(reading):
    window = describe_window(*reading, window_of(24, 640))
    numbers = [row["n"] for row in window["texts"]]
    assert len(numbers) == 64 and (numbers[0], numbers[-1]) == (24, 24 + 639)
    assert {b - a for a, b in zip(numbers, numbers[1:], strict=False)} <= {10, 11}
    assert len(describe_window(*reading, window_of(7, 1))["texts"]) == 1


def test_the_same_step_on_another_branch_has_a_folder_of_its_own(tmp_path):
    assert evidence_folder(tmp_path, 123, rewinds=0) == tmp_path / "guard/step-000000123"
    other = evidence_folder(tmp_path, 123, rewinds=2)
    assert other == tmp_path / "guard/step-000000123-after-2-rewinds"


@pytest.fixture
def run(reading, tmp_path, monkeypatch):
    """A run of one rank without an engine."""
    stream, tokenizer = reading
    monkeypatch.setattr(evidence_module, "measure_states", lambda engine: {})
    return SimpleNamespace(
        engine=None, ranks=Ranks(), stream=stream, tokenizer=tokenizer, folder=tmp_path
    )


def stop(run):
    config = GuardConfig(on_divergence="stop")
    hook = partial(judge, run, Guard(config, minimum_loss_scale=1, vocab_size=300))
    for step in range(1, 99):
        hook(report(step))


def test_the_log_says_it_in_a_few_lines(run, tmp_path, caplog):
    with pytest.raises(GuardError, match="5 steps in a row were not finite"):
        stop(run)
    assert load_evidence(tmp_path / "guard/step-000000025")["decision"] == "stop"
    text = next(row.message for row in caplog.records if row.message.startswith("diverged"))
    assert text.splitlines()[0] == "diverged at step 25: 5 steps in a row were not finite"
    assert "samples in question: 108 to 299 (" in text
    assert text.endswith("step-000000025/evidence.json")


def test_a_disk_that_takes_nothing_does_not_hide_the_divergence(run, tmp_path, caplog):
    (tmp_path / "guard").write_text("a file stands where the folder must be")
    with pytest.raises(GuardError):
        stop(run)
    assert "the evidence could not be written" in caplog.text
    assert "diverged at step 25" in caplog.text


def test_samples_that_cannot_be_read_do_not_hide_the_divergence(run, tmp_path, monkeypatch):
    def fail(first_n, count):
        raise DataError("the shard is missing")

    monkeypatch.setattr(run.stream, "read_rows", fail)
    with pytest.raises(GuardError):
        stop(run)
    samples = load_evidence(tmp_path / "guard/step-000000025")["samples"]
    assert samples["problem"] == "the samples cannot be read: the shard is missing"
    assert samples["count"] == 192 and "texts" not in samples


def test_a_good_step_leaves_nothing_behind(run, tmp_path):
    hook = partial(judge, run, Guard(GuardConfig(), minimum_loss_scale=1, vocab_size=300))
    for step in range(1, 20):
        hook(report(step))
    assert not (tmp_path / "guard").exists()


def test_a_run_without_a_checkpoint_to_go_back_to_is_not_rewound(run, tmp_path, monkeypatch):
    hook = partial(judge, run, Guard(GuardConfig(), minimum_loss_scale=1, vocab_size=300))
    with pytest.raises(RewindRequest) as raised:
        for step in range(1, 99):
            hook(report(step))
    assert load_evidence(tmp_path / "guard/step-000000025")["decision"] == "rewind"
    run.history, run.lease, run.config = History(), NO_LEASE, SimpleNamespace(guard=GuardConfig())
    run.place, run.identity = LocalPlace(tmp_path / "none"), None
    monkeypatch.setattr(find, "WAITS_SECONDS", ())

    def fail():
        raise OSError(errno.EIO, "Input/output error")

    with one_group():
        with pytest.raises(GuardError, match="could not be rewound"):
            rewind(run, raised.value)
        run.place.list_steps = fail
        with pytest.raises(TransientError, match="Input/output error"):
            rewind(run, raised.value)
