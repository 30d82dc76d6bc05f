"""Encoders of transformers: BERT, RoBERTa and XLM-RoBERTa, ModernBERT."""

from __future__ import annotations

from typing import Any

from lmscale.config.encoder import EncoderConfig
from lmscale.config.hf.architecture import (
    Architecture,
    Form,
    Tree,
    UnreadableError,
    demand,
    our_activation,
    read_kinds,
    read_number,
    read_text_classes,
    their_function,
)
from lmscale.config.model import Sizes

_BLOCK = "encoder.layer.{n}"
_SELF = f"{_BLOCK}.attention.self"
_BERT_BODY = {
    "embedding": "embeddings.word_embeddings",
    "position_embedding": "embeddings.position_embeddings",
    "type_embedding": "embeddings.token_type_embeddings",
    "embedding_norm": "embeddings.LayerNorm",
    "blocks.{n}.attention.qkv": f"{_SELF}.query {_SELF}.key {_SELF}.value",
    "blocks.{n}.attention.out": f"{_BLOCK}.attention.output.dense",
    "blocks.{n}.attention_norm": f"{_BLOCK}.attention.output.LayerNorm",
    "blocks.{n}.feed_forward.up": f"{_BLOCK}.intermediate.dense",
    "blocks.{n}.feed_forward.down": f"{_BLOCK}.output.dense",
    "blocks.{n}.feed_forward_norm": f"{_BLOCK}.output.LayerNorm",
}
_BERT_TOKENS = {
    "head": "cls.predictions",  # its bias; the matrix is the embedding
    "head.dense": "cls.predictions.transform.dense",
    "head.norm": "cls.predictions.transform.LayerNorm",
}
_ROBERTA_TOKENS = {
    "head": "lm_head",
    "head.dense": "lm_head.dense",
    "head.norm": "lm_head.layer_norm",
}
_LAYER = "model.layers.{n}"
_MODERNBERT = {
    "embedding": "model.embeddings.tok_embeddings",
    "embedding_norm": "model.embeddings.norm",
    "blocks.{n}.attention_norm": f"{_LAYER}.attn_norm",
    "blocks.{n}.attention.qkv": f"{_LAYER}.attn.Wqkv",
    "blocks.{n}.attention.out": f"{_LAYER}.attn.Wo",
    "blocks.{n}.feed_forward_norm": f"{_LAYER}.mlp_norm",
    "blocks.{n}.feed_forward.gate_up": f"{_LAYER}.mlp.Wi",
    "blocks.{n}.feed_forward.down": f"{_LAYER}.mlp.Wo",
    "norm": "model.final_norm",
}
_MODERNBERT_TOKENS = {"head": "decoder", "head.dense": "head.dense", "head.norm": "head.norm"}
_BARE = ("BertModel", "RobertaModel", "XLMRobertaModel")
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"


def _below(prefix: str, names: dict[str, str]) -> dict[str, str]:
    return {
        ours: " ".join(f"{prefix}.{each}" for each in theirs.split())
        for ours, theirs in names.items()
    }


def _render_bert(section: EncoderConfig, sizes: Sizes) -> dict[str, Any]:
    return {
        "vocab_size": sizes.vocab_size,
        "max_position_embeddings": sizes.max_positions,
        "hidden_size": section.width,
        "num_hidden_layers": section.layers,
        "num_attention_heads": section.heads,
        "intermediate_size": section.resolved_ffn_width,
        "type_vocab_size": max(section.token_types, 1),  # every token has one there
        "hidden_act": their_function(section.activation),
        "layer_norm_eps": section.norm_eps,
        "tie_word_embeddings": True,
        "is_decoder": False,
        "add_cross_attention": False,
        **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), section.dropout),
    }


def _read_bert(tree: Tree) -> dict[str, Any]:
    # Without tied embeddings their head has two biases, of which one is never used.
    demand(tree, tie_word_embeddings=True, is_decoder=False, add_cross_attention=False)
    if (kind := tree.get("position_embedding_type") or "absolute") != "absolute":
        raise UnreadableError([f"position_embedding_type = {kind!r}; only 'absolute' can be read"])
    return {
        "layers": tree["num_hidden_layers"],
        "width": tree["hidden_size"],
        "heads": tree["num_attention_heads"],
        "ffn_width": tree["intermediate_size"],
        "positions": "learned",
        "token_types": tree["type_vocab_size"],
        "norm": "layernorm",
        "norm_eps": tree["layer_norm_eps"],
        "norm_first": False,
        "activation": our_activation(tree["hidden_act"], gated=False),
        "bias": True,
        "tied_embeddings": True,
        **_read_outputs(tree),
    }


def _read_outputs(tree: Tree) -> dict[str, Any]:
    """What the class ends in that the file names, as all of them are called alike."""
    named, classes = (tree.get("architectures") or [""])[0], len(tree.get("id2label") or ())
    if named.endswith("ForTokenClassification"):
        return {"token_classes": classes}
    if named.endswith("ForQuestionAnswering"):
        return {"token_classes": 2}
    if texts := read_text_classes(tree):
        return {"pooler": True, "text_classes": texts}
    if named.endswith("ForPreTraining"):
        return {"pooler": True, "text_classes": 2}
    return {"pooler": named in _BARE}


def _render_roberta(section: EncoderConfig, sizes: Sizes) -> dict[str, Any]:
    more = {"max_position_embeddings": sizes.max_positions + 2, "pad_token_id": 1}
    return _render_bert(section, sizes) | more


