"""What becomes of each stage of a pipeline, and what is said of it meanwhile."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from slurm_cases import SMALL, make_request

from launcher.job import JobKind, Prepared
from launcher.pipeline import NEVER, Stage, behind, plan_stage, submit_stages
from launcher.plan import plan_job
from launcher.slurm import AccountedJob, QueuedJob
from launcher.standing import describe_other_options, refuse_failed, refuse_other_settings
from launcher.status import SlurmAnswer, judge_run
from launcher.submit import prepare, submit_held, submitting
from launcher.upstream import describe_upstream
from lmscale.errors import ClusterError
from lmscale.files.run_files import read_submissions
from lmscale.runs.starts import RunSigns


def prepared_of(kind: JobKind) -> Prepared:
    request = make_request(SMALL, tasks=3)
    return Prepared(request=request, job=plan_job(request, kind), script="", warnings=())


def queued(job: str, state: str = "PENDING", reason: str = "Dependency") -> QueuedJob:
    return QueuedJob(
        job=job,
        raw_job=job,
        state=state,
        reason=reason,
        user="ada",
        nodes="",
        starts_at=None,
        left_seconds=None,
    )


NEW = Stage(kind="corpus", prepared=prepared_of("corpus"))
KEPT = replace(NEW, kept=("12",))


@pytest.mark.parametrize(
    ("live", "after", "before", "kept", "replaced"),
    [
        # Nothing of it is in the queue: it is submitted.
        ([], None, None, (), ()),
        ([], "afterok:7", NEW, (), ()),
        # It runs, or waits for what has ended well since: it stays.
        ([queued("13", "RUNNING", "")], None, None, ("13",), ()),
        ([queued("13")], "afterok:12", None, ("13",), ()),
        (
            [queued("13_0", "RUNNING", ""), queued("13_1", reason="Resources")],
            None,
            None,
            ("13",),
            (),
        ),
        # It waits for the very jobs that are before it: it stays.
        ([queued("13")], "afterok:12", KEPT, ("13",), ()),
        # It waits for what will not come.
        ([queued("13", reason=NEVER)], "afterok:12", None, (), ("13",)),
        ([queued("13")], "afterok:12", NEW, (), ("13",)),
        ([queued("13")], "afterok:11", KEPT, (), ("13",)),
        ([queued("13_0"), queued("13_1")], None, KEPT, (), ("13_0", "13_1")),
    ],
)
def test_a_stage_is_kept_where_its_jobs_will_come_true_and_else_submitted(
    live, after, before, kept, replaced
):
    found = {job.job: job for job in live}
    stage = plan_stage(prepared_of("tokenizer"), found, after=after, before=before)
    assert (stage.kept, stage.replaced, stage.is_new) == (kept, replaced, not kept)


@pytest.mark.parametrize("before", [NEW, KEPT])
def test_a_stage_that_has_begun_while_its_data_is_not_whole_is_told(before):
    live = {"13": queued("13", "RUNNING", "")}
    with pytest.raises(ClusterError, match=r"job 13 \(train\) has begun, and its corpus is not"):
        plan_stage(prepared_of("train"), live, after="afterok:12", before=before)


def test_a_stage_that_has_begun_behind_a_refused_one_is_not_told_as_well():
    live = {"13": queued("13", "RUNNING", "")}
    before = Stage(kind="corpus", is_refused=True)
    assert plan_stage(prepared_of("train"), live, after="afterok:12", before=before).kept == ("13",)


def test_a_job_behind_an_array_waits_for_all_of_its_tasks_and_ends_if_one_fails():
    job = behind(prepared_of("tokenizer"), ["12"]).job
    assert "--dependency=afterok:12" in job.directives
    assert "--kill-on-invalid-dep=yes" in job.directives


def put_in_queue(slurm: Path, prepared: Prepared, *jobs: str, state: str = "PENDING") -> None:
    rows = "".join(f"{job}|{job}|{state}|ada|n[1-2]|N/A|1:00:00|None|\n" for job in jobs)
    (slurm / f"queue---name={prepared.job.name}").write_text(rows)


@pytest.fixture
def stages(options, slurm, tmp_path) -> list[Stage]:
    """Corpus done, shards queued, and a training to submit; the tokenizer as well."""
    own = replace(options, nodes="1")
    shards = prepare(replace(own, kind="shards", tasks=2))
    put_in_queue(slurm, shards, "77_0", "77_1")
    return [
        Stage(kind="corpus"),
        Stage(kind="tokenizer", prepared=prepare(replace(own, kind="tokenizer"))),
        Stage(kind="shards", prepared=shards, kept=("77",)),
        Stage(kind="train", prepared=prepare(own)),
    ]


def test_what_somebody_has_submitted_or_ended_meanwhile_is_told_and_nothing_is_submitted(
    stages, slurm
):
    put_in_queue(slurm, stages[3].prepared, "99")
    put_in_queue(slurm, stages[2].prepared, "77_0", "77_1", state="CANCELLED")
    with pytest.raises(ClusterError) as caught:
        submit_stages(stages)
    ended, other, again = caught.value.problems
    assert ended == "job 77 (shards) has ended meanwhile."
    assert other == "job 99 (train) was submitted meanwhile."
    assert "give the same command again" in again
    assert not (slurm / "submitted").exists()


def test_two_that_submit_at_once_do_not_mix_their_jobs(stages, slurm, monkeypatch):
    monkeypatch.setattr("launcher.pipeline.submitting", partial(submitting, seconds=0.0))
    last = stages[3].prepared.job.state_folder
    with submitting(last), pytest.raises(ClusterError, match="has been submitting for this folder"):
        submit_stages(stages)
    assert not (slurm / "submitted").exists()


def submitted(options, kind: JobKind = "train") -> tuple[Prepared, dict]:
    """A job, and the row of its submission."""
    prepared = prepare(
        replace(options, nodes="1", kind=kind, tasks=2 if kind == "shards" else None)
    )
    submit_held(prepared)
    (row,) = read_submissions(prepared.job.state_folder)
    return prepared, row


def test_a_job_that_would_train_with_other_settings_does_not_stay(options, slurm):
    prepared, row = submitted(options)
    refuse_other_settings(prepared, row, "scancel 101")
    here = ("train.steps=9", "run.seed=3")
    other = prepare(replace(options, nodes="1-2", overrides=here))
    with pytest.raises(ClusterError) as caught:
        refuse_other_settings(other, row, "scancel 101")
    told = str(caught.value)
    assert told.startswith("job 101 was submitted with other settings: ")
    steps = prepared.request.config.train.steps
    for words in (f"train.steps is {steps}, here 9", "--nodes is 1, here 1-2", "`scancel 101`"):
        assert words in told
    assert describe_other_options(prepared, row) == ""
    asked = prepare(replace(options, nodes="1", asked={"partition": "debug"}))
    words = "as it was submitted: partition is None, here 'debug'"
    assert describe_other_options(asked, row) == words
    behind_another = prepare(replace(options, nodes="1", after="77"))
    words = f"as it was submitted: --after is None, here {behind_another.job.after!r}"
    assert describe_other_options(behind_another, row) == words


def test_data_that_another_configuration_shares_may_have_another_training(options, slurm):
    prepared, row = submitted(options, "shards")
    own = replace(options, nodes="1", kind="shards", tasks=5)
    refuse_other_settings(
        prepare(replace(own, overrides=("train.steps=9", "run.name=b"))), row, "scancel 101"
    )
    with pytest.raises(ClusterError, match="shards.max_bytes is .*, here 99999"):
        refuse_other_settings(
            prepare(replace(own, overrides=("shards.max_bytes=99999",))), row, "scancel 101"
        )
    sweep = prepare(replace(options, nodes="1", axes=("train.steps=3,4",)))
    submit_held(sweep)
    (row,) = read_submissions(sweep.job.state_folder)
    refuse_other_settings(sweep, row, "end")
    other = prepare(replace(options, nodes="1", axes=("train.steps=3,5",)))
    with pytest.raises(ClusterError, match="train.steps is 4, here 5"):
        refuse_other_settings(other, row, "end")


def test_an_array_of_which_a_task_has_failed_is_not_waited_for(slurm):
    going = (queued("12_0", "RUNNING", ""), queued("12_2", "COMPLETED", ""))
    refuse_failed(prepared_of("corpus"), ("12",), going)
    with pytest.raises(ClusterError, match=r"the corpus \(job 12\) ended as failed.*scancel 12"):
        refuse_failed(prepared_of("corpus"), ("12",), (*going, queued("12_1", "FAILED", "")))


def test_what_is_new_is_submitted_behind_what_is_not_done_before_it(stages, slurm, tmp_path):
    made = submit_stages(stages)
    assert {kind: submission.job for kind, submission in made.items()} == {
        "tokenizer": "101",
        "train": "102",
    }
    assert made["tokenizer"].after is None and made["train"].after == "afterok:77"
    (row,) = read_submissions(tmp_path / "runs/tiny/slurm")
    assert [(s["kind"], s["job"]) for s in row["pipeline"]] == [
        ("tokenizer", "101"),
        ("shards", "77"),
    ]
    assert row["pipeline"][1]["output"].endswith("/.slurm/job-77_*.out")


def test_a_refusal_leaves_no_job_of_the_pipeline(stages, slurm):
    (slurm / "refuse-102").touch()
    with pytest.raises(ClusterError, match="sbatch refused: no more"):
        submit_stages(stages)
    assert (slurm / "cancelled").read_text() == "--quiet 101\n"


def test_a_job_that_can_never_begin_is_cancelled_before_the_one_in_its_place(stages, slurm):
    stages[1] = replace(stages[1], replaced=("55",))
    submit_stages(stages)
    assert (slurm / "cancelled").read_text() == "--quiet 55\n"


ROW = {
    "time": 1000.0,
    "submission": "a",
    "job": "15",
    "jobs": ["15"],
    "kind": "train",
    "pipeline": [
        {"kind": "corpus", "job": "12", "output": "/c/job-12_*.out"},
        {"kind": "shards", "job": "14", "output": "/s/job-14_*.out"},
    ],
}


def state_of(*queue: QueuedJob, accounts: tuple[AccountedJob, ...] = (), **signs) -> str:
    answer = SlurmAnswer(queue=queue, accounts=accounts)
    return judge_run(RunSigns(**{"submissions": (ROW,), **signs}), answer, 2000.0).line


def test_a_run_says_what_of_its_pipeline_it_waits_for():
    going = (queued("12_0", "COMPLETED", ""), queued("12_1", "RUNNING", ""), queued("14_0"))
    assert state_of(queued("15"), *going) == (
        "queued: waits for the corpus (job 12: 1 running), then the shards (job 14)"
    )
    done = (queued("12_0", "COMPLETED", ""), queued("14_0"), queued("14_1", reason="Priority"))
    assert state_of(queued("15"), *done) == "queued: waits for the shards (job 14: 2 pending)"
    held = (queued("12_0", "REQUEUE_HOLD", ""), queued("12_1", reason="JobHeldUser"))
    assert "the corpus (job 12: 1 held, 1 requeue_hold)" in state_of(queued("15"), *held)
    assert "waits for the shards" not in state_of(queued("15", reason="Resources"), *done)


def test_a_run_whose_pipeline_failed_says_that_it_will_never_begin_and_what_to_do():
    failed = (queued("12_0", "COMPLETED", ""), queued("12_1", "FAILED", "NonZeroExitCode"))
    why = "it will never begin, for the corpus (job 12) ended as failed: its output is "
    again = "/c/job-12_*.out. Mend that and give the same command again"
    assert state_of(queued("15", reason=NEVER), *failed) == f"queued: {why}{again}"
    assert state_of(queued("15", "CANCELLED", NEVER), *failed) == f"cancelled: {why}{again}"


def test_the_accounting_knows_what_the_queue_has_forgotten():
    def account(job: str, state: str) -> AccountedJob:
        times = {"submitted_at": 1000.0, "started_at": None, "ended_at": 1500.0}
        return AccountedJob(job=job, state=state, nodes="", **times)

    ended = (account("15", "CANCELLED"), account("12_1", "NODE_FAIL"), account("12_1", "TIMEOUT"))
    assert "the corpus (job 12) ended as timeout" in state_of(accounts=ended)


def test_a_run_that_a_person_has_cancelled_is_no_run_that_never_begins():
    line = state_of(
        queued("15", "CANCELLED", ""), queued("12_0", "FAILED", ""), cancels=frozenset(["15"])
    )
    assert line == "cancelled: before it began"


def test_nothing_is_said_of_jobs_that_slurm_has_forgotten():
    assert describe_upstream(ROW["pipeline"], (), ()) == ("", True)
