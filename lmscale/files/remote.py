"""Files that may be remote (fsspec): retries, and messages that say what to do."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lmscale.errors import ConfigError, DataError, LmscaleError, TransientError
from lmscale.files import fault_points
from lmscale.files.atomic import is_full, may_pass
from lmscale.files.extras import install_extra
from lmscale.files.locations import local_path, protocol_of
from lmscale.files.reading import read_plain
from lmscale.files.redact import printable, redact

CONNECT_SECONDS = 30.0
SILENCE_SECONDS = 60.0  # without a byte; a whole shard may take longer
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}
# Credentials do not appear by waiting. By name: the vendors' packages need not be installed.
PERMANENT = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"}
# Answers of HTTP with which a server says "later"; the other 4xx say that the request is wrong.
_LATER = {408, 409, 425, 429}
# S3's, with the status 400 of a request that is wrong, for what the network has cut or changed.
_GARBLED = {"BadDigest", "IncompleteBody", "RequestTimeout", "XAmzContentSHA256Mismatch"}


FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 0.5, 30.0
Result = TypeVar("Result")


class MissingFileError(DataError):
    """There is no such file; the other reasons why one cannot be read are plain ``DataError``."""


class TransferError(OSError):
    """What arrived is not what was announced; worth another attempt."""


@dataclass(frozen=True, kw_only=True)
class Purpose:
    """What remote files are wanted for: the words and the classes of their errors."""

    done: str  # "read", as in "could not be read"
    error: type[LmscaleError]
    missing: type[LmscaleError]
    if_missing: str  # what to do when there is no such file, bucket or folder
    if_damaged: str  # what to do when, time after time, not what was announced arrives
    retries_key: str


SHARDS = Purpose(
    done="read",
    error=DataError,
    missing=MissingFileError,
    if_missing="there is no such file. Check the URL, and that all shards were uploaded.",
    if_damaged="If it stays so, the remote file is damaged: upload it again.",
    retries_key="stream.cache.retries",
)


def read_bytes(location: str | Path, *, retries: int) -> bytes:
    """The content of a small file, local or remote.

    Raises ``MissingFileError`` or another ``DataError`` naming it, or ``TransientError``.
    """
    if protocol_of(location) is None:
        try:
            return read_plain(local_path(location))
        except (FileNotFoundError, NotADirectoryError):
            raise MissingFileError(f"{location}: there is no such file.") from None
        except OSError as error:
            kind = TransientError if may_pass(error) else DataError
            raise kind(f"{location}: cannot be read: {error.strerror or error}.") from None
    url = str(location)
    return with_retries(lambda: open_filesystem(url)[0].cat_file(url), url=url, retries=retries)


def growing_delays(retries: int) -> Iterator[float]:
    """``retries`` random times up to 0.5, 1, 2, … 30 s (full jitter): thousands of ranks that have
    failed together do not come back together.
    """
    for attempt in range(retries):
        yield random.uniform(0, min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2**attempt))


def call_patiently(
    action: Callable[[], Result],
    delays: Iterable[float],
    *,
    may_pass: Callable[[Exception], bool],
    wait: Callable[[Exception, float], None] = lambda error, seconds: time.sleep(seconds),
) -> Result:
    """What ``action`` returns. Where it raises what may pass, ``wait`` is called with the error and
    the next of ``delays``, and then ``action`` again; the last error is raised as it is.
    """
    for seconds in delays:
        try:
            return action()
        except Exception as error:
            if not may_pass(error):
                raise
            wait(error, seconds)
    return action()


def with_retries(
    action: Callable[[], Result], *, url: str, retries: int, purpose: Purpose = SHARDS
) -> Result:
    """Call ``action`` until it succeeds; ``retries`` more times after the first failure.

    What waiting cannot mend is raised at once, as the purpose's ``missing`` or ``error``, naming
    the URL. After the last attempt a server or a network that fails is a ``TransientError``.
    """

    def attempt() -> Result:
        fault_points.hit("read.remote")
        return action()

    url = redact(url)
    try:
        return call_patiently(
            attempt, growing_delays(retries), may_pass=lambda error: not _is_lasting(error)
        )
    except LmscaleError:
        raise
    except Exception as error:  # vendors raise classes of their own, which we cannot import here
        if is_full(error):
            raise
        status = _status_of(error)
        if isinstance(error, FileNotFoundError) or status in (404, 410):
            raise purpose.missing(f"{url}: {purpose.if_missing}") from None
        if isinstance(error, PermissionError) or status in (401, 403):
            raise purpose.error(
                f"{url}: access is refused ({_in_words(error)}). Check this machine's credentials "
                "for it. S3 answers so for a file that is missing, too, unless listing is allowed."
            ) from None
        if type(error).__name__ in PERMANENT:
            raise purpose.error(
                f"{url}: no credentials were found ({error}). Give this machine access, for "
                f"example by its environment variables, and run again."
            ) from None
        tried = f" (tried {retries + 1} times)" if retries else ""
        reason = _in_words(error)
        if isinstance(error, TransferError):
            advice = purpose.if_damaged
        else:
            advice = (
                "Check the network and the endpoint from this machine; "
                f"{purpose.retries_key} sets how often it is tried."
            )
        kind = TransientError if _is_elsewhere(error) else purpose.error
        raise kind(f"{url}: could not be {purpose.done}{tried}: {reason}. {advice}") from error


def _is_lasting(error: Exception) -> bool:
    """Whether waiting cannot mend it. A full disk is ours, and says nothing of the server."""
    lasting = (LmscaleError, FileNotFoundError, PermissionError)
    is_named = isinstance(error, lasting) or type(error).__name__ in PERMANENT
    return is_named or is_full(error) or _is_refused(error)


def _is_elsewhere(error: Exception) -> bool:
    """Whether it is the server or the network that fails, and not the file or the request."""
    return not _is_refused(error) and not isinstance(error, TransferError)


def _is_refused(error: Exception) -> bool:
    status = _status_of(error)
    return status is not None and 400 <= status < 500 and status not in _LATER


def _in_words(error: Exception) -> str:
    """On one line, without the secrets of a URL that a server has led to."""
    text = " ".join(redact(str(error)).split())
    return printable(f"{type(error).__name__}: {text}".rstrip(": "))


def _status_of(error: BaseException) -> int | None:
    """What HTTP's answer was, where the error tells; None for what the network has garbled."""
    status = getattr(error, "status", None)  # aiohttp's
    if isinstance(status, int):
        return status
    # botocore's, which s3fs translates to an OSError
    answer = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if not isinstance(answer, dict) or answer.get("Error", {}).get("Code") in _GARBLED:
        return None
    return answer.get("ResponseMetadata", {}).get("HTTPStatusCode")


def open_filesystem(url: str, **options: Any) -> tuple[Any, str]:
    """The fsspec filesystem of ``url``, and the path in its terms. Raises ``ConfigError``.

    Credentials and endpoint are the environment's. To be asked for anew by every thread and every
    process: fsspec keeps one object for each. ``options`` are fsspec's.
    """
    import fsspec  # here: a loader worker that reads local shards starts without it

    protocol = protocol_of(url) or "file"
    try:
        if protocol in ("http", "https"):
            import aiohttp

            # aiohttp's default ends every transfer after five minutes, however well it goes.
            timeout = aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS
            )
            options["client_kwargs"] = {"timeout": timeout, **options.get("client_kwargs", {})}
        return fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        extra = EXTRAS.get(protocol)
        install = (
            f"{install_extra(extra)} in the clone" if extra else f"install its package ({error})"
        )
        raise ConfigError(
            f"{url}: {protocol}:// needs a package that is missing: {install}."
        ) from None
    except ValueError as error:
        raise ConfigError(
            f"{url}: unknown kind of URL ({error}). Known and tested: s3://, gs://, http(s)://, "
            "memory://."
        ) from None
