"""``lmscale import``: models of other programs → the folder of a run."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lmscale.cli.options import JsonOption, echo_json, render_line
from lmscale.config.token_ids import render_ids
from lmscale.errors import ConfigError
from lmscale.files.printing import count_of, render_bytes, say

if TYPE_CHECKING:
    from lmscale.exchange.import_hf import Done

RowsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Rows of the embedding, in place of those that it has: new ones are the mean of "
        "the others.",
    ),
]
ObjectiveOption = Annotated[
    Literal["spans", "infill", "pairs"] | None,
    typer.Option(
        help="What a model that reads one text and writes another was trained for. Default: "
        "spans or infill, whose ids its tokenizer has, else pairs. T5 and BART that were tuned "
        "to answer are of pairs.",
        show_default=False,
    ),
]

app = typer.Typer(help="Models of other programs → a run to begin with.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Models of other programs → a run to begin with."""


@app.command()
def hf(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="A folder of Hugging Face's: config.json, *.safetensors, a tokenizer.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="RUN", help="The run's folder, a new one.", show_default=False)
    ],
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Another folder or file with the model's tokenizer; default: DIR."),
    ] = None,
    vocab_size: RowsOption = None,
    objective: ObjectiveOption = None,
    name: Annotated[str, typer.Option(help="The run's name; default: that of RUN.")] = "",
    verify: Annotated[
        Literal["logits", "tensors"],
        typer.Option(
            help="logits: transformers loads DIR, too, and answers the same. tensors: every weight "
            "is read back, for a model that does not fit into memory."
        ),
    ] = "logits",
    as_json: JsonOption = False,
) -> None:
    """Write a model of Hugging Face's as a run's folder, and verify it.

    The folder has one checkpoint, of step 0, and the tokenizer. A run begins with it by
    run.init_from, a distillation learns from it by objective.teacher, and lmscale evaluate,
    generate and export take it as any run's. No code of DIR is run, and no pickle is opened. Where
    anything does not fit, all of it is told, and nothing is left.
    """
    from lmscale.exchange.import_config import check_import
    from lmscale.files.output_folder import discard_unfinished
    from lmscale.files.progress import progress
    from lmscale.runs.stop import StopRequests

    signals = [signal.SIGTERM, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup's
        signals.append(signal.SIGHUP)
    with StopRequests(out, watch_file=False, signals=signals) as stop:
        stop.leave_unless(lambda: False, lambda reason: discard_unfinished())
        check_import(folder, out)
        from lmscale.exchange.import_hf import ImportRequest, import_hf  # and torch

        request = ImportRequest(
            folder=folder,
            out=out,
            name=name or plan_name(out),
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            objective=objective,
            how=verify,
            bar=progress,
        )
        done = import_hf(request)
        stop.wait_to_be_asked()
    if as_json:
        echo_json(_describe(done))
    else:
        say("\n".join(_render(done)))


def plan_name(out: Path) -> str:
    """A run's name from its folder's. Raises ``ConfigError`` where that holds nothing of one."""
    name = re.sub(r"[^\w.-]", "-", out.absolute().name).lstrip("-.")[:100]
    if not name:
        raise ConfigError(f"--out {out}: its name is none for a run. Give --name.")
    return name


def _describe(done: Done) -> dict[str, object]:
    plan, origin = done.plan, done.plan.origin
    return {
        "folder": str(done.request.out),
        "run": plan.config.run.name,
        "imported": origin.folder,
        "model_type": origin.model_type,
        "dtype": origin.dtype,
        "parameters": done.parameters,
        "rows": origin.rows,
        "vocab_size": plan.config.vocab_size,
        "tokenizer": plan.tokenizer.fingerprint,
        "ids": plan.config.tokenizer.ids,
        "objective": plan.config.objective.name,
        "drawn": list(origin.drawn),
        "left_behind": list(plan.plan.left_behind),
        "verified": "tensors" if done.parity is None else vars(done.parity),
    }


def _render(done: Done) -> list[str]:
    plan, parity, out = done.plan, done.parity, done.request.out
    origin, config = plan.origin, plan.config
    rows = {
        "imported": origin.described,
        "model": f"{config.model.family}, {done.parameters:,} parameters, "
        f"{render_bytes(4 * done.parameters)} of fp32 (they were {origin.dtype})",
        "tokenizer": f"{plan.tokenizer.vocab_size:,} ids; the embedding has "
        f"{config.vocab_size:,} rows" + _say_rows(origin.rows, config.vocab_size),
    }
    rows["objective"] = f"{config.objective.name} (objective.name), on which it is scored"
    if config.tokenizer.ids:
        rows["ids"] = f"{render_ids(config.tokenizer.ids)}, which objectives use (tokenizer.ids)"
    guessed = config.objective.name
    if done.request.objective is None and guessed in ("spans", "infill"):
        rows["objective"] = f"{guessed}, by its tokenizer; if it was tuned to answer: "
        rows["objective"] += "--objective pairs"
    if origin.drawn:
        rows["drawn anew"] = f"{', '.join(origin.drawn)}: {origin.folder} has none"
    if plan.plan.left_behind:
        rows["left behind"] = ", ".join(plan.plan.left_behind)
    if parity is None:
        rows["verified"] = "every tensor was read back and is bit for bit that of the files"
    else:
        rows["verified"] = (
            f"logits of {count_of(parity.samples, 'sample')} ({parity.origin}, {parity.tokens:,} "
            f"tokens) differ by {parity.error:.1e} of their norm from transformers'"
        )
        if parity.written:
            rows["written"] = f"{parity.written} tokens of greedy continuations are the same"
    rows["folder"] = str(out)
    rows["go on"] = f"edit {out}/continue.yaml, a run with its run.init_from; the data is missing"
    return [render_line(name, text) for name, text in rows.items()]


def _say_rows(before: int, now: int) -> str:
    if now > before:
        return f", {now - before:,} more than it had, each the mean of the others"
    return f", {before - now:,} fewer than it had" if now < before else ""
