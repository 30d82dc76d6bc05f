"""docs/slurm.md on a cluster of eight nodes: its commands, in its order, from data to a requeue."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import yaml
from cluster import Cluster, wait_until
from demands import demand, why_no_cluster
from forked_processes import ENVIRONMENT, ROOT, run_process
from jobs import job_variables

from lmscale.cli.main import main
from lmscale.config import load_config

PAGE = ROOT / "docs" / "slurm.md"
SECONDS = 300.0  # the data, then eight ranks on two cores
# configs/first_gpu.yaml, made small: the page is about the cluster.
SMALL = {
    "batch.global_windows": 8,
    "batch.micro_windows": 8,
    "tokenizer.vocab_size": 512,
    "shards.max_bytes": 70_000,
    "shards.block_tokens": 4096,
    "stream.sequence_length": 64,
    "stream.workers": 0,
    "model.layers": 1,
    "model.width": 32,
    "model.heads": 2,
    "engine.precision": "fp32",
    "engine.schedule.warmup_steps": 1,
    "engine.schedule.decay_steps": 2,
    "train.steps": 40,
    "train.log_every_steps": 1,
    "evaluation.every_steps": 0,
    "evaluation.at_end": False,
    "evaluation.stop.metric": "",
}


def commands() -> list[list[str]]:
    """Every ``lmscale`` line of the bash blocks of sections 1 to 6; test_interactive.py is of 7.

    Not ``examples/pydocs.py``: 20 seconds for text of which ``prepare`` has written enough.
    """
    page, mark, _ = PAGE.read_text().partition("\n## 7. By hand")
    assert mark
    found = re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line) for block in found for line in block.splitlines()]
    return [words[1:] for words in lines if words and words[0] == "lmscale"]


def launches() -> list[list[str]]:
    """Those of them that submit a job, as dry runs on the profile of nodes with 8 GPUs."""
    words = (w for w in commands() if w[:2] == ["launch", "slurm"])
    dry = ([w for w in ws if w not in ("--check", "--dry-run")] for ws in words)
    example = str(ROOT / "slurm/profiles/example.yaml")
    return [[*(example if w == "my-cluster.yaml" else w for w in ws), "--dry-run"] for ws in dry]


@pytest.mark.parametrize("words", launches(), ids=lambda words: shlex.join(words[2:-1]))
def test_the_page_does_on_nodes_of_eight_gpus_as_it_stands(words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    code = main(words)
    said = capsys.readouterr()
    assert code == 0, said.err
    assert "shared evenly" not in said.err  # another warning is of data, which is not built here
    if "--nodes" in words and words[words.index("--nodes") + 1] == "8":
        assert "#SBATCH --nodes=8\n" in said.out
        assert "#SBATCH --ntasks-per-node=8\n" in said.out
        assert "#SBATCH --gres=gpu:8\n" in said.out
        assert "--preflight-only" in words or "usable=(8)" in said.out


def test_the_pages_configuration_does_on_every_number_of_ranks_that_the_page_names():
    named = re.search(
        r"its 192 can be dealt to 1 to 4, ([\d, and]+) ranks", PAGE.read_text().replace("\n", " ")
    )
    assert named, "the sentence of section 2"
    batch = load_config(ROOT / "configs/first_gpu.yaml").batch
    fits = [ranks for ranks in range(1, 65) if batch.global_windows % ranks == 0]
    assert fits == [1, 2, 3, 4, *map(int, re.findall(r"\d+", named[1]))]
    assert [batch.plan(ranks).data_ranks for ranks in fits] == fits


@pytest.fixture(scope="module")
def eight_nodes() -> Iterator[Cluster]:
    demand(why_no_cluster())
    with Cluster(nodes=8, cpus=4, gpus=0) as cluster:
        yield cluster


class Reader:
    """Someone who types what the page says, in the folder of the clone."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.run = folder / "runs" / "first_gpu"
        self.pace = folder / "pace"

    def prepare(self) -> None:
        """What the page has him write: a profile. And a run of seconds instead of an hour."""
        profile = yaml.safe_load((ROOT / "slurm/profiles/lab.yaml").read_text())
        profile |= {"tasks_per_node": 1, "memory_per_node": "500"}
        profile["scratch"] = str(self.cluster.folder / "scratch")
        profile["variables"] |= ENVIRONMENT | job_variables(self.pace)
        (self.folder / "my-cluster.yaml").write_text(yaml.safe_dump(profile))
        self.pace.write_text("2.5")  # as long as a run shall not finish
        settings = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
        shown = self.type(["config", "show", str(ROOT / "configs/first_gpu.yaml"), *settings])
        (self.folder / "configs").mkdir()
        (self.folder / "configs/first_gpu.yaml").write_text(shown)
        raw = self.folder / "data/first_gpu/raw/topics.jsonl"
        raw.parent.mkdir(parents=True)
        raw.write_text("".join(json.dumps({"text": topics[t]}) + "\n" for t in sorted(topics)))

    def type(self, words: list[str]) -> str:
        environment = {**self.cluster.environment, "PYTHONPATH": str(ROOT)}
        code, said = run_process("command", words, folder=self.folder, environment=environment)
        assert code == 0, f"lmscale {shlex.join(words)}\n{said}"
        return said

    def await_queue(self) -> None:
        self.wait(lambda: not self.cluster.run("squeue", "--noheader"), "an empty queue")

    def wait(self, is_done: Callable[[], bool], what: str) -> None:
        try:
            wait_until(is_done, SECONDS, what)
        except TimeoutError as error:
            outputs = [
                f"---- {path}\n{path.read_text()}" for path in self.folder.rglob("job-*.out")
            ]
            queue = self.cluster.run("squeue")
            raise AssertionError("\n".join([str(error), queue, *outputs])) from None

    def events(self, kind: str) -> list[dict]:
        path = self.run / "slurm" / "events.jsonl"
        rows = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
        return [row for row in rows if row["event"] == kind]

    def await_step(self, step: int) -> None:
        ledger = self.run / "ledger.jsonl"

        def has_done() -> bool:
            return ledger.exists() and ledger.read_text().count("\n") >= step

        self.wait(has_done, f"step {step}")

    def see_it_requeued(self) -> None:
        """Ask as Slurm does before the time limit; the job saves and starts again by itself."""
        self.await_step(2)
        (start,) = self.events("start")
        assert start["nodes"] == "n[1-8]"
        self.cluster.run("scancel", "--signal=USR1", "--batch", start["job"])
        self.wait(lambda: len(self.events("start")) == 2, "a second start")
        (end,) = self.events("end")
        assert (end["code"], end["action"]) == (75, "requeue")
        assert self.events("start")[1]["step"] == end["step"] >= 2
        self.await_step(end["step"] + 1)


@pytest.mark.slurm
@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_leads_from_data_to_a_requeued_job_of_eight_nodes(eight_nodes, tmp_path):
    reader = Reader(eight_nodes, tmp_path)
    reader.prepare()
    for words in commands():
        said = reader.type(words)
        is_submitted = words[0] == "launch" and not {"--dry-run", "--check"} & set(words)
        if is_submitted and words[-2:] == ["--job", "all"]:
            reader.see_it_requeued()
        elif is_submitted or words[:2] == ["runs", "cancel"]:
            if "--array" in words:
                reader.pace.unlink()
            reader.await_queue()
        if {"evaluate", "--nodes"} <= set(words):  # on two ranks, of which the first keeps them
            rows = (reader.run / "tasks.jsonl").read_text().splitlines()
            assert len(rows) == 1 and json.loads(rows[0])["figures"]
        if words[:2] == ["runs", "list"] and "--sweep" in words:
            assert said.count("finished") == 2
    assert reader.events("end")[-1]["action"] == "cancelled"
