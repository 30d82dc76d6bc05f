"""A real Slurm cluster on this machine, for the time of a ``with`` block.

    with Cluster(nodes=2) as cluster:
        print(cluster.run("srun", "-N2", "hostname"))

Nothing in /etc is changed, and several clusters may run side by side. All of a cluster's
processes live in one pid namespace whose first process ends when this process does, even if it is
killed; the kernel then ends the rest, and a process outside removes the folder. Each node is a
namespace within, with its own host name, so a node can be lost at once and as a whole.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from demands import search_path
from machine import Process, all_pids, is_first, is_gone, listens, read_process, reserve_ports
from slurm_conf import (
    Shape,
    render_cgroup_conf,
    render_database_script,
    render_gres_conf,
    render_hosts,
    render_slurm_conf,
    render_slurmdbd_conf,
)

KEEPER = Path(__file__).with_name("keeper.sh")
START_SECONDS = 30.0
MAX_FOLDER_LENGTH = 108 - len("/spool/n1/n1_1234567.4294967291")  # of a Unix socket's path
NULL_DEVICE = os.makedev(1, 3)
ENDED_STATES = frozenset(
    "COMPLETED CANCELLED FAILED TIMEOUT NODE_FAIL PREEMPTED OUT_OF_MEMORY BOOT_FAIL".split()
)


class Cluster:
    """Owns a cluster and its folder, which is removed in the end unless ``keep`` is set."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        nodes: int = 4,
        cpus: int = 4,
        gpus: int = 2,
        allows_requeue: bool = True,
        accounting: bool = False,
        keep: bool = False,
    ) -> None:
        self.folder = folder or new_folder()
        if len(str(self.folder)) > MAX_FOLDER_LENGTH:
            raise ValueError(f"{self.folder}: too long a path for the sockets in it; new_folder()")
        self._reservation, base_port = reserve_ports()
        self.shape = Shape(
            folder=self.folder,
            base_port=base_port,
            nodes=nodes,
            cpus=cpus,
            gpus=gpus,
            allows_requeue=allows_requeue,
            keeps_accounts=accounting,
        )
        self._keep = keep
        self._keeper: subprocess.Popen[str] | None = None
        self.environment = {
            "SLURM_CONF": str(self.folder / "etc/slurm.conf"),
            "PATH": search_path(),
        }

    @property
    def full_environment(self) -> dict[str, str]:
        """This process's environment with the cluster's: what its commands get."""
        return {**os.environ, **self.environment}

    # ---- From start to end

    def __enter__(self) -> Cluster:
        try:
            self._write_folder()
            self._start_keeper()
            self._wait_for_start((self.folder / "munge/socket").exists, "munged")
            if self.shape.keeps_accounts:
                self._start_accounting()
            self._tell("controller")
            for name in self.shape.node_names:
                self._tell(f"node {name}")
            self._wait_for_start(lambda: set(self.node_states().values()) == {"idle"}, "all nodes")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End everything at once; returns when nothing of the cluster is left."""
        if self._keep:
            (self.folder / "keep").touch()
        if self._keeper is None:
            shutil.rmtree(self.folder, ignore_errors=True)
        elif self._keeper.stdin is not None and not self._keeper.stdin.closed:
            self._keeper.stdin.close()
            self._keeper.wait(timeout=START_SECONDS)
        self._reservation.close()

    def _write_folder(self) -> None:
        folder, shape = self.folder, self.shape
        for name in ("run", "log", "etc", "spool", "gpu", "scratch", "nodes"):
            (folder / name).mkdir(mode=0o755, parents=True, exist_ok=True)
        # munged refuses a key's folder that others may write to; clients reach the socket in it.
        (folder / "munge").mkdir(mode=0o755)
        (folder / "state").mkdir(mode=0o700)
        os.chmod(folder, 0o755)  # mkdtemp's folder lets nobody else in
        for name in shape.node_names:
            (folder / "spool" / name).mkdir()
            (folder / "nodes" / name).mkdir()
        # Slurm sets CUDA_VISIBLE_DEVICES for character devices only; which ones does not matter.
        for number in range(shape.gpus):
            os.mknod(folder / f"gpu/nvidia{number}", 0o600 | stat.S_IFCHR, NULL_DEVICE)
        key = folder / "munge/key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        (folder / "log/jobcomp.txt").touch()
        etc = folder / "etc"
        (etc / "hosts").write_text(render_hosts(shape, socket.gethostname()))
        # Refused at once. A name server that does not answer costs every rank 10 s per peer,
        # because torch.distributed looks their addresses up.
        (etc / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        (etc / "slurm.conf").write_text(render_slurm_conf(shape))
        (etc / "gres.conf").write_text(render_gres_conf(shape))
        (etc / "cgroup.conf").write_text(render_cgroup_conf(shape))
        if shape.keeps_accounts:
            (etc / "slurmdbd.conf").write_text(render_slurmdbd_conf(shape))
            (etc / "slurmdbd.conf").chmod(0o600)
            (etc / "accounting.sh").write_text(render_database_script(shape))
            (etc / "accounting.sh").chmod(0o700)

    def _start_keeper(self) -> None:
        with open(self.folder / "log/keeper.log", "w") as log:
            self._keeper = subprocess.Popen(
                [str(KEEPER), "around", str(self.folder)],
                env=self.full_environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,  # Ctrl-C is for pytest, which then closes the cluster
            )
        stdin = self._keeper.stdin
        assert stdin is not None
        # A fork of this process must not keep the cluster alive after this process has gone.
        os.register_at_fork(after_in_child=stdin.close)

    def _start_accounting(self) -> None:
        self._tell(f"run {self.folder}/etc/accounting.sh")
        port = self.shape.accounting_port
        self._wait_for_start(lambda: listens(port), "slurmdbd")
        self.run("sacctmgr", "-i", "add", "cluster", "test")

    def _tell(self, line: str) -> None:
        assert self._keeper is not None and self._keeper.stdin is not None
        self._keeper.stdin.write(line + "\n")
        self._keeper.stdin.flush()

    def _wait_for_start(self, is_ready: Callable[[], bool], what: str) -> None:
        with self._naming(f"{what} did not start"):
            wait_until(is_ready, START_SECONDS, what)

    @contextlib.contextmanager
    def _naming(self, problem: str) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            raise TimeoutError(f"{problem}: {error}\n{self.logs()}") from None

    # ---- Slurm's commands

    def run(self, *command: str | Path, timeout: float = 60) -> str:
        """The output of a command with this cluster's Slurm; it must succeed."""
        ended = subprocess.run(
            [str(part) for part in command],
            env=self.full_environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if ended.returncode != 0:
            raise RuntimeError(f"{command} ended with {ended.returncode}: {ended.stderr}")
        return ended.stdout

    def submit(self, *options: str, script: str) -> str:
        """The number of a new job that runs ``script``."""
        path = self.folder / f"job-{time.monotonic_ns()}.sh"
        path.write_text(f"#!/bin/bash\n{script}\n")
        return self.run("sbatch", "--parsable", "--output=/dev/null", *options, path).strip()

    def job(self, job: str) -> dict[str, str]:
        """What ``scontrol show job`` knows: JobState, Reason, Restarts, NodeList, …"""
        return self.tasks(job)[0]

    def tasks(self, job: str) -> list[dict[str, str]]:
        """The same for every task of an array."""
        rows = self.run("scontrol", "show", "-o", "job", job).splitlines()
        return [dict(re.findall(r"(\S+?)=(.*?)(?= \S+?=|$)", row)) for row in rows if row]

    def wait_for(self, job: str, *states: str, timeout: float = 60) -> dict[str, str]:
        """Wait until all of the job's tasks are in one of ``states``; by default: until it ended.

        Returns ``job(job)``. A job that ends in a state that is not waited for fails at once.
        """
        wanted = set(states) or ENDED_STATES

        def has_arrived() -> bool:
            now = {task["JobState"] for task in self.tasks(job)}
            if now <= ENDED_STATES and not now <= wanted:
                raise AssertionError(f"job {job} is {now}, not {wanted}\n{self.logs()}")
            return now <= wanted

        with self._naming(f"job {job}"):
            wait_until(has_arrived, timeout, f"state {' or '.join(sorted(wanted))}")
        return self.job(job)

    def node_states(self) -> dict[str, str]:
        """Node → idle, mixed, allocated, completing, down, drained, …; a flag's sign included."""
        try:
            rows = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").splitlines()
        except RuntimeError:  # the controller is not up yet
            return {}
        return dict(row.split() for row in rows)

    def logs(self, lines: int = 25) -> str:
        """The ends of the daemons' logs, for the message of a test that failed."""
        parts = []
        for path in sorted((self.folder / "log").glob("slurm*.log")):
            said = path.read_text(errors="replace").splitlines()
            # What every start of a slurmd says, and every ping.
            noise = ("mpi", "MPI", "plugin", "munge", "topology", "cgroup", "hardware")
            said = [line for line in said if not any(word in line for word in noise)]
            parts += [f"---- {path.name}", *said[-lines:]]
        return "\n".join(parts)

    # ---- Nodes

    def processes(self, node: str) -> list[Process]:
        """What runs on a node now, but for its first process."""
        keeper = self._node_keeper(node)
        space = os.readlink(f"/proc/{keeper}/ns/pid")
        found = []
        for pid in all_pids():
            with contextlib.suppress(OSError):  # ended meanwhile
                if pid == keeper or os.readlink(f"/proc/{pid}/ns/pid") != space:
                    continue
                found.append(read_process(pid))
        return found

    def inside(self, node: str, *command: str) -> str:
        """The output of a command on a node, outside of any job."""
        return self.run(*self._enter(node), *command)

    def kill_daemon(self, node: str) -> None:
        """The node's slurmd dies; what it has started lives on."""
        for process in self.processes(node):
            if process.name == "slurmd":
                process.send(signal.SIGKILL)
        self._wait_for_start(lambda: not self._has_daemon(node), f"the end of slurmd on {node}")

    def lose_node(self, node: str) -> None:
        """The node's power fails: nothing on it lives on."""
        keeper = self._node_keeper(node)
        os.kill(keeper, signal.SIGKILL)
        self._wait_for_start(lambda: is_gone(keeper), f"the end of {node}")

    def start_node(self, node: str) -> None:
        """Bring a node back, or its slurmd alone; returns when it takes jobs."""
        if self._find_node_keeper(node) is None:
            self._tell(f"node {node}")
        elif not self._has_daemon(node):
            conf = self.environment["SLURM_CONF"]
            self.run(*self._enter(node), "slurmd", "-f", conf, "-N", node)
        if self.node_states().get(node, "").startswith("drain"):
            self.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
        self._wait_for_start(lambda: self._takes_jobs(node), node)

    def drain(self, node: str, reason: str = "a test") -> None:
        """No new job gets the node."""
        self.run("scontrol", "update", f"NodeName={node}", "State=DRAIN", f"Reason={reason}")

    def clear(self) -> None:
        """End all jobs, for good, and bring back all nodes."""
        wait_until(self._has_no_jobs, START_SECONDS, "no job")
        for node in self.shape.node_names:
            self.start_node(node)

    def _has_no_jobs(self) -> bool:
        jobs = self.run("squeue", "-h", "-o", "%A").split()
        for job in jobs:
            with contextlib.suppress(RuntimeError):  # it has just ended
                # Or a batch script that hears of its end puts itself back into the queue.
                self.run("scontrol", "update", f"JobId={job}", "Requeue=0")
                self.run("scancel", job)
        for node in self.shape.node_names if jobs else ():
            if self._find_node_keeper(node) is not None:
                for process in self.processes(node):
                    if not process.name.startswith("slurmd") and process.name != "slurmstepd":
                        with contextlib.suppress(ProcessLookupError):
                            process.send(signal.SIGKILL)
        return not jobs

    def _takes_jobs(self, node: str) -> bool:
        return self.node_states().get(node) in ("idle", "mixed", "allocated")

    def _has_daemon(self, node: str) -> bool:
        return any(process.name == "slurmd" for process in self.processes(node))

    def _enter(self, node: str) -> tuple[str, ...]:
        target = str(self._node_keeper(node))
        return ("nsenter", "--target", target, "--pid", "--mount", "--uts", "--")

    def _node_keeper(self, node: str) -> int:
        keeper = self._find_node_keeper(node)
        if keeper is None:
            raise RuntimeError(f"{node} is not running: it was lost, or has not started")
        return keeper

    def _find_node_keeper(self, node: str) -> int | None:
        """The number, here, of the first process of a node's namespace."""
        wanted = f"{KEEPER} node {self.folder} {node}"
        for pid in all_pids():
            with contextlib.suppress(OSError):
                if read_process(pid).command.endswith(wanted) and is_first(pid):
                    return pid
        return None


def new_folder() -> Path:
    """In /tmp whatever TMPDIR says: slurmd makes sockets, whose paths must be short."""
    return Path(tempfile.mkdtemp(prefix="lmscale-slurm-", dir="/tmp"))


def wait_until(is_done: Callable[[], bool], seconds: float, what: str) -> None:
    """Ask until it is so; ever more seldom, since to ask Slurm is a process or two.

    What passes by itself may be missed.
    """
    began = time.monotonic()
    while not is_done():
        waited = time.monotonic() - began
        if waited > seconds:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(min(max(0.1, waited / 10), 0.5))
