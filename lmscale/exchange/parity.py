# Shape letters: T time, V vocabulary or classes, N samples or tokens.
"""The same model here and in transformers: are its logits, and what it writes, the same?

transformers' one is loaded first, answers, and is dropped before ours is built, so that one of them
is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmscale.checkpoint.differences import MAX_NAMED
from lmscale.config.hf.architecture import Head
from lmscale.errors import DataError
from lmscale.exchange.samples import Question, Samples
from lmscale.exchange.their_library import import_transformers, quiet
from lmscale.files.jsonl import read_object
from lmscale.model.decoder import Decoder
from lmscale.model.encoder import Encoder
from lmscale.model.family import CrossModel, Model

TOLERANCE = 1e-5  # of the logits, by norm; those measured are some 5e-7
WRITTEN_TOKENS = 32
NUM_WRITTEN = 2  # samples that are gone on from
# Whatever a folder's generation_config.json says of these.
_GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
AUTO_CLASSES: Mapping[tuple[str, Head], str] = {
    ("decoder", "tokens"): "AutoModelForCausalLM",
    ("decoder", "texts"): "AutoModelForSequenceClassification",
    ("encoder", "tokens"): "AutoModelForMaskedLM",
    ("encoder", "order"): "AutoModelForPreTraining",
    ("encoder", "texts"): "AutoModelForSequenceClassification",
    ("encoder", "tags"): "AutoModelForTokenClassification",
    ("encoder", "answers"): "AutoModelForQuestionAnswering",
    ("encoder", "states"): "AutoModel",
    ("encoder_decoder", "pairs"): "AutoModelForSeq2SeqLM",
}


Outputs = tuple[Tensor, ...]
"""Logits of one sample, each f32 [T, V]; of a text as a whole [1, V]; or states."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What transformers' model says."""

    outputs: tuple[Outputs, ...]
    """Of each sample"""
    written: tuple[tuple[Question, tuple[int, ...]], ...]
    """(what it was asked, what it goes on with, always the likeliest token)"""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How near the two came."""

    samples: int
    tokens: int
    origin: str
    error: float
    """The largest of any sample: norm of the difference by the norm of transformers' logits."""
    written: int
    """Tokens of greedy continuations that both chose."""
    continued: int
    """Samples that these go on from."""
    ties: int
    """Of these, where ours has two likeliest that lie nearer than the two models do."""
    tolerance: float = TOLERANCE

    def describe(self, who: str) -> str:
        """The logits in a sentence for people; ``who`` has given them."""
        return (
            f"{who} gave the logits of the run's model on {self.samples} samples ({self.tokens:,} "
            f"tokens, {self.origin}): the largest difference of one is {self.error:.1e} of their "
            f"norm, where {self.tolerance:.0e} is allowed."
        )


