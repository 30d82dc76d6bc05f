"""What a training's batch script decides, run by bash with stand-ins for Slurm's commands.

The stand-ins (batch_attempts.py) give answers that a test cluster seldom or never gives;
tests/slurm runs the script under a real Slurm.
"""

from __future__ import annotations

import json

import pytest
from batch_attempts import BODIES, Submission

CHAIN = {"requeue": False, "chain": 3}
# A preflight, of which the judgement names a bad node, or none is fit.
BAD_NODE = """\
case "$*" in
*" probe "*) ;;
*" judge "*)
  printf 'n2\\tGPUs alive: 7 GPUs\\n' >"$RUN/slurm/preflight/$LMSCALE_ATTEMPT/bad-nodes"
  exit 1
  ;;
*) exit 98 ;;
esac"""
NONE_FIT = 'case "$*" in *" judge "*) exit 2 ;; *" probe "*) ;; *) exit 98 ;; esac'
CRASH = 'case "$*" in *launcher.rank*) leave 0 1; exit 1 ;; esac'


def test_ranks_that_were_stopped_put_the_job_back_into_the_queue(tmp_path):
    end = Submission(tmp_path).attempt("commit 4; leave 0 75; leave 1 75; exit 75")
    assert (end.code, end.action, end.row["code"], end.row["step"]) == (75, "requeue", 75, 4)
    assert "scontrol requeue 7" in end.calls


def test_ranks_that_finished_are_done(tmp_path):
    end = Submission(tmp_path).attempt("commit 4; leave 0 0; leave 1 0")
    assert (end.code, end.action) == (0, "done") and not end.called("requeue")


def test_ranks_that_stopped_early_are_done_and_the_script_says_why(tmp_path):
    why = "stopped early at step 4: evaluation/b/loss did not fall since step 2 (3.25)"
    row = json.dumps({"event": "end", "attempt": 1, "reason": why, "crc": "00000000"})
    rows = f"echo '{row}' >>\"$RUN/attempts.jsonl\""
    end = Submission(tmp_path).attempt(f"{rows}; commit 4; leave 0 0; leave 1 0")
    assert (end.code, end.action, end.row["reason"]) == (0, "done", why)


@pytest.mark.parametrize("code", [2, 76])
def test_a_mistake_or_the_guard_stops_it_though_another_rank_was_killed(tmp_path, code):
    end = Submission(tmp_path).attempt(f"commit 4; leave 0 {code}; exit 137")
    assert (end.code, end.action, end.row["code"]) == (code, "stop", code)
    assert not end.called("requeue")


def test_a_crash_after_progress_requeues_and_a_second_one_without_progress_stops(tmp_path):
    submission = Submission(tmp_path)
    first = submission.attempt("commit 4; leave 0 1; exit 1")
    assert first.action == "requeue" and "scontrol requeue 7" in first.calls
    second = submission.attempt("commit 5; leave 0 1; exit 1", restart=1)
    assert second.action == "requeue"
    third = submission.attempt("leave 0 1; exit 1", restart=2)
    assert (third.code, third.action) == (1, "stop") and not third.called("requeue")
    assert "no step was committed since the last restart" in third.row["reason"]


def test_a_commit_that_was_removed_since_is_no_progress(tmp_path):
    submission = Submission(tmp_path)
    submission.attempt("commit 4; leave 0 1; exit 1")
    rewound = submission.attempt("commit 6; remove 6; leave 0 1; exit 1", restart=1)
    assert (rewound.code, rewound.action) == (1, "stop")
    again = Submission(tmp_path / "late").attempt("commit 8; commit 4; leave 0 1; exit 1")
    assert again.row["step"] == 8


def test_a_crash_before_the_first_step_is_tried_once_more(tmp_path):
    submission = Submission(tmp_path)
    assert submission.attempt("exit 1").action == "requeue"
    assert submission.attempt("exit 1", restart=1).action == "stop"


def test_a_crash_after_an_attempt_that_only_left_a_node_out_is_not_the_second_one(tmp_path):
    submission = Submission(tmp_path, preflight=True)
    excluded = submission.attempt(BAD_NODE)
    assert (excluded.code, excluded.action) == (75, "requeue")
    changes = [call for call in excluded.calls if not call.startswith(("scontrol show", "srun"))]
    assert changes[-3:] == [
        "scontrol requeuehold 7",
        "scontrol update JobId=7 ExcNodeList=n2",
        "scontrol release 7",
    ]
    assert submission.attempt(CRASH, restart=1).action == "requeue"
    assert submission.attempt(CRASH, restart=2).action == "stop"


