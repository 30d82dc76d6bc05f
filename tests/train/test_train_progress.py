"""What a run has done so far, and what is shown of it."""

import re
from dataclasses import asdict

from guard_cases import report
from recipes import RECIPES
from tiny_run import tiny_config

from lmscale.train.charts import plan_charts
from lmscale.train.progress import Progress, describe_steps
from lmscale.train.scoring import ScoringPace, describe_windows


def test_progress_adds_up_steps_samples_tokens_and_skipped_steps():
    progress = Progress(step=4, n=48, tokens=1200, skipped_steps=1)
    after = progress.after(report(5, targets=321)).after(report(6, is_skipped=True))
    assert after == Progress(step=6, n=72, tokens=1821, skipped_steps=2)
    assert Progress(**asdict(after)) == after


def test_a_start_says_which_steps_are_left_and_of_a_finished_run_that_none_is():
    told = [describe_steps(done, 185) for done in (0, 184, 185)]
    assert told == ["steps 1 to 185", "steps 185 to 185", "no step left after 185"]


def test_an_evaluation_says_what_it_has_before_it_and_how_far_it_is_while_it_takes_long(caplog):
    text = describe_windows({"en": 1200, "zh": 1}, 7)
    assert text.endswith("sets after step 7: en of 1,200 windows, zh of 1 window")
    caplog.set_level("INFO")
    times = iter([0.0, 10.0, 31.0, 40.0, 90.0])
    pace = ScoringPace(1200, lambda: next(times))
    for _ in range(4):
        pace.advance(300)
    assert caplog.messages == ["evaluated 600 of 1,200 windows"]


def charts_of(tmp_path, world_size=1, has_peak=False, **sections):
    config = tiny_config(tmp_path, tmp_path / "run", sections)
    return plan_charts(config, world_size=world_size, has_peak=has_peak)


def test_the_page_begins_with_the_loss_and_ends_with_the_checkpoints(tmp_path):
    pages = charts_of(tmp_path)
    assert [*pages] == [
        *("loss", "learning", "mixture", "speed", "goodput", "guard", "checkpoints"),
    ]
    assert [*pages["loss"]][0] == "loss over steps, trained and held out"


def test_a_pattern_of_one_figure_draws_no_other_one(tmp_path):
    """TensorBoard holds a pattern against the beginning of a name (custom_scalars_plugin.py)."""
    names = ["train/loss", "train/loss_scale", "Loss/by_step", "Loss/by_tokens", "Loss/by_tokens/a"]
    names += ["evaluation/a/loss", "evaluation/a/loss/part", "evaluation/ab/loss"]
    names += ["train/source_loss/a", "plan/loss"]
    pages = charts_of(tmp_path, **{"evaluation.sets": {"a": "x", "b": "y"}})
    drawn = {
        title: [name for name in names if any(re.match(pattern, name) for pattern in patterns)]
        for title, patterns in pages["loss"].items()
    }
    assert drawn == {
        "loss over steps, trained and held out": ["Loss/by_step", "plan/loss"],
        "loss over tokens, trained and held out": ["Loss/by_tokens", "Loss/by_tokens/a"],
        "trained, every source": ["train/source_loss/a"],
        "held out, every set": ["evaluation/a/loss", "evaluation/ab/loss"],
        "held out, bits per byte": [],
    }


def test_the_loss_of_every_source_is_drawn_where_there_are_several_and_it_is_told(tmp_path):
    title, two = "trained, every source", {"a": {"shards": "x"}, "b": {"shards": "y"}}
    assert charts_of(tmp_path, **{"stream.sources": two})["loss"][title] == ["train/source_loss/.*"]
    assert title not in charts_of(tmp_path, **{"stream.sources": {"a": two["a"]}})["loss"]
    masked = {**RECIPES["masked_order"], "stream.sources": two}
    assert title not in charts_of(tmp_path, **masked)["loss"]


def test_a_chart_that_a_run_would_leave_empty_is_not_there(tmp_path):
    mfu, slowest = "MFU, both conventions", "slowest rank, times the median's work"
    assert not {mfu, slowest} & charts_of(tmp_path)["speed"].keys()
    assert {mfu, slowest} <= charts_of(tmp_path, world_size=2, has_peak=True)["speed"].keys()
    terms = "terms and parts of the loss"
    assert terms not in charts_of(tmp_path)["learning"]
    with_z_loss = charts_of(tmp_path, objective={"name": "causal", "z_loss": 1e-4})
    assert with_z_loss["learning"][terms] == ["(train|evaluation/.*)/z_loss$"]


def test_every_figure_of_an_objective_is_on_a_chart(tmp_path):
    learning = charts_of(tmp_path, **RECIPES["masked_order"])["learning"]
    assert learning["accuracy"] == [
        "(train|evaluation/.*)/accuracy$",
        "(train|evaluation/.*)/order_accuracy$",
    ]
    assert learning["terms and parts of the loss"] == ["(train|evaluation/.*)/order_loss$"]
