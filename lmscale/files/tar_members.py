"""The members allowed in a tar that lmscale reads. lmscale never unpacks a tar; a tar that would do
harm to a person who unpacks it is refused all the same.
"""

from __future__ import annotations

import tarfile

# Headers that tarfile reads whole before it gives a member: long names, attributes. In a packed tar
# they may unpack to anything.
MAX_HEADER_BYTES = 1 << 20
_LONG_HEADERS = {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE}
_LONG_HEADERS |= {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}


class BoundedMember(tarfile.TarInfo):
    """For ``tarfile.open(tarinfo=…)`` of what may be packed, or cut.

    Raises ``OverflowError`` for a header that is too large, and ``ReadError`` for one that is none,
    where ``tarfile`` takes the tar for ended and says nothing.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> BoundedMember:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # pyright: ignore[reportAttributeAccessIssue]
            raise
        except tarfile.EmptyHeaderError:  # pyright: ignore[reportAttributeAccessIssue]
            what = "it has no end: it was cut between two members, or never finished"
            raise tarfile.ReadError(what) from None
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {archive.offset:,}") from None

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        # Python's source names this method as the one that a subclass may override.
        if self.type in _LONG_HEADERS and self.size > MAX_HEADER_BYTES:
            raise OverflowError(f"a header of {self.size:,} bytes, more than any name needs")
        # Python before 3.11.14 goes back and reads the same members for ever (CVE-2025-8194).
        member = super()._proc_member(archive) if self.size >= 0 else None  # pyright: ignore[reportAttributeAccessIssue]
        if member is None or archive.offset <= self.offset:
            raise OverflowError("a member of less than no bytes")
        return member


def describe_unsafe(member: tarfile.TarInfo) -> str | None:
    """Why a member is refused, or None: files and folders below the tar's own place are taken."""
    parts = member.name.replace("\\", "/").split("/")
    if parts[0] == "" and member.name:
        return f"member {member.name!r} has an absolute path"
    if ".." in parts:
        return f"member {member.name!r} leads out of the folder it is unpacked in"
    if "\0" in member.name:
        return f"member {member.name!r} has a name that no file can have"
    if member.issparse():
        return f"member {member.name!r} is a sparse file, which may hold more than any memory"
    if member.isreg() or member.isdir():
        return None
    kind = _KINDS.get(member.type, f"of the unknown type {member.type!r}")
    target = f" to {member.linkname!r}" if member.linkname else ""
    return f"member {member.name!r} is {kind}{target}"
