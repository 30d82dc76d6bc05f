"""What a run keeps over a restart beside its weights: each belongs to whoever keeps it.

::

    RunState ── to_json() ──▶ the manifest's ``state``, under its name ── read_state ──▶ its owner

A saver is handed some of these and knows nothing else of them.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter

from lmscale.checkpoint.layout import MAX_NAMED
from lmscale.checkpoint.manifest import Manifest
from lmscale.errors import CheckpointError
from lmscale.files.strangers import ImplausibleError, checked

State = TypeVar("State")


class RunState(Protocol):
    """Something that a run keeps over a restart."""

    @property
    def name(self) -> str:
        """Its key in the manifest's ``state``: progress, stream, guard."""
        ...

    def to_json(self) -> dict[str, Any]:
        """What it keeps now, as ``read_state`` reads it back: small, for the manifest."""
        ...


def read_state(
    manifest: Manifest, name: str, kind: TypeAdapter[State], *, where: str
) -> State | None:
    """What the RunState ``name`` has kept; None where it has kept nothing.

    Raises ``CheckpointError`` for what no value of that kind says; ``where`` names the checkpoint.
    """
    if manifest.state.get(name) is None:
        return None
    try:
        return checked(kind, manifest.state[name], at=f"state.{name}")
    except ImplausibleError as error:
        problems = [f"{where}: refused: {problem}." for problem in error.problems]
        raise CheckpointError(problems[:MAX_NAMED]) from None
