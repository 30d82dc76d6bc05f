"""What was built and what has begun stays as it is, and is told in the words of the short YAML."""

from __future__ import annotations

from tiny_run import log_commit

from lmscale.config import dump_config, parse_config
from lmscale.config.corpus import CorpusConfig
from lmscale.config.finetune import FinetuneConfig
from lmscale.config.load import validate_tree
from lmscale.corpus.build import build_corpus
from lmscale.finetune.changes import find_changed_wishes
from lmscale.finetune.checks import find_alike, find_other_data


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


def test_names_that_differ_by_case_or_white_space_alone_are_found():
    assert find_alike(["good", "Good ", "bad", "go od", "ｂad"]) == [["good", "Good ", "go od"]]
    assert find_alike(["good", "goods"]) == []


def test_a_second_fine_tuning_is_refused_by_the_keys_that_a_person_has_written(tmp_path):
    def asked(**settings):
        tree = {"name": "tuned", "base": "runs/base", "task": "classes", "settings": settings}
        data = {"train": "train.jsonl", "label_field": "kind"}
        return validate_tree(FinetuneConfig, {**tree, "data": data}, name="short.yaml")

    def run(more=""):
        head = f"run: {{name: tuned, folder: {tmp_path}}}\n"
        return parse_config(head + (more or "train: {steps: 20}"))

    assert find_changed_wishes(asked(), run()) == []
    (tmp_path / "config.yaml").write_text(dump_config(run()))
    log_commit(tmp_path, 20)
    assert find_changed_wishes(asked(), run()) == []
    frozen = "train: {steps: 10, freeze: [a, b]}\nmodel: {lora: {rank: 4, alpha: 4}}"
    fewer, trainable = find_changed_wishes(asked(), run(frozen))
    assert fewer.startswith("epochs: they come to 10 steps (train.steps), but the newest")
    assert fewer.endswith("Raise epochs, or give the new run another name, such as --set name="
                          "NAME-2.")  # fmt: skip
    assert trainable.startswith(f"trainable: the run in {tmp_path} began with another one")
    assert "and 2 more). Set trainable back as it was" in trainable
    steps, *_ = find_changed_wishes(asked(**{"train.steps": 10}), run("train: {steps: 10}"))
    assert steps.startswith("settings.train.steps: they come to 10 steps")
    packing = run("train: {steps: 20}\nstream: {packing: best_fit}")
    (odd,) = find_changed_wishes(asked(**{"stream.packing": "best_fit"}), packing)
    assert odd.startswith("settings.stream.packing: the run in ")
