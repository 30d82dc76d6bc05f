"""Kill tiny runs over and over, resume them in another shape each time, and audit what they did.

    python tests/kills.py --kills 100 --seed 1

After every 20 kills another run begins, of a family and an objective that the seed draws
(recipes.py, labelled_data.py). Every attempt has a random number of ranks (1 to 4), ZeRO stage,
micro-batch and number of loader workers; SIGKILL falls at a random moment, on all ranks, on one
rank, or on the launcher. In the end each run is finished in peace, `lmscale runs audit` must find
it clean, and its ledger must equal, byte for byte, that of the same run without an interruption.
Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import kill
from pathlib import Path
from typing import Any

from forked_processes import Process
from labelled_data import LABELLED, build_labelled_data, labelled_recipe, labelled_tree
from recipes import RECIPES, draw_recipes
from tiny_run import (
    build_tiny_data,
    children_of,
    committed_steps,
    is_gone,
    launch,
    losses_of,
    run_lmscale,
    settings,
    start_lmscale,
    write_tiny_config,
)

from lmscale.config import RunConfig

VICTIMS = ("all ranks", "one rank", "the launcher")
# When the signal falls: a while after the start, after the attempt's first step, or inside a save.
# Start-ups cost the most time and can break the least, so they get the smallest share.
MOMENTS = (("starting", 15), ("stepping", 45), ("saving", 40))
PATIENCE_SECONDS = 180.0
END_SECONDS = 60.0  # by then every process of a killed attempt must be gone
KILLS_OF_A_RUN = 20
STEPS_AFTER = 3  # done in peace after the last kill
ENDLESS = 1_000_000  # steps; the real end is set after the last kill


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """The shape of one attempt and where its end is planned."""

    num_ranks: int
    stage: int
    micro_windows: int
    workers: int
    every_steps: int
    victim: str
    moment: str
    delay: float  # seconds after the moment was seen

    def overrides(self) -> dict[str, object]:
        return {
            "engine.zero_stage": self.stage,
            "batch.micro_windows": self.micro_windows,
            "stream.workers": self.workers,
            "checkpoint.every_steps": self.every_steps,
        }


class KillsFailed(SystemExit):  # noqa: N818 - it ends the script with its text
    pass


def plan_attempt(seed: int, number: int) -> Attempt:
    draw = random.Random(f"{seed}/{number}")
    names, shares = zip(*MOMENTS, strict=True)
    moment = draw.choices(names, shares)[0]
    longest = {"starting": 8.0, "stepping": 1.0, "saving": 0.03}[moment]
    return Attempt(
        num_ranks=draw.choice((1, 2, 3, 4)),
        stage=draw.choice((0, 1, 2, 3)),
        micro_windows=draw.choice((1, 2, 3, 12)),
        workers=draw.choice((0, 1, 2)),
        every_steps=draw.choice((1, 2)),
        victim=draw.choice(VICTIMS),
        moment=moment,
        delay=draw.uniform(0, longest),
    )


class Killer:
    """Starts attempts on one run folder and kills them."""

    def __init__(self, folder: Path, config: Path, seed: int) -> None:
        self.folder, self.config, self.seed = folder, config, seed
        self.run = folder / "run"
        self.inside_saves = 0  # kills that left a checkpoint without its manifest

    def attempt(self, number: int) -> str:
        """One start and its violent end, told in a line."""
        plan = plan_attempt(self.seed, number)
        before = self.last_checkpoint()
        leftovers = self.uncommitted()
        log = self.folder / "logs" / f"attempt-{number:04d}.log"
        began = time.monotonic()
        launcher = start_lmscale(
            *("launch", "local", self.config, "--nproc", str(plan.num_ranks)),
            *settings({"train.steps": ENDLESS, **plan.overrides()}),
            output=log,
        )
        try:
            self.await_moment(plan, launcher, leftovers, log)
            time.sleep(plan.delay)
            seconds = time.monotonic() - began
            self.kill(plan, launcher, random.Random(f"{self.seed}/{number}/victim"), log)
        finally:
            launcher.kill()
            launcher.wait()
        is_inside = bool(self.uncommitted() - leftovers)
        self.inside_saves += is_inside
        return (
            f"kill {number:3d}  {plan.num_ranks} ranks, ZeRO {plan.stage}, micro-batch "
            f"{plan.micro_windows:2d}, {plan.workers} workers: {plan.victim} killed {plan.moment} "
            f"+{1000 * plan.delay:4.0f} ms, {seconds:5.1f} s after the start; checkpoint of step "
            f"{before} -> {self.last_checkpoint()}{', a save torn' if is_inside else ''}"
        )

    def await_moment(
        self,
        plan: Attempt,
        launcher: Process,
        leftovers: set[tuple[str, int]],
        log: Path,
    ) -> None:
        if plan.moment == "starting":
            return
        starts = self.count_lines("attempts.jsonl", '"start"')
        self.until(launcher, log, lambda: self.count_lines("attempts.jsonl", '"start"') > starts)
        rows = self.count_lines("ledger.jsonl")
        self.until(launcher, log, lambda: self.count_lines("ledger.jsonl") > rows)
        if plan.moment == "saving":
            self.until(launcher, log, lambda: bool(self.uncommitted() - leftovers), pause=0.0)

    def until(
        self,
        launcher: Process,
        log: Path,
        condition: Callable[[], bool],
        pause: float = 0.01,
    ) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if launcher.poll() is not None:
                raise KillsFailed(
                    f"an attempt ended by itself, with exit code {launcher.returncode}:\n"
                    f"{log.read_text()[-4000:]}"
                )
            if time.monotonic() > deadline:
                raise KillsFailed(f"an attempt hangs:\n{log.read_text()[-4000:]}")
            time.sleep(pause)

    def kill(self, plan: Attempt, launcher: Process, draw: random.Random, log: Path) -> None:
        """Kill the victim, and see that everything else ends too."""
        ranks = list(children_of(launcher.pid))
        family = [*ranks, *(child for rank in ranks for child in children_of(rank))]
        if plan.victim == "the launcher" or not ranks:
            victims = [launcher.pid]
        else:
            victims = ranks if plan.victim == "all ranks" else [draw.choice(ranks)]
        for pid in victims:
            try:
                kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                raise KillsFailed(
                    f"process {pid} had ended by itself:\n{log.read_text()[-4000:]}"
                ) from None
        deadline = time.monotonic() + END_SECONDS
        while launcher.poll() is None or not all(map(is_gone, family)):
            if time.monotonic() > deadline:
                left = [pid for pid in family if not is_gone(pid)]
                raise KillsFailed(f"{left} outlived the kill of {plan.victim} {victims}")
            time.sleep(0.01)

    def count_lines(self, name: str, marker: str = "\n") -> int:
        try:
            return (self.run / name).read_text().count(marker)
        except FileNotFoundError:
            return 0

    def uncommitted(self) -> set[tuple[str, int]]:
        """Checkpoint folders without a manifest: a save is under way there, or was torn.

        With their inodes, because the same step is saved into a new folder of the same name.
        """
        found = set()
        for folder in (self.run / "checkpoints").glob("step-*"):
            try:
                if not (folder / "manifest.json").exists():
                    found.add((folder.name, folder.stat().st_ino))
            except FileNotFoundError:  # removed between two looks
                continue
        return found

    def last_checkpoint(self) -> int:
        return max(committed_steps(self.run), default=0)


def run_kills(folder: Path, *, kills: int, seed: int) -> None:
    """Kill, finish, audit, compare, run after run. Raises ``KillsFailed`` with the reason."""
    data = folder / "data"
    if not data.exists():
        build_tiny_data(data)
    firsts = range(1, kills + 1, KILLS_OF_A_RUN)
    drawn = draw_recipes(seed, len(firsts), RECIPES | LABELLED)
    for recipe, first in zip(drawn, firsts, strict=True):
        numbers = range(first, min(first + KILLS_OF_A_RUN, kills + 1))
        kill_run(folder / f"from-{first}", data, recipe, numbers, seed=seed)


def settings_of(recipe: str, labelled: Path) -> Mapping[str, Any]:
    """A recipe's settings; ``labelled``: where documents that carry something are, or will be."""
    if recipe in RECIPES:
        return RECIPES[recipe]
    if not labelled.exists():
        build_labelled_data(labelled)
    return labelled_recipe(recipe, RunConfig.model_validate(labelled_tree(labelled)))


