"""The section ``objective.augment``: how labelled texts are changed while they are trained on."""

from __future__ import annotations

from pydantic import Field

from lmscale.config.base import Section


class AugmentConfig(Section):
    """Easy data augmentation (Wei and Zou 2019), of small labelled sets: in every epoch a text is
    another one, with the same label. Held-out texts stay as they are.
    """

    delete: float = Field(default=0.0, ge=0, le=0.9)
    """Share of a text's words that are left out; one at least stays."""
    swap: float = Field(default=0.0, ge=0, le=1)
    """Share of a text's words that change places with another one of it. The paper takes 0.1 of
    both, and 0.05 where there are more than a few thousand texts.
    """

    @property
    def is_on(self) -> bool:
        return self.delete > 0 or self.swap > 0
