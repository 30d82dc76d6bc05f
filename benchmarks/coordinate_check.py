"""muP's coordinate check: how far the first updates move the numbers in a model of each width.

    python benchmarks/coordinate_check.py --out docs/coordinate-check.svg

Decoders that differ in their width alone learn the same few windows of random tokens by AdamW at
one learning rate, with muP and without. Each number is the mean absolute change of the last
block's output, or of the right tokens' logits, since before the first update. With muP
(lmscale/model/mup.py) it has no trend in the width (Yang et al. 2022, appendix D.1). The table's
last column is the slope of its logarithm over that of the width.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lmscale.config.model import DecoderConfig, Sizes
from lmscale.config.objective import CausalConfig
from lmscale.config.training import OptimizerConfig
from lmscale.engine.optimizer import build_optimizer
from lmscale.model.family import build_model
from lmscale.model.initialize import declared_parameters
from lmscale.objective.causal_scoring import build_causal_scoring
from lmscale.train.initial import draw_weights, fill_weights

VOCABULARY, WINDOWS, TOKENS = 128, 4, 32
HEAD_WIDTH = 16
PARTS = ("blocks", "logits")
Curve = dict[int, float]  # width → mean absolute change

PANEL, HIGH, LEFT, TOP, BOTTOM = 330, 300, 60, 56, 44  # pixels
COLORS = ("#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b")  # after 1, 2, …


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    panels: dict[str, list[Curve]] = {}
    print(
        f"{'':14} {'update':>6} " + "".join(f"{width:>9}" for width in given.widths) + "    slope"
    )
    for base_width in (0, given.widths[0]):
        sizes = measure_widths(
            given.widths,
            base_width=base_width,
            updates=given.updates,
            seeds=given.seeds,
            lr=given.lr,
        )
        for part in PARTS:
            name = f"{part}, {'muP' if base_width else 'usual'}"
            panels[name] = sizes[part]
            for update, curve in enumerate(sizes[part], start=1):
                cells = "".join(f"{value:9.3f}" for value in curve.values())
                print(f"{name:14} {update:6} {cells} {slope_of(curve):8.2f}")
    if given.out is not None:
        given.out.write_text(render_panels(panels), encoding="utf-8")
        print(given.out)


def measure_widths(
    widths: Sequence[int], *, base_width: int, updates: int, seeds: int, lr: float
) -> dict[str, list[Curve]]:
    """Part of the model → a curve after every update. ``base_width`` 0: without muP."""
    curves: dict[str, list[Curve]] = {part: [{} for _ in range(updates)] for part in PARTS}
    for width in widths:
        config = DecoderConfig.model_validate(
            {
                "layers": 2,
                "width": width,
                "heads": width // HEAD_WIDTH,
                "ffn_width": 2 * width,
                "init_std": 0.05,
                "mup": {"base_width": base_width},
            }
        )
        runs = [measure_model(config, updates=updates, seed=n, lr=lr) for n in range(1, seeds + 1)]
        for part in PARTS:
            for update, curve in enumerate(curves[part]):
                curve[width] = statistics.mean(run[update][part] for run in runs)
    return curves


def measure_model(
    config: DecoderConfig, *, updates: int, seed: int, lr: float
) -> list[dict[str, float]]:
    """The mean absolute change of each part after each update."""
    sizes = Sizes(vocab_size=VOCABULARY, max_positions=TOKENS, sequence_length=TOKENS)
    model: Any = build_model(config, sizes)
    fill_weights(model, draw_weights(seed))
    settings = OptimizerConfig(lr=lr, weight_decay=0.0)
    optimizer = build_optimizer(
        dict(model.named_parameters()), declared_parameters(model), settings
    )
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_ratio"]
    scoring = build_causal_scoring(model, CausalConfig())
    shape, generator = (WINDOWS, TOKENS + 1), torch.Generator().manual_seed(seed)
    windows = {
        "tokens": torch.randint(VOCABULARY, shape, generator=generator),
        "starts": torch.arange(WINDOWS, dtype=torch.int32) * shape[1],
        "lengths": torch.full((WINDOWS,), shape[1], dtype=torch.int32),
    }
    seen: list[dict[str, torch.Tensor]] = []  # before the first update, and after each

    @torch.no_grad()
    def keep(head: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        logits = torch.nn.functional.linear(inputs[0] * head.scale, head.weight)
        seen[-1]["logits"] = logits.gather(1, windows["tokens"][:, 1:].reshape(-1, 1))

    model.blocks[-1].register_forward_hook(
        lambda block, inputs, output: seen.append({"blocks": output.detach()})
    )
    model.head.register_forward_pre_hook(keep)
    for _ in range(updates + 1):
        scores = scoring(**windows)
        optimizer.zero_grad()
        (scores.loss.total / scores.loss.targets).backward()
        optimizer.step()
    return [
        {part: float((now[part] - seen[0][part]).abs().mean()) for part in PARTS}
        for now in seen[1:]
    ]


def slope_of(curve: Curve) -> float:
    """By least squares, of log(size) over log(width)."""
    widths = [math.log(width) for width in curve]
    return statistics.linear_regression(widths, [math.log(v) for v in curve.values()]).slope


def render_panels(panels: Mapping[str, Sequence[Curve]]) -> str:
    """An SVG of one panel for each name, a line for each update, both axes by powers of two."""
    curves = [curve for of_panel in panels.values() for curve in of_panel]
    widths = list(curves[0])
    sizes = [size for curve in curves for size in curve.values()]
    low, high = math.floor(math.log2(min(sizes))), math.ceil(math.log2(max(sizes)))
    first, last = math.log2(widths[0]), math.log2(widths[-1])
    total = (LEFT + PANEL * 2, TOP + (HIGH + BOTTOM) * 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total[0]} {total[1]}" '
        f'width="{total[0]}" height="{total[1]}" font-family="sans-serif" font-size="12">',
        f'<rect width="{total[0]}" height="{total[1]}" fill="white"/>',
        f'<text x="{LEFT}" y="22">mean absolute change by width, after each of the first '
        f"{len(curves) // len(panels)} updates</text>",
    ]
    for number, (name, of_panel) in enumerate(panels.items()):
        x0, y0 = LEFT + PANEL * (number % 2), TOP + (HIGH + BOTTOM) * (number // 2)

        def x(width: float, x0: int = x0) -> float:
            return round(x0 + (PANEL - 40) * (math.log2(width) - first) / (last - first), 1)

        def y(size: float, y0: int = y0) -> float:
            return round(y0 + HIGH * (high - math.log2(size)) / (high - low), 1)

        parts.append(f'<text x="{x0}" y="{y0 - 8}" font-weight="bold">{name}</text>')
        for power in range(low, high + 1):
            place = f'x1="{x0}" x2="{x0 + PANEL - 40}" y1="{y(2**power)}" y2="{y(2**power)}"'
            parts.append(f'<line {place} stroke="#888" stroke-opacity="0.25"/>')
            if number % 2 == 0:
                label = f'x="{x0 - 8}" y="{y(2**power) + 4}" text-anchor="end" fill="#444"'
                parts.append(f"<text {label}>{2.0**power:g}</text>")
        for width in widths:
            label = f'x="{x(width)}" y="{y0 + HIGH + 18}" text-anchor="middle" fill="#444"'
            parts.append(f"<text {label}>{width}</text>")
        for update, curve in enumerate(of_panel):
            points = " ".join(f"{x(width)},{y(size)}" for width, size in curve.items())
            style = f'fill="none" stroke="{COLORS[min(update, len(COLORS) - 1)]}" stroke-width="2"'
            parts.append(f'<polyline points="{points}" {style}/>')
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    main()
