"""``lmscale demo``: the whole way on real text, by the commands that a person would type."""

from __future__ import annotations

import gzip
import lzma
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from lmscale.config import load_config
from lmscale.config.assets import find_assets
from lmscale.errors import EXIT_FINISHED, EXIT_RESUMABLE, ClusterError
from lmscale.files.jsonl import read_rows
from lmscale.runs.commits import read_commits

HELDOUT = Path("data/demo/corpus/pydocs/heldout")
RUN = Path("runs/demo")
STOP_AT_FRACTION = 0.5


def demo(
    config: Annotated[
        Path | None, typer.Option("--config", help="Default: the demo.yaml that lmscale brings.")
    ] = None,
) -> None:
    """Run the whole way on this Python's documentation: a few minutes on two CPU cores.

    Trains a tokenizer, builds shards, trains a small model, is stopped half-way as by a preemption,
    goes on with another number of ranks and another ZeRO stage, evaluates, samples, audits.
    """
    started = time.monotonic()
    path = config or find_config("demo.yaml")
    steps = load_config(path).train.steps
    first, second = _plan_ranks()
    _run_example("pydocs.py", "--out", "data/demo/raw")
    _run("corpus", "build", path)
    _run("tokenizer", "train", path)
    _run("shards", "build", path)
    _run("shards", "verify", "data/demo/shards/pydocs/train")
    if all(commit.step != steps for commit in read_commits(RUN)):
        _say("Training, to be stopped half-way as a preemption would")
        _train_until_stopped(path, first, stop_after=int(steps * STOP_AT_FRACTION))
        _say(f"Going on with {second} {'rank' if second == 1 else 'ranks'} and ZeRO 2 instead")
        _run("launch", "local", path, "--nproc", second, "--set", "engine.zero_stage=2")
    _say("The model on text it has not seen, and a sample from it")
    _run("evaluate", RUN)
    _run("generate", RUN, "--prompt", "Return the number of", "--max-tokens", "60", "--seed", "1")
    _say("Was every sample used exactly once, through the stop and the change of ranks?")
    _run("runs", "audit", RUN)
    _run_example("loss_curve.py", RUN)
    _summarize(path, time.monotonic() - started)


def find_config(name: str) -> Path:
    """Path of a configuration that comes with lmscale, in a checkout or an installed package."""
    return find_assets("configs") / name


def _plan_ranks() -> tuple[int, int]:
    """Ranks before and after the stop: 2 and 1, or 1 and 1 on a machine with a single GPU."""
    import torch

    if torch.cuda.is_available() and torch.cuda.device_count() == 1:
        return 1, 1  # NCCL takes one rank per GPU, so only the stage can change there
    return 2, 1


def _train_until_stopped(path: Path, num_ranks: int, *, stop_after: int) -> None:
    """Start training, and send SIGTERM once ``stop_after`` steps are in the ledger."""
    ledger = RUN / "ledger.jsonl"
    words = ["launch", "local", str(path), "--nproc", str(num_ranks)]
    with subprocess.Popen([sys.executable, "-m", "lmscale", *words]) as launcher:
        while launcher.poll() is None and len(read_rows(ledger)) < stop_after:
            time.sleep(0.2)
        if launcher.poll() is None:
            _say(f"kill -TERM {launcher.pid}")
            launcher.send_signal(signal.SIGTERM)
        code = launcher.wait()
    if code not in (EXIT_FINISHED, EXIT_RESUMABLE):
        raise typer.Exit(code)
    print(f"  exit code {code}", flush=True)


def _run(*arguments: object) -> None:
    words = list(map(str, arguments))
    print(f"\n$ lmscale {shlex.join(words)}", flush=True)
    _call("-m", "lmscale", *words)


def _run_example(name: str, *arguments: object) -> None:
    """Run a script of ``examples/``, as a person in a clone would."""
    words = list(map(str, arguments))
    print(f"\n$ python {shlex.join([f'examples/{name}', *words])}", flush=True)
    _call(str(find_assets("examples") / name), *words)


def _call(*arguments: str) -> None:
    code = subprocess.run([sys.executable, *arguments], check=False).returncode
    if code != EXIT_FINISHED:
        raise typer.Exit(code)


def _say(text: str) -> None:
    print(f"\n# {text}", flush=True)


def _summarize(path: Path, seconds: float) -> None:
    figures = _last_figures(RUN / "metrics.jsonl")
    name = "final/heldout"
    compressed = _bits_per_byte_of_compressors(HELDOUT).items()
    others = ", ".join(f"{tool} {value:.3f}" for tool, value in compressed)
    goodput = 100 * figures["speed/goodput"]
    _say("Summary")
    print(f"""\
  held-out loss {figures[f"{name}/loss"]:.3f} nats per token
  bits per byte {figures[f"{name}/bits_per_byte"]:.3f}   (the same text: {others})
  speed         {figures["speed/tokens_per_second"]:,.0f} tokens/s
  goodput       {goodput:.0f} % of the wall time, the restart included
  time          {seconds:.0f} s for all of the above

  Look:  runs/demo/loss.svg, in a browser; tensorboard --logdir runs/demo/events
  Next:  lmscale runs status runs/demo
         lmscale generate runs/demo --prompt "class Path"
         lmscale config show {path}
         README.md: your own text""")


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
