"""``lmscale corpus``: raw files → cleaned documents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmscale.cli.data_tasks import TaskOption, TasksOption, echo_progress, echo_summary
from lmscale.cli.options import ConfigArgument, JsonOption, SetOption, echo_json
from lmscale.config import load_config
from lmscale.files.printing import say

if TYPE_CHECKING:
    from lmscale.corpus.documents import CorpusManifest
    from lmscale.corpus.dropped import Dropped

app = typer.Typer(help="Raw files → cleaned documents.", no_args_is_help=True)


@app.command()
def build(
    config: ConfigArgument,
    set_: SetOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Rebuild even what is already there.")
    ] = False,
    processes: Annotated[
        int, typer.Option(help="Runs of raw files cleaned side by side; 0 means one per core.")
    ] = 0,
    task: TaskOption = None,
    json_: JsonOption = False,
) -> None:
    """Clean and split every source of CONFIG; what is finished and unchanged is left alone.

    With --task the tasks of an array share the work, on nodes that see the same folders. The
    result is that of one command. With --force, tasks replace only what was built otherwise.
    """
    from lmscale.corpus.build import build_corpus
    from lmscale.corpus.documents import render_manifest
    from lmscale.tasks.target import parse_task

    member = parse_task(task) if task is not None else None
    section = load_config(config, set_ or ()).corpus
    summary = build_corpus(section, member, processes=processes, force=force)
    echo_summary(summary, member, "parts", _render, render_manifest, as_json=json_)


@app.command()
def status(
    config: ConfigArgument, tasks: TasksOption, set_: SetOption = None, json_: JsonOption = False
) -> None:
    """Print which tasks of an array of N are missing from the corpus of CONFIG."""
    echo_progress(load_config(config, set_ or ()), "corpus", tasks, as_json=json_)


@app.command()
def show(config: ConfigArgument, set_: SetOption = None, json_: JsonOption = False) -> None:
    """Print what the corpus of CONFIG holds and what was dropped, by reason."""
    from lmscale.corpus.documents import load_corpus_manifest, render_manifest

    section = load_config(config, set_ or ()).corpus
    folder = Path(section.folder)
    manifests = {name: load_corpus_manifest(folder / name) for name in section.sources}
    if json_:
        rows = {name: render_manifest(manifest) for name, manifest in manifests.items()}
        echo_json(rows)
        return
    for name, manifest in manifests.items():
        say(f"{folder / name}\n{_render(manifest)}")


@app.command()
def dropped(
    config: ConfigArgument,
    source: Annotated[
        list[str] | None,
        typer.Option(help="A source; may be given several times. Default: all."),
    ] = None,
    reason: Annotated[
        str | None, typer.Option(help="Only those of this reason, such as duplicate or broken.")
    ] = None,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """List the documents that were dropped, with the reason, and of a duplicate the one that was
    kept. Reads the raw files once more; with --json a line of JSON each.
    """
    from lmscale.corpus.build import REASONS
    from lmscale.corpus.dropped import list_dropped
    from lmscale.errors import ConfigError
    from lmscale.files.printing import say_lines

    if reason not in (None, *REASONS):
        raise ConfigError(f"--reason {reason}: there is none. Known: {', '.join(REASONS)}.")
    section = load_config(config, set_ or ()).corpus
    for name in source or section.sources:
        asked = (each for each in list_dropped(section, name) if reason in (None, each.reason))
        say_lines(json.dumps(vars(each)) + "\n" if json_ else _line(each) for each in asked)


def _line(dropped: Dropped) -> str:
    why = f"  = {dropped.same_as}" if dropped.same_as else ""
    why += f"  {dropped.detail}" if dropped.detail else ""
    return f"{dropped.source}  {dropped.reason:9}  {dropped.id}{why}\n"


def _render(manifest: CorpusManifest) -> str:
    lines = [
        f"  {split:8} {manifest.documents(split):>12,} documents "
        f"{manifest.text_bytes(split):>16,} bytes of text"
        for split in manifest.splits
    ]
    lines.append(
        f"  read     {manifest.documents_read:>12,} documents in {manifest.files_read:,} files; "
        f"dropped: {_list(manifest.dropped) or 'none'}"
    )
    if manifest.dropped:
        lines.append("           which ones: lmscale corpus dropped CONFIG")
    if manifest.passed_over:
        lines.append(f"  passed over: {_list(manifest.passed_over)}")
    if manifest.files_without_text:
        named = ", ".join(manifest.without_text)
        more = "" if manifest.files_without_text == len(manifest.without_text) else ", …"
        lines.append(f"  {manifest.files_without_text:,} files gave no text: {named}{more}")
    if manifest.cut:
        lines.append(f"  over-long documents: {_list(manifest.cut)}")
    if manifest.line_ends:
        lines.append(f"  line ends became LF in {manifest.line_ends:,} documents")
    if manifest.normalized:
        form = manifest.made_by.get("normalization")
        lines.append(f"  {form} changed characters in {manifest.normalized:,} documents")
    if manifest.markup_chars:
        lines.append(f"  markup removed: {manifest.markup_chars:,} characters")
    fraction = manifest.made_by.get("heldout_fraction")
    if fraction and not manifest.documents("heldout"):
        lines.append(
            f"  Nothing was held out: a document's hash decides, and of so few none fell below "
            f"corpus.heldout_fraction = {fraction}. There will be no heldout shards; raise it to "
            "have some."
        )
    return "\n".join(lines)


def _list(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items())
