"""A run ends early by its held-out figures alone, however often it was interrupted."""

from __future__ import annotations

import math
import shutil
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import (
    committed_steps,
    launch,
    ledger_of,
    losses_of,
    run_lmscale,
    settings,
    tiny_config,
    write_tiny_config,
)

from launcher.status import judge_run
from lmscale.checkpoint.retention import read_figures
from lmscale.config.objective import OBJECTIVES
from lmscale.config.supervised import TagsConfig
from lmscale.config.training import FIGURES, RISING, EarlyStopConfig, direction_of
from lmscale.errors import ConfigError, DataError
from lmscale.ranks.ranks import Ranks
from lmscale.runs.goodput import EARLY
from lmscale.runs.run_folder import read_status
from lmscale.train.early_stop import find_early_stop, read_stop_figures, tell_unmeasured

LOSS = "evaluation/b/loss"
# No loss falls by 100 nats: the first evaluation, after step 2, stays the best one.
STOP = {"metric": LOSS, "patience": 2, "min_delta": 100.0}
WHY = f"stopped early at step 6: {LOSS} did not fall by more than 100 since step 2"


def stop_of(**values) -> EarlyStopConfig:
    return EarlyStopConfig.model_validate({"metric": "m", "patience": 2, **values})


@pytest.mark.parametrize(
    ("figures", "settings", "why"),
    [
        ({10: 3.0, 20: 2.0, 30: 2.5}, {}, None),  # one is not enough
        ({10: 3.0, 20: 2.0, 30: 2.5, 40: 2.0}, {}, "at step 40: m did not fall since step 20 (2)"),
        ({10: 3.0, 20: 2.0, 30: 2.5, 40: 1.9, 50: 2.0}, {}, None),
        ({10: 0.5, 20: 0.4, 30: 0.5}, {"mode": "max"}, "at step 30: m did not rise since step 10"),
        ({10: 0.5, 20: 0.6, 30: 0.7}, {"metric": "evaluation/b/accuracy"}, None),
        ({10: 0.5, 20: 0.4, 30: 0.3}, {"metric": "evaluation/b/accuracy"}, "accuracy did not rise"),
        ({10: 3.0, 20: 2.9, 30: 2.8}, {"min_delta": 0.5}, "by more than 0.5 since step 10 (3)"),
        ({10: 3.0, 20: 2.7, 30: 2.4}, {"min_delta": 0.5}, None),  # both together are enough
        ({10: 3.0, 20: math.nan, 30: math.inf, 40: 3.0}, {}, None),  # two are not measured
        ({10: 3.0, 20: math.nan, 30: 3.0, 40: 3.0}, {}, "at step 40: m did not fall since step 10"),
        ({10: math.nan, 20: math.nan}, {}, None),
        ({10: 0.0, 20: 0.0, 30: 0.0, 40: 0.0}, {"mode": "max"}, None),  # nothing is found yet
        ({10: 0.0, 20: 0.1, 30: 0.0, 40: 0.0}, {"mode": "max"}, "did not rise since step 20 (0.1)"),
        ({10: 0.0, 20: 0.0, 30: 0.0}, {}, "at step 30: m did not fall since step 10 (0)"),
        ({}, {}, None),
    ],
)
def test_a_run_ends_with_the_evaluation_that_uses_its_patience_up(figures, settings, why):
    told = find_early_stop(figures, stop_of(**settings), step=max(figures, default=0))
    assert (told is None) == (why is None)
    assert why is None or why in str(told)


def test_less_patience_than_a_run_has_had_names_the_step_that_it_is_at():
    told = find_early_stop({4: 1.0, 8: 2.0, 12: 3.0}, stop_of(), step=14)
    assert told == "stopped early at step 14: m did not fall since step 4 (1) up to step 12"


@given(losses=st.lists(st.floats(0, 9), max_size=12), patience=st.integers(1, 4))
def test_more_patience_never_ends_a_run_before_less_does(losses, patience):
    figures = dict(enumerate(losses, start=1))
    if find_early_stop(figures, stop_of(patience=patience + 1), step=12) is not None:
        assert find_early_stop(figures, stop_of(patience=patience), step=12) is not None


def test_of_all_held_out_figures_accuracies_f1_and_exact_matches_are_those_that_rise():
    named = [kind.figures for kind in OBJECTIVES.own.values() if isinstance(kind.figures, tuple)]
    named.append(TagsConfig(name="tags", names=("O", "B-x")).held_out)
    figures = {*chain.from_iterable(named), *FIGURES}
    rising = {figure for figure in figures if direction_of(f"evaluation/b/{figure}") == "max"}
    good = ("accuracy", "f1", "exact_match")
    assert rising == {name for name in figures if any(part in name for part in good)} == RISING
    assert direction_of("evaluation/b/loss/accuracy") == "min"  # of a mixture's part of that name


@pytest.mark.parametrize(
    ("evaluation", "problem"),
    [
        ({"stop": STOP}, "evaluation.stop.metric = 'evaluation/b/loss' is never measured"),
        ({"stop": STOP, "sets": {"b": "x"}}, "set evaluation.every_steps"),
    ],
)
def test_a_figure_that_is_not_measured_is_told_with_the_configuration(
    tiny_data, tmp_path, evaluation, problem
):
    with pytest.raises((ConfigError, ValueError), match=problem):
        write_tiny_config(
            tmp_path / "c.yaml",
            tiny_data,
            tmp_path / "run",
            {
                "evaluation": evaluation,
            },
        )