def _read_roberta(tree: Tree) -> dict[str, Any]:
    demand(tree, pad_token_id=1)  # positions are counted from the one behind it
    return _read_bert(tree)


def _position_form(module: str, ndim: int) -> Form:
    return "padded" if module == "position_embedding" else "same"


def _render_modernbert(section: EncoderConfig, sizes: Sizes) -> dict[str, Any]:
    windows, function = section.layer_windows, their_function(section.activation)
    thetas = {
        _GLOBAL: section.rope_theta,
        _LOCAL: section.local_rope_theta or section.rope_theta,
    }
    return {
        "vocab_size": sizes.vocab_size,
        "max_position_embeddings": sizes.max_positions,
        "hidden_size": section.width,
        "num_hidden_layers": section.layers,
        "num_attention_heads": section.heads,
        "intermediate_size": section.resolved_ffn_width,
        "hidden_activation": function,
        "classifier_activation": function,
        "norm_eps": section.norm_eps,
        "layer_types": [_LOCAL if window else _GLOBAL for window in windows],
        # Both ways together; ours counts one of them, and the token itself.
        "local_attention": 2 * (max(windows) - 1) if any(windows) else 128,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()
        },
        "tie_word_embeddings": section.tied_embeddings,
        "decoder_bias": True,
        # Theirs are ids of ModernBERT's own tokenizer.
        **dict.fromkeys(("cls_token_id", "sep_token_id")),
        **dict.fromkeys(
            ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), section.bias
        ),
        **dict.fromkeys(("embedding_dropout", "attention_dropout", "mlp_dropout"), section.dropout),
    }


def _read_modernbert(tree: Tree) -> dict[str, Any]:
    bias = tree["norm_bias"]
    same = dict.fromkeys(("attention_bias", "mlp_bias", "classifier_bias"), bias)
    demand(tree, decoder_bias=True, classifier_activation=tree["hidden_activation"], **same)
    ropes = tree["rope_parameters"]
    scaled = [kind for kind in (_GLOBAL, _LOCAL) if ropes[kind]["rope_type"] != "default"]
    if scaled:
        raise UnreadableError([f"rope_parameters.{kind} = {ropes[kind]}" for kind in scaled])
    return {
        "layers": tree["num_hidden_layers"],
        "width": tree["hidden_size"],
        "heads": tree["num_attention_heads"],
        "ffn_width": tree["intermediate_size"],
        "positions": "rope",
        "rope_theta": read_number(ropes[_GLOBAL], "rope_theta"),
        "local_rope_theta": read_number(ropes[_LOCAL], "rope_theta"),
        "sliding_windows": read_kinds(tree, tree["local_attention"] // 2 + 1),
        "norm": "layernorm",
        "norm_eps": tree["norm_eps"],
        "norm_first": True,
        "activation": our_activation(tree["hidden_activation"], gated=True),
        "bias": bias,
        "tied_embeddings": tree["tie_word_embeddings"],
    }


def _roberta(model_type: str, class_name: str) -> Architecture:
    return Architecture(
        model_type=model_type,
        family="encoder",
        classes={
            "tokens": f"{class_name}ForMaskedLM",
            "texts": f"{class_name}ForSequenceClassification",
            "tags": f"{class_name}ForTokenClassification",
            "answers": f"{class_name}ForQuestionAnswering",
            "states": f"{class_name}Model",
        },
        render=_render_roberta,
        read=_read_roberta,
        names=_below("roberta", _BERT_BODY),
        head_names={
            "tokens": _ROBERTA_TOKENS,
            "texts": {"pooler": "classifier.dense", "classifier": "classifier.out_proj"},
            "tags": {"token_classifier": "classifier"},
            "answers": {"token_classifier": "qa_outputs"},
            "states": {"pooler": "roberta.pooler.dense"},
        },
        forms=_position_form,
        padding_rows=2,
        exports=False,  # BERT of one token type, whose positions ask nothing of a text's ids
        ignored=("*.position_ids", "lm_head.decoder.*"),
        prefix="roberta.",
    )


_BERT_POOLER = {"pooler": "bert.pooler.dense"}
ENCODERS = (
    Architecture(
        model_type="bert",
        family="encoder",
        classes={
            "tokens": "BertForMaskedLM",
            "order": "BertForPreTraining",
            "texts": "BertForSequenceClassification",
            "tags": "BertForTokenClassification",
            "answers": "BertForQuestionAnswering",
            "states": "BertModel",
        },
        render=_render_bert,
        read=_read_bert,
        names=_below("bert", _BERT_BODY),
        head_names={
            "tokens": _BERT_TOKENS,
            "order": _BERT_TOKENS | _BERT_POOLER | {"classifier": "cls.seq_relationship"},
            "texts": _BERT_POOLER | {"classifier": "classifier"},
            "tags": {"token_classifier": "classifier"},
            "answers": {"token_classifier": "qa_outputs"},
            "states": _BERT_POOLER,
        },
        ignored=("*.position_ids", "cls.predictions.decoder.*"),
        prefix="bert.",
    ),
    Architecture(
        model_type="modernbert",
        family="encoder",
        classes={"tokens": "ModernBertForMaskedLM"},  # its classifiers stand behind another layer
        render=_render_modernbert,
        read=_read_modernbert,
        names=_MODERNBERT,
        head_names={"tokens": _MODERNBERT_TOKENS},
        prefix="model.",
    ),
    _roberta("roberta", "Roberta"),
    _roberta("xlm-roberta", "XLMRoberta"),
)
"""In the order in which they are asked whether they can be a section."""
