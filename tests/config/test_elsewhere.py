"""Settings under the names that other trainers give them."""

import re

import pytest

from lmscale.config import RunConfig, parse_config
from lmscale.config.elsewhere import ELSEWHERE
from lmscale.config.elsewhere_sections import IN_SECTION, SECTIONS
from lmscale.config.problems import places
from lmscale.errors import ConfigError

PLACES = {place for found in places(RunConfig).values() for place in found}
MET = """
hidden_size num_attention_heads n_layer gradient_accumulation_steps lr learning_rate
per_device_train_batch_size train_micro_batch_size_per_gpu max_steps train_iters seq_length
context_length warmup_steps lr_warmup_fraction weight_decay adam_beta1 save_steps save_interval bf16
fp16 zero_optimization init_from load resume_from_checkpoint output_dir tokenizer_path data_path
eval_interval n_embd d_model block_size global_batch_size num_train_epochs clip_grad max_grad_norm
min_lr lr_decay_style lr_scheduler_type num_key_value_heads n_kv_heads intermediate_size vocab_size
tie_word_embeddings log_interval logging_steps eval_iters save_total_limit run_name seed optimizer
tensor_model_parallel_size max_duration warmup_ratio gradient_checkpointing dropout report_to
""".split()


def said_of(text, overrides=(), **more):
    with pytest.raises(ConfigError) as caught:
        parse_config(text, overrides, name="c.yaml", **more)
    return list(caught.value.problems)


@pytest.mark.parametrize("name", sorted(ELSEWHERE | IN_SECTION))
def test_every_key_that_an_answer_names_is_one(name):
    answer = {**ELSEWHERE, **IN_SECTION}[name]
    assert " " in answer or answer in PLACES
    named = re.findall(r"\b[a-z_]+(?:\.(?:[a-z_]+|NAME))+", answer)
    assert {key for key in named if key.split(".")[0] in RunConfig.model_fields} <= PLACES


@pytest.mark.parametrize("where", ["", "train.", "engine.optimizer.", "model."])
def test_a_name_of_others_is_answered_wherever_it_stands(where):
    for name in MET:
        if f"{where}{name}" in PLACES:
            continue
        (said,) = said_of("run: {name: a}", [f"{where}{name}=1"])
        known = re.search(
            r"Here |It belongs below|Nothing needs|Raw files|lmscale splits|Every run", said
        )
        assert known and "Did you mean" not in said, said


def test_a_name_of_others_wins_over_a_near_one_and_a_slip_gets_the_near_one():
    text = "run: {name: a}\ntrain: {max_steps: 5, step: 3}\nmodel: {n_heads: 4, head: 4}\n"
    assert said_of(text) == [
        "c.yaml:3: model.n_heads: unknown key. Here this is model.heads.",
        "c.yaml:3: model.head: unknown key. Did you mean heads?",
        "c.yaml:2: train.max_steps: unknown key. Here this is train.steps.",
        "c.yaml:2: train.step: unknown key. Did you mean steps?",
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "per_device_train_batch_size: 8\ngradient_accumulation_steps: 4",
            "batch.global_windows = windows (sequences) of a micro-batch × gradient accumulation "
            "steps × ranks, and batch.micro_windows is the most of a micro-batch; the accumulation "
            "follows: 8 × 4 × ranks = 32 × ranks.",
        ),
        ("gradient_accumulation_steps: 4", "the accumulation follows."),
        ("batch_size: many\ngradient_accumulation_steps: 4", "the accumulation follows."),
        ("train: {steps: 300, warmup_ratio: 0.03}", "the fraction × train.steps = 9."),
        ("lr_warmup_fraction: .01\ntrain_iters: 2000", "the fraction × train.steps = 20."),
        ("engine: {schedule: {warmup: 0.01}}\ntrain: {steps: 200}", "train.steps = 2."),
        ("warmup: 0.01\ntrain_iters: 1000", "the fraction × train.steps = 10."),  # GPT-NeoX's
        ("lr_warmup_fraction: .01", "the fraction × train.steps."),
        ("min_lr: 1.0e-5\nlr: 4.0e-4", "min_lr / lr = 0.025."),
        ("min_lr: 1.0e-5\nlr: 0.0", "min_lr / lr."),
    ],
)
def test_where_the_setting_is_an_arithmetic_it_is_done(text, words):
    said = said_of(f"run: {{name: a}}\n{text}\n")
    assert any(problem.endswith(words) for problem in said), said


def test_a_key_of_a_sweep_is_blamed_on_the_sweep():
    (said,) = said_of("run: {name: a}", axes=["learning_rate=1e-3"])
    assert said.startswith("--array learning_rate=1e-3: learning_rate: unknown key. Here this is ")


def test_a_key_of_ours_at_the_top_is_sent_to_its_section():
    (said,) = said_of("run: {name: a}\nglobal_windows: 8")
    assert said.endswith(" It belongs below batch.")


def test_a_section_of_ours_that_theirs_is_taken_for_is_one():
    assert set(SECTIONS.values()) <= PLACES


# As the examples of torchtitan, OLMo-core, llm-foundry and nanotron write them.
THEIRS = {
    "training: {seq_len: 8192, steps: 9}": ["training.seq_len stream.sequence_length"]
    + ["training.steps train.steps"],
    "lr_scheduler: {warmup_steps: 9}": ["lr_scheduler.warmup_steps engine.schedule.warmup_steps"],
    "optimizer: {name: AdamW, lr: 3.0e-4}": ["optimizer.name engine.optimizer.kind"]
    + ["optimizer.lr engine.optimizer.lr"],
    "train_module: {optim: {lr: 1.0e-3}}": ["train_module.optim.lr engine.optimizer.lr"],
    "model: {block: {feed_forward: {hidden_size: 9}}}": [
        "model.block.feed_forward.hidden_size model.ffn_width"
    ],
    "optimizer: {learning_rate_scheduler: {lr_decay_steps: 13}}": [
        "optimizer.learning_rate_scheduler.lr_decay_steps engine.schedule.decay_steps"
    ],
    "model: {name: llama3}": ["model.name model.family"],
    "checkpoint: {interval: 500}": ["checkpoint.interval checkpoint.every_steps"],
}


@pytest.mark.parametrize("text", THEIRS)
def test_the_keys_in_a_section_of_others_are_answered_one_by_one(text):
    expected = [line.split() for line in THEIRS[text]]
    assert said_of(f"run: {{name: a}}\n{text}\n") == [
        f"c.yaml:2: {theirs}: unknown key. Here this is {ours}." for theirs, ours in expected
    ]


def test_the_key_of_an_option_in_a_section_of_others_is_answered():
    (said,) = said_of("run: {name: a}", ["optim.learning_rate=1e-3"])
    assert said.endswith(": optim.learning_rate: unknown key. Here this is engine.optimizer.lr.")


def test_what_nothing_is_known_of_is_one_line_and_a_slip_is_a_slip():
    assert said_of("run: {name: a}\ncomm: {a: 1, b: 2}\nmodle: {layers: 3}\n") == [
        "c.yaml:2: comm: unknown section. Nothing here is called a, b; docs/configuration.md lists "
        "what there is.",
        "c.yaml:3: modle: unknown key. Did you mean model?",
    ]


@pytest.mark.parametrize("key", ["model.flavor", "model.norms_of", "gas", "model.name"])
def test_half_the_letters_are_no_near_name(key):
    (said,) = said_of("run: {name: a}", [f"{key}=1"])
    assert "Did you mean" not in said
