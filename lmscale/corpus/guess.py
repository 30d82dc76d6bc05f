"""How a raw file has to be read, guessed from its first bytes and records."""

from __future__ import annotations

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from lmscale.corpus.encodings import decodes, find_other_kind, guess_encoding
from lmscale.corpus.inputs import format_of
from lmscale.corpus.page_encoding import TextEncoding, find_page_encoding
from lmscale.corpus.text_files import Unpacked, cut_array, decode, missing_extra, read_pieces
from lmscale.errors import DataError
from lmscale.files.found import FoundFile
from lmscale.files.redact import printable_name
from lmscale.files.strangers import quote
from lmscale.files.tar_members import BoundedMember

Settings = tuple[tuple[str, str], ...]
"""Of an input in ``corpus.sources``, where they are not the defaults."""

RECORDS = 20  # of a file, among whose keys the text is looked for
SHOWN_CHARS = 60  # of a text that a person is to judge
FILE_BYTES = 16 << 20  # of text that is read of a file

SHOWN_FAULTS = 3  # lines of a file
_JSON_WORDS: Mapping[type, str] = {
    **dict.fromkeys((int, float), "a number"),
    bool: "true or false",
    str: "an empty text",
    list: "a list",
    dict: "an object",
    type(None): "null",
}

# The names under which text is published, the likelier first: of C4, The Pile, RedPajama and
# Wikipedia "text"; of Common Crawl's and Wudao's "content"; of CLUECorpus and THUCNews "article".
FIELDS = ("text", "content", "raw_content", "body", "document", "article", "passage", "completion")
# A link, an id, a date or a file's name: one word of ASCII with a digit or a sign in it.
_NAME = re.compile(r"[!-~]*[\d/_@:=.][!-~]*")


def read_head(file: FoundFile) -> bytes:
    return next(iter(read_pieces(file)), b"")


def guess_settings(file: FoundFile) -> Settings:
    """The settings by which a file has to be read, where they are not the defaults."""
    own: dict[str, str] = {}
    form = format_of(file.location)
    if form is None:
        form = own["format"] = "text"
    if form in ("text", "html", "jsonl", "json"):
        head = read_head(file)
        if kind := find_other_kind(head):
            raise DataError(f"{file.shown}: is {kind} by its first bytes, and no text.")
        encoding = guess_encoding(head)
        page = find_page_encoding(head) if form == "html" else TextEncoding("utf-8")
        is_true = bool(page.declared) and decodes(head, page.name)
        if encoding != page.name and not is_true:
            own["encoding"] = encoding
    if form not in ("text", "html"):
        records = list(islice(_records_of(file, form, own.get("encoding", "utf-8")), RECORDS))
        text_field = choose_field(records) if records else "text"
        if text_field is None:
            raise DataError(f"{file.shown}: {_describe_lack(file, form, own, records)}.")
        if text_field != "text":
            own["text_field"] = text_field
    return tuple(sorted(own.items()))


def _records_of(file: FoundFile, form: str, encoding: str) -> Iterator[Mapping[str, Any]]:
    """Some records of a file, and none of one that has no fields or is damaged: reading tells."""
    if form == "parquet":
        yield from _rows_of(file)
    elif form == "webdataset":
        try:
            with tarfile.open(fileobj=Unpacked(file), mode="r|", tarinfo=BoundedMember) as tar:
                contents = []
                for member in islice(tar, RECORDS):
                    if member.isreg() and member.name.lower().endswith(".txt"):
                        return  # which is the text; a .json is about it
                    if member.isreg() and member.name.lower().endswith(".json"):
                        if content := tar.extractfile(member):
                            contents.append(content.read(FILE_BYTES).decode(encoding))
                yield from _objects(contents)
        except (tarfile.TarError, ValueError, OSError):
            return
    else:
        text = "".join(islice(decode(read_pieces(file), encoding), 2)).lstrip()
        is_array = form == "json" and text.startswith("[")
        try:
            parts = cut_array([text[1:]], FILE_BYTES) if is_array else iter(text.split("\n"))
            yield from _objects(part for part in parts if part)
        except ValueError:  # the array goes on behind what was read
            return


def _describe_lack(
    file: FoundFile, form: str, own: Mapping[str, str], records: Sequence[Mapping[str, Any]]
) -> str:
    """Why no key is taken for the text's: which one holds some, and what else records hold."""
    texts = Counter(key for record in records for key, value in record.items() if _is_text(value))
    usual = next((name for name in FIELDS if name in texts), None)
    if usual is None:
        keys = ", ".join(printable_name(str(key)) for key in list(records[0])[:8])
        return f"no key holds text; its keys: {keys}"
    if form != "jsonl":
        return f"the key {quote(usual)} holds text in {texts[usual]} of {len(records)} records"
    faults: list[str] = []
    num_lines = 0
    text = "".join(islice(decode(read_pieces(file), own.get("encoding", "utf-8")), 2))
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip() or num_lines == RECORDS:
            continue
        num_lines += 1
        record = next(_objects([line]), None)
        if record is None:
            faults.append(f"line {number} is no JSON object")
        elif not _is_text(record.get(usual)):
            held = _JSON_WORDS.get(type(record.get(usual)), "something else")
            faults.append(f"line {number} {f'holds {held}' if usual in record else 'lacks it'}")
    more = f" and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
    found = f"the key {quote(usual)} holds text in {num_lines - len(faults)} of {num_lines} lines"
    return f"{found}; {', '.join(faults[:SHOWN_FAULTS])}{more}"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _objects(texts: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    for text in texts:
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            yield record


def _rows_of(file: FoundFile) -> Iterator[Mapping[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("reading Parquet", "pyarrow") from None
    try:
        with file.open(is_random=True) as raw, pyarrow.parquet.ParquetFile(raw) as table:
            for batch in table.iter_batches(batch_size=RECORDS):
                yield from batch.to_pylist()
                return
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file.shown}: cannot be read as Parquet: {str(error).rstrip('.')}."
        ) from None


def choose_field(records: Sequence[Mapping[str, Any]]) -> str | None:
    """The key under which the text of records is: a usual name, else that of the longest texts.

    A few records may lack it, or hold null: those are broken ones. Links and ids are no text.
    """
    chars: Counter[str] = Counter()
    texts: Counter[str] = Counter()
    names: Counter[str] = Counter()
    for record in records:
        for key, value in record.items():
            if isinstance(value, str) and value.strip():
                chars[key] += len(value)
                texts[key] += 1
                names[key] += _NAME.fullmatch(value.strip()) is not None
    keys = [key for key in chars if 2 * texts[key] >= len(records)]
    usual = next((name for name in FIELDS if name in keys), None)
    others = [key for key in keys if 2 * names[key] < texts[key]]
    return usual or max(others, key=lambda key: chars[key], default=None)


def show_field(file: FoundFile, settings: Settings) -> str:
    """What a file holds under its ``text_field``: the beginning of the first."""
    own = dict(settings)
    form = own.get("format") or format_of(file.location) or "text"
    for record in islice(_records_of(file, form, own.get("encoding", "utf-8")), RECORDS):
        if isinstance(value := record.get(own["text_field"]), str):
            return repr(value[:SHOWN_CHARS])
    return "nothing"
