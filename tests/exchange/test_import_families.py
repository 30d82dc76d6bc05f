"""Every family comes in, with the tokenizer of its folder, and goes out as it came."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from their_folders import (
    BART,
    BERT,
    BERT_PIECES,
    GPT2,
    T5,
    T5_PIECES,
    VOCAB,
    save_theirs,
    save_tokenizer,
)

from lmscale.errors import ConfigError
from lmscale.exchange.export import export_run
from lmscale.exchange.exported import ExportRequest
from lmscale.exchange.import_hf import ImportRequest, import_hf
from lmscale.exchange.import_run import plan_run

CASES = {
    "gpt2": ("GPT2", "LMHeadModel", GPT2, "causal"),
    "bert": ("Bert", "ForMaskedLM", BERT, "masked"),
    "bert with sentences": ("Bert", "ForPreTraining", BERT, "masked_next"),
    "bert of texts": ("Bert", "ForSequenceClassification", BERT | {"num_labels": 3}, "classes"),
    "bert of words": ("Bert", "ForTokenClassification", BERT | {"num_labels": 3}, "tags"),
    "bert of answers": ("Bert", "ForQuestionAnswering", BERT, "answers"),
    "bert alone": ("Bert", "Model", BERT, "numbers"),
    "t5": ("T5", "ForConditionalGeneration", T5, "spans"),
    "bart": ("Bart", "ForConditionalGeneration", BART, "infill"),
}
IDS = {
    "masked": {"mask": 4},
    "masked_next": {"mask": 4, "cls": 2, "sep": 3},
    "infill": {"start": 3, "end": 3, "mask": 4},
    "spans": {"start": 0, "end": 1, **{f"sentinel_{n}": 102 - n for n in range(100)}},
}


@pytest.mark.parametrize("case", CASES)
def test_a_family_comes_in_and_goes_out_as_it_came(case, tmp_path):
    name, ends_in, settings, objective = CASES[case]
    theirs = save_theirs(tmp_path / "theirs", name, ends_in, **settings)
    if name == "T5":
        save_tokenizer(theirs, T5_PIECES, "<unk>", eos_token="</s>", pad_token="<pad>")
    else:
        roles = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
        save_tokenizer(theirs, BERT_PIECES, "[UNK]", mask_token="[MASK]", **roles)
    run = tmp_path / "run"
    done = import_hf(ImportRequest(folder=theirs, out=run, name="run"))
    assert done.parity is not None and done.parity.error < 1e-5
    config = done.plan.config
    assert config.objective.name == objective
    assert config.objective_ids == IDS.get(objective, {})
    assert config.vocab_size == config.num_ids == VOCAB  # no id was added

    export_run(ExportRequest(folder=run, out=tmp_path / "out"))
    before, after = (load_file(f / "model.safetensors") for f in (theirs, tmp_path / "out"))
    left_out = set() if case != "bert alone" else {"classifier.weight", "classifier.bias"}
    before.pop("final_logits_bias", None)  # BART's, which is 0 and no parameter
    for name, value in before.items():
        if name.endswith("embed_positions.weight"):
            value[:2] = 0  # which nobody reads
    if case == "bert alone":  # which goes out as what it became
        after = {n.removeprefix("bert."): each for n, each in after.items()}
    assert before.keys() == after.keys() - left_out
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_model_that_was_tuned_to_answer_is_of_pairs_if_that_is_said(tmp_path):
    theirs = save_theirs(tmp_path / "theirs", "T5", "ForConditionalGeneration", **T5)
    save_tokenizer(theirs, T5_PIECES, "<unk>", eos_token="</s>", pad_token="<pad>")
    config = plan_run(theirs, tmp_path / "run", theirs, name="run", objective="pairs").config
    assert config.objective.name == "pairs" and config.objective_ids == {"start": 0, "end": 1}
    assert config.num_ids == VOCAB and config.stream.packing == "best_fit"
    with pytest.raises(ConfigError, match=r"no ids for it \(mask\).*has those of spans, pairs"):
        plan_run(theirs, tmp_path / "run", theirs, name="run", objective="infill")
    gpt2 = save_theirs(tmp_path / "gpt2", "GPT2", "LMHeadModel", **GPT2)
    with pytest.raises(ConfigError, match="is of the family decoder. Leave it out"):
        plan_run(gpt2, tmp_path / "run", theirs, name="run", objective="pairs")
