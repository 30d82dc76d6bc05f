"""``lmscale evaluate RUN --tasks``: tasks of lm-evaluation-harness, asked of a run's own model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmscale.cli.options import echo_json
from lmscale.cli.scored import keep_figures, say_weights
from lmscale.errors import ConfigError, LmscaleError
from lmscale.files.printing import count_of, say

if TYPE_CHECKING:
    from lmscale.evaluation.harness import Tasks
    from lmscale.evaluation.respondent import Respondent
    from lmscale.evaluation.run import LoadedRun
    from lmscale.evaluation.task_scores import TaskScore
    from lmscale.ranks.ranks import Ranks
    from lmscale.runs.stop import StopRequests


def split_names(text: str) -> list[str]:
    """``NAME,NAME``, or the folder of that name, whatever is in it."""
    if Path(text).exists():
        return [text]
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError("--tasks: name at least one task, or a folder of tasks.")
    return names


def refuse_misfits(
    tasks: str | None, include_path: Path | None, limit: int | None, *, others: Sequence[object]
) -> None:
    """Raise ``ConfigError`` for options that mean nothing together."""
    if tasks is None and (include_path is not None or limit is not None):
        raise ConfigError(
            "--include-path is of tasks and --limit of tasks or texts that are written: give "
            "--tasks, or beside --limit --written, as well."
        )
    if tasks is not None and any(others):
        raise ConfigError(
            "--set-name, --max-windows, --baseline and --errors are of the held-out sets, which "
            "are not scored with --tasks. Make it two commands."
        )


def open_run_tasks(
    run: Path,
    asked: Sequence[str],
    include_path: Path | None,
    limit: int | None,
    *,
    step: int | None,
    is_own: bool,
) -> Tasks:
    """The tasks, before the model is loaded; refused where the run's model cannot answer, or
    where, of its own weights, there is no checkpoint of that step.
    """
    from lmscale.evaluation.fitting import check_answers
    from lmscale.evaluation.found import check_step
    from lmscale.evaluation.harness import open_tasks
    from lmscale.files.progress import progress
    from lmscale.runs.run_folder import load_run_config

    check_answers(load_run_config(run))
    if is_own:
        check_step(run, step)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with progress("loading the tasks"):
        return open_tasks(asked, include_path=include_path, limit=limit)


def score_run_tasks(
    loaded: LoadedRun, tasks: Tasks | None, stop: StopRequests, ranks: Ranks
) -> tuple[dict[str, TaskScore], Respondent] | None:
    """Score a loaded run; None on the ranks that only follow. Raises ``StoppedError`` on all of
    them when one is asked to stop.
    """
    from lmscale.cli.scoring_ranks import shown
    from lmscale.evaluation.respondent import build_respondent
    from lmscale.objective.objective import build_scoring
    from lmscale.ranks.mesh import plan_mesh
    from lmscale.train.votes import StopPoll

    poll = StopPoll(stop.requested)
    stop.wait_to_be_asked()
    count = len(tasks.names) if tasks else 0
    with shown(ranks, f"scoring {count_of(count, 'task')}", None, "requests") as advance:
        respondent = build_respondent(
            loaded.config,
            build_scoring(loaded.model, loaded.config).eval(),
            loaded.model,
            loaded.tokenizer,
            bos_id=loaded.bos_id,
            data=plan_mesh(ranks).data,
            device=loaded.model.device,
            advance=advance,
            between_batches=poll,
        )
        if tasks is None:
            respondent.follow()
            return None
        # Between two orders the other ranks wait for the next one, and hear no vote.
        tick = poll if ranks.world_size == 1 else _hear_nothing
        return _lead(respondent, tasks, tick), respondent


def _hear_nothing() -> None:
    """In the place of a poll."""


def _lead(respondent: Respondent, tasks: Tasks, tick: Callable[[], None]) -> dict[str, TaskScore]:
    """Ask all tasks; the ranks that follow end with this one, and for the same reason."""
    from lmscale.evaluation.harness import score_tasks

    try:
        scores = score_tasks(tasks, respondent, tick=tick)
    except LmscaleError as error:
        if not respondent.is_busy:  # else they wait for this one's part of an order
            respondent.end(error=error)
        raise
    respondent.end()
    return scores


def record(run: Path, loaded: LoadedRun, tasks: Tasks, scores: dict[str, TaskScore]) -> None:
    from lmscale.evaluation.task_scores import name_figures

    keep_figures(run, loaded, name_figures(scores), limit=tasks.limit)


def print_scores(
    loaded: LoadedRun,
    tasks: Tasks,
    scores: dict[str, TaskScore],
    respondent: Respondent,
    *,
    as_json: bool,
) -> None:
    from lmscale.evaluation.task_scores import render_task_scores

    tokenizer = loaded.tokenizer
    front = "bos" if respondent.front_id == tokenizer.bos_id else "eos"
    if as_json:
        row: dict[str, Any] = {
            "step": loaded.step,
            "weights": loaded.weights,
            "limit": tasks.limit,
            "in_front": front,
            "cut": respondent.num_cut,
            "short": respondent.num_short,
            "tasks": {name: score.to_json() for name, score in scores.items()},
        }
        echo_json(row)
        return
    say(render_task_scores(scores))
    say(f"step {loaded.step:,}; {front} stands in front of every text")
    say_weights(loaded.weights)
    if tasks.limit is not None:
        say(f"limit: the first {tasks.limit:,} documents of each task")
    if respondent.num_cut:
        say(
            f"cut: {count_of(respondent.num_cut, 'request')} longer than the "
            f"{loaded.model.max_positions:,} tokens that the model sees, on the left"
        )
    if respondent.num_short:
        say(
            f"room: {count_of(respondent.num_short, 'text')} could not grow as long as the task "
            "lets them, but to half of what the model sees"
        )
