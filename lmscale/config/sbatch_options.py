"""Options of sbatch that a person passes on, and those that are decided elsewhere."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from lmscale.errors import ConfigError

PROFILE_KEYS = ("time", "partition", "account", "qos", "constraint", "reservation", "exclude")
"""Of a profile's keys those that are called as sbatch calls them."""
_OWN = "is the launcher's own; leave it out"
OWN_OPTIONS = {
    **dict.fromkeys(("chdir", "wrap", "kill-on-invalid-dep"), _OWN),
    **dict.fromkeys(("wait", "parsable", "test-only", "clusters"), _OWN),
    **dict.fromkeys(
        ("output", "error", "open-mode"),
        "is the launcher's own: the output goes where `lmscale launch slurm` says; leave it out",
    ),
    "job-name": "follows from the configuration's key run.name",
    "array": "comes from --array or --tasks of `lmscale launch slurm`",
    "dependency": "comes from --after of `lmscale launch slurm`",
    **dict.fromkeys(("nodes", "ntasks"), "comes from --nodes of `lmscale launch slurm`"),
    **dict.fromkeys(("requeue", "no-requeue"), "is the profile's key requeue"),
    **{
        name: f"is the profile's key {name.replace('-', '_')}"
        for name in (*PROFILE_KEYS, "exclusive", "cpus-per-task", "gpus-per-node")
    },
    "signal": "is the profile's key signal_seconds",
    "ntasks-per-node": "is the profile's key tasks_per_node",
    "mem": "is the profile's key memory_per_node",
    "gres": "comes from the profile's keys gpus_per_node and gpu_type",
}
"""Options of sbatch that are decided elsewhere, and where."""
_SHORT = {
    **{"A": "account", "C": "constraint", "D": "chdir", "G": "gpus", "J": "job-name"},
    **{"L": "licenses", "M": "clusters", "N": "nodes", "S": "core-spec", "W": "wait"},
    **{"a": "array", "b": "begin", "c": "cpus-per-task", "d": "dependency", "e": "error"},
    **{"i": "input", "m": "distribution", "n": "ntasks", "o": "output", "p": "partition"},
    **{"q": "qos", "t": "time", "w": "nodelist", "x": "exclude", "H": "hold", "k": "no-kill"},
    **{"s": "oversubscribe"},
}
_OPTION = re.compile(r"--([a-z][a-z0-9-]*)(?:=(.+))?")
_WHOLE = ("gpus",)  # names of options that are the beginning of another's
_JOB = r"\d+(?:_(?:\d+|\*))?"
_CONDITION = re.compile(
    rf"(?:after|afterany|afterok|afternotok|aftercorr|afterburstbuffer)(?::{_JOB}(?:\+\d+)?)+"
)


class Asked(NamedTuple):
    """What a command line asks of sbatch."""

    keys: dict[str, str]  # the profile's keys that it replaces
    options: tuple[str, ...]  # ``--name=value`` or ``--name``, for sbatch as they are
    after: str | None  # the dependency


def find_option_problems(options: Iterable[str]) -> Iterator[str]:
    """What of a profile's ``sbatch_options`` cannot be passed on, and why."""
    for option in options:
        match = _OPTION.fullmatch(option)
        if not match:
            yield f"sbatch_options: {option!r}: write it as --name or --name=value"
        elif (name := decided_elsewhere(match[1])) is not None:
            yield f"sbatch_options: --{match[1]} {OWN_OPTIONS[name]}"
        elif why := find_unsafe_text(option):
            yield f"sbatch_options: {option!r}: {why}"


def decided_elsewhere(name: str) -> str | None:
    """The key of ``OWN_OPTIONS`` that sbatch takes ``name`` for, which may be shortened."""
    if name in OWN_OPTIONS:
        return name
    longer = [own for own in OWN_OPTIONS if own.startswith(name) and name not in _WHOLE]
    return longer[0] if longer else None


