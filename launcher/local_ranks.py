"""How many ranks a machine trains with where nobody says it: ``--nproc auto``."""

from __future__ import annotations

from collections.abc import Sequence

from lmscale.errors import ConfigError
from lmscale.files.printing import count_of
from lmscale.ranks.gpus import Gpus

# Of a small model's matrices a thread beyond the fourth gains little, and each rank holds weights
# and workers of its own; so one rank until there are cores for two.
CORES_PER_RANK = 4
AUTO = "auto"


def parse_nproc(text: str) -> int | None:
    """The number of ranks; None for ``auto``. Raises ``ConfigError``."""
    if text.strip().lower() == AUTO:
        return None
    if not text.strip().isdecimal() or not 0 < len(text.strip()) < 7 or not int(text):
        raise ConfigError(
            f"--nproc {text}: give the number of ranks, at least one, or {AUTO}: one for each GPU, "
            "or what the cores allow."
        )
    return int(text)


def plan_local_ranks(step_sizes: Sequence[int], *, gpus: Gpus, cores: int) -> tuple[int, str]:
    """The ranks of ``--nproc auto``, and why as a sentence.

    ``step_sizes``: the windows of the run's steps, each of which has to be dealt evenly.
    """
    num_gpus = gpus.count
    most = num_gpus or max(1, cores // CORES_PER_RANK)
    count = max(n for n in range(1, most + 1) if all(size % n == 0 for size in step_sizes))
    ranks = count_of(count, "rank")
    if count < most:
        sizes = " and ".join(map(str, dict.fromkeys(step_sizes)))
        ranks += f" of {most} that could be, as {count} divides a step's {sizes} windows"
    if num_gpus:
        why = f"one for each of {count_of(num_gpus, 'GPU')}" if count == num_gpus else "on GPUs"
        return count, f"--nproc {AUTO}: {ranks}, {why}."
    threads = max(1, cores // count)
    each = f"{count_of(threads, 'thread')}{' each' if count > 1 else ''}"
    none = "no GPU"
    if gpus.has_driver:
        none = "and a GPU's driver, by which torch finds no GPU: lmscale doctor says why"
    return count, f"--nproc {AUTO}: {ranks} on the CPU, {each}: {count_of(cores, 'core')}, {none}."
