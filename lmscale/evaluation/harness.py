"""Tasks of lm-evaluation-harness, asked of a run's own model: no export, any checkpoint.

::

    names or folders ──open_tasks──→ Tasks ──score_tasks(Respondent)──→ {name: TaskScore}

The harness (``lm_eval``) makes the requests and the figures; the model's part is ``respondent.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmscale.errors import ConfigError, DataError, LmscaleError
from lmscale.evaluation.default_tasks import (
    advise_offline,
    check_installed,
    describe_unknown,
    go_offline,
    is_offline,
    look_for_hub,
    refuse_unknown,
)
from lmscale.evaluation.task_files import (
    TaskFile,
    check_task,
    expand,
    name_tasks,
    read_rows,
)
from lmscale.evaluation.task_scores import TaskScore, read_results
from lmscale.runs.stop import StoppedError

if TYPE_CHECKING:
    from lmscale.evaluation.respondent import Respondent

_ALL = "all that are asked for"
_SHOT_SEED = 1234  # of few-shot examples: lm-eval's own
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """Loaded tasks, ready to be asked as often as one likes."""

    loaded: Any  # what ``lm_eval.tasks.TaskManager.load`` gives
    limit: int | None  # most documents of each task
    are_local: bool  # whether all data are files of this machine

    @property
    def names(self) -> list[str]:
        return list(self.loaded["tasks"])


def open_tasks(
    asked: Sequence[str], *, include_path: str | Path | None = None, limit: int | None = None
) -> Tasks:
    """Load the tasks of these names or folders. ``include_path``: a folder of more tasks.

    Local tasks are read here, whole, and need no network; where all are local, the libraries are
    told to use none. Others come from lm-eval's own list, and their data from the Hugging Face hub
    or its cache. Raises ``ConfigError`` or ``DataError`` with all that is wrong, before anything is
    scored.
    """
    check_installed()
    names, known = name_tasks(asked, include_path)
    local, others = expand(names, known)
    are_local = not others and all(task.is_local for task in local)
    refuse_unknown(others, known)
    rows = _read_all(local)
    if are_local:
        go_offline("all tasks are local files")
    elif not is_offline():
        look_for_hub()
    with _quiet(), _strangers("the tasks cannot be loaded", advice=advise_offline(others)):
        loaded = _load(local, others, known, rows)
    tasks = Tasks(loaded=loaded, limit=limit, are_local=are_local)
    with _quiet(), _strangers("the requests of a task cannot be made"):
        _prepare(tasks)
    return tasks


def _read_all(tasks: Iterable[TaskFile]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Task → split → rows, of those that read JSON lines; raises all tasks' problems at once."""
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    problems: list[str] = []
    kind: type[LmscaleError] = ConfigError
    for task in tasks:
        if not task.reads_json:
            continue
        try:
            check_task(task)
            rows[task.name] = read_rows(task)
        except LmscaleError as error:
            problems += error.problems
            kind = type(error)
    if problems:
        raise kind(problems)
    return rows


def _load(
    local: Sequence[TaskFile],
    others: Sequence[str],
    known: Mapping[str, TaskFile],
    rows: Mapping[str, dict[str, list[dict[str, Any]]]],
) -> Any:
    from datasets import Dataset
    from lm_eval.tasks import TaskManager

    folders = dict.fromkeys(str(task.path.parent) for task in known.values())
    manager = TaskManager(include_path=list(folders), include_defaults=bool(others))
    unknown = [name for name in others if name not in manager.all_tasks]
    if unknown:
        raise ConfigError([describe_unknown(name, known, manager.all_tasks) for name in unknown])

    def with_data(name: str) -> dict[str, Any]:
        splits = {split: Dataset.from_list(each) for split, each in rows[name].items()}
        return {"task": name, "custom_dataset": lambda **settings: splits}

    members = [with_data(task.name) if task.name in rows else task.name for task in local]
    members += others
    # A task can be given its data only as a member of a group.
    loaded: dict[str, Any] = {**manager.load([{"group": _ALL, "task": members}])}
    for part in ("groups", "group_map"):
        loaded.get(part, {}).pop(_ALL, None)
    return loaded


