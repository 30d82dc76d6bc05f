"""Break a small training run again and again, in every way that is known, and prove it whole.

    python tests/chaos.py --faults 1000 --seed 1

Four runs, each of a family of models and an objective that the seed draws (recipes.py), go on and
on while faults hit them (chaos_plan.py): several in a start, one of them deadly, on 1 to 4 ranks,
ZeRO 0 to 3, with any micro-batch, loader workers, saves in the background or not. Between two
starts checkpoints are cut, altered or lose their manifest, torn folders and half a row of the
ledger are left. After every start its exit code must be the documented one, and the next one must
go on from the newest checkpoint that is whole, as this script finds by itself. In the end
`lmscale runs audit` must find the run clean, and its ledger must equal, byte for byte, that of the
same run without a fault; in the family of one topology also its weights, bit for bit.

The ranks are forked from this process, so a start costs two seconds. Linux only.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: several ranks a core

import argparse
import collections
import hashlib
import json
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chaos_plan import FAMILIES, Attempt, Family, plan_attempt
from fork_server import load_everything
from forked_starts import Ended, ForkedStart, fork
from recipes import RECIPES, draw_recipes
from tiny_run import build_tiny_data, committed_steps, ledger_of, settings, write_tiny_config

STEPS_AFTER = 3  # done in peace after the last fault
LOSS_TOLERANCE = 1e-3  # of the last losses, after starts of any topology
TINY = {
    "run.allow_faults": True,
    "checkpoint.keep_last": 3,
    "engine.optimizer": {"lr": 3.0e-4},  # calm, so that rounding does not grow over the steps
}


class ChaosFailed(SystemExit):  # noqa: N818 - it ends the script with its text
    pass


@dataclass(kw_only=True)
class Tally:
    """What a family's run has gone through."""

    kinds: collections.Counter[str] = field(default_factory=collections.Counter)
    starts: int = 0
    lost_steps: int = 0  # done again, because no checkpoint had them
    walked_back: int = 0  # starts that passed over a damaged checkpoint
    codes: collections.Counter[int] = field(default_factory=collections.Counter)

    @property
    def faults(self) -> int:
        return sum(self.kinds.values())


