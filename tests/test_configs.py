"""Every file in configs/ loads, can be dealt to the ranks it is meant for, and renders."""

from __future__ import annotations

from pathlib import Path

import pytest

import lmscale
from lmscale.config import RunConfig, dump_config, load_config, parse_config, plan_batches
from lmscale.config.deepspeed_config import render_deepspeed_config
from lmscale.errors import ConfigError
from lmscale.model.family import account_model

CONFIGS = Path(lmscale.__file__).parents[1] / "configs"
PATHS = sorted(CONFIGS.glob("*.yaml"))
LARGE = ("gpt2_124m", "llama_1b", "llama_7b", "llama_70b", "gpt3_1.3b", "llama3_8b", "qwen3_0.6b")
MAX_RANKS = 512


def count(config: RunConfig) -> int:
    return account_model(config.model, config.sizes).total


def plan(config: RunConfig, world_size: int):
    return plan_batches(
        global_windows=config.batch.global_windows,
        micro_windows=config.batch.micro_windows,
        data_ranks=world_size,
    )


def test_the_promised_configurations_are_there():
    assert {path.stem for path in PATHS} >= {
        *("bert_base", "roberta_base", "modernbert_base", "structbert_base"),
        *("demo", "lstm_lm", "gru_lm", "transformer_xl", *LARGE),
    }


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_configuration_loads_and_is_the_same_after_it_was_written_out(path):
    config = load_config(path)
    assert config.run.name == path.stem
    assert parse_config(dump_config(config)) == config


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_configuration_can_be_dealt_to_every_world_size_that_divides_its_step(path):
    config = load_config(path)
    windows = config.batch.global_windows
    sizes = [size for size in range(1, MAX_RANKS + 1) if windows % size == 0]
    assert {1, 2, 4, 8} <= set(sizes)
    for size in sizes:
        dealt = plan(config, size)
        assert dealt.data_ranks * dealt.accumulation * dealt.micro_windows == windows
        assert dealt.micro_windows <= config.batch.micro_windows
        mapping = render_deepspeed_config(config.engine, plan=dealt, num_parameters=count(config))
        assert mapping["train_batch_size"] == windows
        assert mapping["zero_optimization"]["stage"] == config.engine.zero_stage


@pytest.mark.parametrize("name", LARGE)
def test_a_large_configuration_runs_on_every_power_of_two_up_to_512_ranks(name):
    config = load_config(CONFIGS / f"{name}.yaml")
    for exponent in range(10):
        # No padding of micro-batches to less than is allowed: the whole device is used.
        share = config.batch.global_windows // 2**exponent
        assert plan(config, 2**exponent).micro_windows == min(config.batch.micro_windows, share)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_configuration_reads_only_what_its_own_commands_build(path):
    """`corpus build`, `tokenizer train` and `shards build` with one file, then train with it."""
    config = load_config(path)
    built = {
        f"{config.shards.folder}/{name}/{split}"
        for name in config.corpus.sources
        for split in ("train", "heldout")
    }
    assert {source.shards for source in config.stream.sources.values()} <= built
    assert set(config.evaluation.sets.values()) <= built


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("gpt2_124m", ("model.vocab_size=50257",), 124_439_808),  # GPT-2's own
        ("gpt2_124m", (), 124_475_904),  # the embedding padded to 50,304 rows
        ("llama_1b", (), 1_345_423_360),  # Sheared-LLaMA-1.3B
        ("llama_7b", (), 6_738_415_616),  # Llama 2 7B
        ("llama_70b", (), 68_976_648_192),  # Llama 2 70B
        ("llama3_8b", (), 8_030_261_248),  # Llama 3 8B
        ("qwen3_0.6b", (), 596_049_920),  # Qwen 3 0.6B
        ("gemma2_2b", (), 2_614_341_888),  # Gemma 2 2B
        ("gpt3_1.3b", ("model.vocab_size=50257",), 1_315_723_264),  # 1.3 billion of GPT-3 XL
        ("lstm_lm", (), 66_024_000),  # 66 million of Zaremba et al.
        ("bert_base", (), 109_514_298),  # of bert-base-uncased with the head that fills in
        ("structbert_base", (), 110_107_197),  # and a pooler and three classes
        ("roberta_base", (), 124_697_433),  # of roberta-base, likewise
        ("modernbert_base", (), 149_655_232),  # of ModernBERT-base, likewise
        ("t5_base", (), 222_903_552),  # T5 base
        ("t5_gated", (), 247_577_856),  # T5 1.1 base
        ("ul2_base", (), 247_577_856),  # the same shape
        ("bart_base", ("model.vocab_size=50265", "model.max_positions=1026"), 139_420_416),
        ("bart_base", (), 139_447_296),
    ],
)
def test_the_models_have_their_published_numbers_of_parameters(name, overrides, expected):
    assert count(load_config(CONFIGS / f"{name}.yaml", overrides)) == expected


@pytest.mark.parametrize(
    ("name", "tokens_per_step", "tokens"),
    [
        ("gpt2_124m", 524_288, 315e9),
        ("llama_1b", 2_097_152, 105e9),
        ("llama_7b", 4_194_304, 2.0e12),
        ("llama_70b", 4_194_304, 2.0e12),
        ("gpt3_1.3b", 1_048_576, 300e9),
        ("llama3_8b", 8_388_608, 15.1e12),
        ("qwen3_0.6b", 4_194_304, 1.006e12),
        ("t5_base", 128 * 568, 38.1e9),  # of the data, of which 512 and 114 are positions
    ],
)
def test_the_tokens_that_the_comments_name_are_those_of_the_run(name, tokens_per_step, tokens):
    config = load_config(CONFIGS / f"{name}.yaml")
    assert config.tokens_per_step == tokens_per_step
    assert config.tokens_per_step * config.train.steps == pytest.approx(tokens, rel=5e-3)


def test_a_path_without_a_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "llama_7c.yaml")
    assert str(caught.value) == f"{tmp_path}/llama_7c.yaml: there is no such configuration file."
    (tmp_path / "llama_7b.yaml").write_text("")
    with pytest.raises(ConfigError, match=rf"file\. Did you mean {tmp_path}/llama_7b\.yaml\?$"):
        load_config(tmp_path / "llama_7c.yaml")
