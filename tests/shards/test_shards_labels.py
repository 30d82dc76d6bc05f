"""What a corpus says of its texts is in the shards, of the same documents, in the same order."""

import io
import json
import sys
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from labelled_data import FIELDS, labelled_tree, records
from shard_cases import webdataset_leaks

from lmscale.config import RunConfig, parse_config
from lmscale.config.corpus import CorpusConfig, CorpusSourceConfig
from lmscale.config.labels import LabelSet
from lmscale.corpus.account import Account
from lmscale.corpus.build import build_corpus
from lmscale.corpus.documents import load_corpus_manifest
from lmscale.corpus.fields import RecordFields
from lmscale.corpus.inputs import find_inputs
from lmscale.corpus.readers import read_file
from lmscale.errors import ConfigError, DataError
from lmscale.files.reading import sha256_file
from lmscale.shards.manifest import load_manifest, render_manifest, save_manifest
from lmscale.shards.reader import open_shard
from lmscale.shards.verify import verify_dataset
from lmscale.tokenizer.codec import load_tokenizer


@pytest.fixture
def config(labelled) -> RunConfig:
    return labelled


@pytest.fixture
def tokenizer(config):
    return load_tokenizer(config.tokenizer.folder)


def folders_of(config: RunConfig, kind: str) -> list[Path]:
    return [Path(config.shards.folder) / kind / split for split in ("train", "heldout")]


def read_samples(config: RunConfig, kind: str) -> list[dict]:
    """The blocks of both parts as a plain webdataset reader has them."""
    import webdataset

    urls = [str(path) for folder in folders_of(config, kind) for path in folder.glob("*.tar")]
    dataset = webdataset.WebDataset(urls, shardshuffle=False)  # pyright: ignore[reportAttributeAccessIssue]
    return list(dataset.decode())


def documents_of(sample: dict) -> list[np.ndarray]:
    return np.split(sample["tokens.npy"], sample["docs.npy"][1:-1])


@webdataset_leaks
def test_a_plain_webdataset_reader_finds_both_texts_of_every_pair(config, tokenizer):
    found = []
    for sample in read_samples(config, "pairs"):
        for ids, begin in zip(documents_of(sample), sample["parts.npy"], strict=True):
            assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
            found.append((tokenizer.decode(ids[:begin]), tokenizer.decode(ids[begin:])))
    assert sorted(found) == sorted((record["en"], record["de"]) for record in records("pairs"))


@webdataset_leaks
@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_every_document_has_its_label(config, tokenizer, kind):
    names, field = FIELDS[kind].get("label_names"), FIELDS[kind]["label_field"]
    found = []
    for sample in read_samples(config, kind):
        labels = sample["labels.npy"]
        assert labels.dtype == (np.int32 if names else np.float32)
        for ids, label in zip(documents_of(sample), labels.tolist(), strict=True):
            found.append((tokenizer.decode(ids), names[label] if names else label))
    assert sorted(found) == sorted((record["text"], record[field]) for record in records(kind))


@webdataset_leaks
def test_a_pair_may_have_a_label(config, tokenizer):
    found = []
    for sample in read_samples(config, "matches"):
        said = zip(sample["parts.npy"], sample["labels.npy"].tolist(), strict=True)
        for ids, (begin, label) in zip(documents_of(sample), said, strict=True):
            found.append((tokenizer.decode(ids[:begin]), tokenizer.decode(ids[begin:]), label))
    rows = records("matches")
    assert sorted(found) == sorted((row["en"], row["de"], row["is_it"]) for row in rows)


@webdataset_leaks
def test_a_words_tag_stands_at_its_first_token_that_is_not_white_space(config, tokenizer):
    names = FIELDS["tags"]["label_names"]
    found = []
    for sample in read_samples(config, "tags"):
        assert sample["tags.npy"].dtype == np.int16
        places = sample["docs.npy"][1:-1]
        for ids, tags in zip(
            documents_of(sample), np.split(sample["tags.npy"], places), strict=True
        ):
            first = np.flatnonzero(tags >= 0)
            ends = [*first[1:], len(ids)]
            words = [tokenizer.decode(ids[a:b]).strip() for a, b in zip(first, ends, strict=True)]
            found.append((words, [names[tag] for tag in tags[first]]))
    expected = [(record["words"], record["tags"]) for record in records("tags")]
    assert sorted(found) == sorted(expected)


