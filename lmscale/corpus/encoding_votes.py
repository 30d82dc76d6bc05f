"""Files of one folder vote on their encoding: what one of few characters seems to be is a guess."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping

from lmscale.corpus.encodings import HEAD_BYTES, decodes
from lmscale.corpus.guess import Settings, read_head
from lmscale.corpus.inputs import format_of
from lmscale.files.found import FoundFile
from lmscale.files.printing import count_of

_MOST_SHARE = 0.75  # of a folder's files that are not of UTF-8, above which these say what it holds
# Bytes that are not ASCII: of more than these the detector was right without a vote.
_FEW_BYTES = 200


def vote_encodings(
    settings: Mapping[str, Settings], files: Mapping[str, FoundFile]
) -> tuple[dict[str, Settings], list[str]]:
    """The settings, in which a file of few characters has the encoding of most of its folder where
    its bytes are a text in that, and a line for each folder where it is so.
    """
    folders: dict[str, list[str]] = {}
    for place in settings:
        folders.setdefault(os.path.dirname(place), []).append(place)
    changed: dict[str, Settings] = {}
    notes: list[str] = []
    for places in folders.values():
        votes = Counter(own for place in places if (own := _encoding_of(settings[place])))
        most, number = votes.most_common(1)[0] if votes else ("", 0)
        if number < max(2, _MOST_SHARE * votes.total()):
            continue
        others = (place for place in places if _encoding_of(settings[place]) != most)
        taken = [place for place in others if _is_doubtful(files[place], settings[place], most)]
        changed |= {each: _with_encoding(settings[each], most) for each in taken}
        if taken:
            alone = _encoding_of(settings[taken[0]]) or "UTF-8 with wrong bytes"
            notes.append(
                f"{count_of(len(taken), 'short file')} read as {most}, as most of the folder: "
                f"{files[taken[0]].shown}, say, which alone looks like {alone}"
            )
    return {**settings, **changed}, notes


def _encoding_of(settings: Settings) -> str | None:
    return dict(settings).get("encoding")


def _is_doubtful(file: FoundFile, settings: Settings, encoding: str) -> bool:
    """Whether a file holds too little to tell, may be of the encoding, and is not of UTF-8."""
    if (dict(settings).get("format") or format_of(file.location)) not in ("text", "jsonl", "json"):
        return False
    head = read_head(file)[:HEAD_BYTES]
    others = sum(byte > 127 for byte in head)
    return 0 < others <= _FEW_BYTES and not decodes(head, "utf-8") and decodes(head, encoding)


def _with_encoding(settings: Settings, encoding: str) -> Settings:
    return tuple(sorted({**dict(settings), "encoding": encoding}.items()))
