"""The options of ``lmscale launch slurm``, as they are typed."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

Job = Literal["train", "evaluate", "corpus", "tokenizer", "shards", "all"]
SBATCH = "Passed on to sbatch"  # a panel of the help

ClusterOption = Annotated[
    str,
    typer.Option(
        "--cluster",
        metavar="PROFILE",
        help="A profile's name (slurm/profiles/NAME.yaml) or path.",
        show_default=False,
    ),
]
NodesOption = Annotated[
    str | None,
    typer.Option(
        "--nodes",
        metavar="N|MIN-MAX",
        help="Nodes; of a range, what is free. An evaluation without it takes one rank.",
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the batch script and do nothing else.")
]
CheckOption = Annotated[bool, typer.Option("--check", help="Make all checks and submit nothing.")]
IgnorePlanOption = Annotated[
    bool,
    typer.Option("--ignore-plan", help="Submit what cannot fit the GPUs' memory by the plan."),
]
JobOption = Annotated[
    Job,
    typer.Option(
        "--job", help="What is submitted; all: corpus, tokenizer, shards and training, in a row."
    ),
]
TasksOption = Annotated[
    int | None,
    typer.Option(
        "--tasks",
        metavar="N",
        min=1,
        help="Most jobs that share a corpus or shards; default: by the bytes.",
    ),
]
PreflightOption = Annotated[
    bool, typer.Option("--preflight-only", help="Look at the nodes alone, train nothing.")
]
ArrayOption = Annotated[
    list[str] | None,
    typer.Option(
        "--array",
        metavar="A.B=C,D|FILE",
        help="Train one run for each value, or for each row of runs: in a YAML file; several "
        "times: for each combination.",
    ),
]
SweepOption = Annotated[
    str | None,
    typer.Option("--sweep", metavar="NAME", help="Of the --array; default: RUN-sweep."),
]
ChainOption = Annotated[
    int | None,
    typer.Option(
        "--chain", metavar="N", min=1, help="Jobs in a row, where a job may not be requeued."
    ),
]
StepOption = Annotated[
    int | None,
    typer.Option(
        "--step", metavar="N", min=0, help="The checkpoint to evaluate; default: the newest then."
    ),
]


def _text(name: str, metavar: str, help: str) -> typer.models.OptionInfo:
    return typer.Option(name, metavar=metavar, help=help, rich_help_panel=SBATCH)


_OF_PROFILE = "In place of the profile's."
TimeOption = Annotated[
    str | None, _text("--time", "T", "Limit of one job in place of the profile's.")
]
AfterOption = Annotated[
    str | None,
    _text("--after", "JOB", "Begin when this job has ended; afterok:JOB and the like as well."),
]
PartitionOption = Annotated[str | None, _text("--partition", "NAME", _OF_PROFILE)]
AccountOption = Annotated[str | None, _text("--account", "NAME", _OF_PROFILE)]
QosOption = Annotated[str | None, _text("--qos", "NAME", _OF_PROFILE)]
ReservationOption = Annotated[str | None, _text("--reservation", "NAME", _OF_PROFILE)]
ConstraintOption = Annotated[str | None, _text("--constraint", "FEATURES", _OF_PROFILE)]
ExcludeOption = Annotated[str | None, _text("--exclude", "NODES", "Besides those of the profile.")]
NodelistOption = Annotated[str | None, _text("--nodelist", "NODES", "Nodes that it must have.")]
MailUserOption = Annotated[str | None, _text("--mail-user", "ADDRESS", "Who is written to.")]
MailTypeOption = Annotated[
    str | None, _text("--mail-type", "EVENTS", "When: END,FAIL,REQUEUE and so on.")
]
SbatchOption = Annotated[
    list[str] | None,
    _text("--sbatch", "OPTION", "Any other of its options; several times, or all behind --."),
]
