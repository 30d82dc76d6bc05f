"""Who may train in a folder."""

from __future__ import annotations

import fcntl
import json
from contextlib import ExitStack

import pytest
from tiny_run import log_commit

from launcher.local import launch_local
from lmscale.config import dump_config, load_config, parse_config
from lmscale.config.data import MIN_VOCABULARY, TokenizerConfig
from lmscale.errors import ConfigError, LeaseLostError
from lmscale.ranks.attempt import Attempt
from lmscale.ranks.ranks import Ranks
from lmscale.runs import lease as leases
from lmscale.runs.lease import Lease, read_lease
from lmscale.tokenizer.own import OwnTokenizer
from lmscale.tokenizer.train import train_model
from lmscale.train import folder as run_folder
from lmscale.train.folder import claim_folder, freeze_run, log_changes


def configure(tmp_path, name="one"):
    return parse_config(f"run: {{name: {name}, folder: {tmp_path / 'run'}}}")


def test_two_trainings_cannot_hold_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.01)
    config = configure(tmp_path)
    with claim_folder(config, Ranks()):
        with pytest.raises(ConfigError, match="another `lmscale train` is running in this folder"):
            with claim_folder(config, Ranks()):
                pass
    with claim_folder(config, Ranks()):
        pass  # free again


def test_a_folder_keeps_its_frozen_config_while_another_run_is_refused(tmp_path):
    config = configure(tmp_path)
    with claim_folder(config, Ranks()):
        passages = ["one two three four five six seven eight nine ten"] * 20
        model = train_model(passages, TokenizerConfig(vocab_size=MIN_VOCABULARY))
        freeze_run(config, OwnTokenizer(model, {}))
    before = (config.folder / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match="is the folder of the run 'one', not of 'two'"):
        with claim_folder(configure(tmp_path, "two"), Ranks()):
            pass
    assert (config.folder / "config.yaml").read_bytes() == before


