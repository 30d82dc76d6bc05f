"""What goes on from an import is trained with the ids that the model has, and with no others."""

from __future__ import annotations

import json
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch
from their_folders import (
    BART,
    BERT,
    BERT_PIECES,
    T5,
    T5_PIECES,
    VOCAB,
    save_theirs,
    save_tokenizer,
    transformers,
)
from tiny_run import run_lmscale

from lmscale.config import RunConfig, dump_config, load_config
from lmscale.corpus.build import build_corpus
from lmscale.errors import DataError
from lmscale.evaluation.prompts import build_prompt
from lmscale.evaluation.run import load_run
from lmscale.exchange.export import export_run
from lmscale.exchange.exported import ExportRequest
from lmscale.exchange.import_hf import ImportRequest, import_hf
from lmscale.model.family import build_model
from lmscale.objective.objective import build_preparation, build_scoring
from lmscale.objective.scores import to_device
from lmscale.ranks.ranks import Ranks
from lmscale.runs.own_ids import find_forgotten_ids
from lmscale.shards.build import build_shards
from lmscale.stream.batches import Rows, digest_rows
from lmscale.tokenizer.codec import load_tokenizer
from lmscale.train.initial import fill_weights, open_initial_weights
from lmscale.train.run_tokenizer import load_run_tokenizer

CPU = torch.device("cpu")
ROLES = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "mask_token": "[MASK]"}


def bring(folder: Path, name: str, ends_in: str, **settings: Any) -> Path:
    """An import, beside the folder that it is of."""
    theirs = save_theirs(folder / "theirs", name, ends_in, **settings)
    if name == "T5":
        save_tokenizer(theirs, T5_PIECES, "<unk>", eos_token="</s>", pad_token="<pad>")
    else:
        save_tokenizer(theirs, BERT_PIECES, "[UNK]", **ROLES)
    import_hf(ImportRequest(folder=theirs, out=folder / "import", name="import"))
    return folder / "import"


def go_on(imported: Path, folder: Path, **sections: Any) -> RunConfig:
    """As its documentation says: the sections model and tokenizer of the import."""
    began = load_run(imported, step=None, device=CPU).config.model_dump(mode="json")
    tree = {
        "run": {"name": "new", "folder": str(folder / "new"), "init_from": str(imported)},
        "model": began["model"],
        "tokenizer": began["tokenizer"],
        "stream": {"sequence_length": 32},
    }
    return RunConfig.model_validate(tree | sections)


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return bring(tmp_path_factory.mktemp("bert"), "Bert", "ForMaskedLM", **BERT)


def full_rows(count: int, length: int) -> Rows:
    numbers = np.arange(count)
    tokens = np.random.default_rng(0).integers(110, VOCAB, (count, length)).astype(np.uint16)
    return Rows(
        numbers=numbers,
        tokens=tokens,
        lengths=np.full(count, length, dtype=np.int32),
        starts=(np.arange(count) * length).astype(np.int32),
        digests=digest_rows(numbers, tokens),
    )


def test_a_bert_that_goes_on_has_one_mask_which_transformers_calls_so(bert, tmp_path):
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": topics[name][:2000]}) + "\n" for name in sorted(topics)[:8])
    )
    config = go_on(
        bert,
        tmp_path,
        corpus={
            "folder": str(tmp_path / "corpus"),
            "sources": {"a": {"inputs": [str(tmp_path / "a.jsonl")]}},
            "heldout_fraction": 0.2,
        },
        shards={"folder": str(tmp_path / "shards"), "processes": 1},
        stream={
            "sources": {"a": {"shards": str(tmp_path / "shards/a/train")}},
            "sequence_length": 32,
            "workers": 0,
        },
        batch={"global_windows": 4, "micro_windows": 4},
        objective={"name": "masked"},
        engine={"precision": "fp32"},
        train={"steps": 2},
        evaluation={"sets": {"heldout": str(tmp_path / "shards/a/heldout")}},
    )
    assert config.objective_ids == {"mask": 4} and config.num_ids == VOCAB
    build_corpus(config.corpus, processes=1)
    build_shards(config)
    (tmp_path / "a.yaml").write_text(dump_config(config))
    ended = run_lmscale("train", tmp_path / "a.yaml")
    assert ended.code == 0, ended.output
    export_run(ExportRequest(folder=config.folder, out=tmp_path / "out"))

    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (theirs.mask_token, theirs.mask_token_id, len(theirs)) == ("[MASK]", 4, VOCAB)
    assert theirs("a [MASK]").input_ids.count(4) == 1  # it can be written
    assert [theirs.cls_token_id, theirs.sep_token_id] == [2, 3]
    settings = json.loads((tmp_path / "out/config.json").read_text())
    assert settings["vocab_size"] == VOCAB


def test_masked_samples_hold_the_tokenizers_own_mask(bert, tmp_path):
    config = go_on(bert, tmp_path, objective={"name": "masked"}, stream={"sequence_length": 64})
    rows = full_rows(8, 64)
    arrays, *_ = build_preparation(config).prepare(rows)
    changed = arrays["ids"][arrays["ids"] != rows.tokens]
    assert arrays["ids"].max() < VOCAB and (changed == 4).mean() > 0.7


