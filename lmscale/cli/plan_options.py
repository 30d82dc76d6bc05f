"""The options of ``lmscale plan``, as they are typed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lmscale.files.locations import find_run

_RUN = "Of the whole run"  # a panel of the help


def _of_run(name: str, metavar: str, help: str, **more: Any) -> typer.models.OptionInfo:
    return typer.Option(name, metavar=metavar, help=help, rich_help_panel=_RUN, **more)


GpuOption = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        metavar="NAME|FILE",
        help="h100-80gb, h200, b200, a100-80gb, mi300x, …, cpu, or a file of a device's figures; "
        "default: what this machine has.",
        show_default=False,
    ),
]
NodesOption = Annotated[int, typer.Option("--nodes", metavar="N", min=1, help="Nodes of the job.")]
GpusPerNodeOption = Annotated[
    int | None,
    typer.Option(
        "--gpus-per-node",
        metavar="M",
        min=1,
        help="Devices of each; of the CPU ranks. Default: 8, or what this machine has.",
        show_default=False,
    ),
]
HtmlOption = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Also draw the plan, as one page for a browser."),
]
PriceOption = Annotated[
    float | None, _of_run("--price", "P", "Of one device for an hour, in any currency.", min=0)
]
PueOption = Annotated[
    float | None,
    _of_run("--pue", "R", "The data centre's power over its computers'; default 1.1.", min=1),
]
NodeMtbfOption = Annotated[
    float | None,
    _of_run("--node-mtbf", "DAYS", "Mean time between a node's failures; default 264.", min=0.001),
]
PreemptedOption = Annotated[
    float | None, _of_run("--preempted-every", "HOURS", "Mean time between preemptions.", min=0.01)
]
LimitOption = Annotated[
    float | None, _of_run("--limit", "HOURS", "Time limit of one job.", min=0.01)
]
QueueOption = Annotated[
    float, _of_run("--queue", "MINUTES", "That a requeued job waits, on average.", min=0)
]
StorageOption = Annotated[
    float | None,
    _of_run("--storage", "GB/S", "That the storage takes in; default 0.625 a node.", min=1e-6),
]
LikeOption = Annotated[
    Path | None,
    _of_run(
        "--like",
        "RUN",
        "Take saves, starts, failures and step time as this run has measured them.",
        callback=lambda value: None if value is None else find_run(value),
    ),
]
