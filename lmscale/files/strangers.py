"""JSON that somebody else made, such as a manifest: what it may say before it is believed."""

from __future__ import annotations

import json
import re
import reprlib
from typing import Any

MAX_COUNT = 2**63  # beyond what any file, step or tensor has; and beyond it floats overflow
_SHA256 = re.compile(r"[0-9a-f]{64}")


def parse_json(content: str | bytes) -> Any:
    """Raises ``ValueError`` for what is none, and for what is nested too deeply to be read."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_COUNT  # True is an int, and no count


def is_sha256(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def quote(value: Any) -> str:
    """For a message: on one line, and short, whatever it is."""
    return reprlib.repr(value)
