"""``lmscale plan ladder``: small runs, and what they foretell of a large one."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmscale.cli.options import (
    ConfigArgument,
    JsonOption,
    SetOption,
    echo_json,
    find_file_problems,
    print_notes,
)
from lmscale.config import RunConfig, load_config
from lmscale.errors import EXIT_FINISHED, ConfigError
from lmscale.files.atomic import write_bytes
from lmscale.files.printing import align_rows, say

if TYPE_CHECKING:
    from lmscale.plan.ladder_law import Fit, Prediction
    from lmscale.plan.ladder_runs import LadderRun

_COUNT = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)([kMBT]?)", re.ASCII)
_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
USUAL_SHARE = 0.4  # of a device's peak that training reaches, as `lmscale init` takes it
BUDGET_SHARE = 0.05  # of the large run's FLOPs, where nobody says more


def ladder(
    config: ConfigArgument,
    set_: SetOption = None,
    budget: Annotated[
        float | None,
        typer.Option("--budget", metavar="FLOPS", min=1, help="Of all runs; default: 5 % of it."),
    ] = None,
    gpu_hours: Annotated[
        float | None,
        typer.Option("--gpu-hours", metavar="H", min=0, help="The same in hours of one --gpu."),
    ] = None,
    gpu: Annotated[str, typer.Option("--gpu", help="Of --gpu-hours.")] = "h100-80gb",
    sizes: Annotated[
        str | None, typer.Option("--sizes", metavar="N,…", help="Parameters, such as 300k,1M.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option("--tokens", metavar="N,…", help="Of every size, such as 1M,2M.")
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option("--rates", metavar="F,…", help="Learning rates to try, as factors."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Default: runs/NAME-ladder.yaml.")
    ] = None,
    here: Annotated[
        int | None,
        typer.Option("--here", metavar="N", min=1, help="Train what is missing here, by N ranks."),
    ] = None,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Draw the runs and the law.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Plan small runs like CONFIG within a budget, and foretell its loss from those that are done.

    The first time it writes the file of runs, which `lmscale launch slurm --array FILE` takes; from
    then on it reads it.
    """
    from lmscale.plan.ladder import plan_ladder
    from lmscale.plan.ladder_runs import read_ladder, render_rows

    if svg is not None and (problems := find_file_problems("--svg", svg, ".svg")):
        raise ConfigError(problems)
    loaded = load_config(config, set_ or ())
    name = f"{loaded.run.name}-ladder"
    path = out or loaded.folder.parent / f"{name}.yaml"
    if not path.exists():
        planned = plan_ladder(
            loaded,
            budget_flops=_find_budget(loaded, budget, gpu_hours, gpu),
            sizes=_parse_counts("--sizes", sizes),
            tokens=_parse_counts("--tokens", tokens),
            rates=_parse_counts("--rates", rates) or None,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, render_rows(planned, config=str(config), name=name).encode())
        print_notes([f"{path}: {len(planned.rungs)} runs, {planned.flops:.3g} FLOPs together"])
    elif sizes or tokens or rates or budget or gpu_hours:
        raise ConfigError(f"{path} is there: remove it to plan anew, or name another --out")
    runs = read_ladder(path, loaded, name=name)
    if here is not None:
        _train_missing(runs, config, set_ or (), ranks=here)
        runs = read_ladder(path, loaded, name=name)
    _report(loaded, runs, path=path, config_path=config, svg=svg, as_json=as_json)


def _find_budget(
    config: RunConfig, budget: float | None, gpu_hours: float | None, gpu: str
) -> float:
    from lmscale.plan.devices import find_device, settle_precision
    from lmscale.plan.ladder import count

    if budget is not None:
        return budget
    if gpu_hours is None:
        return BUDGET_SHARE * 6 * count(config) * config.trained_tokens
    device = find_device(gpu)
    precision = settle_precision(config, device).engine.precision
    peak = device.peak(precision)
    if peak is None:
        raise ConfigError(f"--gpu {gpu}: it does not compute in {precision}")
    return gpu_hours * 3600 * USUAL_SHARE * peak


