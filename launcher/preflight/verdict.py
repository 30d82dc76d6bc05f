"""From the nodes' reports to which of them are bad, or that no node can be blamed. Pure."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmscale.files.printing import align_rows

FIT, BAD_NODES, NOTHING_WORKS = 0, 1, 2

# No mistake of the job's brings these about, so a node is to blame for them though half of the
# nodes have them, or the only one.
NODES_OWN = {"GPUs alive", "health check"}
STARTING = {"report", "loading torch", "matrix product", "reaching the first node"}
TALKING = {"meeting", "all-reduce"}


# A node's results, as ``__main__.probe`` writes them: ``uses_gpus``; ``checks``, rows of ``check``,
# ``ok``, ``found``; ``versions`` and ``free_gb`` by name; ``speeds`` of its tasks: None, or what
# ``node_probe`` measured: ``part``, perhaps ``error``, ``matmul_tflops``, ``all_reduce_gbs``.
Report = Mapping[str, Any]


@dataclass(frozen=True)
class Problem:
    """Why one node is not fit."""

    node: str
    check: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What to do: ``code`` 0 go on, 1 exclude ``bad``, 2 stop."""

    code: int
    message: str
    problems: tuple[Problem, ...] = ()
    bad: Mapping[str, str] = field(default_factory=dict)  # node → reason; empty unless code is 1


def judge(
    reports: Mapping[str, Report | None], *, slow_ratio: float, max_clock_skew_seconds: float
) -> Verdict:
    """The verdict on all nodes of a job, in the order of the job; None is a node without a report.

    A failure that half of the nodes or more share, or that the only node has, is the job's mistake
    or the cluster's: excluding nodes for it would empty the cluster and mend nothing. Of two nodes
    one may be bad, and what is ``NODES_OWN`` counts against a node unless all of several share it.
    """
    nodes = list(reports)
    there = {node: report for node, report in reports.items() if report is not None}
    silent = "none: the node never answered, hangs, or does not see the run's folder"
    absent = (Problem(node, "report", silent) for node in nodes if node not in there)
    every_problem = [*absent, *_find_failed(there), *_find_odd_versions(there)]
    every_problem += [*_find_skewed(there, max_clock_skew_seconds), *_find_slow(there, slow_ratio)]
    problems = _drop_consequences(nodes, every_problem)
    failing = {problem.node for problem in problems}
    if not failing:
        return Verdict(code=FIT, message=f"{_count(nodes)} fit")
    is_shared = len(failing) == len(nodes) or (len(nodes) > 2 and 2 * len(failing) >= len(nodes))
    owning = {problem.node for problem in problems if problem.check in NODES_OWN}
    is_own = owning == failing and (len(nodes) == 1 or len(failing) < len(nodes))
    if is_shared and not is_own:
        message = (
            f"{len(failing)} of {_count(nodes)} not fit. That is no bad node, but something in "
            f"this job or this cluster, so none is excluded:\n{_by_check(nodes, problems)}"
        )
        return Verdict(code=NOTHING_WORKS, message=message, problems=tuple(problems))
    bad = {}
    for node in (node for node in nodes if node in failing):
        texts = [f"{problem.check}: {problem.text}" for problem in problems if problem.node == node]
        bad[node] = " ".join("; ".join(texts).split())  # one line, without tabs
    message = f"{len(bad)} of {_count(nodes)} bad: {', '.join(bad)}"
    return Verdict(code=BAD_NODES, message=message, problems=tuple(problems), bad=bad)


def _count(nodes: Sequence[str]) -> str:
    return "1 node is" if len(nodes) == 1 else f"{len(nodes)} nodes are"


def _by_check(nodes: Sequence[str], problems: Sequence[Problem]) -> str:
    """Every distinct problem once, with the nodes that have it."""
    having: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        having.setdefault((problem.check, problem.text), []).append(problem.node)
    return "\n".join(
        f"  {'every node' if len(names) == len(nodes) else ', '.join(names)}: {check}: {text}"
        for (check, text), names in having.items()
    )


def _drop_consequences(nodes: Sequence[str], problems: Sequence[Problem]) -> list[Problem]:
    """Without what follows from another node's failure: who waits has done nothing wrong."""
    first = {problem.check for problem in problems if problem.node == nodes[0]}
    explained = {"reaching the first node"} if first & STARTING else set()
    starting = {problem.node for problem in problems if problem.check in STARTING - explained}
    explained |= TALKING if starting else set()
    return [p for p in problems if p.check not in explained or p.node in starting]