def test_a_run_that_forgets_them_is_refused_with_what_to_write(bert, tmp_path):
    config = go_on(bert, tmp_path, objective={"name": "masked"})
    assert find_forgotten_ids(config) == []
    tree = config.model_dump(mode="json")
    tree["tokenizer"]["ids"], tree["model"]["vocab_size"] = {}, None
    forgetful = RunConfig.model_validate(tree)
    with pytest.raises(DataError, match="there mask is id 4 of the tokenizer, and here the obj"):
        load_run_tokenizer(forgetful)
    (told,) = find_forgotten_ids(forgetful)
    assert told.endswith(f"would train id {VOCAB} for it anew. Write tokenizer.ids: {{mask: 4}}.")


def test_another_tokenizer_than_that_of_the_weights_is_told_before_what_follows_from_it(
    bert, tiny_data, tmp_path
):
    config = go_on(bert, tmp_path, objective={"name": "masked"})
    tree = config.model_dump(mode="json")
    tree["tokenizer"]["folder"] = str(tiny_data / "tokenizer")
    tree["tokenizer"] |= {"vocab_size": 384, "ids": {}}
    tree["model"]["vocab_size"] = None
    with pytest.raises(DataError) as caught:
        load_run_tokenizer(RunConfig.model_validate(tree))
    (problem,) = caught.value.problems
    assert "its tokenizer is another one than that of tokenizer.folder" in problem
    assert problem.endswith(f"Name that run's: tokenizer.folder: {bert / 'tokenizer'}.")


@pytest.mark.parametrize("ends_in", ["ForMaskedLM", "Model"])
def test_an_import_writes_the_yaml_of_a_run_that_goes_on_from_it(bert, tmp_path, ends_in):
    run = bert if ends_in == "ForMaskedLM" else bring(tmp_path, "Bert", ends_in, **BERT)
    theirs, config = (load_config(run / name) for name in ("config.yaml", "continue.yaml"))
    assert theirs.tokenizer.ids == config.tokenizer.ids == {"mask": 4, "cls": 2, "sep": 3}
    assert config.run.init_from == str(run) and config.objective.name == "masked"
    assert config.model == theirs.model.model_copy(update={"pooler": False, "text_classes": 0})
    own = load_run_tokenizer(config).fingerprint
    with open_initial_weights(config, Ranks(), tokenizer_fingerprint=own) as initial:
        fill_weights(build_model(config.model, config.sizes), initial)


def test_a_mask_that_every_document_holds_is_refused(bert, tmp_path):
    tree = go_on(bert, tmp_path, objective={"name": "masked"}).model_dump(mode="json")
    tree["run"]["init_from"], tree["tokenizer"]["ids"] = "", {"mask": 3}
    with pytest.raises(DataError, match="mask = 3 is the eos of .*Give the id of a piece"):
        load_run_tokenizer(RunConfig.model_validate(tree))


@pytest.mark.parametrize(
    ("name", "settings", "objective", "marks"),
    [
        ("T5", T5, {"name": "spans"}, [0, 1, *range(102, 99, -1)]),
        ("Bart", BART, {"name": "infill"}, [3, 3, 4]),
    ],
)
def test_pairs_have_transformers_ids_and_its_loss(tmp_path, name, settings, objective, marks):
    imported = bring(tmp_path, name, "ForConditionalGeneration", **settings)
    stream = {"sequence_length": 32, "mask_documents": False}
    config = go_on(imported, tmp_path, objective=objective, stream=stream)
    assert [*config.objective_ids.values()][: len(marks)] == marks and not config.added_ids
    rows = full_rows(4, config.window.tokens)
    preparation = build_preparation(config)
    arrays, targets, *_ = preparation.prepare(rows)
    text = preparation.target_ids(arrays)
    assert not {*text.tolist()} & {*config.objective_ids.values()} and len(text)

    model = load_run(imported, step=None, device=CPU).model
    scores = build_scoring(model, config)(**to_device(arrays, CPU))
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "theirs").eval()
    total = 0.0
    for source, length, labels in zip(
        arrays["source"], arrays["source_lengths"], arrays["labels"], strict=True
    ):
        written = torch.tensor(labels[labels >= 0]).long()[None]
        read = torch.tensor(source[:length]).long()[None]
        with torch.no_grad():  # it puts its own decoder_start_token_id before the labels
            total += float(theirs(input_ids=read, labels=written).loss) * written.numel()
    assert float(scores.loss.total.detach()) == pytest.approx(total, rel=1e-5) and targets > 30

    tokenizer = load_tokenizer(imported / "tokenizer")
    prompt = build_prompt(config, tokenizer, "ab", "c")
    assert prompt.ids[0] == theirs.config.decoder_start_token_id
    assert theirs.config.eos_token_id in prompt.ends
    if name == "T5":
        read = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs").convert_ids_to_tokens
        sentinels = [each for each in read(arrays["source"][0]) if each.startswith("<extra")]
        assert sentinels == [f"<extra_id_{place}>" for place in range(len(sentinels))]
        assert read(list(prompt.source or ()))[-3:] == ["<extra_id_0>", "c", "</s>"]
        export_run(ExportRequest(folder=imported, out=tmp_path / "out"))
        after = json.loads((tmp_path / "out/config.json").read_text())
        assert (after["decoder_start_token_id"], after["eos_token_id"]) == (0, 1)
        generation = json.loads((tmp_path / "out/generation_config.json").read_text())
        assert generation["eos_token_id"] == 1
        assert not {*generation["suppress_tokens"]} & {1, *range(3, 103)}  # end, sentinels
        tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
        assert len(tokens) == VOCAB
        assert tokens("<extra_id_0>", add_special_tokens=False).input_ids == [102]
