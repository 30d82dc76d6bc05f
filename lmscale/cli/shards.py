"""``lmscale shards``: documents → datasets of tar shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmscale.cli.data_tasks import TaskOption, TasksOption, echo_progress, echo_summary
from lmscale.cli.options import (
    ConfigArgument,
    JsonOption,
    SetOption,
    echo_json,
    print_warnings,
)
from lmscale.config import RunConfig, load_config
from lmscale.config.labels import describe_labels
from lmscale.errors import DataError
from lmscale.files.printing import count_of, say

if TYPE_CHECKING:
    from lmscale.shards.manifest import Manifest

app = typer.Typer(help="Documents → tar shards of tokens.", no_args_is_help=True)

DirArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DIR", help="A dataset's folder, or one with datasets below it.", show_default=False
    ),
]


@app.command()
def build(
    config: ConfigArgument,
    set_: SetOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Build again what is there, from any settings.")
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(help="Worker processes; 0 means one per core. Default: shards.processes."),
    ] = None,
    task: TaskOption = None,
    json_: JsonOption = False,
) -> None:
    """Tokenise the corpus of CONFIG into shards; goes on where a killed build was.

    With stream.packing best_fit it also counts the windows, which training would have to do first.

    With --task the tasks of an array share the work, on nodes that see the same folders. The
    result is that of one command. With --force, tasks replace only what was built otherwise.
    """
    from lmscale.corpus.stale import find_stale_corpus
    from lmscale.shards.build import build_shards
    from lmscale.shards.manifest import render_manifest
    from lmscale.tasks.target import parse_task

    member = parse_task(task) if task is not None else None
    settings = load_config(config, set_ or ())
    print_warnings(find_stale_corpus(settings.corpus))
    summary = build_shards(settings, member, processes=processes, force=force)
    problems: list[str] = []
    if settings.stream.packing == "best_fit":
        datasets = (built for built in summary.built.values() if member is None or built.is_new)
        folders = [built.folder for built in datasets if built.manifest.tokens]
        problems = _count_windows(folders, settings)
    echo_summary(summary, member, "slices", _render, render_manifest, as_json=json_)
    if problems:
        raise DataError(problems)


@app.command()
def status(
    config: ConfigArgument, tasks: TasksOption, set_: SetOption = None, json_: JsonOption = False
) -> None:
    """Print which tasks of an array of N are missing from the shards of CONFIG."""
    echo_progress(load_config(config, set_ or ()), "shards", tasks, as_json=json_)


def _count_windows(folders: list[Path], settings: RunConfig) -> list[str]:
    """Pack what was just built: the counts that this leaves beside it spare runs the packing.
    What is longer than a window that it may not be cut for, of all folders.
    """
    from lmscale.files.progress import progress
    from lmscale.stream.dataset import open_dataset
    from lmscale.stream.overlong import describe_overlong
    from lmscale.stream.whole_documents import LongDocumentsError

    problems: list[str] = []
    stream = settings.stream.model_copy(update={"verify_hashes": False})
    with progress("packing", None, "shards") as advance:
        for folder in folders:
            try:
                dataset = open_dataset(
                    folder, stream, shape=settings.window, check_files=False, advance=advance
                )
                print_warnings([*describe_overlong({str(folder): dataset}, "shards")])
            except LongDocumentsError as error:
                problems += error.problems
    return problems


@app.command()
def verify(
    folder: DirArgument,
    quick: Annotated[
        bool, typer.Option("--quick", help="Sizes and headers only, not every byte.")
    ] = False,
) -> None:
    """Check every shard in DIR against its manifest; exit code 2 if there are problems."""
    from lmscale.files.progress import BYTES, progress
    from lmscale.shards.manifest import load_manifest
    from lmscale.shards.verify import count_bytes, find_datasets, verify_dataset

    problems = []
    for dataset in find_datasets(folder):
        with progress(f"verifying {dataset}", count_bytes(dataset), BYTES) as advance:
            faults = verify_dataset(dataset, deep=not quick, advance=advance)
        problems += faults
        if not faults:
            manifest = load_manifest(dataset)
            shards = count_of(len(manifest.shards), "shard")
            say(f"{dataset}: {shards}, {manifest.tokens:,} tokens: sound")
    if problems:
        raise DataError(problems)


@app.command()
def show(folder: DirArgument, json_: JsonOption = False) -> None:
    """Print what the datasets in DIR hold."""
    from lmscale.shards.manifest import load_manifest, render_manifest
    from lmscale.shards.verify import find_datasets

    manifests = {str(path): load_manifest(path) for path in find_datasets(folder)}
    if json_:
        rows = {path: render_manifest(manifest) for path, manifest in manifests.items()}
        echo_json(rows)
        return
    for path, manifest in manifests.items():
        say(f"{path}\n{_render(manifest)}")


def _render(manifest: Manifest) -> str:
    bytes_per_token = manifest.text_bytes / max(manifest.tokens, 1)
    return (
        f"  {len(manifest.shards):,} shards, {manifest.bytes:,} bytes; {manifest.documents:,} "
        f"documents, {manifest.tokens:,} tokens ({manifest.dtype}), {bytes_per_token:.2f} "
        f"bytes of text a token\n"
        f"  tokenizer {manifest.tokenizer_fingerprint[:12]} ({manifest.vocab_size:,} pieces), "
        f"fingerprint {manifest.fingerprint[:12]}, "
        f"bos: {'none' if manifest.bos_id is None else manifest.bos_id}{_render_carried(manifest)}"
    )


def _render_carried(manifest: Manifest) -> str:
    """What the documents carry beside their tokens."""
    carried = ["pairs"] if manifest.has_pairs else []
    carried += ["dialogues"] if manifest.has_turns else []
    if manifest.labels is not None:
        carried.append(describe_labels(manifest.labels))
    return f"\n  with {' and '.join(carried)}" if carried else ""
