"""Raw files → texts, one generator per format, in bounded memory.

All that is read is accounted for: a text is given, a record that cannot be read is broken, and what
is no record is passed over, each with its count in an ``Account``. It raises once more are broken
than ``max_bad_records`` allows. An unreadable file is a ``DataError``.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from lmscale.corpus.account import Account, Pieces
from lmscale.corpus.columns import choose_columns, open_table
from lmscale.corpus.inputs import RawFile
from lmscale.corpus.page_encoding import HEAD_BYTES
from lmscale.corpus.text_files import (
    PIECE_BYTES,
    Unpacked,
    compile_separator,
    cut_array,
    cut_records,
    decode,
    find_undecodable,
    read_pieces,
)
from lmscale.errors import DataError
from lmscale.files.meter import count
from lmscale.files.redact import printable_name
from lmscale.files.strangers import kind_of_json
from lmscale.files.tar_members import BoundedMember, describe_unsafe

Records = Iterator[tuple[int, Pieces]]  # with their numbers, from 1
MAX_CHAR_BYTES = 4  # in any encoding
MOST_HELD = 4  # members of a tar
MAX_BATCH_BYTES = 1 << 30  # of Parquet rows

_LINE = re.compile("\n")
_BESIDE = ".json beside a .txt"
_TAR_DAMAGE = (tarfile.TarError, ValueError, EOFError, OSError, OverflowError)


def read_file(file: RawFile, account: Account) -> Records:
    """The texts of a file, in the order of its records. Raises ``DataError`` for an unreadable one
    and for one that changes meanwhile, and ``TooManyBrokenError``.
    """
    account.begin(file)
    try:
        yield from READERS[file.format](file, account)
    except DataError:
        file.check_unchanged()  # which may be why
        raise
    file.check_unchanged()


@dataclass(frozen=True)
class _Decoded:
    """The decoded pieces of a text, which are read again each time they are iterated."""

    pieces: Callable[[], Iterable[bytes]]
    where: str
    account: Account

    def __iter__(self) -> Iterator[str]:
        pieces, head = iter(self.pieces()), b""
        for piece in pieces:
            head += piece
            if len(head) >= HEAD_BYTES:
                break
        encoding = self.account.choose_encoding(head)
        try:
            yield from decode(chain([head] if head else [], pieces), encoding)
        except (LookupError, ValueError) as error:  # such as utf-16 without its mark, and idna
            found = "Python knows no such encoding of text"
            raise DataError(
                f"{self.where}: cannot be read with {self.account.name_of('encoding')} = "
                f"{encoding!r}: {found if isinstance(error, LookupError) else error}."
            ) from None


def decoded(file: RawFile, account: Account) -> Iterable[str]:
    """The text of a file that the account has begun; it is read anew each time."""
    return _Decoded(lambda: read_pieces(file), file.shown, account)


def _read_txt(file: RawFile, account: Account) -> Records:
    source, text = account.source, decoded(file, account)
    if source.separator:
        separator = compile_separator(source.separator)
        records = cut_records(text, separator, source.max_record_chars)
        for number, record in enumerate(records, start=1):
            where = f"{file.shown}: document {number}"
            if record is None:
                account.add_long(where)
            elif account.takes((record,), where):
                yield number, (record,)
        return
    first = tuple(islice(text, 3))  # one piece, and what the decoder held back
    pieces = first if len(first) < 3 else text
    if account.takes(pieces, file.shown):
        yield 1, pieces


def _read_jsonl(file: RawFile, account: Account) -> Records:
    yield from _read_lines(decoded(file, account), file, account)


def _read_lines(text: Iterable[str], file: RawFile, account: Account) -> Records:
    number = 0
    for line in cut_records(text, _LINE, account.source.max_record_chars):
        number += 1  # not by enumerate, which would hold on to the line
        where = f"{file.shown}:{number}"
        if line is None:
            account.add_long(where)
        elif not line.strip():
            account.passed_over["blank lines"] += 1
        elif account.takes((line,), where):
            pieces = _pieces_of_json(line, where, account)
            del line  # which is as long as the text
            if pieces is not None:
                yield number, pieces


def _read_json(file: RawFile, account: Account) -> Records:
    """An array of objects; a file that begins otherwise holds JSON lines."""
    text = iter(decoded(file, account))
    head = ""
    for piece in text:  # to the first sign that is no white space
        if head := piece.lstrip():
            break
    if not head.startswith("["):
        first = head.partition("\n")[0].rstrip()
        if first.endswith(("{", "[", ",")):
            raise DataError(
                f"{file.shown}: is neither an array of objects nor an object a line: its first "
                f"object goes on behind the line {first[:40]!r}. Write it as one of both."
            )
        yield from _read_lines(chain((head,), text), file, account)
        return
    limit = account.source.max_record_chars
    number = 0
    for item in _items(chain((head[1:],), text), limit, file):
        number += 1
        where = f"{file.shown}: item {number}"
        if item is None:
            account.add_long(where)
        elif account.takes((item,), where):
            pieces = _pieces_of_json(item, where, account)
            del item
            if pieces is not None:
                yield number, pieces


def _items(text: Iterable[str], max_chars: int, file: RawFile) -> Iterator[str | None]:
    try:
        yield from cut_array(text, max_chars)
    except ValueError as error:
        raise DataError(f"{file.shown}: cannot be read as a JSON array: {error}.") from None


def _pieces_of_json(line: str, where: str, account: Account) -> Pieces | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        # json's message repeats its own line and column, which are those within the record.
        account.add_broken(where, "not JSON", str(getattr(error, "msg", error)))
        return None
    if not isinstance(record, dict):
        account.add_broken(where, f"expected a JSON object, found {kind_of_json(record)}")
        return None
    for setting, field in account.fields.by_setting.items():
        if field not in record:
            keys = ", ".join(printable_name(key[:80]) for key in list(record)[:8]) or "none"
            account.add_broken(where, f"no key {field!r} ({setting})", f"its keys are {keys}")
            return None
    if twice := account.fields.find_repeated(line):
        account.add_broken(where, f"the key {twice!r} comes twice, and only one can be read")
        return None
    return _pieces_of(record, where, account, is_decoded="\\u" not in line)


def _pieces_of(
    record: Mapping[str, object], where: str, account: Account, *, is_decoded: bool = False
) -> Pieces | None:
    """The text of a record that has all fields, with what is said of it; None if it is broken."""
    if not account.fields.has_more:
        text = record[account.source.text_field]
        text = _checked(text, where, account, is_decoded=is_decoded)
        return None if text is None else (text,)
    try:
        marked = account.fields.read(record)
    except ValueError as error:
        account.add_broken(where, str(error), getattr(error, "detail", ""))
        return None
    text = _checked("".join(marked), where, account, is_decoded=is_decoded)
    return None if text is None else marked


def _checked(text: object, where: str, account: Account, *, is_decoded: bool = False) -> str | None:
    """The value of ``text_field`` if it is a text that UTF-8 can hold, else None."""
    field = account.fields.text_name
    if not isinstance(text, str):
        account.add_broken(where, f"{field!r} holds {kind_of_json(text)}, not text")
    elif len(text) > account.source.max_record_chars:
        account.add_long(where)
    elif not is_decoded and find_undecodable((text,)):
        account.add_broken(where, f"{field!r} holds a lone surrogate, which is not Unicode text")
    else:
        return text
    return None


def _read_parquet(file: RawFile, account: Account) -> Records:
    with open_table(file) as table:
        columns = choose_columns(table, file, account)
        batches = table.iter_batches(batch_size=_rows_at_once(table), columns=columns)
        rows = chain.from_iterable(
            zip(*(batch.column(name) for name in columns), strict=True)
            for batch in _counted(batches, file.bytes / max(1, table.metadata.num_rows))
        )
        for number, row in enumerate(rows, start=1):
            where = f"{file.shown}: row {number}"
            record = {}
            try:
                for field, value in zip(columns, row, strict=True):
                    record[field] = value.as_py()
            except UnicodeDecodeError as error:
                account.add_broken(where, f"{field!r} is not UTF-8", error.reason)
                continue
            pieces = _pieces_of(record, where, account)
            if pieces is not None:
                yield number, pieces


def _counted(batches: Iterable[Any], bytes_of_row: float) -> Iterator[Any]:
    for batch in batches:
        yield batch
        count(batch.num_rows * bytes_of_row)


def _rows_at_once(table: Any) -> int:
    """So few that they fit ``MAX_BATCH_BYTES`` if each is as long as its row group: a few bytes may
    repeat it.
    """
    # Not by the column: of a damaged file pyarrow 26.0 ends the process where it is asked for one.
    groups = (table.metadata.row_group(number) for number in range(table.num_row_groups))
    return max(1, min(64, MAX_BATCH_BYTES // max([1, *(each.total_byte_size for each in groups)])))


def _read_webdataset(file: RawFile, account: Account) -> Records:
    # Not webdataset's reader: it loads torch, its opener runs a path that begins with "pipe:" as a
    # command, it passes links and devices by, and takes a name's first dot for its ending's.
    try:
        with tarfile.open(fileobj=Unpacked(file), mode="r|", tarinfo=BoundedMember) as tar:
            number = 0
            for name, content in _text_members(_read_members(tar, file, account), account):
                number += 1
                pieces = _pieces_of_member(name, content, file, account)
                if pieces is not None:
                    yield number, pieces
            _refuse_rest(tar, file)
    except _TAR_DAMAGE as error:
        raise DataError(f"{file.shown}: damaged or no tar: {error}.") from None


def _read_members(
    tar: tarfile.TarFile, file: RawFile, account: Account
) -> Iterator[tuple[str, bytes]]:
    """The names and contents of the files that may hold text. Raises ``DataError``."""
    for member in tar:
        unsafe = describe_unsafe(member)
        if unsafe:
            raise DataError(
                f"{file.shown}: {unsafe}. A webdataset tar holds plain files below its own place "
                "only: pack it again."
            )
        # As webdataset: names such as __index__/blocks.npy are about the tar, and are no samples.
        is_meta = re.match(r"__[^/]*__($|/)", member.name) is not None
        is_text = member.name.lower().endswith((".txt", ".json"))
        if os.path.basename(member.name).startswith("._"):  # AppleDouble, beside each file
            account.passed_over["tar members of macOS (._NAME)"] += 1
        elif member.isreg() and (is_meta or not is_text):
            account.passed_over["tar members other than .txt and .json"] += 1
        elif member.size > MAX_CHAR_BYTES * account.source.max_record_chars:
            account.add_long(f"{file.shown}: member {member.name!r}")
        elif content := tar.extractfile(member):
            yield member.name, content.read()
        # Or a large tar would keep all of them.
        tar.members = []  # pyright: ignore[reportAttributeAccessIssue]


def _text_members(
    members: Iterable[tuple[str, bytes]], account: Account
) -> Iterator[tuple[str, bytes]]:
    """The members but a ``.json`` of the same name as the ``.txt`` before or after it."""
    held: list[tuple[str, bytes]] = []  # .json whose .txt may come
    text = ""  # the last .txt
    for name, content in members:
        if name.lower().endswith(".txt"):
            text = name
            for each in held:
                if _is_about(each[0], text):
                    account.passed_over[_BESIDE] += 1
                else:
                    yield each
            held = []
            yield name, content
        elif _is_about(name, text):
            account.passed_over[_BESIDE] += 1
        else:
            held.append((name, content))
            if len(held) > MOST_HELD:
                yield held.pop(0)
    yield from held


def _is_about(name: str, text: str) -> bool:
    """Whether a ``.json`` tells of a ``.txt``: x.json, x.meta.json of x.txt; x.json of x.en.txt."""
    stem, text_stem = (f"{os.path.splitext(each)[0]}." for each in (name, text))
    return bool(text) and (stem.startswith(text_stem) or text_stem.startswith(stem))


def _pieces_of_member(name: str, content: bytes, file: RawFile, account: Account) -> Pieces | None:
    where = f"{file.shown}: member {name!r}"
    text = "".join(_Decoded(lambda: [content], where, account))
    if not account.takes((text,), where):
        return None
    if name.lower().endswith(".json"):
        return _pieces_of_json(text, where, account)
    if len(text) > account.source.max_record_chars:
        account.add_long(where)
        return None
    if beside := account.source.fields_beside:
        account.add_broken(where, f"plain text has no fields ({', '.join(beside)})")
        return None
    return (text,)


def _refuse_rest(tar: tarfile.TarFile, file: RawFile) -> None:
    while rest := tar.fileobj.read(PIECE_BYTES):  # pyright: ignore[reportOptionalMemberAccess]
        if rest.strip(b"\0"):
            raise DataError(
                f"{file.shown}: something follows behind the tar's end at byte {tar.offset:,}, "
                "such as a second tar, which would not be read: pack it as one, or as two files."
            )


READERS: dict[str, Callable[[RawFile, Account], Records]] = {
    "text": _read_txt,
    "html": _read_txt,
    "jsonl": _read_jsonl,
    "json": _read_json,
    "parquet": _read_parquet,
    "webdataset": _read_webdataset,
}