def _prepare(tasks: Tasks) -> None:
    """Settle the few-shot examples, and make every request once: what cannot be is told now."""
    for task in tasks.loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=_SHOT_SEED)
        task.build_all_requests(limit=tasks.limit, rank=0, world_size=1)
        _check_requests(task)


def _check_requests(task: Any) -> None:
    """Raise ``DataError`` for a request that no model could answer."""
    from lmscale.evaluation.writing import plan_question  # torch: not before the names are known

    name = task.config.task
    for request in task.instances:
        arguments = request.args
        if request.request_type == "generate_until":
            *arguments, settings = arguments
            try:
                plan_question([0], settings, max_positions=2, number=0)
            except LmscaleError as error:
                raise DataError([f"the task {name!r}: {each}" for each in error.problems]) from None
        for text in arguments:
            if not isinstance(text, str):
                raise DataError(
                    f"the task {name!r} asks of {text!r}, which is no text. Make it one in its "
                    "data, or by a template, such as doc_to_target: '{{answer}}'."
                )


def score_tasks(
    tasks: Tasks, respondent: Respondent, *, tick: Callable[[], None] = lambda: None
) -> dict[str, TaskScore]:
    """The figures of every task, and of every group that has some, by name. Rank 0 alone calls it;
    the others ``follow``. ``tick`` is called again and again while requests are made.
    """
    from lm_eval.evaluator import evaluate

    for task in tasks.loaded["tasks"].values():
        task.set_fewshot_seed(seed=_SHOT_SEED)  # the same examples in every evaluation
    model = _build_model(respondent)
    with _quiet(tick), _strangers("a task cannot be scored", model):
        results = evaluate(
            model,
            tasks.loaded,
            limit=tasks.limit,
            bootstrap_iters=0,  # takes minutes of all cores
            log_samples=False,
        )
    assert results is not None, "this is its first rank"
    return read_results(results)


def _build_model(respondent: Respondent) -> Any:
    """The harness' side of a respondent."""
    from lm_eval.api.model import LM

    class RunModel(LM):
        failure: BaseException | None = None

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            with self.keeping():
                answers = respondent.score_pairs(_arguments(requests))
                return [(answer.log_p, answer.is_greedy) for answer in answers]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            with self.keeping():
                return respondent.score_texts([text for (text,) in _arguments(requests)])

        def generate_until(self, requests: list[Any]) -> list[str]:
            with self.keeping():
                return respondent.write(_arguments(requests))

        @contextmanager
        def keeping(self) -> Iterator[None]:
            try:
                yield
            except BaseException as error:
                self.failure = error
                raise

    return RunModel()


def _arguments(requests: Iterable[Any]) -> list[Any]:
    return [request.args for request in requests]


@contextmanager
def _quiet(tick: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Without the harness' own bars, which nothing switches off (lm-eval 0.4.13), and its advice on
    task files; ``tick`` for each document that a bar would have counted.
    """
    import lm_eval.api.task as module

    def count(rows: Iterable[Any], *arguments: Any, **settings: Any) -> Iterator[Any]:
        for row in rows:
            tick()
            yield row

    harness = logging.getLogger("lm_eval")
    level, bars = harness.level, module.tqdm
    harness.setLevel(logging.ERROR)
    module.tqdm = count
    try:
        yield
    finally:
        harness.setLevel(level)
        module.tqdm = bars


@contextmanager
def _strangers(what: str, model: Any = None, *, advice: str = "") -> Iterator[None]:
    """Task files are strangers' code and templates, which may raise anything: a ``DataError``. What
    ``model`` has raised passes through. ``advice``: a sentence more.
    """
    try:
        yield
    except (LmscaleError, StoppedError):
        raise
    except Exception as error:
        if model is not None and error is model.failure:
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        said = f"{said.rstrip('.')}." if advice else said
        raise DataError(f"evaluation.tasks: {what}: {said}{advice}") from error
