"""Real runs on the test cluster: submitted by the command line, looked at from outside."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cluster import Cluster, Process, wait_until
from forked_processes import ENVIRONMENT, ROOT, forking
from tiny_run import Ended, committed_steps, ledger_of, run_lmscale, write_tiny_config

STEPS = 40
SLOW = 0.3  # seconds added to a step, until a run may hurry
START_SECONDS = 120.0  # four ranks import torch at once on two cores that other tests use as well
END_SECONDS = 150.0
OVERRIDES: Mapping[str, Any] = {"train.steps": STEPS, "checkpoint.every_steps": 10}
"""Saves are few, so that where a run goes on tells whether it saved when it was asked to."""


def job_variables(pace: Path, *, forked: bool = True) -> dict[str, str]:
    """For a profile: what the interpreters of a job look at (interpreter/sitecustomize.py)."""
    variables = forking()
    if not forked:
        del variables["TEST_FORK_SOCKET"]
    return variables | {"TEST_STEP_PAUSE": str(pace), "TEST_HOLD": str(hold_file(pace))}


def hold_file(pace: Path) -> Path:
    return pace.with_name(f"{pace.name}-hold")


def hold(path: Path, words: str) -> None:
    """Keep what the jobs start with ``words`` in its command where it begins; "" lets it go on."""
    path.with_suffix(".new").write_text(words)
    path.with_suffix(".new").rename(path)  # at once: a reader finds these words or those of before


@dataclass(frozen=True, kw_only=True)
class Lab:
    """Submits runs to a cluster; all of them have the same ledger in the end."""

    cluster: Cluster
    data: Path
    folder: Path
    whole: list[str]  # the ledger of the same run without an interruption

    def lmscale(self, *words: str | Path) -> Ended:
        """A command as a person types it on the login node."""
        return run_lmscale(*words, environment=self.cluster.environment)

    def write_profile(self, name: str, settings: Mapping[str, Any], *, forked: bool = True) -> Path:
        """The test cluster's profile with ``settings``: one unchecked rank a node."""
        profile = yaml.safe_load((ROOT / "slurm/profiles/lab.yaml").read_text())
        profile |= {"memory_per_node": "1000", "scratch": str(self.cluster.folder / "scratch")}
        profile["preflight"]["enabled"] = False
        profile["tasks_per_node"] = 1
        profile["variables"] |= ENVIRONMENT | job_variables(self._pace(name), forked=forked)
        for key, value in settings.items():
            if isinstance(value, Mapping):
                value = {**profile[key], **value}
            profile[key] = value
        path = self.folder / f"{name}-cluster.yaml"
        path.write_text(yaml.safe_dump(profile))
        return path

    def _pace(self, name: str) -> Path:
        return self.folder / f"{name}-pace"

    def submit(
        self,
        name: str = "run",
        *,
        nodes: str = "2",
        overrides: Mapping[str, Any] | None = None,
        options: Sequence[str] = (),
        pace: float = SLOW,
        forked: bool = True,
        held: str = "",
        **profile: Any,
    ) -> Run:
        """Submit a run; once more, when there is one of this name.

        ``forked``: its ranks come from a process that has loaded torch (interpreter/proxy.py).
        ``held``: as ``Run.hold`` does it.
        """
        folder = self.folder / name
        config = self.folder / f"{name}.yaml"
        given = {**OVERRIDES, "run.name": name, **(overrides or {})}
        write_tiny_config(config, self.data, folder, given)
        cluster = self.write_profile(name, profile, forked=forked)
        self._pace(name).write_text(str(pace))
        hold(hold_file(self._pace(name)), held)
        command = ("launch", "slurm", config, "--cluster", cluster, "--nodes", nodes, "--json")
        ended = self.lmscale(*command, *options)
        assert ended.code == 0, ended.output
        row = json.loads(ended.output[ended.output.index("{") :])
        return Run(lab=self, folder=folder, job=row["job"], jobs=row["jobs"], pace=self._pace(name))


