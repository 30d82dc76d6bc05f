"""Manifests that are looked at without their checkpoint or shards: whatever they say, no crash."""

import hashlib
import json
from dataclasses import fields, replace

import pytest
from pydantic import TypeAdapter

from lmscale.cli.main import main
from lmscale.config.corpus import CorpusConfig
from lmscale.corpus.build import build_corpus, corpus_progress
from lmscale.corpus.documents import CorpusManifest, Splits
from lmscale.corpus.parts import PartRecord
from lmscale.errors import EXIT_USER, DataError
from lmscale.files.reading import seal as seal_note
from lmscale.files.shard_files import read_shard_sizes
from lmscale.files.strangers import checked
from lmscale.runs.commits import read_commits
from lmscale.shards.manifest import (
    Manifest,
    ShardEntry,
    parse_manifest,
    render_manifest,
)
from lmscale.tasks.target import ArrayTask

CORPUS, PART = TypeAdapter(CorpusManifest), TypeAdapter(PartRecord)
DEEP = "[" * 100_000
SHARD = ShardEntry(
    name="a.tar",
    bytes=10_240,
    tokens=9,
    documents=1,
    blocks=1,
    text_bytes=20,
    index_offset=1024,
    sha256="0" * 64,
)
DATASET = Manifest(
    source="a",
    split="train",
    tokenizer_fingerprint="0" * 64,
    vocab_size=800,
    dtype="uint16",
    eos_id=2,
    pad_id=3,
    block_tokens=64,
    inputs="",
    shards=(SHARD,),
)


def seal(shard=None, dataset=DATASET, **changes):
    """A dataset's manifest with these values, whatever they are, and a fingerprint that fits."""
    tree = render_manifest(dataset) | changes
    del tree["fingerprint"]
    if "shards" not in changes:
        tree["shards"] = [vars(SHARD) | (shard or {})]
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    fingerprint = hashlib.sha256(text.encode(errors="replace")).hexdigest()
    return json.dumps(tree | {"fingerprint": fingerprint}).encode()


def test_a_datasets_manifest_that_is_sealed_by_its_maker_is_read():
    assert parse_manifest(seal()) == DATASET
    with_bos = replace(DATASET, bos_id=1)
    assert parse_manifest(seal(dataset=with_bos)) == with_bos


@pytest.mark.parametrize("changes", [{"bos_id": None}, {"bos_id": 1}, {"version": 2}])
def test_bos_belongs_to_the_second_version_of_a_datasets_manifest(changes):
    with pytest.raises(DataError, match="bos_id does not fit version"):
        parse_manifest(seal(**changes))
    with pytest.raises(DataError, match="bos_id does not fit version 1"):
        parse_manifest(seal(dataset=replace(DATASET, bos_id=1), version=1))


@pytest.mark.parametrize("content", [DEEP, "[]", "7", "null", '{"version": 1}', '{"version": []}'])
def test_what_is_no_datasets_manifest_is_an_error_and_no_crash(content):
    with pytest.raises(DataError):
        parse_manifest(content.encode())


# None of them is a count, a hash, or text that can be shown.
NO_VALUES = [[1], {"x": 1}, -1, 1.5, None, True, 2**63, 10**4000, "\ud800", "\x1b]0;title\x07"]


@pytest.mark.parametrize("field", [field.name for field in fields(Manifest)])
@pytest.mark.parametrize("value", NO_VALUES, ids=lambda value: ascii(value)[:20])
def test_no_field_of_a_datasets_manifest_is_taken_with_a_value_of_another_kind(field, value):
    with pytest.raises(DataError) as caught:
        parse_manifest(seal(dataset=replace(DATASET, bos_id=1), **{field: value}))
    assert "fingerprint: it was edited" not in str(caught.value)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300


@pytest.mark.parametrize("field", [field.name for field in fields(ShardEntry)])
@pytest.mark.parametrize("value", NO_VALUES, ids=lambda value: ascii(value)[:20])
def test_no_field_of_a_shard_is_taken_with_a_value_of_another_kind(field, value):
    with pytest.raises(DataError) as caught:
        parse_manifest(seal({field: value}))
    assert "it is refused" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("field", [f.name for f in fields(Manifest) if f.type == "int"])
def test_no_count_of_a_dataset_is_a_text(field):
    with pytest.raises(DataError, match=f"{field} is 'x'; it is refused"):
        parse_manifest(seal(**{field: "x"}))


@pytest.mark.parametrize("field", [f.name for f in fields(ShardEntry) if f.name != "name"])
def test_no_count_and_no_hash_of_a_shard_is_a_text(field):
    with pytest.raises(DataError, match=f"of shard 0 the {field} is 'x'; it is refused"):
        parse_manifest(seal({field: "x"}))


def test_a_version_of_the_shards_that_is_no_number_is_quoted():
    with pytest.raises(DataError, match="has format version '.*'; this lmscale reads") as caught:
        parse_manifest(seal(version="\x1b[2J"))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("command", ["show", "verify"])
