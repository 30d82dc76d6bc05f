"""Faults on purpose: what is understood, who refuses them, and that each does what it says once."""

import errno
import json
import os
import signal
import threading
import time

import pytest
from forked_ranks import in_a_fork

from lmscale.engine import tensor_faults
from lmscale.errors import ConfigError
from lmscale.files import fault_points
from lmscale.files.fault_points import hit
from lmscale.files.jsonl import read_rows
from lmscale.runs import faults
from lmscale.runs.faults import (
    DEFAULT_BITS,
    KINDS,
    MOMENTS,
    READ_MOMENTS,
    STEP_MOMENTS,
    VARIABLE,
    Fault,
    arm,
    parse_faults,
    read_faults,
)


@pytest.fixture(autouse=True)
def unarmed(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    yield
    faults.disarm()


@pytest.fixture
def armed(monkeypatch, tmp_path):
    """Arms this process with the given faults, as the given rank, again and again."""

    def again(text, *, rank=0):
        monkeypatch.setenv(VARIABLE, text)
        arm(read_faults(allowed=True, world_size=4), rank=rank, folder=tmp_path)
        return tmp_path

    return again


def rows(folder):
    return [(row["rank"], row["fault"], row["step"]) for row in read_rows(folder / "faults.jsonl")]


def test_a_list_of_faults_is_understood():
    text = "kill:rank=1,step=7,at=save.write; nan:rank=0,step=9;;delay:seconds=2.5,at=save.commit"
    assert parse_faults(text) == (
        Fault(kind="kill", at="save.write", rank=1, step=7, bit=0),
        Fault(kind="nan", at="step.forward", rank=0, step=9, bit=0),
        Fault(kind="delay", at="save.commit", seconds=2.5, bit=0),
    )
    assert parse_faults("") == parse_faults(" ; ") == ()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_strikes_at_its_first_moment_where_none_is_named(kind):
    (fault,) = parse_faults(kind)
    assert fault.at == KINDS[kind][0] and fault.rank is None and fault.step is None
    assert fault.times == 1 and fault.bit == DEFAULT_BITS.get(kind, 0)


def test_all_problems_of_all_faults_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        parse_faults(
            "explode:rank=1; kill:at=lunch; nan:at=save.write; delay:seconds=long,rank=-1;"
            "hang:who=me,step; kill:step=3,at=read.shard; flip-weight:bit=16;"
            "cut:step=0,step=1; kill:rank=2; kill:rank=2,times=3"
        )
    problems = caught.value.problems
    for words in (
        f"'explode:rank=1': there is no fault 'explode'. There are: {', '.join(KINDS)}.",
        f"there is no moment 'lunch'. There are: {', '.join(MOMENTS)}.",
        "a nan cannot strike at save.write, but at: step.forward.",
        "seconds = 'long' is not a number of seconds.",
        "rank = '-1' is not a whole number of at least 0.",
        "there is no key 'who'. There are: rank, step, at, times, seconds, bit, id.",
        "step has no value; write step=VALUE.",
        "step is not known at read.shard: leave it out.",
        "bit = 16 is beyond the 16 highest",
        "step is given twice.",
        "'kill:at=step.begin,rank=2' is there 2 times: say times=2, or give each an id of its own.",
    ):
        assert any(words in problem for problem in problems), words
    assert len(problems) == 12  # step = 0 besides


def test_a_run_that_does_not_allow_faults_refuses_to_start_with_them(monkeypatch):
    monkeypatch.setenv(VARIABLE, "kill")
    with pytest.raises(ConfigError, match="this run does not allow faults"):
        read_faults(allowed=False, world_size=1)
    hit("step.begin", step=1)  # and nothing is armed
    monkeypatch.setenv(VARIABLE, " ")
    assert read_faults(allowed=False, world_size=1) == ()


def test_a_refusal_comes_with_what_is_wrong_with_the_faults(monkeypatch):
    monkeypatch.setenv(VARIABLE, "explode; kill:rank=2")
    with pytest.raises(ConfigError) as caught:
        read_faults(allowed=False, world_size=2)
    refused, unknown, nobody = caught.value.problems
    assert "this run does not allow faults" in refused
    assert "there is no fault 'explode'" in unknown
    assert "'kill:at=step.begin,rank=2': there is no rank 2 among 2, which are" in nobody


def test_a_fault_of_a_rank_that_a_start_does_not_have_is_refused(monkeypatch):
    monkeypatch.setenv(VARIABLE, "kill:rank=3; nan")
    with pytest.raises(ConfigError, match="there is no rank 3 among 3"):
        read_faults(allowed=True, world_size=3)
    assert len(read_faults(allowed=True, world_size=4)) == 2


def test_without_faults_nothing_happens_and_nothing_is_written(tmp_path):
    arm((), rank=0, folder=tmp_path)
    for moment in MOMENTS:
        hit(moment, step=1, path=tmp_path)
    loss = object()
    assert tensor_faults.poison(loss) is loss  # pyright: ignore
    assert not list(tmp_path.iterdir())


def test_a_fault_strikes_the_named_rank_at_the_named_step_and_moment_only(armed):
    folder = armed("full-disk:rank=1,step=3,at=save.write", rank=0)
    hit("save.write", step=3)
    armed("full-disk:rank=1,step=3,at=save.write", rank=1)
    hit("save.write", step=2)
    hit("save.fsync", step=3)
    assert rows(folder) == []
    with pytest.raises(OSError) as caught:
        hit("save.write", step=3, path=folder / "x")
    assert caught.value.errno == errno.ENOSPC
    hit("save.write", step=3)
    assert rows(folder) == [(1, "full-disk:at=save.write,rank=1,step=3", 3)]


def test_a_fault_strikes_as_often_as_it_says_over_all_starts_of_a_run(armed):
    struck = 0
    for _ in range(5):
        folder = armed("fail-fsync:times=3")
        for _ in range(2):
            try:
                hit("save.fsync", step=1)
            except OSError as error:
                assert error.errno == errno.EIO
                struck += 1
    assert struck == len(rows(folder)) == 3


def test_ranks_count_for_themselves_and_ids_tell_equal_faults_apart(armed):
    for rank in (0, 1):
        folder = armed("delay:seconds=0,id=a; delay:seconds=0,id=b", rank=rank)
        hit("step.begin", step=1)
        hit("step.begin", step=2)
    text = "delay:at=step.begin,id="
    assert rows(folder) == [(0, f"{text}a", 1), (0, f"{text}b", 1)] + [
        (1, f"{text}a", 1),
        (1, f"{text}b", 1),
    ]


def test_threads_and_processes_that_meet_the_same_fault_count_it_once_together(armed):
    folder = armed("delay:seconds=0,at=read.shard,times=7")

    def work():
        threads = [threading.Thread(target=lambda: hit("read.shard")) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            faults.arm_child()  # as a loader's worker does
            work()
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert len(rows(folder)) == 7


def test_a_torn_row_of_a_rank_that_was_killed_is_no_hindrance(armed):
    folder = armed("delay:seconds=0,times=2")
    hit("step.begin", step=1)
    with open(folder / "faults.jsonl", "a") as file:
        file.write('{"rank": 0, "fau')
    armed("delay:seconds=0,times=2")
    hit("step.begin", step=2)
    hit("step.begin", step=3)
    assert [step for _, _, step in rows(folder)] == [1, 2]


def test_kill_is_a_sigkill_that_is_written_down_before(armed):
    folder = armed("kill:step=2,at=step.update")
    hit("step.update", step=1)
    assert in_a_fork(lambda: hit("step.update", step=2)) == -signal.SIGKILL
    assert rows(folder) == [(0, "kill:at=step.update,step=2", 2)]
    armed("kill:step=2,at=step.update")
    hit("step.update", step=2)  # the run's next start passes


def test_hang_blocks_the_thread_for_good(armed):
    folder = armed("hang:at=save.commit")
    thread = threading.Thread(target=lambda: hit("save.commit", step=4), daemon=True)
    thread.start()
    while not rows(folder):
        thread.join(0.01)
    thread.join(0.2)
    assert thread.is_alive()


def test_delay_takes_its_time_and_returns(armed):
    armed("delay:seconds=0.05,at=save.commit")
    began = time.monotonic()
    hit("save.commit", step=4)
    assert time.monotonic() - began >= 0.05


def test_cut_takes_the_end_of_the_file_or_of_the_largest_in_the_folder(armed, tmp_path):
    whole = tmp_path / "checkpoint"
    whole.mkdir()
    for name, size in (("rank-00000", 90), ("rank-00001", 60), ("manifest.json", 6)):
        (whole / name).write_bytes(bytes(size))
    armed("cut:step=2; cut:step=2,at=save.committed")
    hit("save.written", step=2, path=whole / "rank-00001")
    hit("save.committed", step=2, path=whole)
    sizes = {path.name: path.stat().st_size for path in whole.iterdir()}
    assert sizes == {"rank-00000": 60, "rank-00001": 40, "manifest.json": 6}


def test_a_dropped_shard_is_missing_and_a_remote_read_fails(armed):
    armed("drop-shard; fail-read")
    with pytest.raises(FileNotFoundError):
        hit("read.shard")
    with pytest.raises(ConnectionError):
        hit("read.remote")


def test_what_strikes_at_one_moment_strikes_in_the_order_of_the_list(armed):
    folder = armed("delay:seconds=0,at=save.write; kill:at=save.write; delay:at=save.write,id=b")
    assert in_a_fork(lambda: hit("save.write", step=1)) == -signal.SIGKILL
    assert [fault for _, fault, _ in rows(folder)] == ["delay:at=save.write", "kill:at=save.write"]


def test_workers_of_an_armed_rank_are_armed_and_others_not(armed, monkeypatch):
    armed("drop-shard:rank=3", rank=3)
    assert json.loads(os.environ["LMSCALE_FAULTS_OF"])[0] == 3
    monkeypatch.setattr(fault_points, "armed", None)  # as in a new process
    faults.arm_child()
    with pytest.raises(FileNotFoundError):
        hit("read.shard")
    faults.disarm()
    faults.arm_child()
    hit("read.shard")


def test_the_moments_of_reading_are_those_that_know_no_step():
    assert set(KINDS["kill"]) == set(MOMENTS) > set(READ_MOMENTS) | set(STEP_MOMENTS)


class TestTensors:
    """What a fault does to a loss, a gradient and a weight of one process."""

    @pytest.fixture
    def module(self):
        torch = pytest.importorskip("torch")
        module = torch.nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            module.weight.fill_(0.75)
        return module

    def test_nan_poisons_the_loss_of_one_forward_pass_of_its_step(self, armed):
        import torch

        armed("nan:step=2")
        seen = []
        for step in (1, 2, 3):
            hit("step.begin", step=step)
            seen += [torch.isnan(tensor_faults.poison(torch.ones(()))).item() for _ in range(2)]
        assert seen == [False, False, True, False, False, False]

    def test_a_flipped_gradient_has_one_bit_wrong_in_one_backward_pass(self, armed, module):
        import torch

        armed("flip-gradient:step=2,bit=1")
        gradients = []
        for step in (1, 2, 3):
            module.zero_grad()
            tensor_faults.flip_gradient(module, step)
            module(torch.full((1, 3), 0.5)).sum().backward()
            gradients.append(module.weight.grad.flatten().tolist())
        calm, flipped = gradients[0], gradients[1]
        assert gradients[2] == calm == [0.5] * 6
        assert [a == b for a, b in zip(calm, flipped, strict=True)].count(False) == 1
        assert flipped[3] == 0.5 * 2.0**128 or flipped[3] > 1e38

    @pytest.mark.parametrize(("bit", "becomes"), [(0, -0.75), (9, 0.5)])
    def test_a_flipped_weight_stays_so(self, armed, module, bit, becomes):
        armed(f"flip-weight:step=2,bit={bit}")
        for step in (1, 2, 3):
            tensor_faults.flip_weight(module, step)
        assert module.weight.flatten().tolist() == [0.75] * 3 + [becomes] + [0.75] * 2

    def test_in_16_bits_the_same_number_is_the_same_part_of_the_value(self, armed, module):
        module.bfloat16()
        armed("flip-weight:bit=9")
        tensor_faults.flip_weight(module, 1)
        assert sorted(module.weight.flatten().tolist()) == [0.5] + [0.75] * 5
