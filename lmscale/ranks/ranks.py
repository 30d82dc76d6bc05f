"""Which rank this process is, and the process group it shares with the others."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lmscale.errors import ConfigError, TransientError
from lmscale.ranks.exits import says_peer_gone

if TYPE_CHECKING:
    import torch

PROCESS_GROUP_TIMEOUT = timedelta(minutes=10)
MEETING_TIMEOUT = timedelta(minutes=10)  # the scheduler has started all ranks at once

LOOPBACK = "127.0.0.1"  # never a host name: a dead name server costs 10 s a connection

_AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"  # torchrun's agent hosts the store
_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
_HOW_TO_START = "Start the ranks with `lmscale launch`, or with torchrun, which set it"


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """A process's place among all ranks and those of its node. The default is a run of one."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_first_on_node(self) -> bool:
        return self.local_rank == 0

    @property
    def is_one_machine(self) -> bool:
        return self.local_world_size == self.world_size


def ranks_from_environment(environ: Mapping[str, str] | None = None) -> Ranks:
    """Read what the launcher set; a process without RANK and WORLD_SIZE is alone.

    Raises ``ConfigError`` with every problem of the variables at once.
    """
    environ = os.environ if environ is None else environ
    if "RANK" not in environ and "WORLD_SIZE" not in environ:
        _refuse_lost_slurm_tasks(environ)
        return Ranks()
    if environ.get("WORLD_SIZE") == "1":  # alone: everything else follows
        environ = {"RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", **environ}
        needed = dict.fromkeys(_NUMBERS, "others of its kind are")
    else:
        needed = dict.fromkeys(_ADDRESS, "WORLD_SIZE is")
        needed |= dict.fromkeys(_NUMBERS, "others of its kind are")
    problems = [
        f"{name} is not set, but {others}. {_HOW_TO_START}."
        for name, others in needed.items()
        if not environ.get(name)
    ]
    problems += [
        f"{name} = {environ[name]!r} in the environment is not a whole number."
        for name in (*_NUMBERS, "MASTER_PORT")
        if environ.get(name) and not environ[name].strip().isdecimal()
    ]
    if problems:
        raise ConfigError(problems)
    rank, world_size, local_rank, local_world_size = (int(environ[name]) for name in _NUMBERS)
    if rank >= world_size:
        problems.append(f"RANK = {rank} is not below WORLD_SIZE = {world_size}.")
    if not local_rank < local_world_size <= world_size:
        problems.append(
            f"LOCAL_RANK = {local_rank}, LOCAL_WORLD_SIZE = {local_world_size} and "
            f"WORLD_SIZE = {world_size} do not fit together."
        )
    if problems:
        raise ConfigError(problems)
    return Ranks(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
    )


def name_ranks(ranks: Sequence[int]) -> str:
    """``rank 3``, or ``ranks 0-3, 7``."""
    several = "ranks" if len(set(ranks)) > 1 else "rank"
    return f"{several} {render_numbers(set(ranks)).replace(',', ', ')}"


