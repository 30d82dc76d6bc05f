"""What may be wrong with a cluster profile whose values are each of their type, rule by rule.

Where some keys are invalid, a profile is judged that lacks these (``Section.rules``): a rule that
looks at each value by itself passes over what is not there.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, TypeAlias

from lmscale.config.sbatch_options import find_option_problems, find_unsafe_text
from lmscale.files.redact import names_secret, redact

Profile: TypeAlias = Any
"""A ``ClusterConfig``, or what there is of one."""

_TIME = re.compile(r"(?:(\d{1,6})-)?(\d{1,4}):(\d{2}):(\d{2})", re.ASCII)
_MEMORY = re.compile(r"\d{1,9}[KMGT]?", re.ASCII | re.IGNORECASE)
_NODES = re.compile(r"[A-Za-z0-9._-]+([\[\],A-Za-z0-9._-]*)")
MIN_SIGNAL_SECONDS = 60
_SBATCH_TEXTS = ("partition", "account", "qos", "constraint", "reservation")
_OWN_VARIABLES = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK"}
_OWN_VARIABLES |= {"MASTER_ADDR", "MASTER_PORT"}


def parse_time(text: str) -> int | None:
    """Seconds of ``D-HH:MM:SS`` or ``HH:MM:SS``, or None.

    Slurm's shorter forms are left out: its ``10:00`` is ten minutes, which few people expect.
    """
    match = _TIME.fullmatch(text)
    if not match:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    return total if total and minutes < 60 and seconds < 60 else None


def _time_problems(cluster: Profile) -> Iterator[str]:
    if parse_time(cluster.time) is None:
        yield f'time: "{cluster.time}" is not of the form "D-HH:MM:SS" or "HH:MM:SS"'


def _signal_problems(cluster: Profile) -> Iterator[str]:
    if cluster.signal_seconds < MIN_SIGNAL_SECONDS:
        yield (
            f"signal_seconds = {cluster.signal_seconds} is less than {MIN_SIGNAL_SECONDS}: Slurm "
            "looks at time limits every 30 to 60 s, so the run might not be told to save at all"
        )
    limit = parse_time(cluster.time)
    if limit is not None and cluster.signal_seconds >= limit:
        yield (
            f"signal_seconds = {cluster.signal_seconds} is not less than time = {cluster.time} "
            f"({limit} s): the run would be told to stop as soon as it starts"
        )


def _rank_problems(cluster: Profile) -> Iterator[str]:
    if not cluster.gpus_per_node and not cluster.tasks_per_node:
        yield "tasks_per_node is needed where gpus_per_node is 0: how many ranks a node?"


def _gpu_problems(cluster: Profile) -> Iterator[str]:
    if cluster.gpu_type and not cluster.gpus_per_node:
        yield f"gpu_type = {cluster.gpu_type}, but gpus_per_node is 0"


def _chain_problems(cluster: Profile) -> Iterator[str]:
    if cluster.chain > 1 and cluster.requeue:
        yield (
            f"chain = {cluster.chain} is for clusters that forbid requeue; set requeue: false, or "
            "leave chain out"
        )


def _memory_problems(cluster: Profile) -> Iterator[str]:
    memory = cluster.memory_per_node
    if memory is not None and not _MEMORY.fullmatch(memory):
        yield f'memory_per_node: "{memory}" is not of the form "64G"; "0" is all'


def _text_problems(cluster: Profile) -> Iterator[str]:
    """Values that go into #SBATCH lines."""
    for name in (*_SBATCH_TEXTS, "gpu_type"):
        text = getattr(cluster, name, None)
        if text is None:
            continue
        why = find_unsafe_text(text) if text.strip() else "it is empty; leave it out"
        if why:
            yield f"{name} = {text!r}: {why}"


def _exclude_problems(cluster: Profile) -> Iterator[str]:
    for nodes in cluster.exclude:
        if not _NODES.fullmatch(nodes):
            yield f'exclude: {nodes!r} is not a list of nodes such as "n7" or "n[10-12]"'


def _line_problems(cluster: Profile) -> Iterator[str]:
    container = getattr(cluster, "container", None)
    lines = {
        "srun_options": getattr(cluster, "srun_options", ()),
        "modules": getattr(cluster, "modules", ()),
        "container.mounts": getattr(container, "mounts", ()),
        "container.options": getattr(container, "options", ()),
        "container.image": (getattr(container, "image", ""),),
        "python": (getattr(cluster, "python", None) or "",),
    }
    for name, values in lines.items():
        for value in values:
            if not value.isprintable():
                yield f"{name}: {value!r} holds a line break or another control character"


def _option_problems(cluster: Profile) -> Iterator[str]:
    yield from find_option_problems(cluster.sbatch_options)


