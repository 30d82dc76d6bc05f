"""What a run that has not begun waits for: the jobs of its pipeline, by what Slurm says. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.slurm import ACTIVE_STATES, AccountedJob, QueuedJob
from lmscale.runs.starts import is_one_of


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """A stage that makes what a later one reads; a row of ``pipeline`` in submissions.jsonl."""

    kind: str
    job: str
    output: str  # its tasks' output, with a * where there are several


def describe_upstream(
    pipeline: Sequence[Mapping[str, Any]],
    queue: Sequence[QueuedJob],
    accounts: Sequence[AccountedJob],
) -> tuple[str, bool]:
    """What is waited for, in words, and whether that can still come; "" where Slurm knows nothing.

    The first stage that failed is the reason; else the first that goes on is what is waited for.
    """
    going: list[str] = []
    for stage in pipeline:
        states = _states_of(stage["job"], queue, accounts)
        name = f"the {stage['kind']} (job {stage['job']})"
        bad = sorted(
            {state for state in states if state not in (*ACTIVE_STATES, "COMPLETED", "HELD")}
        )
        if bad:
            ended = " and ".join(bad).lower().replace("_", " ")
            return f"{name} ended as {ended}: its output is {stage['output']}", False
        counts = Counter(state.lower() for state in states if state != "COMPLETED")
        if counts:
            how = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
            many = how if len(states) > 1 else next(iter(counts))
            going.append(f"the {stage['kind']} (job {stage['job']}: {many})" if not going else name)
    return ", then ".join(going), True


def _states_of(job: str, queue: Sequence[QueuedJob], accounts: Sequence[AccountedJob]) -> list[str]:
    """The state of each of a job's tasks: the queue's, where it still knows them."""
    last = {row.job: row.state for row in accounts if is_one_of(row.job, [job])}
    for row in queue:
        if is_one_of(row.job, [job]):
            is_held = row.state == "PENDING" and "held" in row.reason.lower()
            last[row.job] = "HELD" if is_held else row.state
    return list(last.values())
