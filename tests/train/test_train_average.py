"""An average of the weights: what it is, that it goes on wherever the run does, that it is what
held-out figures are of, and that the training does not see it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from forked_ranks import one_group, run_starts
from rank_cases import Case, opened, train
from tiny_run import tiny_config, tiny_tree
from toy_engine import content_of
from typer.testing import CliRunner

from lmscale.checkpoint.load import load_weights
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.cli.evaluate import evaluate
from lmscale.config import parse_config
from lmscale.engine.engine import Engine
from lmscale.errors import CheckpointError, ConfigError
from lmscale.model.family import build_model
from lmscale.ranks.fingerprint import fingerprint
from lmscale.train.initial import draw_weights, fill_weights

pytestmark = [pytest.mark.ranks, pytest.mark.slow]
STEPS, STOP_AFTER, DECAY = 4, 2, 0.6
SCORED = [("ema", 0), ("ema", 1), ("ema", 2), ("free", 2), ("ema", 3)]  # in bf16
EMA: dict[str, Any] = {"engine.ema_decay": DECAY}
FREE: dict[str, Any] = {"engine.optimizer.kind": "schedule_free"}
KINDS = {"ema": EMA, "free": FREE}
RATES = (1e-3, 2e-3, 3e-3, 3e-3)  # of the tiny run's steps, warm-up of 3
BETA = 0.9

# ---- On the ranks: runs that are scored after every step


class Scored:
    """In place of the trackers: the figures of the last evaluation."""

    def __init__(self) -> None:
        self.figures: Mapping[str, float] = {}

    def log(self, step: int, figures: Mapping[str, float], **_: object) -> None:
        self.figures = figures


def start(folder: Path, number: int) -> None:
    """A case's name → its reports, and the figures of its last evaluation."""
    from lmscale.train.scoring import open_evaluator
    from lmscale.train.votes import StopPoll

    saw: dict[str, Any] = {}
    with one_group() as ranks:
        for row in json.loads((folder / "cases.json").read_text())[number]:
            case, scored = Case(**row), Scored()
            trackers: Any = scored
            with (
                opened(case, ranks) as run,
                open_evaluator(run, trackers, StopPoll(lambda: None)) as evaluator,
            ):
                held: list[dict[str, int]] = []  # all that the ranks hold: before, after, …
                hook = partial(score_between_hashes, run.engine, evaluator, held)
                reports = train(run, stop_after=case.stop_after, hook=hook)
                if " scored " in case.name:
                    held.append(stop_in_an_evaluation(evaluator))
            saw[case.name] = [[asdict(report) for report in reports], scored.figures, held]
    if ranks.is_first:
        (folder / f"saw-{number}.json").write_text(json.dumps(saw))


def stop_in_an_evaluation(evaluator: Any) -> dict[str, int]:
    """What the ranks hold after a request to stop has ended the scoring of the average."""
    from lmscale.runs.stop import StoppedError
    from lmscale.train.votes import StopPoll

    evaluator.poll = StopPoll(lambda: "stop file")
    with pytest.raises(StoppedError):
        evaluator.score(STEPS, "final")
    return hashes_of(evaluator.run.engine)


def score_between_hashes(engine: Engine, evaluator: Any, held: list, report: Any) -> None:
    held.append(hashes_of(engine))
    evaluator(report)
    held.append(hashes_of(engine))


def hashes_of(engine: Engine) -> dict[str, int]:
    """Of all masters, states, averages and parameters of the forward pass."""
    forward = {name: fingerprint(tensor, name=name) for name, tensor in engine.replicas()}
    return content_of(engine) | forward


# ---- The tests


