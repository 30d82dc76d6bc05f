import pytest
import yaml

from lmscale.config import RunConfig, dump_config, load_config, parse_config
from lmscale.errors import ConfigError

MINIMAL = "run: {name: a}\n"


def problems_of(text, overrides=()):
    with pytest.raises(ConfigError) as caught:
        parse_config(text, overrides, name="c.yaml")
    return list(caught.value.problems)


def test_everything_but_the_name_has_a_default():
    config = parse_config(MINIMAL)
    assert config.folder.as_posix() == "runs/a"
    assert config.vocab_size == 32_000
    assert config.tokens_per_step == 512 * 1024


def test_what_is_dumped_is_read_back_equal():
    text = "run: {name: a}\nmodel: {heads: 6}\nengine: {deepspeed: {aio: {x: [1, null]}}}\n"
    config = parse_config(
        text, ["engine.optimizer.decay=[linear]", "corpus.sources={x: {inputs: [y]}}"]
    )
    assert parse_config(dump_config(config)) == config


def test_a_configuration_cannot_be_changed_after_it_was_read():
    config = parse_config(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        config.train.steps = 5  # pyright: ignore


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("train.steps=7", lambda c: c.train.steps, 7),
        ("engine.optimizer.lr=3e-4", lambda c: c.engine.optimizer.lr, 3e-4),
        ("engine.optimizer.lr=1E-3", lambda c: c.engine.optimizer.lr, 1e-3),
        ("engine.offload_optimizer=true", lambda c: c.engine.offload_optimizer, True),
        ("engine.optimizer.betas=[0.8, 0.9]", lambda c: c.engine.optimizer.betas, (0.8, 0.9)),
        ("run.folder=/x=y", lambda c: c.run.folder, "/x=y"),
        ("model.kv_heads=null", lambda c: c.model.kv_heads, None),
        (
            "stream.sources.en.shards=s3://b/en",
            lambda c: c.stream.sources["en"].shards,
            "s3://b/en",
        ),
        (
            "engine.deepspeed.zero_optimization.overlap_comm=false",
            lambda c: c.engine.deepspeed,
            {"zero_optimization": {"overlap_comm": False}},
        ),
    ],
)
def test_an_override_sets_one_key_of_any_depth(override, read, value):
    assert read(parse_config(MINIMAL, [override])) == value


def test_the_last_override_of_a_key_counts():
    assert parse_config(MINIMAL, ["train.steps=7", "train.steps=8"]).train.steps == 8


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.steps", "write it as section.key=value"),
        ("=7", "write it as section.key=value"),
        ("train..steps=7", "write it as section.key=value"),
        ("run.name.first=x", "run.name is a single value, not a section"),
        ("train.steps={", "not valid YAML"),
    ],
)
def test_a_malformed_override_is_told(override, words):
    assert any(words in problem for problem in problems_of(MINIMAL, [override]))


def test_unknown_keys_are_told_with_their_path_and_the_nearest_known_one():
    text = (
        "run: {name: a}\ntrian: {}\nengine: {optimizer: {learning: 1}, schedule: {warm_steps: 3}}\n"
    )
    assert problems_of(text) == [
        "c.yaml:3: engine.optimizer.learning: unknown key. Known here: kind, lr, momentum, "
        "muon_lr_ratio, betas, eps, weight_decay, decay, clip_norm.",
        "c.yaml:3: engine.schedule.warm_steps: unknown key. Did you mean warmup_steps?",
        "c.yaml:2: trian: unknown key. Did you mean train?",
    ]


@pytest.mark.parametrize("name", ["2024-01-01", "3.11", "~", "7"])
def test_unknown_keys_below_a_name_that_yaml_reads_as_no_text_are_found(name):
    said = problems_of(f"run: {{name: a}}\nstream: {{sources: {{{name}: {{folderr: x}}}}}}")
    assert any("folderr: unknown key. Known here: shards, weight" in problem for problem in said)


def test_unknown_keys_below_a_name_of_ones_own_are_found():
    text = "run: {name: a}\nstream: {sources: {en: {shards: x, wieght: 2}}}\n"
    assert problems_of(text) == [
        "c.yaml:2: stream.sources.en.wieght: unknown key. Did you mean weight?"
    ]