def parse_asked(named: Mapping[str, str], words: Iterable[str]) -> Asked:
    """``named``: option → value as they have options of their own; ``words``: what is to be passed
    on, as sbatch takes it: ``--qos=debug``, ``--qos debug``, ``-q debug``.

    Raises ``ConfigError`` with all that cannot be passed on.
    """
    problems: list[str] = []
    found: dict[str, str | None] = dict(named)
    for name, value in _pair(words, problems):
        if found.setdefault(name, value) != value:
            problems.append(f"--{name} is given twice: {found[name]} and {value}.")
    after = found.pop("dependency", None)
    try:
        after = None if after is None else parse_after(after)
    except ConfigError as error:
        problems += error.problems
    keys = {name: value or "" for name, value in found.items() if name in PROFILE_KEYS}
    rest = {name: value for name, value in found.items() if name not in keys}
    options = tuple(f"--{k}" if v is None else f"--{k}={v}" for k, v in rest.items())
    for option in options:
        if why := find_unsafe_text(option):
            problems.append(f"{option!r}: {why}.")
    if problems:
        raise ConfigError(problems)
    return Asked(keys, options, after)


def _pair(words: Iterable[str], problems: list[str]) -> Iterator[tuple[str, str | None]]:
    """Name and value of each option that may be passed on."""
    left = list(words)
    while left:
        word = left.pop(0)
        short = re.fullmatch(r"-([A-Za-z])=?(.*)", word, re.DOTALL)
        long = re.fullmatch(r"--([a-z][a-z0-9-]*)(?:=(.*))?", word, re.DOTALL)
        if short and short[1] in _SHORT:
            name, value = _SHORT[short[1]], short[2] or None
        elif long:
            name, value = long[1], long[2]
        else:
            problems.append(f"{word!r} is no option for sbatch: write it as --name=value.")
            continue
        if value is None and left and not left[0].startswith("-"):
            value = left.pop(0)
        if name in (*PROFILE_KEYS, "dependency"):
            yield name, value or ""
        elif (own := decided_elsewhere(name)) is not None:
            problems.append(f"{word} cannot be passed on to sbatch: --{own} {OWN_OPTIONS[own]}.")
        else:
            yield name, value


def split_words(texts: Iterable[str]) -> list[str]:
    """The words of what several ``--sbatch`` say. Raises ``ConfigError``."""
    try:
        return [word for text in texts for word in shlex.split(text)]
    except ValueError as error:
        raise ConfigError(f"--sbatch: {error}: {' '.join(texts)}") from None


def parse_after(text: str) -> str:
    """sbatch's dependency: a job's number alone is ``afterany``, its end whatever it is.

    Raises ``ConfigError``.
    """
    if re.fullmatch(_JOB, text, re.ASCII):
        return f"afterany:{text}"
    parts = re.split(r"[,?]", text)
    mixed = "," in text and "?" in text
    if mixed or not all(_CONDITION.fullmatch(part) or part == "singleton" for part in parts):
        raise ConfigError(
            f"--after {text}: give the number of a job, such as 4711 or of an array's task 4711_3, "
            "to wait for its end; or a condition of sbatch, such as afterok:4711 or "
            "afterok:4711:4712,afternotok:4713."
        )
    return text


def merge_options(options: Iterable[str], more: Iterable[str]) -> tuple[str, ...]:
    """``options`` and ``more``; of an option in both the latter's value counts."""
    merged = {option.partition("=")[0]: option for option in (*options, *more)}
    return tuple(merged.values())


def find_unsafe_text(text: str) -> str | None:
    """Why ``text`` cannot stand in an #SBATCH line, or None.

    Spaces and # are fine, because the value is quoted; for what ends a quotation there is no
    escape that every version of sbatch reads alike.
    """
    if not text.isprintable():
        return "it holds a line break or another control character"
    quotes = sorted(set(text) & set("\"'`\\"))
    return f"it holds {' '.join(quotes)}" if quotes else None
