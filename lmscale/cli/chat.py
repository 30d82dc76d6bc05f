"""``lmscale chat``: a dialogue with a run's model, in a terminal or through pipes."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from lmscale.cli.evaluate import StepOption, WeightsOption
from lmscale.cli.options import RunArgument, print_notes, print_problems
from lmscale.errors import EXIT_USER, LmscaleError
from lmscale.files.printing import say, say_text

if TYPE_CHECKING:
    from lmscale.evaluation.dialogue import Dialogue
    from lmscale.evaluation.found import FoundRun
    from lmscale.evaluation.run import LoadedRun
    from lmscale.evaluation.sampling import Sampling
    from lmscale.tokenizer.chat_template import ChatTemplate

TemplateOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Chat template in place of the run's: chatml, llama3, plain, or a file.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Partner:
    """Who is talked to, and how."""

    loaded: LoadedRun
    template: ChatTemplate
    sampling: Sampling
    max_tokens: int
    is_terminal: bool


def chat(
    run: RunArgument,
    system: Annotated[str, typer.Option(help="Who the model is told to be.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 512,
    temperature: Annotated[float, typer.Option(help="Divides the logits.")] = 0.7,
    top_p: Annotated[
        float | None, typer.Option(help="Only the likeliest tokens up to probability p.")
    ] = 0.95,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the likeliest token.")] = False,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answers.")] = 0,
    template: TemplateOption = None,
    step: StepOption = None,
    weights: WeightsOption = None,
) -> None:
    """Talk with a run's model. Answers stream; Ctrl-C cuts one, Ctrl-D ends, /help lists commands.
    Without a terminal every line of the standard input is a question, Ctrl-C ends, and the exit
    code is 2 where one could not be asked.
    """
    from lmscale.cli.scoring_ranks import ModelAsked, find_asked, load_asked, open_ranks
    from lmscale.evaluation.dialogue import Dialogue
    from lmscale.evaluation.prompts import check_chat
    from lmscale.evaluation.sampling import Sampling
    from lmscale.ranks.ranks import Ranks

    sampling = Sampling(temperature=temperature, top_p=top_p, is_greedy=greedy, seed=seed)
    alone, asked = Ranks(), ModelAsked(run=run, step=step, weights=weights)
    found = find_asked(asked, alone)
    assert found is not None  # of one rank
    chosen = _choose_template(found, template)
    dialogue = Dialogue(system=system)
    check_chat(found.config, chosen, dialogue.messages("a"))
    with open_ranks(alone) as device:
        loaded = load_asked(asked, found, device, alone)
    partner = Partner(
        loaded=loaded,
        template=chosen,
        sampling=sampling,
        max_tokens=max_tokens,
        is_terminal=sys.stdin.isatty() and sys.stdout.isatty(),
    )
    if partner.is_terminal:
        say(f"{found.name}. Ctrl-C cuts an answer, Ctrl-D ends, /help lists commands.", err=True)
    if not _converse(partner, dialogue):
        raise typer.Exit(EXIT_USER)


def _choose_template(found: FoundRun, wanted: str | None) -> ChatTemplate:
    """The one that was asked for, else the run's. Raises ``ConfigError`` where it has none."""
    from lmscale.config.chat_templates import load_template
    from lmscale.errors import ConfigError
    from lmscale.tokenizer.chat_template import ChatTemplate, with_bos
    from lmscale.tokenizer.kept_template import load_kept_template

    if wanted is not None:
        template = ChatTemplate(load_template(wanted, setting="--template"), found.tokenizer)
        return template if found.bos_id is None else with_bos(template)
    if text := load_kept_template(found.folder):
        return ChatTemplate(text, found.tokenizer)
    raise ConfigError(
        f"{found.folder} is no chat model: it has no chat template, as its objective is "
        f"{found.config.objective.name}. Begin a run of objective.name: dialogue with it "
        f"(run.init_from: {found.folder}; docs/chat.md), or talk to it as it is with "
        "--template plain."
    )


def _converse(partner: Partner, dialogue: Dialogue) -> bool:
    """False: through pipes, where nobody says it in other words, a line could not be asked."""
    from lmscale.evaluation.dialogue import HELP, parse_line

    is_whole = True
    for line in _read_lines(is_terminal=partner.is_terminal):
        try:
            command, text = parse_line(line)
            if command == "exit":
                break
            if command == "help":
                say(HELP, err=True)
            elif command is not None:
                dialogue = replace(dialogue, turns=())
                if command == "system":
                    dialogue = replace(dialogue, system=text)
                print_notes(["a new dialogue begins"])
            elif text:
                dialogue = _answer(partner, dialogue, text)
        except LmscaleError as error:
            print_problems(error.problems)
            is_whole = partner.is_terminal
    return is_whole


def _read_lines(*, is_terminal: bool) -> Iterator[str]:
    if isinstance(sys.stdin, io.TextIOWrapper):  # a byte that is no text is told of its line
        sys.stdin.reconfigure(errors="surrogateescape")
    if not is_terminal:
        yield from sys.stdin
        return
    with suppress(ImportError):  # some Pythons have none, and then lines are not edited
        import readline  # noqa: F401  # input() edits lines by it
    while True:
        try:
            yield input("> ")
        except EOFError:
            say()
            return
        except KeyboardInterrupt:
            say("\n(Ctrl-D or /exit ends)", err=True)


def _answer(partner: Partner, dialogue: Dialogue, question: str) -> Dialogue:
    """Show an answer as it comes. One that was cut by Ctrl-C stays as far as it came."""
    from lmscale.evaluation.dialogue import fit_question
    from lmscale.evaluation.generate import Generation, stream_answer

    loaded, sampling = partner.loaded, partner.sampling
    positions = loaded.model.max_positions
    prompt, num_forgotten = fit_question(
        partner.template,
        dialogue,
        question,
        max_positions=positions,
        reserve=min(partner.max_tokens, max(1, positions // 4)),
    )
    if num_forgotten:
        oldest = "question and its answer are"
        if num_forgotten > 1:
            oldest = f"{num_forgotten:,} questions and their answers are"
        print_notes([f"the model sees {positions:,} tokens: the oldest {oldest} left out"])
        dialogue = dialogue.forget(num_forgotten)
    seed = (sampling.seed + len(dialogue.turns)) % 2**63
    generation = Generation(
        loaded.model,
        loaded.tokenizer,
        prompt,
        replace(sampling, seed=seed),
        max_tokens=partner.max_tokens,
    )
    answer, is_cut = "", False
    try:
        for piece in stream_answer(generation):
            shown = piece if answer else piece.lstrip()  # plain has a space behind the colon
            answer += shown
            say_text(shown)
    except KeyboardInterrupt:
        if not partner.is_terminal:  # of a file of questions the next one is not waited for
            raise
        is_cut = True
    say()
    if is_cut:
        print_notes(["the answer was cut"])
    elif generation.stopped_by != "eos":
        print_notes([f"the answer ends here by {generation.stopped_by}"])
    # A template may write no empty turn, and a model has never seen one.
    return dialogue.answered(question, answer) if answer.strip() else dialogue