def _parse_counts(option: str, text: str | None) -> tuple[float, ...]:
    found = []
    for word in (text or "").split(",") if text else ():
        match = _COUNT.fullmatch(word.strip())
        number = 0.0 if match is None else float(match[1]) * _UNITS[match[2]]
        if not 0 < number < math.inf:
            raise ConfigError(f"{option} {text}: numbers such as 300k,1.5M are wanted")
        found.append(number)
    return tuple(found)


def _train_missing(
    runs: Sequence[LadderRun], config: Path, overrides: Sequence[str], *, ranks: int
) -> None:
    for run in runs:
        if run.loss is not None:
            continue
        values = {**run.values, "run.name": run.name, "run.folder": str(run.folder)}
        given = [*overrides, *(f"{key}={json.dumps(value)}" for key, value in values.items())]
        words = [word for text in given for word in ("--set", text)]
        print_notes([f"{run.name}: {run.parameters:,} parameters, {run.tokens:,} tokens"])
        command = ["launch", "local", str(config), "--nproc", str(ranks), *words]
        ended = subprocess.run([sys.executable, "-m", "lmscale", *command], check=False)
        if ended.returncode != EXIT_FINISHED:
            raise typer.Exit(ended.returncode)


def _report(
    config: RunConfig,
    runs: Sequence[LadderRun],
    *,
    path: Path,
    config_path: Path,
    svg: Path | None,
    as_json: bool,
) -> None:
    """What is done, and what it foretells where it is enough."""
    from lmscale.plan.ladder import count
    from lmscale.plan.ladder_law import MIN_SIZES
    from lmscale.plan.ladder_runs import choose_best

    best = choose_best(runs)
    foretold = _foretell(config, best)
    told: dict[str, Any] = {
        "file": str(path),
        "target": {"parameters": count(config), "tokens": config.trained_tokens},
        "runs": [{**asdict(run), "folder": str(run.folder)} for run in runs],
    }
    if foretold is not None:
        told["law"] = _law_of(foretold.fit)
        told["prediction"] = {**asdict(foretold.predicted), "measured": foretold.measured}
        if svg is not None:
            write_bytes(svg, _draw(foretold).encode())
    elif svg is not None:
        raise ConfigError(f"--svg {svg}: a law needs {MIN_SIZES} finished sizes")
    if as_json:
        echo_json(told)
        return
    say(_render(runs, best))
    if foretold is None:
        missing = sum(run.loss is None for run in runs)
        say(
            f"\n{missing} of {len(runs)} runs are missing. Submit them as one array:\n"
            f"  lmscale launch slurm {config_path} --cluster PROFILE --array {path} --sweep "
            f"{config.run.name}-ladder\nor train them here: lmscale plan ladder {config_path} "
            "--here 1"
        )
        return
    for line in _render_prediction(foretold):
        say(line)


@dataclass(frozen=True, kw_only=True)
class _Foretold:
    """What finished runs say of the large one."""

    best: Sequence[LadderRun]
    fit: Fit
    predicted: Prediction
    parameters: int
    tokens: int
    measured: float | None
    """The large run's own loss, once it is finished."""


def _foretell(config: RunConfig, best: Sequence[LadderRun]) -> _Foretold | None:
    """None where the best runs have too few sizes."""
    from lmscale.plan.ladder import count
    from lmscale.plan.ladder_law import MIN_SIZES, fit_law
    from lmscale.plan.ladder_runs import points_of, read_loss

    if len({run.parameters for run in best}) < MIN_SIZES:
        return None
    fit, parameters, tokens = fit_law(points_of(best)), count(config), config.trained_tokens
    return _Foretold(
        best=best,
        fit=fit,
        predicted=fit.predict(parameters, tokens),
        parameters=parameters,
        tokens=tokens,
        measured=read_loss(config.folder, config),
    )


def draw_finished(config: RunConfig) -> str | None:
    """The picture of a run's ladder at its usual place; None where too few of it are finished."""
    from lmscale.plan.ladder_runs import choose_best, read_ladder

    name = f"{config.run.name}-ladder"
    path = config.folder.parent / f"{name}.yaml"
    if not path.is_file():
        return None
    foretold = _foretell(config, choose_best(read_ladder(path, config, name=name)))
    return None if foretold is None else _draw(foretold)


