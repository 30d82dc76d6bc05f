"""``lmscale compare``: models beside each other, by size, speed and held-out loss."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmscale.cli.evaluate import MaxWindowsOption, SetNameOption
from lmscale.cli.options import JsonOption, echo_json
from lmscale.errors import ConfigError
from lmscale.files.printing import say

if TYPE_CHECKING:
    from lmscale.compress.measure import Measured
    from lmscale.config import RunConfig
    from lmscale.evaluation.found import FoundRun

ModelsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN[@STEP]…",
        help="Runs, with a step each where it is not the newest; and GGUF files of these.",
        show_default=False,
    ),
]
GGUF = ".gguf"


def compare(
    models: ModelsArgument,
    set_name: SetNameOption = None,
    max_windows: MaxWindowsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Size, speed and held-out loss of several models of one tokenizer, in one table.

    The sets are those of the first run. Speeds are measured in turns, on one process's device, and
    shown as ratios to the first model of the same engine: a run's model runs under torch, a GGUF
    file under llama.cpp, for which the loss is that of the weights in the file.
    """
    files = [Path(model).expanduser() for model in models if model.endswith(GGUF)]
    runs = find_runs([model for model in models if not model.endswith(GGUF)])
    _check(runs, files, set_name)
    names = name_apart(runs)
    rows = measure_models(runs, files, set_name=set_name, max_windows=max_windows, names=names)
    show_rows(rows, as_json=as_json)


def name_apart(runs: Sequence[FoundRun]) -> list[str]:
    """The runs' names, with the step where two are of one name, and the folder where that is not
    enough.
    """
    names = [run.config.run.name for run in runs]
    for more in (lambda run: f"{run.config.run.name}@{run.manifest.step}", lambda run: run.name):
        names = [
            more(run) if names.count(name) > 1 else name
            for run, name in zip(runs, names, strict=True)
        ]
    return names


def find_runs(names: Sequence[str]) -> list[FoundRun]:
    """The verified checkpoints that RUN or RUN@STEP name. Raises every problem at once."""
    from lmscale.errors import CheckpointError
    from lmscale.evaluation.found import find_run
    from lmscale.files.locations import RUNS, find_checkpoint
    from lmscale.files.progress import progress

    found, problems = [], []
    with progress("looking at the checkpoints"):
        for name in names:
            place = find_checkpoint(name, beside=RUNS)
            try:
                found.append(find_run(place.folder, step=place.step))
            except (ConfigError, CheckpointError) as error:
                problems += error.problems
    if problems:
        raise ConfigError(problems)
    return found


def _check(runs: Sequence[FoundRun], files: Sequence[Path], set_names: list[str] | None) -> None:
    """Raise what is wrong before torch is loaded."""
    if not runs:
        raise ConfigError("Name at least one run: it has the tokenizer and the held-out sets.")
    check_comparable(runs)
    check_sets(runs[0], set_names)
    if missing := [file for file in files if not file.is_file()]:
        raise ConfigError([f"{file}: no such file." for file in missing])


def check_comparable(runs: Sequence[FoundRun]) -> None:
    """Raise ``ConfigError`` where figures of the runs could not be compared."""
    first, problems = runs[0], []
    scored = scored_identity(first.config)
    for other in runs[1:]:
        if other.tokenizer.fingerprint != first.tokenizer.fingerprint:
            problems.append(
                f"{other.folder}: its tokenizer is another one than that of {first.folder}, so "
                "losses are of other tokens. Compare runs of one tokenizer."
            )
        elif scored_identity(other.config) != scored:
            problems.append(
                f"{other.folder}: its objective, {other.config.objective.name}, scores other "
                f"targets than that of {first.folder}, {first.config.objective.name}, or has other "
                "settings. Compare runs of one objective; distill scores what causal does."
            )
        elif other.config.window != first.config.window:
            length, own = (r.config.stream.sequence_length for r in (first, other))
            problems.append(
                f"{other.folder}: its windows are other ones than those of {first.folder} "
                f"(stream.sequence_length = {own} and {length}, stream.packing = "
                f"{other.config.stream.packing} and {first.config.stream.packing}), so its losses "
                "are of other targets. Compare runs of the same windows."
            )
    if problems:
        raise ConfigError(problems)


def scored_identity(config: RunConfig) -> dict[str, Any]:
    """What of a run's objective says which targets its held-out losses are of."""
    from lmscale.runs.continuation import objective_identity

    held_out = {"objective": config.objective.of_held_out}
    return objective_identity(config.model_copy(update=held_out))


def check_sets(run: FoundRun, names: list[str] | None) -> None:
    """Raise the errors of held-out sets that are not there or do not fit."""
    from lmscale.evaluation.held_out import open_evaluation_sets

    if not run.config.evaluation.sets:
        raise ConfigError(
            f"{run.folder}: its config.yaml names no evaluation.sets, on which models are "
            "compared. Name a run first that has some."
        )
    fingerprint = run.tokenizer.fingerprint
    for dataset in open_evaluation_sets(run.config, fingerprint, names or None).values():
        dataset.close()


def measure_models(
    runs: Sequence[FoundRun],
    files: Sequence[Path] = (),
    *,
    set_name: list[str] | None,
    max_windows: int | None,
    names: Sequence[str] = (),
) -> list[Measured]:
    """The rows, of runs and of GGUF files of these. ``names``: of the runs, in place of theirs."""
    from lmscale.files.progress import progress

    with progress("loading torch"):
        from lmscale.compress.contenders import load_contender, load_files, opened_sets
        from lmscale.compress.measure import PROMPT_TOKENS, first_prompt, measure
        from lmscale.ranks.device import select_device
        from lmscale.ranks.ranks import Ranks
    device = select_device(Ranks())
    with ExitStack() as stack:
        sets = stack.enter_context(opened_sets(runs[0], set_name or None))
        with progress("loading the models"):
            contenders = [
                load_contender(run, device=device, name=names[n] if names else "")
                for n, run in enumerate(runs)
            ]
        if files:
            first = next(iter(sets.values()))
            length = min(PROMPT_TOKENS, runs[0].config.max_positions // 2)
            prompt = first_prompt(runs[0].config, first, length)
            with progress("running llama.cpp"):
                contenders += load_files(files, runs, prompt)
        return measure(contenders, sets, max_windows=max_windows, bar=progress)


def show_rows(rows: Sequence[Measured], *, as_json: bool) -> None:
    from lmscale.compress.measure import ratios
    from lmscale.compress.table import describe_engines, render_table

    if as_json:
        echo_json([row.to_dict() for row in rows])
        return
    say(render_table(rows, [*ratios(rows)]))
    say(describe_engines(rows))