def ask_theirs(
    folder: Path,
    samples: Samples,
    *,
    family: str,
    head: Head,
    class_name: str | None = None,
    writes: bool = False,
    wrap: Callable[[Any], Any] = lambda theirs: theirs,
    beside: Collection[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> Answers:
    """What the model in ``folder`` answers, in fp32 on the CPU, whatever dtype its files have.

    ``writes``: also how it goes on from the first tokens of some samples, by its own
    generation_config.json. ``wrap``: what answers in place of the loaded model. ``beside``: tensors
    of the files, or of the class, that are none of the other's. ``settings``: of the model's config
    in place of the folder's.

    Raises ``DataError`` where it loads as another class than ``class_name``, or lacks a tensor.
    """
    transformers = import_transformers()
    with quiet(transformers), torch.no_grad():
        auto = getattr(transformers, AUTO_CLASSES[family, head])
        theirs, report = auto.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
            **(settings or {}),
        )
        _check_report(folder, theirs, report, class_name, beside)
        theirs = wrap(theirs).eval()
        questions = [*samples.questions()]
        outputs = tuple(_their_outputs(theirs, question, head) for question in questions)
        written = [_go_on(theirs, each) for each in questions[:NUM_WRITTEN]] if writes else []
    return Answers(outputs=outputs, written=tuple(written))


def compare(
    model: Model,
    samples: Samples,
    answers: Answers,
    *,
    head: Head,
    barred: Sequence[int] = (),
    who: str = "transformers",
) -> Parity:
    """Raises ``DataError`` with what differs: logits by more than ``TOLERANCE``, or a token.

    ``barred``: ids that nothing written may have, as their generation_config.json bars them.
    ``who``: has answered, for messages.
    """
    with torch.no_grad():
        ours = [our_outputs(model, question, head) for question in samples.questions()]
        errors = [float(each) for each in _errors(ours, answers.outputs)]
        wrong = [error for error in errors if not error <= TOLERANCE]
        problems = [
            f"the logits of {len(wrong)} of {len(errors)} samples ({samples.origin}) differ by up "
            f"to {max(errors):.1e} of their norm, and rounding is up to {TOLERANCE:.0e}"
            for _ in wrong[:1]
        ]
        near = 0.0 if wrong else 4 * _farthest(ours, answers.outputs)
        chosen, ties = 0, 0
        for question, more in answers.written:
            problem, own_ties = _judge_written(model, question, more, barred, head, near=near)
            ties, chosen = ties + own_ties, chosen + len(more)
            problems += [problem] if problem else []
    if problems:
        raise DataError([f"{who} gives other answers: {each}." for each in problems])
    return Parity(
        samples=len(samples.rows),
        tokens=samples.tokens,
        origin=samples.origin,
        error=max(errors),
        written=chosen,
        continued=len(answers.written),
        ties=ties,
    )


def read_barred(folder: Path) -> list[int]:
    """Ids that transformers' model never writes, as its generation_config.json says."""
    settings = read_object(folder / "generation_config.json")
    return list(settings.get("suppress_tokens") or ())


def _check_report(
    folder: Path,
    theirs: Any,
    report: Mapping[str, Any],
    class_name: str | None,
    beside: Collection[str],
) -> None:
    found = type(theirs).__name__
    problems = [
        f"{folder}: transformers finds {kind.split('_')[0]} tensors: {', '.join(map(str, names))}."
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if (names := sorted({*report.get(kind, ())} - {*beside}, key=str)[:MAX_NAMED])
    ]
    if class_name not in (None, found):
        problems.append(f"{folder}: transformers loads it as {found}, not as {class_name}.")
    if problems:
        raise DataError(problems)


def largest_difference(ours: Sequence[Outputs], theirs: Sequence[Outputs]) -> float:
    """Of some samples' logits, each by the norm of ``theirs``."""
    return max(float(error) for error in _errors(ours, theirs))


def _errors(ours: Sequence[Outputs], theirs: Sequence[Outputs]) -> Iterator[Tensor]:
    """Of each sample's logits of tokens. What there is one of for a whole sample is few numbers
    that may be near 0: of all samples together. Zeros differ from zeros by 0.
    """
    least = torch.finfo(torch.float32).tiny
    for own, other in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True):
        if all(len(each) == 1 for each in other):
            own, other = (torch.cat(own),), (torch.cat(other),)
        for one, another in zip(own, other, strict=True):
            yield (one - another).norm() / another.norm().clamp_min(least)


def _farthest(ours: Sequence[Outputs], theirs: Sequence[Outputs]) -> float:
    pairs = zip(chain(*ours), chain(*theirs), strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs)


