import typing

import pytest
from pydantic import BaseModel
from tiny_run import log_commit

from lmscale.config import RunConfig, dump_config, parse_config
from lmscale.config.kinds import Kinds, KindSection
from lmscale.config.model import DecoderConfig
from lmscale.errors import ConfigError
from lmscale.runs.continuation import (
    CHANGES,
    Change,
    check_folder,
    describe_changes,
    find_continuation_problems,
    list_settings,
    model_identity,
)

CONFIG = parse_config("run: {name: a}")


def keys_of(section, prefix=""):
    """Every key of the configuration as docs/configuration.md has it, and its section."""
    for name, field in section.model_fields.items():
        kinds = next((found for found in field.metadata if isinstance(found, Kinds)), None)
        inner = kinds.own.values() if kinds else [field.annotation]
        is_mapping = typing.get_origin(field.annotation) is dict
        inner = [typing.get_args(each)[-1] if is_mapping else each for each in inner]
        for each in inner:
            if isinstance(each, type) and issubclass(each, BaseModel):
                yield from keys_of(each, f"{prefix}{name}.{'NAME.' if is_mapping else ''}")
            else:
                yield f"{prefix}{name}", section


def test_the_table_says_of_every_key_what_becomes_of_it_and_of_none_that_is_not_there():
    keys = dict(keys_of(RunConfig))
    assert set(CHANGES) == set(keys)
    for key, section in keys.items():
        if issubclass(section, KindSection):  # by which a checkpoint's identity goes
            is_free = key.rpartition(".")[2] in section.free
            assert is_free == (CHANGES[key] is not Change.FIXED), key


def test_a_later_key_is_in_a_checkpoint_s_identity_only_where_it_is_used():
    before = model_identity(CONFIG)
    assert not DecoderConfig.later & before.keys()
    after = model_identity(parse_config("run: {name: a}\nmodel: {sliding_windows: [8]}"))
    assert after == before | {"sliding_windows": [8]}


def replace_at(section, path, value):
    """A copy with another value at a dotted path, whether or not it is allowed there."""
    name, _, rest = path.partition(".")
    if isinstance(section, dict):
        return section | {name: replace_at(section[name], rest, value)}
    inner = replace_at(getattr(section, name), rest, value) if rest else value
    return section.model_copy(update={name: inner})


def test_each_key_is_refused_told_or_free_as_the_table_says(tmp_path):
    text = f"run: {{name: a, folder: {tmp_path}}}\nstream: {{sources: {{web: {{shards: x}}}}}}\n"
    text += "corpus: {sources: {web: {inputs: [x]}}}"
    begun = parse_config(text)
    (tmp_path / "config.yaml").write_text(dump_config(begun))
    log_commit(tmp_path, 20)
    assert find_continuation_problems(begun) == describe_changes(begun, begun) == []
    for key, value, change in list_settings(begun):
        if key == "run.folder":
            continue
        other = value + 10_000 if type(value) in (int, float) else "another"
        now = replace_at(begun, key, other)
        refused = [one for one in find_continuation_problems(now) if one.startswith(f"{key} = ")]
        told = [one for one in describe_changes(begun, now) if one.startswith(f"{key}: ")]
        assert len(refused) == (change is Change.FIXED), (key, refused)
        assert len(told) == (change is Change.TRAINING), (key, told)


def test_the_betas_that_schedule_free_averages_by_are_fixed(tmp_path):
    text = f"run: {{name: a, folder: {tmp_path}}}\nengine: {{schedule: {{kind: constant}}, "
    begun = parse_config(text + "optimizer: {kind: schedule_free}}")
    (tmp_path / "config.yaml").write_text(dump_config(begun))
    log_commit(tmp_path, 20)
    now = parse_config(text + "optimizer: {kind: schedule_free, betas: [0.8, 0.95]}}")
    (refused,) = find_continuation_problems(now)
    assert refused.startswith("engine.optimizer.betas = [0.8, 0.95], but the run began with [0.9")
    assert describe_changes(begun, now) == []
    (refused,) = find_continuation_problems(parse_config(text + "optimizer: {kind: adamw}}"))
    assert refused.startswith("engine.optimizer.kind = 'adamw'")