class Chaos:
    """One family's run, started and broken over and over."""

    def __init__(self, family: Family, recipe: str, *, folder: Path, data: Path, seed: int) -> None:
        self.family, self.folder, self.seed = family, folder, seed
        folder.mkdir(parents=True, exist_ok=True)
        self.run = folder / "run"
        overrides = {**RECIPES[recipe], **TINY, **as_remote(data, folder)}
        self.config = write_tiny_config(folder / "chaos.yaml", data, self.run, overrides)
        self.tally = Tally()

    def attempt(self, number: int) -> None:
        """One start, its violent end, and what it left."""
        before = self.newest_whole()
        plan = plan_attempt(
            self.family, self.seed, number, start=before, is_to_rewind=self.is_to_rewind()
        )
        starts, rows = len(self.first_steps()), self.ledger()
        ended = self.start(plan)
        steps = self.first_steps()[starts:]
        if steps and steps[0] != before:
            self.fail(plan, ended, f"it went on from step {steps[0]} instead of {before}")
        if ended.code not in plan.codes:
            self.fail(plan, ended, f"it ended with {ended.code} instead of {plan.codes}")
        struck = self.struck(plan)
        if plan.is_deadly_injected and struck.get(plan.faults[-1].partition(":")[0], 0) < 1:
            if plan.deadly != "hang" or ": the run ends" not in ended.output:
                self.fail(plan, ended, f"{plan.faults[-1]} has not struck")
        done, after = self.steps_done(), self.newest_whole()
        # Killed before it has opened the ledger, it has done none of the steps that are there.
        has_begun = bool(steps) and self.ledger() != rows
        least = max(before, done - plan.max_lost_steps) if has_begun else before
        if after < least and not plan.is_cut:
            self.fail(plan, ended, f"step {after} is its newest checkpoint, at step {done}")
        if plan.deadly == "stop" and after != done:
            self.fail(plan, ended, f"asked to stop after step {done}, it has saved step {after}")
        damage = self.damage(plan)
        if not plan.is_deadly_injected:
            struck[plan.deadly] += 1
        if damage:
            struck[f"disk: {damage}"] += 1
        left = self.newest_whole()
        self.tally.starts += 1
        self.tally.kinds += struck
        self.tally.codes[ended.code] += 1
        self.tally.lost_steps += max(0, done - left)
        self.tally.walked_back += left < max(committed_steps(self.run), default=0)
        told = ", ".join(f"{kind} ×{n}" if n > 1 else kind for kind, n in sorted(struck.items()))
        print(
            f"{self.family.name} {number:4d}  {plan.num_ranks} ranks, ZeRO "
            f"{plan.overrides['engine.zero_stage']}: {told} ({plan.deadly}); exit "
            f"{ended.code}, {ended.seconds:4.1f} s, steps {before} to {done}, goes on from {left}",
            flush=True,
        )

    def start(self, plan: Attempt) -> Ended:
        start = ForkedStart(
            ["train", self.config, *settings(plan.overrides)],
            num_ranks=plan.num_ranks,
            logs=self.folder / "logs",
            environment={"LMSCALE_FAULTS": ";".join(plan.faults)},
        )
        try:
            if plan.deadly == "kill from outside":
                time.sleep(plan.delay)
                start.kill(plan.victims)
            elif plan.deadly == "stop":
                self.ask_to_stop(start, plan)
            return start.wait()
        finally:
            start.close()

    def ask_to_stop(self, start: ForkedStart, plan: Attempt) -> None:
        starts = len(self.first_steps())
        while start.is_running() and len(self.first_steps()) == starts:
            start.reap()
            time.sleep(0.01)
        wanted = self.steps_done() + plan.steps
        while start.is_running() and self.steps_done() < wanted:
            start.reap()
            time.sleep(0.01)
        victim = plan.victims[0]
        if start.is_running():
            os.kill(start.pids[victim], random.Random(plan.number).choice(STOP_SIGNALS))

    def damage(self, plan: Attempt) -> str:
        """Do to the disk what the plan says, where enough is left to go on; returns what it was."""
        draw = random.Random(f"{self.seed}/{self.family.name}/{plan.number}/disk")
        whole = [step for step in committed_steps(self.run) if self.is_whole(step)]
        newest = self.folder_of(whole[-1]) if len(whole) > 1 else None
        if plan.damage == "torn":
            torn = self.folder_of(self.steps_done() + draw.choice((0, 1)))
            if torn.exists() or not (self.run / "config.yaml").exists():
                return ""  # a run freezes its configuration before it saves
            torn.mkdir(parents=True)
            (torn / "rank-00000.safetensors").write_bytes(draw.randbytes(5000))
        elif plan.damage == "ledger":
            return self.tear_ledger(whole[-1] if whole else 0, draw)
        elif newest is None or plan.damage == "none":
            return ""
        elif plan.damage == "manifest":
            (newest / "manifest.json").unlink()
        else:
            path = draw.choice(sorted(newest.iterdir()))
            content = bytearray(path.read_bytes())
            if plan.damage == "flip":
                content[draw.randrange(len(content) - 1)] ^= 1 << draw.randrange(8)
            else:
                del content[draw.randrange(len(content) - 1) :]
            path.write_bytes(content)
            if self.is_whole(int(newest.name.removeprefix("step-"))):
                self.fail(plan, None, f"{path} is damaged, and found whole")
        return plan.damage

    def tear_ledger(self, saved: int, draw: random.Random) -> str:
        """Half a row is left of the last one; only of those that no checkpoint vouches for."""
        path = self.run / "ledger.jsonl"
        rows = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if len(rows) <= saved:
            return ""
        path.write_bytes(b"".join(rows[:-1]) + rows[-1][: draw.randrange(1, len(rows[-1]))])
        return "ledger"

    def newest_whole(self) -> int:
        """The step that the next start must go on from; 0 for the beginning."""
        return next((s for s in reversed(committed_steps(self.run)) if self.is_whole(s)), 0)

    def is_whole(self, step: int) -> bool:
        """Whether every byte of a checkpoint is as its manifest says, by a look of our own.

        And whether it is of the branch on which the run is, where it was rewound.
        """
        from lmscale.checkpoint.manifest import parse_manifest
        from lmscale.errors import LmscaleError
        from lmscale.history.history import is_undone, read_rewinds

        path = self.folder_of(step) / "manifest.json"
        try:
            manifest = parse_manifest(path.read_text(encoding="utf-8"), path)
        except (LmscaleError, OSError, UnicodeDecodeError):
            return False
        if is_undone(step, manifest.rewinds, read_rewinds(self.run)):
            return False
        return manifest.is_finite and all(
            (path.parent / entry.name).is_file()
            and hashlib.sha256((path.parent / entry.name).read_bytes()).hexdigest() == entry.sha256
            for entry in manifest.files
        )

    def num_rewinds(self) -> int:
        from lmscale.history.history import read_rewinds

        return len(read_rewinds(self.run))

    def is_to_rewind(self) -> bool:
        """Whether what this family is for has not happened yet."""
        return self.family.is_rewound and self.num_rewinds() == 0

    def folder_of(self, step: int) -> Path:
        return self.run / "checkpoints" / f"step-{step:09d}"

    def first_steps(self) -> list[int]:
        """How many steps every start found done, of those that came so far as to say it."""
        path = self.run / "attempts.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        rows = [json.loads(line) for line in lines]
        return [row["first_step"] for row in rows if row["event"] == "start"]

    def steps_done(self) -> int:
        """As the ledger says, a torn row left out."""
        return self.ledger().count(b"\n")

    def ledger(self) -> bytes:
        path = self.run / "ledger.jsonl"
        return path.read_bytes() if path.exists() else b""

    def struck(self, plan: Attempt) -> collections.Counter[str]:
        """How many of the attempt's faults of each kind have struck, as the run wrote it down."""
        path = self.run / "faults.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        names = [json.loads(line)["fault"] for line in lines]
        mine = {name for name in names if re.search(rf",id={plan.number}\.\d+$", name)}
        return collections.Counter(name.partition(":")[0] for name in mine)

    def fail(self, plan: Attempt, ended: Ended | None, what: str) -> None:
        raise ChaosFailed(
            f"{self.family.name}, attempt {plan.number} (seed {self.seed}): {what}.\n{plan}\n"
            f"{ended.output[-6000:] if ended else ''}"
        )

    def finish(self) -> str:
        """A last start in peace; then everything must be as if nothing had ever happened."""
        # Beyond the newest also where that is damaged: a run that is to end before it is refused.
        steps = max(committed_steps(self.run), default=0) + STEPS_AFTER
        last = {"train.steps": steps, "engine.zero_stage": 1, **self.family.settings}
        num_ranks = 2 if self.family.is_fixed else 1
        if not self.family.is_fixed:
            last["batch.micro_windows"] = 12  # a step at once
        self.peace(["train", self.config, *settings(last)], num_ranks)
        self.peace(["runs", "audit", self.run], 1)
        if len(ledger_of(self.run)) != steps:
            raise ChaosFailed(f"the ledger has {len(ledger_of(self.run))} rows of {steps} steps")
        weights = weights_of(self.run)
        if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
            raise ChaosFailed("the weights are not finite")
        if self.family.is_rewound:
            return f"{steps} steps; audit clean, weights finite, rewinds: {self.num_rewinds()}"
        calm = self.folder / "calm"
        self.peace(["train", self.config, *settings({**last, "run.folder": calm})], num_ranks)
        pairs = [(self.run / "ledger.jsonl").read_bytes(), (calm / "ledger.jsonl").read_bytes()]
        if pairs[0] != pairs[1]:
            raise ChaosFailed(f"{self.family.name}: the ledger is not that of a calm run")
        said = f"{steps} steps; audit clean, ledger equal to a calm run's byte for byte"
        if not self.family.is_exact:
            return f"{said}, weights finite"
        gap = max(abs(a - b) for a, b in zip(*map(last_losses, (self.run, calm)), strict=True))
        others = weights_of(calm)
        is_equal = all(bool((tensor == others[name]).all()) for name, tensor in weights.items())
        if gap > LOSS_TOLERANCE or (self.family.is_fixed and not (is_equal and gap == 0)):
            raise ChaosFailed(f"{self.family.name}: the last losses differ by {gap}")
        how = "weights bit-equal" if is_equal else f"last losses within {gap:.1e}"
        return f"{said}, {how}"

    def peace(self, arguments: Sequence[str | Path], num_ranks: int) -> None:
        start = ForkedStart(arguments, num_ranks=num_ranks, logs=self.folder / "logs")
        ended = start.wait(patience=1200)
        if ended.code != 0:
            raise ChaosFailed(f"{arguments[0]} in peace ended with {ended.code}:\n{ended.output}")


STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def as_remote(data: Path, folder: Path) -> dict[str, object]:
    """Settings by which the shards are read as from a server, so that a read can fail."""
    shards = {name: f"local://{data}/shards/{name}/train" for name in "ab"}
    places = {f"stream.sources.{name}.shards": place for name, place in shards.items()}
    return {**places, "stream.cache": {"folder": str(folder / "cache")}}


def weights_of(run: Path):
    from lmscale.checkpoint.load import load_weights
    from lmscale.checkpoint.places.place import LocalPlace

    return load_weights(LocalPlace(run / "checkpoints"))


def last_losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row][-STEPS_AFTER:]


def run_chaos(folder: Path, *, faults: int, seed: int, minutes: float) -> None:
    """All families, each its share of the faults. Raises ``ChaosFailed`` with the reason."""
    began = time.monotonic()
    data = folder / "data"
    if not data.exists():
        log = folder / "data.log"
        folder.mkdir(parents=True, exist_ok=True)
        wait_for(fork(lambda: build_tiny_data(data) or 0, log=log, environment={}))
    load_everything()
    total = collections.Counter()
    lines = []
    starts = lost = back = 0
    for family, recipe in zip(FAMILIES, draw_recipes(seed, len(FAMILIES)), strict=True):
        print(f"{family.name}: a run of {recipe}, seed {seed}", flush=True)
        place = folder / family.name.replace(" ", "-")
        chaos = Chaos(family, recipe, folder=place, data=data, seed=seed)
        family_began, number = time.monotonic(), 0
        share = max(1, round(family.share * faults))
        while chaos.tally.faults < share or chaos.is_to_rewind():
            if is_over(family_began, minutes * family.share):
                break
            number += 1
            chaos.attempt(number)
        lines.append(f"{family.name}, {recipe}: {chaos.finish()}")
        tally = chaos.tally
        total += tally.kinds
        starts, lost, back = (
            starts + tally.starts,
            lost + tally.lost_steps,
            back + tally.walked_back,
        )
    kinds = ", ".join(f"{kind} {count}" for kind, count in total.most_common())
    print(
        f"{sum(total.values())} faults in {time.monotonic() - began:.0f} s, seed {seed}: {kinds}.\n"
        f"{starts} starts, {lost} steps done again, {back} damaged checkpoints passed over.\n"
        + "\n".join(lines)
        + "\nNothing was lost and nothing repeated."
    )


def is_over(began: float, minutes: float) -> bool:
    return time.monotonic() - began > 60 * minutes


def wait_for(pid: int) -> None:
    _, status = os.waitpid(pid, 0)
    if status:
        raise ChaosFailed("the data could not be built")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--minutes", type=float, default=1e6, help="of faults; default: no limit")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lmscale-chaos-") as temporary:
        folder = given.folder or Path(temporary)
        run_chaos(folder, faults=given.faults, seed=given.seed, minutes=given.minutes)


if __name__ == "__main__":
    sys.exit(main())
