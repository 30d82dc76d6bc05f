"""The state of a stream: enough to go on at any sample without replaying one.

Under 1 kB for a few sources; it grows with the sources and with each change of the mixture or jump.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmscale.config.data import StreamConfig
from lmscale.errors import CheckpointError, ConfigError
from lmscale.runs.continuation import STREAM_KEYS
from lmscale.stream.mixture import Segment

VERSION = 2
READABLE = (1, 2)  # the first one knew no jumps
FINGERPRINT_DIGITS = 16  # 64 bits tell datasets apart, and keep the state small


@dataclass(frozen=True, kw_only=True)
class StreamState:
    """The next sample is number ``n``; what it is follows from the rest and the shards."""

    version: int = VERSION
    seed: int
    n: int
    geometry: dict[str, Any]
    segments: tuple[Segment, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "seed": self.seed,
            "n": self.n,
            "geometry": dict(self.geometry),
            "segments": segments_to_json(self.segments),
        }

    @staticmethod
    def from_json(tree: dict[str, Any] | str) -> StreamState:
        """Raises ``CheckpointError`` for what is not a stream's state, or of another version."""
        try:
            if isinstance(tree, str):
                tree = json.loads(tree)
            assert isinstance(tree, dict)
            if tree["version"] not in READABLE:
                raise CheckpointError(
                    f"The stream's state has version {tree['version']}; this lmscale reads "
                    f"{' and '.join(map(str, READABLE))}. Resume with the lmscale that wrote it."
                )
            return StreamState(
                seed=int(tree["seed"]),
                n=int(tree["n"]),
                geometry=dict(tree["geometry"]),
                segments=segments_from_json(tree["segments"]),
            )
        except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The stream's state cannot be read ({type(error).__name__}: {error}). The file "
                f"that holds it is damaged; resume from another checkpoint."
            ) from None


def segments_to_json(segments: Sequence[Segment]) -> list[dict[str, Any]]:
    return [
        {
            "start": segment.start,
            "quotas": dict(segment.quotas),
            "base": dict(segment.base),
            "fingerprints": dict(segment.fingerprints),
            "key": segment.key,
            "offset": segment.offset,
        }
        for segment in segments
    ]


def segments_from_json(tree: Sequence[Mapping[str, Any]]) -> tuple[Segment, ...]:
    """Raises ``AttributeError``, ``KeyError``, ``TypeError`` or ``ValueError`` for what is none."""
    return tuple(
        Segment(
            start=int(segment["start"]),
            quotas=dict(sorted(segment["quotas"].items())),
            base=dict(segment["base"]),
            fingerprints=dict(segment["fingerprints"]),
            key=None if segment.get("key") is None else int(segment["key"]),
            offset=int(segment.get("offset", 0)),
        )
        for segment in tree
    )


def geometry_of(config: StreamConfig) -> dict[str, Any]:
    return {key: getattr(config, key) for key in STREAM_KEYS}


def find_changes(state: StreamState, config: StreamConfig, *, seed: int) -> list[str]:
    """Settings that a run cannot change once it has begun, with both values.

    Empty if it can resume.
    """
    before = {f"stream.{key}": value for key, value in state.geometry.items()}
    now = {f"stream.{key}": value for key, value in geometry_of(config).items()}
    before["run.seed"], now["run.seed"] = state.seed, seed
    return [
        f"{key} = {now[key]!r}, but the run began with {before.get(key)!r}; samples already used "
        f"would come again or never. Set it back, or start a new run."
        for key in now
        if before.get(key) != now[key]
    ]


def check_unchanged(state: StreamState, config: StreamConfig, *, seed: int) -> None:
    """Raise ``ConfigError`` with everything that ``find_changes`` finds."""
    problems = find_changes(state, config, seed=seed)
    if problems:
        raise ConfigError(problems)
