"""Tasks of lm-evaluation-harness' own list: is there one of this name, and can its data be had?

The harness itself reads 14,000 files before it says no to a name, and asks an unreachable hub again
and again.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from lmscale.errors import ConfigError
from lmscale.evaluation.task_files import TaskFile, expand, name_tasks
from lmscale.files.extras import install_extra

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
_HUB = "https://huggingface.co"
_HUB_SECONDS = 5.0
_TEXTS = (".yaml", ".yml", "")  # what a task file may include has no ending of its own
_NAMED = re.compile(rb"^\s*-?\s*(?:task|group|tag):\s*[\"']?([\w.:+-]+)", re.MULTILINE)
logger = logging.getLogger(__name__)


def check_installed() -> None:
    """Raise ``ConfigError`` where the harness is not there."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            "Tasks are scored through lm-evaluation-harness, which is not installed. In a clone: "
            f"{install_extra('lm-eval')}"
        )


def check_names(asked: Sequence[str], include_path: str | Path | None = None) -> None:
    """Raise ``ConfigError`` for what ``open_tasks`` would not find, in a second, without loading
    the harness.
    """
    check_installed()
    names, known = name_tasks(asked, include_path)
    _, others = expand(names, known)
    refuse_unknown(others, known)


def refuse_unknown(others: Sequence[str], known: Mapping[str, TaskFile]) -> None:
    """Raise ``ConfigError`` with each of ``others``, names of no file of the user's, that no file
    of the harness holds either.
    """
    if not others:
        return
    spec = importlib.util.find_spec("lm_eval")
    places = (spec.submodule_search_locations or ()) if spec else ()
    lacking = {name: name.encode() for name in others}
    listed: set[str] = set()
    for place in places:
        for folder, _, files in os.walk(Path(place) / "tasks"):
            for file in files:
                path = Path(folder, file)
                if path.suffix in _TEXTS:
                    content = path.read_bytes()
                    listed |= {each.decode() for each in _NAMED.findall(content)}
                    lacking = {n: b for n, b in lacking.items() if b not in content}
    if lacking:
        raise ConfigError([describe_unknown(name, known, listed) for name in lacking])


def describe_unknown(name: str, known: Mapping[str, TaskFile], listed: Iterable[str]) -> str:
    near = get_close_matches(name, [*known, *sorted(listed)], n=3)
    hint = f" Nearest: {', '.join(near)}." if near else ""
    where = "--include-path (evaluation.tasks_include_path)"
    return f"evaluation.tasks: there is no task {name!r}.{hint} Your own are found by {where}."


def is_offline() -> bool:
    """Whether the libraries are told to use no network."""
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in OFFLINE)


def go_offline(why: str) -> None:
    """Have the libraries, not loaded yet, look nowhere but on this machine."""
    if not OFFLINE.items() <= os.environ.items():
        os.environ.update(OFFLINE)
        named = " ".join(f"{name}={value}" for name, value in OFFLINE.items())
        logger.info("%s: %s, so that nothing waits for a network", why, named)


def look_for_hub() -> None:
    """Go offline where the hub does not answer: what the cache holds can be had all the same."""
    hub = os.environ.get("HF_ENDPOINT") or _HUB
    try:
        request = urllib.request.Request(hub, method="HEAD")
        urllib.request.urlopen(request, timeout=_HUB_SECONDS).close()
    except urllib.error.HTTPError:
        return  # an answer
    except (OSError, ValueError):
        go_offline(f"{hub} does not answer")


def advise_offline(others: Sequence[str]) -> str:
    """What to do where the data of these tasks are not on this machine; "" with a network."""
    if not others or not is_offline():
        return ""
    return (
        " No network is used (HF_HUB_OFFLINE=1), so the data must be in the cache of Hugging "
        f"Face's: on a machine with a network run `lmscale evaluate RUN --tasks {','.join(others)} "
        "--limit 1`, and copy its HF_HOME (default: ~/.cache/huggingface) to this one."
    )
