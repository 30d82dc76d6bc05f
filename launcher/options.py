"""The arguments of ``lmscale launch slurm``, and what they make of a cluster's profile. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.job import DATA_KINDS, JobKind
from lmscale.config.cluster import change_cluster, load_cluster
from lmscale.config.cluster_profile import ClusterConfig
from lmscale.config.sbatch_options import Asked, merge_options, parse_asked, split_words
from lmscale.errors import ConfigError
from lmscale.runs.profiles import STEPS_OPTION, ProfilePlan


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """What a command line asks for."""

    config: Path
    cluster: str
    overrides: tuple[str, ...] = ()
    kind: JobKind = "train"
    nodes: str | None = None  # None: one; of an evaluation, one rank of it
    time: str | None = None
    chain: int | None = None
    tasks: int | None = None
    only: tuple[int, ...] = ()
    axes: tuple[str, ...] = ()
    sweep: str | None = None
    step: int | None = None
    after: str | None = None
    asked: Mapping[str, str] = field(default_factory=dict)  # of sbatch: partition, mail-user, …
    sbatch: tuple[str, ...] = ()  # what --sbatch says
    words: tuple[str, ...] = ()  # what stands behind --
    profile: ProfilePlan | None = None  # steps that the ranks trace
    is_awaited: bool = False  # earlier jobs of its pipeline make what it reads
    ignores_plan: bool = False  # whether it is submitted though the planner says it cannot fit


def parse_nodes(text: str | None) -> tuple[int, int]:
    """``8`` or ``4-8``."""
    text = "1" if text is None else text
    match = re.fullmatch(r"([1-9]\d{0,5})(?:-([1-9]\d{0,5}))?", text.strip(), re.ASCII)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
    if low > high:
        raise ConfigError(f"--nodes {text}: give a number such as 8, or a range such as 4-8.")
    return low, high


def read_asked(options: LaunchOptions) -> Asked:
    """What is asked of sbatch itself. Raises ``ConfigError``."""
    named = dict(options.asked)
    named |= {} if options.time is None else {"time": options.time}
    named |= {} if options.after is None else {"dependency": options.after}
    return parse_asked(named, [*split_words(options.sbatch), *options.words])


def plan_cluster(options: LaunchOptions, asked: Asked) -> ClusterConfig:
    """The profile as the options change it, checked again. Raises ``ConfigError``."""
    cluster = load_cluster(options.cluster)
    if options.kind in DATA_KINDS:
        cluster = cluster.for_data()
    changes: dict[str, Any] = dict(asked.keys)
    if "exclude" in changes:  # besides the nodes that no job gets
        changes["exclude"] = (*cluster.exclude, changes["exclude"])
    if options.chain is not None:
        # A chain's jobs do not come back: the next one goes on.
        changes |= {"chain": options.chain, "requeue": cluster.requeue and options.chain == 1}
    if asked.options:
        changes["sbatch_options"] = merge_options(cluster.sbatch_options, asked.options)
    if not changes:
        return cluster
    given = [f"--{name}" for name in asked.keys] + ["--chain"] * (options.chain is not None)
    given += [option.partition("=")[0] for option in asked.options]
    return change_cluster(cluster, changes, name=f"{options.cluster} with {', '.join(given)}")


def find_misfits(options: LaunchOptions) -> list[str]:
    """A problem for each option that has no meaning for a job of this kind."""
    is_array = options.kind in ("corpus", "shards")
    job = f"--job {options.kind}" if options.kind != "preflight" else "--preflight-only"
    given = {
        "--tasks": options.tasks is not None and not is_array,
        "--array": bool(options.axes) and options.kind != "train",
        "--chain": options.chain is not None and options.kind != "train",
        STEPS_OPTION: options.profile is not None and options.kind != "train",
        "--step": options.step is not None and options.kind != "evaluate",
        "--nodes": options.nodes not in (None, "1") and options.kind in DATA_KINDS,
    }
    misfits = (name for name, is_misfit in given.items() if is_misfit)
    problems = [f"{name} has no meaning for {job}; leave it out." for name in misfits]
    if options.sweep is not None and not options.axes:
        problems.append("--sweep needs --array KEY=V1,V2: which setting takes which values?")
    return problems