@pytest.fixture(scope="module")
def saw(tiny_data, tmp_path_factory):
    """Case's name → (reports, figures); and the folder of the runs."""
    root = tmp_path_factory.mktemp("averages")
    held_out: dict[str, Any] = {"evaluation.sets": {"a": str(tiny_data / "shards/a/heldout")}}
    held_out |= {"evaluation.every_steps": 1, "evaluation.max_windows": 8}

    def case(name: str, overrides: Mapping[str, Any], *, run: str = "", **more: Any) -> Case:
        settings = {"train.steps": STEPS, "checkpoint.every_steps": STEPS}
        settings |= {"model.layers": 1, "checkpoint.asynchronous": False, "batch.micro_windows": 6}
        settings |= held_out | overrides
        place = str(root / (run or name))
        return Case(name=name, data=str(tiny_data), folder=place, overrides=settings, **more)

    bf16 = {"engine.precision": "bf16"}
    every_step = {"checkpoint.every_steps": 1, "checkpoint.keep_last": 9}
    on_two = [case("without", {}, run="late", stop_after=STOP_AFTER)]
    on_one = [case("late", EMA | every_step)]
    for kind, average in KINDS.items():
        at, cut = bf16 | average | {"engine.zero_stage": 2}, f"{kind} cut 2"
        on_two += [
            case(f"{kind} whole", average | every_step),
            case(f"{kind} begun", average, run=f"{kind} cut", stop_after=STOP_AFTER),
            case(f"{kind} begun 2", at, run=cut, stop_after=STOP_AFTER),
            case(f"{kind} ended 2", at, run=cut),
        ]
        on_one += [case(f"{kind} ended", average | {"engine.zero_stage": 3}, run=f"{kind} cut")]
    at = bf16 | {"engine.zero_stage": 2}
    on_two += [case("plain", at), case("free plain", at | FREE | {"evaluation.weights": "trained"})]
    for kind, stage in SCORED:  # 3 last: it changes torch for good
        at = bf16 | {"engine.zero_stage": stage}
        on_two += [case(f"{kind} scored {stage}", at | KINDS[kind])]
    starts = [on_two, on_one]
    (root / "cases.json").write_text(json.dumps([[asdict(c) for c in cases] for cases in starts]))
    run_starts(Path(__file__), root, (2, 1))
    read = [json.loads((root / f"saw-{number}.json").read_text()) for number in range(2)]
    return {**read[0], **read[1]}, root


def weights_of(root: Path, run: str, step: int = STEPS, which: Any = "trained") -> torch.Tensor:
    """All of a checkpoint's weights in one row, fp64."""
    return in_a_row(load_weights(LocalPlace(root / run / "checkpoints"), step, weights=which))


