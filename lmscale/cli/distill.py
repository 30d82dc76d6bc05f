"""``lmscale distill``: a smaller run that learns from another one."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from lmscale.cli.evaluate import StepOption, WeightsOption
from lmscale.cli.options import JsonOption, RunArgument, SetOption, echo_json, render_line
from lmscale.cli.prune import NameArgument
from lmscale.errors import ConfigError
from lmscale.files.printing import say

if TYPE_CHECKING:
    from lmscale.compress.student import Student

Size = Annotated[int | None, typer.Option(min=1, show_default=False)]


ShareOption = Annotated[
    float, typer.Option(min=0, max=1, help="Of the teacher in the loss (teacher_share).")
]
TemperatureOption = Annotated[
    float, typer.Option(min=0.01, help="Divides both models' logits before they are compared.")
]
DataOption = Annotated[
    str | None,
    typer.Option(
        metavar="CONFIG",
        help="The YAML whose data and settings it takes; default: RUN's own.",
        show_default=False,
    ),
]
RandomOption = Annotated[
    bool, typer.Option("--random", help="Begin with random weights in any case.")
]
OutOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The YAML to write; default: NAME.yaml.")
]


def distill(
    run: RunArgument,
    name: NameArgument,
    layers: Size = None,
    width: Size = None,
    heads: Size = None,
    kv_heads: Size = None,
    ffn_width: Size = None,
    share: ShareOption = 0.5,
    temperature: TemperatureOption = 2.0,
    overrides: SetOption = None,
    data: DataOption = None,
    random: RandomOption = False,
    out: OutOption = None,
    step: StepOption = None,
    weights: WeightsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the YAML of a smaller run, the student, that learns from a run's checkpoint.

    What is not given is as in the teacher; heads keep their width. A student that has fewer layers
    and is alike else begins with the teacher's, spread evenly: NAME-first has them. lmscale train
    then trains it, and lmscale compare shows both.
    """
    from lmscale.config.assets import find_config
    from lmscale.config.load import load_config
    from lmscale.evaluation.found import find_run
    from lmscale.files.progress import progress

    path = out or Path(f"{Path(name).name}.yaml")
    if path.exists():
        raise ConfigError(f"{path} exists, and nothing is replaced: give --out or another NAME.")
    theirs = load_config(find_config(Path(data))) if data else None
    with progress("looking at the checkpoint"):
        found = find_run(run, step=step, weights=weights)
    with progress("loading torch"):
        from lmscale.compress import student as students
    plan = students.plan_student(
        found,
        name,
        students.Shape(
            layers=layers, width=width, heads=heads, kv_heads=kv_heads, ffn_width=ffn_width
        ),
        share=share,
        temperature=temperature,
        overrides=overrides or (),
        data=theirs,
        is_random=random,
    )
    with progress("writing the student", None, "MB") as advance:
        students.write_student(plan, path, lambda size: advance(size / 1e6))
    _tell(plan, run, path, as_json=as_json)


def _tell(plan: Student, run: Path, path: Path, *, as_json: bool) -> None:
    before, after = plan.num_parameters
    config, blocks = plan.config, ", ".join(map(str, plan.picked))
    if as_json:
        echo_json(
            {
                "config": str(path),
                "folder": str(config.folder),
                "begins_with": config.run.init_from or None,
                "blocks": [*plan.picked],
                "parameters": {"teacher": before, "student": after},
            }
        )
        return
    begins = f"blocks {blocks} of it" if blocks else "random weights"
    say(render_line("teacher", f"{plan.teacher.name}, {before:,} parameters"))
    say(render_line("student", f"{config.run.name}, {after:,} parameters, {begins}"))
    say(render_line("written", path))
    say(render_line("train it", f"lmscale train {quote(str(path))}"))
    both = f"{quote(str(run))} {quote(str(config.folder))}"
    say(render_line("compare", f"lmscale compare {both}"))