@pytest.mark.parametrize("content", [DEEP.encode(), seal({"tokens": "x"}), seal(vocab_size="x")])
def test_the_commands_tell_of_a_datasets_manifest_that_is_none(tmp_path, capsys, command, content):
    (tmp_path / "manifest.json").write_bytes(content)
    assert main(["shards", command, str(tmp_path)]) == EXIT_USER
    assert "manifest.json: " in capsys.readouterr().err


# ---- checkpoints, as the status of a run and its ledger see them


GOOD = {"step": 7, "n": 84, "folder": "checkpoints/step-000000007", "sha256": "a", "bytes": 10}
GOOD |= {"event": "commit", "reason": "regular", "time": 1.0, "attempt": 1}
NO_COMMIT = [
    *(DEEP, "", "[]", "null", "7", '"x"', "{}", '{"event": "commit"}', '{"event": "remove"}'),
    '{"event": "remove", "step": [5]}',
    *(
        json.dumps({**GOOD, **change})
        for change in (
            *({"step": step} for step in ("7", -1, 7.5, True, None, [7], 10**20)),
            *({"n": n} for n in ("x", float("inf"), -1, True)),
            *({"folder": folder} for folder in ("", "a\x1b[2J", "a\nb", 7)),
            *({"bytes": float("nan")}, {"reason": []}, {"time": "now"}, {"sha256": None}),
        )
    ),
    json.dumps(GOOD).replace("84", str(10**4000)),
]


@pytest.mark.parametrize("line", NO_COMMIT, ids=lambda line: line[:60])
def test_a_row_that_is_none_of_a_commit_counts_for_nothing_and_hides_no_other(
    tmp_path, capsys, line
):
    (tmp_path / "config.yaml").write_text("run: {name: first}\n")
    (tmp_path / "commits.jsonl").write_text(f"{json.dumps(GOOD | {'step': 5})}\n{line}\n")
    assert [commit.step for commit in read_commits(tmp_path)] == [5]
    assert main(["runs", "status", str(tmp_path)]) == 0
    assert "last checkpoint  step 5," in capsys.readouterr().out


# Each would be opened, removed or sent somewhere else than beside the manifest.
EVIL_NAMES = [
    "../../secret.jsonl",
    "/etc/passwd",
    "a/b",
    "..",
    "",
    "~x",
    "-rf",
    "|id",
    "a\\b",
    "*",
    "a\n",
]


@pytest.mark.parametrize("name", [*EVIL_NAMES, 7, None])
def test_no_manifest_leads_out_of_its_folder(tmp_path, name):
    """Of a corpus, of a part of one, and of shards of which only the sizes are asked."""
    file = {"name": name, "bytes": 4, "documents": 1, "text_bytes": 1, "xxh128": "0"}
    counts = ("documents_read", "line_ends", "files_without_text")
    rows = {
        "dropped": {},
        "cut": {},
        "passed_over": {},
        "without_text": [],
        **dict.fromkeys(counts, 0),
    }
    splits = {"train": [file], "heldout": []}
    tree = {**rows, "source": "s", "key": "k", "made_by": {}, "files_read": 1, "splits": splits}
    assert checked(CORPUS, tree | {"splits": {"train": [file | {"name": "a"}], "heldout": []}})
    with pytest.raises(ValueError, match=r"splits.train.0.name"):
        checked(CORPUS, tree)
    with pytest.raises(ValueError, match=r"splits.train.0.name"):
        checked(PART, {**rows, "broken": [], "splits": splits})
    (tmp_path / "manifest.json").write_text(json.dumps({"shards": [file]}))
    with pytest.raises(DataError, match="is not a manifest of shards: .*name"):
        read_shard_sizes(tmp_path)


@pytest.mark.parametrize("splits", [{}, {"train": []}, {"train": [], "heldout": [], "../x": []}])
def test_a_corpus_has_its_two_parts_and_no_other(splits):
    with pytest.raises(ValueError, match="splits names not exactly train and heldout"):
        checked(TypeAdapter(Splits), splits, at="splits")


@pytest.mark.parametrize("move", [["../../secret", "train/a"], ["parts/a", "../../stolen"]])
def test_no_note_of_a_build_moves_a_file_into_or_out_of_its_folder(tmp_path, move):
    for number in range(2):
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    secret = tmp_path / "secret"
    secret.write_text("mine")
    sources = {"s": {"inputs": [f"{tmp_path}/?.txt"]}}
    tree = {"folder": str(tmp_path / "c"), "sources": sources, "part_bytes": 1}
    config = CorpusConfig.model_validate(tree)
    build_corpus(config, ArrayTask(0, 2))
    work = corpus_progress(config, 2)[0].target.work
    work.mkdir(exist_ok=True)
    (work / "moves.json").write_bytes(seal_note({"manifest": {}, "moves": [[*move, 4]]}))
    with pytest.raises(DataError, match="moves.json: damaged: the file name .* leads out"):
        build_corpus(config, ArrayTask(1, 2))
    assert secret.read_text() == "mine" and not (tmp_path / "stolen").exists()