@webdataset_leaks
def test_an_answers_tokens_stand_in_the_second_text_and_nothing_else_is_covered(config, tokenizer):
    found = []
    for sample in read_samples(config, "answers"):
        members = (sample[f"{name}.npy"] for name in ("parts", "span_first", "span_last"))
        for ids, begin, first, last in zip(documents_of(sample), *members, strict=True):
            answer = tokenizer.decode(ids[first : last + 1]).strip() if first else None
            assert first == last == 0 or begin <= first <= last < len(ids) - 1
            found.append((tokenizer.decode(ids[:begin]), tokenizer.decode(ids[begin:]), answer))
            # As it is where nobody knows the answer.
            context = tokenizer.encode(tokenizer.decode(ids[begin:]))
            assert ids[begin:-1].tolist() == context.tolist()
    expected = [
        (row["question"], row["context"], next(iter(row["answers"]["text"]), None))
        for row in records("answers")
    ]
    assert sorted(found, key=str) == sorted(expected, key=str)


def test_the_manifest_says_what_is_there_and_a_mapped_shard_has_it(config):
    kinds = {"pairs": None, "tags": "tags", "numbers": "numbers", "matches": "classes"}
    for kind, labels in {**kinds, "answers": "spans"}.items():
        folder = folders_of(config, kind)[0]
        manifest = load_manifest(folder)
        assert manifest.version == (4 if kind == "answers" else 3)
        assert manifest.has_pairs is (kind in ("pairs", "matches", "answers"))
        names = FIELDS[kind].get("label_names", [])
        expected = labels and {"kind": labels, "names": names}
        assert render_manifest(manifest).get("labels") == expected
        assert verify_dataset(folder) == []
        (entry,) = manifest.shards
        shard = open_shard(folder / entry.name, entry, manifest.dtype, manifest.members)
        for member in manifest.members:
            count = member.count(len(shard.tokens(0)), len(shard.docs(0)) - 1)
            assert shard.values(member.name, 0).shape == (count,)


@pytest.mark.parametrize(
    ("kind", "value", "told"),
    [
        ("pairs", 99, "block 0: the second part of document 0 begins at 99, outside of it"),
        ("classes", 2, "block 0: classes has 2, but there are 2 names"),
        ("numbers", np.inf, "block 0: a label is no finite number"),
        ("tags", 3, "block 0: tags has 3, but there are 3 names"),
        ("answers", 99, "block 0: the answer of document 0 is in its tokens "),
    ],
)
def test_verify_tells_what_cannot_be_said_of_a_document(config, tmp_path, kind, value, told):
    folder = folders_of(config, kind)[0]
    manifest = load_manifest(folder)
    (entry,) = manifest.shards
    shard = open_shard(folder / entry.name, entry, manifest.dtype, manifest.members)
    member = manifest.members[-1]
    content = bytearray((folder / entry.name).read_bytes())
    changed = np.frombuffer(content, member.dtype, 1, int(shard.places[member.name][0]))
    changed[0] = value
    (tmp_path / entry.name).write_bytes(content)
    save_manifest(manifest, tmp_path)
    (problem,) = verify_dataset(tmp_path)
    assert told in problem and "damaged" in problem
    forged = replace(entry, sha256=sha256_file(tmp_path / entry.name))
    save_manifest(replace(manifest, shards=(forged,)), tmp_path)
    assert [told in problem for problem in verify_dataset(tmp_path)] == [True]


