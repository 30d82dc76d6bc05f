"""``lmscale tokenizer``: documents, or another program's model → a run's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lmscale.cli.options import ConfigArgument, JsonOption, SetOption, echo_json, print_warnings
from lmscale.config import load_config
from lmscale.files.printing import say

app = typer.Typer(help="Documents, or another program's model → a tokenizer.", no_args_is_help=True)

_WHAT = "A run's YAML file, a tokenizer's folder, a SentencePiece model or a tokenizer.json."


@app.command()
def train(
    config: ConfigArgument,
    set_: SetOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing tokenizer.")] = False,
) -> None:
    """Train the tokenizer of CONFIG on its corpus; one trained before from the same is kept."""
    from lmscale.config.token_ids import render_ids
    from lmscale.corpus.stale import find_stale_corpus
    from lmscale.tokenizer.named_ids import find_own_ids
    from lmscale.tokenizer.showing import list_tokens
    from lmscale.tokenizer.train import train_tokenizer

    settings = load_config(config, set_ or ())
    print_warnings(find_stale_corpus(settings.corpus))
    tokenizer = train_tokenizer(
        settings.tokenizer, settings.corpus.folder, list(settings.corpus.sources), force=force
    )
    say(
        f"{settings.tokenizer.folder}: {settings.tokenizer.kind}, {tokenizer.vocab_size:,} pieces, "
        f"fingerprint {tokenizer.fingerprint[:12]}"
    )
    if tokenizer.special_tokens:
        say(f"  special tokens: {list_tokens(tokenizer.special_tokens)}")
    if named := find_own_ids(tokenizer):
        say(f"  An objective takes them where you write tokenizer.ids: {render_ids(named)}")


@app.command("import")
def import_(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A SentencePiece model, a tokenizer.json, or a folder of Hugging Face's.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write: a run's tokenizer.folder.")],
    eos: Annotated[
        str | None, typer.Option(help="The piece that ends a document, in place of its own.")
    ] = None,
    bos: Annotated[
        str | None, typer.Option(help="The piece that begins a document, in place of its own.")
    ] = None,
    pad: Annotated[str | None, typer.Option(help="The piece for padding.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another tokenizer.")] = False,
) -> None:
    """Make another program's tokenizer a run's: its rules and ids are kept as they are."""
    from lmscale.config.token_ids import render_ids
    from lmscale.tokenizer.importing import import_tokenizer
    from lmscale.tokenizer.named_ids import find_named_ids
    from lmscale.tokenizer.showing import render_tokenizer

    chosen = {"eos": eos, "bos": bos, "pad": pad}
    tokenizer = import_tokenizer(path, out, chosen=chosen, force=force)
    say(f"{out}: {render_tokenizer(tokenizer)}")
    without_bos = "" if tokenizer.bos_id is not None else ", shards: {bos: false}"
    named = find_named_ids(tokenizer, path)
    ids = f", ids: {render_ids(named)}" if named else ""
    say(
        "  In the configuration write tokenizer: {folder: "
        f"{out}, vocab_size: {tokenizer.vocab_size}{ids}}}{without_bos}"
    )


@app.command()
def show(
    what: Annotated[Path, typer.Argument(metavar="CONFIG|PATH", help=_WHAT, show_default=False)],
    text: Annotated[
        str, typer.Option(help="Also show how this text is cut.")
    ] = "Hello, world. 你好，世界。",
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Print what a tokenizer is, whether text comes back from it, and how it cuts a text."""
    from lmscale.tokenizer.codec import render_meta
    from lmscale.tokenizer.showing import open_named, render_pieces, render_tokenizer

    named, tokenizer = open_named(what, set_ or ())
    ids = tokenizer.encode(text).tolist()
    pieces = [tokenizer.piece(number) for number in ids]
    if json_:
        traits = {"is_exact": tokenizer.is_exact, "rules": tokenizer.describe()}
        meta = render_meta(tokenizer)
        echo_json({**meta, **traits, "text": text, "ids": ids, "pieces": pieces})
        return
    say(f"{named}: {render_tokenizer(tokenizer)}")
    say(f"  {len(text.encode()):,} bytes → {len(ids):,} tokens")
    say(f"  {render_pieces(tokenizer, ids)}")


@app.command()
def compare(
    paths: Annotated[
        list[Path], typer.Argument(metavar="CONFIG|PATH…", help=_WHAT, show_default=False)
    ],
    text: Annotated[
        Path | None,
        typer.Option(
            help="A file of text, or a run's YAML file for its held-out documents; default: those "
            "of the first CONFIG."
        ),
    ] = None,
    max_bytes: Annotated[
        int, typer.Option(min=1, help="Text to encode, taken evenly over all of it.")
    ] = 5_000_000,
    json_: JsonOption = False,
) -> None:
    """Encode the same text by several tokenizers: tokens, unknown text, speed on one core."""
    from lmscale.files.progress import progress
    from lmscale.tokenizer.showing import measure, open_named, read_texts, render_comparison

    texts = read_texts(text, paths, max_bytes=max_bytes)
    opened = [open_named(path) for path in paths]
    with progress("encoding", len(opened), "tokenizers") as advance:
        rows = []
        for named, tokenizer in opened:
            rows.append(measure(named, tokenizer, texts))
            advance(1)
    if json_:
        echo_json([vars(row) for row in rows])
        return
    say(render_comparison(rows))
