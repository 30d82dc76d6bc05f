"""``lmscale plan``: what a run will need, before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lmscale.cli.groups import HintingGroup
from lmscale.cli.options import (
    ConfigArgument,
    JsonOption,
    SetOption,
    echo_json,
    find_file_problems,
    print_warnings,
    render_line,
)
from lmscale.cli.plan_check import calibrate, check
from lmscale.cli.plan_ladder import ladder
from lmscale.cli.plan_options import (
    GpuOption,
    GpusPerNodeOption,
    HtmlOption,
    LikeOption,
    LimitOption,
    NodeMtbfOption,
    NodesOption,
    PreemptedOption,
    PriceOption,
    PueOption,
    QueueOption,
    StorageOption,
)
from lmscale.config import load_config
from lmscale.config.load import blaming
from lmscale.errors import ConfigError
from lmscale.files.printing import say

if TYPE_CHECKING:
    from lmscale.plan.own_constants import Constants

DEFAULT = "show"


class PlanGroup(HintingGroup):
    """`lmscale plan CONFIG` is short for `lmscale plan show CONFIG`."""

    usual = DEFAULT

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    help="What a run will need, before it runs; `lmscale plan CONFIG` shows it.",
    no_args_is_help=True,
)

app.command()(check)
app.command()(calibrate)
app.command()(ladder)


@app.command()
def show(
    config: ConfigArgument,
    set_: SetOption = None,
    gpu: GpuOption = None,
    nodes: NodesOption = 1,
    gpus_per_node: GpusPerNodeOption = None,
    html: HtmlOption = None,
    price: PriceOption = None,
    pue: PueOption = None,
    node_mtbf: NodeMtbfOption = None,
    preempted_every: PreemptedOption = None,
    limit: LimitOption = None,
    queue: QueueOption = 0.0,
    storage: StorageOption = None,
    like: LikeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what a run of CONFIG will need. Loads no torch."""
    from lmscale.cli.plan_memory import advice_to_json, list_advice, list_memory, memory_to_json
    from lmscale.cli.plan_run import choose_machine, list_rows, to_json, write_page
    from lmscale.plan.failures import DAY, HOUR
    from lmscale.plan.quote import describe_unplanned
    from lmscale.plan.run import RunOptions, plan_run
    from lmscale.plan.speed import plan_step

    if html is not None and (problems := find_file_problems("--html", html, ".html")):
        raise ConfigError(problems)
    loaded = load_config(config, set_ or ())
    machine = choose_machine(gpu, nodes=nodes, devices_per_node=gpus_per_node)
    with blaming(set_ or ()):
        step = plan_step(loaded, machine)
    given = {
        "price": price,
        "pue": pue,
        "node_mtbf_seconds": node_mtbf and node_mtbf * DAY,
        "preemption_seconds": preempted_every and preempted_every * HOUR,
        "limit_seconds": limit and limit * HOUR,
        "queue_seconds": queue * 60,
        "write_bytes_per_second": storage and storage * 1e9,
    }
    options = RunOptions(**{key: value for key, value in given.items() if value is not None})
    constants = None if like is None else _read_constants(like)
    run = plan_run(loaded, machine, step_seconds=step.seconds, options=options, constants=constants)
    if html is not None:
        write_page(html, loaded, machine, step, run, options)
    if as_json:
        told = {
            "memory": memory_to_json(loaded, machine),
            "advice": advice_to_json(loaded, machine),
        }
        echo_json(to_json(machine, step, run) | told)
        return
    for name, text in list_rows(machine, step, run):
        say(render_line(name, text))
    for name, text in (*list_memory(loaded, machine), *list_advice(loaded, machine)):
        say(render_line(name, text))
    print_warnings([*run.doubts, *describe_unplanned(loaded, machine)])


def _read_constants(run: Path) -> Constants:
    """Raises ``ConfigError`` where no run is in the folder ``run``."""
    from lmscale.plan.own_constants import read_constants
    from lmscale.runs.run_folder import load_run_config

    every = load_run_config(run).evaluation.every_steps
    return read_constants(run, evaluate_every_steps=every)
