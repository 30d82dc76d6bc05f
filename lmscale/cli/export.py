"""A trained model in the format of other programs."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lmscale.cli.evaluate import StepOption, WeightsOption
from lmscale.cli.options import JsonOption, RunArgument, echo_json, render_line
from lmscale.errors import EXIT_USER, ConfigError, LmscaleError, TransientError
from lmscale.files.printing import say

if TYPE_CHECKING:
    from lmscale.exchange.exported import ExportRequest, Report

Format = Literal["hf", "peft", "gguf"]
MAX_SHARD = 5.0  # GB
_PLACES = ("folder", "file")  # the rows of a report that say where it is
VerifyOption = Annotated[
    Literal["logits", "tensors"] | None,
    typer.Option(
        help="What is compared: logits of held-out text, for which the model in fp32 has to fit "
        "into the memory, or only the files with the checkpoint; default: logits, where there is "
        "memory."
    ),
]
WorkOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="For a URL: the folder in which the export is made; default: RUN/exports.",
        show_default=False,
    ),
]
# What a run that trains asks for (train/exporting.py).
KeepOption = Annotated[int, typer.Option(min=0, hidden=True)]
BesideOption = Annotated[int | None, typer.Option(hidden=True)]
BaseOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Of peft: the folder of the model that the run adapts.",
        show_default=False,
    ),
]
OutOption = Annotated[
    str,
    typer.Option(
        metavar="PLACE",
        help="The folder to write, of gguf the file: a path, or a URL such as "
        "s3://bucket/exports/demo.",
        show_default=False,
    ),
]
FormatOption = Annotated[
    Format,
    typer.Option(
        help="hf: a folder that transformers loads; gguf: a file for llama.cpp; peft: the "
        "adapters alone of a run with model.lora, which PEFT loads beside --base."
    ),
]
DtypeOption = Annotated[
    Literal["fp32", "bf16", "fp16", "q8_0", "q4_0"],
    typer.Option(help="Of the weights in the files; q8_0 and q4_0 are of gguf alone."),
]
MaxShardOption = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        max=1e6,
        help="Of hf: GB of weights in one file, at most; default: 5.",
        show_default=False,
    ),
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Replace PLACE though lmscale did not write it.")
]


def export(
    run: RunArgument,
    out: OutOption,
    format: FormatOption = "hf",
    base: BaseOption = None,
    step: StepOption = None,
    weights: WeightsOption = None,
    dtype: DtypeOption = "fp32",
    verify: VerifyOption = None,
    max_shard: MaxShardOption = None,
    force: ForceOption = False,
    work: WorkOption = None,
    keep: KeepOption = 0,
    beside: BesideOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run's checkpoint in another program's format, and verify it.

    transformers, or llama.cpp, loads what was written. It has to give the logits
    of the run's own model on held-out text, within rounding, and to go on from it
    with the same tokens. If it does not, or the export is stopped, nothing is
    left. PLACE is replaced where lmscale wrote it.
    """
    from lmscale.exchange.destination import Destination
    from lmscale.exchange.early import check_export
    from lmscale.exchange.exported import ExportRequest
    from lmscale.exchange.old_exports import remove_old_exports
    from lmscale.files.progress import progress
    from lmscale.runs.exports import EXPORTS
    from lmscale.runs.run_folder import load_run_config

    _check_options(format, base, max_shard)
    destination = Destination(
        place=out,
        is_file=format == "gguf",
        force=force,
        work=work or run / EXPORTS,
        retries=load_run_config(run).checkpoint.retries,
    )
    with _leaving_nothing(run, beside), due_again(beside):
        with destination.open(progress) as path:
            request = ExportRequest(
                folder=run,
                out=path,
                base=base,
                step=step,
                weights=weights,
                dtype=dtype,
                verify=verify,
                max_shard_bytes=int((max_shard or MAX_SHARD) * 1e9),
                force=force,
                bar=progress,
            )
            check_export(format, request)  # before torch and the libraries, which take long
            report = FORMATS[format](request)
        for place in remove_old_exports(run, out, keep=keep, retries=destination.retries):
            say(render_line("removed", place))
    if as_json:
        echo_json({"file" if format == "gguf" else "folder": out, **report.facts})
        return
    # A place elsewhere is tried once it was fetched from there.
    shown = path.name if "://" in out else str(path)
    for name, text in report.rows:
        say(render_line(name, out if name in _PLACES else text.replace(str(path), shown)))


def _check_options(format: Format, base: Path | None, max_shard: float | None) -> None:
    problems = []
    if base is not None and format != "peft":
        problems.append(f"--base is of --format peft; this is {format}. Leave it out.")
    if max_shard is not None and format != "hf":
        problems.append(f"--max-shard is of --format hf; {format} is one file. Leave it out.")
    if max_shard is not None and isnan(max_shard):
        problems.append("--max-shard is no number.")
    if problems:
        raise ConfigError(problems)


def _export_hf(request: ExportRequest) -> Report:
    from lmscale.exchange.export import export_run
    from lmscale.exchange.model_card import report_export

    return report_export(export_run(request))


def _export_gguf(request: ExportRequest) -> Report:
    from lmscale.exchange.gguf_export import export_gguf, report_gguf

    return report_gguf(export_gguf(request))


def _export_peft(request: ExportRequest) -> Report:
    from lmscale.exchange.export_peft import export_peft
    from lmscale.exchange.peft_card import report_peft

    return report_peft(export_peft(request))


FORMATS: Mapping[Format, Callable[[ExportRequest], Report]] = {
    "hf": _export_hf,
    "gguf": _export_gguf,
    "peft": _export_peft,
}


@contextmanager
def due_again(beside: int | None) -> Iterator[None]:
    """A run that trains takes the exit code 2 for what every start would refuse. Only settings are:
    a full disk, or a bucket that refuses, may be mended by the next start.
    """
    try:
        yield
    except ConfigError:
        raise
    except LmscaleError as error:
        if beside is None or error.exit_code != EXIT_USER:
            raise
        raise TransientError(error.problems) from error


@contextmanager
def _leaving_nothing(run: Path, beside: int | None) -> Iterator[None]:
    """Signals end the process at once, and what is not finished is removed; so does the end of the
    process ``beside``, which started this one.
    """
    from lmscale.files.output_folder import discard_unfinished
    from lmscale.runs.stop import StopRequests
    from lmscale.watch.parent import end_with_parent

    signals = [signal.SIGTERM, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup's
        signals.append(signal.SIGHUP)
    with StopRequests(run, watch_file=False, signals=signals) as stop:
        stop.leave_unless(lambda: False, lambda reason: discard_unfinished())
        if beside is not None:
            end_with_parent(beside)
        yield
        stop.wait_to_be_asked()
