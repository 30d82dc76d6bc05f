"""Jobs of a stage that are in the queue already: whether they make what is asked for now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.job import ARRAY_KINDS, JobKind, Prepared
from launcher.slurm import QueuedJob, sacct
from launcher.upstream import Upstream, describe_upstream
from lmscale.config import RunConfig, load_config
from lmscale.config.cluster import load_cluster
from lmscale.errors import ClusterError, LmscaleError
from lmscale.files.run_files import CONFIG_FILE
from lmscale.runs.continuation import list_settings

READS: Mapping[JobKind, str] = {
    "corpus": "corpus.",
    "tokenizer": "tokenizer.",
    "shards": "shards.",
    "train": "",
}
"""How the settings begin that a stage adds to those before it: others may share its data."""
MAX_NAMED = 4
MAX_VALUE_CHARS = 40


def find_other_settings(prepared: Prepared, row: Mapping[str, Any]) -> list[str]:
    """Of the submission ``row`` each setting that is another now: ``train.steps is 3, here 9``."""
    frozen, job = Path(row["folder"]), prepared.job
    configs = [frozen / CONFIG_FILE]
    if job.members:
        configs = sorted((frozen / "configs").glob("*.yaml"))
    runs = prepared.request.runs
    if len(configs) != len(runs):
        return [f"it has {len(configs)} runs, here {len(runs)}"]
    found: dict[str, None] = {}
    for path, config in zip(configs, runs, strict=True):
        try:
            found |= dict.fromkeys(_compare(load_config(path), config, READS[job.kind]))
        except LmscaleError:
            continue  # written by another version, or damaged: its job will tell
    nodes = tuple(row.get("nodes") or (job.min_nodes, job.max_nodes))
    if job.kind == "train" and nodes != (job.min_nodes, job.max_nodes):
        found[f"--nodes is {_range(*nodes)}, here {_range(job.min_nodes, job.max_nodes)}"] = None
    return list(found)


def _compare(there: RunConfig, here: RunConfig, section: str) -> Iterator[str]:
    old, new = _values(there, section), _values(here, section)
    for key in dict.fromkeys((*old, *new)):
        if old.get(key) != new.get(key):
            yield _tell(key, old.get(key), new.get(key))


def _values(config: RunConfig, section: str) -> dict[str, Any]:
    return {s.key: s.value for s in list_settings(config) if s.key.startswith(section)}


def _tell(key: str, there: object, here: object) -> str:
    is_long = max(len(repr(there)), len(repr(here))) > MAX_VALUE_CHARS
    return f"{key} is another" if is_long else f"{key} is {there!r}, here {here!r}"


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"


def describe_other_options(prepared: Prepared, row: Mapping[str, Any]) -> str:
    """Which keys of the profile, as the options change it, are others than in the submission
    ``row``, and whether another job is asked to come before; "" where nothing is.
    """
    try:
        there = load_cluster(Path(row["folder"]) / "cluster.yaml").model_dump()
    except LmscaleError:
        return ""
    here = prepared.request.cluster.model_dump()
    changed = [_tell(key, there[key], here[key]) for key in here if there[key] != here[key]]
    if (after := prepared.job.after) and after != row.get("after"):
        changed.append(_tell("--after", row.get("after"), after))
    return f"as it was submitted: {name_some(changed)}" if changed else ""


def name_some(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - MAX_NAMED} more" if len(texts) > MAX_NAMED else ""
    return "; ".join(texts[:MAX_NAMED]) + more


def refuse_failed(prepared: Prepared, numbers: Sequence[str], queue: Sequence[QueuedJob]) -> None:
    """Raise ``ClusterError`` where a task of these arrays has failed while others go on: what is
    behind them can never begin.
    """
    job = prepared.job
    if job.kind not in ARRAY_KINDS or not numbers:
        return
    stages = [asdict(Upstream(kind=job.kind, job=n, output=job.output_of(n))) for n in numbers]
    try:
        accounts = sacct(numbers)
    except ClusterError:
        accounts = ()  # the queue knows of the last minutes
    words, can_come = describe_upstream(stages, queue, accounts)
    if not can_come:
        raise ClusterError(
            f"{words}. Other tasks of it go on, and what waits for all of them can never begin: "
            f"wait until they have ended, or end them with `scancel {' '.join(numbers)}`, and "
            "give the same command again."
        )


def refuse_other_settings(prepared: Prepared, row: Mapping[str, Any], end: str) -> None:
    """Raise ``ClusterError`` where the job that stays would make something else. ``end``: the
    command that ends it.
    """
    if others := find_other_settings(prepared, row):
        raise ClusterError(
            f"job {row['job']} was submitted with other settings: "
            f"{name_some(others)}. Wait until it has ended, or end it with `{end}`, and give the "
            "same command again; or set them back."
        )
