"""What is installed for this Python: recorded as a lock that pip and uv restore, and compared.

Only the names of folders are read: every node of a large job asks the same file system at once.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lmscale.files.redact import redact

LOCK_FILE = "requirements.lock"
# What decides numbers or the bytes of files; with NVIDIA's libraries, and Python's minor version.
DECIDING = frozenset(("torch", "deepspeed", "numpy", "triton", "sentencepiece", "tokenizers"))
_NVIDIA = "nvidia-"
_ASKING = frozenset(("nvidia-ml-py",))  # reads the GPU's state, and computes nothing
_OWN = "lmscale"  # whose code is frozen by itself
_INFO = re.compile(r"(.+?)-([^-]+)(?:-py[\d.]+)?\.(?:dist|egg)-info")
_HEAD = re.compile(r"# (python|torch's CUDA|driver): (\S+)")
_LINE = re.compile(r"(?:# )?([A-Za-z0-9._-]+)==(\S+)")
_DRIVER = Path("/proc/driver/nvidia/version")
NOT_THERE = "not installed"


@dataclass(frozen=True, kw_only=True)
class Installed:
    """Versions of what a process would import."""

    python: str  # 3.11.9
    packages: Mapping[str, str]  # normalized name → version
    cuda: str | None = None  # that torch was built for
    driver: str | None = None  # of this node's GPUs
    sources: Mapping[str, str] = field(default_factory=dict)
    """Package → where it was installed from, if that is not an index."""


@dataclass(frozen=True, kw_only=True)
class Differences:
    """Each as ``torch 2.13.0 → 2.14.0``, by name."""

    deciding: tuple[str, ...]  # for numbers or formats
    others: tuple[str, ...]
    added: tuple[str, ...] = ()  # of the deciding ones those that were not there before


def read_installed(path: Iterable[str] | None = None) -> Installed:
    """Of this process, or of the folders ``path`` in the place of ``sys.path``."""
    packages: dict[str, str] = {}
    sources: dict[str, str] = {}
    folders = list(dict.fromkeys(sys.path if path is None else path))
    for folder in folders:
        for name, version, info in _list_packages(folder):
            if name not in packages:  # the first on the path is imported
                packages[name] = version
                if source := _read_source(info):
                    sources[name] = source
    return Installed(
        python=".".join(map(str, sys.version_info[:3])),
        packages=dict(sorted(packages.items())),
        cuda=_find_cuda(folders),
        driver=_find_driver(),
        sources=sources,
    )


def find_differences(before: Installed, now: Installed) -> Differences:
    """What has changed. A driver counts only where both have one: a login node has none."""
    names = sorted({*before.packages, *now.packages} - {_OWN})
    both = [(name, before.packages.get(name), now.packages.get(name)) for name in names]
    rows = [(decides(name), name, old, new) for name, old, new in both]
    is_other_minor = _minor(before.python) != _minor(now.python)
    rows.insert(0, (is_other_minor, "Python", before.python, now.python))
    if before.packages.get("torch") == now.packages.get("torch"):
        rows.insert(1, (True, "CUDA of torch", before.cuda, now.cuda))
    if before.driver and now.driver:
        rows.insert(2, (False, "NVIDIA driver", before.driver, now.driver))
    told = [
        (is_deciding, f"{name} {old or NOT_THERE} → {new or NOT_THERE}")
        for is_deciding, name, old, new in rows
        if old != new
    ]
    return Differences(
        deciding=tuple(text for is_deciding, text in told if is_deciding),
        others=tuple(text for is_deciding, text in told if not is_deciding),
        added=tuple(name for name, old, new in both if decides(name) and new and not old),
    )


def decides(name: str) -> bool:
    """Whether another version of a package may compute or write something else."""
    return name in DECIDING or (name.startswith(_NVIDIA) and name not in _ASKING)


def render_lock(installed: Installed) -> str:
    """A file of requirements that ``pip install -r`` and ``uv pip install -r`` take."""
    lines = [
        "# What a run was submitted with. To restore it: uv pip install -r FILE, or pip install.",
        f"# python: {installed.python}",
        *([f"# torch's CUDA: {installed.cuda}"] if installed.cuda else []),
        *([f"# driver: {installed.driver}"] if installed.driver else []),
    ]
    local = installed.packages.get("torch", "").partition("+")[2]
    if local:  # not on the index that pip asks by default
        lines.append(f"--extra-index-url https://download.pytorch.org/whl/{local}")
    for name, version in installed.packages.items():
        source = installed.sources.get(name)
        if name == _OWN:
            lines.append(f"# {name}=={version}, whose code is frozen beside this file")
        elif source:
            lines.append(f"# {name}=={version}, installed from {source}")
            lines += [f"{name} @ {source}"] if "://" in source else []  # else a folder, as it stood
        else:
            lines.append(f"{name}=={version}")
    return "\n".join(lines) + "\n"


def parse_lock(text: str) -> Installed:
    """What ``render_lock`` has written, but for the sources."""
    heads = {match[1]: match[2] for match in map(_HEAD.fullmatch, text.splitlines()) if match}
    lines = filter(None, map(_LINE.match, text.splitlines()))
    return Installed(
        python=heads.get("python", ""),
        packages={match[1]: match[2].rstrip(",") for match in lines},
        cuda=heads.get("torch's CUDA"),
        driver=heads.get("driver"),
    )


def _minor(python: str) -> str:
    return ".".join(python.split(".")[:2])


def _list_packages(folder: str) -> Iterator[tuple[str, str, Path]]:
    """Name, version and folder of metadata of what is installed in a folder of ``sys.path``."""
    try:
        entries = sorted(os.listdir(folder or "."))
    except OSError:  # a zip, or not there
        return
    for entry in entries:
        if match := _INFO.fullmatch(entry):
            name = re.sub(r"[-_.]+", "-", match[1]).lower()
            yield name, match[2].replace("_", "-"), Path(folder, entry)


def _read_source(info: Path) -> str | None:
    """The URL, without secrets, or the folder that a package is used from (PEP 610)."""
    try:
        told = json.loads((info / "direct_url.json").read_text(encoding="utf-8"))
        url, version_control = str(told["url"]), told.get("vcs_info")
        is_editable = bool(told.get("dir_info", {}).get("editable"))
        if version_control:
            url = f"{version_control['vcs']}+{url}@{version_control['commit_id']}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return redact(url.removeprefix("file://") if is_editable else url)


def _find_cuda(folders: Iterable[str]) -> str | None:
    """Which CUDA torch was built for, without loading torch."""
    for folder in folders:
        try:
            text = Path(folder, "torch", "version.py").read_text(encoding="utf-8")
        except OSError:
            continue
        match = re.search(r"^cuda\b.*= *'([\d.]+)'", text, re.MULTILINE)
        return match[1] if match else None
    return None


def _find_driver() -> str | None:
    """The version of NVIDIA's kernel module."""
    try:
        text = _DRIVER.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", text)
    return match[1] if match else None
