"""What is looked at before a job is submitted, and that it is submitted once.

Slurm's commands are stood in for by small scripts here; ``tests/slurm`` does it with a real one.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tiny_run import log_commit
from web_server import open_web

from launcher.checks import cancel_command, check, describe_rest
from launcher.job import Prepared
from launcher.options import LaunchOptions
from launcher.submit import (
    append_submission,
    prepare,
    submit,
    submitting,
)
from lmscale.config import dump_config
from lmscale.errors import ClusterError, ConfigError
from lmscale.files.run_files import read_submissions
from lmscale.runs.commits import append_removals


def queue(slurm: Path, job: str, state: str) -> None:
    (slurm / "queue").write_text(f"{job}|{job}|{state}|ada|n[1-2]|N/A|1:00:00|None|\n")


def with_profile(options: LaunchOptions, **changes) -> LaunchOptions:
    file = Path(options.cluster)
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changes}))
    return options


def test_a_run_that_has_all_it_needs_passes_and_nothing_is_written(options, slurm, tmp_path):
    prepared = prepare(options)
    findings = check(prepared)
    assert findings.problems == [] and findings.warnings == []
    assert "a step divides among 4 ranks" in findings.passed
    assert "Slurm would take it: Job 1 starts" in findings.passed
    assert (slurm / "tested.sh").read_text() == prepared.script
    assert not (tmp_path / "runs").exists() and not (slurm / "submitted").exists()


def test_what_was_submitted_is_written_down_beside_its_frozen_copy(
    options, slurm, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        sys, "argv", ["/x/lmscale", "launch", "slurm", "a.yaml", "--token", "s3cr3t"]
    )
    prepared = prepare(options)
    submission = submit(prepared)
    state = tmp_path / "runs/tiny/slurm"
    assert (slurm / "submitted").read_text() == f"--parsable {submission.folder}/job.sh\n"
    assert (Path(submission.folder) / "job.sh").read_text() == prepared.script
    (row,) = read_submissions(state)
    assert row["job"] == "101" and row["jobs"] == ["101"] and row["kind"] == "train"
    assert row["nodes"] == [2, 2] and row["cluster"] == "lab" and row["tasks"] is None
    assert row["folder"] == submission.folder == str(state / row["submission"])
    assert row["command"] == ["lmscale", "launch", "slurm", "a.yaml", "--token", "***"]
    assert {"time", "user", "host"} <= row.keys()


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED"])
def test_a_second_copy_is_refused_while_slurm_knows_the_first(options, slurm, state):
    submit(prepare(options))
    queue(slurm, "101", state)
    (problem,) = check(prepare(options)).problems
    assert problem.startswith(f"job 101 of this run is {state.lower()} (submitted by ada).")
    assert "lmscale runs cancel" in problem
    with pytest.raises(ClusterError, match="job 101 of this run"):
        submit(prepare(options))
    assert (slurm / "submitted").read_text().count("\n") == 1


def test_a_job_that_waits_for_a_reason_with_a_bar_in_it_is_still_there(options, slurm):
    submit(prepare(options))
    (slurm / "queue").write_text("101|101|PENDING|ada||N/A|1:00|held | ask ada|\n")
    (problem,) = check(prepare(options)).problems
    assert problem.startswith("job 101 of this run is pending (submitted by ada).")


def test_a_run_whose_job_has_ended_may_be_submitted_again(options, slurm, tmp_path):
    for job in ("101", "102"):
        assert submit(prepare(options)).job == job
        queue(slurm, job, "COMPLETED")
    rows = read_submissions(tmp_path / "runs/tiny/slurm")
    assert [row["job"] for row in rows] == ["101", "102"]
    assert len({row["folder"] for row in rows}) == 2


def test_an_evaluation_may_go_beside_a_running_training(options, slurm, tmp_path):
    submit(prepare(options))
    queue(slurm, "101", "RUNNING")
    submit(prepare(replace(options, kind="preflight")))
    assert [row["kind"] for row in read_submissions(tmp_path / "runs/tiny/slurm")] == [
        "train",
        "preflight",
    ]


def test_a_chain_is_submitted_whole(options, slurm, tmp_path):
    submission = submit(prepare(replace(options, chain=3)))
    assert submission.jobs == ("101", "102", "103")
    lines = set((slurm / "submitted").read_text().splitlines())
    assert lines == {f"--parsable {submission.folder}/job.sh"}  # each time the same script
    text = (Path(submission.folder) / "job.sh").read_text()
    assert "#SBATCH --dependency=singleton\n" in text and "#SBATCH --no-requeue\n" in text


def test_a_chain_that_breaks_off_leaves_no_job_and_no_trace(options, slurm, tmp_path):
    (slurm / "refuse-103").touch()
    with pytest.raises(ClusterError, match="sbatch refused: no more"):
        submit(prepare(replace(options, chain=3)))
    assert (slurm / "cancelled").read_text() == "--quiet 101 102\n"
    state = tmp_path / "runs/tiny/slurm"
    assert read_submissions(state) == []
    assert [path.name for path in state.iterdir() if not path.name.startswith(".")] == []


def _submit(options: LaunchOptions, gate, outcomes) -> None:
    gate.wait()
    try:
        outcomes.put(submit(prepare(options)).job)
    except ClusterError as error:
        outcomes.put(str(error))


def test_of_two_that_submit_at_once_one_waits_and_is_refused(options, slurm):
    script = (slurm / "sbatch").read_text()
    (slurm / "sbatch").write_text(script.replace("echo $number >", "sleep 0.5; echo $number >"))
    # What squeue shows follows from what sbatch did.
    (slurm / "squeue").write_text(
        f'#!/bin/bash\nwhile read -r _; do echo "101|101|PENDING|ada||N/A|1:00|None|"; '
        f"done < <(cat {slurm}/submitted 2>/dev/null)\n"
    )
    fork = multiprocessing.get_context("fork")
    gate, outcomes = fork.Barrier(2), fork.Queue()
    both = [fork.Process(target=_submit, args=(options, gate, outcomes)) for _ in range(2)]
    for process in both:
        process.start()
    told = sorted(outcomes.get(timeout=60) for _ in both)
    for process in both:
        process.join()
    assert told[0] == "101" and told[1].startswith("job 101 of this run is pending")
    assert (slurm / "submitted").read_text().count("\n") == 1


def test_the_right_to_submit_is_not_waited_for_without_end(tmp_path):
    with submitting(tmp_path), pytest.raises(ClusterError, match="has been submitting"):
        with submitting(tmp_path, seconds=0.2):
            pass
    with submitting(tmp_path):  # and it ends with its holder
        pass


def test_all_problems_of_a_submission_are_told_together(options, slurm, tmp_path):
    (tmp_path / "runs/tiny").mkdir(parents=True)
    (tmp_path / "runs/tiny/notes.txt").touch()
    (slurm / "sbatch").write_text(
        "#!/bin/bash\necho 'sbatch: error: no such partition' >&2\nexit 1\n"
    )
    with_profile(options, shared=["/elsewhere"])
    changed = replace(
        options,
        overrides=(
            f"tokenizer.folder={tmp_path}/none",
            f"stream.sources.a.shards={tmp_path}/none/a",
            f"evaluation.sets={{held: {tmp_path}/none/b}}",
        ),
    )
    told = "\n".join(check(prepare(changed)).problems)
    for words in (
        "is not empty and holds no run (found notes.txt)",
        f"{tmp_path}/none: there is no tokenizer here. Run `lmscale tokenizer train CONFIG`",
        f"stream.sources.a: {tmp_path}/none/a holds no manifest.json",
        f"evaluation.sets.held: {tmp_path}/none/b holds no manifest.json",
        f"{tmp_path}/runs/tiny is not below a folder that all nodes see (/elsewhere",
        "sbatch refused: no such partition",
    ):
        assert words in told


def test_a_profile_without_shared_folders_is_a_warning(options, slurm):
    (warning,) = check(prepare(with_profile(options, shared=[]))).warnings
    assert "names no shared folders: whether all nodes see" in warning


def test_an_interpreter_that_nodes_may_not_have_is_a_warning(options, slurm, tmp_path, tiny_data):
    shared = [str(tmp_path), str(tiny_data)]
    findings = check(prepare(with_profile(options, shared=shared, python="/opt/py/bin/python")))
    assert findings.problems == []
    (warning,) = findings.warnings
    assert "/opt/py/bin/python is not below" in warning


def test_problems_of_configuration_profile_and_options_are_told_together(options):
    with_profile(options, time="90")
    changed = replace(
        options, overrides=("train.step=3",), nodes="8-4", tasks=3, axes=("a",), sweep=None
    )
    with pytest.raises(ConfigError) as caught:
        prepare(changed)
    told = "\n".join(caught.value.problems)
    for words in (
        'time: "90" is not of the form',
        "train.step: unknown key. Did you mean steps?",
        "--nodes 8-4: give a number",
        "--array a: write it as section.key=value1,value2.",
        "--tasks has no meaning for --job train",
    ):
        assert words in told
    assert len(caught.value.problems) == 5


@pytest.mark.parametrize("kind", ["corpus", "tokenizer", "shards"])
def test_a_data_job_has_no_nodes_to_choose(options, kind):
    with pytest.raises(ConfigError, match=f"--nodes has no meaning for --job {kind}"):
        prepare(replace(options, kind=kind))


def test_inputs_elsewhere_are_looked_for_before_a_data_job_is_submitted(options, slurm):
    with open_web({"/a.jsonl": b"{}"}) as web:
        inputs = [f"{web.url}/a.jsonl", f"{web.url}/b.jsonl", "http://127.0.0.1:9/c.jsonl"]
        sources = json.dumps({"far": {"inputs": inputs}})
        job = replace(options, kind="corpus", nodes="1", tasks=2)
        findings = check(prepare(replace(job, overrides=(f"corpus.sources={sources}",))))
    (problem,), (warning,) = findings.problems, findings.warnings
    assert problem.startswith("corpus.sources.far.inputs: http://127.0.0.1")
    assert "/b.jsonl: there is no such file" in problem
    assert "c.jsonl: could not be read" in warning and "The job tries it again." in warning


def test_nodes_that_a_preflight_found_bad_are_left_out(options, tmp_path):
    from launcher.preflight import cordon

    file = tmp_path / "cordon"
    cordon.cordon(file, "n7", reason="slow", job="12")
    prepared = prepare(with_profile(options, preflight={"cordon_file": str(file)}))
    assert prepared.job.excluded == ("n7",)
    assert "#SBATCH --exclude=n7\n" in prepared.script
    assert prepared.warnings == (f"n7 will be left out: found bad by a preflight ({file}).",)
    profile = {"preflight": {"cordon_file": str(file)}, "exclude": ["n[1-2]", "n7"]}
    assert "#SBATCH --exclude=n[1-2],n7\n" in prepare(with_profile(options, **profile)).script


def sweep_of(options: LaunchOptions, *values: str, name: str | None = None) -> Prepared:
    axis = f"engine.optimizer.lr={','.join(values)}"
    return prepare(replace(options, axes=(axis,), sweep=name))


def test_a_sweep_is_one_job_array_with_a_table_of_what_it_tries(options, slurm, tmp_path):
    prepared = sweep_of(options, "1e-3", "3e-3", name="rates")
    submission = submit(prepared)
    root = tmp_path / "runs/rates"
    table = json.loads((root / "sweep.json").read_text())
    assert table["name"] == "rates" and table["keys"] == ["engine.optimizer.lr"]
    assert table["job"] == submission.job == "101"
    assert table["runs"] == [
        {
            "index": index,
            "run": f"rates-00{index}",
            "folder": str(root / f"rates-00{index}"),
            "values": {"engine.optimizer.lr": value},
        }
        for index, value in enumerate(("1e-3", "3e-3"))
    ]
    assert table["base_config"]["run"]["name"] == "tiny"
    configs = sorted((Path(submission.folder) / "configs").iterdir())
    assert [path.name for path in configs] == ["000.yaml", "001.yaml"]
    assert cancel_command(prepared.job) == f"lmscale runs cancel {tmp_path}/runs --sweep rates"


def test_the_same_sweep_may_be_submitted_again_and_another_of_its_name_may_not(options, slurm):
    submit(sweep_of(options, "1e-3", "3e-3"))
    assert check(sweep_of(options, "1e-3", "3e-3")).problems == []
    (problem,) = check(sweep_of(options, "1e-3", "3e-4")).problems
    assert "holds a sweep over other values (engine.optimizer.lr, 2 runs)" in problem
    queue(slurm, "101_1", "RUNNING")
    (problem,) = check(sweep_of(options, "1e-3", "3e-3")).problems
    assert "job 101_1 of this run is running" in problem


def test_a_line_torn_by_a_full_disk_hides_no_other(options, slurm, tmp_path):
    submission = submit(prepare(options))
    state = tmp_path / "runs/tiny/slurm"
    with open(state / "submissions.jsonl", "a") as file:
        file.write('{"job": "7", "jo\n')
    append_submission(state, replace(submission, job="102", jobs=("102",)))
    assert [row["job"] for row in read_submissions(state)] == ["101", "102"]


def begun(options: LaunchOptions, folder: Path, step: int) -> None:
    """The folder of a run with this configuration and a checkpoint."""
    folder.mkdir(parents=True)
    log_commit(folder, step)
    (folder / "config.yaml").write_text(dump_config(prepare(options).request.config))


def test_what_a_run_with_checkpoints_cannot_go_on_with_is_told_before(options, slurm, tmp_path):
    begun(options, tmp_path / "runs/tiny", step=7)
    free = ("model.dropout=0.1", "train.steps=7")
    assert check(prepare(replace(options, overrides=free))).problems == []
    changes = ("run.seed=99", "model.norm_eps=0.5", "stream.window_shards=77", "train.steps=6")
    told = check(prepare(replace(options, overrides=changes))).problems
    assert len(told) == 4
    assert "train.steps = 6, but the newest checkpoint" in told[0] and "has 7 steps" in told[0]
    for key in ("run.seed = 99", "model.norm_eps = 0.5", "stream.window_shards = 77"):
        assert any(line.startswith(f"{key}, but the run began with ") for line in told)


def test_without_a_checkpoint_a_run_may_begin_anew_with_other_settings(options, slurm, tmp_path):
    begun(options, tmp_path / "runs/tiny", step=7)
    append_removals(tmp_path / "runs/tiny", [7])
    assert check(prepare(replace(options, overrides=("run.seed=99",)))).problems == []


def test_a_refusal_of_slurm_is_told_with_what_was_asked_for_and_where(options, slurm):
    (slurm / "sbatch").write_text(
        "#!/bin/bash\necho 'sbatch: error: invalid partition specified: gpux' >&2\nexit 1\n"
    )
    (slurm / "sinfo").write_text("#!/bin/bash\nprintf 'gpu\\ncpu\\ngpu\\n'\n")
    (slurm / "sinfo").chmod(0o755)
    (problem,) = check(prepare(with_profile(options, partition="gpux"))).problems
    assert problem.startswith("sbatch refused: invalid partition specified: gpux. By the profile ")
    for words in (options.cluster, "--partition=gpux --nodes=2 ", "--time=1:00:00."):
        assert words in problem
    assert problem.endswith("Partitions here: gpu, cpu.")


def test_an_interpreter_that_all_nodes_would_see_must_be_there(options, slurm):
    (problem,) = check(prepare(with_profile(options, python="/nope/python"))).problems
    assert problem.startswith("/nope/python: there is no interpreter here that can be run")


def test_how_many_tasks_of_a_data_job_have_work_is_told(options):
    prepared = prepare(replace(options, kind="corpus", nodes="1", tasks=2, only=(1,)))
    assert describe_rest(prepared.job) == "1 of 2 tasks has work"