def _data_time_problems(cluster: Profile) -> Iterator[str]:
    if cluster.data.time is None:
        return
    limit = parse_time(cluster.data.time)
    if limit is None:
        yield f'data.time: "{cluster.data.time}" is not of the form "D-HH:MM:SS" or "HH:MM:SS"'
    elif cluster.signal_seconds >= limit:
        yield (
            f"data.time = {cluster.data.time} is not more than signal_seconds = "
            f"{cluster.signal_seconds}"
        )


def _data_problems(cluster: Profile) -> Iterator[str]:
    memory = getattr(cluster.data, "memory", None)
    if memory is not None and not _MEMORY.fullmatch(memory):
        yield f'data.memory: "{memory}" is not of the form "16G"'
    for name in _SBATCH_TEXTS:
        text = getattr(cluster.data, name, None) or ""
        if why := find_unsafe_text(text):
            yield f"data.{name} = {text!r}: {why}"
    for problem in find_option_problems(getattr(cluster.data, "sbatch_options", None) or ()):
        yield f"data.{problem}"


def _variable_problems(cluster: Profile) -> Iterator[str]:
    for name, value in cluster.variables.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            yield f"variables: {name!r} is not a name that a shell can export"
        elif name in _OWN_VARIABLES or name.startswith(("SLURM_", "SBATCH_", "LMSCALE_")):
            yield f"variables: {name} is set by the launcher or by Slurm; leave it out"
        if not value.isprintable():
            yield (f"variables: {name} = {value!r} holds a line break or another control character")


def _secret_problems(cluster: Profile) -> Iterator[str]:
    """Secrets that the batch script and cluster.yaml would show to everybody who sees the run."""
    advice = (
        "would be written into the batch script. Export it before `lmscale launch slurm`, or in "
        "setup from a file that only you can read: export NAME=$(cat ~/.name)."
    )
    for name, value in getattr(cluster, "variables", {}).items():
        if value and (names_secret(name) or redact(value) != value):
            yield f"variables: {name} sounds like a secret, and {advice}"
    data, container, preflight = (
        getattr(cluster, name, None) for name in ("data", "container", "preflight")
    )
    for name, values in (
        ("setup", getattr(cluster, "setup", ())),
        ("sbatch_options", getattr(cluster, "sbatch_options", ())),
        ("data.sbatch_options", getattr(data, "sbatch_options", None) or ()),
        ("srun_options", getattr(cluster, "srun_options", ())),
        ("container.options", getattr(container, "options", ())),
        ("preflight.command", (getattr(preflight, "command", None) or "",)),
    ):
        for value in values:
            if redact(value) != value:
                yield f"{name}: {redact(value)!r} holds a secret (here as ***), which {advice}"


def _container_problems(cluster: Profile) -> Iterator[str]:
    container = cluster.container
    if container.kind == "none":
        given = [name for name in ("image", "mounts", "options") if getattr(container, name)]
        if given:
            yield (
                f"container.{given[0]} is given, but container.kind is none; set it to pyxis or "
                "apptainer"
            )
        return
    if not container.image:
        yield f"container.kind = {container.kind} needs container.image"
    if not cluster.python:
        yield (
            f"container.kind = {container.kind} needs python: the interpreter inside of the image"
        )
    if not set(cluster.shared) - {"/"}:
        yield (
            f"container.kind = {container.kind} needs shared: the folders of runs and data, which "
            "are mounted into it"
        )
    if container.kind == "pyxis" and any("," in mount for mount in container.mounts):
        yield "container.mounts: Pyxis separates mounts by commas; give one an entry"


def _folder_problems(cluster: Profile) -> Iterator[str]:
    file = getattr(getattr(cluster, "preflight", None), "cordon_file", None)
    folders = {
        "scratch": (getattr(cluster, "scratch", "/tmp"),),
        "shared": getattr(cluster, "shared", ()),
        "preflight.cordon_file": () if file is None else (file,),
    }
    problems = [
        f"{name}: {folder!r} must be an absolute path on one line"
        for name, values in folders.items()
        for folder in values
        if not folder.startswith("/") or not folder.isprintable()
    ]
    yield from problems
    if file is not None and cluster.shared and not problems:
        place = PurePosixPath(posixpath.normpath(file))
        if not any(place.is_relative_to(posixpath.normpath(root)) for root in cluster.shared):
            yield (
                f"preflight.cordon_file: {file!r} is not below a folder of shared "
                f"({', '.join(cluster.shared)}): the nodes write it, and the login node reads it"
            )


RULES = (
    _time_problems,
    _signal_problems,
    _rank_problems,
    _gpu_problems,
    _chain_problems,
    _memory_problems,
    _text_problems,
    _exclude_problems,
    _line_problems,
    _option_problems,
    _data_time_problems,
    _data_problems,
    _variable_problems,
    _secret_problems,
    _container_problems,
    _folder_problems,
)
