"""``lmscale plan``: what a run will need, before it runs."""

from __future__ import annotations

from typing import Any

import typer

from lmscale.cli.groups import HintingGroup
from lmscale.cli.options import ConfigArgument, JsonOption, SetOption, echo_json
from lmscale.cli.plan_ladder import ladder
from lmscale.config import load_config
from lmscale.files.printing import say

DEFAULT = "show"


class PlanGroup(HintingGroup):
    """`lmscale plan CONFIG` is short for `lmscale plan show CONFIG`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    help="What a run will need, before it runs; `lmscale plan CONFIG` shows it.",
    no_args_is_help=True,
)

app.command()(ladder)


@app.command()
def show(
    config: ConfigArgument,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what a run of CONFIG will need. Loads no torch."""
    from lmscale.plan.operations import list_operations, list_parameters
    from lmscale.plan.parameters import count_parameters

    loaded = load_config(config, set_ or ())
    parameters = count_parameters(list_parameters(loaded.model, loaded.sizes))
    operations = list_operations(loaded, micro_windows=loaded.batch.micro_windows)
    saved_bytes = sum(operation.saved_bytes for operation in operations)
    if as_json:
        echo_json({"parameters": parameters, "activation_bytes": saved_bytes})
        return
    say(f"{parameters:,} parameters")
    say(f"{saved_bytes / 2**30:.2f} GiB of activations a micro-batch")
