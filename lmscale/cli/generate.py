"""``lmscale generate``: text by a run's model as it comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lmscale.cli.evaluate import StepOption, WeightsOption
from lmscale.cli.options import RunArgument
from lmscale.files.printing import say, say_text

if TYPE_CHECKING:
    from lmscale.evaluation.generate import Generation

StopOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="End before this text, or at the special token of this name; may be given several "
        "times.",
    ),
]
SpecialTokensOption = Annotated[
    bool,
    typer.Option(
        "--special-tokens",
        help="Names of special tokens in the prompt are those tokens, not text, and those that the "
        "model writes are shown.",
    ),
]


def generate(
    run: RunArgument,
    prompt: Annotated[str, typer.Option(help="Text to go on from; none: a text of its own.")] = "",
    suffix: Annotated[
        str | None,
        typer.Option(
            help="Text to end in, for a run that fills gaps (fill_middle, spans, infill)."
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens to add.")] = 200,
    temperature: Annotated[float, typer.Option(help="Divides the logits.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Only the k likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Only the likeliest tokens up to probability p.")
    ] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Over 1: fewer repeated tokens.")] = 1.0,
    stop: StopOption = None,
    special_tokens: SpecialTokensOption = False,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the likeliest token.")] = False,
    step: StepOption = None,
    weights: WeightsOption = None,
) -> None:
    """Continue a prompt with a run's model; the text streams to the terminal, behind the prompt.
    Of a run of pairs, completion or infill it is the answer alone.
    """
    from lmscale.cli.scoring_ranks import ModelAsked, find_asked, load_asked, open_ranks
    from lmscale.evaluation.prompts import build_prompt, check_prompt
    from lmscale.evaluation.sampling import Sampling
    from lmscale.ranks.ranks import Ranks

    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        is_greedy=greedy,
        seed=seed,
    )
    alone, asked = Ranks(), ModelAsked(run=run, step=step, weights=weights)
    found = find_asked(asked, alone)
    assert found is not None  # of one rank
    question = build_prompt(
        found.config,
        found.tokenizer,
        prompt,
        suffix,
        bos_id=found.bos_id,
        special=special_tokens,
        stops=stop or (),
    )
    check_prompt(found.config, question, max_tokens)
    with open_ranks(alone) as device:
        loaded = load_asked(asked, found, device, alone)
    from lmscale.evaluation.generate import Generation

    generation = Generation(
        loaded.model, loaded.tokenizer, question, sampling, max_tokens=max_tokens
    )
    _stream(generation, prompt, suffix or "")
    if generation.stopped_by == "max_positions":
        say(f"(stopped: the model sees {loaded.model.max_positions} tokens)", err=True)


def _stream(generation: Generation, prompt: str, suffix: str) -> None:
    from lmscale.evaluation.generate import stream_answer

    is_answered = generation.prompt.is_answered
    if not is_answered:
        say_text(prompt)
    for piece in stream_answer(generation):
        say_text(piece)
    say_text("\n" if is_answered else f"{suffix}\n")
