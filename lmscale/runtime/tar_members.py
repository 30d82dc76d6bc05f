"""What may stand in a tar that lmscale reads. Nothing is ever unpacked; a tar that would do harm
when somebody else unpacks it is refused all the same.
"""

from __future__ import annotations

import tarfile

_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}


def describe_unsafe(member: tarfile.TarInfo) -> str | None:
    """Why a member is refused, or None: files and folders below the tar's own place are taken."""
    parts = member.name.replace("\\", "/").split("/")
    if parts[0] == "" and member.name:
        return f"member {member.name!r} has an absolute path"
    if ".." in parts:
        return f"member {member.name!r} leads out of the folder it is unpacked in"
    if "\0" in member.name:
        return f"member {member.name!r} has a name that no file can have"
    if member.isreg() or member.isdir():
        return None
    kind = _KINDS.get(member.type, f"of the unknown type {member.type!r}")
    target = f" to {member.linkname!r}" if member.linkname else ""
    return f"member {member.name!r} is {kind}{target}"
