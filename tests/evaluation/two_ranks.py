"""A command as two ranks of one machine, which meet."""

from __future__ import annotations

import json
from pathlib import Path

from tiny_run import Ended, start_lmscale

from launcher.rendezvous import environment_for, find_free_port


def run_on_two(*words: str | Path) -> tuple[Ended, Ended]:
    """How `lmscale WORDS` ends on each."""
    master = ("127.0.0.1", find_free_port())
    processes = [
        start_lmscale(
            *words,
            environment=environment_for(
                rank, world_size=2, local_rank=rank, local_world_size=2, node_rank=0, master=master
            ),
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    first, second = (
        Ended(code=process.wait(), output=output)
        for process, output in zip(processes, outputs, strict=True)
    )
    return first, second


def figures_of(ended: Ended) -> dict:
    """What it has printed as JSON."""
    assert ended.code == 0, ended.output
    return json.loads(ended.output[ended.output.index("{") :])
