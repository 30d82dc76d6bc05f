"""What every section of the configuration shares: frozen values, unknown keys refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """A frozen part of the configuration. Unknown keys are errors; docstrings become descriptions.

    Types are strict: true is no number and "12" is text, though 3 may stand for 3.0. A field that
    is a tuple says ``strict=False``, because YAML has only lists.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    problem_separator: ClassVar[str] = "; "

    def find_problems(self) -> Iterable[str]:
        """What is wrong with values that are each of their type."""
        return ()

    @model_validator(mode="after")
    def _raise_problems(self) -> Section:
        if problems := list(self.find_problems()):
            raise ValueError(self.problem_separator.join(problems))
        return self
