"""A trained model's held-out figures and scores."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from lmscale.cli.options import JsonOption, RunArgument, echo_json
from lmscale.config.training import Weights
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

StepOption = Annotated[
    int | None,
    typer.Option("--step", min=0, help="Checkpoint to use; default: the newest sound one."),
]

WeightsOption = Annotated[
    Weights | None,
    typer.Option(
        help="The trained weights, or their average over the steps; default: as "
        "evaluation.weights says, the average where the run keeps one."
    ),
]


SetNameOption = Annotated[
    list[str] | None, typer.Option(help="A set of evaluation.sets; may be given several times.")
]
MaxWindowsOption = Annotated[
    int | None,
    typer.Option(min=1, help="Score at most this many windows per set, spread evenly over it."),
]
TasksOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,NAME|FOLDER",
        help="Score tasks of lm-evaluation-harness in place of the sets: by name, or all of a "
        "folder's.",
    ),
]
IncludeOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="A folder of more tasks, to be named.")
]
HfOption = Annotated[
    Path | None,
    typer.Option(
        "--hf",
        metavar="DIR",
        help="Score the weights in this folder of Hugging Face's in place of the run's own, such "
        "as an export that another program has quantized or trained.",
    ),
]
LimitOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Only so many documents of each task, the first ones; with --written, so many pairs "
        "of each set, spread evenly over it.",
    ),
]
WrittenOption = Annotated[
    bool,
    typer.Option(
        "--written",
        help="Of a run of pairs or completion, compare the second texts of held-out pairs with "
        "what the model writes: BLEU, chrF, ROUGE-L, exact matches.",
    ),
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option(min=1, help="With --written, the most tokens of a text; default: 256."),
]
ExamplesOption = Annotated[
    int | None,
    typer.Option(min=0, help="With --written, so many texts of each set are shown; default: 3."),
]
ErrorsOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=1000,
        metavar="N",
        help="Of classes and tags, list the N errors of each set that the model is surest of.",
    ),
]


def evaluate(
    run: RunArgument,
    step: StepOption = None,
    weights: WeightsOption = None,
    set_name: SetNameOption = None,
    max_windows: MaxWindowsOption = None,
    baseline: Annotated[
        Literal["ngram", "unigram"] | None,
        typer.Option(
            help="Beside the loss, that of counts of what the run has read: a trigram, or for "
            "masked tokens a unigram."
        ),
    ] = None,
    tasks: TasksOption = None,
    include_path: IncludeOption = None,
    limit: LimitOption = None,
    hf: HfOption = None,
    written: WrittenOption = False,
    max_tokens: MaxTokensOption = None,
    examples: ExamplesOption = None,
    errors: ErrorsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a run's checkpoint on its held-out sets, or on tasks, or what it writes. SIGTERM or
    SIGUSR1 ends it with 75. Ranks that srun or torchrun starts share the work.
    """
    from lmscale.cli import evaluate_written
    from lmscale.cli.evaluate_tasks import refuse_misfits
    from lmscale.cli.scoring_ranks import ModelAsked, find_ranks, refuse_on_many

    if hf:
        _refuse_beside_hf(step=step, weights=weights, baseline=baseline)
    others = (max_windows, baseline, tasks, include_path, errors)
    evaluate_written.refuse_misfits(written, max_tokens, examples, others=others)
    if not written:
        refuse_misfits(tasks, include_path, limit, others=(set_name, max_windows, baseline, errors))
    ranks = find_ranks(run)
    refuse_on_many(ranks, baseline)
    asked = ModelAsked(run=run, step=step, weights=weights, hf=hf)
    if written:
        choice = evaluate_written.WrittenChoice.of(set_name, limit, max_tokens, examples)
        evaluate_written.evaluate_written(asked, ranks, choice, as_json=as_json)
    elif tasks is not None:
        _evaluate_tasks(asked, ranks, (tasks, include_path, limit), as_json=as_json)
    else:
        sets = SetsAsked(set_name or None, max_windows, baseline, errors)
        _evaluate_sets(asked, ranks, sets, as_json=as_json)


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


def _evaluate_sets(
    asked: ModelAsked,
    ranks: Ranks,
    sets: SetsAsked,
    *,
    as_json: bool,
) -> None:
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
                scores, counts = _evaluate(run, loaded, sets, ranks, stop=stop)
        except StoppedError as stopped:
            say(f"stopped by {stopped}; nothing was scored", err=True)
            raise typer.Exit(EXIT_RESUMABLE) from None
    if ranks.is_first:
        shown = f"those of {asked.hf}" if asked.hf else loaded.weights
        _show_scores(scores, loaded, counts, shown, sets.baseline, as_json=as_json)


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
    if weights != "trained":
        say(f"weights: {'their average over the steps' if weights == 'average' else weights}")
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


def _refuse_beside_hf(**own: object) -> None:
    """What asks of the run's own checkpoints."""
    if given := ", ".join(f"--{name}" for name, value in own.items() if value is not None):
        raise ConfigError(f"{given} is of the run's own checkpoints: leave it out with --hf.")


def _evaluate_tasks(
    asked: ModelAsked,
    ranks: Ranks,
    options: tuple[str, Path | None, int | None],
    *,
    as_json: bool,
) -> None:
    """``options``: --tasks, --include-path, --limit. Of several ranks the first has the tasks."""
    from lmscale.cli import evaluate_tasks
    from lmscale.cli.scoring_ranks import find_asked, load_asked, open_for_all, open_ranks
    from lmscale.runs.stop import StoppedError, StopRequests

    run, (tasks, include_path, limit) = asked.run, options
    with StopRequests(run, watch_file=False, signals=(signal.SIGTERM, signal.SIGUSR1)) as stop:
        stop.leave_unless(lambda: False)
        open_tasks = partial(
            evaluate_tasks.open_run_tasks,
            *(run, evaluate_tasks.split_names(tasks), include_path, limit),
            step=asked.step,
            is_own=asked.hf is None,
        )
        opened = open_tasks() if ranks.world_size == 1 else None
        try:
            found = find_asked(asked, ranks)
            with open_ranks(ranks) as device:
                if ranks.world_size > 1:  # once they have met: what is wrong ends all of them
                    opened = open_for_all(open_tasks, ranks)
                loaded = load_asked(asked, found, device, ranks)
                scored = evaluate_tasks.score_run_tasks(loaded, opened, stop, ranks)
        except StoppedError as stopped:
            say(f"stopped by {stopped}; nothing was scored", err=True)
            raise typer.Exit(EXIT_RESUMABLE) from None
    if scored is None or opened is None:  # another rank than the first
        return
    scores, respondent = scored
    if asked.hf is None:  # others' weights are no figure of the run
        evaluate_tasks.record(run, loaded, opened, scores)
    evaluate_tasks.print_scores(loaded, opened, scores, respondent, as_json=as_json)


def _evaluate(
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
    from lmscale.evaluation.held_out import open_evaluation_sets, warn_of_other_beginnings
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
        warn_of_other_beginnings(datasets, loaded.bos_id)
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
