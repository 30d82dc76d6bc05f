"""A training's batch script, run by bash with stand-ins for Slurm's commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurm_cases import make_config, make_request

from launcher.plan import plan_job
from launcher.render import render
from lmscale.config.cluster import change_cluster, load_cluster

# Every stand-in notes what it was asked; the rest of it is in the file NAME.body.
STAND_IN = """\
#!/usr/bin/env -S --default-signal=USR1 bash
commit() { echo '{"event": "commit", "step": '"$1"', "n": 0}' >>"$RUN/commits.jsonl"; }
remove() { echo '{"event": "remove", "step": '"$1"', "time": 1.5}' >>"$RUN/commits.jsonl"; }
leave() { echo "$2" >"$LMSCALE_EXITS/rank-0000$1"; }
fault() { printf "$2" >"$LMSCALE_EXITS/fault-0000$1"; }
echo "${0##*/} $*" >>"$FAKES/calls"
. "$FAKES/${0##*/}.body"
"""
RUNNING = "JobId=7 JobState=RUNNING Reason=None Restarts=0"
BODIES = {
    "srun": "exit 99",
    "scontrol": '[[ $1 != show ]] || cat "$FAKES/record"',
    "scancel": "",
    "squeue": "",
    "getent": "echo 127.0.0.1 STREAM",
    "sleep": "exec /bin/sleep 0.05",
}


@dataclass(frozen=True)
class End:
    """How an attempt ended."""

    code: int
    row: dict[str, Any]
    """Its last one in events.jsonl."""
    calls: list[str]
    """Of Slurm's commands, in this attempt."""
    output: str
    left: list[str]
    """Commands of processes that outlived it, until then."""

    @property
    def action(self) -> str:
        return self.row["action"]

    def called(self, words: str) -> bool:
        return any(words in call for call in self.calls)


class Submission:
    """A rendered script, and the attempts that Slurm would make of it."""

    def __init__(
        self,
        folder: Path,
        *,
        preflight: bool = False,
        cordon: dict[str, Any] | None = None,
        **profile: Any,
    ) -> None:
        self.run, self.fakes = folder / "run", folder / "fakes"
        changes = {"preflight": cordon or {"enabled": preflight}, **profile}
        cluster = change_cluster(load_cluster("lab"), changes, name="a test")
        config = make_config("demo", {"run.folder": str(self.run)})
        self.job = plan_job(make_request(cluster, config=config), "train")
        self.job.frozen_folder.mkdir(parents=True)
        self.script = folder / "job.sh"
        self.script.write_text(render(self.job))
        self.fakes.mkdir()
        for name in BODIES:
            (self.fakes / name).write_text(STAND_IN)
            (self.fakes / name).chmod(0o755)

    def attempt(
        self,
        srun: str,
        *,
        restart: int = 0,
        job: str = "7",
        record: str = RUNNING,
        age: int = 0,
        **bodies: str,
    ) -> End:
        """Run it; ``srun`` and ``bodies`` are lines of bash that stand for a command.

        ``age``: seconds for which it has run already.
        """
        for name, body in {**BODIES, "srun": srun, **bodies}.items():
            (self.fakes / f"{name}.body").write_text(f"{body}\n")
        (self.fakes / "record").write_text(f"{record}\n")
        (self.fakes / "calls").write_text("")
        variables = {
            "PATH": f"{self.fakes}:{os.environ['PATH']}",
            "HOME": str(self.run.parent),
            "RUN": str(self.run),
            "FAKES": str(self.fakes),
            "SECONDS": str(age),  # bash goes on from there
            "SLURM_JOB_ID": job,
            "SLURM_JOB_NODELIST": "n1",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURMD_NODENAME": "localhost",
        }
        if restart:
            variables["SLURM_RESTART_COUNT"] = str(restart)
        output = self.fakes / "output"
        start = f'echo $$ >"$FAKES/pid"; exec bash {self.script}'
        with open(output, "wb") as file:
            process = subprocess.Popen(
                ["bash", "-c", start],
                env=variables,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
            code = process.wait(timeout=60)
        return End(
            code=code,
            left=_end_session(process.pid),
            row=self.rows()[-1],
            calls=(self.fakes / "calls").read_text().splitlines(),
            output=output.read_text(),
        )

    def rows(self) -> list[dict[str, Any]]:
        lines = (self.run / "slurm" / "events.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


def _end_session(session: int) -> list[str]:
    """Kill the processes of a session; their commands."""
    commands = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        _, state, _, _, its_session = stat[stat.rindex(")") :].split()[:5]
        if int(its_session) == session and state != "Z":
            commands.append(command)
            os.kill(int(folder.name), signal.SIGKILL)
    return commands
