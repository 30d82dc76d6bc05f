"""Are the allocated nodes fit? ``python -m launcher.preflight probe | judge | cordon | lift``.

``probe`` is a task of an srun step over all nodes of the job. The first task of each node looks at
the node; with GPUs every task, without GPUs the first of each node, measures. ``probe`` ends with 0
whatever it found, because a task that fails may end the others. ``judge`` prints a table, writes
``FOLDER/verdict.json`` and ``FOLDER/bad-nodes``, and ends with 0 fit, 1 bad nodes, or 2 nothing can
work; with ``--job`` it also cordons the bad nodes. By ``cordon`` and ``lift`` people do.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    # Asks the ranks for a save, and may come before there are any, or while this still imports.
    # What measures inherits it.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from launcher.preflight import cordon, verdict
from launcher.rendezvous import expand_nodes, rendezvous_from_slurm
from lmscale.errors import EXIT_USER, ClusterError, LmscaleError
from lmscale.files.atomic import write_json
from lmscale.files.jsonl import read_object
from lmscale.files.printing import say

if TYPE_CHECKING:
    from lmscale.config import RunConfig
    from lmscale.config.cluster_profile import ClusterConfig

BAD_NODES = "bad-nodes"
LAST_SECONDS = 3.0  # for a process that was told to end, and for the last report

_DEFAULTS = {
    "OMP_NUM_THREADS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # c10d warns of each peer whose address has no name
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which task of which node this is, and the variables of the process that measures."""

    node: str
    local_rank: int
    num_tasks: int  # number of measuring tasks on this node
    variables: Mapping[str, str]

    @property
    def report(self) -> str:
        return report_name(self.node, self.local_rank)


def report_name(node: str, task: int) -> str:
    return f"{node}.task-{task}.json" if task else f"{node}.json"


def uses_gpus(profile: Path) -> bool:
    """One key of the frozen profile, unchecked: all tasks of a large step ask, most then end."""
    try:
        return bool(yaml.safe_load(profile.read_text(encoding="utf-8")).get("gpus_per_node"))
    except (OSError, yaml.YAMLError, AttributeError) as error:
        raise ClusterError(f"{profile}: cannot be read as a cluster profile: {error}") from None


def find_place(environ: Mapping[str, str], *, uses_gpus: bool) -> Place | None:
    """This task by SLURM_*, or None for a task without work. Raises ``ClusterError``."""
    variables = rendezvous_from_slurm(environ)
    local_rank, node_rank = int(variables["LOCAL_RANK"]), int(variables["GROUP_RANK"])
    nodes = expand_nodes(environ.get("SLURM_STEP_NODELIST", ""))
    if not uses_gpus:
        if local_rank:
            return None
        # One process a node: together they are a world of their own.
        variables |= {"RANK": str(node_rank), "WORLD_SIZE": str(len(nodes))}
        variables |= {"LOCAL_WORLD_SIZE": "1"}
    return Place(
        node=environ.get("SLURMD_NODENAME") or nodes[node_rank],
        local_rank=local_rank,
        num_tasks=int(variables["LOCAL_WORLD_SIZE"]),
        variables=variables,
    )


def probe(arguments: argparse.Namespace) -> int:
    """One task of the step: look, measure, report."""
    began = time.monotonic()
    place = find_place(os.environ, uses_gpus=uses_gpus(Path(arguments.cluster)))
    if place is None:
        return 0
    from lmscale.config.cluster import load_cluster

    folder, cluster = Path(arguments.folder), load_cluster(arguments.cluster)
    limit = cluster.preflight.timeout_seconds  # of the whole step, its start and end included
    seconds = limit - min(15.0, limit / 5)
    report: dict[str, Any] = {"node": place.node, "time": time.time(), "speed": None}
    if place.local_rank == 0:
        report |= look_at_node(arguments, cluster, place, seconds / 3)
        write_report(folder / place.report, report)  # it counts even if measuring never ends
    else:  # the node's health check may need the GPUs to itself
        deadline = began + seconds / 3 + LAST_SECONDS
        while not (folder / report_name(place.node, 0)).exists() and time.monotonic() < deadline:
            time.sleep(0.1)
    report["speed"] = measure(place, cluster, began, seconds)
    report.setdefault("seconds", {})["total"] = round(time.monotonic() - began, 3)
    write_report(folder / place.report, report)
    return 0


def look_at_node(
    arguments: argparse.Namespace, cluster: ClusterConfig, place: Place, seconds: float
) -> dict[str, Any]:
    """The part of the report that is about the node and not about speed."""
    from launcher.preflight import node_checks as checks
    from lmscale.config import load_config

    folder, preflight, num_gpus = Path(arguments.folder), cluster.preflight, cluster.gpus_per_node
    free_gb: dict[str, float] = {}
    versions = checks.library_versions()

    def look_at_space(name: str, place: str) -> Sequence[checks.Check]:
        return checks.look_at_space(name, Path(place), preflight.min_free_gb, free_gb)

    looks: dict[str, checks.Look] = {
        "run folder": lambda: checks.look_at_run_folder(folder, place.node),
        "run folder's space": lambda: look_at_space("run folder", arguments.run_folder),
        "scratch": lambda: look_at_space("scratch", cluster.scratch),
        "shards": lambda: checks.look_at_shards(datasets_of(load_config(arguments.config))),
        "machine": lambda: checks.look_at_machine(cluster),
    }
    if num_gpus:
        looks["GPUs alive"] = lambda: checks.look_at_gpus(num_gpus, versions, seconds)
    if command := preflight.command:
        looks["preflight.command"] = lambda: checks.look_at_health(command, seconds - 1)
    results, took = checks.run_looks(looks, seconds)
    for check in results:
        if not check.is_ok:
            say(f"preflight: {place.node}: {check.name}: {check.found}", err=True)
    return {
        "uses_gpus": num_gpus > 0,
        "tasks": place.num_tasks,
        "checks": [{"check": c.name, "ok": c.is_ok, "found": c.found} for c in results],
        # A look that came too late may still note something in these two.
        "versions": dict(versions),
        "free_gb": dict(sorted(free_gb.items())),
        "seconds": took,
    }


