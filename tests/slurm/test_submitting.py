"""Submitting to a real Slurm: what it reads from a script, what it refuses, and never twice."""

from __future__ import annotations

import json
import multiprocessing
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from cluster import Cluster, wait_until
from tiny_run import tiny_tree

from launcher.checks import check
from launcher.job import JobRequest
from launcher.options import LaunchOptions
from launcher.plan import plan_job
from launcher.render import quote_directive
from launcher.slurm import sacct, scancel, squeue, try_sbatch
from launcher.submit import prepare, submit
from lmscale.config.cluster import parse_cluster
from lmscale.config.run import RunConfig
from lmscale.errors import ClusterError, LmscaleError
from lmscale.files.run_files import read_submissions

pytestmark = pytest.mark.slurm
NAMES = (
    "a b; rm -rf x",
    "$(id) ${HOME} ~ * ! &&",
    "x#y # z",
    "日本 ünï",
    "100%j%%",
    "--account=other",
    "a=b=c",
)


@pytest.fixture
def here(cluster: Cluster, monkeypatch) -> Cluster:
    """The cluster, for commands that this process calls."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    return cluster


@pytest.fixture
def options(tmp_path: Path, tiny_data: Path) -> LaunchOptions:
    tree = tiny_tree(tiny_data, tmp_path / "runs/tiny")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree))
    return LaunchOptions(config=tmp_path / "tiny.yaml", cluster="lab", nodes="2")


def held(options: LaunchOptions, folder: Path) -> LaunchOptions:
    """The same in a profile whose jobs wait until somebody releases them."""
    profile = {
        "time": "0:10:00",
        "tasks_per_node": 2,
        "shared": ["/"],
        "sbatch_options": ["--hold"],
    }
    (folder / "held.yaml").write_text(yaml.safe_dump(profile))
    return replace(options, cluster=str(folder / "held.yaml"))


def test_every_value_arrives_in_slurm_as_it_was_written(here: Cluster, tmp_path):
    for number, name in enumerate(NAMES):
        folder = tmp_path / str(number) / name
        folder.mkdir(parents=True)
        given = {"--job-name": name, "--comment": name, "--chdir": folder}
        lines = [f"#SBATCH {quote_directive(f'{key}={value}')}" for key, value in given.items()]
        script = tmp_path / f"{number}.sh"
        script.write_text("\n".join(["#!/bin/bash", "#SBATCH --hold", *lines, "true", ""]))
        job = here.run("sbatch", "--parsable", script).strip()
        record = here.run("scontrol", "show", "-o", "job", job)
        assert f" JobName={name} " in record and f" Comment={name} " in record
        assert f" WorkDir={folder} " in record
        (queued,) = squeue([job])
        assert (queued.state, queued.reason) == ("PENDING", "JobHeldUser")
        scancel([job])


def test_a_frozen_script_really_writes_to_its_own_places(here: Cluster, tmp_path):
    """A run's folder of hostile letters, from the plan to the file that Slurm writes."""
    tree = tiny_tree(tmp_path / "none", tmp_path / "a b; touch x $(id) 100%j")
    config = RunConfig.model_validate(tree)
    cluster = parse_cluster("time: 0:10:00\ntasks_per_node: 1\npreflight: {enabled: false}\n")
    request = JobRequest(
        config=config,
        cluster=cluster,
        cluster_name="lab",
        submission="20261122-011900-train",
        python="/bin/echo",
        folder=tmp_path,
    )
    job = plan_job(request, "train")
    job.frozen_folder.mkdir(parents=True)
    (job.frozen_folder / "job.sh").write_text(
        "\n".join(
            ["#!/bin/bash", *(f"#SBATCH {quote_directive(d)}" for d in job.directives), "pwd", ""]
        )
    )
    number = here.run("sbatch", "--parsable", job.frozen_folder / "job.sh").strip()
    here.wait_for(number, "COMPLETED")
    output = config.folder / "slurm" / f"job-{number}.out"
    wait_until(lambda: output.exists() and output.read_text() != "", 10, str(output))
    assert output.read_text() == f"{job.frozen_folder}\n"


def test_a_run_is_checked_against_the_real_cluster(here: Cluster, options):
    findings = check(prepare(options))
    assert findings.problems == [] and findings.warnings == []
    assert findings.passed[-1].startswith("Slurm would take it: Job ")


