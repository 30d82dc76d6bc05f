"""``lmscale init``: a configuration for given files."""

from __future__ import annotations

import re
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmscale.cli.options import print_warnings
from lmscale.config import parse_config
from lmscale.errors import ConfigError
from lmscale.files.printing import count_of, render_bytes, render_duration, say

if TYPE_CHECKING:
    from lmscale.cli.init_plan import Choice, Text
    from lmscale.corpus.survey import Survey

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")  # of a run and of a source
_NAMED = re.compile(rf"({_NAME.pattern})=(.+)", re.DOTALL)
COVERAGE = 0.9995  # tokenizer.character_coverage

FilesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SOURCE=]FILES…",
        help="Raw text: files, patterns, folders. en=raw/en zh=raw/zh makes two sources of it.",
        show_default=False,
    ),
]


def init(
    files: FilesArgument = None,
    name: Annotated[str | None, typer.Option("--name", help="Of the run.")] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--inputs", metavar="PATTERN", help="More files; may be given several times."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            "--parameters", "--size", metavar="N", help="About so many, such as 125M or 1.3B."
        ),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(
            "--gpus",
            metavar="N[xNAME]",
            help="Such as 8xH100, 4x24GB or 0; default: this machine's.",
        ),
    ] = None,
    hours: Annotated[
        float, typer.Option("--hours", min=0.01, max=100_000, help="What the training may take.")
    ] = 24.0,
    out: Annotated[Path | None, typer.Option("--out", help="Default: NAME.yaml.")] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
) -> None:
    """Write a commented configuration for a text: look at the files, choose model and training.

    Nothing else is written and no file replaced. On a terminal what no option says is asked.
    """
    from lmscale.cli.init_machine import HERE, parse_size, plan_device
    from lmscale.cli.init_plan import describe_doubts, plan_run
    from lmscale.cli.init_yaml import render_commands, render_config
    from lmscale.corpus.survey import merge_surveys, survey_files

    asks = not yes and sys.stdin.isatty()
    words = [*(files or ()), *(inputs or ())]
    if not words and asks:
        words = shlex.split(_ask("Files, patterns or folders with the text", ""))
    if not words:
        raise ConfigError("No files: lmscale init FILES…, such as lmscale init 'data/raw/*.jsonl'.")
    if name is None:
        name = _ask("Name of the run", _name_of(words)) if asks else _name_of(words)
    path = _check_place(name, out)
    parameters = parse_size(size) if size else None
    device = plan_device(_ask("GPUs, such as 8xH100", HERE) if asks and gpus is None else gpus)
    surveys = {each: survey_files(its, each) for each, its in _group(words, name).items()}
    survey = merge_surveys([*surveys.values()])
    text = measure(survey, [*surveys.values()])
    choice = plan_run(text, device, max_hours=hours, parameters=parameters)
    _describe_sources(surveys)
    _describe(survey, choice)
    if asks and not size:
        planned = f"{choice.parameters / 1e6:.3g}M"
        if (answer := _ask("Parameters of the model", planned)) != planned:
            choice = plan_run(text, device, max_hours=hours, parameters=parse_size(answer))
            _describe(survey, choice)
    _write(path, render_config(name, surveys, choice, device))
    print_warnings([*survey.notes, *describe_doubts(choice)])
    say(f"{path} is written. Look through it, then:")
    for command in render_commands(shlex.quote(str(path)), name, choice):
        say(f"  {command}")


def _group(words: Sequence[str], name: str) -> dict[str, list[str]]:
    """Source → its files; those that stand without one are of the source of the run's name."""
    groups: dict[str, list[str]] = {}
    for word in words:
        named = None if Path(word).exists() else _NAMED.fullmatch(word)
        source, files = named.groups() if named else (name, word)
        groups.setdefault(source, []).append(files)
    return groups


def _check_place(name: str, out: Path | None) -> Path:
    """Where it is written, which nothing is yet."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"--name {name}: it names folders and shards: up to 32 letters, digits, - and _."
        )
    path = out or Path(f"{name}.yaml")
    if path.exists():
        raise ConfigError(f"{path} exists, and nothing is replaced: give --out or another --name.")
    return path


def _write(path: Path, written: str) -> None:
    """Raises ``ConfigError`` for a place that cannot be written."""
    config = parse_config(written, name=str(path))
    config.batch.plan(1)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(written)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. Give --out.") from None


def _describe_sources(surveys: Mapping[str, Survey]) -> None:
    """What each one is made of, where files were given to sources by name."""
    for name, survey in surveys.items():
        about = "" if survey.is_exact else "about "
        say(
            f"source {name}: {count_of(survey.files, 'file')}, {about}"
            f"{count_of(survey.documents, 'document')}, {about}{render_bytes(survey.text_bytes)}"
        )


def _describe(survey: Survey, choice: Choice) -> None:
    from lmscale.cli.init_yaml import render_count

    about = "" if survey.is_exact else "about "
    step_tokens = choice.global_windows * choice.sequence_length
    say(
        f"{count_of(survey.files, 'file')}, {about}{count_of(survey.documents, 'document')}, "
        f"{about}{render_bytes(survey.text_bytes)} of text, some {render_count(choice.tokens)} "
        f"tokens.\n{render_count(choice.parameters)} parameters ({choice.bound_by}), "
        f"{count_of(choice.steps, 'step')} of {step_tokens:,} tokens, "
        f"{choice.epochs:.2g} epochs, some {render_duration(max(60.0, 3600 * choice.hours))}."
    )


def _ask(question: str, default: str) -> str:
    return str(typer.prompt(question, default=default or None)).strip()


def _name_of(words: list[str]) -> str:
    """A name after the files: of the folder where a pattern begins, or the first file's."""
    if len(_group(words, "")) > 1:
        return "mytext"
    (files,) = _group(words, "").values()
    first = Path(files[0].split("*")[0].rstrip("/") or ".").expanduser().absolute()
    stem = first.name.split(".")[0] if first.is_file() else first.name
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:32]
    return "mytext" if name.lower() in ("", "raw", "data", "text", "corpus", "train") else name


def measure(survey: Survey, sources: Sequence[Survey]) -> Text:
    """What the choice needs to know of the text: of all, and of its sources what is held out of the
    smallest, since each has a set of its own.
    """
    from lmscale.cli.init_plan import FRACTIONS, Text

    counts = Counter(survey.sample)
    total, needed, seen = max(1, counts.total()), 0, 0
    for _, number in counts.most_common():
        if seen >= COVERAGE * total:
            break
        needed, seen = needed + 1, seen + number
    east = sum(n for char, n in counts.items() if "\u2e80" <= char <= "\ud7a3") / total
    return Text(
        text_bytes=round(survey.text_bytes * survey.unique_share),
        heldout={part: min(each.count_heldout(part) for each in sources) for part in FRACTIONS},
        east_asian=east,
        needed_chars=needed,
    )
