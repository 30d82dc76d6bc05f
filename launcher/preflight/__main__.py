"""Are the allocated nodes fit? ``python -m launcher.preflight probe | judge | cordon | lift``.

``probe`` is a task of an srun step over all nodes of the job. The first task of each node looks at
the node (``node_checks``) and writes ``FOLDER/NODE.json``; with GPUs every task, without them the
first of each node, measures (``node_probe``, a process of its own: this one never loads torch) and
so takes part in an all-reduce. It ends with 0 whatever it found, because a task that fails may end
the others. ``judge`` reads all reports (``verdict``), prints a table, writes
``FOLDER/verdict.json`` and ``FOLDER/bad-nodes``, and ends with 0 fit, 1 bad nodes, or 2 nothing can
work. With ``--job`` it also writes bad nodes into the profile's cordon file, if there is one
(``cordon``); by ``cordon`` and ``lift`` people do.
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
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from launcher.preflight import cordon, verdict
from launcher.rendezvous import expand_nodes, rendezvous_from_slurm
from lmscale.errors import EXIT_USER, ClusterError, LmscaleError

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
    num_tasks: int
    """Tasks of this node that measure."""
    variables: Mapping[str, str]

    @property
    def report(self) -> str:
        """The name of this task's report."""
        return (
            f"{self.node}.json" if self.local_rank == 0 else task_report(self.node, self.local_rank)
        )


def task_report(node: str, task: int) -> str:
    return f"{node}.task-{task}.json"


def uses_gpus(profile: Path) -> bool:
    """One key of the frozen profile, unchecked: all tasks of a large step ask, most then end."""
    try:
        return bool(yaml.safe_load(profile.read_text(encoding="utf-8")).get("gpus_per_node"))
    except (OSError, yaml.YAMLError, AttributeError) as error:
        raise ClusterError(f"{profile}: cannot be read as a cluster profile: {error}") from None


def find_place(environ: Mapping[str, str], *, uses_gpus: bool) -> Place | None:
    """From SLURM_*; None for a task that has nothing to do. Raises ``ClusterError``."""
    variables = rendezvous_from_slurm(environ)
    local_rank, node_rank = int(variables["LOCAL_RANK"]), int(variables["GROUP_RANK"])
    names = ("SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST")
    nodes = expand_nodes(next(environ[name] for name in names if environ.get(name)))
    if not uses_gpus:
        if local_rank:
            return None
        # One process a node: together they are a world of their own.
        variables |= {
            "RANK": str(node_rank),
            "WORLD_SIZE": str(len(nodes)),
            "LOCAL_WORLD_SIZE": "1",
        }
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
    with Measuring(place, cluster, seconds) as measuring:  # loads torch while we look
        if place.local_rank == 0:
            report |= look_at_node(arguments, cluster, place, seconds / 3)
            write_report(folder / place.report, report)  # it counts even if measuring never ends
        else:
            wait_for(folder / f"{place.node}.json", seconds / 3 + LAST_SECONDS)
        measuring.begin()
        report["speed"] = measuring.result(began + seconds)
    report.setdefault("seconds", {})["total"] = round(time.monotonic() - began, 3)
    write_report(folder / place.report, report)
    return 0


def look_at_node(
    arguments: argparse.Namespace, cluster: ClusterConfig, place: Place, seconds: float
) -> dict[str, Any]:
    """The part of the report that is about the node and not about speed."""
    from launcher.preflight import node_checks as checks
    from lmscale.config import load_config

    folder, run_folder = Path(arguments.folder), Path(arguments.run_folder)
    clock: dict[str, float] = {}
    free: dict[str, float] = {}
    versions: dict[str, Any] = checks.library_versions()
    min_gb = cluster.preflight.min_free_gb
    looks: dict[str, checks.Look] = {
        "run folder": lambda: checks.look_at_run_folder(folder, place.node, clock),
        "run folder's space": lambda: checks.look_at_space("run folder", run_folder, min_gb, free),
        "scratch": lambda: checks.look_at_space("scratch", Path(cluster.scratch), min_gb, free),
        "shards": lambda: checks.look_at_shards(datasets_of(load_config(arguments.config))),
        "machine": lambda: checks.look_at_machine(cluster),
    }
    if cluster.gpus_per_node:
        count = cluster.gpus_per_node
        looks["GPUs alive"] = lambda: checks.look_at_gpus(count, os.environ, versions)
    found, took = checks.run_looks(looks, seconds)
    for check in found:
        if not check.is_ok:
            print(f"preflight: {place.node}: {check.name}: {check.found}", file=sys.stderr)
    return {
        "uses_gpus": cluster.gpus_per_node > 0,
        "tasks": place.num_tasks,
        "checks": [{"check": c.name, "ok": c.is_ok, "found": c.found} for c in found],
        "versions": dict(versions),
        "clock": dict(clock),
        "free_gb": dict(sorted(free.items())),
        "seconds": took,
    }


