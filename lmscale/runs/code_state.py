"""The state of the running code: version, git commit, and the difference from the commit."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import lmscale
from lmscale.files.redact import redact

MAX_DIFF_CHARS = 1_000_000
FROZEN_CODE = "code"  # a launcher's copy of the packages, with code.json beside it


def collect_code(root: Path | None = None) -> dict[str, Any]:
    """The package's version and, in a git checkout, its commit and what differs from it.

    A copy that a launcher froze tells the state of what it was copied from.
    """
    root = Path(lmscale.__file__).parents[1] if root is None else root
    code: dict[str, Any] = {"version": lmscale.__version__, "folder": str(root)}
    frozen = _read_frozen(root)
    if frozen is not None:
        return {**frozen, "folder": str(root), "frozen_from": frozen.get("folder")}
    tracked = _git(root, "ls-files", "--error-unmatch", "lmscale/__init__.py")
    if tracked is None:  # also a package installed below somebody else's checkout
        return {**code, "git": None, "note": "not a git checkout"}
    difference = _git(root, "diff", "HEAD") or ""
    return {
        **code,
        "git": {
            "commit": (_git(root, "rev-parse", "HEAD") or "").strip() or None,
            "branch": (_git(root, "rev-parse", "--abbrev-ref", "HEAD") or "").strip() or None,
            "changed": (_git(root, "status", "--porcelain") or "").splitlines(),
            # What is cut inside a secret is not known for one: the part that is kept is whole.
            "diff": redact(difference[: 2 * MAX_DIFF_CHARS])[:MAX_DIFF_CHARS],
            "diff_is_cut": len(difference) > MAX_DIFF_CHARS,
        },
    }


def _read_frozen(root: Path) -> dict[str, Any] | None:
    if root.name != FROZEN_CODE:
        return None
    try:
        code = json.loads((root.parent / "code.json").read_bytes())
    except (OSError, ValueError):
        return None
    return code if isinstance(code, dict) and "git" in code else None


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints, or None when it is not installed or refuses."""
    command = ["git", "-C", str(root), *arguments]
    try:
        process = subprocess.run(command, capture_output=True, timeout=60, check=False)
    except (FileNotFoundError, NotADirectoryError, subprocess.TimeoutExpired):
        return None
    return process.stdout.decode("utf-8", "replace") if process.returncode == 0 else None