def test_all_problems_are_told_at_once():
    text = """
    run: {name: ../x}
    train: {steps: many}
    batch: {global_windows: 0}
    model: {width: 10, heads: 3}
    stream: {sources: {en: {weight: 1}}}
    """
    said = problems_of(text, ["oops"])
    for path in ("run.name:", "train.steps:", "batch.global_windows:", "model:", "--set oops:"):
        assert sum(path in problem for problem in said) == 1, (path, said)
    assert any("stream.sources.en.shards: is required and missing" in p for p in said)
    assert any("found 'many'" in problem for problem in said)
    assert len(said) == 6


def test_what_sections_forbid_each_other_is_told_beside_unknown_keys_and_wrong_types():
    told = problems_of(
        "run: {name: x, sed: 1}\n"
        'train: {steps: "9"}\n'
        "batch: {warmup: [[9, 4]]}\n"
        "engine: {keep_zeros: true}\n"
        "model: {lora: {rank: 4}}\n"
        "stream: {sources: {a: {shards: s, weight: 0}}}\n"
    )
    parts = ("run.sed: unknown", "train.steps: input", "every weight is 0", "keep_zeros with")
    assert all(part in "\n".join(told) for part in parts)
    assert "batch.warmup" not in "\n".join(told)  # of how many steps is not known


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "expected a mapping of sections, found list"),
        ("run: {name: a", "not valid YAML"),
        ("run: {name: a}\nrun: {name: b}", "gives run more than once"),
        ("run: {name: a, name: b}", "gives name more than once"),
        ("", "run: is required and missing"),
        ("run: {name: a}\ntrain: {steps: 1.5}", "train.steps"),
        ("run: {name: a}\nengine: {optimizer: {lr: .inf}}", "engine.optimizer.lr"),
        ("run: {name: a}\nengine: {optimizer: {betas: [0.9, 1.0]}}", "engine.optimizer.betas"),
        ("run: {name: a}\nengine: {optimizer: {betas: [-0.1, 0.9]}}", "engine.optimizer.betas"),
        ("run: {name: a}\nengine: {zero_stage: 1, offload_parameters: true}", "needs zero_stage 3"),
        ("run: {name: a}\nengine: {zero_stage: 0, offload_optimizer: true}", "needs zero_stage 1"),
        (
            "run: {name: a}\nmodel: {heads: 6, kv_heads: 4}",
            "heads = 6 is not a multiple of kv_heads",
        ),
        ("run: {name: a}\nmodel: {width: 12, heads: 4}", "rope rotates pairs"),
        ("run: {name: a}\nmodel: {vocab_size: 100}", "smaller than tokenizer.vocab_size"),
        ("run: {name: a}\nmodel: {max_positions: 10}", "shorter than stream.sequence_length"),
        ("run: {name: a}\nmodel: {segments: 3}\nstream: {sequence_length: 8}", "equal parts"),
        ("run: {name: a}\nstream: {sources: {x: {shards: y, weight: 0}}}", "every weight is 0"),
        (
            "run: {name: a}\ntrain: {steps: 5}\nengine: {schedule: {warmup_steps: 6}}",
            "is more than",
        ),
        ("run: {name: a}\ncorpus: {sources: {a/b: {inputs: [x]}}}", "names become folders"),
        ("run: {name: a}\nevaluation: {sets: {a b: x}}", "set names become folder"),
    ],
)
def test_what_cannot_work_is_refused_in_words(text, words):
    assert any(words in problem for problem in problems_of(text))


