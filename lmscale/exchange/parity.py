# Shape letters: T time, V vocabulary or classes.
"""The same model here and in transformers: are its logits, and what it writes, the same?

transformers' one is loaded first, answers, and is dropped before ours is built, so that one of them
is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmscale.checkpoint.differences import MAX_NAMED
from lmscale.config.hf.architecture import Head
from lmscale.errors import DataError
from lmscale.exchange.samples import Samples
from lmscale.exchange.their_library import import_transformers, quiet
from lmscale.model.family import Model

TOLERANCE = 1e-5  # of the logits, by norm; those measured are some 5e-7
WRITTEN_TOKENS = 32
NUM_WRITTEN = 2  # samples that are gone on from
AUTO_CLASSES: Mapping[tuple[str, Head], str] = {
    ("decoder", "tokens"): "AutoModelForCausalLM",
    ("encoder", "tokens"): "AutoModelForMaskedLM",
    ("encoder", "order"): "AutoModelForPreTraining",
    ("encoder", "texts"): "AutoModelForSequenceClassification",
    ("encoder", "tags"): "AutoModelForTokenClassification",
    ("encoder_decoder", "pairs"): "AutoModelForSeq2SeqLM",
}


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What transformers' model says."""

    logits: tuple[Tensor, ...]
    """f32 [T, V] of each sample"""
    written: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    """(prompt, what it goes on with, always the likeliest token)"""


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


def ask_theirs(
    folder: Path,
    samples: Samples,
    *,
    family: str,
    head: Head,
    class_name: str | None = None,
    writes: bool = False,
    wrap: Callable[[Any], Any] = lambda theirs: theirs,
) -> Answers:
    """What the model in ``folder`` answers, in fp32 on the CPU, whatever dtype its files have.

    ``writes``: also how it goes on from the first tokens of some samples, by its own
    generation_config.json. ``wrap``: what answers in place of the loaded model. Raises
    ``DataError`` where it loads as another class than ``class_name``, or lacks a tensor.
    """
    transformers = import_transformers()
    with quiet(transformers), torch.no_grad():
        auto = getattr(transformers, AUTO_CLASSES[family, head])
        theirs, report = auto.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        _check_report(folder, theirs, report, class_name)
        theirs = wrap(theirs).eval()
        logits = tuple(_their_logits(theirs, row, head) for row in samples.rows)
        written = [_go_on(theirs, row) for row in samples.rows[:NUM_WRITTEN]] if writes else []
    return Answers(logits=logits, written=tuple(written))


def compare(
    model: Model,
    samples: Samples,
    answers: Answers,
    *,
    head: Head,
    barred: Sequence[int] = (),
) -> Parity:
    """Raises ``DataError`` with what differs: logits by more than ``TOLERANCE``, or a token.

    ``barred``: ids that nothing written may have, as their generation_config.json bars them.
    """
    errors, apart = [], 0.0
    with torch.no_grad():
        for row, theirs_TV in zip(samples.rows, answers.logits, strict=True):
            difference_TV = our_logits(model, row, head) - theirs_TV
            errors.append(float(difference_TV.norm() / theirs_TV.norm()))
            apart = max(apart, float(difference_TV.abs().max()))
        wrong = [number for number, error in enumerate(errors) if not error <= TOLERANCE]
        problems = [
            f"the logits of {len(wrong)} of {len(errors)} samples ({samples.origin}) differ by up "
            f"to {max(errors):.1e} of their norm, and rounding is up to {TOLERANCE:.0e}"
            for _ in wrong[:1]
        ]
        near, chosen, ties = 0.0 if wrong else 4 * apart, 0, 0
        for prompt, more in answers.written:
            problem, own_ties = _judge_written(model, prompt, more, barred, near=near)
            ties, chosen = ties + own_ties, chosen + len(more)
            problems += [problem] if problem else []
    if problems:
        raise DataError([f"transformers gives other answers: {each}." for each in problems])
    return Parity(
        samples=len(samples.rows),
        tokens=samples.tokens,
        origin=samples.origin,
        error=max(errors),
        written=chosen,
        continued=len(answers.written),
        ties=ties,
    )


def _check_report(
    folder: Path, theirs: Any, report: Mapping[str, Any], class_name: str | None
) -> None:
    found = type(theirs).__name__
    problems = [
        f"{folder}: transformers finds {kind.split('_')[0]} tensors: {', '.join(map(str, names))}."
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if (names := sorted(report.get(kind, ()), key=str)[:MAX_NAMED])
    ]
    if class_name not in (None, found):
        problems.append(f"{folder}: transformers loads it as {found}, not as {class_name}.")
    if problems:
        raise DataError(problems)


def largest_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Of some samples' logits, each by the norm of ``ours``."""
    pairs = zip(ours, theirs, strict=True)
    return max(float((one - other).norm() / one.norm()) for one, other in pairs)


def our_logits(model: Model, ids: Sequence[int], head: Head) -> Tensor:
    """f32 [T, V] of one document."""
    ids_1T = torch.tensor([ids], device=model.device)
    layout = model.lay_out(torch.zeros_like(ids_1T, dtype=torch.bool), mask_documents=False)
    return model.head(model(ids_1T, layout))[0].float().cpu()


def _their_logits(theirs: Any, ids: Sequence[int], head: Head) -> Tensor:
    ids_1T = torch.tensor([ids])
    return theirs(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T)).logits[0].float()


def _go_on(theirs: Any, row: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    longest = _longest(theirs.config)
    prompt = row[: min(WRITTEN_TOKENS, max(longest // 2, longest - WRITTEN_TOKENS))]
    ids_1T = torch.tensor([prompt])
    written_1T = theirs.generate(
        ids_1T,
        attention_mask=torch.ones_like(ids_1T),
        max_new_tokens=min(WRITTEN_TOKENS, longest - len(prompt)),
        do_sample=False,
    )
    return tuple(prompt), tuple(written_1T[0, len(prompt) :].tolist())


def _longest(config: Any) -> int:
    return int(getattr(config, "max_position_embeddings", None) or 2**31)


def _judge_written(
    model: Model,
    prompt: Sequence[int],
    more: Sequence[int],
    barred: Sequence[int],
    *,
    near: float,
) -> tuple[str, int]:
    """Why ours would not have written ``more``, or nothing, and the ties in it.

    Each token is judged behind those that transformers wrote, so that a tie does not end it.
    """
    logits_TV = our_logits(model, [*prompt, *more], "tokens")[len(prompt) - 1 : -1]
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
