"""From the nodes' reports to which of them are bad, or that no node can be blamed. Pure."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Report = Mapping[str, Any]

FIT, BAD_NODES, NOTHING_WORKS = 0, 1, 2

MAY_DIFFER = {"kernel"}  # shown, not judged: clusters are updated a node at a time
# No mistake of the job's brings these about, so a node is to blame for them though half of the
# nodes have them, or the only one.
NODES_OWN = {"GPUs alive", "GPU errors", "GPUs idle"}
STARTING = {"report", "loading torch", "matrix product"}
TALKING = {"all-reduce", "exchange"}
SPEEDS = (
    ("matmul_tflops", "matrix product", "TFLOP/s"),
    ("inside_gbs", "exchange inside the node", "GB/s"),
    ("link_gbs", "exchange with the nodes beside it", "GB/s"),
)
# Between processes on CPUs it is the kernel's TCP that is measured, and who else uses the cores.
JUDGED_ON_GPUS_ONLY = {"inside_gbs", "link_gbs"}


@dataclass(frozen=True, kw_only=True)
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
    bad: Mapping[str, str] = field(default_factory=dict)
    """Node → reason, for the nodes to exclude; empty unless code is 1."""


def judge(
    reports: Mapping[str, Report | None], *, slow_ratio: float, max_clock_skew_seconds: float
) -> Verdict:
    """The verdict on all nodes of a job, in the order of the job; None is a node without a report.

    A failure that half of the nodes or more share, or that the only node has, is the job's mistake
    or the cluster's: excluding nodes for it would empty the cluster and mend nothing. Of two nodes
    one may be bad, and what is ``NODES_OWN`` counts against a node unless all of several share it.
    """
    there = {node: report for node, report in reports.items() if report is not None}
    problems = drop_consequences(
        list(reports),
        [
            *find_missing(reports),
            *find_failed(there),
            *find_odd_versions(there),
            *find_skewed(there, max_clock_skew_seconds),
            *find_slow(there, slow_ratio),
        ],
    )
    nodes, failing = list(reports), {problem.node for problem in problems}
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
    bad = {node: _reason(node, problems) for node in nodes if node in failing}
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


def _reason(node: str, problems: Sequence[Problem]) -> str:
    own = [f"{problem.check}: {problem.text}" for problem in problems if problem.node == node]
    return " ".join("; ".join(own).split())  # one line, without tabs


def drop_consequences(nodes: Sequence[str], problems: Sequence[Problem]) -> list[Problem]:
    """Without what only follows from another node's failure.

    Nobody meets at a first node that has not started, and who waits in a collective for a node
    that died has done nothing wrong.
    """
    starting = {problem.node for problem in problems if problem.check in STARTING}
    explained = set(TALKING) if starting else set()
    if nodes and nodes[0] in starting:
        explained.add("meeting")
    return [
        problem
        for problem in problems
        if problem.check not in explained or problem.node in starting
    ]


def find_missing(reports: Mapping[str, Report | None]) -> list[Problem]:
    text = "none: the node never answered, hangs, or does not see the run's folder"
    return [
        Problem(node=node, check="report", text=text)
        for node, report in reports.items()
        if report is None
    ]


def find_failed(reports: Mapping[str, Report]) -> list[Problem]:
    """Checks of the node itself, and processes that measured nothing."""
    problems = []
    for node, report in reports.items():
        for check in report["checks"]:
            if not check["ok"]:
                problems.append(Problem(node=node, check=check["check"], text=check["found"]))
        for task, speed in enumerate(report["speeds"]):
            where = f"GPU {task}: " if len(report["speeds"]) > 1 else ""
            if speed is None:
                problems.append(
                    Problem(node=node, check="report", text=f"{where}measuring was never finished")
                )
            elif speed.get("error"):
                text = where + speed["error"]
                problems.append(Problem(node=node, check=speed["part"], text=text))
    return problems


def find_odd_versions(reports: Mapping[str, Report]) -> list[Problem]:
    """Nodes whose version of anything is not that of more than half of the nodes."""
    problems = []
    names = dict.fromkeys(name for report in reports.values() for name in report["versions"])
    for name in [name for name in names if name not in MAY_DIFFER]:
        found = {node: report["versions"].get(name) for node, report in reports.items()}
        counts = Counter(found.values()).most_common()
        for node, version in found.items():
            if 2 * dict(counts)[version] <= len(found):
                others = [other for other, _ in counts if other != version]
                shown = " and ".join(str(other) for other in others)
                text = f"{version} here, {shown} on other nodes"
                problems.append(Problem(node=node, check=name, text=text))
    return problems


def find_skewed(reports: Mapping[str, Report], limit: float) -> list[Problem]:
    """Nodes whose clock is not within ``limit`` of more than half of the nodes' clocks."""
    problems: dict[str, Problem] = {}
    for clocks in (_met_at(reports), _ahead_of_folder(reports)):
        for node, own in clocks.items():
            near = sum(abs(own - other) <= limit for other in clocks.values())
            if 2 * near <= len(clocks):
                off = own - statistics.median(clocks.values())
                text = f"{off:+.1f} s from the median node's"
                problems.setdefault(node, Problem(node=node, check="clock", text=text))
    return list(problems.values())


