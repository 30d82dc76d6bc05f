"""What was dropped can be listed: the very documents that a build has left out."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lmscale.cli.corpus import app
from lmscale.config.corpus import CorpusConfig
from lmscale.corpus.build import build_corpus
from lmscale.corpus.documents import document_paths
from lmscale.corpus.dropped import list_dropped
from lmscale.errors import ConfigError, DataError

# A few texts that come again and again, too short ones, too long ones, and lines that are broken.
LINES = st.sampled_from(["a", " a ", "bb", "ccc\r\n", "ccc\n", "", " ", "d" * 9, "e" * 30, None, 7])


def corpus(folder, files, **changes) -> CorpusConfig:
    for number, lines in enumerate(files):
        rows = (json.dumps({"text": line} if isinstance(line, str) else line) for line in lines)
        (folder / f"{number}.jsonl").write_text("".join(f"{row}\n" for row in rows))
    tree = {
        "folder": str(folder / "corpus"),
        "sources": {"s": {"inputs": [str(folder / "*.jsonl")], "max_bad_records": 1000}},
        "min_chars": 2,
        "max_chars": 20,
        "heldout_fraction": 0.3,
        "part_bytes": 1,  # a part for every file
    }
    return CorpusConfig.model_validate(tree | changes)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.lists(LINES, max_size=40), min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from(["split", "truncate", "drop"]),
)
def test_what_is_kept_and_what_is_listed_are_all_that_was_read(
    tmp_path_factory, files, drops, overlong
):
    folder = tmp_path_factory.mktemp("listed")
    files = [[*lines, f"kept {number}"] for number, lines in enumerate(files)]
    config = corpus(folder, files, drop_exact_duplicates=drops, on_overlong=overlong)
    try:
        manifest = build_corpus(config, processes=1).built["s"].manifest
    except DataError as error:
        assert "no document is left for training" in str(error)
        return
    listed = list(list_dropped(config, "s"))
    assert Counter(each.reason for each in listed) == manifest.dropped
    kept = set()
    for split in ("train", "heldout"):
        for path, _ in document_paths(folder / "corpus/s", split):
            kept |= {
                json.loads(line)["id"].partition("#")[0] for line in path.read_bytes().splitlines()
            }
    names = [f"{n}.jsonl:{row}" for n, lines in enumerate(files) for row in range(len(lines))]
    gone = [each.id for each in listed if each.reason != "broken"]
    assert len({*gone}) == len(gone) and not kept & {*gone}
    num_broken = sum(not isinstance(line, str) for lines in files for line in lines)
    assert len(kept) + len(gone) == len(names) - num_broken
    for each in listed:
        assert (each.same_as in kept) == (each.reason == "duplicate")
        assert bool(each.detail) == (each.reason == "broken")


def test_the_command_lists_by_source_and_reason_and_tells_of_other_files(tmp_path):
    files = [["aaa", "aaa", "x"], ["aaa", "bbb", 5]]
    config = corpus(tmp_path, files, heldout_fraction=0)
    path = tmp_path / "c.yaml"
    tree = {"run": {"name": "r"}, "corpus": config.model_dump(mode="json")}
    path.write_text(yaml.safe_dump(tree))
    build_corpus(config, processes=1)

    def call(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["dropped", str(path), *arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.stdout

    lines = call().splitlines()
    assert lines[0].split() == ["s", "duplicate", "0.jsonl:2", "=", "0.jsonl:1"], lines
    assert lines[1].split() == ["s", "short", "0.jsonl:3"]
    assert lines[2].split() == ["s", "duplicate", "1.jsonl:1", "=", "0.jsonl:1"]
    assert lines[3].split()[:2] == ["s", "broken"] and len(lines) == 4
    row = json.loads(call("--reason", "short", "--source", "s", "--json"))
    assert (row["id"], row["reason"]) == ("0.jsonl:3", "short")
    with pytest.raises(ConfigError, match="--reason odd: there is none. Known: broken, empty"):
        call("--reason", "odd")
    with pytest.raises(ConfigError, match="--source t: there is none. Known: s"):
        call("--source", "t")
    (tmp_path / "2.jsonl").write_text('{"text": "new"}\n')
    with pytest.raises(DataError, match="from raw files that have changed since, so what it"):
        call()
