"""What commands answer where torch cannot be loaded: all that files and settings alone tell."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from handmade_runs import STEP, make_run
from tiny_run import log_commit, tiny_config, write_tiny_config

from lmscale.cli import app as commands
from lmscale.files.jsonl import append_row
from lmscale.tokenizer.codec import load_tokenizer

ROOT = Path(__file__).parents[2]
# One process for all commands, each a line of standard input; out comes a line for each.
ASK = """
import contextlib, io, json, sys, traceback
from importlib.machinery import ModuleSpec

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "transformers", "lm_eval", "deepspeed"):
            return ModuleSpec(name, self)  # it is installed

    def create_module(self, spec):
        raise AssertionError(f"{spec.name} was loaded")

    def exec_module(self, module): ...

sys.meta_path.insert(0, NoTorch())
from lmscale.cli.main import main

for line in sys.stdin:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main(json.loads(line))
        except BaseException:
            code = traceback.format_exc()
    print(json.dumps([code, said.getvalue()]), flush=True)
"""
# Command and what it says; {run} has a checkpoint of step 7, {none} and {bare} have none, {full} is
# a folder of somebody's. With an exit code where it is not 2, a user's mistake.
CASES = (
    ("init {none} --yes", "no such file"),
    ("init {config} --yes --gpus 0 --out {made}", "is written", 0),
    ("corpus build {none}.yaml", "no such configuration file"),
    ("corpus show {config}", "documents", 0),
    ("corpus dropped {config} --source z", "Known: a, b"),
    ("plan {config} --gpu h100-80gb --gpus-per-node 4", "MFU", 0),
    ("plan {config} --gpu h1000", "h1000"),
    ("corpus status {config} --tasks 2", "nothing is missing", 0),
    ("tokenizer train {config}", "fingerprint", 0),
    ("tokenizer import {none} --out {new}", "{none}"),
    ("tokenizer show {config}", "tokens", 0),
    ("tokenizer compare {config} --text {config}", "tokens", 0),
    ("shards build {config}", "tokens", 0),
    ("shards status {config} --tasks 2", "nothing is missing", 0),
    ("shards show {shards}", "tokens", 0),
    ("shards verify {shards}", "sound", 0),
    ("shards verify {none}", "{none}"),
    ("stream show {config}", "samples", 0),
    ("stream digest {config} --steps 0:2", "digest", 0),
    ("stream digest {config} --steps x", "--steps x"),
    ("checkpoint list {run}", "committed", 0),
    ("checkpoint show {run}", "weights", 0),
    ("checkpoint verify {run}", "whole", 0),
    ("checkpoint prune {run} --dry-run", "nothing to remove", 0),
    ("checkpoint list {none}", "not a run's folder"),
    ("checkpoint show {run} --step 99", "no checkpoint of step 99. There are: 7"),
    ("import hf {none} --out {new}", "{none}"),
    ("import hf {none} --out {full}", "is there already"),
    ("train {none}.yaml", "no such configuration file"),
    ("finetune {none}.yaml", "no such configuration file"),
    (
        "finetune {config}",
        "is the whole configuration of a run: train it with `lmscale launch local",
    ),
    ("train {config} --set model.width=x", "model.width"),
    ("suite make {none}.yaml --out {new}", "no such configuration file"),
    ("evaluate {none}", "not a run's folder"),
    ("evaluate {bare}", "no checkpoint yet"),
    ("evaluate {run} --step 99", "no checkpoint of step 99"),
    ("evaluate {run} --set-name nope", "no set 'nope'. Known: heldout"),
    ("evaluate {run} --weights average", "no average"),
    ("evaluate {run} --baseline unigram", "--baseline unigram"),
    ("evaluate {run} --errors 3", "--errors is of objectives that tell"),
    ("evaluate {run} --limit 3", "give --tasks"),
    (
        "evaluate {run} --written",
        "it takes a run of pairs, completion or dialogue, and this one has causal",
    ),
    ("evaluate {run} --written --baseline ngram", "Make it two commands"),
    ("evaluate {run} --examples 2", "give --written as well"),
    ("evaluate {run} --hf {none}", "{none}"),
    ("evaluate {none} --tasks arc_easy", "not a run's folder"),
    ("evaluate {run} --tasks arc_easy --step 99", "no checkpoint of step 99"),
    ("evaluate {damaged}", "hash"),
    ("generate {none}", "not a run's folder"),
    ("generate {run} --step 99", "no checkpoint of step 99"),
    ("generate {run} --temperature -1", "temperature"),
    ("generate {run} --suffix x", "--suffix"),
    ("generate {run} --prompt x --max-tokens 0", "max_tokens"),
    ("answer {run}", "Give --question and --context, or --questions"),
    ("answer {run} --questions {config}", "this run finds no answers in a context"),
    ("answer {none} --questions {config}", "not a run's folder"),
    ("chat {none}", "not a run's folder"),
    ("chat {run}", "no chat model: it has no chat template, as its objective is causal"),
    ("chat {run} --template chatlm", "Did you mean chatml?"),
    ("chat {run} --template chatml", "the tokenizer has no such special token"),
    ("chat {run} --top-p 2", "top_p"),
    ("show tokens {run} --text hello", "tokens", 0),
    ("show next {none} --text hello", "not a run's folder"),
    ("show next {run} --text hello --step 99", "no checkpoint of step 99"),
    ("show attention {run} --text hello --part x", "own, read, cross"),
    ("show attention {run} --text hello --out {new}", ".svg or .html"),
    ("probe privacy {none}", "not a run's folder"),
    ("probe privacy {run}", "make 100 tokens, but the run's windows have 32"),
    ("probe privacy {bare} --prompt-tokens 8 --length 8", "has read nothing of its own"),
    ("probe bias {run} --templates {none}", "{none}"),
    ("probe bias {run} --language fr", "--language fr: the file has en, zh"),
    ("probe bias {run} --step 99", "no checkpoint of step 99"),
    ("export {none} --out {new}", "not a run's folder"),
    ("export {run} --out {full}", "lmscale did not write it"),
    ("export {run} --out {new} --step 99", "no checkpoint of step 99"),
    ("export {run} --out {new} --dtype q8_0", "--format gguf"),
    ("export {run} --out {new} --format peft", "--base"),
    ("export {run} --out {full}/mine --format gguf", "lmscale did not write it"),
    ("quantize {none} --out {new}", "not a run's folder"),
    ("quantize {run} --out {new} --bits 3", "give 8 or 4"),
    ("quantize {run} --out {new} --step 99", "no checkpoint of step 99"),
    ("quantize {run} --out {full}/mine", "lmscale did not write it"),
    ("prune {none} new --share 0.5", "not a run's folder"),
    ("prune {run} new --share 1.5", "--share 1.5"),
    ("prune {run} new --share 0.5 --step 99", "no checkpoint of step 99"),
    ("prune {run} new --share 0.5 --set-name nope", "no set 'nope'. Known: heldout"),
    ("distill {none} new --layers 1", "not a run's folder"),
    ("distill {run} new --layers 1 --data {none}.yaml", "no such configuration file"),
    ("compare {none}", "not a run's folder"),
    ("compare {run}@99", "no checkpoint of step 99"),
    ("compare {run} {none}.gguf", "no such file"),
    ("launch local {none}.yaml --nproc 1", "no such configuration file"),
    ("launch slurm {config} --cluster {none} --nodes 1 --dry-run", "{none}"),
    ("launch slurm first_gpu --cluster {profile} --nodes 8 --dry-run", "#SBATCH", 0),
    ("runs list {runs}", "run", 0),
    ("runs status {run}", "checkpoints", 0),
    ("runs status {none}", "not a run's folder"),
    ("runs logs {none}", "no such folder"),
    ("runs audit {none}", "not a run's folder"),
    ("runs cancel {none}", "not a run's folder"),
    ("config show {config}", "optimizer", 0),
    ("config show {config} --set model.widht=3", "width"),
    ("doctor --nonsense", "No such option"),
    ("demo --nonsense", "No such option"),
)


@pytest.fixture(scope="module")
def places(tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("without-torch")
    overrides = {"evaluation.sets": {"heldout": str(tiny_data / "shards/a/heldout")}}
    run, bare = folder / "runs" / "run", folder / "runs" / "bare"
    config = tiny_config(tiny_data, run, overrides)
    make_run(config, load_tokenizer(config.tokenizer.folder))
    for step in range(STEP):
        append_row(run / "ledger.jsonl", {"step": step})
    log_commit(run, STEP)
    damaged = shutil.copytree(run, folder / "damaged")
    file = next(damaged.glob("checkpoints/*/*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    shutil.copytree(run, bare, ignore=shutil.ignore_patterns("step-*", "*.jsonl"))
    (folder / "full").mkdir()
    (folder / "full" / "mine").write_text("somebody's")
    return {
        "none": folder / "none",
        "new": folder / "new",
        "made": folder / "made.yaml",
        "full": folder / "full",
        "runs": folder / "runs",
        "run": run,
        "bare": bare,
        "damaged": damaged,
        "profile": ROOT / "slurm/profiles/example.yaml",
        "shards": tiny_data / "shards",
        "config": write_tiny_config(folder / "c.yaml", tiny_data, folder / "unused", overrides),
    }


@pytest.fixture(scope="module")
def answers(places):
    lines = [json.dumps([w.format(**places) for w in case[0].split()]) for case in CASES]
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_what_files_tell_is_told_without_torch(answers, places, case):
    _, words, *code = case
    assert answers[case][0] == (code or [2])[0], answers[case]
    assert words.format(**places) in " ".join(answers[case][1].split())


def test_every_command_is_asked():
    assert {case[0].split()[0] for case in CASES} == set(commands.COMMANDS)
