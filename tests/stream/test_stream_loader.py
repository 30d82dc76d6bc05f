import os
import pickle
import signal
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest
import xxhash

from lmscale.config.data import BatchConfig, plan_batches
from lmscale.errors import DataError, TransientError
from lmscale.objective.causal import CausalPreparation
from lmscale.stream.batches import add_digests
from lmscale.stream.loader import digest_steps, open_loader
from lmscale.stream.stream import open_stream
from lmscale.stream.worker import LoaderJob

PREPARATION = CausalPreparation(mask_documents=True)


def plan(world_size, global_windows=16, micro_windows=4):
    return plan_batches(
        global_windows=global_windows, micro_windows=micro_windows, data_ranks=world_size
    )


def load(stream, batch_plan, rank, *, num_steps=5, workers=0, first_n=0):
    job = LoaderJob(
        stream=stream,
        preparation=PREPARATION,
        plan=batch_plan,
        data_rank=rank,
        first_n=first_n,
        num_steps=num_steps,
    )
    with open_loader(job, workers=workers) as loader:
        return list(loader)


def opened(stream, *, num_steps, workers, preparation=PREPARATION) -> Any:
    job = LoaderJob(
        stream=stream,
        preparation=preparation,
        plan=plan(1),
        data_rank=0,
        first_n=0,
        num_steps=num_steps,
    )
    return open_loader(job, workers=workers)


@pytest.fixture
def stream(stream_config):
    with open_stream(stream_config(a=3, b=1), seed=1) as opened:
        yield opened


# Each worker is a process of its own: those of eight ranks with three each would show no more.
GRID = [(1, 0), (2, 0), (4, 0), (8, 0), (1, 3), (2, 2)]


@pytest.mark.parametrize(("world_size", "workers"), GRID)
def test_digests_do_not_depend_on_ranks_and_workers(stream, world_size, workers):
    settings = {"first_step": 2, "num_steps": 5}
    expected = digest_steps(stream, plan(1), preparation=PREPARATION, workers=0, **settings)
    assert [row.first_n for row in expected] == [32, 48, 64, 80, 96]
    assert (
        digest_steps(stream, plan(world_size), preparation=PREPARATION, workers=workers, **settings)
        == expected
    )


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_workers_hand_over_what_a_thread_does(stream_config, packing):
    stream = open_stream(stream_config(a=3, b=1, packing=packing), seed=1)
    expected = load(stream, plan(2), 1, first_n=7)
    found = load(stream, plan(2), 1, first_n=7, workers=2)
    for step, other in zip(expected, found, strict=True):
        assert (step.first_n, step.samples, step.targets) == (
            other.first_n,
            other.samples,
            other.targets,
        )
        for one, two in zip(step.micro_batches, other.micro_batches, strict=True):
            assert list(one.arrays) == list(two.arrays) == ["tokens", "starts", "lengths"]
            for name, array in one.arrays.items():
                assert array.dtype == two.arrays[name].dtype
                assert array.tolist() == two.arrays[name].tolist()
            assert (one.first_n, one.digest, one.targets) == (two.first_n, two.digest, two.targets)


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (4, 0), (1, 2)])
def test_a_warm_up_takes_its_samples_in_order_on_any_ranks_and_workers(stream, world_size, workers):
    batch = BatchConfig(global_windows=16, micro_windows=4, warmup=((2, 4), (3, 12)))
    rows, tail = (
        digest_steps(
            stream,
            batch.plan(world_size),
            preparation=PREPARATION,
            first_step=first_step,
            num_steps=5 - first_step,
            workers=some_workers,
        )
        for first_step, some_workers in ((0, workers), (1, 0))
    )
    assert [row.first_n for row in rows] == [0, 4, 8, 20, 36]
    assert [row.samples for row in rows] == [4, 4, 12, 16, 16]
    assert tail == rows[1:]  # as a run does that goes on there
    for row in rows:
        digests = stream.read_rows(row.first_n, row.samples).digests
        assert row.digest == add_digests(digests.tolist())


def test_ranks_take_consecutive_slices_of_a_step(stream):
    for rank in range(4):
        for number, step in enumerate(load(stream, plan(4, micro_windows=2), rank, first_n=3)):
            assert step.first_n == 3 + 16 * number
            assert step.samples == 16
            assert [b.first_n for b in step.micro_batches] == [
                step.first_n + 4 * rank,
                step.first_n + 4 * rank + 2,
            ]


