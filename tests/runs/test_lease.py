"""Who holds a run, by the rules alone and with real files; two live copies: test_train_lease.py."""

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.errors import EXIT_RESUMABLE, ConfigError, LeaseLostError
from lmscale.ranks.attempt import Attempt, attempt_from_environment
from lmscale.runs import lease as leases
from lmscale.runs.lease import (
    Claim,
    Finding,
    Lease,
    LeaseRecord,
    is_beating,
    judge_claim,
    judge_found,
    read_lease,
)

LOCAL = Attempt()


def at(name: str, submission: str = "") -> Attempt:
    return attempt_from_environment({"LMSCALE_ATTEMPT": name, "LMSCALE_SUBMISSION": submission})


def record(attempt: Attempt, token: str = "a", **changes) -> LeaseRecord:
    values = {"hosts": ("n1",), "rank0": "n1:7", "token": token, "time": 1.0} | changes
    values |= {"job": attempt.job, "restart": attempt.restart, "submission": attempt.submission}
    return LeaseRecord(attempt=attempt.name, **values)


def test_the_attempt_comes_from_the_batch_script_or_is_local():
    assert at("4711.2") == Attempt(job="4711", restart=2)
    assert at("4711.2").name == "4711.2"
    assert attempt_from_environment({}) == at("local") == LOCAL
    assert LOCAL.name == "local"


@pytest.mark.parametrize("name", ["4711", "4711.", ".2", "4711.x", "a b.1", "../x.1", ""])
def test_another_kind_of_name_is_refused(name):
    with pytest.raises(ConfigError, match="LMSCALE_ATTEMPT = .* is not JOB.RESTART"):
        at(name)


@pytest.mark.parametrize(
    ("held", "mine", "claim"),
    [
        (None, "7.0", Claim.FREE),
        (record(at("7.0")), "7.1", Claim.TAKE_OVER),
        (record(at("7.9")), "7.10", Claim.TAKE_OVER),  # as numbers
        (record(at("7.1")), "7.0", Claim.REFUSE),
        (record(at("7.1"), ended=2.0), "7.0", Claim.REFUSE),
        (record(at("7.0")), "7.0", Claim.ASK),
        (record(at("7.5")), "8.0", Claim.ASK),
        (record(at("7.5"), ended=2.0), "8.0", Claim.FREE),
        (record(at("7.5")), "local", Claim.ASK),
        (record(LOCAL), "7.5", Claim.ASK),
        (record(LOCAL), "local", Claim.ASK),
        (record(LOCAL, ended=2.0), "local", Claim.FREE),
    ],
)
def test_only_a_later_start_of_the_same_job_takes_over_from_a_live_holder(held, mine, claim):
    assert judge_claim(held, at(mine)) is claim


@pytest.mark.parametrize(
    ("held", "mine", "claim"),
    [
        (at("9.0", "a"), at("10.0", "a"), Claim.TAKE_OVER),  # as numbers
        (at("9.3", "a"), at("10.0", "a"), Claim.TAKE_OVER),  # the job counts before the restart
        (at("10.0", "a"), at("9.3", "a"), Claim.REFUSE),
        (at("9.0", "a"), at("9.1", "a"), Claim.TAKE_OVER),
        (at("9.0", "a"), at("10.0", "b"), Claim.ASK),
        (at("9.0"), at("10.0"), Claim.ASK),  # of batch scripts that name no submission
        (at("9.0"), at("10.0", "a"), Claim.ASK),
        (at("9.0"), at("9.1", "a"), Claim.TAKE_OVER),
    ],
)
def test_the_jobs_of_a_chain_are_ordered_by_their_numbers(held, mine, claim):
    assert judge_claim(record(held), mine) is claim
    found = judge_found(record(held, "other"), record(mine, "mine"))
    assert found is (Finding.RETAKE if claim is Claim.TAKE_OVER else Finding.LOST)


@pytest.mark.parametrize(
    ("found", "finding"),
    [
        (record(at("7.1"), "mine"), Finding.MINE),
        (record(at("7.1"), "mine", ended=1.0), Finding.MINE),
        (None, Finding.RETAKE),
        (record(at("7.0"), "other"), Finding.RETAKE),
        (record(at("7.1"), "other"), Finding.LOST),
        (record(at("7.2"), "other"), Finding.LOST),
        (record(at("8.0"), "other"), Finding.LOST),
        (record(LOCAL, "other"), Finding.LOST),
    ],
)
def test_a_holder_whose_name_is_gone_has_lost_the_run_unless_an_older_start_wrote_it(
    found, finding
):
    assert judge_found(found, record(at("7.1"), "mine")) is finding


ATTEMPTS = ("7.0", "7.1", "7.2", "7.3")
STEPS = st.lists(
    st.tuples(st.sampled_from(("read", "take", "commit", "look")), st.sampled_from(ATTEMPTS)),
    max_size=40,
)


