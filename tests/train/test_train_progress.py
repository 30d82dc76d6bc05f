"""What a run has done so far, and what is shown of it."""

from dataclasses import asdict

from guard_cases import report

from lmscale.config.objective import CausalConfig, MaskedOrderConfig
from lmscale.train.progress import Progress
from lmscale.train.reporting import CHARTS, plan_charts


def test_progress_adds_up_steps_samples_tokens_and_skipped_steps():
    progress = Progress(step=4, n=48, tokens=1200, skipped_steps=1)
    after = progress.after(report(5, targets=321)).after(report(6, is_skipped=True))
    assert after == Progress(step=6, n=72, tokens=1821, skipped_steps=2)
    assert Progress(**asdict(after)) == after


def test_every_figure_of_an_objective_is_on_a_chart_and_a_causal_run_has_no_empty_one():
    learning = plan_charts(MaskedOrderConfig.figures)["learning"]
    assert learning["accuracy"] == [
        "(train|evaluation/.*)/accuracy",
        "(train|evaluation/.*)/order_accuracy",
    ]
    assert learning["terms and parts of the loss"] == ["(train|evaluation/.*)/order_loss"]
    assert [*plan_charts(CausalConfig.figures)["learning"]][3:] == ["terms and parts of the loss"]
    assert plan_charts(("loss",)) == CHARTS