def test_a_crash_after_a_preemption_is_not_the_second_one(tmp_path):
    submission = Submission(tmp_path)
    requeued = "JobId=7 JobState=COMPLETING Reason=None Restarts=1"
    preempted = submission.attempt("leave 0 1; exit 143", record=requeued)
    assert preempted.action == "requeued" and not preempted.called("scontrol requeue ")
    record = requeued.replace("COMPLETING", "RUNNING")
    assert submission.attempt("leave 0 1; exit 1", restart=1, record=record).action == "requeue"


def test_three_attempts_in_a_row_without_a_step_are_enough(tmp_path):
    submission = Submission(tmp_path)
    stopped = "commit 4; leave 0 75; exit 75"
    actions = [submission.attempt(stopped, restart=n).action for n in range(3)]
    assert actions == ["requeue", "requeue", "stop"]


FULL = r"fault 0 'disk full\n'; fault 1 'disk full\n'; leave 0 75; leave 1 75; exit 75"
DIFFERS = r"fault 1 'rank 3 on n2 differs\nn2\tmemory: rank 3 held wrong \"values\"\n'"


def test_a_full_disk_is_named_and_no_request_to_stop(tmp_path):
    end = Submission(tmp_path).attempt(f"commit 4; {FULL}")
    assert (end.code, end.action, end.row["code"], end.row["fault"]) == (
        75,
        "requeue",
        75,
        "disk full",
    )
    assert end.row["reason"] == "disk full, saved at step 4, restart 1 of at most 20"
    assert "scontrol requeue 7" in end.calls and not end.called("ExcNodeList")


def test_a_disk_that_stays_full_stops_after_three_attempts_without_a_step(tmp_path):
    submission = Submission(tmp_path)
    ends = [submission.attempt(f"commit 4; {FULL}", restart=n) for n in range(3)]
    assert [end.action for end in ends] == ["requeue", "requeue", "stop"]
    assert ends[2].row["reason"] == "disk full; three attempts in a row committed no step"


def test_faults_that_ranks_name_count_like_failures(tmp_path):
    submission = Submission(tmp_path, max_restarts=2)
    srun = [FULL, "leave 0 1; exit 1", f"{DIFFERS}; exit 75"]
    ends = [submission.attempt(f"commit {n + 1}; {body}", restart=n) for n, body in enumerate(srun)]
    assert [end.action for end in ends] == ["requeue", "requeue", "stop"]
    assert ends[2].row["reason"].startswith("rank 3 on n2 differs, after 2 restarts")
    later = Submission(tmp_path / "later", max_restarts=1)
    assert later.attempt(f"commit 1; {FULL}").action == "requeue"
    assert later.attempt("commit 2; leave 0 1; exit 1", restart=1).action == "stop"


@pytest.mark.parametrize("code", [75, 143])  # srun kills the others when the first one has ended
@pytest.mark.parametrize("preflight", [False, True])
def test_a_node_whose_rank_differs_is_left_out_of_the_next_attempt(tmp_path, preflight, code):
    submission = Submission(tmp_path, preflight=preflight)
    srun = f'case "$*" in *launcher.rank*) commit 4; {DIFFERS}; leave 1 75; exit {code} ;; esac'
    end = submission.attempt(srun)
    assert (end.code, end.action, end.row["fault"]) == (75, "requeue", "rank 3 on n2 differs")
    changes = [call for call in end.calls if not call.startswith(("scontrol show", "srun"))]
    assert changes[-3:] == [
        "scontrol requeuehold 7",
        "scontrol update JobId=7 ExcNodeList=n2",
        "scontrol release 7",
    ]
    assert not end.called("scontrol requeue ")
    (excluded,) = [row for row in submission.rows() if row["event"] == "exclude"]
    assert excluded["nodes"] == "n2"
    assert excluded["reason"] == "memory: rank 3 held wrong  values "
    # A crash after it is not the second failure without a step.
    assert submission.attempt(CRASH, restart=1).action == "requeue"


def test_a_node_whose_rank_differs_goes_into_the_cordon_file(tmp_path):
    cordon = {"enabled": False, "cordon_file": str(tmp_path / "bad nodes")}
    submission = Submission(tmp_path, preflight=False, shared=[str(tmp_path)], cordon=cordon)
    end = submission.attempt(f'case "$*" in *launcher.rank*) {DIFFERS}; exit 75 ;; esac')
    (call,) = [call for call in end.calls if "launcher.preflight cordon" in call]
    assert call.startswith("srun ") and f"--file {tmp_path}/bad nodes --node n2 --reason" in call


def test_in_a_chain_the_next_jobs_leave_out_a_node_whose_rank_differs(tmp_path):
    submission = Submission(tmp_path, **CHAIN)
    end = submission.attempt(f"commit 4; {DIFFERS}; leave 0 75; exit 75", squeue="echo 8; echo 9")
    assert end.action == "chain" and end.row["fault"] == "rank 3 on n2 differs"
    updates = [call for call in end.calls if call.startswith("scontrol update")]
    assert updates == [f"scontrol update JobId={job} ExcNodeList=n2" for job in (8, 9)]


