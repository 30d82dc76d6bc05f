"""Jobs whose batch scripts are recorded in ``tests/launcher/recorded``.

    python tests/launcher/slurm_cases.py     records them anew
    python tests/launcher/slurm_cases.py show train-sweep     prints one whole

One script of each template is recorded whole; each of the others as its difference from that one,
which says all of it as well. Look at the changes with git before you commit them: they are what
clusters will run.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from launcher.job import JobRequest, SlurmJob
from launcher.plan import plan_job
from launcher.render import render
from lmscale.config import RunConfig, load_config
from lmscale.config.assets import find_assets
from lmscale.config.cluster import load_cluster, parse_cluster
from lmscale.config.cluster_profile import ClusterConfig
from lmscale.runs.sweep_folder import Sweep, SweepMember

RECORDED = Path(__file__).with_name("recorded")
HOME = "/shared/ada"
PYTHON = "/shared/ada/lmscale/.venv/bin/python"
SMALL = "time: 1:00:00\ntasks_per_node: 2\n"


def make_config(name: str = "llama_7b", overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """One of lmscale's configurations in a place that is the same on every machine."""
    places = {
        "run.folder": f"{HOME}/runs/{name}",
        "corpus.folder": f"{HOME}/data/corpus",
        "tokenizer.folder": f"{HOME}/data/tokenizer",
        "shards.folder": f"{HOME}/data/shards",
    }
    settings = {**places, **(overrides or {})}
    path = find_assets("configs") / f"{name}.yaml"
    return load_config(path, [f"{key}={value}" for key, value in settings.items()])


@cache
def _llama() -> RunConfig:
    return make_config()


def make_request(cluster: ClusterConfig | str, **changes: Any) -> JobRequest:
    """A request; ``cluster`` is a profile, or the text of one."""
    values: dict[str, Any] = {
        "config": changes["config"] if "config" in changes else _llama(),
        "cluster": parse_cluster(cluster) if isinstance(cluster, str) else cluster,
        "cluster_name": "case",
        "submission": "20261122-011900-train",
        "python": PYTHON,
        "folder": Path(HOME),
    }
    return JobRequest(**{**values, **changes})


def make_sweep() -> Sweep:
    root, key = Path(f"{HOME}/runs/rates"), "engine.optimizer.lr"
    runs, configs = [], []
    for index, rate in enumerate(("1e-3", "3e-4")):
        folder = root / f"rates-{index:03d}"
        places = {"run.name": folder.name, "run.folder": str(folder)}
        configs.append(make_config("demo", {**places, key: rate}))
        runs.append(SweepMember(index=index, run=folder.name, folder=folder, values={key: rate}))
    return Sweep(name="rates", root=root, keys=(key,), runs=tuple(runs), configs=tuple(configs))


def make_jobs() -> dict[str, SlurmJob]:
    """Name of the recorded file → job."""
    eight = {"min_nodes": 8, "max_nodes": 8}
    example = make_request(load_cluster("example"), cluster_name="example", **eight)
    data = make_request(f"{SMALL}array_limit: 100\n", submission="20261122-011900-data", tasks=64)
    jobs = {
        "train-example": plan_job(example, "train"),
        "train-lab": plan_job(make_request(load_cluster("lab"), min_nodes=1, max_nodes=2), "train"),
        "train-elastic": plan_job(
            make_request(load_cluster("example"), min_nodes=3, max_nodes=9, excluded=("n3", "n7")),
            "train",
        ),
        "train-chain": plan_job(
            make_request(
                f"{SMALL}requeue: false\nchain: 3\npreflight: {{enabled: false}}\n",
                after="afterok:4711",
            ),
            "train",
        ),
        "train-sweep": plan_job(
            make_request(f"{SMALL}array_limit: 2\n", sweep=make_sweep(), min_nodes=1, max_nodes=2),
            "train",
        ),
        "train-pyxis": plan_job(make_request(PYXIS, **eight), "train"),
        "train-apptainer": plan_job(make_request(APPTAINER, **eight), "train"),
        "evaluate-example": plan_job(replace(example, takes_whole_nodes=False), "evaluate"),
        "evaluate-nodes": plan_job(example, "evaluate"),
        "evaluate-tasks": plan_job(
            make_request(
                load_cluster("example"),
                cluster_name="example",
                config=make_config(overrides={"evaluation.tasks": TASKS}),
                takes_whole_nodes=False,
                step=5000,
                after="afterany:4711",
            ),
            "evaluate",
        ),
        "preflight-example": plan_job(example, "preflight"),
        "corpus": plan_job(data, "corpus"),
        "tokenizer": plan_job(data, "tokenizer"),
        "shards": plan_job(data, "shards"),
    }
    for name in ("h100-infiniband", "aws-efa", "gcp-tcpx"):
        jobs[f"train-{name}"] = plan_job(make_request(load_cluster(name), **eight), "train")
    return jobs


TASKS = f"[{HOME}/data/tasks, hellaswag]"
PYXIS = """
time: 12:00:00
account: proj 7
qos: high
constraint: h100&ib
reservation: week-3
gpus_per_node: 8
gpu_type: h100
memory_per_node: 1900G
sbatch_options: ["--comment=three words here", --switches=1]
srun_options: [--mpi=none]
modules: [enroot/3.5, "odd name"]
setup: ['source /opt/site/init.sh "$USER"', ulimit -l unlimited]
variables: {NCCL_DEBUG: INFO, LABEL: "it's $HOME", EMPTY: ""}
python: /opt/venv/bin/python
container:
  kind: pyxis
  image: nvcr.io#nvidia/pytorch:25.08-py3
  mounts: [/data:/data, "/odd folder"]
  options: [--no-container-mount-home]
shared: [/shared]
scratch: /local
preflight: {cordon_file: /shared/team/bad nodes}
"""
APPTAINER = """
time: 12:00:00
gpus_per_node: 4
python: python3
container: {kind: apptainer, image: /shared/images/a b.sif, options: [--cleanenv]}
shared: [/shared]
"""

WHOLE = {
    "train": "train-example",
    "evaluate": "evaluate-example",
    "preflight": "preflight-example",
    "corpus": "corpus",
    "tokenizer": "corpus",
    "shards": "corpus",
}
"""Kind of job → the case of its template that is recorded whole."""


def make_records() -> dict[str, str]:
    """File in ``RECORDED`` → what it holds."""
    jobs = make_jobs()
    scripts = {name: render(job) for name, job in jobs.items()}
    records = {}
    for name, job in jobs.items():
        whole = WHOLE[job.kind]
        if name == whole:
            records[f"{name}.sh"] = scripts[name]
        else:
            lines = (scripts[case].splitlines(keepends=True) for case in (whole, name))
            diff = difflib.unified_diff(*lines, f"{whole}.sh", f"{name}.sh", n=1)
            records[f"{name}.diff"] = "".join(diff)
    return records


if __name__ == "__main__":
    if sys.argv[1:2] == ["show"]:
        sys.exit(print(render(make_jobs()[sys.argv[2]]), end=""))
    for old in (*RECORDED.glob("*.sh"), *RECORDED.glob("*.diff")):
        old.unlink()
    for file_name, content in make_records().items():
        (RECORDED / file_name).write_text(content, encoding="utf-8")
