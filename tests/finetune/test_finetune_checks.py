"""Data that a run may have read is not built over."""

from __future__ import annotations

from lmscale.config.corpus import CorpusConfig
from lmscale.corpus.build import build_corpus
from lmscale.finetune.checks import find_other_data


def test_a_corpus_of_other_files_is_told_with_another_name_as_the_way_out(tmp_path):
    raw = tmp_path / "train.jsonl"
    raw.write_text('{"text": "a first text"}\n')
    corpus = CorpusConfig.model_validate(
        {
            "folder": str(tmp_path / "corpus"),
            "sources": {"train": {"inputs": [str(raw)]}},
            "heldout_fraction": 0,
        }
    )
    assert find_other_data(corpus) == []  # nothing is built
    build_corpus(corpus, processes=1)
    assert find_other_data(corpus) == []
    raw.write_text('{"text": "a first text"}\n{"text": "a second one"}\n')
    (problem,) = find_other_data(corpus)
    assert problem.startswith(f"data.train: {tmp_path}/corpus/train was built from raw files that")
    assert "give this fine-tuning another name, such as --set name=NAME-2" in problem