@pytest.mark.parametrize("code", [2, 76])
def test_a_mistake_counts_more_than_a_fault(tmp_path, code):
    end = Submission(tmp_path).attempt(f"{DIFFERS}; leave 0 {code}; exit {code}")
    assert (end.code, end.action) == (code, "stop") and "fault" not in end.row


def test_failures_are_counted_up_to_the_most_that_the_profile_allows(tmp_path):
    submission = Submission(tmp_path, max_restarts=2)
    steps = [(0, "leave 0 75; exit 75"), (1, "leave 0 1; exit 1"), (2, "exit 137"), (3, "exit 1")]
    ends = [submission.attempt(f"commit {n + 1}; {srun}", restart=n) for n, srun in steps]
    assert [end.action for end in ends] == ["requeue", "requeue", "requeue", "stop"]
    assert "after 2 restarts" in ends[-1].row["reason"]


def test_a_cancelled_job_does_not_come_back(tmp_path):
    record = "JobId=7 JobState=COMPLETING Reason=None Dependency=(null) Restarts=0"
    end = Submission(tmp_path).attempt("commit 4; leave 0 75; exit 75", record=record)
    assert end.action == "cancelled" and not end.called("requeue")


def test_a_job_that_was_noted_as_cancelled_does_not_come_back(tmp_path):
    end = Submission(tmp_path).attempt('echo 7 >"$RUN/slurm/cancel"; leave 0 75; exit 75')
    assert end.action == "cancelled" and not end.called("requeue")


@pytest.mark.parametrize("chain", [{}, CHAIN])
def test_a_preempted_job_that_slurm_does_not_requeue_is_not_cancelled(tmp_path, chain):
    record = "JobId=7 JobState=COMPLETING Reason=None Restarts=0 PreemptTime=2026-11-22T01:28:48"
    submission = Submission(tmp_path, **chain)
    end = submission.attempt("commit 4; leave 0 75; exit 75", record=record)
    assert end.action == ("chain" if chain else "requeue")
    assert not (submission.job.frozen_folder / "ended").exists()


def test_a_job_whose_preemption_never_came_is_cancelled_all_the_same(tmp_path):
    record = "JobId=7 JobState=COMPLETING Reason=None Restarts=0 PreemptTime=None"
    end = Submission(tmp_path).attempt("leave 0 75; exit 75", record=record)
    assert end.action == "cancelled"


def test_an_owner_that_cannot_be_read_is_no_other_attempt(tmp_path):
    end = Submission(tmp_path).attempt('rm "$RUN/slurm/owner"; commit 4; leave 0 75; exit 75')
    assert end.action == "requeue" and "scontrol requeue 7" in end.calls


def test_an_attempt_that_another_one_has_taken_over_leaves_the_queue_alone(tmp_path):
    end = Submission(tmp_path).attempt('echo 7.1 >"$RUN/slurm/owner"; leave 0 75; exit 75')
    assert end.action == "fenced" and not end.called("requeue") and not end.called("scancel")


def test_a_controller_that_is_away_for_a_while_still_requeues_the_job(tmp_path):
    away = """\
if [[ $1 == show ]]; then cat "$FAKES/record"; exit; fi
(($(grep -c "scontrol requeue" "$FAKES/calls") > 2)) && exit
echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2
exit 1"""
    end = Submission(tmp_path).attempt("commit 4; leave 0 75; exit 75", scontrol=away)
    assert (end.code, end.action) == (75, "requeue")
    assert end.calls.count("scontrol requeue 7") == 3
    assert "not requeued" not in end.output


def test_a_cluster_that_forbids_requeue_is_told_as_such(tmp_path):
    forbids = """\
if [[ $1 == show ]]; then cat "$FAKES/record"; exit; fi
echo "Requested operation is presently disabled for job 7" >&2
exit 1"""
    end = Submission(tmp_path).attempt("commit 4; leave 0 75; exit 75", scontrol=forbids)
    assert end.calls.count("scontrol requeue 7") == 1
    assert end.action == "stop" and "set requeue: false and chain: N" in end.output


