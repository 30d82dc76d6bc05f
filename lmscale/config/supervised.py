"""Sections of the objectives that read more than tokens: pairs, and what is said of documents."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from lmscale.config.data import StreamConfig, WindowShape
from lmscale.config.kinds import Ability
from lmscale.config.objective_base import NextTokenConfig


def find_whole_problems(name: str, stream: StreamConfig) -> Iterator[str]:
    """Why windows hold no whole documents that are kept apart."""
    if stream.packing != "best_fit":
        yield f"objective.name = {name!r} is of whole documents: set stream.packing: best_fit"
    if not stream.mask_documents:
        yield (
            f"objective.name = {name!r} is of documents that do not see each other: set "
            "stream.mask_documents: true"
        )


class PairsConfig(NextTokenConfig):
    """Pairs, as for translation and summaries: of each document the first text is read, and the
    second one is written. A window holds whole pairs, both texts of each.
    """

    needs = frozenset({Ability.CROSS})
    implementation = "lmscale.objective.whole_pairs:PAIRS"
    figures = ("loss", "z_loss", "accuracy")
    held_out = ("accuracy",)

    name: Literal["pairs"]

    @property
    def added_ids(self) -> tuple[str, ...]:
        return ("start", "end")

    def window(self, sequence_length: int) -> WindowShape:
        return WindowShape(stride=sequence_length, overlap=0, has_pairs=True)

    def pair_lengths(self, sequence_length: int) -> tuple[int, int]:
        return sequence_length, sequence_length

    def find_stream_problems(self, stream: StreamConfig) -> Iterator[str]:
        yield from find_whole_problems(self.name, stream)


class CompletionConfig(NextTokenConfig):
    """Completion, as for following instructions: of each pair the first text is read without a
    loss, and the second one predicted behind it.
    """

    implementation = "lmscale.objective.completion:COMPLETION"

    name: Literal["completion"]

    def window(self, sequence_length: int) -> WindowShape:
        return WindowShape(stride=sequence_length, overlap=1, has_pairs=True)

    def find_stream_problems(self, stream: StreamConfig) -> Iterator[str]:
        yield from find_whole_problems(self.name, stream)
