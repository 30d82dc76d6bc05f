"""``lmscale runs branch``: a new run that goes on where another one was."""

from __future__ import annotations

from dataclasses import asdict
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from lmscale.cli.options import JsonOption, SetOption, echo_json
from lmscale.files.printing import count_of, render_bytes, say
from lmscale.files.run_files import CONFIG_FILE

if TYPE_CHECKING:
    from lmscale.history.branch import Branch
    from lmscale.stream.mixture_changes import MixtureChange


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
    from lmscale.stream.mixture_changes import describe_change

    plan = plan_branch(origin, name, set_ or ())
    mixture = _find_mixture_change(plan)
    with progress("branching", plan.bytes, "bytes") as advance:
        is_linked = make_branch(plan, advance)
    folder, step, files = plan.config.folder, plan.manifest.step, plan.manifest.files
    changes = describe_changes(plan.before, plan.config)
    ranks = plan.manifest.written_by.get("world_size", 1)
    command = f"lmscale launch local {quote(str(folder / CONFIG_FILE))} --nproc {ranks}"
    if as_json:
        row = {"folder": str(folder), "branch": plan.origin.to_json(), "is_linked": is_linked}
        echo_json(
            {**row, "changes": changes, "mixture": mixture and asdict(mixture), "next": command}
        )
        return
    how = "linked" if is_linked else "copied"
    size = f"{count_of(len(files), 'file')} {how}, {render_bytes(plan.bytes)}"
    say(f"{folder}: goes on from step {step:,} of {plan.before.folder} ({size})")
    if mixture is not None:
        changes.append(f"the mixture of its config.yaml, {describe_change(mixture, step + 1)}")
    for change in changes:
        say(f"  otherwise: {change}")
    say(f"next: {command}")


def _find_mixture_change(plan: Branch) -> MixtureChange | None:
    """What the branch changes of the mixture with its first step: a run's configuration has the
    newest one, and the checkpoint may be of an earlier one.
    """
    from lmscale.stream.mixture import append_segment, plan_quotas
    from lmscale.stream.mixture_changes import find_changes
    from lmscale.stream.stream import StreamState

    state, stream = StreamState.from_json(plan.manifest.state.get("stream")), plan.config.stream
    weights = {name: source.weight for name, source in stream.sources.items()}
    quotas = plan_quotas(weights, stream.mixture_block)
    segments = append_segment(
        state.segments, n=state.n, seed=state.seed, quotas=quotas, fingerprints={}
    )
    return next((each for each in find_changes(segments) if each.from_n == state.n), None)