def test_a_start_killed_inside_its_first_write_leaves_a_usable_folder(tmp_path):
    config = configure(tmp_path)
    config.folder.mkdir()
    (config.folder / ".config.yaml.123.tmp").write_text("run:")
    with claim_folder(config, Ranks()):
        pass


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Claim the folder as an attempt on a node, quickly where something is waited for."""
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(leases, "SILENT_SECONDS", 0.3)
    for name in ("LOCK_SECONDS", "DEAD_NODE_SECONDS", "TAKE_OVER_SECONDS"):
        monkeypatch.setattr(run_folder, name, 0.2)

    def claim(attempt, node="n1", submission=""):
        monkeypatch.setenv("LMSCALE_ATTEMPT", attempt)
        monkeypatch.setenv("LMSCALE_SUBMISSION", submission)
        monkeypatch.setenv("SLURMD_NODENAME", node)
        return claim_folder(configure(tmp_path), Ranks())

    return claim


def test_the_lease_names_the_start_that_holds_the_folder_and_its_end(start, tmp_path):
    with start("7.0") as lease:
        assert lease.attempt.name == "7.0"
        held = read_lease(tmp_path / "run")
        assert (held.attempt, held.hosts, held.ended) == ("7.0", ("n1",), None)
    assert read_lease(tmp_path / "run").ended is not None


def test_a_later_start_of_the_job_takes_over_at_once_from_one_that_is_gone(start, tmp_path):
    with start("7.0"):
        pass
    with start("7.1", node="n2"):
        assert read_lease(tmp_path / "run").attempt == "7.1"


def test_a_later_start_of_the_job_waits_for_a_live_one_but_not_for_ever(start, tmp_path, caplog):
    with start("7.0") as older:
        with start("7.1", node="n2") as newer:
            assert "the older copy of this run has not let go" in caplog.text
            newer.check()
            with pytest.raises(LeaseLostError, match=r"attempt 7.1 \(rank 0: n2:"):
                older.check()
    assert read_lease(tmp_path / "run").attempt == "7.1"


def test_a_start_that_waits_for_the_lock_sees_that_an_older_one_of_its_job_got_it(
    start, tmp_path, monkeypatch, caplog
):
    """Both waited for that of a node that is dead."""
    real = run_folder._lock
    stack = ExitStack()

    def lock_late(folder, *rest):
        monkeypatch.setattr(run_folder, "_lock", real)
        stack.enter_context(start("7.0"))
        return real(folder, *rest)

    with stack:
        newer = start("7.1")
        monkeypatch.setenv("LMSCALE_ATTEMPT", "7.1")
        monkeypatch.setattr(run_folder, "_lock", lock_late)
        with newer as lease:
            assert lease.attempt.name == "7.1"
            assert read_lease(tmp_path / "run").attempt == "7.1"


def test_an_earlier_start_of_the_job_that_comes_late_is_refused(start, tmp_path):
    with start("7.3"):
        pass
    before = read_lease(tmp_path / "run")
    with pytest.raises(LeaseLostError, match="held by attempt 7.3 .*newer than .*7.2"):
        with start("7.2"):
            pass
    assert read_lease(tmp_path / "run") == before


def test_the_next_job_of_a_chain_takes_over_from_one_that_lives_on(start, tmp_path):
    with start("7.0", submission="chain") as older:
        with start("8.0", node="n2", submission="chain"):
            with pytest.raises(LeaseLostError, match="attempt 8.0"):
                older.check()
    with pytest.raises(LeaseLostError, match="held by attempt 8.0"):
        with start("7.0", submission="chain"):
            pass


def hold_lock(folder):
    """As an NFS server holds that of a node that is dead."""
    folder.mkdir(exist_ok=True)
    file = open(folder / ".lock", "w")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


@pytest.mark.parametrize("attempt", ["8.0", "local"])
def test_the_lock_of_a_silent_holder_on_another_node_is_no_hindrance(
    start, tmp_path, attempt, caplog
):
    with hold_lock(tmp_path / "run"):
        Lease(Attempt(job="7"), tmp_path / "run").take(["n2"])
        rewrite_rank0(tmp_path / "run", "n2:1")
        with start(attempt) as lease:
            lease.check()
            assert "the lock of attempt 7.0 (rank 0: n2:1) is still there" in caplog.text


def test_the_lock_of_a_holder_on_the_same_node_counts_however_silent_it_is(start, tmp_path):
    with hold_lock(tmp_path / "run"):
        Lease(Attempt(job="7"), tmp_path / "run").take(["n1"])
        rewrite_rank0(tmp_path / "run", "n1:1")
        with pytest.raises(ConfigError, match="another `lmscale train` is running"):
            with start("8.0"):
                pass


def rewrite_rank0(folder, name):
    path = folder / "lease.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rank0": name}))


@pytest.mark.parametrize("attempt", ["8.0", "local"])
def test_another_start_is_refused_while_a_holder_lives_whose_lock_is_not_seen_here(
    start, tmp_path, attempt
):
    with start("7.0", node="n2"):
        (tmp_path / "run" / ".lock").unlink()
        with pytest.raises(ConfigError, match=r"another `lmscale train` .*attempt 7.0, rank 0: n2"):
            with start(attempt):
                pass
    with start(attempt):
        pass


def test_a_holder_on_another_node_that_was_killed_is_no_hindrance(start, tmp_path):
    (tmp_path / "run").mkdir()
    Lease(Attempt(job="7"), tmp_path / "run").take(["n2"])
    with start("8.0"):
        assert read_lease(tmp_path / "run").attempt == "8.0"


def test_a_folder_that_a_start_left_with_nothing_but_its_lease_is_usable(start):
    for attempt in ("7.0", "8.0"):
        with start(attempt):
            pass


def test_a_name_of_the_attempt_that_is_none_is_refused(start):
    with pytest.raises(ConfigError, match="LMSCALE_ATTEMPT"), start("7"):
        pass


def test_every_way_to_train_refuses_what_the_runs_checkpoints_do_not_fit(tmp_path):
    config = configure(tmp_path)
    (config.folder).mkdir()
    (config.folder / "config.yaml").write_text(dump_config(config))
    log_commit(config.folder, 20)
    overrides = {"engine.optimizer.kind": "muon", "train.steps": 10}
    words = [f"{key}={value}" for key, value in overrides.items()]
    changed = load_config(config.folder / "config.yaml", words)
    refused = []
    with pytest.raises(ConfigError) as caught, claim_folder(changed, Ranks()):
        pass
    refused.append(caught.value.problems)
    with pytest.raises(ConfigError) as caught:
        launch_local(config.folder / "config.yaml", words, num_ranks=1)
    refused.append(caught.value.problems)
    for (lower, optimizer), blamed in zip(refused, (False, True), strict=True):
        assert f"{'--set train.steps=10: ' * blamed}train.steps = 10, but the newest" in lower
        assert "engine.optimizer.kind = 'muon', but the run began with 'adamw'" in optimizer
    assert not (config.folder / "logs").exists()


def test_a_start_tells_what_changes_the_training_and_where_the_learning_rate_jumps(
    tmp_path, caplog
):
    short = "engine: {optimizer: {lr: 1.0e-3}, schedule: {final_ratio: 0.1}}\ntrain: {steps: 10}"
    before = parse_config(f"run: {{name: a, folder: {tmp_path}}}\n{short}")
    (tmp_path / "config.yaml").write_text(dump_config(before))
    log_changes(before, 10)
    assert caplog.messages == []
    log_changes(
        parse_config(dump_config(before), ["train.steps=20", "watch.report_seconds=90"]), 10
    )
    assert caplog.messages == [
        "from step 11 on, changed: train.steps: 10 → 20",
        "the learning rate of step 11 is 0.0004796; with what was set before, it would be 0.0001",
    ]