@pytest.mark.parametrize(
    ("encoding", "byte"),
    [("utf-16", "1 is 0xFF"), ("gb18030", "13 is 0xD6"), ("latin-1", "13 is 0xE4")],
)
def test_a_file_that_is_not_utf_8_is_to_be_saved_as_that(tmp_path, encoding, byte):
    path = tmp_path / "c.yaml"
    name = "ä" if encoding == "latin-1" else "中文"
    path.write_bytes(f"run: {{name: {name}}}".encode(encoding))
    with pytest.raises(ConfigError, match=f"is not UTF-8: byte {byte}.*Save it as UTF-8"):
        load_config(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    missing = tmp_path / "none.yaml"
    with pytest.raises(ConfigError, match=f"{missing}: there is no such configuration file"):
        load_config(missing)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


def test_scientific_notation_without_a_dot_is_a_number_and_text_stays_text():
    config = parse_config("run: {name: '1e5'}\nengine: {optimizer: {eps: 1e-6, lr: 3e-4}}")
    assert config.run.name == "1e5"
    assert (config.engine.optimizer.eps, config.engine.optimizer.lr) == (1e-6, 3e-4)


def test_the_vocabulary_is_padded_to_whole_tiles_unless_told():
    text = "run: {name: a}\ntokenizer: {vocab_size: 4097}"
    assert parse_config(text).vocab_size == 4224
    assert parse_config(text, ["model.vocab_size=4097"]).vocab_size == 4097


def test_the_fields_stand_in_the_order_of_the_datas_flow():
    sections = ["run", "corpus", "tokenizer", "shards", "stream", "batch", "model", "objective"]
    sections += ["engine", "checkpoint", "guard", "train", "watch", "evaluation", "export"]
    assert list(RunConfig.model_fields) == sections
    assert list(yaml.safe_load(dump_config(parse_config(MINIMAL)))) == sections


def test_merge_keys_are_read():
    text = """
    run: {name: a}
    stream:
      sources:
        en: &source {shards: x, weight: 2}
        de: {<<: *source, shards: y}
        fr: {<<: [*source, {weight: 5}], shards: z}
    corpus: {sources: {b: &b {inputs: [x]}, c: &c {<<: *b, format: text}, d: {<<: *c, inputs: [y]}}}
    """
    config = parse_config(text)
    found = {name: (s.shards, s.weight) for name, s in config.stream.sources.items()}
    assert found == {"en": ("x", 2), "de": ("y", 2), "fr": ("z", 2)}
    last = config.corpus.sources["d"]
    assert ([each.files for each in last.inputs], last.format) == (["y"], "text")


def test_a_key_that_is_merged_and_then_given_again_is_not_called_repeated():
    # The shallow comms_logger is built before the deep c, and so c's own merge is written into c.
    text = """
    run: {name: a}
    engine:
      deepspeed:
        aio: {b: {c: &c {<<: {x: 1}, x: 2}}}
        comms_logger: {<<: *c}
    """
    found = parse_config(text).engine.deepspeed
    assert found == {"aio": {"b": {"c": {"x": 2}}}, "comms_logger": {"x": 2}}
    assert problems_of(
        "run: {name: a}\nobjective: {<<: {z_loss: 1}, chunk_tokens: 1, chunk_tokens: 2}"
    )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.freeze=embedding.*", "train.freeze: input should be a list; found 'embedding.*'"),
        ("train.steps=true", "train.steps: input should be a valid integer; found true"),
        ("train.steps='12'", "train.steps: input should be a valid integer; found '12'"),
        ("train.steps=1e30", "train.steps: input should be a whole number without a dot or an"),
        ("engine.optimizer.lr=true", "engine.optimizer.lr: input should be a valid number"),
        ("engine.optimizer.lr='1'", "engine.optimizer.lr: input should be a valid number"),
        ("engine.optimizer.betas=[true, 0.9]", "engine.optimizer.betas.0: input should be"),
        ("engine.compile=1", "engine.compile: input should be a valid boolean; found 1"),
        ("engine.compile='on'", "engine.compile: input should be a valid boolean; found 'on'"),
        ("engine.zero_stage=true", "engine.zero_stage: give a number from 0 to 3, not true"),
        ("model.kv_heads=false", "model.kv_heads: input should be a valid integer; found false"),
        ("run.name=5", "run.name: input should be a valid string; found 5"),
    ],
)
def test_a_value_of_another_type_is_refused(override, words):
    assert [words in problem for problem in problems_of(MINIMAL, [override])] == [True]


PARTS = "model: {layers: 1}\nobjective: {name: mixture, parts: {%s}}\n"


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("causal: 0.5", "parts.causal: input should be a section with the keys weight, objective"),
        ("a: {objective: causal}", "objective: input should be a section with the keys name"),
        ("", "parts: the section should have at least 1 item, not 0; found a section, empty."),
        ("a b/c: {}", "parts.a b/c: the name should match pattern"),
        ("b: {rate: .9}", "b.rate: unknown key. Known here: weight, objective. It belongs below "),
        ("b: {objective: {rate: .9}}", "objective.parts.b.objective.name: fill_middle, mask"),
    ],
)
def test_a_section_of_another_shape_is_told_in_the_words_of_yaml(part, words):
    said = problems_of(MINIMAL + PARTS % part)
    assert [problem for problem in said if words in problem], said


def test_null_in_place_of_a_section_or_a_list_is_called_null_and_true_is_true():
    text = "objective: {name: classes, names: null}\nmodel: {mup: true}\n"
    mup = "model.mup: input should be a section with the keys base_width, base_head_width"
    assert problems_of(MINIMAL + text) == [
        f"c.yaml:3: {mup}; found true.",
        "c.yaml:2: objective.names: input should be a list; found null.",
    ]


