"""Files that go to a store behind a URL (fsspec): in parts, and there whole or not at all."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import suppress
from errno import ENOSYS
from typing import Any

logger = logging.getLogger(__name__)

# Of a multipart upload: S3 takes 10,000 of at least 5 MiB, so a file may have 640 GB. Whoever sends
# holds two of them for a moment.
PART_BYTES = 64 * 2**20


def send_pieces(
    filesystem: Any, path: str, pieces: Iterable[memoryview], *, part_bytes: int = PART_BYTES
) -> int:
    """Write a file in parts; its bytes. One that is left half by an error is never completed."""
    size = 0
    file = filesystem.open(path, "wb", block_size=part_bytes)
    try:
        for piece in pieces:
            size += piece.nbytes
            file.write(piece)
        file.close()
    except BaseException:
        _abandon(file)
        raise
    return size


def _abandon(file: Any) -> None:
    from fsspec.spec import AbstractBufferedFile

    if isinstance(file, AbstractBufferedFile):
        # fsspec 2026.9 completes a file whenever it is closed, and closes it when it is collected.
        file.closed = True
        with suppress(OSError):
            file.discard()


def abort_uploads(
    filesystem: Any, root: str, *, begins_with: str = "", is_file: bool = False
) -> None:
    """End the multipart uploads that a killed process has left: invisible, but paid for.

    Those into the folder ``root``, to names that begin so; or, ``is_file``, those of that file. Of
    S3 alone.
    """
    bucket, prefix, _ = filesystem.split_path(root)
    inside = f"{prefix}/{begins_with}" if prefix else begins_with
    wanted = {"Bucket": bucket, "Prefix": prefix if is_file else inside}
    try:
        uploads = _list_uploads(filesystem, wanted)
        for upload in uploads:
            if is_file and upload["Key"] != prefix:
                continue
            with suppress(FileNotFoundError):  # ended meanwhile
                filesystem.abort_mpu(bucket, upload["Key"], upload["UploadId"])
    except OSError as refused:
        if not isinstance(refused, PermissionError) and refused.errno != ENOSYS:
            raise
        logger.warning(
            "%s: uploads that were cut off cannot be cleared away (%s). They cost until somebody "
            "does: allow s3:ListBucketMultipartUploads and s3:AbortMultipartUpload, or have the "
            "bucket end them by a lifecycle rule.",
            root,
            refused,
        )


def _list_uploads(filesystem: Any, wanted: Mapping[str, str]) -> list[dict[str, Any]]:
    """All of them: one answer has a thousand at most."""
    uploads: list[dict[str, Any]] = []
    marker: dict[str, str] = {}
    while True:
        page = filesystem.call_s3("list_multipart_uploads", **wanted, **marker)
        uploads += page.get("Uploads", ())
        if not page.get("IsTruncated"):
            return uploads
        marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
