"""Parquet files and their columns, which a file's last bytes tell without its rows being read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lmscale.config.corpus import CorpusConfig
from lmscale.corpus.account import Account
from lmscale.corpus.broken import Broken, broken_file, describe_broken
from lmscale.corpus.inputs import RawFile
from lmscale.corpus.text_files import missing_extra
from lmscale.errors import DataError
from lmscale.files.progress import progress
from lmscale.files.redact import printable_name

if TYPE_CHECKING:
    import pyarrow.parquet

LOOKS = 16  # at once: of a file elsewhere one waits for the network


@contextmanager
def open_table(file: RawFile) -> Iterator[pyarrow.parquet.ParquetFile]:
    """Raises ``DataError`` for a file that cannot be read, also within the block."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("reading Parquet", "pyarrow") from None
    try:
        with file.open(is_random=True) as raw, pyarrow.parquet.ParquetFile(raw) as table:
            yield table
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, OSError) as error:
        raise DataError(
            f"{file.shown}: cannot be read as Parquet: {str(error).rstrip('.')}."
        ) from None


def choose_columns(
    table: pyarrow.parquet.ParquetFile, file: RawFile, account: Account
) -> list[str]:
    """Those that the settings name. Raises ``DataError`` where one is not there, or there twice."""
    fields, names = account.fields.by_setting, table.schema_arrow.names
    if missing := {key: field for key, field in fields.items() if field not in names}:
        settings = " and ".join(account.name_of(key) for key in missing)
        if "text_field" in missing and len(account.source.inputs) > 1:
            settings += ", or for these files alone {files: PATTERN, text_field: NAME}"
        raise DataError(
            f"{file.shown}: no column {' nor '.join(map(repr, missing.values()))}; its "
            f"columns: {', '.join(map(printable_name, names))}. Set {settings}."
        )
    columns = list(dict.fromkeys(fields.values()))
    if twice := [field for field in columns if names.count(field) > 1]:
        raise DataError(
            f"{file.shown}: several columns are named {' and '.join(map(repr, twice))}. "
            "Write the file again with the one that is meant."
        )
    return columns


def check_columns(config: CorpusConfig, files: Sequence[tuple[str, RawFile]]) -> None:
    """Raise ``DataError`` with all that is wrong with the columns of the Parquet files among
    ``files``, each with its source's name.
    """
    tables = [each for each in files if each[1].format == "parquet"]
    if not tables:
        return
    found: list[Broken] = []
    what = "looking at the columns of the Parquet files"
    with ThreadPoolExecutor(LOOKS) as pool, progress(what, len(tables), "files") as advance:
        for broken in pool.map(lambda each: _find_broken(config, *each), tables):
            found += broken
            advance(1)
    if found:
        raise DataError([*describe_broken(found)])


def _find_broken(config: CorpusConfig, source: str, file: RawFile) -> list[Broken]:
    account = Account(source, config.sources[source])
    account.begin(file)
    try:
        with open_table(file) as table:
            choose_columns(table, file, account)
    except DataError as error:
        return [broken_file(file, problem) for problem in error.problems]
    return []
