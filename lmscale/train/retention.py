"""What rank 0's writer does around the shared place's saves: rows of commits, and which ones stay.

The rule itself is ``lmscale/checkpoint/retention.py``; this applies it to a run that is training.
"""

from __future__ import annotations

from dataclasses import replace

from lmscale.checkpoint import delete_old_checkpoints, free_space
from lmscale.checkpoint.commit_log import record_commit, record_replacement
from lmscale.checkpoint.manifest import ASKED, Manifest
from lmscale.checkpoint.places.place import Place
from lmscale.checkpoint.retention import Candidate, look_at
from lmscale.guard.rewind_plan import plan_spared
from lmscale.train.assemble import Run


class RunRetention:
    """The duties of ``SharedTier``: used by the writer's thread of rank 0 alone."""

    def __init__(self, run: Run) -> None:
        self._config, self._place, self._lease = run.config, run.place, run.lease
        self._undone, self._passed_over = run.history.undone, run.passed_over
        self._spare = plan_spared(run.config, num_rewinds=len(run.history.rewinds))
        self._candidates: dict[int, Candidate] = {}

    def replace(self, step: int) -> None:
        """Before a save clears away what is there of its step."""
        record_replacement(self._config.folder, step)

    def tidy(self, manifest: Manifest) -> None:
        """After a commit: its row, and the checkpoints that the rule keeps no longer."""
        record_commit(self._config.folder, self._place, manifest)
        is_asked = manifest.reason == ASKED
        self._candidates[manifest.step] = Candidate(
            step=manifest.step, is_good=manifest.is_finite, is_asked=is_asked
        )
        if manifest.is_finite:  # else no run goes on from it: it may push no good one out
            delete_old_checkpoints(
                self._place,
                self._config.checkpoint,
                self._config.folder,
                newest=manifest.step,
                look=self._look,
                spare=self._spare,
            )

    def make_room(self, step: int) -> tuple[int, ...]:
        """On a disk that is full for the save of ``step``: the steps that went."""
        self._lease.check()  # else these are another copy's
        return free_space(
            self._place,
            self._config.checkpoint,
            self._config.folder,
            saving=step,
            look=self._look,
            spare=self._spare,
        )

    def _look(self, place: Place, step: int) -> Candidate:
        """As ``look_at``, once a step; what this start has passed over is not good."""
        candidate = self._candidates.get(step)
        if candidate is None:
            candidate = look_at(place, step, self._undone)
            if step in self._passed_over:
                candidate = replace(candidate, is_good=False)
            self._candidates[step] = candidate
        return candidate
