"""``lmscale plan check`` and ``calibrate``: the plan's own error, and a device as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmscale.cli.options import (
    JsonOption,
    RunArgument,
    echo_json,
    find_file_problems,
    print_notes,
)
from lmscale.config.load import dump_config
from lmscale.errors import ConfigError
from lmscale.files.atomic import write_bytes
from lmscale.files.jsonl import read_object
from lmscale.files.printing import align_rows, say

PRECISIONS = ("bf16", "fp16", "fp32")
CLOCKS = ("wall", "process")


def check(
    run: RunArgument,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu", metavar="NAME|FILE", help="Default: by the name of the run's own device."
        ),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Set the plan of RUN beside what RUN has measured. Loads no torch."""
    from lmscale.plan.check import compare_speed
    from lmscale.plan.devices import CPU, find_device, plan_machine
    from lmscale.plan.speed import plan_step
    from lmscale.runs.run_folder import load_run_config

    config = load_run_config(run)
    ranks, nodes, name = _find_ranks(run)
    device = find_device(gpu or name or CPU)
    machine = plan_machine(device, nodes=nodes, devices_per_node=ranks // nodes)
    step = plan_step(config, machine)
    rows = compare_speed(run, step, is_gpu=device.kind == "gpu")
    if json_:
        echo_json([vars(row) | {"error": row.error} for row in rows])
        return
    say(f"{run}: {ranks} ranks of {device.name} ({device.source})")
    table = [["", "planned", "measured", "error"]]
    for row in rows:
        name = f"{row.name} ({row.unit})" if row.unit else row.name
        table.append([name, _show(row.planned), _show(row.measured), f"{row.error:+.0%}"])
    say(align_rows(table))
    if device.kind == CPU and device.measured is None:
        print_notes(
            [
                "of this CPU nothing was measured: `lmscale plan calibrate --out FILE`, started as "
                "the run is, and --gpu FILE here make a plan of it."
            ]
        )


def calibrate(
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Takes the figures, as YAML, for --gpu.")
    ],
    precision: Annotated[
        str | None, typer.Option("--precision", help="bf16, fp16 or fp32; default: as auto finds.")
    ] = None,
    clock: Annotated[
        str,
        typer.Option("--clock", help="wall, or process: CPU time, where others use the cores."),
    ] = "wall",
    steps: Annotated[int, typer.Option("--steps", min=1, max=1000, help="Of each shape.")] = 5,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.")] = False,
) -> None:
    """Measure this device: products over sizes, small steps at every ZeRO stage, collectives.

    Start it as the run will be, under srun or torchrun with as many ranks and threads: the ranks of
    a CPU share its cores. Rank 0 writes FILE. Takes a minute or two.
    """
    from lmscale.cli.scoring_ranks import find_ranks
    from lmscale.files.progress import progress

    _check_choices(out, precision, clock, force=force)
    ranks = find_ranks(out)
    with progress("loading torch and DeepSpeed"):
        from lmscale.ranks.device import select_device
        from lmscale.ranks.precision import agree_precision
        from lmscale.ranks.ranks import open_process_group
        from lmscale.train.calibrate import calibrate as measure
    device = select_device(ranks)
    with open_process_group(ranks, device):  # of one rank too, as DeepSpeed wants it
        chosen = precision or agree_precision(device).precision
        found = measure(ranks, device, precision=chosen, clock=clock, steps=steps)  # pyright: ignore
    if not ranks.is_first:
        return
    write_bytes(out, dump_config(found).encode())
    measured = found.measured
    assert measured is not None, "calibrate measures"
    best = max(found.peak_flops.values())
    say(
        f"{out}: {found.name}, {measured.ranks} ranks with {measured.threads} threads each, "
        f"{chosen}: {best / 1e9:,.0f} GFLOP/s in the best product; the steps that it was fitted to "
        f"are planned within {measured.fit_error:.0%} (median)"
    )


def _check_choices(out: Path, precision: str | None, clock: str, *, force: bool) -> None:
    problems = []
    if precision not in (None, *PRECISIONS):
        problems.append(f"--precision {precision}: give one of {', '.join(PRECISIONS)}.")
    if clock not in CLOCKS:
        problems.append(f"--clock {clock}: give one of {', '.join(CLOCKS)}.")
    problems += find_file_problems("--out", out, ".yaml", ".yml", ".json")
    if out.is_file() and not force:
        problems.append(f"--out {out}: it is there already. Add --force to replace it.")
    if problems:
        raise ConfigError(problems)


def _find_ranks(run: Path) -> tuple[int, int, str]:
    """Ranks and nodes of a run's newest attempt, and the name of its GPU, or \"\"."""
    from lmscale.runs.attempts import read_attempts
    from lmscale.runs.environment import ENVIRONMENT_FILE

    starts = [row for row in read_attempts(run) if row["event"] == "start"]
    if not starts:
        raise ConfigError(f"{run}: the run has no attempt yet, so there is nothing to check.")
    ranks = int(starts[-1]["world_size"])
    gpus = read_object(run / ENVIRONMENT_FILE).get("gpus") or []
    per_node = min(ranks, len(gpus)) or ranks
    nodes = max(1, ranks // per_node)
    return ranks, nodes, str(gpus[0]) if gpus else ""


def _show(number: float) -> str:
    return f"{number:,.0f}" if number >= 1000 else f"{number:.4g}"
