"""The datasets that a job will read are looked at before it is submitted."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from launcher.checks import check
from launcher.submit import prepare


def write_head(folder: Path, **keys: Any) -> None:
    """A dataset without shards, of which these checks read its manifest's first keys."""
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"shards": [], **keys}))


def test_datasets_that_do_not_go_together_are_told_before_a_job(options, slurm, tmp_path):
    heads = {"a": ("ab" * 32, 1), "b": ("ab" * 32, None), "held": ("cd" * 32, None)}
    for name, (fingerprint, bos_id) in heads.items():
        write_head(tmp_path / name, tokenizer_fingerprint=fingerprint, bos_id=bos_id)
    changed = replace(
        options,
        overrides=(
            f"stream.sources={{a: {{shards: {tmp_path}/a}}, b: {{shards: {tmp_path}/b}}}}",
            f"evaluation.sets={{held: {tmp_path}/held, other: {tmp_path}/b}}",
        ),
    )
    problems = [line for line in check(prepare(changed)).problems if "made with" in line]
    assert [line.partition(" Build")[0] for line in problems] == [
        "stream.sources.b: its shards were made with bos = None, those of stream.sources.a with 1.",
        "evaluation.sets.held: its shards were made with the tokenizer cdcdcdcdcdcd, those of "
        "stream.sources.a with abababababab.",
    ]


def test_a_dataset_without_what_the_objective_reads_is_told_before_a_job(options, slurm, tmp_path):
    labels = {"good": ["a", "b"], "bad": ["b", "a"]}
    for name, names in labels.items():
        write_head(tmp_path / name, labels={"kind": "classes", "names": names})
    changed = replace(
        options,
        overrides=(
            f"stream={{packing: best_fit, sources: {{a: {{shards: {tmp_path}/good}}}}}}",
            f"evaluation.sets={{held: {tmp_path}/bad}}",
            "objective={name: classes, names: [a, b]}",
            "model={family: encoder, layers: 1, width: 8, heads: 1, pooler: true, text_classes: 2}",
        ),
    )
    told = [line for line in check(prepare(changed)).problems if "the objective reads" in line]
    assert [line.partition(". Set")[0] for line in told] == [
        f"evaluation.sets.held: {tmp_path}/bad: the objective reads classes (a, b), but its "
        "documents have classes (b, a)"
    ]


def test_remote_shards_are_left_to_the_job(options, slurm):
    changed = replace(options, overrides=("stream.sources.a.shards=s3://bucket/a",))
    assert check(prepare(changed)).problems == []


def test_a_missing_shard_and_one_that_is_cut_short_are_told(options, slurm, tmp_path):
    shards = Path(yaml.safe_load(options.config.read_text())["stream"]["sources"]["a"]["shards"])
    copy = shutil.copytree(shards, tmp_path / "copy")
    changed = replace(options, overrides=(f"stream.sources.a.shards={copy}",))
    assert "what it reads exists, with all its shards" in check(prepare(changed)).passed
    first, *_, last = sorted(copy.glob("*.tar"))
    os.truncate(last, 10)
    first.unlink()
    (problem,) = check(prepare(changed)).problems
    assert f"{first.name} (No such file or directory)" in problem
    assert f"{last.name} (10 bytes in place of " in problem
