"""Into how many jobs the making of data is divided, and what of it is left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from lmscale.cli import data_work
from lmscale.cli.data_work import Work, find_work
from lmscale.config import RunConfig, load_config
from lmscale.corpus.build import build_corpus
from lmscale.errors import DataError
from lmscale.shards.build import build_shards
from lmscale.tokenizer.importing import import_tokenizer
from lmscale.tokenizer.train import train_tokenizer


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """Three raw files, each a part of its own."""
    (tmp_path / "raw").mkdir()
    for number in range(3):
        line = json.dumps({"text": f"text {number}: " + "some words of it " * 40}) + "\n"
        (tmp_path / f"raw/{number}.jsonl").write_text(line * 30)
    corpus = {"inputs": [f"{tmp_path}/raw/*.jsonl"]}
    tree = {
        "run": {"name": "work"},
        "corpus": {
            "folder": f"{tmp_path}/corpus",
            "sources": {"web": corpus},
            "part_bytes": 1,
            "drop_exact_duplicates": False,
            "heldout_fraction": 0,
        },
        "tokenizer": {"folder": f"{tmp_path}/tokenizer", "vocab_size": 300},
        "shards": {"folder": f"{tmp_path}/shards", "max_bytes": 2**16, "block_tokens": 1024},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    return load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("num_bytes", "parts", "asked", "cores", "tasks"),
    [
        (10 * 2**30, 1000, None, 1, 10),
        (10 * 2**30, 1000, None, 4, 3),
        (10 * 2**30 + 1, 1000, None, 1, 11),
        (10**15, 10**6, None, 1, data_work.MAX_TASKS),
        (10**15, 10**6, 900, 1, 900),
        (10 * 2**30, 4, None, 1, 4),
        (0, 0, None, 1, 1),
        (5, 3, 2, 1, 2),
        (5, 3, 3, 1, 3),
        (5, 3, 64, 1, 3),
    ],
)
def test_there_are_as_many_tasks_as_bytes_want_and_parts_allow(
    num_bytes, parts, asked, cores, tasks
):
    found, note = data_work._divide("corpus", num_bytes, parts, asked, cores)
    assert found == tasks
    assert (note != "") == (asked is not None and asked != tasks)


def test_every_stage_knows_what_it_has_left_and_when_it_is_done(config):
    corpus = find_work(config, "corpus", asked=64, cores=1)
    assert (corpus.tasks, corpus.missing) == (3, (0, 1, 2))
    assert corpus.note == "--tasks 64: the corpus is 3 parts of its raw files, for 3 tasks"
    assert find_work(config, "corpus", asked=None, cores=1) == Work(tasks=1, missing=(0,))
    assert not find_work(config, "tokenizer", asked=None, cores=1, awaits=True).is_done
    later = find_work(config, "shards", asked=64, cores=1, awaits=True)
    assert later.tasks == len(later.missing) == 3 and "raw files fill at most" in later.note

    build_corpus(config.corpus)
    assert find_work(config, "corpus", asked=64, cores=1).is_done
    assert find_work(config, "tokenizer", asked=None, cores=1) == Work(missing=(0,))
    sources = list(config.corpus.sources)
    train_tokenizer(config.tokenizer, config.corpus.folder, sources)
    assert find_work(config, "tokenizer", asked=None, cores=1).is_done
    shards = find_work(config, "shards", asked=64, cores=1)
    assert not shards.is_done and f"for {shards.tasks} task" in shards.note
    build_shards(config)
    assert find_work(config, "shards", asked=64, cores=1).is_done


def test_a_tokenizer_of_other_settings_is_told_even_before_there_is_a_corpus(config, tmp_path):
    build_corpus(config.corpus)
    train_tokenizer(config.tokenizer, config.corpus.folder, list(config.corpus.sources))
    other = load_config(tmp_path / "run.yaml", ["tokenizer.vocab_size=301"])
    for awaits in (False, True):
        with pytest.raises(DataError, match=r"trained otherwise \(other vocab_size\)"):
            find_work(other, "tokenizer", asked=None, cores=1, awaits=awaits)
    # Of the same settings it may be of another text: the job finds out.
    assert not find_work(config, "tokenizer", asked=None, cores=1, awaits=True).is_done


def test_an_imported_tokenizer_is_used_as_it_is(config, tmp_path):
    build_corpus(config.corpus)
    own = config.tokenizer.model_copy(update={"folder": str(tmp_path / "own")})
    train_tokenizer(own, config.corpus.folder, list(config.corpus.sources))
    theirs = shutil.copy(tmp_path / "own/tokenizer.model", tmp_path / "theirs.model")
    import_tokenizer(Path(theirs), tmp_path / "tokenizer", chosen={})
    work = find_work(config, "tokenizer", asked=None, cores=1)
    assert work.is_done and "holds an imported one" in work.note
