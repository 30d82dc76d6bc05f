"""A trained model in the format of other programs."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lmscale.cli.evaluate import StepOption, WeightsOption
from lmscale.cli.options import JsonOption, RunArgument, echo_json, render_bytes, render_line
from lmscale.files.printing import count_of, say

if TYPE_CHECKING:
    from lmscale.exchange.exported import Exported


def export(
    run: RunArgument,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder to write.", show_default=False)
    ],
    format: Annotated[
        Literal["hf"], typer.Option(help="hf: a folder that transformers loads.")
    ] = "hf",
    step: StepOption = None,
    weights: WeightsOption = None,
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16"], typer.Option(help="Of the weights in the files.")
    ] = "fp32",
    max_shard: Annotated[
        float, typer.Option(min=0.001, help="GB of weights in one file, at most.")
    ] = 5.0,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace DIR though lmscale did not write it."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a run's checkpoint in Hugging Face's format, and verify it.

    transformers loads what was written and has to give the logits that the run's own model gives,
    on held-out text and within rounding, and to go on from it with the same tokens. If it does not,
    or the export is stopped, nothing is left. DIR is replaced where lmscale wrote it.
    """
    from lmscale.exchange.export import export_run
    from lmscale.exchange.exported import MARK, ExportRequest, describe
    from lmscale.files.output_folder import check_output, discard_unfinished
    from lmscale.files.progress import progress
    from lmscale.runs.stop import StopRequests

    check_output(out, mark=MARK, force=force)  # before the libraries are loaded, which takes long
    signals = [signal.SIGTERM, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup's
        signals.append(signal.SIGHUP)
    with StopRequests(run, watch_file=False, signals=signals) as stop:
        stop.leave_unless(lambda: False, lambda reason: discard_unfinished())
        exported = export_run(
            ExportRequest(
                folder=run,
                out=out,
                step=step,
                weights=weights,
                dtype=dtype,
                max_shard_bytes=int(max_shard * 1e9),
                force=force,
                bar=progress,
            )
        )
        stop.wait_to_be_asked()
    if as_json:
        echo_json({"folder": str(out), **describe(exported)})
    else:
        for line in _render(exported):
            say(line)


def _render(exported: Exported) -> Iterator[str]:
    plan, found, parity = exported.plan, exported.found, exported.parity
    out = exported.request.out
    size = f"{render_bytes(exported.bytes)} in {count_of(len(exported.files), 'file')}"
    rows = {
        "exported": f"{found.name}, {found.weights} weights",
        "as": f"{plan.class_name}, {exported.tensors} tensors of {exported.request.dtype}, {size}",
        "verified": f"logits of {parity.samples} samples ({parity.origin}, {parity.tokens:,} "
        f"tokens) differ by {parity.error:.1e} of their norm",
    }
    if parity.written:
        ties = f", {parity.ties} of them ties" if parity.ties else ""
        rows["written"] = f"{parity.written} tokens of greedy continuations are the same{ties}"
    if plan.left_out:
        rows["left out"] = ", ".join(plan.left_out)
    rows["folder"] = str(out)
    yield from (render_line(name, text) for name, text in rows.items())
