"""``lmscale tokenizer``: documents → a SentencePiece tokenizer."""

from __future__ import annotations

from typing import Annotated

import typer

from lmscale.cli.options import ConfigArgument, JsonOption, SetOption, echo_json
from lmscale.config import load_config
from lmscale.files.printing import say

app = typer.Typer(help="Documents → a SentencePiece tokenizer.", no_args_is_help=True)


@app.command()
def train(
    config: ConfigArgument,
    set_: SetOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing tokenizer.")] = False,
) -> None:
    """Train the tokenizer of CONFIG on its corpus; one trained before from the same is kept."""
    from lmscale.tokenizer.train import train_tokenizer

    settings = load_config(config, set_ or ())
    tokenizer = train_tokenizer(
        settings.tokenizer, settings.corpus.folder, list(settings.corpus.sources), force=force
    )
    say(
        f"{settings.tokenizer.folder}: {settings.tokenizer.kind}, {tokenizer.vocab_size:,} pieces, "
        f"fingerprint {tokenizer.fingerprint[:12]}"
    )


@app.command()
def show(
    config: ConfigArgument,
    text: Annotated[
        str, typer.Option(help="Also show how this text is cut.")
    ] = "Hello, world. 你好，世界。",
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Print what the tokenizer of CONFIG is and how it cuts a text."""
    from lmscale.tokenizer.codec import load_tokenizer, render_meta

    folder = load_config(config, set_ or ()).tokenizer.folder
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode(text).tolist()
    meta = render_meta(tokenizer)
    if json_:
        pieces = [tokenizer.piece(number) for number in ids]
        echo_json({**meta, "text": text, "ids": ids, "pieces": pieces})
        return
    say(f"{folder}: {meta['kind']}, {meta['vocab_size']:,} pieces")
    say(f"  fingerprint  {meta['fingerprint']}")
    say("  special ids  " + " ".join(f"{k}={v}" for k, v in meta["special_ids"].items()))
    say(f"  {len(text.encode()):,} bytes → {len(ids):,} tokens")
    say("  " + " ".join(f"{tokenizer.piece(number)}({number})" for number in ids))