def test_nothing_behind_a_key_empties_a_text_that_may_be_empty_and_no_other():
    config = parse_config(MINIMAL + BEST, ["checkpoint.keep_best.metric=", "run.init_from="])
    assert (config.checkpoint.keep_best.metric, config.run.init_from) == ("", "")
    (said,) = problems_of(MINIMAL, ["tokenizer.folder="])
    assert "input should be a valid string; found null" in said


@pytest.mark.parametrize(
    ("objective", "missing"),
    [
        ("{name: classes, names: [bad, good]}", {"bits_per_byte"}),
        ("{name: numbers}", {"bits_per_byte", "perplexity"}),
    ],
)
@pytest.mark.parametrize("section", ["checkpoint.keep_best", "evaluation.stop"])
def test_a_figure_that_says_nothing_of_an_objective_decides_nothing(objective, missing, section):
    text = f"{MINIMAL}{BEST}evaluation: {{sets: {{docs: x}}, every_steps: 100}}\n"
    for figure in ("loss", "perplexity", "bits_per_byte"):
        given = [f"objective={objective}", f"{section}.metric=evaluation/docs/{figure}"]
        told = [problem for problem in problems_of(text, given) if "never measured" in problem]
        assert bool(told) == (figure in missing)
        assert not any(
            f"docs/{name}" in told[0].partition("There are")[2] for name in missing if told
        )


def test_what_was_hardly_meant_is_described_and_allowed():
    config = parse_config(MINIMAL, ["evaluation.stop.patience=2", "model.mup.base_width=1536"])
    stop, mup = config.describe_doubts()
    assert "evaluation.stop has no metric" in stop
    assert "learning rates are 2 times" in mup
    assert not list(parse_config(MINIMAL, ["model.mup.base_width=768"]).describe_doubts())


def test_a_whole_number_may_stand_for_a_float_and_a_list_for_a_tuple():
    config = parse_config(
        MINIMAL, ["engine.optimizer.clip_norm=1", "engine.optimizer.betas=[0, 0.5]"]
    )
    assert config.engine.optimizer.clip_norm == 1.0
    assert config.engine.optimizer.betas == (0.0, 0.5)


@pytest.mark.parametrize(
    ("schedule", "refused"),
    [
        ("{kind: wsd, warmup_steps: 2, decay_steps: 8}", False),
        ("{kind: wsd, warmup_steps: 2, decay_steps: 9}", True),
        ("{kind: linear, warmup_steps: 2, decay_steps: 9}", True),
        ("{kind: cosine, warmup_steps: 2, decay_steps: 8}", False),
        ("{kind: cosine, decay_steps: 11}", True),
        ("{kind: constant, warmup_steps: 2, decay_steps: 11}", False),
        ("{kind: linear, warmup_steps: 10}", False),
    ],
)
def test_a_decay_that_would_not_end_with_the_run_is_refused(schedule, refused):
    text = f"run: {{name: a}}\ntrain: {{steps: 10}}\nengine: {{schedule: {schedule}}}"
    if not refused:
        parse_config(text)
        return
    (said,) = problems_of(text)
    assert "is more than the" in said and "would never reach final_ratio" in said


BEST = "checkpoint: {every_steps: 100, keep_best: {metric: evaluation/docs/loss}}\n"


@pytest.mark.parametrize(
    ("evaluation", "words"),
    [
        ("{}", "is never measured by an evaluation"),
        ("{sets: {other: x}, every_steps: 100}", "evaluation/other/bits_per_byte"),
        ("{sets: {docs: x}}", "set evaluation.every_steps (now 0) to 100"),
        ("{sets: {docs: x}, every_steps: 30}", "or to a divisor of it"),
    ],
)
def test_keeping_the_best_checkpoint_needs_a_figure_at_every_save(evaluation, words):
    said = problems_of(f"run: {{name: a}}\n{BEST}evaluation: {evaluation}\n")
    assert any(words in problem for problem in said), said


def test_the_best_checkpoint_may_be_kept_by_a_figure_measured_more_often():
    text = "run: {name: a}\n" + BEST + "evaluation: {sets: {docs: x}, every_steps: 50}\n"
    assert parse_config(text).checkpoint.keep_best.metric == "evaluation/docs/loss"


def test_a_guard_whose_window_is_no_longer_than_a_spike_is_refused():
    said = problems_of("run: {name: a}\nguard: {spike_window: 8, spike_steps: 3}\n")
    assert any("the spike itself would move the median" in problem for problem in said)