def datasets_of(config: RunConfig) -> dict[str, str]:
    """Name → folder or URL of all that a run reads."""
    sources = {name: s.shards for name, s in config.stream.sources.items() if s.weight}
    sets = {f"evaluation set {name}": place for name, place in config.evaluation.sets.items()}
    return sources | sets


def measure(place: Place, cluster: ClusterConfig, began: float, seconds: float) -> dict[str, Any]:
    """What ``node_probe`` measured until ``seconds`` after ``began``, on the monotonic clock.

    With an ``error`` unless the probe came to its end. The process does not outlive this call.
    """
    command = [sys.executable, "-m", "launcher.preflight.node_probe"]
    command += ["--began", str(began), "--seconds", str(seconds)]
    command += ["--megabytes", str(cluster.preflight.all_reduce_mb)]
    command += ["--matrix", str(cluster.preflight.matrix_size or 0)]
    command += ["--gpu"] if cluster.gpus_per_node else []
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,  # a few rows, which fit into the pipe
        env={**_DEFAULTS, **os.environ, **place.variables},
    )
    error = "has not come to an end in time"
    with suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, began + seconds - time.monotonic()))
        error = f"ended with code {process.returncode}, see the log"
    process.kill()
    with suppress(subprocess.TimeoutExpired):  # stuck in the kernel: it dies when it can
        process.wait(LAST_SECONDS)
    assert process.stdout
    os.set_blocking(process.stdout.fileno(), False)
    result: dict[str, Any] = {"part": "starting"}
    for line in (process.stdout.read() or b"").splitlines(keepends=True):
        if line.endswith(b"\n"):  # else it was killed while it wrote
            result |= json.loads(line)
    return result if result["part"] == "done" or "error" in result else {**result, "error": error}


def write_report(path: Path, value: Mapping[str, Any]) -> None:
    """Write a report. A missing folder is not made: it would be local to the node."""
    try:
        write_json(path, value)
    except OSError as error:
        say(f"preflight: {path} cannot be written: {error}", err=True)


def read_reports(folder: Path, nodes: Sequence[str]) -> dict[str, verdict.Report | None]:
    """Each node's report, with its tasks' speeds as a list."""

    def read(node: str, task: int) -> dict[str, Any] | None:
        return read_object(folder / report_name(node, task)) or None

    reports: dict[str, verdict.Report | None] = {}
    for node in nodes:
        report = reports[node] = read(node, 0)
        if report is not None:
            others = (read(node, task) for task in range(1, report["tasks"]))
            report["speeds"] = [report["speed"], *(other and other["speed"] for other in others)]
    return reports


def judge(arguments: argparse.Namespace) -> int:
    """Read all reports, write the verdict, print the table."""
    from lmscale.config.cluster import load_cluster

    folder, preflight = Path(arguments.folder), load_cluster(arguments.cluster).preflight
    reports = read_reports(folder, expand_nodes(arguments.nodes))
    judged = verdict.judge(
        reports,
        slow_ratio=preflight.slow_ratio,
        max_clock_skew_seconds=preflight.max_clock_skew_seconds,
    )
    say(verdict.render_table(reports, judged))
    for node, reason in judged.bad.items():
        say(f"preflight: {node} is bad: {reason}")
    say(f"preflight: {judged.message}")
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{node}\t{reason}\n" for node, reason in judged.bad.items()]
    (folder / BAD_NODES).write_text("".join(lines), encoding="utf-8")
    content = {"time": time.time(), "nodes": list(reports), **asdict(judged)}
    write_report(folder / "verdict.json", content)
    if arguments.job and preflight.cordon_file is not None:
        try:
            for node, reason in judged.bad.items():
                cordon.cordon(preflight.cordon_file, node, reason=reason, job=arguments.job)
        except ClusterError as error:  # changes nothing about the verdict
            say(f"preflight: {error}", err=True)
    return judged.code


def write_cordon(arguments: argparse.Namespace) -> int:
    is_out = arguments.command == "cordon"
    file, node, reason, job = arguments.file, arguments.node, arguments.reason, arguments.job
    cordon.cordon(file, node, reason=reason, job=job, is_out=is_out)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m launcher.preflight", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run, options, text in (
        ("probe", probe, "folder run-folder cluster config", "look at this node, in an srun step"),
        ("judge", judge, "folder nodes cluster", "name the bad nodes"),
        ("cordon", write_cordon, "file node reason", "leave a node out, in the cordon file"),
        ("lift", write_cordon, "file node", "take a node back, in the cordon file"),
    ):
        command = commands.add_parser(name, help=text)
        command.set_defaults(run=run)
        for option in options.split():
            command.add_argument(f"--{option}", required=True)
        if run is not probe:
            command.add_argument("--job", default="", help="the job that the cordon file names")
    commands.choices["lift"].add_argument("--reason", default="lifted")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except LmscaleError as error:
        for problem in error.problems:
            say(f"error: {problem}", err=True)
        return 0 if arguments.command == "probe" else EXIT_USER


if __name__ == "__main__":
    sys.exit(main())
