"""Shards hold every token of every document, whoever builds them and however often."""

import io
import itertools
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_cases import contents, webdataset_leaks, with_shards

from lmscale.config.labels import LabelSet
from lmscale.corpus.documents import read_documents
from lmscale.errors import ConfigError, DataError
from lmscale.shards.build import build_shards
from lmscale.shards.manifest import Manifest, load_manifest
from lmscale.shards.reader import open_shard
from lmscale.shards.slices import plan_slices
from lmscale.shards.verify import verify_dataset
from lmscale.shards.writer import Documents, TokenizedDocument, write_shard
from lmscale.tasks.target import ArrayTask
from lmscale.tokenizer.codec import save_tokenizer
from lmscale.tokenizer.own import OwnTokenizer
from lmscale.tokenizer.train import train_tokenizer


@webdataset_leaks
def test_plain_webdataset_yields_every_token_of_every_document_in_order(dataset, expected):
    import webdataset

    urls = sorted(map(str, dataset.glob("*.tar")))
    assert len(urls) > 3
    found = []
    for sample in webdataset.WebDataset(urls, shardshuffle=False).decode():
        tokens, docs, meta = sample["tokens.npy"], sample["docs.npy"], sample["meta.json"]
        assert tokens.dtype == np.uint16
        assert (len(docs) - 1, len(tokens)) == (meta["documents"], meta["tokens"])
        found += [tokens[a:b].tolist() for a, b in itertools.pairwise(docs)]
    assert found == expected


def test_mapped_shards_yield_the_same(dataset, expected):
    manifest = load_manifest(dataset)
    found = []
    for entry in manifest.shards:
        shard = open_shard(dataset / entry.name, entry, manifest.dtype)
        for block in range(shard.num_blocks):
            tokens, docs = shard.tokens(block), shard.docs(block)
            assert not tokens.flags.writeable
            found += [tokens[a:b].tolist() for a, b in itertools.pairwise(docs)]
    assert found == expected


def test_the_manifest_counts_what_is_there(base, dataset, expected):
    manifest = load_manifest(dataset)
    texts = list(read_documents(f"{base.corpus.folder}/topics/train"))
    assert manifest.tokens == sum(map(len, expected))
    assert manifest.documents == len(expected)
    assert manifest.text_bytes == sum(len(text.encode()) for text in texts)
    names = [shard.name for shard in manifest.shards]
    assert names == [f"topics-{number:06d}.tar" for number in range(len(names))]
    assert sorted(path.name for path in dataset.iterdir()) == ["manifest.json", *names]
    longest = max(map(len, expected)) * 2
    for shard in manifest.shards:
        assert shard.bytes == (dataset / shard.name).stat().st_size
        assert shard.bytes <= max(2**16, longest + 20_480)


def test_without_bos_a_dataset_is_what_it_was_before_there_was_any(base, expected, tmp_path):
    config = with_shards(base, tmp_path / "plain", bos=False)
    build_shards(config)
    folder = tmp_path / "plain/topics/train"
    tree = json.loads((folder / "manifest.json").read_text())
    assert tree["version"] == 1 and "bos_id" not in tree
    manifest = load_manifest(folder)
    found = []
    for entry in manifest.shards:
        shard = open_shard(folder / entry.name, entry, manifest.dtype)
        for block in range(shard.num_blocks):
            tokens, docs = shard.tokens(block), shard.docs(block)
            found += [tokens[a:b].tolist() for a, b in itertools.pairwise(docs)]
    assert found == [ids[1:] for ids in expected]
    assert verify_dataset(folder) == []
    with pytest.raises(DataError, match=r"without bos .*\. Set shards\.bos: false to keep .* Name"):
        build_shards(with_shards(base, tmp_path / "plain"))