def _law_of(fit: Fit) -> dict[str, Any]:
    law = fit.law
    return {
        "E": law.floor,
        "A": law.of_parameters,
        "alpha": law.alpha,
        "B": law.of_tokens,
        "beta": law.beta,
        "residual": max(map(abs, fit.residuals)),
    }


def _render(runs: Sequence[LadderRun], best: Sequence[LadderRun]) -> str:
    names = {run.name for run in best}
    table = [["run", "parameters", "tokens", "rate", "loss"]]
    for run in runs:
        loss = "missing" if run.loss is None else f"{run.loss:.4f}"
        mark = "" if run.loss is None or run.name in names else "  (another rate is better)"
        figures = [f"{run.parameters:,}", f"{run.tokens:,}", f"{run.rate:.3g}"]
        table.append([run.name, *figures, loss + mark])
    return align_rows(table, left=(0, 4))


def _render_prediction(foretold: _Foretold) -> list[str]:
    predicted, measured = foretold.predicted, foretold.measured
    law, worst = foretold.fit.law, max(map(abs, foretold.fit.residuals))
    data = f" + {law.of_tokens:.4g} / D^{law.beta:.3f}" if law.of_tokens else ""
    lines = [
        "",
        f"law          L = {law.floor:.4g} + {law.of_parameters:.4g} / N^{law.alpha:.3f}{data}; "
        f"no run is further from it than {100 * math.expm1(worst):.2g} %",
        f"prediction   {predicted.loss:.4f} nats per token, nine in ten from {predicted.low:.4f} "
        f"to {predicted.high:.4f}, of {foretold.parameters:,} parameters and {foretold.tokens:,} "
        "tokens",
    ]
    lines += [f"             {doubt}" for doubt in predicted.doubts]
    if measured is not None:
        off = 100 * (predicted.loss / measured - 1)
        lines.append(f"measured     {measured:.4f}: the prediction is {off:+.2f} % off")
    return lines


def _draw(foretold: _Foretold) -> str:
    from lmscale.plan.pictures import COLORS, Axis, Line, render_chart

    best, predicted, measured = foretold.best, foretold.predicted, foretold.measured
    size = foretold.parameters
    losses = [run.loss for run in best if run.loss] + [predicted.low, predicted.high]
    least = min(run.parameters for run in best)
    x = Axis(title="parameters", low=least * 0.8, high=size * 1.3, is_log=True, form=_short)
    spread = max(losses) - min(losses)
    y = Axis(
        title="nats per token",
        low=min([*losses, measured or math.inf]) - 0.1 * spread,
        high=max(losses) + 0.1 * spread,
    )
    lines = []
    for number, tokens in enumerate(sorted({run.tokens for run in best})):
        of_tokens = [run for run in best if run.tokens == tokens]
        color = COLORS[number % len(COLORS)]
        name = f"{_short(tokens)} tokens"
        points = [(run.parameters, run.loss or math.nan) for run in of_tokens]
        lines.append(Line(name=name, points=points, color=color, has_dots=True, has_line=False))
        sizes = [least * (size / least) ** (step / 40) for step in range(41)]
        curve = [(each, foretold.fit.law.loss(each, tokens)) for each in sizes]
        lines.append(Line(name="", points=curve, color=color, is_dashed=True))
    lines.append(
        Line(
            name="foretold",
            points=[(size, predicted.loss)],
            color="#222222",
            has_dots=True,
            spread=(predicted.low, predicted.high),
        )
    )
    if measured is not None:
        point = [(size, measured)]
        lines.append(Line(name="measured", points=point, color=COLORS[1], has_dots=True))
    return render_chart("a ladder, its law, and what it foretells", lines, x, y)


def _short(value: float) -> str:
    power = min(4, max(0, int(math.log10(value) / 3 + 1e-9)))
    return f"{value / 1000**power:.3g}{['', 'k', 'M', 'B', 'T'][power]}"