def our_outputs(model: Model, question: Question, head: Head) -> Outputs:
    """The logits of one document, or pair."""
    ids_1T = torch.tensor([question.ids], device=model.device)
    layout = model.lay_out(torch.zeros_like(ids_1T, dtype=torch.bool), mask_documents=False)
    if isinstance(model, CrossModel):
        written_1T = torch.tensor([question.written], device=model.device)
        begins_1T = torch.zeros_like(written_1T, dtype=torch.bool)
        hidden_1TD = model(written_1T, model.lay_out_target(begins_1T, ids_1T, layout))
    elif question.types is not None:
        hidden_1TD = model(ids_1T, layout, torch.tensor([question.types], device=model.device))
    else:
        hidden_1TD = model(ids_1T, layout)
    logits = [hidden_1TD[0]] if head == "states" else []
    if head in ("tokens", "order", "pairs"):
        logits.append(model.head(hidden_1TD)[0])
    if head in ("order", "texts"):
        assert isinstance(model, Encoder | Decoder)
        read = -1 if isinstance(model, Decoder) else 0  # of the last or the first token
        logits.append(model.classify(hidden_1TD[:, read]))
    if head in ("tags", "answers"):
        assert isinstance(model, Encoder)
        logits.append(model.classify_tokens(hidden_1TD[0]))
    return tuple(each.float().cpu() for each in logits)


def our_logits(model: Model, ids: Sequence[int], head: Head) -> Tensor:
    """Of one document, f32 [T, V]."""
    return our_outputs(model, Question(tuple(ids), None, None), head)[0]


def _their_outputs(theirs: Any, question: Question, head: Head) -> Outputs:
    ids_1T = torch.tensor([question.ids])
    given = {"input_ids": ids_1T, "attention_mask": torch.ones_like(ids_1T)}
    if question.types is not None:
        given["token_type_ids"] = torch.tensor([question.types])
    if question.written is not None:
        given["decoder_input_ids"] = torch.tensor([question.written])
    answer = theirs(**given)
    if head == "states":
        return (answer.last_hidden_state[0].float(),)
    if head == "order":
        return answer.prediction_logits[0].float(), answer.seq_relationship_logits.float()
    if head == "answers":
        return (torch.stack([answer.start_logits[0], answer.end_logits[0]], dim=-1).float(),)
    return ((answer.logits if head == "texts" else answer.logits[0]).float(),)


def _go_on(theirs: Any, question: Question) -> tuple[Question, tuple[int, ...]]:
    """Of a decoder the beginning of a sample; an encoder-decoder reads all of its source."""
    longest = _longest(theirs.config)
    if question.written is None:
        cut = min(WRITTEN_TOKENS, max(longest // 2, longest - WRITTEN_TOKENS))
        question = question._replace(ids=question.ids[:cut])
        longest -= len(question.ids)
    else:
        question = question._replace(written=question.written[:1])
        longest -= 1
    ids_1T = torch.tensor([question.ids])
    written_1T = theirs.generate(
        ids_1T,
        attention_mask=torch.ones_like(ids_1T),
        max_new_tokens=min(WRITTEN_TOKENS, longest),
        **_GREEDY,
    )
    before = question.ids if question.written is None else question.written
    return question, tuple(written_1T[0, len(before) :].tolist())


def _longest(config: Any) -> int:
    return int(getattr(config, "max_position_embeddings", None) or 2**31)


def _judge_written(
    model: Model,
    question: Question,
    more: Sequence[int],
    barred: Sequence[int],
    head: Head,
    *,
    near: float,
) -> tuple[str, int]:
    """Why ours would not have written ``more``, or nothing, and the ties in it.

    Each token is judged behind those that transformers wrote, so that a tie does not end it.
    """
    before = question.ids if question.written is None else question.written
    name = "ids" if question.written is None else "written"
    whole = question._replace(**{name: (*before, *more)})
    logits_TV = our_outputs(model, whole, head)[0][len(before) - 1 : -1]
    logits_TV[:, list(barred)] = -torch.inf
    best_T, choices_T = logits_TV.max(-1)
    theirs_T = logits_TV.gather(-1, torch.tensor(more)[:, None])[:, 0]
    ties = 0
    for place, (best, own, token) in enumerate(
        zip(best_T.tolist(), theirs_T.tolist(), more, strict=True)
    ):
        if best - own > near:
            choice = int(choices_T[place])
            return f"token {place} of a continuation is {token}, and ours is {choice}", ties
        ties += best > own
    return "", ties
