"""``lmscale generate RUN --prompt …``: text from a trained model, printed as it comes."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from lmscale.cli.evaluate import StepOption
from lmscale.cli.options import RunArgument


def generate(
    run: RunArgument,
    prompt: Annotated[str, typer.Option(help="Text to go on from.")],
    max_tokens: Annotated[int, typer.Option(help="Most tokens to add.")] = 200,
    temperature: Annotated[float, typer.Option(help="Divides the logits.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Only the k likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Only the likeliest tokens up to probability p.")
    ] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Over 1: fewer repeated tokens.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the likeliest token.")] = False,
    step: StepOption = None,
) -> None:
    """Continue a prompt with a run's model; the text streams to the terminal."""
    from lmscale.evaluation.generate import Generation, Sampling, TextStream
    from lmscale.evaluation.run import load_run
    from lmscale.ranks.device import select_device
    from lmscale.ranks.ranks import Ranks

    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        is_greedy=greedy,
        seed=seed,
    )
    loaded = load_run(run, step=step, device=select_device(Ranks()))
    generation = Generation(loaded.model, loaded.tokenizer, prompt, sampling, max_tokens=max_tokens)
    stream = TextStream(loaded.tokenizer)
    print(prompt, end="", flush=True)
    for token in generation:
        if token != loaded.tokenizer.eos_id:
            print(stream.add(token), end="", flush=True)
    print(stream.finish())
    if generation.stopped_by == "max_positions":
        print(f"(stopped: the model sees {loaded.model.max_positions} tokens)", file=sys.stderr)
