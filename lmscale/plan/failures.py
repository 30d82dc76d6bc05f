"""How often machines fail, by published runs, and how often to save: the closed forms.

Young 1974 ("A first order approximation to the optimum checkpoint interval", CACM 17:9) and Daly
2006 ("A higher order estimate of the optimum checkpoint interval for restart dumps", Future
Generation Computer Systems 22:3) both take failures to come by chance, at a constant rate. What has
no closed form is simulation.py's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

DAY = 86_400.0
HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class FailureRecord:
    """Unplanned ends of jobs, as somebody has counted them."""

    name: str
    devices: int
    devices_per_node: int
    seconds: float
    failures: float
    source: str

    @property
    def job_mtbf_seconds(self) -> float:
        return self.seconds / self.failures

    @property
    def node_mtbf_seconds(self) -> float:
        """Mean time between the failures of one node, if all of them are alike."""
        return self.job_mtbf_seconds * self.devices / self.devices_per_node


LLAMA_3 = FailureRecord(
    name="Llama 3 405B",
    devices=16_384,
    devices_per_node=8,
    seconds=54 * DAY,
    failures=419,
    source="Llama Team 2024, The Llama 3 Herd of Models, section 3.3.4: 419 unexpected "
    "interruptions in 54 days on 16,384 H100",
)
OPT_175B = FailureRecord(
    name="OPT-175B",
    devices=992,
    devices_per_node=8,
    seconds=2 * 365.25 / 12 * DAY,
    failures=35 + 70,
    source="Zhang et al. 2022, OPT, section 2.5: at least 35 manual restarts and an estimated 70+ "
    "automatic ones in 2 months on 992 A100",
)
RSC_1 = FailureRecord(
    name="Meta RSC-1",
    devices=8,
    devices_per_node=8,
    seconds=1000 * DAY,
    failures=6.50,
    source="Kokolis et al. 2024, Revisiting Reliability in Large-Scale Machine Learning Research "
    "Clusters: 6.50 failures per 1,000 node-days of A100",
)
RECORDS = (LLAMA_3, OPT_175B, RSC_1)


def find_save_interval(*, save_seconds: float, mtbf_seconds: float) -> float:
    """Seconds of work between two saves at which a run ends soonest: Daly 2006, equation 37.

    ``save_seconds``: of which the run stands still for a save. Infinite where nothing ever fails;
    0 where a save costs nothing.
    """
    if math.isinf(mtbf_seconds):
        return math.inf
    if save_seconds >= 2 * mtbf_seconds:
        return mtbf_seconds
    ratio = save_seconds / (2 * mtbf_seconds)
    first = find_young_interval(save_seconds=save_seconds, mtbf_seconds=mtbf_seconds)
    return first * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_seconds


def find_widest_interval(*, save_seconds: float, mtbf_seconds: float, tolerance: float) -> float:
    """The longest interval that takes at most this part more time than the best one does."""
    best = find_save_interval(save_seconds=save_seconds, mtbf_seconds=mtbf_seconds)
    if math.isinf(best):
        return best

    def cost(interval: float) -> float:  # wall time over work; a restart is a factor of both
        return mtbf_seconds / interval * math.expm1((interval + save_seconds) / mtbf_seconds)

    low, high = max(best, 1e-9 * mtbf_seconds), 100 * mtbf_seconds
    most = cost(low) * (1 + tolerance)
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if cost(middle) <= most else (low, middle)
    return low


def find_young_interval(*, save_seconds: float, mtbf_seconds: float) -> float:
    """The same to the first order: Young 1974, sqrt(2 · save · MTBF)."""
    return math.sqrt(2 * save_seconds * mtbf_seconds)


def expect_wall_seconds(
    work_seconds: float,
    *,
    interval_seconds: float,
    save_seconds: float,
    restart_seconds: float,
    mtbf_seconds: float,
) -> float:
    """How long a run takes with its failures, on average: Daly 2006.

    The work is done in pieces of ``interval_seconds``, each followed by a save; a failure sends the
    run back to the last save, after a restart that may fail as well. Infinite where a piece is so
    long beside the mean time between failures that it is hardly ever done.
    """
    pieces = work_seconds / interval_seconds
    piece_seconds = interval_seconds + save_seconds
    if math.isinf(mtbf_seconds):
        return pieces * piece_seconds
    exponent = piece_seconds / mtbf_seconds
    if exponent > 500:  # e^709 is more than a float holds
        return math.inf
    restarts = mtbf_seconds * math.exp(min(500.0, restart_seconds / mtbf_seconds))
    return pieces * restarts * math.expm1(exponent)