def test_what_slurm_would_refuse_is_told_before_anything_is_written(here, options, tmp_path):
    profile = "time: 0:10:00\ntasks_per_node: 2\nshared: [/]\npartition: nope\n"
    (tmp_path / "wrong.yaml").write_text(profile)
    findings = check(prepare(replace(options, cluster=str(tmp_path / "wrong.yaml"))))
    (problem,) = findings.problems
    assert problem.startswith("sbatch refused: invalid partition specified: nope")
    with pytest.raises(ClusterError, match="Requested node configuration is not available"):
        try_sbatch("#!/bin/bash\n#SBATCH --nodes=99\n")
    assert not (tmp_path / "runs").exists()


def test_a_run_is_not_submitted_twice(here: Cluster, options, tmp_path):
    options = held(options, tmp_path)
    first = submit(prepare(options))
    (queued,) = squeue([first.job])
    assert queued.is_active
    (problem,) = check(prepare(options)).problems
    assert problem.startswith(f"job {first.job} of this run is pending (submitted by ")
    with pytest.raises(ClusterError, match=f"job {first.job} of this run is pending"):
        submit(prepare(options))
    # Not even when its submission was never written down.
    (tmp_path / "runs/tiny/slurm/submissions.jsonl").unlink()
    with pytest.raises(ClusterError, match=f"job {first.job} of this run is pending"):
        submit(prepare(options))
    scancel([first.job])
    second = submit(prepare(options))
    assert second.job != first.job
    scancel([second.job])
    assert sacct([first.job]) == ()  # this cluster keeps no accounts


def _submit(options: LaunchOptions, gate, outcomes) -> None:
    gate.wait()
    try:
        outcomes.put(submit(prepare(options)).job)
    except LmscaleError as error:
        outcomes.put(str(error))


def test_of_two_that_submit_at_the_same_moment_one_is_refused(here, options, tmp_path):
    options = held(options, tmp_path)
    fork = multiprocessing.get_context("fork")
    gate, outcomes = fork.Barrier(2), fork.Queue()
    both = [fork.Process(target=_submit, args=(options, gate, outcomes)) for _ in range(2)]
    for process in both:
        process.start()
    job, refusal = sorted((outcomes.get(timeout=60) for _ in both), key=len)
    for process in both:
        process.join()
    assert job.isdecimal() and f"job {job} of this run is pending" in refusal
    assert [row["job"] for row in read_submissions(tmp_path / "runs/tiny/slurm")] == [job]
    scancel([job])


def test_a_chain_waits_in_line(here: Cluster, options, tmp_path):
    profile = {"time": "0:10:00", "tasks_per_node": 2, "shared": ["/"], "requeue": False}
    profile["preflight"] = {"enabled": False}
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump({**profile, "chain": 3}))
    here_options = replace(options, cluster=str(tmp_path / "chain.yaml"))
    submission = submit(prepare(here_options))
    assert len(submission.jobs) == 3
    wait_until(
        lambda: [job.reason for job in squeue(submission.jobs[1:])] == ["Dependency"] * 2,
        20,
        "the rest of the chain waiting for its first job",
    )
    scancel(submission.jobs)


def test_a_sweep_is_one_array_whose_tasks_have_names_of_their_own(here, options, tmp_path):
    axes = ("engine.optimizer.lr=1e-3,3e-3,1e-2",)
    prepared = prepare(replace(held(options, tmp_path), axes=axes, sweep="rates"))
    submission = submit(prepared)
    assert [job.job for job in squeue([submission.job])] == [
        f"{submission.job}_{index}" for index in range(3)
    ]
    assert json.loads((tmp_path / "runs/rates/sweep.json").read_text())["job"] == submission.job
    (problem,) = check(prepared).problems
    names = " and ".join([f"{submission.job}_0, {submission.job}_1", f"{submission.job}_2"])
    assert f"jobs {names} of this run are pending (submitted by" in problem
    scancel([submission.job])


def test_what_a_person_types_prints_what_to_type_next(
    here: Cluster, options, tmp_path, capfd, monkeypatch
):
    from lmscale.cli.main import main

    folder = tmp_path / "runs with spaces/tiny"
    held(options, tmp_path)
    arguments = ["launch", "slurm", str(options.config), "--cluster", str(tmp_path / "held.yaml")]
    arguments += ["--nodes", "1-2", "--set", f"run.folder={folder}"]
    monkeypatch.setattr(sys, "argv", ["lmscale", *arguments])
    assert main(arguments) == 0
    out = capfd.readouterr().out
    (row,) = read_submissions(folder / "slurm")
    assert out.startswith(f"submitted job {row['job']}: tiny-")
    assert f"lmscale runs cancel {shlex.quote(str(folder))}\n" in out
    assert f"{folder}/slurm/job-{row['job']}.out\n" in out
    assert row["nodes"] == [1, 2] and row["command"][-2:] == ["--set", f"run.folder={folder}"]
    scancel([row["job"]])
