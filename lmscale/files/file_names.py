"""Names of files that a manifest gives: of a file beside it, and of nothing else."""

from __future__ import annotations


def describe_unsafe_name(name: object) -> str | None:
    """Why ``name`` is not the name of a file beside its manifest, or None."""
    if not isinstance(name, str):
        return f"{name!r} is no file name"
    if not name or name in (".", "..") or any(c in "/\\" for c in name):
        return f"the file name {name!r} leads out of the manifest's folder"
    if any(not c.isprintable() for c in name):
        return f"the file name {name!r} holds control characters"
    # Of a URL, or of what a library would run or expand in place of opening.
    if name.startswith(("~", "-", "|")) or any(c in ":?#*%" for c in name):
        return f"the file name {name!r} could mean something else than a file"
    return None
