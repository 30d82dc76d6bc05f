# Shape letters: H heads, T queries, S keys.
"""The weights that are shown are those that the model attends by, of every family."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from handmade_runs import draw
from hypothesis import given
from hypothesis import strategies as st
from recipes import RECIPES
from tiny_run import tiny_config

from lmscale.errors import ConfigError
from lmscale.model.family import build_model
from lmscale.tokenizer.codec import load_tokenizer
from lmscale.views.attention import find_attention, recording, run_model
from lmscale.views.likely import find_likely
from lmscale.views.sides import MASK, Speller, add_written, merge_words, plan_sides

TEXT = "The lambda is an expression, 你好"
SEEN = {"transformer_xl": 9}  # its first layer's sliding window


@pytest.fixture(scope="module")
def tokenizer(tiny_data):
    return load_tokenizer(tiny_data / "tokenizer")


def asked(tiny_data, tmp_path, tokenizer, recipe: str, text: str = TEXT, **more):
    config = tiny_config(tiny_data, tmp_path, RECIPES[recipe] | {"stream.sequence_length": 64})
    model = draw(build_model(config.model, config.sizes)).eval()
    sides = plan_sides(config, tokenizer, text, bos_id=tokenizer.bos_id, **more)
    return config, model, sides


@pytest.mark.parametrize(
    "recipe", [name for name in RECIPES if "lstm" not in name and name[0] != "g"]
)
def test_a_model_computes_the_same_while_its_attention_is_kept(
    tiny_data, tmp_path, tokenizer, recipe
):
    config, model, sides = asked(tiny_data, tmp_path, tokenizer, recipe)
    with torch.no_grad():
        expected = run_model(model, sides)
        with recording(model) as seen:
            torch.testing.assert_close(run_model(model, sides), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(run_model(model, sides), expected)  # and nothing stays behind
    layers = find_attention(model, sides)
    assert len(layers) == len(seen)
    sizes = {
        "own": (sides.own, sides.own),
        "read": (sides.read,) * 2,
        "cross": (sides.own, sides.read),
    }
    for each in layers:
        looking, looked_at = sizes[each.part]
        shape = (config.model.heads, len(looking.ids), len(looked_at.ids))
        assert each.shares_HTS.shape == shape
        np.testing.assert_allclose(each.shares_HTS.sum(-1), 1, rtol=1e-5)
        is_causal = config.model.family == "decoder" and recipe != "prefix"
        ahead = np.triu(each.shares_HTS[0], 1).max()
        assert (ahead == 0) == (is_causal or (each.part == "own" and sides.read is not None))
    first = next(each for each in layers if each.part == "own").shares_HTS[0]
    far = np.tril(first, -SEEN.get(recipe, 10_000)).max()
    assert far == 0


def test_a_capped_and_grouped_attention_is_seen_as_well(tiny_data, tmp_path, tokenizer):
    config = tiny_config(tiny_data, tmp_path, {"model.attention_softcap": 20.0})
    model = draw(build_model(config.model, config.sizes)).eval()
    sides = plan_sides(config, tokenizer, TEXT, bos_id=tokenizer.bos_id)
    assert [each.module for each in find_attention(model, sides)] == [
        "blocks.0.attention",
        "blocks.1.attention",
    ]


def test_a_model_without_attention_says_so(tiny_data, tmp_path, tokenizer):
    _, model, sides = asked(tiny_data, tmp_path, tokenizer, "lstm")
    with pytest.raises(ConfigError, match="family recurrent, which has no attention"):
        find_attention(model, sides)


def test_the_weights_are_those_that_transformers_gives(tiny_data, tmp_path, tokenizer):
    transformers = pytest.importorskip("transformers")
    config = tiny_config(tiny_data, tmp_path, {})
    model = draw(build_model(config.model, config.sizes)).eval()
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=config.model.norm_eps,
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
    ).eval()
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(_of_llama(name, weights))
        sides = plan_sides(config, tokenizer, TEXT, bos_id=tokenizer.bos_id)
        expected = theirs(torch.tensor([sides.own.ids]), output_attentions=True).attentions
    for layer, each in enumerate(find_attention(model, sides)):
        np.testing.assert_allclose(each.shares_HTS, expected[layer][0].numpy(), atol=1e-5)


def _of_llama(name: str, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Our weight by their name; ``qkv`` and ``gate_up`` hold several of theirs."""
    whole = {"model.embed_tokens.weight": "embedding.weight", "lm_head.weight": "head.weight"}
    if name in whole or name == "model.norm.weight":
        return weights[whole.get(name, "norm.weight")]
    _, _, layer, *_, part, _ = name.split(".")
    block = f"blocks.{layer}"
    q, k, v = weights[f"{block}.attention.qkv.weight"].split([32, 16, 16])
    gate, up = weights[f"{block}.feed_forward.gate_up.weight"].chunk(2)
    return {
        "q_proj": q, "k_proj": k, "v_proj": v, "o_proj": weights[f"{block}.attention.out.weight"],
        "gate_proj": gate, "up_proj": up, "down_proj": weights[f"{block}.feed_forward.down.weight"],
        "input_layernorm": weights[f"{block}.attention_norm.weight"],
        "post_attention_layernorm": weights[f"{block}.feed_forward_norm.weight"],
    }[part]  # fmt: skip


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0, 2**32))
def test_rows_of_words_sum_to_one_as_those_of_tokens_do(begins, seed):
    places = [place for place, first in enumerate(begins) if first or place == 0]
    groups = [tuple(range(a, b)) for a, b in zip(places, [*places[1:], len(begins)], strict=True)]
    shares = np.random.default_rng(seed).dirichlet(np.ones(len(begins)), size=(2, len(begins)))
    words = merge_words(shares, groups, groups)
    assert words.shape == (2, len(groups), len(groups))
    np.testing.assert_allclose(words.sum(-1), 1)
    first = shares[:, groups[0][0] : groups[0][-1] + 1, list(groups[-1])].sum(-1).mean(-1)
    np.testing.assert_allclose(words[:, 0, -1], first)


