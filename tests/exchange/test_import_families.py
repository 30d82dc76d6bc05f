"""Every family comes in, with the tokenizer of its folder, and goes out as it came."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from their_folders import save_theirs, save_tokenizer

from lmscale.exchange.export import export_run
from lmscale.exchange.exported import ExportRequest
from lmscale.exchange.import_hf import ImportRequest, import_hf

VOCAB = 512
BERT_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
T5_PIECES = ("<pad>", "</s>", "<unk>", *(f"<extra_id_{99 - n}>" for n in range(100)))
BODY = {"vocab_size": VOCAB, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = BODY | {"intermediate_size": 64, "max_position_embeddings": 64}
T5 = {
    "vocab_size": VOCAB, "d_model": 48, "d_kv": 12, "d_ff": 64, "num_layers": 2, "num_heads": 4,
    "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip
BART = {
    "vocab_size": VOCAB, "d_model": 48, "encoder_layers": 2, "decoder_layers": 1,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2,
    "eos_token_id": 3, "decoder_start_token_id": 3, "forced_eos_token_id": None,
}  # fmt: skip
GPT2 = {"vocab_size": VOCAB, "n_positions": 64, "n_embd": 48, "n_layer": 2, "n_head": 4}
GPT2 |= {"bos_token_id": 2, "eos_token_id": 3}
CASES = {
    "gpt2": ("GPT2", "LMHeadModel", GPT2, "causal"),
    "bert": ("Bert", "ForMaskedLM", BERT, "masked"),
    "bert with sentences": ("Bert", "ForPreTraining", BERT, "masked_next"),
    "bert of texts": ("Bert", "ForSequenceClassification", BERT | {"num_labels": 3}, "classes"),
    "bert of words": ("Bert", "ForTokenClassification", BERT | {"num_labels": 3}, "tags"),
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
