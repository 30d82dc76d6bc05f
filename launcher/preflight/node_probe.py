"""How fast a node computes and talks: the part of the preflight that needs torch.

One process per GPU, or one per node without GPUs, with a rank's usual variables. Every part that
has been measured is a row of JSON on the standard output, so that the part in which a process hangs
is known. Never run: what is done with GPUs (CUDA, NCCL). Over gloo the same code is tested.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import socket
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lmscale.errors import LmscaleError
from lmscale.ranks.device import device_name, plan_device_index
from lmscale.ranks.ranks import Ranks, open_process_group, ranks_from_environment

if TYPE_CHECKING:
    import torch

Row = dict[str, Any]

POLL_SECONDS = 0.02
MEETING_PART = 0.5  # of the time given: who has not come by then is not waited for
GPU_MATRIX, CPU_MATRIX = 8192, 512  # some milliseconds a product on either
GPU_SECONDS, CPU_SECONDS = 1.0, 0.3
MIN_PRODUCTS = 20
REPEATS = 4  # the first is a warm-up: it opens the connections


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    # The net under everything that may hang, in Python or below it: the default action is to die.
    signal.alarm(max(1, math.ceil(arguments.began + arguments.seconds - time.monotonic())))
    rows = os.fdopen(os.dup(1), "w")  # for our rows alone: NCCL writes its own to descriptor 1
    os.dup2(2, 1)
    try:
        for row in measure(ranks_from_environment(), arguments):
            print(json.dumps(row), file=rows, flush=True)
    except (LmscaleError, ImportError, RuntimeError, OSError, ValueError) as error:
        text = next(iter(str(error).splitlines()), "")
        kind = "" if type(error) is RuntimeError else f"{type(error).__name__}: "
        print(json.dumps({"error": kind + text}), file=rows, flush=True)
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launcher.preflight.node_probe")
    parser.add_argument(
        "--began", type=float, required=True, help="by this machine's time.monotonic()"
    )
    parser.add_argument("--seconds", type=float, required=True, help="from then on")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--matrix", type=int, default=0)
    parser.add_argument("--megabytes", type=int, default=64)
    return parser.parse_args(argv)


def measure(ranks: Ranks, arguments: argparse.Namespace) -> Iterator[Row]:
    """Rows of what was measured, part by part; ``part`` is the part that comes next."""
    deadline = arguments.began + MEETING_PART * arguments.seconds
    num_floats = arguments.megabytes * 10**6 // 4
    yield {"part": "loading torch"}
    import torch

    yield {"part": "matrix product"}
    torch.set_num_threads(1)  # one core's speed: the nodes' cores may be shared, and are many
    try:
        device = _device(ranks, arguments.gpu)
        yield {"device": device_name(device)}
        yield {"matmul_tflops": measure_matmul(device, arguments.matrix)}
    except RuntimeError:
        if ranks.world_size > 1:  # the others must not wait for this process
            with suppress(RuntimeError, LmscaleError):
                list(_talk(ranks, None, num_floats, deadline))
        raise
    if ranks.world_size > 1:
        yield from _talk(ranks, device, num_floats, deadline)
    yield {"part": "done"}


def _device(ranks: Ranks, wants_gpu: bool) -> torch.device:
    import torch

    if not wants_gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} sees no GPU")
    index = plan_device_index(ranks, torch.cuda.device_count(), os.environ)
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def measure_matmul(device: torch.device, size: int = 0) -> float:
    """TFLOP/s of a square matrix product: 16 bits on a GPU, fp32 on one core of a CPU.

    Raises ``RuntimeError`` when a product gives two results: such a device would spoil a run.
    """
    import torch

    is_gpu = device.type == "cuda"
    size = size or (GPU_MATRIX if is_gpu else CPU_MATRIX)
    dtype = torch.float32
    if is_gpu:
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    first = torch.mm(left, right, out=product).clone()
    # A core may be shared with others' work, which says nothing about it: there the thread's own
    # time counts, and of that the best. A GPU is ours alone: what it does once it is warm counts.
    clock = time.perf_counter if is_gpu else time.thread_time
    batch = 10 if is_gpu else 1  # a GPU's launches are hidden behind each other
    seconds: list[float] = []
    end = time.monotonic() + (GPU_SECONDS if is_gpu else CPU_SECONDS)
    while time.monotonic() < end or len(seconds) < MIN_PRODUCTS:
        began = clock()
        for _ in range(batch):
            torch.mm(left, right, out=product)
        _synchronize(device)
        seconds.append((clock() - began) / batch)
    if not torch.equal(product, first):
        raise RuntimeError("the same matrix product came out differently when it was repeated")
    return 2 * size**3 / (statistics.median(seconds) if is_gpu else min(seconds)) / 1e12


def _synchronize(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reach_first(ranks: Ranks, deadline: float) -> None:
    """Wait until the first process listens, which tells a node without a network from the others.

    torch would wait, too, but up to twice as long, and with pages of C++ in the log.
    """
    address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    while not ranks.is_first:
        try:
            seconds = max(0.1, deadline - time.monotonic())
            return socket.create_connection(address, timeout=seconds).close()
        except OSError as error:
            if time.monotonic() >= deadline:
                raise RuntimeError(f"no answer from {address[0]}:{address[1]}: {error}") from None
        time.sleep(POLL_SECONDS)


def _talk(
    ranks: Ranks, device: torch.device | None, num_floats: int, deadline: float
) -> Iterator[Row]:
    """Meet the others, and measure an all-reduce if all of them can take part.

    ``device`` None: this process cannot. Raises ``TransientError`` for a peer that does not come.
    """
    import torch
    import torch.distributed as dist

    from lmscale.ranks.collectives import gather_json

    yield {"part": "reaching the first node"}
    reach_first(ranks, deadline)
    yield {"part": "meeting"}
    timeout = timedelta(seconds=max(1.0, deadline - time.monotonic()))
    with open_process_group(ranks, torch.device("cpu"), timeout):
        can_talk = gather_json(device is not None)
        absent = [rank for rank, can in enumerate(can_talk) if not can]
        yield {"part": "all-reduce", "absent": absent}
        if device is not None and not absent:
            is_gpu = device.type == "cuda"
            group = dist.new_group(backend="nccl", timeout=timeout) if is_gpu else None
            yield measure_all_reduce(device, num_floats, group)


def measure_all_reduce(device: torch.device, num_floats: int, group: Any = None) -> Row:
    """GB/s that each member sends and receives while all of them add up a vector.

    Also ``met_at``, each member's clock at a moment that is common to within milliseconds: the
    members' clocks are compared by it.
    """
    import torch
    import torch.distributed as dist

    count = dist.get_world_size()
    vector = torch.empty(num_floats, dtype=torch.float32, device=device)
    best = math.inf
    for _ in range(REPEATS):
        vector.fill_(1)
        _synchronize(device)
        began = time.perf_counter()
        dist.all_reduce(vector, group=group)
        _synchronize(device)
        best = min(best, time.perf_counter() - began)
    if not bool((vector == count).all()):
        raise RuntimeError(f"an all-reduce over {count} ones did not give {count} everywhere")
    dist.barrier()
    # A ring sends every byte 2 (n-1) / n times: what NCCL's own tests call bus bandwidth.
    rate = 2 * (count - 1) / count * vector.nbytes / best / 1e9
    return {"all_reduce_gbs": rate, "met_at": time.time()}


if __name__ == "__main__":
    sys.exit(main())
