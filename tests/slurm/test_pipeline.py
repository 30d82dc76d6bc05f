"""One command from raw text to a trained model, on a real Slurm, whatever happens on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import Cluster, wait_until
from test_data_jobs import END_SECONDS, DataLab

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.ranks]
STAGES = ("corpus", "tokenizer", "shards", "train")
SMALL = {
    "stream": {"sequence_length": 32, "workers": 0},
    "batch": {"global_windows": 4, "micro_windows": 2},
    "model": {"layers": 1, "width": 32, "heads": 2},
    "engine": {"precision": "fp32"},
    "train": {"steps": 3},
    "evaluation": {"every_steps": 0, "at_end": False},
}


class Pipeline(DataLab):
    """The data's lab, with a run behind it."""

    def write_run(self) -> None:
        self.write(file_bytes=20_000)
        tree = yaml.safe_load(self.config.read_text()) | SMALL
        tree["run"]["folder"] = str(self.run)
        tree["stream"]["sources"] = {"web": {"shards": str(self.folder / "shards/web/train")}}
        self.config.write_text(yaml.safe_dump(tree))
        path = self.folder / "cluster.yaml"
        profile = yaml.safe_load(path.read_text())
        profile |= {"tasks_per_node": 1, "data": {"memory": "700", "array_limit": 3}}
        profile["preflight"]["enabled"] = False
        path.write_text(yaml.safe_dump(profile))

    @property
    def run(self) -> Path:
        return self.folder / "runs/data"

    def launch(self, *options: str) -> dict[str, Any]:
        """All of it, in at most three tasks; the job of each stage that has one."""
        command = ("launch", "slurm", self.config, "--cluster", self.folder / "cluster.yaml")
        ended = self.lmscale(*command, "--job", "all", "--tasks", "3", "--json", *options)
        assert ended.code == 0, ended.output
        return json.loads(ended.output[ended.output.index("{\n") :])

    def state(self) -> dict[str, Any]:
        return json.loads(self.lmscale("runs", "status", self.run, "--json").output)

    def await_job(self, job: str, *states: str) -> None:
        try:
            self.cluster.wait_for(job, *states, timeout=END_SECONDS)
        except (TimeoutError, AssertionError) as error:
            queue = self.cluster.run("squeue", "--states=all", "-o", "%i %T %r %E")
            raise AssertionError(f"{error}\n{queue}\n{self.outputs()}") from None

    def waiting(self, jobs: dict[str, list[str]]) -> list[str]:
        """The stages whose jobs wait for an earlier one."""
        rows = {name: self.cluster.tasks(jobs[name][0]) for name in STAGES}
        return [
            name
            for name, tasks in rows.items()
            if all(t["JobState"] == "PENDING" and t["Reason"] == "Dependency" for t in tasks)
        ]


@pytest.mark.timeout(600)
def test_one_command_leads_from_text_to_a_model_over_a_failure_and_a_kill(
    cluster: Cluster, tmp_path: Path
):
    lab = Pipeline(cluster=cluster, folder=tmp_path)
    lab.write_run()
    broken = tmp_path / "raw/2.jsonl"
    whole = broken.read_text()
    broken.write_text(whole[:-10])
    lab.hold("--task 1/3 ")
    first = lab.launch()["jobs"]
    assert lab.waiting(first) == ["tokenizer", "shards", "train"]
    state = lab.state()
    assert state["state"] == "queued"
    assert f"waits for the corpus (job {first['corpus'][0]}: " in state["detail"]
    assert lab.launch()["jobs"] == first, "what is queued is not submitted twice"

    lab.hold("")  # task 1 finds what is to be mended
    for name in STAGES[1:]:
        lab.await_job(first[name][0], "CANCELLED")
    state = lab.state()
    assert state["state"] == "cancelled"
    assert "it will never begin, for the corpus" in state["detail"], state
    assert f"job-{first['corpus'][0]}_*.out" in state["detail"]

    failed = (tmp_path / f"corpus/.slurm/job-{first['corpus'][0]}_1.out").read_text()
    assert "2.jsonl:21: not JSON" in failed and "something to mend (exit code 2)" in failed
    assert "restart 1" not in failed
    assert lab.status("corpus")["missing"] == [1]
    assert not (tmp_path / "corpus/web").exists()

    broken.write_text(whole)
    lab.hold("--task ")
    second = lab.launch()["jobs"]
    assert not {*sum(second.values(), [])} & {*sum(first.values(), [])}
    corpus = second["corpus"][0]
    wait_until(lambda: bool(lab.processes(1)), END_SECONDS, "a process of task 1")
    for process in lab.processes(1):
        process.send()
    killed = "failed (exit code 137): attempt 2 of 3"
    wait_until(lambda: killed in lab.outputs(), END_SECONDS, "the kill")
    wait_until(lambda: bool(lab.processes(1)), END_SECONDS, "the task's second start")
    assert lab.waiting(second) == ["tokenizer", "shards", "train"], "none began, none was ended"
    lab.hold("")
    lab.await_job(corpus, "COMPLETED")
    for name in STAGES[1:]:
        lab.await_job(second[name][0], "COMPLETED")
    assert lab.state()["state"] == "finished"
    assert lab.outputs().count("2 parts done now") == 3, "none of them twice"
    assert lab.outputs().count("corpus/web: built") == 1, lab.outputs()
    assert lab.outputs().count("shards/web/train: built") == 1, lab.outputs()
    lab.assert_as_built_alone("corpus", "shards")
    last = lab.launch()
    assert [stage["state"] for stage in last["stages"]] == ["done"] * 4
    with_more = lab.launch("--check", "--set", "train.steps=4")["stages"]
    assert "passed" in with_more[3], "a finished run that is given more steps goes on"
