"""``lmscale stream``: the global order of samples, and the proof that it is one."""

from __future__ import annotations

from typing import Annotated

import typer

from lmscale.cli.options import ConfigArgument, JsonOption, SetOption, echo_json, print_warnings
from lmscale.config import load_config
from lmscale.errors import ConfigError
from lmscale.files.printing import say

app = typer.Typer(help="Shards → the global order of samples.", no_args_is_help=True)


@app.command()
def digest(
    config: ConfigArgument,
    steps: Annotated[
        str, typer.Option(metavar="A:B", help="Steps A to B - 1; B alone means 0:B.")
    ] = "0:10",
    world_size: Annotated[
        int, typer.Option("--world-size", min=1, help="Ranks, read one after another.")
    ] = 1,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Loader workers per rank; default: the config's.")
    ] = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Print one digest a step, of a run from its start. It must not depend on ranks and workers.

    The sum modulo 2^63 over the step's samples of xxh64 of the sample's number and its tokens.
    """
    from lmscale.api import open_stream
    from lmscale.objective.objective import build_preparation
    from lmscale.stream.loader import digest_steps

    settings = load_config(config, set_ or ())
    first, last = parse_steps(steps)
    plan = settings.batch.plan(world_size)
    with open_stream(settings) as stream:
        rows = digest_steps(
            stream,
            plan,
            preparation=build_preparation(settings),
            first_step=first,
            num_steps=last - first,
            workers=settings.stream.workers if workers is None else workers,
        )
    for row in rows:
        if json_:
            say(row.to_line(), end="")
        else:
            say(
                f"step {row.step}  n {row.first_n}  samples {row.samples}  digest {row.digest:016x}"
            )


@app.command()
def show(config: ConfigArgument, set_: SetOption = None, json_: JsonOption = False) -> None:
    """Print the mixture of CONFIG: each source's size, its share, and the epochs of a whole run."""
    from lmscale.api import open_stream
    from lmscale.shards.stale import find_stale_data

    settings = load_config(config, set_ or ())
    print_warnings(find_stale_data(settings))
    samples = settings.samples_after(settings.train.steps)
    with open_stream(settings) as stream:
        epochs = stream.epochs_at(samples)
        quotas = stream.segments[-1].quotas
        sources = [
            {
                "source": name,
                "shards": dataset.location,
                "tokens": sum(entry.tokens for entry in dataset.manifest.shards),
                "windows": dataset.num_windows,
                "samples_per_block": quotas[name],
                "share": quotas[name] / stream.config.mixture_block,
                "epochs": epochs[name],
            }
            for name, dataset in stream.datasets.items()
        ]
        shape, packing = stream.shape, stream.config.packing
    if json_:
        echo_json({"samples": samples, "sources": sources})
        return
    width = max(6, *(len(source["source"]) for source in sources))
    say(f"{'source':{width}}  {'tokens':>16}  {'windows':>12}  {'share':>6}  {'epochs':>8}")
    for source in sources:
        say(
            f"{source['source']:{width}}  {source['tokens']:>16,}  {source['windows']:>12,}  "
            f"{source['share']:>6.1%}  {source['epochs']:>8.2f}"
        )
    say(
        f"{samples:,} samples of {shape.stride:,} + {shape.overlap} tokens ({packing}) in "
        f"{settings.train.steps:,} steps; epochs as of the last step."
    )


def parse_steps(text: str) -> tuple[int, int]:
    """``A:B`` or ``B`` → (A, B). Raises ``ConfigError``."""
    first, separator, last = text.partition(":")
    if not separator:
        first, last = "0", first
    if not (first.isdecimal() and last.isdecimal()) or int(first) >= int(last):
        raise ConfigError(f"--steps {text}: write it as A:B with A below B, for example 0:50.")
    return int(first), int(last)
