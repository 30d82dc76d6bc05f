"""``lmscale quantize``: a run's weights in 8 or 4 bits, for llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmscale.cli.compare import check_sets, measure_models, show_rows
from lmscale.cli.evaluate import MaxWindowsOption, SetNameOption, StepOption, WeightsOption
from lmscale.cli.options import JsonOption, RunArgument, echo_json, render_line
from lmscale.errors import ConfigError
from lmscale.files.printing import say

if TYPE_CHECKING:
    from lmscale.exchange.exported import Dtype, ExportRequest

DTYPES: dict[int, Dtype] = {8: "q8_0", 4: "q4_0"}


def quantize(
    run: RunArgument,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="The GGUF file to write.", show_default=False)
    ],
    bits: Annotated[int, typer.Option(help="Of a weight: 8 or 4.")] = 8,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="The embedding and the head, too; else fp16.")
    ] = False,
    step: StepOption = None,
    weights: WeightsOption = None,
    set_name: SetNameOption = None,
    max_windows: MaxWindowsOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace FILE though lmscale did not write it.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a run's weights in 8 or 4 bits as a GGUF file, verified by llama.cpp.

    Of 32 weights of a row each is a whole number times one factor of fp16 (Q8_0, Q4_0). Norms and
    biases stay fp32. Size, speed under llama.cpp and held-out loss are shown before and after.
    """
    from lmscale.exchange.early import check_export
    from lmscale.exchange.exported import ExportRequest
    from lmscale.files.output_folder import work_folder
    from lmscale.files.progress import progress

    if bits not in DTYPES:
        raise ConfigError(f"--bits {bits}: give 8 or 4.")
    request = ExportRequest(
        folder=run,
        out=out,
        step=step,
        weights=weights,
        dtype=DTYPES[bits],
        keeps_embeddings=not embeddings,
        force=force,
        bar=progress,
    )
    check_export("gguf", request)
    found = request.found
    has_sets = bool(found.config.evaluation.sets)
    if has_sets:
        check_sets(found, set_name)
    from lmscale.exchange.gguf_export import export_gguf, report_gguf

    exported = export_gguf(request)
    report, rows = report_gguf(exported), []
    if has_sets and not exported.why_not:
        with work_folder(out.with_name(f"{out.name}.before")) as work:
            before = _write_before(request, work)
            options = {"set_name": set_name, "max_windows": max_windows}
            rows = measure_models([found], [before, out], **options)
    if as_json:
        echo_json({"file": str(out), **report.facts, "models": [row.to_dict() for row in rows]})
        return
    for name, text in report.rows:
        say(render_line(name, text))
    if rows:
        show_rows(rows, as_json=False)
    else:
        why = exported.why_not and "as llama.cpp did not run it"
        say(render_line("measured", f"nothing: {why or 'the run has no evaluation.sets'}"))


def _write_before(request: ExportRequest, folder: Path) -> Path:
    """The same weights in the run's own precision, for llama.cpp's speed before."""
    from dataclasses import replace

    from lmscale.exchange.gguf_export import export_gguf

    precision = request.found.config.engine.precision
    path = folder / f"before.{precision}.gguf"
    export_gguf(replace(request, out=path, dtype=precision, verify="tensors", force=True))
    return path
