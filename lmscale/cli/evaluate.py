"""``lmscale evaluate RUN``: held-out loss, perplexity and bits per byte of a trained model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from lmscale.cli.options import JsonOption, RunArgument
from lmscale.errors import ConfigError

if TYPE_CHECKING:
    from lmscale.evaluation.perplexity import SetScore
    from lmscale.evaluation.run import LoadedRun
    from lmscale.stream.dataset import Dataset

StepOption = Annotated[
    int | None,
    typer.Option("--step", min=0, help="Checkpoint to use; default: the newest sound one."),
]


def evaluate(
    run: RunArgument,
    step: StepOption = None,
    set_name: Annotated[
        list[str] | None,
        typer.Option("--set-name", help="A set of evaluation.sets; may be given several times."),
    ] = None,
    max_windows: Annotated[
        int | None,
        typer.Option(
            "--max-windows",
            min=1,
            help="Score at most this many windows per set, spread evenly over it.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Score a run's checkpoint on its held-out sets."""
    from lmscale.evaluation import load_run, render_scores
    from lmscale.evaluation.sets import open_evaluation_sets
    from lmscale.runtime.device import select_device
    from lmscale.runtime.ranks import Ranks

    loaded = load_run(run, step=step, device=select_device(Ranks()))
    config = loaded.config
    if not config.evaluation.sets:
        raise ConfigError(
            f"{run}: its config.yaml names no evaluation.sets; add at least one, "
            "NAME: folder of shards."
        )
    datasets = open_evaluation_sets(config, loaded.tokenizer.fingerprint, set_name or None)
    try:
        scores = {
            name: _score(loaded, name, dataset, max_windows) for name, dataset in datasets.items()
        }
    finally:
        for dataset in datasets.values():
            dataset.close()
    if as_json:
        print(json.dumps({name: score.to_dict() for name, score in scores.items()}, indent=1))
    else:
        print(render_scores(scores))


def _score(loaded: LoadedRun, name: str, dataset: Dataset, max_windows: int | None) -> SetScore:
    from lmscale.evaluation.perplexity import evaluate_set, plan_evaluation
    from lmscale.objective import CausalObjective
    from lmscale.runtime.progress import progress
    from lmscale.runtime.ranks import Ranks

    config = loaded.config
    objective = CausalObjective(
        loaded.model, config.objective, mask_documents=config.stream.mask_documents
    )
    plan = plan_evaluation(config, loaded.tokenizer.token_bytes(), max_windows=max_windows)
    with progress(f"evaluating {name}", len(plan.window_numbers(dataset)), "windows") as advance:
        return evaluate_set(
            objective,
            dataset,
            plan,
            ranks=Ranks(),
            device=loaded.model.embedding.weight.device,
            advance=advance,
        )
