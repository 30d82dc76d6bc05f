"""A run's state, from recorded answers of a real Slurm and from what a run's folder says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.cancel import describe_makers, plan_cancel
from launcher.slurm import AccountedJob, QueuedJob, parse_accounting, parse_queue
from launcher.status import (
    SlurmAnswer,
    describe_wait,
    judge_run,
    newest_submission,
)
from lmscale.files.run_files import SLURM_FOLDER, SUBMISSIONS_FILE, read_submissions
from lmscale.runs.starts import EVENTS_FILE, Event, RunSigns, is_one_of, plan_starts, read_events

RECORDED = Path(__file__).with_name("recorded")
QUEUE = parse_queue((RECORDED / "squeue.txt").read_text())
LATER = parse_queue((RECORDED / "squeue_later.txt").read_text())
ACCOUNTS = parse_accounting((RECORDED / "sacct.txt").read_text())
NOW = max(job.starts_at or 0 for job in QUEUE if job.state == "RUNNING") + 6


# What the lab's jobs were submitted for.
NUMBERS = {"preempted": "28", "limit": "29", "nodefail": "30", "reqhold": "31", "fails": "32"}
NUMBERS |= {"hog": "33", "held": "34", "resources": "35", "priority": "36", "chain a": "38"}
NUMBERS |= {"later": "39", "cancelled": "41"}


def of(name: str, jobs: tuple[QueuedJob, ...] = QUEUE) -> QueuedJob:
    return next(job for job in jobs if job.job == NUMBERS[name])


def submission(job: str, *, jobs: list[str] | None = None, kind: str = "train") -> dict:
    return {"time": NOW - 60, "submission": "s", "job": job, "jobs": jobs or [job], "kind": kind}


def start(job: str, *, at: float = NOW - 10, restart: int = 0, step: int = -1) -> dict:
    row = {"event": "start", "time": at, "submission": "s", "job": job, "restart": restart}
    return {**row, "step": step, "nodes": "n1"}


def end(job: str, action: str, *, code: int = 75, at: float = NOW - 5, reason: str = "why") -> dict:
    row = {"event": "end", "time": at, "submission": "s", "job": job, "restart": 0, "step": 40}
    return {**row, "code": code, "reason": reason, "action": action}


def attempt(
    at: float, *, job: str | None = None, restart: int = 0, reason: str | None = None
) -> list[dict]:
    row = {"event": "start", "time": at, "attempt": 1, "job": job, "restart": restart}
    begin = {**row, "first_step": 0, "host": "n1", "world_size": 4, "zero_stage": 1}
    ended = {"event": "end", "time": at + 1, "attempt": 1, "step": 40, "reason": reason}
    return [begin, ended] if reason is not None else [begin]


def judge(
    job: str | None,
    *events: dict,
    attempts: list[dict] | None = None,
    queue: tuple[QueuedJob, ...] = QUEUE,
    accounts: tuple[AccountedJob, ...] = (),
    is_asked: bool = True,
    **signs,
):
    submissions = (submission(job),) if job else ()
    starts = plan_starts([Event.model_validate(row) for row in events], attempts or [])
    answer = SlurmAnswer(queue=queue, accounts=accounts) if is_asked else None
    return judge_run(RunSigns(submissions=submissions, starts=starts, **signs), answer, NOW)


def training(job: str | None = None, *, at: float = NOW - 8, restart: int = 0) -> dict:
    """What is known of a start whose ranks train."""
    return {"attempts": attempt(at, job=job, restart=restart), "last_sign": NOW - 1}


@pytest.mark.parametrize(
    ("name", "state", "words"),
    [
        ("hog", "queued", "is the next in line and waits for nodes (Resources)"),
        ("priority", "queued", "other jobs stand before it (Priority)"),
        ("chain a", "queued", "waits for an earlier job to end (Dependency)"),
        ("nodefail", "running", ""),
        ("later", "queued", "may begin in 3,593 s (BeginTime)"),
        ("held", "held", "held: `scontrol release 34` lets it go (JobHeldUser)"),
        ("reqhold", "held", "requeued and held: `scontrol release 31` lets it go (job requeued"),
        ("resources", "queued", "Nodes required for job are DOWN"),
        ("limit", "running", ""),
    ],
)
def test_a_recorded_job_has_its_state_in_words(name, state, words):
    job = of(name)
    events = [start(job.job)] if state == "running" else []
    found = judge(job.job, *events, **(training(job.job) if events else {}))
    assert (found.name, found.source, found.job) == (state, "squeue", job.job)
    assert found.detail.startswith(words)
    assert found.is_active


def test_the_reason_of_a_lost_node_names_it():
    words = describe_wait(of("nodefail", LATER), NOW)
    assert words == ("nodes that it needs are not available (ReqNodeNotAvail, UnavailableNodes:n3)")


def test_a_task_of_an_array_waits_for_those_that_run():
    task = next(job for job in QUEUE if job.job == "40_3")
    found = judge("40_3")
    assert (found.name, found.reason) == ("queued", "JobArrayTaskLimit")
    assert describe_wait(task, NOW).startswith("as many tasks of its array run as may at once")


def test_of_a_chain_the_job_that_runs_is_shown():
    signs = RunSigns(submissions=(submission("37", jobs=["37", "38"]),))
    assert judge_run(signs, SlurmAnswer(queue=QUEUE), NOW).job == "37"


def test_a_job_without_a_step_is_starting():
    assert judge("37").line == "starting: its batch script has not begun"
    assert judge("37", start("37")).line == "starting: no step yet, 10 s in"
    # The attempt of an earlier start does not count.
    events = [start("37", at=NOW - 110), start("37", restart=1)]
    found = judge("37", *events, **training("37", at=NOW - 100))
    assert found.name == "starting"


def test_a_job_that_writes_nothing_is_silent_and_one_that_stands_still_is_hung():
    at = NOW - 1000
    job = next(job for job in QUEUE if job.job == "37")
    old = tuple(QueuedJob(**{**vars(job), "starts_at": at}) if j is job else j for j in QUEUE)
    signs = {"attempts": attempt(at + 5, job="37")}
    found = judge("37", start("37", at=at), queue=old, last_sign=NOW - 130, **signs)
    assert found.line == "silent: for 130 s"
    text = "rank 3 on n2 in data for 61 s, the others wait in agree of step 812"
    found = judge("37", start("37", at=at), queue=old, last_sign=NOW, hang=text, **signs)
    assert found.line == f"hung: {text}"


def test_a_running_job_that_was_cancelled_is_ending():
    found = judge("37", start("37"), cancels=frozenset(["37"]), **training("37"))
    assert (found.name, found.detail) == ("ending", "asked to save and to end for good")


@pytest.mark.parametrize(
    ("event", "signs", "state"),
    [
        (end("32", "done", code=0), {}, "finished"),
        (end("32", "stop", code=2, reason="something to mend"), {}, "failed: something to mend"),
        (end("32", "stop", code=76, reason="guard"), {}, "failed: guard"),
        (end("32", "stop", code=75, reason="no step in three"), {}, "stopped: no step in three"),
        (end("32", "cancelled", reason="at step 40"), {}, "cancelled: at step 40"),
        (
            end("32", "cancelled", reason="cancelled, saved at step 4"),
            {},
            "cancelled: saved at step 4",
        ),
        (end("32", "requeue"), {"is_finished": True}, "finished"),
    ],
)
def test_of_a_job_that_is_gone_the_batch_script_has_the_last_word(event, signs, state):
    found = judge("32", start("32"), event, **signs)
    assert found.line == state
    assert not found.is_active


@pytest.mark.parametrize(
    ("row", "names"),
    [
        (start("7"), ["step", "nodes"]),
        (end("7", "stop"), ["step", "code", "reason", "action"]),
        ({**start("7"), "event": "exclude", "reason": "bad"}, ["nodes", "reason"]),
    ],
)
def test_a_row_of_the_batch_script_that_lacks_what_it_tells_is_passed_over(tmp_path, row, names):
    rows = [row, *({key: row[key] for key in row.keys() - {name}} for name in names)]
    path = tmp_path / SLURM_FOLDER / EVENTS_FILE
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_events(tmp_path) == [Event.model_validate(row)]


def test_what_the_batch_script_could_not_write_slurm_tells():
    gone: tuple[QueuedJob, ...] = ()
    for name, line in {
        "preempted": "lost: preempted; no end was written",
        "limit": "lost: time limit; no end was written",
        "fails": "lost: the batch script failed; no end was written",
        "cancelled": "cancelled: without saving",
    }.items():
        records = [a for a in ACCOUNTS if a.job == NUMBERS[name] and a.ended_at]
        accounts = tuple(records)
        found = judge(records[0].job, start(records[0].job), queue=gone, accounts=accounts)
        assert (found.line, found.source) == (line, "sacct")


def test_without_accounting_what_squeue_still_remembers_counts():
    found = judge("41", start("41"), accounts=())
    assert (found.line, found.source) == ("cancelled: without saving", "squeue")
    assert judge("32").line == "failed: the batch script failed, before it began"
    assert judge("99").line == "lost: it never began, and Slurm has forgotten it"
    assert judge("99", start("99")).line == "lost: no end was written"


@pytest.mark.parametrize("jobs", [[], None, [37]])
def test_a_submission_that_lists_no_jobs_of_a_chain_has_its_one(tmp_path, jobs):
    row = {**submission("37"), "jobs": jobs}
    (tmp_path / SUBMISSIONS_FILE).write_text(json.dumps(row) + "\n")
    signs = RunSigns(submissions=read_submissions(tmp_path))
    assert judge_run(signs, SlurmAnswer(queue=QUEUE), NOW).job == "37"
    assert judge_run(signs, None, NOW).job == "37"


def test_an_older_job_of_the_same_number_is_not_this_one():
    (record,) = [a for a in ACCOUNTS if a.job == NUMBERS["cancelled"]]
    old = AccountedJob(**{**vars(record), "submitted_at": NOW - 9999})
    assert judge("41", queue=(), accounts=(old,)).source == "folder"


def test_where_slurm_cannot_be_asked_the_folder_is_believed():
    assert judge("7", is_asked=False).line.startswith("queued: submitted ")
    assert judge("7", start("7"), is_asked=False).name == "starting"
    running = judge("7", start("7"), is_asked=False, **training("7"))
    assert (running.name, running.job, running.source) == ("running", "7", "folder")
    asked = judge("7", start("7"), end("7", "requeue"), is_asked=False)
    assert asked.line == "queued: requeued: why"
    assert judge("7", start("7"), end("7", "done", code=0), is_asked=False).name == "finished"


def test_a_run_without_slurm_is_judged_by_its_attempts():
    assert judge(None).line == "not started"
    assert judge(None, **training(), is_gone=False).line == "running"
    for reason, line in {
        "SIGTERM": "stopped: SIGTERM",
        "OutOfMemoryError": "failed: OutOfMemoryError",
    }.items():
        assert judge(None, attempts=attempt(NOW - 50, reason=reason)).line == line
    # Where no submission is told of, a batch script's start cannot be "starting" for ever.
    assert judge(None, start("7", at=NOW - 999_999_999)).line == "running"
    assert judge(None, start("7"), last_sign=NOW - 999).line == "silent: for 999 s"
    assert judge(None, start("7"), last_sign=NOW - 999, hang="rank 3").line == "hung: rank 3"
    other = attempt(NOW - 50)  # on a machine that cannot be looked at
    running = judge(None, attempts=other, last_sign=NOW - 3).line
    assert running == "running: last sign 3 s ago, from n1"
    silent = judge(None, attempts=other, last_sign=NOW - 999).line
    assert silent == "silent: for 999 s; n1 cannot be looked at from here"
    killed = [{**other[0], "process": {"pid": 4711, "machine": "m", "started": "7"}}]
    found = judge(None, attempts=killed, last_sign=NOW - 1, is_gone=True)
    assert found.line == "lost: killed: process 4711 on n1, its rank 0, is gone"
    finished = attempt(NOW - 50, reason="finished")
    assert judge(None, attempts=finished, is_finished=True).line == "finished"


def test_a_start_without_slurm_after_the_jobs_is_the_newest_word():
    events = (start("32"), end("32", "stop", code=2))
    found = judge("32", *events, attempts=attempt(NOW - 2), last_sign=NOW)
    assert (found.line, found.job) == ("running: last sign 0 s ago, from n1", None)


def test_an_older_copy_that_was_fenced_off_does_not_speak_for_the_newer_one():
    events = (start("7"), start("7", at=NOW - 9, restart=1), end("7", "fenced"))
    assert judge("7", *events, is_asked=False).name == "starting"
    assert judge("7", *events, is_asked=False, **training("7", restart=1)).name == "running"
    assert judge("7", *events).line == "lost: no end was written"


def test_a_look_at_the_nodes_alone_is_no_run():
    assert newest_submission([submission("5", kind="preflight")]) is None
    signs = RunSigns(submissions=(submission("5", kind="preflight"),))
    assert judge_run(signs, SlurmAnswer(queue=QUEUE), NOW).line == "not started"


def test_a_job_is_not_taken_for_another_that_begins_alike():
    assert is_one_of("40_3", ["40"]) and is_one_of("40", ["40"])
    assert not is_one_of("40", ["4"]) and not is_one_of("4", ["40"])
    assert not is_one_of("40_31", ["40_3"])


def test_cancelling_ends_what_waits_before_it_asks_what_runs():
    chain = submission("37", jobs=["37", "38"])
    plans = plan_cancel([chain], QUEUE)
    assert [(plan.job, plan.can_save) for plan in plans] == [("38", False), ("37", True)]
    assert not any(plan.can_save for plan in plan_cancel([chain], QUEUE, at_once=True))
    (again,) = plan_cancel([submission("37")], QUEUE, cancels=["37"])
    assert again.was_asked_before and "asked again to save" in again.line


def test_cancelling_leaves_jobs_alone_that_have_ended_and_saves_nothing_of_other_kinds():
    assert plan_cancel([submission("32")], QUEUE) == ()
    (plan,) = plan_cancel([submission("37", kind="evaluate")], QUEUE)
    assert (plan.done, plan.line) == ("cancelled", "job 37 (evaluate), on n2: cancelled")


def test_cancelling_a_run_says_which_jobs_still_make_its_data():
    made = [{"kind": "corpus", "job": "32", "output": ""}, {"kind": "shards", "job": "40"}]
    row = {**submission("38"), "pipeline": made}
    assert describe_makers([row], QUEUE) == [
        "its data is still made, which other runs may read: shards (job 40). "
        "`scancel 40` ends that too."
    ]
    assert describe_makers([submission("38")], QUEUE) == []


def test_cancelling_a_sweep_names_every_task():
    plans = plan_cancel([submission("40")], QUEUE)
    assert {(plan.job, plan.can_save) for plan in plans} == {
        ("40_0", True),
        ("40_1", True),
        ("40_2", False),
        ("40_3", False),
    }


jobs = st.sampled_from([job.job for job in QUEUE] + ["99"])
events = st.lists(
    st.one_of(
        st.builds(start, jobs, at=st.floats(NOW - 100, NOW)),
        st.builds(
            end,
            jobs,
            st.sampled_from("requeue requeued chain stop done fenced cancelled".split()),
            code=st.sampled_from([0, 1, 2, 75, 76, 137]),
            at=st.floats(NOW - 100, NOW),
        ),
    ),
    max_size=4,
)


@settings(deadline=None)
@given(
    job=jobs,
    events=events,
    queue=st.sampled_from([(), QUEUE, LATER]),
    accounts=st.sampled_from([(), ACCOUNTS]),
    is_asked=st.booleans(),
    began=st.none() | st.floats(NOW - 100, NOW),
    reason=st.sampled_from([None, "SIGTERM"]),
    is_local=st.booleans(),
)
def test_every_mixture_of_signs_has_a_state(
    job, events, queue, accounts, is_asked, began, reason, is_local
):
    found = judge(
        job,
        *events,
        queue=queue,
        accounts=accounts,
        is_asked=is_asked,
        attempts=attempt(began, job=None if is_local else job, reason=reason) if began else [],
        last_sign=began,
    )
    assert found.line and "None" not in found.line
    known = {one.job: one for one in queue if is_one_of(one.job, [job])}
    if found.source == "squeue" and found.is_active:
        assert found.job is not None and known[found.job].is_active