def _met_at(reports: Mapping[str, Report]) -> dict[str, float]:
    """Each clock at the moment when the measuring processes left one barrier together."""
    firsts = {node: report["speeds"][0] for node, report in reports.items()}
    return {node: speed["met_at"] for node, speed in firsts.items() if speed and "met_at" in speed}


def _ahead_of_folder(reports: Mapping[str, Report]) -> dict[str, float]:
    """Against the file server, where it stamps files by its own clock; else about 0 on all."""
    clocks = {node: report["clock"].get("ahead_of_folder") for node, report in reports.items()}
    return {node: ahead for node, ahead in clocks.items() if ahead is not None}


def clock_offsets(reports: Mapping[str, Report]) -> dict[str, float]:
    """Each clock against the median node's, by the better of both ways."""
    offsets: dict[str, float] = {}
    for clocks in (_ahead_of_folder(reports), _met_at(reports)):
        if len(clocks) > 1:
            middle = statistics.median(clocks.values())
            offsets |= {node: clock - middle for node, clock in clocks.items()}
    return offsets


def slowest(report: Report, key: str) -> tuple[int, float] | None:
    """The task of a node with the lowest figure, and the figure: ranks wait for the slowest."""
    figures = [
        (speed[key], task)
        for task, speed in enumerate(report["speeds"])
        if speed and speed.get(key) is not None
    ]
    return (min(figures)[1], min(figures)[0]) if figures else None


def find_slow(reports: Mapping[str, Report], slow_ratio: float) -> list[Problem]:
    """Nodes below ``slow_ratio`` of the median node.

    The all-reduce itself is only shown: in it, every node is as slow as the slowest.
    """
    problems = []
    for key, what, unit in SPEEDS:
        figures = {
            node: figure
            for node, report in reports.items()
            if (report["uses_gpus"] or key not in JUDGED_ON_GPUS_ONLY)
            and (figure := slowest(report, key))
        }
        if not figures:
            continue
        median = statistics.median(speed for _, speed in figures.values())
        for node, (task, speed) in figures.items():
            if speed < slow_ratio * median:
                where = f"GPU {task}: " if len(reports[node]["speeds"]) > 1 else ""
                text = f"{where}{speed:.3g} {unit}, {speed / median:.0%} of the median node's"
                problems.append(Problem(node=node, check=what, text=f"{text} {median:.3g}"))
    return problems


_HEAD = ("node", "GPUs", "TFLOP/s", "all-reduce GB/s", "link GB/s", "clock s", "free GB", "")


def render_table(reports: Mapping[str, Report | None], verdict: Verdict) -> str:
    """A line a node, with what people look at first."""
    offsets = clock_offsets({node: report for node, report in reports.items() if report})
    words: dict[str, list[str]] = {}
    for problem in verdict.problems:
        words.setdefault(problem.node, []).append(problem.check)
    rows: list[tuple[str, ...]] = [_HEAD]
    for node, report in reports.items():
        judged = ", ".join(dict.fromkeys(words.get(node, []))) or "fit"
        if report is None:
            rows.append((node, *"------", judged))
            continue
        figures = {
            key: slowest(report, key) for key in ("matmul_tflops", "all_reduce_gbs", "link_gbs")
        }
        rows.append(
            (
                node,
                str(len(report["speeds"]) if report["uses_gpus"] else "none"),
                *(_shown(figure, lambda pair: f"{pair[1]:.3g}") for figure in figures.values()),
                _shown(offsets.get(node), lambda offset: f"{offset:+.3f}"),
                ", ".join(f"{free:.0f}" for free in report["free_gb"].values()) or "-",
                judged,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _shown(value: Any, render: Callable[[Any], str]) -> str:
    return "-" if value is None else render(value)