def in_a_row(weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([weights[name].detach().reshape(-1) for name in sorted(weights)]).double()


def first_weights(tiny_data: Path, root: Path) -> torch.Tensor:
    config = tiny_config(tiny_data, root, {"model.layers": 1})
    model = build_model(config.model, config.sizes)
    fill_weights(model, draw_weights(config.run.seed))
    return in_a_row(dict(model.named_parameters()))


def test_the_average_is_that_of_the_weights_after_every_step(saw, tiny_data):
    _, root = saw
    average = first_weights(tiny_data, root)
    for step in range(1, STEPS + 1):
        weights = weights_of(root, "ema whole", step)
        remains = min(DECAY, (1 + step) / (10 + step))
        average = remains * average + (1 - remains) * weights
        stored = weights_of(root, "ema whole", step, "average")
        assert float((stored - average).abs().max()) < 2e-7  # of fp32's rounding of weights near 1
        assert float((stored - weights).abs().max()) > 1e-4


def test_the_average_of_schedule_free_is_that_of_the_points_by_the_squares_of_the_rates(saw):
    _, root = saw
    squares = torch.tensor(RATES).double() ** 2
    x = weights_of(root, "free whole", 1, "average")
    for step in range(2, STEPS + 1):
        y, stored = (weights_of(root, "free whole", step, w) for w in ("trained", "average"))
        z = (y - BETA * stored) / (1 - BETA)
        share = squares[step - 1] / squares[:step].sum()
        x = (1 - share) * x + share * z
        # z as it comes of y and x has ten times their rounding.
        assert float((stored - x).abs().max()) < 2e-6
        assert float((z - x).abs().max()) > 1e-4


def test_a_run_that_had_none_begins_it_with_its_weights(saw):
    _, root = saw
    average = weights_of(root, "late", STOP_AFTER)
    for step in range(STOP_AFTER + 1, STEPS + 1):
        remains = min(DECAY, (1 + step) / (10 + step))
        average = remains * average + (1 - remains) * weights_of(root, "late", step)
    assert float((weights_of(root, "late", STEPS, "average") - average).abs().max()) < 1e-7


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_at_another_stage_and_world_size(saw, kind):
    reports, root = saw
    cut = [*reports[f"{kind} begun"][0], *reports[f"{kind} ended"][0]]
    for report, expected in zip(cut, reports[f"{kind} whole"][0], strict=True):
        assert report["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    here, there = (weights_of(root, f"{kind} {run}", which="average") for run in ("cut", "whole"))
    # fp32's rounding in sums of another order, as in test_engine_equal_weights.py.
    assert float((here - there).abs().max()) < 6e-6


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_with_the_same_bits_where_nothing_else_changes(saw, kind):
    _, root = saw
    for which in ("trained", "average"):
        bits = [weights_of(root, f"{kind} {run}", which=which) for run in ("cut 2", "scored 2")]
        assert torch.equal(*bits)


@pytest.mark.parametrize(("kind", "stage"), SCORED)
def test_no_bit_is_another_one_once_the_average_was_scored(saw, kind, stage):
    reports, _ = saw
    _, figures, held = reports[f"{kind} scored {stage}"]
    after_a_stop = held.pop()
    assert len(held) == 2 * STEPS and len({str(hashes) for hashes in held}) == STEPS
    assert held[::2] == held[1::2]
    assert after_a_stop == held[-1]
    assert figures["final/of_average"] == 1
    # Of weights in bf16, whose last digits the stages' orders of summing may turn.
    expected = reports[f"{kind} scored 2"][1]["final/a/loss"]
    assert figures["final/a/loss"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("plain", "scored"), [("plain", "ema"), ("free plain", "free")])
def test_the_training_does_not_see_that_the_average_is_scored(saw, plain, scored):
    reports, root = saw
    runs = (plain, f"{scored} scored 2")
    (expected, trained, _), (found, average, _) = (reports[run] for run in runs)
    assert found == expected
    assert torch.equal(*(weights_of(root, run) for run in runs))
    assert "final/of_average" not in trained
    assert average["final/a/loss"] != trained["final/a/loss"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_command_scores_what_the_loop_does_and_says_of_which_weights(saw, kind):
    reports, root = saw
    run = root / f"{kind} whole"
    average = score("--json", run)
    assert average["weights"] == "average"
    in_loop = reports[f"{kind} whole"][1]["final/a/loss"]
    assert average["loss"] == pytest.approx(in_loop, rel=1e-6)
    trained = score("--json", run, "--weights", "trained")
    assert trained["weights"] == "trained"
    assert abs(trained["loss"] - average["loss"]) > 1e-4
    assert "weights: their average" in score(run)


def test_a_run_without_an_average_is_scored_as_it_was_trained(saw):
    run = saw[1] / "plain"
    assert score("--json", run)["weights"] == "trained"
    with pytest.raises(CheckpointError, match="plain.*holds no average.*--weights trained"):
        score("--json", run, "--weights", "average")


def score(*arguments: object) -> Any:
    app = typer.Typer()
    app.command()(evaluate)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None:
        raise result.exception
    return json.loads(result.stdout)["a"] if "--json" in arguments else result.stdout


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"evaluation.weights": "average"}, ["evaluation.weights = 'average'.*engine.ema_decay"]),
        (
            FREE | EMA | {"engine.schedule.kind": "wsd", "engine.optimizer.betas": [0.0, 0.9]},
            ["schedule.kind = wsd.*to constant", "betas begin with 0", "ema_decay = 0.6"],
        ),
    ],
)
def test_settings_that_contradict_each_other_are_told_together(
    overrides, told, tiny_data, tmp_path
):
    tree = tiny_tree(tiny_data, tmp_path, overrides)
    with pytest.raises(ConfigError) as caught:
        parse_config(yaml.safe_dump(tree))
    for pattern in told:
        assert re.search(pattern, str(caught.value))
