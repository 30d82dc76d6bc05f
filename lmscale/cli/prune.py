"""``lmscale prune``: a run's weights with the smallest ones 0."""

from __future__ import annotations

from shlex import quote
from typing import Annotated, Literal

import typer

from lmscale.cli.compare import check_sets, measure_models, show_rows
from lmscale.cli.evaluate import MaxWindowsOption, SetNameOption, StepOption, WeightsOption
from lmscale.cli.options import JsonOption, RunArgument, echo_json, render_line
from lmscale.errors import ConfigError
from lmscale.files.printing import say

NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="The new run, beside RUN; or its folder.", show_default=False
    ),
]
EmbeddingsOption = Annotated[
    bool, typer.Option("--embeddings", help="The embedding and the head, too.")
]


def prune(
    run: RunArgument,
    name: NameArgument,
    share: Annotated[
        float,
        typer.Option(help="Of the weights that become 0, such as 0.5.", show_default=False),
    ],
    by: Annotated[
        Literal["layer", "all"],
        typer.Option(help="layer: that share of each matrix; all: of all of them together."),
    ] = "layer",
    method: Annotated[
        Literal["magnitude"], typer.Option(help="magnitude: the smallest weights.")
    ] = "magnitude",
    embeddings: EmbeddingsOption = False,
    step: StepOption = None,
    weights: WeightsOption = None,
    set_name: SetNameOption = None,
    max_windows: MaxWindowsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run's weights, with the smallest ones 0, as a new run's folder.

    It is evaluated and exported as any run is. Norms and biases stay as they are. Its retrain.yaml
    is a run that begins with it and keeps the zeros (engine.keep_zeros). Size, speed and held-out
    loss are shown before and after.
    """
    from lmscale.evaluation.found import find_run
    from lmscale.files.progress import progress

    if not 0 < share < 1:
        raise ConfigError(f"--share {share:g}: give a part of the weights, above 0 and below 1.")
    with progress("looking at the checkpoint"):
        found = find_run(run, step=step, weights=weights)
    if found.config.evaluation.sets:
        check_sets(found, set_name)
    with progress("loading torch"):
        from lmscale.compress import prune as pruning
    plan = pruning.plan_prune(found, name, share=share, by=by, embeddings=embeddings)
    with progress("pruning", plan.run.bytes / 1e6, "MB") as advance:
        out = pruning.prune(plan, lambda size: advance(size / 1e6))
    runs = [found, find_run(out, step=None)]
    rows = []
    if found.config.evaluation.sets:
        rows = measure_models(runs, set_name=set_name, max_windows=max_windows)
    if as_json:
        facts = {"folder": str(out), "how": plan.run.how, "matrices": [*plan.matrices]}
        echo_json({**facts, "models": [row.to_dict() for row in rows]})
        return
    say(render_line("pruned", f"{found.name}: {plan.run.how}"))
    say(render_line("folder", out))
    say(render_line("retrain", f"lmscale train {quote(str(out / pruning.RETRAIN_FILE))}"))
    if rows:
        show_rows(rows, as_json=False)
    else:
        say(render_line("measured", "nothing: the run has no evaluation.sets"))
