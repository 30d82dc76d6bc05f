"""``lmscale runs branch``: a new run that goes on where another one was."""

from __future__ import annotations

from shlex import quote
from typing import Annotated

import typer

from lmscale.cli.options import JsonOption, SetOption, echo_json
from lmscale.files.printing import count_of, render_bytes, say
from lmscale.files.run_files import CONFIG_FILE


def branch(
    origin: Annotated[str, typer.Argument(metavar="RUN[@STEP]", help="A run's folder and a step.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the new run.")],
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the folder of a new run, beside RUN's, that goes on from RUN's checkpoint in the same
    samples, with the optimizer's states: what RUN would have done, until a setting differs.

    Without a step, from RUN's newest checkpoint. Its files are hard links where that can be, else
    copies, and stay when RUN removes its own.
    """
    from lmscale.files.progress import progress
    from lmscale.history.branch import make_branch, plan_branch
    from lmscale.runs.continuation import describe_changes

    plan = plan_branch(origin, name, set_ or ())
    with progress("branching", plan.bytes, "bytes") as advance:
        is_linked = make_branch(plan, advance)
    folder, step, files = plan.config.folder, plan.manifest.step, plan.manifest.files
    changes = describe_changes(plan.before, plan.config)
    ranks = plan.manifest.written_by.get("world_size", 1)
    command = f"lmscale launch local {quote(str(folder / CONFIG_FILE))} --nproc {ranks}"
    if as_json:
        row = {"folder": str(folder), "branch": plan.origin.to_json(), "is_linked": is_linked}
        echo_json({**row, "changes": changes, "next": command})
        return
    how = "linked" if is_linked else "copied"
    size = f"{count_of(len(files), 'file')} {how}, {render_bytes(plan.bytes)}"
    say(f"{folder}: goes on from step {step:,} of {plan.before.folder} ({size})")
    for change in changes:
        say(f"  otherwise: {change}")
    say(f"next: {command}")
