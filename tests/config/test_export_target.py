"""What a run is exported as, by its configuration alone: of every file in configs/, and of the
tables in docs/models.md.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import lmscale
from lmscale.config import load_config, parse_config
from lmscale.config.hf.choose import ARCHITECTURES
from lmscale.config.hf.target import describe_target, plan_target
from lmscale.config.kinds import Ability
from lmscale.config.model import FAMILIES
from lmscale.config.objective import SINGLE
from lmscale.errors import ConfigError

ROOT = Path(lmscale.__file__).parents[1]
LLAMA, BERT = "llama (LlamaForCausalLM)", "bert (BertForMaskedLM)"
GPT2, QWEN3 = "gpt2 (GPT2LMHeadModel)", "qwen3 (Qwen3ForCausalLM)"
T5 = "t5 (T5ForConditionalGeneration)"
RECURRENT = "nothing: model.family = recurrent: transformers has no such models"
CONFIGS = {
    "bart_base": "bart (BartForConditionalGeneration)",
    "bert_base": BERT,
    "demo": QWEN3,
    "first_gpu": QWEN3,
    "gemma2_2b": "gemma2 (Gemma2ForCausalLM)",
    "gpt2_124m": GPT2,
    "gpt3_1.3b": GPT2,
    "gru_lm": RECURRENT,
    "ladder_cpu": f"{QWEN3}; muP's factors are in the weights",
    "llama3_8b": LLAMA,
    "llama_1b": LLAMA,
    "llama_70b": LLAMA,
    "llama_7b": LLAMA,
    "lstm_lm": RECURRENT,
    "modernbert_base": "modernbert (ModernBertForMaskedLM)",
    "qwen3_0.6b": QWEN3,
    "roberta_base": BERT,  # the same function
    "structbert_base": BERT,  # without what says which of three orders two texts have
    "t5_base": T5,
    "t5_gated": T5,
    "transformer_xl": "starcoder2 (Starcoder2ForCausalLM)",  # windows of a memory, and rope
    "ul2_base": T5,
}
ENCODER = "model: {family: encoder, token_types: 2, pooler: true, text_classes: 2}\n"
WHOLE = "stream: {packing: best_fit}\n"
PARTS = "stream: {mask_documents: false}\n"


def parse(text: str):
    return parse_config(f"run: {{name: a}}\n{text}")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_configuration_is_exported_as_what_it_is_named_after(path):
    described = describe_target(load_config(path))
    assert described == CONFIGS[path.stem] or described.startswith(f"{RECURRENT},")


def table_rows(heading: str) -> list[list[str]]:
    """The cells of the rows of a table of docs/models.md, with neither bars nor marks of code."""
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    table = page[page.index(heading) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip().replace("`", "") for cell in row.strip("|").split("|")] for row in table]


def test_the_page_s_table_says_what_each_section_is_exported_as():
    rows, said = table_rows("| `model` | is exported as |"), set()
    for switches, described in rows:
        tree = yaml.safe_load(f"{{{switches}}}")
        family = FAMILIES.section_for(tree)
        needs = {Ability.BIDIRECTIONAL: "masked", Ability.CROSS: "spans"}
        objective = next((needs[a] for a in family.offers if a in needs), "causal")
        text = yaml.safe_dump({"model": tree, "objective": {"name": objective}}) + PARTS
        assert describe_target(parse(text)) == described, switches
        said.add(described.partition(" ")[0])
    exported = {name for name, each in ARCHITECTURES.items() if each.exports}
    assert said == exported - {"qwen2"}  # beside which AutoTokenizer makes another tokenizer


def test_the_page_s_table_says_what_each_objective_ends_in():
    rows = table_rows("| `objective.name` | class |")
    named = {name for cell, _ in rows for name in cell.split(", ")}
    offers = FAMILIES.own["encoder"].offers
    assert named == {name for name, kind in SINGLE.own.items() if kind.needs <= offers}


def test_labels_are_those_of_the_data():
    text = ENCODER + WHOLE + "objective: {name: classes, names: [bad, good]}\n"
    target = plan_target(parse(text))
    assert target.class_name == "BertForSequenceClassification"
    assert target.settings["id2label"] == {"0": "bad", "1": "good"}
    assert target.settings["problem_type"] == "single_label_classification"
    numbers = ENCODER.replace("text_classes: 2", "text_classes: 1") + WHOLE
    target = plan_target(parse(numbers + "objective: {name: numbers}\n"))
    assert target.settings["problem_type"] == "regression"
    assert list(target.settings["id2label"]) == ["0"]
    tags = "model: {family: encoder, token_types: 1, token_classes: 2}\n" + WHOLE
    target = plan_target(parse(tags + "objective: {name: tags, names: [O, B-LOC]}\n"))
    assert target.class_name == "BertForTokenClassification"
    assert target.settings["label2id"] == {"O": 0, "B-LOC": 1}


def test_two_orders_are_bert_s_next_sentence_and_three_have_no_place():
    for name in ("masked_next", "masked_order"):
        target = plan_target(parse(ENCODER + PARTS + f"objective: {{name: {name}}}\n"))
        assert target.class_name == "BertForPreTraining"
    three = ENCODER.replace("text_classes: 2", "text_classes: 3") + PARTS
    target = plan_target(parse(three + "objective: {name: masked_next, previous: true}\n"))
    assert target.class_name == "BertForMaskedLM"


def test_a_classifier_that_the_architecture_has_otherwise_is_told():
    modern = "positions: rope, norm_first: true, activation: geglu_exact, bias: false"
    text = f"model: {{family: encoder, {modern}, pooler: true, text_classes: 2}}\n" + WHOLE
    with pytest.raises(
        ConfigError, match="modernbert's classifier in transformers has a layer more"
    ):
        plan_target(parse(text + "objective: {name: classes, names: [bad, good]}\n"))


def test_rows_that_only_round_the_vocabulary_up_are_not_exported():
    config = load_config(ROOT / "configs" / "t5_base.yaml")
    assert plan_target(config).settings["vocab_size"] == 32_102
    given = load_config(ROOT / "configs" / "t5_base.yaml", ["model.vocab_size=32128"])
    assert plan_target(given).settings["vocab_size"] == 32_128


def test_what_is_folded_is_told_in_one_line():
    folded = "model: {mup: {base_width: 256}, rope_scaling: {kind: ntk, factor: 2}}\n"
    told = r"llama \(LlamaForCausalLM\); muP's .*; rope_theta is \d+.*, as ntk raises it"
    assert re.fullmatch(told, describe_target(parse(folded)))
    impossible = describe_target(parse("model: {qk_norm: true, bias: true}\n"))
    assert re.match(r"nothing: .*nearest one is llama", impossible)


@pytest.mark.parametrize("place", ["", "/hf", "/exportsb"])
def test_a_run_does_not_export_into_its_own_folder_but_below_exports(place):
    text = "run: {name: a, folder: /r/a}\nexport: {folder: %s}\n"
    with pytest.raises(ConfigError, match="is in the run's folder: leave it out for /r/a/exports"):
        parse_config(text % f"/r/a{place}")
    assert parse_config(text % "/r/a/exports/hf").export.folder == "/r/a/exports/hf"
    assert parse_config(text % "s3://r/a").export.folder == "s3://r/a"
