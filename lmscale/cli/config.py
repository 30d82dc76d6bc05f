"""``lmscale config``: what a YAML file means, and what may stand in it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Annotated, Any

import typer
import yaml

from lmscale.cli.options import ConfigArgument, JsonOption, SetOption, echo_json
from lmscale.config import RunConfig, dump_config, load_config
from lmscale.config.assets import describe_config, list_configs
from lmscale.config.hf.target import describe_target
from lmscale.config.load import blaming
from lmscale.config.token_ids import fold_ids
from lmscale.files.printing import say

app = typer.Typer(help="What a YAML file means, and what may stand in it.", no_args_is_help=True)


@app.command()
def show(
    config: ConfigArgument,
    set_: SetOption = None,
    num_ranks: Annotated[
        int | None,
        typer.Option("--nproc", metavar="N", min=1, help="Also show what N ranks make of it."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the whole configuration: CONFIG, --set, and every default.

    With --nproc also the division of the batch and all that DeepSpeed is given, overrides included.
    """
    loaded = load_config(config, set_ or ())
    with blaming(set_ or ()):
        derived = _derive(loaded, num_ranks)
    if as_json:
        echo_json({"config": loaded.model_dump(mode="json"), "derived": derived})
        return
    say(dump_config(loaded), end="")
    say("# What follows from it:")
    for line in yaml.safe_dump(
        derived, sort_keys=False, width=math.inf, allow_unicode=True
    ).splitlines():
        say(f"#   {line}")


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """Print the configurations that come with lmscale, by the names that CONFIG may be."""
    said = {name: describe_config(path) for name, path in list_configs().items()}
    if as_json:
        echo_json(said)
        return
    width = max(map(len, said))
    for name, what in said.items():
        say(f"{name:{width}}  {what}")


@app.command()
def schema() -> None:
    """Print the JSON Schema of CONFIG, for editors.

    In VS Code: "yaml.schemas": {"lmscale.schema.json": "configs/*.yaml"}.
    """
    say(json.dumps(RunConfig.model_json_schema(), indent=1))


def _derive(config: RunConfig, num_ranks: int | None) -> dict[str, Any]:
    derived: dict[str, Any] = {
        "folder": str(config.folder),
        "vocab_size": config.vocab_size,
        "tokens_per_step": config.tokens_per_step,
        "tokens": config.trained_tokens,
        "exports_as": describe_target(config),
    }
    if ids := config.objective_ids:
        derived["objective_ids"] = {
            name: number if isinstance(number, int) else [*number]
            for name, number in fold_ids(ids).items()
        }
    if config.model.lora.targets:
        from lmscale.model.family import account_model

        account_model(config.model, config.sizes)  # refuses names of no matrix
    if num_ranks is None:
        return derived
    from lmscale.config.deepspeed_config import render_deepspeed_config
    from lmscale.model.family import account_model

    plan = config.batch.plan(num_ranks)
    num_parameters = account_model(config.model, config.sizes).total
    # A user's ranks are all on the data axis.
    batch = {"world_size" if key == "data_ranks" else key: v for key, v in asdict(plan).items()}
    batch["warmup"] = [
        {
            "until_step": until,
            "global_windows": smaller.global_windows,
            "micro_windows": smaller.micro_windows,
            "accumulation": smaller.accumulation,
        }
        for until, smaller in plan.warmup
    ]
    deepspeed = render_deepspeed_config(config.engine, plan=plan, num_parameters=num_parameters)
    if config.engine.precision == "auto":  # which the ranks' devices settle
        deepspeed["bf16"]["enabled"] = "auto"
    return {
        **derived,
        "parameters": num_parameters,
        "plan": _quote_plan(config, num_ranks),
        "batch": batch,
        "deepspeed": deepspeed,
    }


def _quote_plan(config: RunConfig, num_ranks: int) -> str:
    """The planner's line for so many of this machine's GPUs, or for ranks of its CPU."""
    from lmscale.errors import ConfigError
    from lmscale.plan.devices import CPU, find_device, plan_machine
    from lmscale.plan.quote import quote_plan
    from lmscale.ranks.gpus import find_gpus

    here = find_gpus()
    per_node = min(num_ranks, here.count or num_ranks)
    nodes = -(-num_ranks // per_node)
    try:
        device = find_device(here.name if here.count else CPU)
        machine = plan_machine(device, nodes=nodes, devices_per_node=per_node)
        return "; ".join(quote_plan(config, machine))
    except ConfigError as error:
        return f"none: {error.problems[0]}"