def test_a_tokenizer_without_bos_builds_shards_without_it_only(base, dataset, tmp_path):
    """And rows are filled with eos where it has no pad."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=read_documents(f"{base.corpus.folder}/topics/train"),
        model_writer=model,
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        bos_id=-1,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        max_sentence_length=10**6,
        minloglevel=3,
    )
    save_tokenizer(OwnTokenizer(model.getvalue(), {}), tmp_path / "t")
    section = base.tokenizer.model_copy(update={"folder": str(tmp_path / "t")})
    config = base.model_copy(update={"tokenizer": section})
    with pytest.raises(ConfigError, match="shards.bos = true, but the tokenizer in .* has no bos"):
        build_shards(with_shards(config, tmp_path / "other"))
    build_shards(with_shards(config, tmp_path / "other", bos=False))
    manifest = load_manifest(tmp_path / "other/topics/train")
    assert (manifest.bos_id, manifest.eos_id, manifest.pad_id) == (None, 2, 2)


def test_the_shards_are_the_same_whatever_the_number_of_processes(base, dataset, tmp_path):
    build_shards(with_shards(base, tmp_path / "other"), processes=2)
    assert contents(tmp_path / "other" / "topics" / "train") == contents(dataset)
    assert load_manifest(tmp_path / "other/topics/heldout").split == "heldout"


@webdataset_leaks
def test_a_tar_is_what_webdatasets_own_writer_writes(dataset, tmp_path):
    import webdataset

    path = dataset / "topics-000000.tar"
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    copy = tmp_path / "copy.tar"
    with open(copy, "wb") as file, webdataset.TarWriter(file, encoder=False, mtime=0) as writer:
        for key, group in itertools.groupby(members, key=lambda m: re.split(r"\.", m[0])[0]):
            sample = {name.removeprefix(f"{key}."): content for name, content in group}
            writer.write({"__key__": key, **sample})
    assert copy.read_bytes() == path.read_bytes()
    assert [name for name, _ in members][-1] == "__index__/blocks.npy"


def test_a_finished_dataset_is_left_alone_and_another_is_refused(base, dataset, tmp_path):
    config = with_shards(base, tmp_path / "shards")

    def states() -> dict[Path, tuple[int, int]]:
        status = {path: path.stat() for path in dataset.iterdir()}
        return {path: (file.st_ino, file.st_ctime_ns) for path, file in status.items()}

    before = states()
    assert [built.is_new for built in build_shards(config).built.values()] == [False, False]
    assert states() == before
    with pytest.raises(DataError, match="with another shards.max_bytes or shards.block_tokens"):
        build_shards(with_shards(config, tmp_path / "shards", block_tokens=2048))
    other = base.tokenizer.model_copy(update={"folder": str(tmp_path / "t"), "vocab_size": 800})
    train_tokenizer(other, base.corpus.folder, ["topics"])
    with pytest.raises(DataError, match="was built with another tokenizer") as caught:
        build_shards(config.model_copy(update={"tokenizer": other}))
    assert len(caught.value.problems) == 2  # train and heldout
    assert states() == before
    again = build_shards(config.model_copy(update={"tokenizer": other}), force=True)
    assert all(built.is_new for built in again.built.values())
    assert load_manifest(dataset).vocab_size == 800
    assert verify_dataset(dataset) == []


def test_what_another_build_with_force_is_making_is_left_alone(base, dataset, tmp_path):
    config = with_shards(base, tmp_path / "shards")
    inputs = load_manifest(dataset).inputs
    shard = dataset.with_name(".train.building") / inputs[:16] / "parts" / "part-00000.tar"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"made a moment ago")
    with FileLock(dataset.with_name(".train.lock")):
        with pytest.raises(DataError, match="another process is building"):
            build_shards(config, force=True)
        assert shard.read_bytes() == b"made a moment ago"
        for task in (None, ArrayTask(0, 2)):
            built = build_shards(config, task).built.values()
            assert [one.is_new for one in built] == [False, False]
            assert shard.read_bytes() == b"made a moment ago"
    build_shards(config)  # now it is what a kill has left
    assert not dataset.with_name(".train.building").exists()


@settings(deadline=None)
@given(st.integers(1, 10**13), st.floats(0, 1e13), st.integers(2**16, 2**30))
def test_slices_cover_the_corpus_without_gap_or_overlap(total, expected_bytes, max_bytes):
    expected_bytes = min(expected_bytes, 1e3 * max_bytes)
    slices = plan_slices(total, expected_bytes=expected_bytes, max_bytes=max_bytes)
    assert (slices[0].start, slices[-1].end) == (0, total)
    assert all(a.end == b.start for a, b in itertools.pairwise(slices))
    assert expected_bytes / len(slices) <= max_bytes


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60_000), min_size=1, max_size=30),
    block_tokens=st.sampled_from([1024, 20_000, 10**6]),
    dtype=st.sampled_from(["uint16", "uint32"]),
    labels=st.sampled_from([None, LabelSet(kind="tags", names=("a",))]),
)
def test_shards_keep_their_size_and_every_document(
    tmp_path_factory, lengths, block_tokens, dtype, labels
):
    folder = tmp_path_factory.mktemp("writer")
    dataset = Manifest(
        source="s", split="train", tokenizer_fingerprint="f", vocab_size=2**16, dtype=dtype,
        eos_id=2, pad_id=3, block_tokens=block_tokens, inputs="", labels=labels, shards=(),
    )  # fmt: skip
    every = [
        TokenizedDocument(
            ids=np.full(n, k + 3, dtype=dtype), text_bytes=k, offset=k, members={"tags": [0] * n}
        )
        for k, n in enumerate(lengths)
    ]
    documents = Documents(iter(every))
    found = []
    while documents.peek() is not None:
        path = folder / f"{len(found)}.tar"
        entry = write_shard(
            path,
            name=path.name,
            key="s-0",
            documents=documents,
            dataset=dataset,
            max_bytes=2**17,
        )
        shard = open_shard(path, entry, dtype, dataset.members)
        assert entry.bytes <= 2**17 or entry.documents == 1
        for block in range(shard.num_blocks):
            tokens, docs = shard.tokens(block), shard.docs(block)
            found += [tokens[a:b] for a, b in itertools.pairwise(docs)]
    assert [(len(ids), ids[0]) for ids in found] == [(n, k + 3) for k, n in enumerate(lengths)]


def test_importing_corpus_tokenizer_and_shards_loads_no_torch():
    program = "import sys, lmscale.corpus, lmscale.tokenizer, lmscale.shards"
    program += "; sys.exit('torch' in sys.modules or 'webdataset' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
