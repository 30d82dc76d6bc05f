"""Which ids of objectives a tokenizer that came in has, by its files and by usual spellings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from others import train_sentencepiece

from lmscale.errors import DataError
from lmscale.tokenizer.importing import read_foreign
from lmscale.tokenizer.named_ids import find_named_ids

SENTINELS = [f"<extra_id_{number}>" for number in range(5)]


def ids_of(folder: Path, pieces: list[str], **files: dict) -> dict:
    """Of a SentencePiece model with these pieces, from id 3 on, and files of JSON beside it."""
    model = train_sentencepiece(user_defined_symbols=pieces)
    (folder / "tokenizer.model").write_bytes(model)
    for name, tree in files.items():
        (folder / f"{name}.json").write_text(json.dumps(tree))
    return find_named_ids(read_foreign(folder), folder)


def test_roles_in_the_files_come_before_usual_spellings(tmp_path):
    settings = {"mask_token": {"content": "<hidden>"}, "cls_token": "<s>"}
    pieces = ["<mask>", "<hidden>", *reversed(SENTINELS)]
    found = ids_of(
        tmp_path,
        pieces,
        tokenizer_config=settings,
        config={"decoder_start_token_id": 0, "eos_token_id": [2, 5]},
    )
    assert found == {"mask": 4, "cls": 1, "start": 0, "end": 2, "sentinels": (9, 5)}


def test_marks_and_sentinels_are_known_by_their_spellings(tmp_path):
    marks = ["▁<PRE>", "▁<MID>", "▁<SUF>"]
    found = ids_of(tmp_path, [*marks, "[NLU]", *SENTINELS[:3], SENTINELS[4], "<extra_id_9>"])
    assert found == {"prefix": 3, "suffix": 5, "middle": 4, "mode_R": 6, "sentinels": (7, 9)}


def test_what_is_not_in_a_row_or_only_a_part_of_three_is_left_out(tmp_path):
    shuffled = [SENTINELS[place] for place in (0, 3, 1)]
    beyond = {"decoder_start_token_id": 10**6, "eos_token_id": 2}
    assert ids_of(tmp_path, [*shuffled, "<fim_prefix>"], config=beyond) == {}


def test_a_t5_model_without_its_sentinels_is_refused_with_what_to_write(tmp_path):
    with pytest.raises(DataError, match="adds 100 tokens .<extra_id_0>, ….*tokenizer.json"):
        ids_of(tmp_path, [], tokenizer_config={"extra_ids": 100})
