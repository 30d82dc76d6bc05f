"""What srun starts for every rank: finds its place, then becomes ``lmscale train``.

    srun … PYTHON -m launcher.rank CONFIG --run-folder RUN

A task of an srun that a person typed, ``srun … lmscale train CONFIG``, finds it by ``join_step``.
Imports little, because every rank of a large job reads it from the shared file system.
"""

from __future__ import annotations

import argparse
import os
import signal
import stat
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

from launcher.rendezvous import (
    is_task_of_many,
    meet_in_step,
    rendezvous_from_slurm,
    unset_defaults,
)
from lmscale.errors import EXIT_USER, ClusterError
from lmscale.files.printing import say
from lmscale.runs.profiles import RANKS_OPTION, STEPS_OPTION

# Compiled kernels: thousands of ranks that lock files in one shared cache wait for each other.
CACHES = {
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
}


def plan_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that a rank needs and srun does not set. Raises ``ClusterError``."""
    scratch = environ.get("LMSCALE_SCRATCH")
    caches = {
        name: f"{scratch}/{folder}"
        for name, folder in CACHES.items()
        if scratch and name not in environ
    }
    threads = environ.get("SLURM_CPUS_PER_TASK", "1")
    return {**caches, **unset_defaults(threads, environ), **rendezvous_from_slurm(environ)}


def join_step(environ: MutableMapping[str, str]) -> bool:
    """Make one of several tasks of an srun step a rank, before torch is loaded; whether it did.

    Raises ``ClusterError``.
    """
    if not is_task_of_many(environ):
        return False
    environ.update(meet_in_step(environ))
    planned = plan_environment(environ)
    _make_folders(planned)
    environ.update(planned)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Replace this process by the rank's; returns only when that is impossible."""
    # A request for a save waits until the rank is ready to listen, in place of killing it.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR2,))
    parser = argparse.ArgumentParser(prog="python -m launcher.rank", description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--run-folder", type=Path)
    parser.add_argument("--lock", type=Path, help="what the submission had installed")
    parser.add_argument("--environment", choices=("refuse", "warn"), default="refuse")
    parser.add_argument(STEPS_OPTION, dest="profile")
    parser.add_argument(RANKS_OPTION, dest="profile_ranks")
    options = parser.parse_args(arguments)
    try:
        planned = plan_environment(os.environ)
        rank = int(planned["RANK"])
        if options.run_folder is not None:
            redirect_output(options.run_folder, rank)
        if options.lock is not None and planned["LOCAL_RANK"] == "0":  # one for each node
            _check_installed(options.lock, rank, is_refusing=options.environment == "refuse")
    except ClusterError as error:
        say("\n".join(f"error: {problem}" for problem in error.problems), err=True)
        # Imported here alone: every other rank leaves its code as `lmscale` ends.
        from lmscale.ranks.exits import record_exit

        record_exit(error.exit_code, {**os.environ, "RANK": os.environ.get("SLURM_PROCID", "")})
        return EXIT_USER
    _make_folders(planned)
    argv = [sys.executable, "-m", "lmscale.cli.main", "train", options.config]
    for name, value in ((STEPS_OPTION, options.profile), (RANKS_OPTION, options.profile_ranks)):
        argv += [] if value is None else [name, value]
    os.execve(sys.executable, argv, {**os.environ, **planned})


def _check_installed(lock: Path, rank: int, *, is_refusing: bool) -> None:
    """Raises ``ClusterError`` where another environment may change what is computed."""
    from launcher.environment import check_installed

    node = os.environ.get("SLURMD_NODENAME", "this node")
    problems = check_installed(lock, is_refusing=is_refusing, is_first=rank == 0, node=node)
    if problems:
        raise ClusterError(problems)


def redirect_output(run_folder: Path, rank: int) -> None:
    """Rank 0 keeps the job's output; the others would interleave with it line by line."""
    if rank == 0:
        return
    path = run_folder / "logs" / f"rank-{rank:05d}.out"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        say(f"lmscale: {path} cannot be written ({error}).", err=True)
        return
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)


def _make_folders(planned: dict[str, str]) -> None:
    for name in CACHES.keys() & planned.keys():
        _make_folder(planned, name)


def _make_folder(planned: dict[str, str], name: str) -> None:
    """Make a cache's folder, or unset its variable: that costs a compilation, not the run.

    A folder that others can write to is as good as none: what is compiled or pickled there is run.
    """
    try:
        for folder in (Path(planned[name]).parent, Path(planned[name])):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = folder.lstat()
            if status.st_uid not in (os.getuid(), 0) or not stat.S_ISDIR(status.st_mode):
                raise PermissionError(f"{folder} belongs to another user, or is a link")
            if status.st_mode & stat.S_IWOTH:
                raise PermissionError(f"every user may write to {folder}")
    except OSError as error:
        say(f"lmscale: {name} stays unset: {error}.", err=True)
        del planned[name]


if __name__ == "__main__":
    sys.exit(main())
