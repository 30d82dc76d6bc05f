"""``lmscale evaluate RUN``: the figures of held-out sets, and of classes a table and errors."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

from lmscale.cli.options import echo_json
from lmscale.cli.scored import say_weights
from lmscale.errors import EXIT_RESUMABLE, ConfigError
from lmscale.files.printing import say

if TYPE_CHECKING:
    from lmscale.cli.scoring_ranks import ModelAsked
    from lmscale.evaluation.fitting import BaselineName
    from lmscale.evaluation.ngram import Trigram, Unigram
    from lmscale.evaluation.perplexity import SetScore
    from lmscale.evaluation.run import LoadedRun
    from lmscale.ranks.ranks import Ranks
    from lmscale.runs.stop import StopRequests
    from lmscale.train.votes import StopPoll


class SetsAsked(NamedTuple):
    """What is asked of the held-out sets."""

    names: list[str] | None  # None: all of them
    max_windows: int | None
    baseline: BaselineName | None
    errors: int | None

    def check(self, run: Path) -> None:
        """Raise the errors of what is not there or does not fit, before a model is loaded."""
        from lmscale.config.supervised import MOST_COUNTED
        from lmscale.evaluation.fitting import check_baseline
        from lmscale.evaluation.held_out import check_evaluation_sets
        from lmscale.runs.run_folder import load_run_config

        config = load_run_config(run)
        if self.baseline:
            check_baseline(config, self.baseline)
        if self.errors is not None and not getattr(config.objective, "counted", ()):
            raise ConfigError(
                f"--errors is of objectives that tell up to {MOST_COUNTED:,} classes apart, and "
                f"{run} was trained for objective.name = {config.objective.name!r}. Leave it out."
            )
        check_evaluation_sets(run, self.names)


def evaluate_sets(
    asked: ModelAsked,
    ranks: Ranks,
    sets: SetsAsked,
    *,
    as_json: bool,
) -> None:
    """Score them, and print what is found on the first rank. A signal ends it with 75."""
    from lmscale.cli.scoring_ranks import find_asked, load_asked, open_ranks
    from lmscale.runs.stop import StoppedError, StopRequests

    run = asked.run
    sets.check(run)
    # Ctrl-C stays what it is elsewhere: there is nothing here to bring to an end.
    signals = (signal.SIGTERM, signal.SIGUSR1)
    with StopRequests(run, watch_file=False, signals=signals) as stop:
        stop.leave_unless(lambda: False)
        try:
            found = find_asked(asked, ranks)
            with open_ranks(ranks) as device:
                loaded = load_asked(asked, found, device, ranks)
                scores, counts = _score(run, loaded, sets, ranks, stop=stop)
        except StoppedError as stopped:
            say(f"stopped by {stopped}; nothing was scored", err=True)
            raise typer.Exit(EXIT_RESUMABLE) from None
    if ranks.is_first:
        shown = f"those of {asked.hf}" if asked.hf else loaded.weights
        _show_scores(scores, loaded, counts, shown, sets.baseline, as_json=as_json)


def _score(
    run: Path,
    loaded: LoadedRun,
    sets: SetsAsked,
    ranks: Ranks,
    *,
    stop: StopRequests,
) -> tuple[dict[str, SetScore], Trigram | Unigram | None]:
    from lmscale.cli.scoring_ranks import shown
    from lmscale.evaluation import perplexity
    from lmscale.evaluation.baseline import plan_keys, score_set
    from lmscale.evaluation.held_out import (
        open_evaluation_sets,
        warn_of_other_writing,
        warn_of_replaced,
    )
    from lmscale.objective.objective import build_scoring
    from lmscale.ranks.collectives import failing_together
    from lmscale.ranks.mesh import plan_mesh
    from lmscale.stream.ledger import RECORD
    from lmscale.train.votes import StopPoll

    config, model = loaded.config, loaded.model
    with failing_together():
        datasets = open_evaluation_sets(
            config, loaded.tokenizer.fingerprint, sets.names, check_files=ranks.is_first
        )
    if (run / RECORD).exists() and ranks.is_first:
        warn_of_other_writing(datasets, config.folder, bos_id=loaded.bos_id)
        warn_of_replaced(datasets, run)
    baseline = sets.baseline
    plan = perplexity.plan_evaluation(
        config,
        loaded.tokenizer,
        max_windows=sets.max_windows,
        max_mistakes=sets.errors or 0,
    )
    poll = StopPoll(stop.requested)
    stop.wait_to_be_asked()  # a terminal's progress bar, at least: from here on it is asked for
    counts = _count_run(run, loaded, baseline, poll) if baseline else None
    scores: dict[str, SetScore] = {}
    for name, dataset in datasets.items():
        total = len(plan.window_numbers(dataset))
        with closing(dataset), shown(ranks, f"evaluating {name}", total, "windows") as advance:
            scores[name] = perplexity.evaluate_set(
                build_scoring(model, config),
                dataset,
                plan,
                data=plan_mesh(ranks).data,
                device=model.device,
                advance=advance,
                between_batches=poll,
            )
            if counts is not None and baseline:
                keys_of = plan_keys(config, plan.preparation)
                loss = score_set(counts, dataset, plan, keys_of, between_batches=poll)
                scores[name] = replace(scores[name], others={**scores[name].others, baseline: loss})
    return scores, counts


def _count_run(
    run: Path, loaded: LoadedRun, baseline: BaselineName, poll: StopPoll
) -> Trigram | Unigram:
    from lmscale.evaluation.baseline import count_run
    from lmscale.files.progress import progress

    with progress("counting tokens", None, "windows") as advance:

        def advance_and_ask(windows: float) -> None:
            advance(windows)
            poll()

        return count_run(
            loaded.config,
            run,
            baseline,
            step=loaded.step,
            tokenizer=loaded.tokenizer,
            advance=advance_and_ask,
        )


def _show_scores(
    scores: Mapping[str, SetScore],
    loaded: LoadedRun,
    counts: Trigram | Unigram | None,
    weights: str,
    baseline: str | None,
    *,
    as_json: bool,
) -> None:
    if as_json:
        counted: dict[str, float | str | None] = {"weights": weights}
        if counts is not None:
            counted[f"{baseline}_tokens"] = counts.tokens
        echo_json({name: score.to_dict() | counted for name, score in scores.items()})
        return
    from lmscale.evaluation.perplexity import render_scores

    say(render_scores(scores))
    _show_labelled(scores)
    has_bits = any("bits_per_byte" in score.figures for score in scores.values())
    if has_bits and loaded.tokenizer.token_bytes() is None:
        say(
            "bits/byte: the tokenizer is not exact, so a token counts as many bytes as one of the "
            "set's documents has on average: an estimate with --max-windows"
        )
    say_weights(weights)
    if counts is not None:
        say(
            f"{baseline}: the loss of {counts.described}, counted on {counts.tokens:,} tokens that "
            "the run has read"
        )


def _show_labelled(scores: Mapping[str, SetScore]) -> None:
    """Of classes a table, and the errors that were asked for."""
    from lmscale.evaluation.labelled import render_classes, render_mistakes

    for name, score in scores.items():
        if score.labelled is not None:
            say(f"\n{name}\n{render_classes(score.labelled)}")
            if score.labelled.mistakes:
                say(f"\n{name}, errors\n{render_mistakes(score.labelled.mistakes)}")
