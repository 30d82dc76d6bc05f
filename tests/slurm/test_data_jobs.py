"""Corpus and shards are built by the tasks of an array; test_pipeline.py kills and breaks some."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import Cluster, Process, wait_until
from forked_processes import ENVIRONMENT, ROOT
from jobs import hold, hold_file, job_variables
from tiny_run import Ended, run_lmscale

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
TASKS = 3
END_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class DataLab:
    """A configuration with raw text, and a cluster to build its data on."""

    cluster: Cluster
    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "run.yaml"

    @property
    def pace(self) -> Path:
        return self.folder / "pace"

    def hold(self, words: str) -> None:
        """Tasks with ``words`` in their command wait before they load anything."""
        hold(hold_file(self.pace), words)

    def write(self, *, file_bytes: int) -> None:
        """Six raw files, each a part of its own; a third of their texts is in all of them."""
        (self.folder / "raw").mkdir()
        line = "words of a text that are said again and again " * 20
        for number in range(6):
            lines = [
                json.dumps({"text": f"{n} of {number if n % 3 else 'all'} {line}"}) + "\n"
                for n in range(file_bytes // len(line))
            ]
            (self.folder / f"raw/{number}.jsonl").write_text("".join(lines))
        tree = {
            "run": {"name": "data"},
            "corpus": {
                "folder": str(self.folder / "corpus"),
                "sources": {"web": {"inputs": [f"{self.folder}/raw/*.jsonl"]}},
                "part_bytes": 1,
            },
            "tokenizer": {"folder": str(self.folder / "tokenizer"), "vocab_size": 300},
            "shards": {"folder": str(self.folder / "shards"), "max_bytes": 2**16},
        }
        self.config.write_text(yaml.safe_dump(tree))
        profile = yaml.safe_load((ROOT / "slurm/profiles/lab.yaml").read_text())
        profile |= {"memory_per_node": "1000", "scratch": str(self.cluster.folder / "scratch")}
        profile["variables"] |= ENVIRONMENT | job_variables(self.pace)
        (self.folder / "cluster.yaml").write_text(yaml.safe_dump(profile))

    def lmscale(self, *words: str | Path) -> Ended:
        """A command as a person types it on the login node."""
        return run_lmscale(*words, environment=self.cluster.environment)

    def submit(self, stage: str) -> Any:
        """The array's job number; None if there was nothing to submit."""
        cluster = self.folder / "cluster.yaml"
        command = ("launch", "slurm", self.config, "--cluster", cluster, "--json")
        ended = self.lmscale(*command, "--job", stage, "--tasks", str(TASKS))
        assert ended.code == 0, ended.output
        return json.loads(ended.output[ended.output.index("{") :])["job"]

    def wait_for_end(
        self, job: str, states: dict[int, str] | None = None, tasks: Iterable[int] = range(TASKS)
    ) -> None:
        """Wait for all tasks; those in ``states`` end otherwise than well."""
        for task in tasks:
            state = (states or {}).get(task, "COMPLETED")
            try:
                self.cluster.wait_for(f"{job}_{task}", state, timeout=END_SECONDS)
            except (TimeoutError, AssertionError) as error:
                raise AssertionError(f"{error}\n{self.outputs()}") from None

    def status(self, stage: str) -> dict[str, Any]:
        ended = self.lmscale(stage, "status", self.config, "--tasks", str(TASKS), "--json")
        return json.loads(ended.output)

    def processes(self, task: int) -> list[Process]:
        """Those of a task that runs, on whichever node; srun's are not among them."""
        nodes = self.cluster.shape.node_names
        every = [process for node in nodes for process in self.cluster.processes(node)]
        wanted = f"--task {task}/{TASKS} "
        return [p for p in every if wanted in p.command and p.name.startswith("python")]

    def outputs(self) -> str:
        paths = sorted(self.folder.glob("*/.slurm/job-*.out"))
        return "\n".join(f"---- {path.name}\n{path.read_text()}" for path in paths)

    def assert_as_built_alone(self, *stages: str) -> None:
        """Every file is what one process makes of the same."""
        alone = self.folder / "alone"
        for stage in stages:
            places = [f"corpus.folder={alone}/corpus", f"shards.folder={alone}/shards"]
            options = [word for place in places for word in ("--set", place)]
            ended = run_lmscale(stage, "build", self.config, "--processes", "1", *options)
            assert ended.code == 0, ended.output
            assert contents(self.folder / stage) == contents(alone / stage)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of what was built; what Slurm's jobs left, and locks, aside."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    names = (name for name in found if name.parts[0] != ".slurm" and name.suffix != ".lock")
    return {str(name): (folder / name).read_bytes() for name in names}


@pytest.fixture
def lab(cluster: Cluster, tmp_path: Path) -> DataLab:
    return DataLab(cluster=cluster, folder=tmp_path)


def test_a_task_out_of_time_comes_again_and_a_cancelled_one_does_not(lab: DataLab):
    lab.write(file_bytes=20_000)
    lab.hold("--task ")
    job = lab.submit("corpus")
    wait_until(lambda: bool(lab.processes(0) and lab.processes(2)), END_SECONDS, "tasks 0 and 2")
    lab.cluster.run("scancel", "--batch", "--signal=USR1", f"{job}_0")  # as before the time limit
    lab.cluster.run("scancel", f"{job}_2")
    lab.wait_for_end(job, {2: "CANCELLED"}, tasks=[2])
    wait_until(lambda: "out of time" in lab.outputs(), END_SECONDS, "the end of task 0")
    lab.hold("")
    lab.wait_for_end(job, {2: "CANCELLED"})
    assert "out of time: it goes on where it was" in lab.outputs()
    assert "task 0 of 3, restart 1" in lab.outputs()
    assert lab.status("corpus")["missing"] == [2]
    job = lab.submit("corpus")
    lab.wait_for_end(job, tasks=[2])
    assert len(lab.cluster.tasks(job)) == 1, "only what is missing is submitted"
    lab.assert_as_built_alone("corpus")
    assert lab.submit("corpus") is None, "and nothing where nothing is missing"
