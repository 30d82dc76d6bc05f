"""``lmscale answer``: what a run finds in a context, of one question or of a file of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lmscale.cli.evaluate import StepOption, WeightsOption
from lmscale.cli.options import JsonOption, RunArgument, echo_json
from lmscale.errors import ConfigError, DataError
from lmscale.files.jsonl import unreadable
from lmscale.files.printing import count_of, say

if TYPE_CHECKING:
    from lmscale.evaluation.found_answers import FoundAnswer
    from lmscale.evaluation.questions import AskedQuestion

STDIN = "-"


def answer(
    run: RunArgument,
    question: Annotated[str, typer.Option(help="What is asked.")] = "",
    context: Annotated[
        str, typer.Option(metavar="FILE|-", help="The text that the answer is sought in.")
    ] = "",
    questions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="In place of one question, a file of JSON lines with their contexts and answers: "
            "exact match and F1, as SQuAD and CMRC 2018 score them.",
        ),
    ] = None,
    examples: Annotated[
        int, typer.Option(min=0, help="With --questions, so many wrong answers are shown.")
    ] = 5,
    step: StepOption = None,
    weights: WeightsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the answer to a question in a text, by a run with objective.name: answers."""
    from lmscale.cli.scoring_ranks import ModelAsked, find_asked, load_asked, open_ranks
    from lmscale.evaluation.questions import check_answering, plan_reading
    from lmscale.files.progress import progress
    from lmscale.ranks.ranks import Ranks
    from lmscale.runs.run_folder import load_run_config

    if (questions is None) != bool(question and context) or (questions and (question or context)):
        raise ConfigError("Give --question and --context, or --questions with a file of both.")
    config = load_run_config(run)
    check_answering(config)
    asked = _read_asked(question, context, questions, config)
    alone, wanted = Ranks(), ModelAsked(run=run, step=step, weights=weights)
    found = find_asked(wanted, alone)
    assert found is not None  # of one rank
    _, windows = plan_reading(asked, config, found.tokenizer, found.bos_id)
    with open_ranks(alone) as device:
        loaded = load_asked(wanted, found, device, alone)
        from lmscale.evaluation.found_answers import find_answers

        with progress("reading", len(windows), "windows") as advance:
            answers = find_answers(loaded, asked, advance=advance)
    if questions is None:
        _show_answer(answers[0], as_json=as_json)
    else:
        _show_scores(asked, answers, examples, as_json=as_json)


def _read_asked(
    question: str, context: str, questions: Path | None, config: Any
) -> list[AskedQuestion]:
    from lmscale.evaluation.questions import AskedQuestion, read_questions

    if questions is not None:
        return read_questions(questions, config)
    text = _read_context(context)
    if not text.strip():
        raise DataError(f"{_name_of(context)} holds no text.")
    if not question.strip():
        raise ConfigError("--question: asks nothing.")
    return [AskedQuestion(question=question, context=text)]


def _read_context(context: str) -> str:
    try:
        content = (
            sys.stdin.buffer.read() if context == STDIN else Path(context).expanduser().read_bytes()
        )
        return content.decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"--context {context[:60]!r}: there is no such file. Give a file with the text, or - "
            "and the text on standard input."
        ) from None
    except OSError as error:
        raise unreadable(context, error) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{_name_of(context)} is not UTF-8 at byte {error.start:,}.") from None


def _name_of(context: str) -> str:
    return "Standard input" if context == STDIN else context


def _show_answer(found: FoundAnswer, *, as_json: bool) -> None:
    if as_json:
        echo_json(vars(found))
        return
    say(found.text or "(the context has no answer)")
    where = f", characters {found.begin:,} to {found.end:,}" if found.text else ""
    say(f"probability {found.probability:.3f}{where}", err=True)


def _show_scores(
    asked: Sequence[AskedQuestion], answers: Sequence[FoundAnswer], examples: int, *, as_json: bool
) -> None:
    from lmscale.metrics.answers import add_scores, score_answer

    scores = {
        unit: [
            score_answer(found.text, each.answers, unit) for found, each in _pairs(asked, answers)
        ]
        for unit in ("words", "characters")
    }
    totals = {unit: add_scores(each) for unit, each in scores.items()}
    worst = sorted(
        range(len(asked)), key=lambda at: scores["words"][at].f1 + scores["characters"][at].f1
    )
    # An answer that either script calls exact is no error.
    wrong = [at for at in worst if not any(each[at].exact for each in scores.values())]
    if as_json:
        figures = {
            unit: {"exact_match": total.exact / total.count, "f1": total.f1 / total.count}
            for unit, total in totals.items()
        }
        rows = [
            {"where": each.where, "wanted": list(each.answers)} | vars(found)
            for found, each in _pairs(asked, answers)
        ]
        echo_json({"questions": len(asked), **figures, "answers": rows})
        return
    unanswered = sum(not each.answers for each in asked)
    say(f"{count_of(len(asked), 'question')}, {unanswered:,} of them without an answer")
    for unit, total in totals.items():
        name = {"words": "words, as SQuAD", "characters": "characters, as CMRC 2018"}[unit]
        say(
            f"{name:<26} exact match {total.exact / total.count:6.1%}   "
            f"F1 {total.f1 / total.count:6.1%}"
        )
    if wrong[:examples]:
        say(f"{count_of(len(wrong), 'wrong answer')}, the worst of them:")
    for at in wrong[:examples]:
        question, found = asked[at], answers[at]
        wanted = " | ".join(question.answers) or "(none)"
        say(f"  {question.where}: {question.question}")
        say(f"    found {found.text or '(none)'} ({found.probability:.3f}), wanted {wanted}")


def _pairs(
    asked: Sequence[AskedQuestion], answers: Sequence[FoundAnswer]
) -> list[tuple[FoundAnswer, AskedQuestion]]:
    return list(zip(answers, asked, strict=True))