def test_micro_batches_hold_the_samples_their_numbers_say(stream):
    for step in load(stream, plan(2), 1, num_steps=3):
        for batch in step.micro_batches:
            tokens, lengths = batch.arrays["tokens"], batch.arrays["lengths"]
            rows = stream.read_rows(batch.first_n, len(tokens))
            assert tokens.tolist() == rows.tokens.tolist()
            assert batch.arrays["starts"].tolist() == rows.starts.tolist()
            assert batch.arrays["starts"].dtype == np.int32 and tokens.dtype == np.uint16
            assert lengths.tolist() == rows.lengths.tolist()
            assert batch.targets == lengths.sum() - len(rows.starts)
            assert batch.digest == add_digests(
                xxhash.xxh64(
                    (batch.first_n + row).to_bytes(8, "little") + window.tobytes()
                ).intdigest()
                for row, window in enumerate(rows.tokens)
            )


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_while_reading_surfaces_as_itself_where_its_step_would_come(
    stream_config, tmp_path, write_dataset, documents, workers
):
    folder = write_dataset(tmp_path / "a", documents(20, seed=1))
    path = folder / "x-000000.tar"
    content = bytearray(path.read_bytes())
    content[3000] ^= 1
    path.write_bytes(content)
    stream = open_stream(stream_config(folder=tmp_path, a=1), seed=1)
    with opened(stream, num_steps=5, workers=workers) as loader:
        with pytest.raises(DataError, match=r"x-000000.tar: its content has changed") as caught:
            next(loader)
        assert caught.value.problems[0].startswith(str(path))


def test_a_bug_in_a_worker_keeps_its_class_and_shows_the_workers_traceback(stream):
    stream.mixture.segments = ()
    with opened(stream, num_steps=2, workers=1) as loader:
        with pytest.raises(IndexError) as caught:
            next(loader)
    assert "in _position" in str(caught.value.__cause__)


class Unreadable(CausalPreparation):
    """It cannot be made again where it arrives."""

    def __reduce__(self):
        return (int, ("not a number",))


def test_a_preparation_that_a_worker_cannot_unpickle_is_an_error_and_no_death(stream):
    preparation = Unreadable(mask_documents=True)
    with opened(stream, num_steps=2, workers=1, preparation=preparation) as loader:
        with pytest.raises(ValueError, match="not a number"):
            next(loader)
    assert loader._workers[0].process.returncode == 0


def test_a_killed_worker_is_an_error_that_says_so(stream):
    with opened(stream, num_steps=99, workers=1) as loader:
        next(loader)
        os.kill(loader._workers[0].process.pid, signal.SIGKILL)
        with pytest.raises(TransientError, match="ended by signal SIGKILL.*memory runs out"):
            for _ in loader:
                pass


@pytest.mark.parametrize("is_cut", [True, False])
def test_a_worker_that_ends_because_a_file_was_cut_says_which(
    stream_config, tmp_path, write_dataset, documents, is_cut
):
    """The kernel ends it by SIGBUS; no setting is at fault."""
    path = write_dataset(tmp_path / "a", documents(20, seed=1)) / "x-000000.tar"
    stream = open_stream(stream_config(folder=tmp_path, a=1), seed=1)
    with opened(stream, num_steps=99, workers=1) as loader:
        next(loader)
        os.kill(loader._workers[0].process.pid, signal.SIGBUS)
        loader._workers[0].process.wait()
        if is_cut:
            os.truncate(path, 5)
        with pytest.raises(DataError if is_cut else TransientError, match="cut while") as caught:
            for _ in loader:
                pass
    assert "stream.workers" not in str(caught.value)
    assert ("x-000000.tar: the shard is cut: 5 bytes" in str(caught.value)) == is_cut


def test_workers_ignore_the_signals_meant_for_the_rank(stream):
    with opened(stream, num_steps=6, workers=2) as loader:
        for worker in loader._workers:  # also while they are still starting
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
                os.kill(worker.process.pid, number)
        assert len(list(loader)) == 6


def test_workers_end_when_their_loader_is_closed_early(stream):
    with opened(stream, num_steps=10**6, workers=2) as loader:
        next(loader)
        processes = [worker.process for worker in loader._workers]
    assert [process.returncode for process in processes] == [0, 0]


def test_workers_die_with_their_rank_even_by_sigkill(stream_config, tmp_path):
    program = """
        import os, pickle, signal, sys
        from lmscale.config.data import plan_batches
        from lmscale.objective.causal import CausalPreparation
        from lmscale.stream.loader import open_loader
        from lmscale.stream.worker import LoaderJob
        stream = pickle.load(open(sys.argv[1], "rb"))
        plan = plan_batches(global_windows=4, micro_windows=4, data_ranks=1)
        causal = CausalPreparation(mask_documents=True)
        job = LoaderJob(
            stream=stream, preparation=causal, plan=plan, data_rank=0, first_n=0, num_steps=10**6
        )
        loader = open_loader(job, workers=2)
        next(loader)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    (tmp_path / "stream").write_bytes(pickle.dumps(open_stream(stream_config(a=1), seed=1)))
    # The workers inherit our pipe as their stderr: it ends when the last of them has ended.
    rank = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "stream")],
        stderr=subprocess.PIPE,
        timeout=60,
    )
    assert rank.returncode == -signal.SIGKILL
    assert rank.stderr == b""


def test_the_time_a_rank_waits_for_data_is_counted(stream):
    with opened(stream, num_steps=4, workers=0) as loader:
        assert sum(step.wait_seconds for step in loader) > 0


def test_a_worker_loads_no_torch():
    program = (
        "import lmscale.stream.worker, lmscale.objective.causal, sys; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
