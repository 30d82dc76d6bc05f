"""Which steps of a run are looked at closely, by which ranks, and where what was seen lies."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lmscale.errors import ConfigError
from lmscale.files.printing import count_of
from lmscale.files.run_files import PROFILES
from lmscale.ranks.ranks import render_numbers

STEPS_OPTION, RANKS_OPTION = "--profile", "--profile-ranks"
SUMMARY_FILE = "summary.md"
TRACE_FILE = "trace.json.gz"
SNAPSHOT_FILE = "memory.pickle"


@dataclass(frozen=True, kw_only=True)
class ProfilePlan:
    """Steps ``first`` to ``last`` of a run, on some ranks."""

    first: int
    last: int
    ranks: tuple[int, ...] | None = (0,)  # None: all

    def covers(self, step: int) -> bool:
        return self.first <= step <= self.last

    def is_for(self, rank: int) -> bool:
        return self.ranks is None or rank in self.ranks

    @property
    def words(self) -> tuple[str, ...]:
        """The options of ``lmscale train`` that mean this plan."""
        ranks = "all" if self.ranks is None else render_numbers(self.ranks)
        return (STEPS_OPTION, f"{self.first}:{self.last}", RANKS_OPTION, ranks)

    @property
    def name(self) -> str:
        """Of its folder in ``RUN/profiles``."""
        return f"steps-{self.first:09d}-{self.last:09d}"

    def folder(self, run_folder: Path, rank: int) -> Path:
        return run_folder / PROFILES / self.name / f"rank-{rank:05d}"

    def check(self, *, steps: int, world_size: int | None = None) -> None:
        """Raise ``ConfigError`` where a run of ``steps`` steps on so many ranks, None being any
        number, has no such step or rank.
        """
        problems = []
        if self.last > steps:
            problems.append(
                f"{STEPS_OPTION} {self.first}:{self.last}, but the run ends with step {steps:,} "
                "(train.steps): name steps that it does."
            )
        if world_size is not None and self.ranks is not None and max(self.ranks) >= world_size:
            problems.append(
                f"{RANKS_OPTION} names rank {max(self.ranks)}, but the ranks are 0 to "
                f"{world_size - 1}."
            )
        if problems:
            raise ConfigError(problems)


def parse_profile(steps: str | None, ranks: str | None = None) -> ProfilePlan | None:
    """``10:12`` and ``0``, ``0,8-15`` or ``all``; None where no steps are named.

    Raises ``ConfigError``.
    """
    problems = []
    first, last = 0, 0
    if steps is None:
        if ranks is not None:
            raise ConfigError(f"{RANKS_OPTION} {ranks} needs {STEPS_OPTION} A:B, the steps.")
        return None
    match = re.fullmatch(r"([1-9]\d{0,11}):([1-9]\d{0,11})", steps.strip(), re.ASCII)
    if match:
        first, last = int(match[1]), int(match[2])
    if not match or first > last:
        problems.append(
            f"{STEPS_OPTION} {steps}: give the first and the last step, such as 10:12; steps count "
            "from 1."
        )
    chosen = None if ranks == "all" else _parse_ranks(ranks or "0", problems)
    if problems:
        raise ConfigError(problems)
    return ProfilePlan(first=first, last=last, ranks=chosen)


def _parse_ranks(text: str, problems: list[str]) -> tuple[int, ...]:
    ranks: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part.strip(), re.ASCII)
        span = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
        if not span:
            problems.append(
                f"{RANKS_OPTION} {text}: give numbers of ranks such as 0 or 0,8-15, or all."
            )
            break
        ranks.update(span)
    return tuple(sorted(ranks))


def find_profiles(run_folder: Path) -> Mapping[str, tuple[Path, ...]]:
    """Steps as they were asked for → the summaries that ranks have left of them."""
    found = {}
    for folder in sorted((run_folder / PROFILES).glob("steps-*-*")):
        steps = re.fullmatch(r"steps-(\d+)-(\d+)", folder.name)
        summaries = tuple(sorted(folder.glob(f"rank-*/{SUMMARY_FILE}")))
        if steps and summaries:
            found[f"{int(steps[1]):,} to {int(steps[2]):,}"] = summaries
    return found


def describe_profiles(run_folder: Path) -> Iterator[str]:
    """A line for each profile of a run: its steps, and where to read of them."""
    for steps, summaries in find_profiles(run_folder).items():
        others = len(summaries) - 1
        more = f", and of {count_of(others, 'other rank')}" if others else ""
        yield f"steps {steps}: {summaries[0]}{more}"
