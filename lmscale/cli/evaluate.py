"""A trained model's held-out figures and scores."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lmscale.cli.options import JsonOption, RunArgument
from lmscale.config.training import Weights
from lmscale.errors import EXIT_RESUMABLE, ConfigError
from lmscale.files.printing import say

if TYPE_CHECKING:
    from lmscale.cli.scoring_ranks import ModelAsked
    from lmscale.ranks.ranks import Ranks

StepOption = Annotated[
    int | None,
    typer.Option(
        "--step",
        min=0,
        help="Checkpoint to use; default: the best one where the run keeps one "
        "(checkpoint.keep_best), else the newest sound one.",
    ),
]

WeightsOption = Annotated[
    Weights | None,
    typer.Option(
        help="The trained weights, or their average over the steps; default: as "
        "evaluation.weights says, the average where the run keeps one."
    ),
]


_SETS, _TASKS, _WRITTEN = "Held-out sets", "Tasks, in their place", "What it writes, in their place"
SetNameOption = Annotated[
    list[str] | None, typer.Option(help="A set of evaluation.sets; may be given several times.")
]
MaxWindowsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Score at most this many windows per set, spread evenly over it.",
        rich_help_panel=_SETS,
    ),
]
TasksOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,NAME|FOLDER",
        help="Tasks of lm-evaluation-harness: by name, or all of a folder's.",
        rich_help_panel=_TASKS,
    ),
]
IncludeOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="A folder of more tasks, to be named.", rich_help_panel=_TASKS
    ),
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
        help="Of --tasks the first so many documents of each; of --written so many texts of each "
        "set, spread evenly over it.",
    ),
]
WrittenOption = Annotated[
    bool,
    typer.Option(
        "--written",
        help="Of a run of pairs, completion or dialogue, compare the second texts of held-out "
        "pairs, or the last answers of dialogues, with what the model writes: BLEU, chrF, ROUGE-L, "
        "exact matches.",
        rich_help_panel=_WRITTEN,
    ),
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option(min=1, help="The most tokens of a text; default: 256.", rich_help_panel=_WRITTEN),
]
ExamplesOption = Annotated[
    int | None,
    typer.Option(
        min=0, help="So many texts of each set are shown; default: 3.", rich_help_panel=_WRITTEN
    ),
]
ErrorsOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=1000,
        metavar="N",
        help="Of classes and tags, list the N errors of each set that the model is surest of.",
        rich_help_panel=_SETS,
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
            "masked tokens a unigram.",
            rich_help_panel=_SETS,
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
    from lmscale.cli import evaluate_sets, evaluate_written
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
        sets = evaluate_sets.SetsAsked(set_name or None, max_windows, baseline, errors)
        evaluate_sets.evaluate_sets(asked, ranks, sets, as_json=as_json)


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