@dataclass(frozen=True, kw_only=True)
class Run:
    """A submitted run."""

    lab: Lab
    folder: Path
    job: str
    jobs: list[str]  # of its chain
    pace: Path

    # ---- What happens

    def wait_for_step(self, step: int) -> None:
        """Wait until the ranks have done ``step`` steps."""
        self._wait(lambda: len(self.ledger()) >= step, START_SECONDS, f"step {step}")

    def wait_for_start(self, number: int) -> dict[str, Any]:
        """Wait for the batch script's start ``number``, counted from 1; its row."""
        self._wait(lambda: len(self.events("start")) >= number, START_SECONDS, f"start {number}")
        return self.events("start")[number - 1]

    def wait_for_text(self, text: str, seconds: float = START_SECONDS) -> None:
        self._wait(lambda: text in self.output(), seconds, repr(text))

    def hurry(self) -> None:
        """From now on steps take as long as they take."""
        self.pace.unlink(missing_ok=True)

    def hold(self, words: str) -> None:
        """From now on what has ``words`` in its command waits before it loads anything."""
        hold(hold_file(self.pace), words)

    def wait_for_end(self, state: str = "COMPLETED", job: str | None = None) -> dict[str, Any]:
        """Wait until Slurm says the job is in ``state``; the row that the batch script wrote."""
        job = job or self.job
        try:
            self.lab.cluster.wait_for(job, state, timeout=END_SECONDS)
        except (TimeoutError, AssertionError) as error:
            raise AssertionError(f"{error}\n{self.report()}") from None
        ends = [row for row in self.events("end") if row["job"] == job]
        return ends[-1] if ends else {}

    def assert_whole(self, steps: int = STEPS) -> None:
        """Every sample was used once and in order, as if nothing had happened."""
        audit = self.lab.lmscale("runs", "audit", self.folder)
        assert audit.code == 0 and f"clean. {steps} steps" in audit.output, audit.output
        assert self.ledger() == self.lab.whole[:steps]
        assert committed_steps(self.folder)[-1] == steps

    # ---- What is seen

    def ledger(self) -> list[str]:
        try:
            return ledger_of(self.folder)
        except FileNotFoundError:
            return []

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Of a file in the run's folder with a row of JSON a line."""
        try:
            lines = (self.folder / name).read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [row for row in self.rows("slurm/events.jsonl") if row["event"] == kind]

    def output(self) -> str:
        """The batch script's, and rank 0's, over all restarts."""
        paths = sorted((self.folder / "slurm").glob("job-*.out"))
        return "\n".join(path.read_text(errors="replace") for path in paths)

    def status(self) -> dict[str, Any]:
        return json.loads(self.lab.lmscale("runs", "status", self.folder, "--json").output)

    def ranks(self, node: str) -> list[Process]:
        """Its ranks on a node, in the order of their start; their children are not among them."""
        found = [p for p in self.lab.cluster.processes(node) if self._is_rank(p)]
        parents = {process.pid for process in found}
        return sorted((p for p in found if p.parent not in parents), key=lambda p: p.pid)

    def wait_for_rank(self, node: str) -> Process:
        """The first one on a node, once there is one."""
        ranks: list[Process] = []

        def has_come() -> bool:  # its command line is empty for a moment when it becomes another
            ranks.extend(self.ranks(node))
            return bool(ranks)

        self._wait(has_come, START_SECONDS, f"a rank on {node}")
        return ranks[0]

    def _is_rank(self, process: Process) -> bool:
        # Before it becomes the training itself, the same process is `python -m launcher.rank`.
        words = process.command.split()
        is_python = process.name.startswith("python") and str(self.folder) in process.command
        return is_python and ("lmscale.cli.main" in words or "launcher.rank" in words)

    def report(self) -> str:
        """For the message of a test that failed."""
        parts = [f"---- events of job {self.job}", *map(str, self.rows("slurm/events.jsonl"))]
        paths = [*(self.folder / "slurm").glob("job-*.out"), *(self.folder / "logs").glob("*")]
        for path in sorted(paths):
            parts += [f"---- {path.name}", *path.read_text(errors="replace").splitlines()[-25:]]
        parts += ["---- queue", self.lab.cluster.run("squeue", "-o", "%i %T %r %N %S")]
        return "\n".join(parts)

    def _wait(self, is_done: Any, seconds: float, what: str) -> None:
        try:
            wait_until(is_done, seconds, what)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.report()}\n{self.lab.cluster.logs()}") from None