def test_a_bad_node_in_a_chain_goes_on_with_the_next_job(tmp_path):
    submission = Submission(tmp_path, preflight=True, **CHAIN)
    end = submission.attempt(BAD_NODE, squeue="echo 8; echo 9")
    assert end.action == "chain" and not end.called("requeue") and not end.called("launcher.rank")
    updates = [call for call in end.calls if call.startswith("scontrol update")]
    assert updates == [f"scontrol update JobId={job} ExcNodeList=n2" for job in (8, 9)]
    assert not (submission.job.frozen_folder / "ended").exists()
    (excluded,) = [row for row in submission.rows() if row["event"] == "exclude"]
    assert (excluded["nodes"], excluded["reason"]) == ("n2", "GPUs alive: 7 GPUs")
    assert submission.attempt(BAD_NODE, job="8").action == "chain"  # which is no second failure
    works = 'case "$*" in *launcher.rank*) commit 4; leave 0 0 ;; esac'
    assert submission.attempt(works, job="9").action == "done"
    assert (submission.job.frozen_folder / "ended").exists()


def test_a_chain_that_has_come_to_its_end_starts_nothing_more(tmp_path):
    submission = Submission(tmp_path, **CHAIN)
    end = submission.attempt("commit 4; leave 0 2; exit 2")
    assert end.action == "stop" and end.called("scancel --state=PENDING")
    later = submission.attempt("exit 99", job="8")
    assert later.code == 0 and later.row == end.row and not later.called("srun")


def test_nodes_that_are_all_unfit_stop_a_run_only_before_its_first_step(tmp_path):
    stopped = Submission(tmp_path / "new", preflight=True).attempt(NONE_FIT)
    assert (stopped.code, stopped.action) == (2, "stop")
    submission = Submission(tmp_path / "old", preflight=True)
    saved = 'case "$*" in *launcher.rank*) commit 4; leave 0 75; exit 75 ;; esac'
    assert submission.attempt(saved).action == "requeue"
    assert submission.attempt(NONE_FIT, restart=1).action == "requeue"
    assert submission.attempt(NONE_FIT, restart=2).action == "stop"


TELL = 'kill -USR1 "$(<"$FAKES/pid")"'


def test_a_request_before_the_ranks_starts_none(tmp_path):
    getent = f"{TELL}; {BODIES['getent']}"  # of which the script makes where they meet
    end = Submission(tmp_path).attempt("exit 99", getent=getent)
    assert (end.code, end.action, end.row["code"]) == (75, "requeue", 75)
    assert "USR1" in end.row["reason"] and not end.called("srun")


def test_a_request_is_handed_to_this_starts_ranks_until_they_hear_it(tmp_path):
    deaf = f"trap : USR1\n{TELL}\n(exec /bin/sleep 60) & wait\n"
    hears = "trap 'commit 4; leave 0 75; exit 75' USR1\nwait; exit 99"
    end = Submission(tmp_path).attempt(f"{deaf}{hears}")
    assert (end.code, end.action, end.row["code"]) == (75, "requeue", 75)
    assert "USR1" in end.row["reason"]
    # To the job it could come so late that it would end the job's next start.
    assert not end.called("scancel")


def test_signals_to_all_of_a_jobs_processes_leave_the_ranks_the_time_to_save(tmp_path):
    """Slurm sends them in pairs, and to what the script has started as well."""
    tell = (
        'group=$(<"$FAKES/pid")\n(for _ in {1..8}; do kill -USR1 -- -"$group"; sleep 0.1; done) &'
    )
    saves = "/bin/sleep 2; commit 4; leave 0 75; exit 75"
    srun = f"asked=\ntrap asked=1 USR1\n{tell}\nuntil [[ $asked ]]; do :; done\n{saves}"
    slow = f"/bin/sleep 0.3; {BODIES['scontrol']}"
    record = "JobId=7 JobState=RUNNING Reason=None Restarts=0 EndTime=2126-11-30T12:00:00"
    end = Submission(tmp_path).attempt(srun, scontrol=slow, record=record, age=1000)
    assert (end.code, end.action, end.row["step"]) == (75, "requeue", 4), end.output


def test_no_process_outlives_the_script(tmp_path):
    """A helper's late request would meet the job's next start."""
    stops = f"trap 'leave 0 75; exit 75' USR1\n{TELL}\nwhile :; do :; done"
    assert Submission(tmp_path / "asked").attempt(stops).left == []
    probe = f'case "$*" in *" probe "*) {TELL}; exit 1 ;; esac'
    looked = Submission(tmp_path / "looking", preflight=True).attempt(probe)
    assert looked.action == "requeue" and looked.left == []


def test_nodes_that_give_no_answer_are_waited_for_as_long_as_the_profile_says(tmp_path):
    cordon = {"enabled": True, "timeout_seconds": 1}
    submission = Submission(tmp_path, cordon=cordon)
    silent = 'case "$*" in *" probe "*) while :; do :; done ;; *" judge "*) exit 2 ;; esac'
    end = submission.attempt(silent)
    assert (end.code, end.action, end.left) == (2, "stop", [])