@pytest.mark.parametrize("name", ["unreadable", "cut"])
def test_figures_on_which_the_end_rests_are_not_missed_in_silence(tmp_path, caplog, name):
    evaluation = {"sets": {"b": "x"}, "every_steps": 2, "stop": STOP}
    config = tiny_config(tmp_path, tmp_path, {"evaluation": evaluation})
    file = tmp_path / "metrics.jsonl"
    if name == "unreadable":
        file.mkdir()
        with pytest.raises(DataError, match=r"metrics.jsonl cannot be read"):
            read_stop_figures(config, Ranks(), last_step=8)
    else:
        file.write_text("".join(f'{{"step": {n}, "{LOSS}": 3.0}}\n' for n in (2, 10)))
        assert read_stop_figures(config, Ranks(), last_step=8) == {2: 3.0}
        assert f"no {LOSS} of 2 evaluations, the first after step 4" in caplog.text


def test_a_figure_that_is_not_finite_and_was_to_decide_is_told(tmp_path, caplog):
    checkpoint = {"every_steps": 2, "keep_best": {"metric": "evaluation/b/perplexity"}}
    evaluation = {"sets": {"b": "x"}, "every_steps": 2, "stop": STOP}
    config = tiny_config(tmp_path, tmp_path, {"evaluation": evaluation, "checkpoint": checkpoint})
    tell_unmeasured(config, {LOSS: 3.0, "evaluation/b/perplexity": math.inf}, 4)
    tell_unmeasured(config, {"final/b/loss": math.nan}, 4)
    (told,) = caplog.messages
    assert told.startswith("checkpoint.keep_best: evaluation/b/perplexity is inf at step 4")


def figures_of(run) -> dict[int, float]:
    return read_figures(run, LOSS)


@pytest.fixture(scope="module")
def evaluation(tiny_data):
    sets = {"b": f"{tiny_data}/shards/b/heldout"}
    return {"sets": sets, "every_steps": 2, "max_windows": 4, "stop": STOP}


@pytest.fixture(scope="module")
def whole(tiny_data, tmp_path_factory, evaluation):
    """The configuration and folder of a run that has ended early, and what it said."""
    root = tmp_path_factory.mktemp("whole")
    overrides = {"train.steps": 40, "checkpoint.every_steps": 4, "evaluation": evaluation}
    config = write_tiny_config(root / "c.yaml", tiny_data, root / "run", overrides)
    return config, root / "run", run_lmscale("train", config)


@pytest.fixture(scope="module")
def begun(whole, tmp_path_factory):
    """The folder of that run's first four steps, patience having run out with the last, as a kill
    before the evaluation after it would leave them; and what it said.
    """
    folder = tmp_path_factory.mktemp("begun") / "run"
    ended = run_lmscale(
        "train",
        whole[0],
        *settings({"run.folder": folder, "train.steps": 4, "evaluation.stop.patience": 1}),
    )
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(x for x in lines if "b/loss" not in x or '"step": 2' in x))
    assert list(figures_of(folder)) == [2]
    return folder, ended


@pytest.mark.ranks
def test_a_run_that_gets_no_better_ends_well_with_a_checkpoint_and_its_whole_sets_scored(whole):
    _, folder, ended = whole
    assert ended.code == 0, ended.output
    assert WHY in ended.output and "finished" not in ended.output
    assert committed_steps(folder)[-1] == len(ledger_of(folder)) == 6
    assert list(read_figures(folder, "final/b/loss")) == [6]


@pytest.mark.ranks
def test_patience_that_runs_out_with_the_last_step_ends_no_run_early(begun):
    _, ended = begun
    assert ended.code == 0 and "finished 4 steps" in ended.output
    assert EARLY not in ended.output and ended.output.count("(final)") == 1


@pytest.mark.ranks
def test_an_end_that_a_kill_kept_from_being_written_is_written_by_the_next_start_alone(whole):
    config, folder, _ = whole
    path, ledger = folder / "attempts.jsonl", (folder / "ledger.jsonl").read_bytes()
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    for num_attempts in (2, 2):
        ended = run_lmscale("train", config)
        assert ended.code == 0 and WHY in ended.output
        status = read_status(folder)
        assert len(status.attempt_starts) == num_attempts
        assert judge_run(status, None, 0.0).line.startswith(f"finished: {WHY}")
    assert (folder / "ledger.jsonl").read_bytes() == ledger


@pytest.mark.ranks
@pytest.mark.parametrize(("num_ranks", "zero_stage"), [(1, 3), (2, 1)])
def test_an_evaluation_that_a_kill_has_taken_is_made_up_for_so_that_the_end_is_the_same(
    whole, begun, tmp_path, num_ranks, zero_stage
):
    config, expected, _ = whole
    folder = tmp_path / "run"
    shutil.copytree(begun[0], folder)
    ended = launch(config, num_ranks, {"run.folder": folder, "engine.zero_stage": zero_stage})
    assert ended.code == 0 and WHY in ended.output, ended.output
    assert ledger_of(folder) == ledger_of(expected)
    for read in (figures_of, losses_of):  # sums of fp32 in another order, or in other memory
        assert read(folder) == pytest.approx(read(expected), rel=1e-6, abs=0.0)
    assert list(figures_of(folder)) == [2, 4, 6]
