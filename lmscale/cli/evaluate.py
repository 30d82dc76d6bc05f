"""``lmscale evaluate RUN``: held-out loss, perplexity and bits per byte of a trained model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from lmscale.cli.options import JsonOption, RunArgument
from lmscale.errors import ConfigError, DataError

if TYPE_CHECKING:
    from lmscale.evaluation.perplexity import SetScore
    from lmscale.evaluation.run import LoadedRun

StepOption = Annotated[
    int | None,
    typer.Option("--step", min=0, help="Checkpoint to use; default: the newest good one."),
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
        typer.Option("--max-windows", min=1, help="Score at most this many windows per set."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Score a run's checkpoint on its held-out sets."""
    from lmscale.evaluation import load_run, render_scores
    from lmscale.runtime.device import select_device
    from lmscale.runtime.ranks import Ranks

    loaded = load_run(run, step=step, device=select_device(Ranks()))
    names = _choose_sets(loaded, set_name or [])
    scores = {name: _score(loaded, name, max_windows) for name in names}
    if as_json:
        print(json.dumps({name: score.to_dict() for name, score in scores.items()}, indent=1))
    else:
        print(render_scores(scores))


def _choose_sets(loaded: LoadedRun, asked: list[str]) -> list[str]:
    known = loaded.config.evaluation.sets
    if not known:
        raise ConfigError(
            "The run's config.yaml names no evaluation.sets; add at least one, "
            "NAME: folder of shards."
        )
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise ConfigError(
            f"--set-name {name}: evaluation.sets has no such set. Known: {', '.join(known)}."
            for name in unknown
        )
    return asked or list(known)


def _score(loaded: LoadedRun, name: str, max_windows: int | None) -> SetScore:
    from lmscale.evaluation.perplexity import evaluate_set, plan_evaluation
    from lmscale.objective import CausalObjective
    from lmscale.runtime.progress import progress
    from lmscale.runtime.ranks import Ranks
    from lmscale.stream.dataset import open_dataset

    config, tokenizer = loaded.config, loaded.tokenizer
    location = config.evaluation.sets[name]
    dataset = open_dataset(
        location,
        sequence_length=config.stream.sequence_length,
        packing=config.stream.packing,
        cache=config.stream.cache,
        verify_hashes=config.stream.verify_hashes,
    )
    try:
        if dataset.manifest.tokenizer_fingerprint != tokenizer.fingerprint:
            raise DataError(
                f"evaluation.sets.{name} = {location} was made with the tokenizer "
                f"{dataset.manifest.tokenizer_fingerprint[:12]}, but the run's is "
                f"{tokenizer.fingerprint[:12]} ({config.tokenizer.folder}). "
                "Build its shards with that one."
            )
        objective = CausalObjective(
            loaded.model, config.objective, mask_documents=config.stream.mask_documents
        )
        plan = plan_evaluation(config, tokenizer.token_bytes(), max_windows=max_windows)
        with progress(f"evaluating {name}", plan.num_windows(dataset), "windows") as advance:
            return evaluate_set(
                objective,
                dataset,
                plan,
                ranks=Ranks(),
                device=loaded.model.embedding.weight.device,
                advance=advance,
            )
    finally:
        dataset.close()
