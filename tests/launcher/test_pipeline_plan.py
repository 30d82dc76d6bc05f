"""What becomes of each stage of a pipeline, and what is said of it meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest
from slurm_cases import SMALL, make_request

from launcher.job import JobKind, Prepared
from launcher.pipeline import NEVER, Stage, behind, plan_stage, submit_stages
from launcher.plan import plan_job
from launcher.slurm import AccountedJob, QueuedJob
from launcher.status import SlurmAnswer, judge_run
from launcher.submit import prepare
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


def test_a_job_behind_an_array_waits_for_all_of_its_tasks_and_ends_if_one_fails():
    job = behind(prepared_of("tokenizer"), ["12"]).job
    assert "--dependency=afterok:12" in job.directives
    assert "--kill-on-invalid-dep=yes" in job.directives


@pytest.fixture
def stages(options, slurm, tmp_path) -> list[Stage]:
    """Corpus done, shards queued, and a training to submit; the tokenizer as well."""
    own = replace(options, nodes="1")
    return [
        Stage(kind="corpus"),
        Stage(kind="tokenizer", prepared=prepare(replace(own, kind="tokenizer"))),
        Stage(kind="shards", prepared=prepare(replace(own, kind="shards", tasks=2)), kept=("77",)),
        Stage(kind="train", prepared=prepare(own)),
    ]


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
