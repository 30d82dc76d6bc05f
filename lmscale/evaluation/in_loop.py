"""Held-out loss while a run trains."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from lmscale.evaluation.perplexity import SetScore, evaluate_set, plan_evaluation, render_scores
from lmscale.evaluation.sets import open_evaluation_sets
from lmscale.runtime.collectives import failing_together
from lmscale.runtime.trackers import Trackers
from lmscale.train.assemble import Run
from lmscale.train.hooks import Hook
from lmscale.train.loop import StepReport

logger = logging.getLogger(__name__)


@contextmanager
def evaluation_hook(run: Run, trackers: Trackers | None) -> Iterator[Hook]:
    """Score the held-out sets when they are due and after the last step. All ranks together.

    ``trackers`` is rank 0's. A set that cannot be opened is an error before the first step.
    """
    config = run.config
    with ExitStack() as stack:
        with failing_together():
            datasets = open_evaluation_sets(config, run.tokenizer.fingerprint)
        for dataset in datasets.values():
            stack.callback(dataset.close)
        token_bytes = run.tokenizer.token_bytes()

        def hook(report: StepReport) -> None:
            is_last = report.step == config.train.steps
            every = config.evaluation.every_steps
            is_due = bool(every) and report.step % every == 0
            if not datasets or not (is_due or (is_last and config.evaluation.at_end)):
                return
            limit = None if is_last else config.evaluation.max_windows
            plan = plan_evaluation(config, token_bytes, max_windows=limit)
            scores: dict[str, SetScore] = {
                name: evaluate_set(
                    run.engine.deepspeed, dataset, plan, ranks=run.ranks, device=run.device
                )
                for name, dataset in datasets.items()
            }
            if trackers is not None:
                trackers.log(report.step, flatten_scores(scores))
            logger.info("held out at step %d\n%s", report.step, render_scores(scores))

        yield hook


def flatten_scores(scores: dict[str, SetScore]) -> dict[str, float]:
    """``evaluation/<set>/<figure>`` for the trackers."""
    return {
        f"evaluation/{name}/{figure}": value
        for name, score in scores.items()
        for figure, value in (
            ("loss", score.loss),
            ("perplexity", score.perplexity),
            ("bits_per_byte", score.bits_per_byte),
        )
    }
