"""JSON that somebody else made, such as a manifest: what it may say before it is believed.

Who reads such a file has a dataclass of what is in it, with the types below, and checks it by
``checked``. Numbers are strict (true is no number, "12" is text); a list may stand for a tuple.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, Strict, TypeAdapter, ValidationError

from lmscale.files.redact import printable_name

MAX_COUNT = 2**63  # beyond what any file, step or tensor has; and beyond it floats overflow
MAX_DEPTH = 32  # of lists and mappings in each other; what is saved has some six
_LAST_INSTANT = 250_000_000_000  # in the year 9892: datetime ends with 9999
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PLAIN_NAME = re.compile(r"\w[\w.-]*", re.ASCII)  # nothing in it can mean anything else
_TAME = {str, float, bool, type(None)}
Value = TypeVar("Value")


def tame(value: Any, depth: int = 0) -> Any:
    """Return a value that can be walked through and reckoned with."""
    if isinstance(value, int):
        if abs(value) >= MAX_COUNT:
            raise ValueError("holds a number that nothing has")
    elif isinstance(value, dict | list | tuple):
        if depth == MAX_DEPTH:
            raise ValueError("is nested too deeply")
        for each in value.values() if isinstance(value, dict) else value:
            if type(each) not in _TAME:  # most values of most rows
                tame(each, depth + 1)
    return value


def one_of(names: Collection[str]) -> AfterValidator:
    """Of a ``Text``: that it is one of these."""

    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"is {quote(value)}, which is none of {', '.join(names)}")
        return value

    return AfterValidator(check)


def _check_name(name: str) -> str:
    if unsafe := describe_unsafe_name(name):
        raise ValueError(f"is refused: {unsafe}")
    return name


Text = Annotated[str, Strict()]
FileName = Annotated[Text, AfterValidator(_check_name)]  # of a file in the folder of the manifest
Flag = Annotated[bool, Strict()]
Count = Annotated[int, Strict(), Field(ge=0, lt=MAX_COUNT)]
Number = Annotated[float, Strict()]  # nan and inf too
Finite = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Instant = Annotated[Finite, Field(ge=0, lt=_LAST_INSTANT)]  # Unix time
Sha256 = Annotated[str, Strict(), Field(pattern=r"^[0-9a-f]{64}$")]
Tree = Annotated[dict[str, Any], AfterValidator(tame)]  # whatever JSON holds; compared or shown
EXACT = ConfigDict(extra="forbid", arbitrary_types_allowed=True)  # no keys but the fields


def checked(adapter: TypeAdapter[Value], tree: Any, *, at: str = "") -> Value:
    """The value that ``tree`` is; raises ``ValueError`` with a short line for each thing wrong.

    ``at``: the place of ``tree`` in the file, which begins the path of each thing.
    """
    try:
        return adapter.validate_python(tree)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)
        lines = [_describe({**each, "at": at}) for each in errors]
        raise ImplausibleError(list(dict.fromkeys(lines))) from None


class ImplausibleError(ValueError):
    """What a file says cannot be; ``problems`` has a line for each thing."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def _describe(problem: Mapping[str, Any]) -> str:
    path = ".".join(
        printable_name(str(part)) for part in (problem["at"], *problem["loc"]) if part != ""
    )
    path = path or "it"
    kind = problem["type"]
    if kind.startswith("union_tag"):
        return f"{path} is none of the kinds there are: {quote(problem['input'])}"
    if kind in ("missing", "missing_keyword_only_argument"):
        return f"{path} is missing"
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{path} is none of what belongs there"
    if kind == "value_error":
        return f"{path} {problem['msg'].removeprefix('Value error, ')}"
    return f"{path} is {quote(problem['input'])}"


def parse_json(content: str | bytes) -> Any:
    """Raises ``ValueError`` for what is none, and for what is nested too deeply to be read."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def kind_of_json(value: Any) -> str:
    """What JSON calls such a value."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    named = {str: "text", dict: "an object", list: "a list", int: "a number", float: "a number"}
    return named.get(type(value), type(value).__name__)  # Parquet has others


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_COUNT  # True is an int, and no count


def is_sha256(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def quote(value: Any) -> str:
    """For a message: on one line, and short, whatever it is."""
    return reprlib.repr(value)


def describe_unsafe_name(name: object) -> str | None:
    """Why a name in a manifest is not that of a file beside it, or None. All names pass here."""
    if not isinstance(name, str):
        return f"{quote(name)} is no file name"
    if _PLAIN_NAME.fullmatch(name):  # of hundreds of thousands hardly one is another
        return None
    if not name or name in (".", "..") or any(c in "/\\" for c in name):
        return f"the file name {name!r} leads out of the manifest's folder"
    if any(not c.isprintable() for c in name):
        return f"the file name {name!r} holds control characters"
    # Of a URL, or of what a library would run or expand in place of opening.
    if name.startswith(("~", "-", "|")) or any(c in ":?#*%" for c in name):
        return f"the file name {name!r} could mean something else than a file"
    return None


def check_places(paths: Iterable[str]) -> None:
    """Raise ``ValueError`` for a path out of a file that leads out of the folder it is below."""
    for name in (name for path in paths for name in str(path).split("/")):
        if unsafe := describe_unsafe_name(name):
            raise ValueError(unsafe)
