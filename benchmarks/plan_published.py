"""Hold the planner's speed against published runs: a table of predicted and measured tokens/s.

    python benchmarks/plan_published.py          # the table of docs/planning.md, as Markdown
    python benchmarks/plan_published.py --fit    # fit the constants of plan/efficiency.py to every
                                                 # other row, and judge them by the rest

Loads no torch; takes seconds, and a fit two minutes.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lmscale.config import RunConfig
from lmscale.config.load import parse_yaml, read_text
from lmscale.plan.devices import Device, Machine, find_device, plan_machine
from lmscale.plan.efficiency import EFFICIENCY, Efficiency
from lmscale.plan.speed import Step, plan_step

TABLE = Path(__file__).with_suffix(".yaml")
PER_NODE = 8
TARGET = 0.2


@dataclass(frozen=True, kw_only=True)
class Row:
    """A published run."""

    model: str
    config: RunConfig
    machine: Machine
    gpus: int
    source: Mapping[str, str]
    measured: float  # tokens/s of a GPU
    is_judge: bool  # the constants were fitted without it
    described: str

    def predict(self, efficiency: Efficiency = EFFICIENCY) -> Step:
        return plan_step(self.config, self.machine, efficiency=efficiency)


def read_rows(path: Path = TABLE) -> list[Row]:
    tree = parse_yaml(read_text(path), str(path))
    return [
        _read_row(tree, row, is_judge=number % 2 == 1) for number, row in enumerate(tree["rows"])
    ]


def _read_row(tree: Mapping[str, Any], row: Mapping[str, Any], *, is_judge: bool) -> Row:
    gpus, length = row["gpus"], row["length"]
    recompute = row.get("recompute", 0)
    config = RunConfig.model_validate(
        {
            "run": {"name": "published"},
            "stream": {"sequence_length": length, "mask_documents": False},
            "tokenizer": {"vocab_size": min(32_000, tree["models"][row["model"]]["vocab_size"])},
            "batch": {
                "global_windows": gpus * row["micro"] * row["accumulation"],
                "micro_windows": row["micro"],
            },
            # All logits at once, as these loops have them, so that none is computed again.
            "objective": {"name": "causal", "chunk_tokens": row["micro"] * length},
            "model": {
                "family": "decoder",
                **tree["models"][row["model"]],
                "activation_checkpoint_every": recompute,
            },
            "engine": {"zero_stage": row.get("zero", 3), "compile": row.get("compile", False)},
        }
    )
    # Hybrid sharding gathers within a node; of the gradients every node's share goes over all.
    device = _find_device(tree, row["device"])
    nodes = max(1, gpus // PER_NODE)
    machine = plan_machine(device, nodes=nodes, devices_per_node=min(PER_NODE, gpus))
    said = [f"{gpus} × {row['device']}", f"T {length}", f"{row['micro']} × {row['accumulation']}"]
    said += [f"recompute {'all' if recompute == 1 else 'every second'}"] * bool(recompute)
    said += ["compiled"] * row.get("compile", False)
    return Row(
        model=row["model"],
        config=config,
        machine=machine,
        gpus=gpus,
        source=tree["sources"][row["source"]],
        measured=row["measured"],
        is_judge=is_judge,
        described=", ".join(said),
    )


@cache
def _known(name: str) -> Device:
    return find_device(name)


def _find_device(tree: Mapping[str, Any], name: str) -> Device:
    if name not in tree["devices"]:
        return _known(name)
    figures = dict(tree["devices"][name])
    base = _known(figures.pop("base"))
    return Device.model_validate(base.model_dump() | figures | {"name": name})


def error_of(row: Row, efficiency: Efficiency = EFFICIENCY) -> float:
    """How much faster (above 0) the plan is than the run was, as a share."""
    return row.predict(efficiency).tokens_per_second_per_device / row.measured - 1


def describe_errors(errors: Sequence[float]) -> str:
    sizes = sorted(abs(error) for error in errors)
    within = sum(size <= TARGET for size in sizes)
    return (
        f"{within} of {len(sizes)} within {TARGET:.0%}; median {statistics.median(sizes):.1%}, "
        f"largest {sizes[-1]:.1%}, mean of the signed ones {statistics.fmean(errors):+.1%}"
    )


def render_table(rows: Iterable[Row]) -> str:
    lines = [
        "| model | run | tokens/s a GPU | plan | error | bound by | source |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    for row in rows:
        step = row.predict()
        planned = step.tokens_per_second_per_device
        error = planned / row.measured - 1
        mark = "" if row.is_judge else "*"
        source = f"[{row.source['text']}]({row.source['url']})"
        lines.append(
            f"| {row.model}{mark} | {row.described} | {row.measured:,.0f} | {planned:,.0f} | "
            f"{error:+.0%} | {step.bound_by} | {source} |"
        )
    return "\n".join(lines)


BOUNDS = {  # of the fit: what is plausible
    "sustained": (0.6, 1.0),
    "pointwise": (0.3, 1.0),
    "eager_traffic": (0.3, 2.0),
    "compiled_traffic": (0.3, 1.0),
    "attention": (0.5, 1.5),
    "hidden": (0.5, 1.0),
}


def fit(rows: Sequence[Row], *, rounds: int = 40) -> Efficiency:
    """The constants of the least sum of absolute logarithmic errors, one after another in turns."""

    def loss(efficiency: Efficiency) -> float:
        return sum(abs(math.log1p(error_of(row, efficiency))) for row in rows)

    best, draws = EFFICIENCY, random.Random(0)
    lowest = loss(best)
    for number in range(rounds):
        width = 0.3 * 0.9**number
        for name, (low, high) in BOUNDS.items():
            value = getattr(best, name) * math.exp(draws.uniform(-width, width))
            tried = best._replace(**{name: min(high, max(low, value))})
            if (found := loss(tried)) < lowest:
                best, lowest = tried, found
    return best


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--fit", action="store_true", help="fit the constants, and print them")
    given = parser.parse_args(arguments)
    rows = read_rows()
    fitted, judges = ([row for row in rows if row.is_judge is which] for which in (False, True))
    efficiency = fit(fitted) if given.fit else EFFICIENCY
    if given.fit:
        print(efficiency)
    else:
        print(render_table(rows))
        print("\n\\* The constants of lmscale/plan/efficiency.py were fitted to these rows.\n")
    for name, some in (("fitted", fitted), ("judging", judges)):
        print(f"{name}: {describe_errors([error_of(row, efficiency) for row in some])}")


if __name__ == "__main__":
    main()
