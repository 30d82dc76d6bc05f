"""What the planner says that autograd keeps is what torch allocates."""

from __future__ import annotations

from typing import Any

import pytest
from traced import trace

from lmscale.config import RunConfig, load_config
from lmscale.plan.operations import write_pass
from lmscale.plan.timeline import play

T5 = {"family": "encoder_decoder"}
BART = {
    "family": "encoder_decoder", "positions": "learned", "norm": "layernorm", "norm_first": False,
    "activation": "gelu_exact", "bias": True, "scaled_logits": False,
}  # fmt: skip
MODERN_BERT = {
    "family": "encoder", "norm_first": True, "positions": "rope", "activation": "geglu",
    "bias": False, "sliding_windows": [0, 17, 17],
}  # fmt: skip
ORDER = {"family": "encoder", "pooler": True, "token_types": 2, "text_classes": 2}
ONE_TEXT = {"mask_documents": False}
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {},
    "llama fp32": {"engine": {"precision": "fp32"}},
    "gpt2": {
        "model": {"positions": "learned", "norm": "layernorm", "activation": "gelu", "bias": True}
    },
    "grouped queries": {"model": {"kv_heads": 2, "qk_norm": True}},
    "every block recomputed": {"model": {"activation_checkpoint_every": 1}},
    "every second block recomputed": {"model": {"activation_checkpoint_every": 2}},
    "causal kernel": {"stream": ONE_TEXT},
    "dropout": {"model": {"dropout": 0.1}},
    "soft caps": {"model": {"attention_softcap": 30.0, "logit_softcap": 20.0}},
    "output norms": {"model": {"output_norms": True, "scaled_embeddings": True}},
    "sliding windows": {"model": {"sliding_windows": [16, 0]}},
    "adapters": {"model": {"lora": {"rank": 4}}},
    "frozen": {"train": {"freeze": ["embedding.*", "blocks.0.*"]}},
    "transformer-xl": {"model": {"sliding_windows": [33], "segments": 4}},
    "prefix": {"objective": {"name": "prefix"}},
    "chunked logits": {"objective": {"name": "causal", "chunk_tokens": 100}},
    "bert": {"model": {"family": "encoder"}, "objective": {"name": "masked"}},
    "modernbert": {"model": MODERN_BERT, "objective": {"name": "masked"}},
    "masked_order": {"model": ORDER, "objective": {"name": "masked_order"}, "stream": ONE_TEXT},
    "t5": {"model": T5, "objective": {"name": "spans"}, "stream": ONE_TEXT},
    "bart": {"model": BART, "objective": {"name": "infill"}, "stream": ONE_TEXT},
    "lstm": {"model": {"family": "recurrent"}},
    "gru": {"model": {"family": "recurrent", "cell": "gru"}},
    "rnn": {"model": {"family": "recurrent", "cell": "rnn", "dropout": 0.1}},
}
# What is left out: scalars, labels and positions, some kilobytes beside a megabyte. In the forward
# pass also the masks' own making, which comes before all else is there.
TOLERANCE, FORWARD_TOLERANCE = 0.012, 0.025


def build(changes: dict[str, dict[str, Any]], *, width: int = 128, layers: int = 4) -> RunConfig:
    tree: dict[str, dict[str, Any]] = {
        "run": {"name": "shape", "allow_faults": True},
        "stream": {"sequence_length": 128},
        "tokenizer": {"vocab_size": 1024},
        "model": {"layers": layers, "width": width, "heads": 4},
    }
    if changes.get("model", {}).get("family") == "recurrent":
        del tree["model"]["heads"]
    for section, keys in changes.items():
        tree[section] = {**tree.get(section, {}), **keys}
    return RunConfig.model_validate(tree)


def check(config: RunConfig, micro_windows: int, *, is_fake: bool) -> None:
    traced = trace(config, micro_windows=micro_windows, is_fake=is_fake)
    peaks = play(write_pass(config, micro_windows=micro_windows, on_gpu=False))
    assert peaks.kept_bytes == pytest.approx(traced.kept, rel=TOLERANCE)
    assert peaks.forward_bytes == pytest.approx(traced.forward, rel=FORWARD_TOLERANCE)
    assert peaks.backward_bytes == pytest.approx(traced.backward, rel=TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_a_pass_holds_what_torch_holds(case):
    check(build(CASES[case]), 4, is_fake=False)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama_70b", ("model.activation_checkpoint_every=4",)),
        ("bert_base", ()),
        ("t5_base", ()),
    ],
)
def test_so_does_one_of_a_large_model_of_which_torch_traces_fake_tensors(name, changes):
    check(load_config(f"configs/{name}.yaml", changes), 2, is_fake=True)