def test_the_parts_and_the_denoisers_of_an_objective_stay_in_their_order(tmp_path):
    def config(parts, denoisers):
        return parse_config(
            f"""
            run: {{name: a, folder: {tmp_path}}}
            model: {{family: encoder_decoder}}
            stream: {{mask_documents: false}}
            objective: {{name: mixture, parts: {{{parts}}}}}
            """.replace("DENOISERS", denoisers)
        )

    spans, denoisers = "a: {objective: {name: spans}}", "S: {mode: S}, X: {mode: X}"
    mixed = "b: {objective: {name: denoisers, denoisers: {DENOISERS}}}"
    begun = config(f"{spans}, {mixed}", denoisers)
    (tmp_path / "config.yaml").write_text(dump_config(begun))
    log_commit(tmp_path, 20)
    assert find_continuation_problems(begun) == []
    problems = find_continuation_problems(config(f"{mixed}, {spans}", "X: {mode: X}, S: {mode: S}"))
    assert [problem.partition(" (")[0] for problem in problems] == [
        "objective.parts = ['b', 'a'], but the run began with ['a', 'b']",
        "objective.parts.b.objective.denoisers = ['X', 'S'], but the run began with ['S', 'X']",
    ]
    (problem,) = find_continuation_problems(config(spans, denoisers))
    assert problem.startswith("objective.parts = ['a'], but the run began with ['a', 'b']")


def test_a_source_that_comes_or_goes_is_told():
    before = parse_config("run: {name: a}\nstream: {sources: {web: {shards: x}}}")
    now = parse_config("run: {name: a}\nstream: {sources: {books: {shards: y, weight: 2}}}")
    assert describe_changes(before, now) == [
        "stream.sources.web.weight: 1.0 → not there",
        "stream.sources.books.weight: not there → 2.0",
    ]


def test_a_new_an_empty_and_the_runs_own_folder_are_fine(tmp_path):
    check_folder(tmp_path / "new" / "deep", CONFIG)
    check_folder(tmp_path, CONFIG)
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "config.yaml").write_text("run: {name: a}")
    check_folder(tmp_path, CONFIG)


def test_what_a_launcher_or_a_kill_in_the_first_write_left_is_harmless(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "stop").write_text("")
    (tmp_path / ".config.yaml.123.tmp").write_text("run: {na")
    check_folder(tmp_path, CONFIG)


def test_the_log_of_checkpoints_elsewhere_does_not_lock_out_a_run_that_was_killed_early(tmp_path):
    (tmp_path / "commits.jsonl").write_text("")
    (tmp_path / "resumes.jsonl").write_text("")  # why it could take up none of them
    check_folder(tmp_path, CONFIG)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="its config.yaml is missing"):
        check_folder(tmp_path, CONFIG)


def test_a_damaged_config_does_not_lock_a_run_out(tmp_path):
    (tmp_path / "config.yaml").write_text("run: {name: a}\nold_section: {}")
    check_folder(tmp_path, CONFIG)


def test_another_runs_folder_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("run: {name: b}")
    with pytest.raises(ConfigError, match="is the folder of the run 'b', not of 'a'"):
        check_folder(tmp_path, CONFIG)


def test_foreign_files_and_a_file_in_the_way_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=r"holds no run \(found thesis.tex\)"):
        check_folder(tmp_path, CONFIG)
    for place in ("thesis.tex", "thesis.tex/run"):
        with pytest.raises(
            ConfigError, match="thesis.tex is a file; run.folder must name a folder"
        ):
            check_folder(tmp_path / place, CONFIG)
    with pytest.raises(ConfigError, match="cannot be the run's folder: .*name too long"):
        check_folder(tmp_path / ("n" * 300), CONFIG)


def test_a_lost_config_of_a_run_is_told_with_the_copy_to_take(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "attempts.jsonl").write_text("")
    with pytest.raises(ConfigError, match="its config.yaml is missing.* Copy it back from where"):
        check_folder(tmp_path, CONFIG)
    for name in ("20260101-000000-train", "20260102-000000-train", "20260103-000000-evaluate"):
        (tmp_path / "slurm" / name).mkdir(parents=True)
        (tmp_path / "slurm" / name / "config.yaml").write_text("run: {name: a}")
    copy = tmp_path / "slurm/20260102-000000-train/config.yaml"
    with pytest.raises(ConfigError) as caught:
        check_folder(tmp_path, CONFIG)
    assert f"`cp {copy} {tmp_path}/config.yaml`" in str(caught.value)