def datasets_of(config: RunConfig) -> dict[str, str]:
    """Name → folder or URL of all that a run reads."""
    sources = {
        name: source.shards for name, source in config.stream.sources.items() if source.weight
    }
    return sources | {
        f"evaluation set {name}": place for name, place in config.evaluation.sets.items()
    }


class Measuring:
    """The process that measures, from its start to its result; it does not outlive the block."""

    def __init__(self, place: Place, cluster: ClusterConfig, seconds: float) -> None:
        preflight = cluster.preflight
        command = [sys.executable, "-m", "launcher.preflight.node_probe", "--node", place.node]
        command += ["--seconds", str(seconds), "--megabytes", str(preflight.all_reduce_mb)]
        command += ["--matrix", str(preflight.matrix_size or 0)]
        command += ["--gpu"] if cluster.gpus_per_node else []
        self._rows: dict[str, Any] = {}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**_DEFAULTS, **os.environ, **place.variables},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Measuring:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        try:
            self._process.wait(LAST_SECONDS)
        except subprocess.TimeoutExpired:
            pass  # stuck in the kernel: it dies when it can

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            if line.endswith("\n"):  # else it was killed while it wrote
                self._rows |= json.loads(line)

    def begin(self) -> None:
        """Let it measure: the node has been looked at."""
        assert self._process.stdin
        try:
            self._process.stdin.write("begin\n")
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended; the result says how

    def result(self, deadline: float) -> dict[str, Any]:
        """What it found by the deadline, with an ``error`` unless it came to its end."""
        self._reader.join(max(0.0, deadline - time.monotonic()))
        result = {"part": "starting", **self._rows}
        if result["part"] != "done" and "error" not in result:
            if self._reader.is_alive():
                result["error"] = "has not come to an end in time"
            else:
                result["error"] = f"ended with code {self._process.wait()}, see the log"
        return result


def wait_for(path: Path, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)


def write_report(path: Path, value: Any) -> None:
    """Whole or not at all. A folder that is not there is not made: it would be a local one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        print(f"preflight: {path} cannot be written: {error}", file=sys.stderr)


def read_report(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def read_reports(folder: Path, nodes: Sequence[str]) -> dict[str, dict[str, Any] | None]:
    """Each node's report, with its tasks' speeds as a list."""
    reports = {node: read_report(folder / f"{node}.json") for node in nodes}
    for node, report in reports.items():
        if report is not None:
            others = range(1, report["tasks"])
            tasks = [read_report(folder / task_report(node, task)) for task in others]
            report["speeds"] = [report["speed"], *(task and task["speed"] for task in tasks)]
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
    print(verdict.render_table(reports, judged))
    for node, reason in judged.bad.items():
        print(f"preflight: {node} is bad: {reason}")
    print(f"preflight: {judged.message}")
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{node}\t{reason}\n" for node, reason in judged.bad.items()]
    (folder / BAD_NODES).write_text("".join(lines), encoding="utf-8")
    content = {
        "code": judged.code,
        "message": judged.message,
        "time": time.time(),
        "nodes": list(reports),
        "bad": dict(judged.bad),
        "problems": [vars(problem) for problem in judged.problems],
    }
    write_report(folder / "verdict.json", content)
    if arguments.job and preflight.cordon_file is not None:
        cordon_all(preflight.cordon_file, judged.bad, arguments.job)
    return judged.code


def cordon_all(file: str, bad: Mapping[str, str], job: str) -> None:
    """A cordon file that cannot be written changes nothing about the verdict."""
    for node, reason in bad.items():
        try:
            cordon.cordon(file, node, reason=reason, job=job)
        except ClusterError as error:
            print(f"preflight: {error}", file=sys.stderr)
            return


def write_cordon(arguments: argparse.Namespace) -> int:
    cordon.cordon(
        arguments.file,
        arguments.node,
        reason=arguments.reason,
        job=arguments.job,
        is_out=arguments.command == "cordon",
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m launcher.preflight", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("probe", help="look at this node and measure, in an srun step")
    for name in ("--folder", "--run-folder", "--cluster", "--config"):
        one.add_argument(name, required=True)
    one.set_defaults(run=probe)
    one = commands.add_parser("judge", help="name the bad nodes")
    for name in ("--folder", "--nodes", "--cluster"):
        one.add_argument(name, required=True)
    one.add_argument("--job", default="", help="whose bad nodes are cordoned; none: nobody's")
    one.set_defaults(run=judge)
    for name, text in (("cordon", "leave a node out"), ("lift", "take a node back")):
        one = commands.add_parser(name, help=f"{text}, in the cordon file")
        one.add_argument("--file", required=True)
        one.add_argument("--node", required=True)
        one.add_argument("--reason", required=name == "cordon", default="lifted")
        one.add_argument("--job", default="")
        one.set_defaults(run=write_cordon)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except LmscaleError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return 0 if arguments.command == "probe" else EXIT_USER


if __name__ == "__main__":
    sys.exit(main())
