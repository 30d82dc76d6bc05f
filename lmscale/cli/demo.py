"""``lmscale demo``: the whole way on real text, by the commands that a person would type."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from lmscale.cli.demo_plan import (
    MIN_STEPS,
    PLANNED,
    PROMISED_MINUTES,
    Machine,
    Schedule,
    Trial,
    plan_machine,
    plan_overrides,
    plan_steps,
    try_steps,
)
from lmscale.config import RunConfig, load_config
from lmscale.config.assets import find_assets, find_config
from lmscale.errors import EXIT_FINISHED, EXIT_RESUMABLE, ClusterError
from lmscale.files.jsonl import read_rows
from lmscale.files.run_files import CONFIG_FILE
from lmscale.runs.commits import read_commits

HELDOUT = Path("data/demo/corpus/pydocs/heldout")
RUN = Path("runs/demo")
STOP_AT_FRACTION = 0.5


def demo(
    config: Annotated[
        Path | None, typer.Option("--config", help="Default: the demo.yaml that lmscale brings.")
    ] = None,
) -> None:
    """Run the whole way on this Python's documentation: less than 8 minutes on two CPU cores.

    Trains a tokenizer, builds shards, trains a small model, is stopped half-way as by a preemption,
    goes on with another number of ranks and another ZeRO stage, evaluates, samples, audits. How
    long that will take is measured beforehand; a slow machine takes fewer steps.
    """
    started = time.monotonic()
    path = find_config(config or Path("demo"))
    _run_example("pydocs.py", "--out", "data/demo/raw")
    _run("corpus", "build", path)
    _run("tokenizer", "train", path)
    _run("shards", "build", path)
    _run("shards", "verify", "data/demo/shards/pydocs/train")
    machine = _train(path, started)
    threads = machine.environment(1)
    _say("The model on text it has not seen, and a sample from it")
    scores = _ask("evaluate", RUN, "--baseline", "ngram", "--json", environment=threads)
    prompt = ("--prompt", "Return the number of", "--max-tokens", "60", "--seed", "1")
    _run("generate", RUN, *prompt, environment=threads)
    _say("Was every sample used exactly once, through the stop and the change of ranks?")
    _run("runs", "audit", RUN)
    _run_example("loss_curve.py", RUN)
    _summarize(path, time.monotonic() - started, ngram=scores["heldout"]["ngram"])


def _train(path: Path, started: float) -> Machine:
    """Train what is left of the run: half of it, then the rest otherwise."""
    _say("What this machine can do")
    machine = plan_machine()
    print(f"  {machine.described}", flush=True)
    frozen = RUN / CONFIG_FILE
    is_begun = frozen.is_file()
    config = load_config(frozen if is_begun else path)
    if any(commit.step == config.train.steps for commit in read_commits(RUN)):
        return machine
    if is_begun:  # as it was planned then
        settings = {key: _setting(config, key) for key in PLANNED}
    else:
        trial = try_steps(path, machine)
        passed = time.monotonic() - started
        schedule = plan_steps(trial, machine, wanted=config.train.steps, passed_seconds=passed)
        settings = plan_overrides(config, machine, schedule)
        _describe_schedule(trial, schedule, config.train.steps)
    changed = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    steps = int(str(settings.get("train.steps", config.train.steps)))
    first, second = machine.ranks
    words = ["launch", "local", str(path), "--nproc", str(first), *changed]
    _say("Training, to be stopped half-way as a preemption would")
    _train_until_stopped(words, machine.environment(0), stop_after=int(steps * STOP_AT_FRACTION))
    _say(f"Going on with {second} {'rank' if second == 1 else 'ranks'} and ZeRO 2 instead")
    words = ["launch", "local", str(path), "--nproc", str(second), *changed]
    _run(*words, "--set", "engine.zero_stage=2", environment=machine.environment(1))
    return machine


def _describe_schedule(trial: Trial, schedule: Schedule, wanted: int) -> None:
    minutes = schedule.seconds / 60
    steps = f"{schedule.steps} steps"
    if schedule.steps < wanted:
        steps += f" instead of {wanted}"
        steps += f", to end within {PROMISED_MINUTES} minutes" if schedule.steps > MIN_STEPS else ""
    print(
        f"  a step took {trial.step_seconds:.2g} s in a trial: {steps}. From here it will take "
        f"about {minutes:.1f} minutes.",
        flush=True,
    )


def _setting(config: RunConfig, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return "null" if value is None else value


def _train_until_stopped(
    words: Sequence[str], environment: Mapping[str, str], *, stop_after: int
) -> None:
    """Start training, and send SIGTERM once ``stop_after`` steps are in the ledger."""
    ledger = RUN / "ledger.jsonl"
    _show(words)
    argv = [sys.executable, "-m", "lmscale", *words]
    with subprocess.Popen(argv, env=os.environ | environment) as launcher:
        while launcher.poll() is None and len(read_rows(ledger)) < stop_after:
            time.sleep(0.2)
        if launcher.poll() is None:
            _say(f"kill -TERM {launcher.pid}")
            launcher.send_signal(signal.SIGTERM)
        code = launcher.wait()
    if code not in (EXIT_FINISHED, EXIT_RESUMABLE):
        raise typer.Exit(code)
    print(f"  exit code {code}", flush=True)


def _run(*arguments: object, environment: Mapping[str, str] | None = None) -> None:
    words = list(map(str, arguments))
    _show(words)
    _call("-m", "lmscale", *words, environment=environment)


def _ask(*arguments: object, environment: Mapping[str, str]) -> Any:
    """Run a command that answers in JSON, show the answer and return it."""
    words = list(map(str, arguments))
    _show(words)
    argv = [sys.executable, "-m", "lmscale", *words]
    answer = subprocess.run(argv, env=os.environ | environment, stdout=subprocess.PIPE, check=False)
    if answer.returncode != EXIT_FINISHED:
        raise typer.Exit(answer.returncode)
    print(answer.stdout.decode(), end="", flush=True)
    return json.loads(answer.stdout)


def _show(words: Sequence[str]) -> None:
    print(f"\n$ lmscale {shlex.join(words)}", flush=True)


def _run_example(name: str, *arguments: object) -> None:
    """Run a script of ``examples/``, as a person in a clone would."""
    words = list(map(str, arguments))
    print(f"\n$ python {shlex.join([f'examples/{name}', *words])}", flush=True)
    _call(str(find_assets("examples") / name), *words)


def _call(*arguments: str, environment: Mapping[str, str] | None = None) -> None:
    argv, variables = [sys.executable, *arguments], os.environ | (environment or {})
    code = subprocess.run(argv, env=variables, check=False).returncode
    if code != EXIT_FINISHED:
        raise typer.Exit(code)


def _say(text: str) -> None:
    print(f"\n# {text}", flush=True)


def _summarize(path: Path, seconds: float, *, ngram: float) -> None:
    figures = _last_figures(RUN / "metrics.jsonl")
    name = "final/heldout"
    compressed = _bits_per_byte_of_compressors(HELDOUT).items()
    others = ", ".join(f"{tool} {value:.3f}" for tool, value in compressed)
    loss = figures[f"{name}/loss"]
    goodput = 100 * figures["speed/goodput"]
    wanted = load_config(path).train.steps
    _say("Summary")
    print(f"""\
  trained       {figures["step"]:,} of the {wanted:,} steps of {path.name}
  held-out loss {loss:.3f} nats per token   (a trigram counted on what it has read: {ngram:.3f})
  bits per byte {figures[f"{name}/bits_per_byte"]:.3f}   (the same text: {others})
  speed         {figures["speed/targets_per_second"]:,.0f} tokens/s
  goodput       {goodput:.0f} % of the wall time, the restart included
  time          {seconds:.0f} s for all of the above

  Look:  runs/demo/loss.svg, in a browser; or tensorboard --logdir runs
         and http://localhost:6006/#custom_scalars
  Next:  lmscale runs status runs/demo
         lmscale generate runs/demo --prompt "class Path"
         lmscale config show {path}
         lmscale init FILES    a configuration for your own text""")


def _last_figures(path: Path) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for row in read_rows(path):
        figures |= row
    if "final/heldout/loss" not in figures:
        raise ClusterError(f"{path} holds no evaluation of the set heldout; is it the demo's run?")
    return figures


def _bits_per_byte_of_compressors(folder: Path) -> dict[str, float]:
    """Bits per byte of general compressors, at their strongest level, on the same documents."""
    from lmscale.corpus.documents import read_documents

    text = "\n".join(read_documents(folder)).encode()
    return {
        "gzip": 8 * len(gzip.compress(text, 9)) / len(text),
        "xz": 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text),
    }