def test_a_shard_without_the_member_that_its_manifest_names_is_refused(config):
    folder = folders_of(config, "classes")[0]
    manifest, other = load_manifest(folder), load_manifest(folders_of(config, "matches")[0])
    (entry,) = manifest.shards
    with pytest.raises(DataError, match="index is damaged: its offsets do not follow one another"):
        open_shard(folder / entry.name, entry, manifest.dtype, other.members)
    (labels,) = manifest.members
    numbers = (labels._replace(dtype=np.dtype("<f4")),)
    with pytest.raises(DataError, match=r"should have labels: \d+ numbers of float32"):
        open_shard(folder / entry.name, entry, manifest.dtype, numbers)


def test_what_is_missing_or_unknown_is_told_of_all_records_together(tmp_path):
    lines = {
        "classes": [{"text": "a"}, {"text": "b", "kind": "plant"}, {"text": "c", "kind": 2}],
        "pairs": [{"en": "a", "de": None}],
        "tags": [{"words": ["a", " "], "tags": [0, 1]}, {"words": ["a"], "tags": []}],
        "numbers": [{"text": "a", "score": x} for x in ("good", float("nan"), None)],
    }
    told = {
        "classes": [
            "no key 'kind' (label_field): its keys are text.",
            "'plant' ('kind', label_field) is none of label_names.",
            "2 ('kind', label_field) is none of label_names.",
        ],
        "pairs": ["'de' holds null, not text."],
        "tags": [
            "word 2 of 'words' is ' ', no word.",
            "'tags' (tags_field) holds 0 tags of 1 words.",
        ],
        "numbers": [
            "'good' ('score', label_field) is no number; classes need label_names.",
            "nan ('score', label_field) is no number; classes need label_names.",
            "null ('score', label_field) is no number; classes need label_names.",
        ],
    }
    for kind, rows in lines.items():
        (tmp_path / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = RunConfig.model_validate(labelled_tree(tmp_path, {kind: FIELDS[kind]}))
        with pytest.raises(DataError) as caught:
            build_corpus(config.corpus)
        for number, problem in enumerate(told[kind], start=1):
            assert any(
                f"{kind}.jsonl:{number}: {problem}" in line for line in caught.value.problems
            ), (kind, problem, caught.value.problems)


def test_fields_are_read_of_json_in_a_tar_and_asked_of_every_column_of_parquet(tmp_path):
    with tarfile.open(tmp_path / "pairs.tar", "w") as tar:
        for name, content in (("a.json", b'{"en": "one", "de": "eins"}'), ("b.txt", b"two")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    config = RunConfig.model_validate(labelled_tree(tmp_path, {"pairs": FIELDS["pairs"]}))
    with pytest.raises(DataError, match=r"'b\.txt': plain text has no fields \(target_field\)"):
        build_corpus(config.corpus)
    fields = {"pairs": FIELDS["pairs"] | {"max_bad_records": 1}}
    lenient = RunConfig.model_validate(labelled_tree(tmp_path, fields))
    build_corpus(lenient.corpus.model_copy(update={"heldout_fraction": 0.0}))
    (line,) = (tmp_path / "corpus/pairs/train/documents-00000.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "text": "oneeins", "id": "pairs.tar:1", "source": "pairs", "parts": [3, 4],
    }  # fmt: skip
    (tmp_path / "pairs.tar").unlink()
    pyarrow.parquet.write_table(pyarrow.table({"fr": ["un"]}), tmp_path / "pairs.parquet")
    told = "no column 'en' nor 'de'; its columns: fr. Set .*pairs.text_field and .*target_field"
    with pytest.raises(DataError, match=told):
        build_corpus(config.corpus.model_copy(update={"folder": str(tmp_path / "other")}))


def test_settings_that_say_nothing_together_are_told_together():
    with pytest.raises(ConfigError) as caught:
        parse_config(
            "run: {name: a}\n"
            "corpus:\n"
            "  sources:\n"
            "    a: {inputs: [x], label_field: l, label_names: [a, b, a]}\n"
            "    b: {inputs: [x], tags_field: t}\n"
            "    c: {inputs: [x], tags_field: t, label_field: l, label_names: [a]}\n"
            "    d: {inputs: [x], label_names: [a]}\n"
            "    e: {inputs: [x], target_field: t, format: text}\n"
            "    f: {inputs: [x], target_field: text}\n"
            "    g: {inputs: [x], target_field: t, label_field: t}\n"
        )
    text = str(caught.value)
    for part in (
        "label_names: the names 'a' come more than once",
        "label_names: tags need names",
        "tags_field: tagged words are neither a pair nor do they have a label",
        "label_names are given, but neither label_field nor tags_field",
        "format: text has no fields; target_field need another",
        "text_field = 'text', target_field = 'text': each has to name a field of its own",
        "target_field = 't', label_field = 't': each has to name",
    ):
        assert part in text
    with pytest.raises(ValueError, match="32,768 names are too many: tags have at most 32,767"):
        LabelSet(kind="tags", names=tuple(map(str, range(2**15))))


def fields_of(names: Iterable[str]) -> RecordFields:
    fields = {"label_field": "kind", "label_names": tuple(names)}
    return RecordFields(CorpusSourceConfig(inputs=("x",), **fields))


@pytest.mark.parametrize(
    ("names", "places", "refused"),
    [
        (["spam", "ham"], {0: 0, 1: 1, "ham": 1}, [True, False, 2, -1, 1.0, "1", None, []]),
        (["true", "false"], {True: 0, False: 1, "false": 1}, []),
        (["5", "1", "3"], {1: 1, "1": 1, 5: 0}, [0, True]),
        (["-1", "+1"], {-1: 0, "+1": 1}, [1, 0]),
        (["1.0", "2.0", "0.0"], {"0.0": 2}, [0, 1]),
        (["some", "nan", "inf"], {1: 1, "nan": 1}, [float("nan")]),
    ],
)
def test_a_number_is_a_place_unless_names_are_numbers_and_what_is_true_is_none(
    names, places, refused
):
    fields = fields_of(names)
    for value, place in places.items():
        assert fields.read({"text": "x", "kind": value}).label == place
    for value in refused:
        with pytest.raises(ValueError, match=r"\('kind', label_field\) is none of label_names"):
            fields.read({"text": "x", "kind": value})
    tags = {"text_field": "words", "tags_field": "tags", "label_names": tuple(names)}
    tagged = RecordFields(CorpusSourceConfig(inputs=("x",), **tags))
    record = {"words": ["a"] * len(places), "tags": [*places]}
    assert tagged.read(record).tags == tuple(places.values())


def functions_called(work: Callable[[], object]) -> list[str]:
    called = []
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, _: called.append((event, frame.f_code.co_name)))
    try:
        work()
    finally:
        sys.setprofile(before)
    return [name for event, name in called if event == "call"]


def test_a_record_costs_the_same_however_many_names_there_are(tmp_path):
    record = {"text": "x", "kind": 3}
    few, many = (fields_of(f"c{number}" for number in range(count)) for count in (10, 1000))
    assert functions_called(lambda: few.read(record)) == functions_called(lambda: many.read(record))
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' * 3)
    source = CorpusSourceConfig(inputs=(str(tmp_path / "a.jsonl"),))
    (file,) = find_inputs(CorpusConfig(sources={"s": source}))["s"]
    account = Account("s", source)
    called = functions_called(lambda: [*read_file(file, account)])
    assert called.count("_checked") == 3 and called.count("fields_beside") < 2


def test_texts_that_are_the_same_lie_on_one_side_and_are_kept_if_something_else_is_said(tmp_path):
    rows = [{"en": text, "de": target} for text in map(str, range(40)) for target in "abb"]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RunConfig.model_validate(labelled_tree(tmp_path, {"pairs": FIELDS["pairs"]}))
    build_corpus(config.corpus.model_copy(update={"heldout_fraction": 0.5}))
    manifest = load_corpus_manifest(tmp_path / "corpus/pairs")
    assert manifest.dropped == {"duplicate": 40}
    sides = []
    for split in ("train", "heldout"):
        path = tmp_path / f"corpus/pairs/{split}/documents-00000.jsonl"
        texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
        sides.append({text[:-1] for text in texts})
    assert sides[0].isdisjoint(sides[1]) and len(sides[0] | sides[1]) == 40
