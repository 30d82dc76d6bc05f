"""The guard stops a run whose figures are no longer numbers; progress is the sum of the reports."""

import math

import pytest

from lmscale.errors import EXIT_GUARD, GuardError
from lmscale.train import Guard, Progress, StepReport

NAN, INF = math.nan, math.inf


def report(step, **changes) -> StepReport:
    values = {
        "step": step,
        "first_n": 12 * (step - 1),
        "samples": 12,
        "targets": 300,
        "digest": 1,
        "loss": 2.0,
        "z_loss": 0.0,
        "learning_rate": 3e-4,
        "gradient_norm": 1.0,
        "is_skipped": False,
        "loss_scale": 1.0,
        "step_seconds": 0.1,
        "wait_seconds": 0.0,
        "stop_reason": None,
    }
    return StepReport(**(values | changes))


def watch(*changes, max_nonfinite_steps=3, minimum_loss_scale=1):
    """The steps that the guard lets pass; the last one's message, if it stops the run."""
    guard = Guard(max_nonfinite_steps=max_nonfinite_steps, minimum_loss_scale=minimum_loss_scale)
    for step, change in enumerate(changes, start=1):
        try:
            guard(report(step, **change))
        except GuardError as error:
            assert error.exit_code == EXIT_GUARD
            return step, str(error)
    return len(changes), None


GOOD: dict = {}
BAD_LOSS, BAD_NORM = {"loss": NAN}, {"gradient_norm": INF}


def test_a_good_run_is_never_stopped():
    assert watch(*[GOOD] * 20) == (20, None)


@pytest.mark.parametrize(
    "bad", [{"loss": NAN}, {"loss": INF}, {"gradient_norm": NAN}, {"gradient_norm": INF}]
)
@pytest.mark.parametrize("limit", [1, 2, 5])
def test_as_many_bad_steps_in_a_row_as_allowed_stop_it(bad, limit):
    step, message = watch(GOOD, *[bad] * 9, max_nonfinite_steps=limit)
    assert step == 1 + limit
    assert message.startswith(f"{limit} steps in a row were not finite")


def test_a_good_step_in_between_begins_the_count_anew():
    bad = (BAD_LOSS, BAD_NORM)
    assert watch(*bad, GOOD, *bad, GOOD, *bad)[1] is None


def test_the_evidence_names_each_step_its_figures_and_its_samples():
    step, message = watch(GOOD, BAD_LOSS, BAD_NORM, BAD_LOSS)
    assert step == 4
    assert "step 2: loss nan, gradient norm 1.0, learning rate 0.0003, samples from 12" in message
    assert "step 3: loss 2.0, gradient norm inf" in message
    assert "lower engine.optimizer.lr" in message


def test_fp16_may_search_its_loss_scale_but_not_below_the_smallest():
    searching = {"gradient_norm": INF, "is_skipped": True, "loss_scale": 8.0}
    assert watch(*[searching] * 30)[1] is None
    at_the_end = {**searching, "loss_scale": 1.0}
    assert watch(*[at_the_end] * 30)[0] == 3
    assert watch(*[searching] * 30, minimum_loss_scale=8)[0] == 3


def test_progress_adds_up_steps_samples_tokens_and_skipped_steps():
    progress = Progress(step=4, n=48, tokens=1200, skipped_steps=1)
    after = progress.after(report(5, targets=321)).after(report(6, is_skipped=True))
    assert after == Progress(step=6, n=72, tokens=1821, skipped_steps=2)
    assert Progress(**after.to_json()) == after