def _find_failed(reports: Mapping[str, Report]) -> Iterator[Problem]:
    """Checks of the node itself, and processes that measured nothing."""
    for node, report in reports.items():
        for row in report["checks"]:
            if not row["ok"]:
                yield Problem(node, row["check"], row["found"])
        for task, speed in enumerate(report["speeds"]):
            where = f"GPU {task}: " if len(report["speeds"]) > 1 else ""
            if speed is None:
                text = f"{where}measuring was never finished"
                yield Problem(node, "report", text)
            elif error := speed.get("error"):
                yield Problem(node, speed.get("part", "report"), where + error)


def _find_odd_versions(reports: Mapping[str, Report]) -> Iterator[Problem]:
    """Nodes whose version of anything is not that of more than half of the nodes."""
    for name in dict.fromkeys(name for report in reports.values() for name in report["versions"]):
        versions = {node: report["versions"].get(name) for node, report in reports.items()}
        counts = Counter(versions.values())
        for node, version in versions.items():
            if 2 * counts[version] <= len(versions):
                others = [str(other) for other, _ in counts.most_common() if other != version]
                text = f"{version} here, {' and '.join(others)} on other nodes"
                yield Problem(node, name, text)


def _find_skewed(reports: Mapping[str, Report], limit: float) -> Iterator[Problem]:
    """Nodes whose clock is not within ``limit`` of more than half of the nodes' clocks."""
    offsets = clock_offsets(reports)
    for node, offset in offsets.items():
        near = sum(abs(offset - other) <= limit for other in offsets.values())
        if 2 * near <= len(offsets):
            yield Problem(node, "clock", f"{offset:+.1f} s from the median node's")


def clock_offsets(reports: Mapping[str, Report]) -> dict[str, float]:
    """Each clock against the median node's, when the processes left one barrier together."""
    firsts = {node: report["speeds"][0] for node, report in reports.items()}
    clocks = {
        node: speed["met_at"] for node, speed in firsts.items() if speed and "met_at" in speed
    }
    middle = statistics.median(clocks.values()) if clocks else 0.0
    return {node: clock - middle for node, clock in clocks.items()}


def _slowest(report: Report, key: str) -> tuple[float, int] | None:
    """The lowest figure of a node's tasks, and which task has it: ranks wait for the slowest."""
    speeds = enumerate(report["speeds"])
    return min(
        ((speed[key], task) for task, speed in speeds if speed and key in speed), default=None
    )


def _find_slow(reports: Mapping[str, Report], slow_ratio: float) -> Iterator[Problem]:
    """Nodes below ``slow_ratio`` of the median node in the matrix product.

    The all-reduce is only shown: in it, every node is as slow as the slowest.
    """
    slowest = {node: _slowest(report, "matmul_tflops") for node, report in reports.items()}
    figures = {node: figure for node, figure in slowest.items() if figure}
    median = statistics.median(speed for speed, _ in figures.values()) if figures else 0.0
    for node, (speed, task) in figures.items():
        if speed < slow_ratio * median:
            where = f"GPU {task}: " if len(reports[node]["speeds"]) > 1 else ""
            text = f"{where}{speed:.3g} TFLOP/s, {speed / median:.0%} of the median node's"
            yield Problem(node, "matrix product", f"{text} {median:.3g}")


_HEAD = ("node", "GPUs", "TFLOP/s", "all-reduce GB/s", "clock s", "free GB", "")


def render_table(reports: Mapping[str, Report | None], verdict: Verdict) -> str:
    """A line a node, with what people look at first."""
    offsets = clock_offsets({node: report for node, report in reports.items() if report})
    rows: list[tuple[str, ...]] = [_HEAD]
    for node, report in reports.items():
        checks = dict.fromkeys(
            problem.check for problem in verdict.problems if problem.node == node
        )
        judged = ", ".join(checks) or "fit"
        if report is None:
            rows.append((node, *"-----", judged))
            continue
        matmul, all_reduce = _slowest(report, "matmul_tflops"), _slowest(report, "all_reduce_gbs")
        rows.append(
            (
                node,
                str(len(report["speeds"])) if report["uses_gpus"] else "none",
                f"{matmul[0]:.3g}" if matmul else "-",
                f"{all_reduce[0]:.3g}" if all_reduce else "-",
                f"{offsets[node]:+.3f}" if node in offsets else "-",
                ", ".join(f"{free:.0f}" for free in report["free_gb"].values()) or "-",
                judged,
            )
        )
    return align_rows(rows, left=range(len(_HEAD)))
