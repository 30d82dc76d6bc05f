"""How fast a node computes and talks: the part of the preflight that needs torch.

``PYTHON -m launcher.preflight.node_probe`` is one process per GPU, or one per node where there are
none, started by ``launcher.preflight`` with a rank's usual variables. It loads torch, waits for a
line on its standard input (the launcher has by then seen whether somebody else computes here), and
measures. Every part that is done is a row of JSON on the standard output, so that of a process
that hangs the part it hangs in is known.

Never run: what is done with GPUs (CUDA, NCCL); there was none. The same code on CPUs, over gloo, is
tested.
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
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lmscale.errors import LmscaleError
from lmscale.ranks.device import device_name, plan_device_index
from lmscale.ranks.ranks import Ranks, ranks_from_environment

if TYPE_CHECKING:
    import torch

Row = dict[str, Any]

POLL_SECONDS = 0.02
ROLL_PART, PATIENCE_PART = (
    0.5,
    0.65,
)  # of the time given: when the roll is closed; when it is missed
FAREWELL_SECONDS = 5.0  # how long the first process keeps the store open for the others
GPU_MATRIX, CPU_MATRIX = 8192, 512  # some milliseconds a product on either
GPU_SECONDS, CPU_SECONDS = 1.0, 0.3
MIN_PRODUCTS = 20
REPEATS = 4  # the first is a warm-up: it opens the connections


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    # The net under everything that may hang, in Python or below it: the default action is to die.
    signal.alarm(math.ceil(arguments.seconds))
    rows = _private_stdout()
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
    parser.add_argument("--node", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--matrix", type=int, default=0)
    parser.add_argument("--megabytes", type=int, default=64)
    return parser.parse_args(argv)


def _private_stdout() -> Any:
    """The standard output for our rows alone: NCCL writes its own lines to file descriptor 1."""
    rows = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return rows


def measure(ranks: Ranks, arguments: argparse.Namespace) -> Iterator[Row]:
    """Rows of what was found, part by part; ``part`` is what is being done next."""
    began = time.monotonic()
    lap = _stopwatch()
    yield {"part": "loading torch"}
    import torch

    yield {"part": "waiting for the node's checks", "torch_seconds": lap()}
    if not sys.stdin.readline():  # the launcher has died
        return
    lap()
    yield {"part": "matrix product"}
    torch.set_num_threads(1)  # one core's speed: the nodes' cores may be shared, and are many
    part = ROLL_PART if ranks.is_first else PATIENCE_PART
    closing = began + part * arguments.seconds
    try:
        device = _device(ranks, arguments.gpu)
        yield {"device": device_name(device)}
        tflops = measure_matmul(device, arguments.matrix)
    except RuntimeError:
        call_off(ranks, closing)
        raise
    yield {"matmul_tflops": tflops, "matmul_seconds": lap()}
    if ranks.world_size > 1:
        yield {"part": "meeting"}
        store, members, absent = call_the_roll(ranks, arguments.node, closing)
        yield {"part": "all-reduce", "absent": absent, "meeting_seconds": lap()}
        deadline = began + arguments.seconds
        yield from measure_network(ranks, members, device, store, arguments, deadline)
        yield {"network_seconds": lap()}
    yield {"part": "done"}


def _stopwatch() -> Callable[[], float]:
    """Seconds since it was last asked."""
    last = time.monotonic()

    def lap() -> float:
        nonlocal last
        now = time.monotonic()
        last, seconds = now, now - last
        return round(seconds, 3)

    return lap


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

    Raises ``RuntimeError`` when the same product gives two results: such a device spoils a run
    without a word.
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


Place = tuple[int, str, int]  # rank, node, local rank


def call_the_roll(ranks: Ranks, node: str, deadline: float) -> tuple[Any, list[Place], list[int]]:
    """Who is here, and the ranks that are not; the same on all that are.

    The first process closes the list at its deadline: one node that hangs must not hold the
    others. Raises ``RuntimeError`` on one that came later, or that has not reached the first
    process by its own deadline.
    """
    store = _open_store(ranks, deadline)
    store.set(f"here/{ranks.rank}", json.dumps((ranks.rank, node, ranks.local_rank)))
    store.add("arrived", 1)
    everyone = range(ranks.world_size)
    if ranks.is_first:
        _wait_for_count(store, "arrived", len(everyone), deadline)
        here = [rank for rank in everyone if store.check([f"here/{rank}"])]
        store.set("roll", json.dumps([json.loads(store.get(f"here/{rank}")) for rank in here]))
    members = [tuple(place) for place in json.loads(store.get("roll"))]
    if ranks.rank not in [rank for rank, _, _ in members]:
        store.add("done", 1)
        raise RuntimeError("the list was closed without this process")
    return store, members, sorted(set(everyone) - {rank for rank, _, _ in members})


def call_off(ranks: Ranks, deadline: float) -> None:
    """Let the others know that this process takes no part, or, from the first one, that none does.

    Otherwise they would wait for it until the list is closed.
    """
    if ranks.world_size == 1:
        return
    try:
        store = _open_store(ranks, deadline)
        if ranks.is_first:
            store.set("roll", "[]")
            _wait_for_count(store, "done", ranks.world_size - 1, deadline)
        else:
            store.add("arrived", 1)
            store.add("done", 1)
    except RuntimeError:
        pass  # what went wrong before is the news


def _wait_for_count(store: Any, key: str, count: int, deadline: float) -> None:
    while store.add(key, 0) < count and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _open_store(ranks: Ranks, deadline: float) -> Any:
    """What the first process keeps and the others reach over TCP; each of them has to by then."""
    import torch.distributed as dist

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if not ranks.is_first:
        _wait_for_server(address, port, deadline)
    return dist.TCPStore(  # pyright: ignore - not in __all__
        address,
        port,
        is_master=ranks.is_first,
        timeout=timedelta(seconds=max(1.0, deadline - time.monotonic())),
        wait_for_workers=False,
    )


def _wait_for_server(address: str, port: int, deadline: float) -> None:
    """torch would wait, too, but up to twice as long, and with pages of C++ in the log."""
    while True:
        try:
            seconds = max(0.1, deadline - time.monotonic())
            return socket.create_connection((address, port), timeout=seconds).close()
        except OSError as error:
            if time.monotonic() >= deadline:
                raise RuntimeError(f"no answer from {address}:{port}: {error}") from None
        time.sleep(5 * POLL_SECONDS)


def measure_network(
    ranks: Ranks,
    members: Sequence[Place],
    device: torch.device,
    store: Any,
    arguments: argparse.Namespace,
    deadline: float,
) -> Iterator[Row]:
    """An all-reduce among those who are here, then exchanges between pairs of them.

    In the all-reduce everybody is as slow as the slowest; the pairs tell who that is.
    """
    import torch.distributed as dist

    if len(members) < 2:
        return
    if ranks.is_one_machine and "lo" in [name for _, name in socket.if_nameindex()]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    own = [rank for rank, _, _ in members].index(ranks.rank)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=dist.PrefixStore("probe", store),  # pyright: ignore - not in __all__
        rank=own,
        world_size=len(members),
        timeout=timedelta(seconds=max(1.0, deadline - time.monotonic() - FAREWELL_SECONDS)),
        device_id=device if device.type == "cuda" else None,
    )
    num_floats = arguments.megabytes * 10**6 // 4
    yield {"all_reduce_gbs": measure_all_reduce(device, num_floats)}
    dist.barrier()
    met_at = time.time()  # the same moment on all, but for milliseconds: it compares their clocks
    yield {"met_at": met_at, "part": "exchange"}
    rounds = plan_exchanges([(node, local) for _, node, local in members])
    if device.type != "cuda":
        num_floats //= 4  # without GPUs it is not judged: see launcher/preflight/verdict.py
    speeds = [measure_exchange(device, num_floats, partners[own]) for partners in rounds]
    beside = {
        members[partner][1]: speed
        for partner, speed in zip((partners[own] for partners in rounds), speeds, strict=True)
        if partner is not None and speed is not None
    }
    yield {
        "inside_gbs": beside.pop(arguments.node, None),
        "links": beside,
        "link_gbs": max(beside.values(), default=None),  # a bad neighbour spoils one of two
    }
    dist.destroy_process_group()
    if ranks.is_first:  # the others still need its store
        num_others = store.add("arrived", 0) - 1
        _wait_for_count(store, "done", num_others, time.monotonic() + FAREWELL_SECONDS)
    else:
        store.add("done", 1)


def measure_all_reduce(device: torch.device, num_floats: int) -> float:
    """GB/s that each member sends and receives while all of them add up a vector."""
    import torch
    import torch.distributed as dist

    count = dist.get_world_size()
    vector = torch.empty(num_floats, dtype=torch.float32, device=device)
    best = math.inf
    for _ in range(REPEATS):
        vector.fill_(1)
        _synchronize(device)
        began = time.perf_counter()
        dist.all_reduce(vector)
        _synchronize(device)
        best = min(best, time.perf_counter() - began)
    if not bool((vector == count).all()):
        raise RuntimeError(f"an all-reduce over {count} ones did not give {count} everywhere")
    # A ring sends every byte 2 (n-1) / n times: what NCCL's own tests call bus bandwidth.
    return 2 * (count - 1) / count * vector.nbytes / best / 1e9


def plan_exchanges(places: Sequence[tuple[str, int]]) -> list[list[int | None]]:
    """Round by round, the partner of each member, given as (node, local rank), or None.

    One round with the neighbour on the same node; then with the two nodes beside it, each local
    rank with its like, so that all of a node's network cards are busy.
    """
    number = {place: index for index, place in enumerate(places)}
    nodes = list(dict.fromkeys(node for node, _ in places))
    pairs = [
        list(zip(nodes[0::2], nodes[1::2], strict=False)),
        list(zip(nodes[1::2], nodes[2::2], strict=False)),
        [(nodes[-1], nodes[0])] if len(nodes) > 2 else [],
    ]
    rounds = [[number.get((node, local ^ 1)) for node, local in places]]
    for round_of_pairs in pairs:
        beside = dict(round_of_pairs) | {right: left for left, right in round_of_pairs}
        rounds.append([number.get((beside.get(node, ""), local)) for node, local in places])
    return [partners for partners in rounds if any(partner is not None for partner in partners)]


def measure_exchange(device: torch.device, num_floats: int, partner: int | None) -> float | None:
    """GB/s one way while two members send to each other. Members without a partner wait along."""
    import torch
    import torch.distributed as dist

    dist.barrier()
    if partner is None:
        return None
    outgoing, incoming = (torch.ones(num_floats, device=device) for _ in range(2))
    best = math.inf
    for _ in range(REPEATS):
        _synchronize(device)
        began = time.perf_counter()
        for work in dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, outgoing, partner),
                dist.P2POp(dist.irecv, incoming, partner),
            ]
        ):
            work.wait()
        _synchronize(device)
        best = min(best, time.perf_counter() - began)
    return incoming.nbytes / best / 1e9


if __name__ == "__main__":
    sys.exit(main())
