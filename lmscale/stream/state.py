"""The state of a stream: enough to go on at any sample without replaying one.

Under 1 kB for a few sources; it grows with the sources and with each change of the mixture or jump.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from lmscale.config.data import StreamConfig
from lmscale.errors import CheckpointError, ConfigError
from lmscale.files.strangers import EXACT, Count, ImplausibleError, Tree, checked
from lmscale.runs.continuation import STREAM_KEYS
from lmscale.stream.mixture import Segment

VERSION = 2
FINGERPRINT_DIGITS = 16  # 64 bits tell datasets apart, and keep the state small


@dataclass(frozen=True, kw_only=True)
class StreamState:
    """The next sample is number ``n``; what it is follows from the rest and the shards."""

    __pydantic_config__ = EXACT
    version: Count = VERSION
    seed: Count
    n: Count
    geometry: Tree
    segments: Annotated[tuple[Segment, ...], Field(min_length=1)]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(tree: Any) -> StreamState:
        """Raises ``CheckpointError`` for what is not a stream's state, or of another version."""
        try:
            state = checked(_STATE, tree)
        except ImplausibleError as error:
            raise CheckpointError(
                f"The stream's state cannot be read ({error}). The file that holds it is damaged; "
                "resume from another checkpoint."
            ) from None
        if state.version != VERSION:
            raise CheckpointError(
                f"The stream's state has version {state.version}; this lmscale reads {VERSION}. "
                "Resume with the lmscale that wrote it."
            )
        return state


_STATE = TypeAdapter(StreamState)


def geometry_of(config: StreamConfig) -> dict[str, Any]:
    return {key: getattr(config, key) for key in STREAM_KEYS}


def check_unchanged(state: StreamState, config: StreamConfig, *, seed: int) -> None:
    """Raise ``ConfigError`` with every setting that a run cannot change once it has begun."""
    before = {f"stream.{key}": value for key, value in state.geometry.items()}
    now = {f"stream.{key}": value for key, value in geometry_of(config).items()}
    before["run.seed"], now["run.seed"] = state.seed, seed
    problems = [
        f"{key} = {now[key]!r}, but the run began with {before.get(key)!r}; samples already used "
        f"would come again or never. Set it back, or start a new run."
        for key in now
        if before.get(key) != now[key]
    ]
    if problems:
        raise ConfigError(problems)
