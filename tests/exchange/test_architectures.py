"""No section becomes a model that it is not: whatever is chosen reads back as the section, and has
a place of the right shape for every parameter, and no other.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from theirs import difference, draw_weights, import_transformers

import lmscale
from lmscale.config import load_config
from lmscale.config.hf.architecture import canonical
from lmscale.config.hf.choose import ARCHITECTURES, choose_architecture, read_section
from lmscale.config.hf.folding import Folding, plan_folding
from lmscale.config.lora import LoraConfig
from lmscale.config.model import FAMILIES, DecoderConfig, ModelConfig, RecurrentConfig, Sizes
from lmscale.errors import ConfigError, DataError
from lmscale.exchange.folding import read_folded
from lmscale.exchange.rules import find_left_out, plan_rules
from lmscale.model.family import CrossModel, build_model

transformers = import_transformers()
CONFIGS = Path(lmscale.__file__).parents[1] / "configs"
SIZES = Sizes(vocab_size=64, max_positions=32, sequence_length=32)
SPECIAL = [f"{name}_token_id" for name in ("bos", "eos", "pad", "cls", "sep")]
ACTIVATIONS = ["relu", "gelu", "gelu_exact", "silu", "geglu", "geglu_exact", "swiglu", "reglu"]
SHARED = {
    "activation": ACTIVATIONS,
    "norm": ["layernorm", "rmsnorm"],
    "norm_eps": [1e-5, 1e-6, 1e-12],
    "bias": [False, True],
    "tied_embeddings": [False, True],
    "ffn_width": [24, 40],
    "layers": [1, 3],
}
SWITCHES = {  # of each family: what makes one of theirs, and what may be changed of it
    "decoder": (
        [
            {"positions": "learned", "norm": "layernorm", "activation": "gelu", "bias": True},
            {"kv_heads": 2},
            {"qkv_bias": True},
            {"qk_norm": True},
            {"norm": "layernorm", "activation": "gelu", "bias": True},
            {"activation": "geglu", "scaled_embeddings": True},
            {"activation": "geglu", "scaled_embeddings": True, "output_norms": True},
        ],
        SHARED
        | {
            "kv_heads": [1, 2, 4],
            "head_width": [4, 8],
            "positions": ["rope", "learned"],
            "rope_theta": [500.0],
            "rope_scaling": [
                {"kind": "linear", "factor": 2.0},
                {"kind": "ntk", "factor": 2.0},
                {"kind": "yarn", "factor": 4.0, "original_positions": 8, "beta_fast": 16.0},
                {"kind": "llama3", "factor": 4.0, "original_positions": 8, "low_turns": 2.0},
            ],
            "qkv_bias": [True],
            "qk_norm": [True],
            "output_norms": [True],
            "scaled_embeddings": [True],
            "attention_width": [4, 12],
            "sliding_windows": [(5,), (5, 0), (0, 5), (4, 5), (1,)],
            "attention_softcap": [5.0],
            "logit_softcap": [3.0],
            "mup": [{"base_width": 8}, {"base_width": 16, "base_head_width": 2}],
        },
    ),
    "encoder": (
        [
            {"token_types": 2},
            {"token_types": 1, "norm_eps": 1e-5},
            {"positions": "rope", "norm_first": True, "activation": "geglu_exact", "bias": False},
        ],
        SHARED
        | {
            "positions": ["rope", "learned"],
            "token_types": [0, 1, 3],
            "norm_first": [False, True],
            "local_rope_theta": [500.0],
            "sliding_windows": [(5,), (0, 5), (5, 4), (1,)],
        },
    ),
    "encoder_decoder": (
        [
            {},
            {"activation": "geglu", "tied_embeddings": False},
            {"positions": "learned", "norm": "layernorm", "norm_eps": 1e-5, "norm_first": False}
            | {"activation": "gelu_exact", "bias": True, "scaled_logits": False},
        ],
        SHARED
        | {
            "positions": ["relative", "learned"],
            "norm_first": [False, True],
            "scaled_logits": [False, True],
            "head_width": [4, 8],
            "decoder_layers": [2],
            "relative_buckets": [8],
            "relative_distance": [48],
        },
    ),
}


@st.composite
def sections(draw: st.DrawFn) -> ModelConfig | None:
    family = draw(st.sampled_from(list(SWITCHES)))
    bases, changes = SWITCHES[family]
    tree = {"family": family, "layers": 2, "width": 16, "heads": 4} | draw(st.sampled_from(bases))
    for key in draw(st.lists(st.sampled_from(list(changes)), max_size=2)):
        tree[key] = draw(st.sampled_from(changes[key]))
    try:
        return FAMILIES.own[family](**tree)
    except ValidationError:
        return None


@settings(max_examples=60, deadline=None)
@given(sections())
def test_what_is_chosen_is_the_section_and_has_a_place_for_every_parameter_alone(section):
    if section is None:
        return
    try:
        architecture, folding = plan_folding(section, SIZES)
    except ConfigError as error:
        assert "change these to have it" in str(error)
        return
    if folding.told:
        compare_folded(section, folding)
    section = folding.section
    settings = architecture.render(section, SIZES)
    config = transformers.AutoConfig.for_model(
        architecture.model_type, **settings | dict.fromkeys(SPECIAL, 0)
    )
    read_type, read = read_section(config.to_dict(), "it")
    assert read_type is architecture and canonical(read) == canonical(section)
    with torch.device("meta"):
        ours = build_model(section, SIZES)
        name = next(iter(architecture.classes.values()))
        theirs = getattr(transformers, name)(config)
    assert not find_left_out(architecture, ours)
    stored = {name: shape for rule in plan_rules(architecture, ours)
              for name, shape in rule.their_shapes.items()}  # fmt: skip
    names: dict[int, list[str]] = {}
    for name, parameter in theirs.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
        assert stored.get(name, parameter.shape) == parameter.shape
    assert stored.keys() <= {name for group in names.values() for name in group}
    assert all(stored.keys() & group for group in names.values()), names


BASES = [(family, base) for family, (bases, _) in SWITCHES.items() for base in bases]


@pytest.mark.parametrize(("family", "base"), BASES)
@torch.no_grad()
def test_transformers_model_of_what_is_rendered_answers(family, base):
    """Gemma 2 with no window, too."""
    section = FAMILIES.own[family](family=family, layers=2, width=16, heads=4, **base)
    architecture, folding = plan_folding(section, SIZES)
    settings = architecture.render(folding.section, SIZES)
    config = transformers.AutoConfig.for_model(
        architecture.model_type, **settings | dict.fromkeys(SPECIAL, 0)
    )
    theirs = getattr(transformers, next(iter(architecture.classes.values())))(config).eval()
    ids_BT = torch.randint(1, 64, (1, 9))
    more = {"decoder_input_ids": ids_BT} if family == "encoder_decoder" else {}
    assert theirs(input_ids=ids_BT, **more).logits.isfinite().all()


@torch.no_grad()
def compare_folded(section: ModelConfig, folding: Folding) -> None:
    """What is folded computes what the section does."""
    model, folded = (build_model(each, SIZES).eval() for each in (section, folding.section))
    draw_weights(model)
    held, names = dict(model.named_parameters()), dict(folded.named_parameters())
    shapes = {name: tuple(value.shape) for name, value in names.items()}
    read = read_folded(model.get_parameter, folding, held=held, shapes=shapes)
    for name, value in names.items():
        value.copy_(read(name))
    ids_BT = torch.randint(0, 64, (2, 9))
    begins_BT, logits = torch.zeros(ids_BT.shape, dtype=torch.bool), []
    for each in (model, folded):
        layout = each.lay_out(begins_BT, mask_documents=False)
        if isinstance(each, CrossModel):
            layout = each.lay_out_target(begins_BT, ids_BT, layout)
        logits.append(each.head(each(ids_BT, layout)))
    assert difference(*logits) < 1e-5


def test_what_no_architecture_is_is_told_with_what_to_change():
    section = DecoderConfig(qk_norm=True, bias=True)
    with pytest.raises(ConfigError, match=r"nearest one is llama; .* qk_norm = true \(there false"):
        choose_architecture(section, SIZES)
    with pytest.raises(ConfigError, match="train another family: decoder, encoder, enc"):
        choose_architecture(RecurrentConfig(), SIZES)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_reads_what_it_renders_and_transformers_own_defaults(name):
    architecture = ARCHITECTURES[name]
    section = FAMILIES.own[architecture.family](family=architecture.family)
    architecture.read(architecture.render(section, SIZES))
    tree = transformers.AutoConfig.for_model(name).to_dict()
    assert read_section(tree, "config.json")[0] is architecture


def test_settings_that_no_section_can_say_are_told_by_name():
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    half = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
    local = {"full_attention": half | {"partial_rotary_factor": None}, "sliding_attention": rope}
    labels = {"id2label": {0: "a", 1: "b", 2: "c"}}
    texts = labels | {"architectures": ["BertForSequenceClassification"]}
    for name, changed, told in (
        ("bert", {"is_decoder": True}, "is_decoder = true, where only false can be read"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type = 'rel"),
        ("bert", {"hidden_act": "mish"}, "the activation 'mish'"),
        ("bert", {"model_type": "berd"}, "Did you mean bert?"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention = true cannot be read"),
        ("llama", {"rope_parameters": half}, "partial_rotary_factor = 0.5"),
        ("llama", {"rope_parameters": rope}, "rope_type = 'dynamic'; known are default"),
        ("llama", {"rope_parameters": yarn | {"truncate": False}}, "truncate = False cannot be"),
        ("llama", {"rope_parameters": yarn | {"attention_factor": 0.0}}, "attention_factor = 0.0"),
        ("llama", {"rope_parameters": yarn | {"attention_factor": 2.0}}, "attention_factor = 2.0"),
        ("llama", {"rope_parameters": yarn | {"mscale": 0.7}}, "rope_parameters.mscale = 0.7"),
        ("llama", {"rope_parameters": yarn | {"mscale_all_dim": 0.5}}, "mscale_all_dim = 0.5"),
        ("llama", {"rope_parameters": half | {"sections": [1]}}, "sections = [1] cannot be read"),
        ("llama", {"rope_parameters": yarn | {"factor": None}}, "factor = None, where a number"),
        ("llama", {"rope_parameters": yarn | {"rope_theta": "x"}}, "rope_theta = 'x', where a num"),
        ("llama", {"mlp_bias": True}, "mlp_bias = true, where only false can be read"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights = false, where only true"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "inverse_layer_idx = true, where only"),
        ("bart", {"decoder_attention_heads": 8}, "decoder_attention_heads = 8, where only 16"),
        ("bart", {"decoder_ffn_dim": 8}, "decoder_ffn_dim = 8, where only 4096 can be read"),
        ("modernbert", {"rope_parameters": local}, "rope_parameters.sliding_attention = {'rope_t"),
        ("bert", texts | {"problem_type": "multi_label_classification"}, "of 3 labels; known are"),
        ("bert", texts | {"problem_type": "regression"}, "problem_type = 'regression' of 3 labels"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention = true"),
        ("qwen3", {"layer_types": ["chunked_attention"]}, "layer_types has 'chunked_attention'"),
        ("roberta", {"pad_token_id": 5}, "pad_token_id = 5, where only 1 can be read"),
        ("t5", {"feed_forward_proj": "odd-gelu"}, "feed_forward_proj = 'odd-gelu'"),
        ("bart", {"scale_embedding": True}, "scale_embedding = true, where only false"),
    ):
        tree = transformers.AutoConfig.for_model(name).to_dict()
        with pytest.raises(DataError, match=re.escape(told)):
            read_section(tree | changed, "config.json")


def test_what_a_class_ends_in_is_read_from_its_whole_name():
    tree = transformers.AutoConfig.for_model("bert").to_dict()
    for name, has_pooler in (("BertModel", True), ("BertLMHeadModel", False)):
        assert read_section(tree | {"architectures": [name]}, "it")[1].pooler is has_pooler


def test_a_section_with_adapters_is_what_it_is_with_them_merged():
    plain = DecoderConfig(kv_heads=2)
    adapted = plain.model_copy(update={"lora": LoraConfig(rank=4)})
    assert choose_architecture(adapted, SIZES) is choose_architecture(plain, SIZES)
    assert adapted.without_adapters == plain != adapted


PUBLISHED = {  # what their authors' config.json has otherwise than the defaults there
    "bert_base": ("bert", {}),
    "gpt2_124m": ("gpt2", {}),
    "modernbert_base": ("modernbert", {"global_rope_theta": 10_000.0}),  # of the first phase
    "llama_7b": ("llama", {"rms_norm_eps": 1e-5}),
    "llama3_8b": (
        "llama",
        {"intermediate_size": 14_336, "num_key_value_heads": 8, "rms_norm_eps": 1e-5}
        | {"rope_theta": 500_000.0},
    ),
    "roberta_base": (
        "roberta",
        {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5},
    ),
    "t5_base": ("t5", {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}),
    "t5_gated": (
        "t5",
        {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12}
        | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "bart_base": (
        "bart",
        {"d_model": 768, "encoder_layers": 6, "decoder_layers": 6}
        | {"encoder_attention_heads": 12, "decoder_attention_heads": 12}
        | {"encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072},
    ),
    "qwen3_0.6b": (
        "qwen3",
        {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28}
        | {"num_attention_heads": 16, "num_key_value_heads": 8, "rope_theta": 1_000_000.0}
        | {"tie_word_embeddings": True},
    ),
    "gemma2_2b": (
        "gemma2",
        {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26}
        | {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_json_is_the_section_of_the_configuration_of_its_name(name):
    model_type, changed = PUBLISHED[name]
    tree = transformers.AutoConfig.for_model(model_type, **changed).to_dict()
    section = load_config(CONFIGS / f"{name}.yaml").model
    assert canonical(read_section(tree, name)[1]) == canonical(section)