def kill_run(folder: Path, data: Path, recipe: str, numbers: range, *, seed: int) -> None:
    """The attempts of these numbers on a run of a recipe, and what must be true of it then."""
    overrides = settings_of(recipe, folder.parent / "labelled")
    began = time.monotonic()
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    config = write_tiny_config(folder / "killed.yaml", data, folder / "run", overrides)
    killer = Killer(folder, config, seed)
    print(f"a run of {recipe}, seed {seed}", flush=True)
    for number in numbers:
        print(killer.attempt(number), flush=True)
    steps = killer.last_checkpoint() + STEPS_AFTER
    check(launch(config, 2, {"train.steps": steps, "engine.zero_stage": 1}), "finishing in peace")
    check(run_lmscale("runs", "audit", killer.run), "the audit")
    undisturbed = write_tiny_config(folder / "calm.yaml", data, folder / "calm", overrides)
    check(launch(undisturbed, 1, {"train.steps": steps}), "the uninterrupted run")
    ledgers = [(place / "ledger.jsonl").read_bytes() for place in (killer.run, folder / "calm")]
    if ledgers[0] != ledgers[1]:
        raise KillsFailed("the ledger is not that of an uninterrupted run")
    last = [losses_of(place)[steps] for place in (killer.run, folder / "calm")]
    print(
        f"{recipe}: {len(numbers)} kills in {time.monotonic() - began:.0f} s, "
        f"{killer.inside_saves} of them tore a save; {steps} steps done. Audit clean, ledger equal "
        f"to an uninterrupted run's. Loss of the last step: {last[0]:.6f}, uninterrupted "
        f"{last[1]:.6f}."
    )


def check(ended, what: str) -> None:
    if ended.code != 0:
        raise KillsFailed(f"{what} ended with exit code {ended.code}:\n{ended.output[-4000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lmscale-kills-") as temporary:
        folder = arguments.folder or Path(temporary)
        run_kills(folder, kills=arguments.kills, seed=arguments.seed)


if __name__ == "__main__":
    sys.exit(main())