def test_a_text_is_read_as_in_training(tiny_data, tmp_path, tokenizer):
    _, _, sides = asked(tiny_data, tmp_path, tokenizer, "llama", "Hello 你好")
    assert sides.own.ids[0] == tokenizer.bos_id
    assert "".join(sides.own.shown[1:]).replace("\\xNN", "").startswith("Hello")
    assert sides.own.begins_word[:2] == (True, True)
    config, _, sides = asked(tiny_data, tmp_path, tokenizer, "masked", f"a {MASK}b")
    mask, eos = config.objective_ids["mask"], tokenizer.eos_id
    assert sides.own.ids.count(mask) == 1 and sides.own.ids[-1] == eos
    place = sides.own.ids.index(mask)
    assert sides.own.shown[place] == "[mask]" and sides.own.begins_word[place + 1]
    config, _, sides = asked(tiny_data, tmp_path, tokenizer, "t5", "Hello", answer=" world")
    assert sides.read is not None and sides.own.shown[0] == "[start]"
    longer = add_written(sides, Speller(config, tokenizer), [config.vocab_size - 1])
    assert longer.own.shown[-1] == f"[{config.vocab_size - 1}]"


def test_a_text_that_is_too_long_or_nothing_is_told(tiny_data, tmp_path, tokenizer):
    with pytest.raises(ConfigError, match="the model sees at most 64. Shorten it"):
        asked(tiny_data, tmp_path, tokenizer, "llama", "word " * 100)
    config = tiny_config(tiny_data, tmp_path)
    with pytest.raises(ConfigError, match="--text is empty"):
        plan_sides(config, tokenizer, "", bos_id=None)
    with pytest.raises(ConfigError, match="--answer: the run's model is of the family encoder"):
        asked(tiny_data, tmp_path, tokenizer, "masked", "a", answer="b")


@pytest.mark.parametrize("recipe", ["llama", "lstm", "masked", "t5", "prefix"])
def test_the_likeliest_tokens_are_those_of_a_full_pass(tiny_data, tmp_path, tokenizer, recipe):
    config, model, sides = asked(tiny_data, tmp_path, tokenizer, recipe, f"The {MASK} is")
    (likely,) = find_likely(model, config, sides, most=config.num_ids + 5)
    with torch.no_grad():
        logits = model.head(run_model(model, sides))[0, likely.place, : config.num_ids]
    shares = logits.double().softmax(-1)
    assert len(likely.ids) == config.num_ids and sum(likely.probabilities) == pytest.approx(1)
    assert likely.ids[0] == shares.argmax() and likely.probabilities[0] == pytest.approx(
        shares.max().item()
    )
    assert likely.entropy == pytest.approx(-(shares * shares.log()).sum().item())
    is_mask = config.objective_ids.get("mask") == sides.own.ids[likely.place]
    assert is_mask == (recipe == "masked")