class Copies:
    """Copies of one job on one folder, whose steps come in any order; each may pause anywhere."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.leases = {name: Lease(at(name), folder) for name in ATTEMPTS}
        self.allowed: set[str] = set()  # have read the file, and may take it
        self.holding: set[str] = set()
        self.ended: set[str] = set()

    def do(self, what: str, name: str) -> bool:
        """Whether it was a commit."""
        if name in self.ended:
            return False
        if what == "read" and name not in self.holding:
            claim = judge_claim(read_lease(self.folder), at(name))
            (self.ended if claim is Claim.REFUSE else self.allowed).add(name)
        elif what == "take" and name in self.allowed:
            self.allowed.discard(name)
            self.holding.add(name)
            self.leases[name].take(["n1"])
        elif what in ("commit", "look") and name in self.holding:
            try:
                self.leases[name].check()
            except LeaseLostError:
                self.ended.add(name)
                return False
            return what == "commit"
        return False


@settings(max_examples=80, deadline=None)
@given(steps=STEPS)
def test_once_a_later_start_has_the_lease_no_earlier_one_commits(steps):
    with TemporaryDirectory() as folder:
        copies = Copies(Path(folder))
        newest = -1
        for what, name in steps:
            if what in ("read", "take"):  # not parted by another copy's steps
                copies.do("read", name)
                copies.do("take", name)
                newest = max([newest, *(at(one).restart for one in copies.holding)])
            elif copies.do(what, name):
                assert at(name).restart == newest


@settings(max_examples=80, deadline=None)
@given(steps=STEPS, order=st.permutations(ATTEMPTS))
def test_whatever_the_order_all_but_the_latest_start_end_when_they_look(steps, order):
    """Also when an earlier one pauses between its look at the file and its write."""
    with TemporaryDirectory() as folder:
        copies = Copies(Path(folder))
        for what, name in steps:
            copies.do(what, name)
        holders = {name for name in copies.holding if name not in copies.ended}
        for _ in ATTEMPTS:  # everybody polls
            for name in order:
                copies.do("look", name)
        left = holders - copies.ended
        assert left == ({max(holders, key=lambda name: at(name).restart)} if holders else set())


def test_the_file_says_who_holds_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    lease = Lease(at("7.1", "20261122-011900-train"), tmp_path)
    lease.take(["n1", "n2"])
    tree = json.loads((tmp_path / "lease.json").read_text())
    assert tree.pop("time") == pytest.approx(time.time(), abs=60)
    assert len(tree.pop("token")) == 16
    assert tree == {
        "attempt": "7.1",
        "job": "7",
        "restart": 1,
        "hosts": ["n1", "n2"],
        "rank0": f"n1:{os.getpid()}",
        "ended": None,
        "submission": "20261122-011900-train",
    }


def test_a_lost_lease_is_an_error_that_names_the_newer_copy_and_asks_for_a_requeue(tmp_path):
    older, newer = Lease(at("7.0"), tmp_path), Lease(at("7.1"), tmp_path)
    older.take(["n1"])
    older.check()
    newer.take(["n2"])
    assert older.still_mine()  # as of the last look
    with pytest.raises(LeaseLostError, match="taken over by attempt 7.1 .*attempt 7.0, ends") as e:
        older.check()
    assert e.value.exit_code == EXIT_RESUMABLE
    assert not older.still_mine()
    newer.check()


def test_a_lease_that_was_deleted_or_damaged_is_written_again(tmp_path):
    lease = Lease(LOCAL, tmp_path)
    lease.take(["n1"])
    before = read_lease(tmp_path)
    for harm in (lambda path: path.unlink(), lambda path: path.write_bytes(b"\xff{")):
        harm(tmp_path / "lease.json")
        lease.check()
        assert read_lease(tmp_path) == before


def test_the_ranks_that_hold_no_file_never_lose_it(tmp_path):
    lease = Lease(at("7.0"))
    lease.check()
    assert lease.still_mine()
    with lease.watched():
        pass


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(leases, "SILENT_SECONDS", 0.3)


def test_the_loss_is_noticed_between_commits(tmp_path, quick):
    lease = Lease(at("7.0"), tmp_path)
    lease.take(["n1"])
    with lease.watched():
        Lease(at("7.1"), tmp_path).take(["n2"])
        deadline = time.monotonic() + 10
        while lease.still_mine() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not lease.still_mine()
    assert read_lease(tmp_path).ended is None  # it is the newer one's


def test_a_live_holder_beats_and_its_end_is_noted(tmp_path, quick):
    lease = Lease(LOCAL, tmp_path)
    lease.take(["n1"])
    assert not is_beating(tmp_path)
    with lease.watched():
        assert is_beating(tmp_path)
    assert not is_beating(tmp_path)
    ended = read_lease(tmp_path)
    assert ended.ended == pytest.approx(time.time(), abs=60)
    assert judge_claim(ended, LOCAL) is Claim.FREE


def test_a_copy_that_hangs_when_it_has_lost_the_run_is_ended(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(leases, "GRACE_SECONDS", 0.1)
    left = threading.Event()
    said = []
    monkeypatch.setattr(
        leases, "leave", lambda code, words: (said.append((code, words)), left.set())
    )
    lease = Lease(at("7.0"), tmp_path)
    lease.take(["n1"])
    with lease.watched():
        Lease(at("7.1"), tmp_path).take(["n2"])
        assert left.wait(10)
    assert said[0][0] == EXIT_RESUMABLE and "taken over by attempt 7.1" in said[0][1]


def test_a_lease_of_before_there_were_submissions_is_read(tmp_path):
    tree = {key: getattr(record(at("7.0")), key) for key in LeaseRecord.__dataclass_fields__}
    del tree["submission"]
    (tmp_path / "lease.json").write_text(json.dumps(tree))
    assert read_lease(tmp_path) == record(at("7.0"))


def test_keys_that_a_later_version_may_add_are_passed_over(tmp_path):
    one = record(at("7.0"))
    tree = {**{key: getattr(one, key) for key in one.__dataclass_fields__}, "colour": "blue"}
    (tmp_path / "lease.json").write_text(json.dumps(tree))
    assert read_lease(tmp_path) == one
    assert replace(one, token="b") != one