def render_numbers(numbers: Iterable[int]) -> str:
    """``0,3-5``, as sbatch's --array reads it."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return ",".join(f"{a}-{b}" if a < b else f"{a}" for a, b in runs)


def is_lost_connection(error: BaseException) -> bool:
    """Whether the error, or one of its causes, says that another rank is gone."""
    import torch.distributed as dist

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, dist.DistError) or says_peer_gone(str(cause)):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _refuse_lost_slurm_tasks(environ: Mapping[str, str]) -> None:
    """Several tasks that each believe they are alone would write one run folder at once."""
    tasks = environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks.isdecimal() and int(tasks) > 1:
        raise ConfigError(
            f"srun started {tasks} tasks, but RANK and WORLD_SIZE are not set, so each would train "
            f"alone into the same folder. Start them with `srun lmscale train` or `lmscale launch`."
        )


@contextmanager
def open_process_group(
    ranks: Ranks, device: torch.device, timeout: timedelta = PROCESS_GROUP_TIMEOUT
) -> Iterator[None]:
    """Meet the other ranks, over NCCL on CUDA and gloo on the CPU, for the time of the block.

    The environment is completed for as long. ``timeout`` bounds every collective, and
    ``MEETING_TIMEOUT`` the meeting, which nothing watches. DeepSpeed adopts the group. Raises
    ``TransientError`` when the ranks do not find each other.
    """
    import torch.distributed as dist

    is_cuda = device.type == "cuda"
    with _completed_environment(ranks, device):
        _open_group(ranks, device, timeout)
        try:
            yield
        except BaseException:
            # Closing NCCL waits for collectives that the other ranks may never join; the end of the
            # process closes it. gloo closes at once, and the others see it at once.
            if not is_cuda:
                dist.destroy_process_group()
            raise
        dist.destroy_process_group()


def _open_group(ranks: Ranks, device: torch.device, timeout: timedelta) -> None:
    import torch.distributed as dist

    is_cuda = device.type == "cuda"
    meeting = min(timeout, MEETING_TIMEOUT)
    began = time.monotonic()
    try:
        store = _meet(ranks, meeting)
        dist.init_process_group(
            "nccl" if is_cuda else "gloo",
            store=store,
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=timeout,
            device_id=device if is_cuda else None,
        )
        store.set_timeout(timeout)  # for the groups that DeepSpeed makes
    except (OSError, RuntimeError) as error:  # torch's and gloo's own are RuntimeErrors
        raise TransientError(
            f"Rank {ranks.rank} of {ranks.world_size} on {socket.gethostname()} could not meet the "
            f"others at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}, after "
            f"{time.monotonic() - began:.0f} s of at most {meeting.total_seconds():.0f}: "
            f"{str(error).splitlines()[0]} See the logs of the other ranks; `lmscale doctor` "
            f"checks this node's network."
        ) from error


def _meet(ranks: Ranks, timeout: timedelta) -> Any:
    """The key-value store at MASTER_ADDR:MASTER_PORT, once all ranks have come to it."""
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    if ranks.world_size == 1:  # needs no server: no busy port and no slow name server in the way
        return dist.HashStore()  # pyright: ignore - not in __all__
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if ranks.is_first and place[0] == LOOPBACK and _AGENT_STORE not in os.environ:
        # torch 2.13's own server listens on all interfaces; the line below finds this by its port.
        own = dist.TCPStore(  # noqa: F841  # pyright: ignore - not in __all__
            *place,
            is_master=True,
            timeout=timeout,
            wait_for_workers=False,
            multi_tenant=True,
            master_listen_fd=socket.create_server(place).detach(),
        )
    store, _, _ = next(rendezvous("env://", ranks.rank, ranks.world_size, timeout=timeout))
    return store


@contextmanager
def _completed_environment(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """With what torch and DeepSpeed read from the environment and the launcher may have left out.

    Taken back at the end: a process that goes on, or starts others, is no rank any more.
    """
    before = dict(os.environ)
    wanted = {
        "RANK": str(ranks.rank),
        "WORLD_SIZE": str(ranks.world_size),
        "LOCAL_WORLD_SIZE": str(ranks.local_world_size),
        "MASTER_ADDR": LOOPBACK,
    }
    if "MASTER_PORT" not in before:  # DeepSpeed names its shared memory by it: must be unique
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            wanted["MASTER_PORT"] = str(probe.getsockname()[1])
    if "TORCH_NCCL_TRACE_BUFFER_SIZE" not in before:  # its older name
        # NCCL's last collectives, for whoever asks why one hangs; the default of newer torch.
        wanted["TORCH_FR_BUFFER_SIZE"] = "2000"
    loopback = {"lo", "lo0"}.intersection(name for _, name in socket.if_nameindex())
    if ranks.is_one_machine and loopback:
        # Otherwise gloo resolves the host's own name, which may be slow or wrong.
        wanted["GLOO_SOCKET_IFNAME"] = loopback.pop()
    missing = {name: value for name, value in wanted.items() if name not in before}
    # DeepSpeed takes LOCAL_RANK for the device's number; they differ where each task sees one GPU.
    index = device.index if device.type == "cuda" else ranks.local_rank
    os.environ.update(missing, LOCAL_RANK=str(index or 0))
    try:
        yield
    finally:
        for name in (*missing, "LOCAL_RANK"):
            os.environ.pop(name, None)
        if "LOCAL_RANK" in before:
            os.environ["LOCAL_RANK"] = before["LOCAL_RANK"]
