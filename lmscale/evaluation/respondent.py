"""A run's model as tasks ask it: texts in, likelihoods and texts out, on all ranks together.

Rank 0 has the tasks, and leads; the other ranks follow: each order of rank 0 is one that all carry
out together, so that no other rank needs the tasks, nor the package that reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lmscale.config import RunConfig
from lmscale.config.kinds import Ability
from lmscale.errors import DataError, LmscaleError
from lmscale.evaluation.fitting import check_answers
from lmscale.evaluation.token_requests import (
    Answer,
    ScoringPlan,
    TokenRequests,
    pack_requests,
    plan_scoring,
    score_requests,
    share_requests,
)
from lmscale.evaluation.writing import Question, plan_question, write_texts
from lmscale.model.family import Model
from lmscale.ranks.collectives import broadcast_object, error_from_json, error_to_json
from lmscale.ranks.mesh import Axis
from lmscale.tokenizer.base import Tokenizer

Row = tuple[list[int], int]  # ids, and where the scored ones begin


@dataclass(kw_only=True)
class Respondent:
    """Who is asked. ``front_id`` stands in front of every text: bos, where the run's documents
    begin with it, else eos, which is what ends the document before.
    """

    scoring: nn.Module  # the run's scoring module, or the engine around it, in evaluation mode
    model: Model
    tokenizer: Tokenizer
    front_id: int
    plan: ScoringPlan
    data: Axis
    device: torch.device
    advance: Callable[[float], None] = lambda requests: None
    between_batches: Callable[[], None] = lambda: None
    num_cut: int = field(default=0)  # requests of which the model saw less than was asked
    num_short: int = field(default=0)  # texts that were given less room than was asked
    is_busy: bool = field(default=False)  # whether the ranks carry out an order together

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Answer]:
        """How likely each continuation is behind its context, which may be empty. Rank 0's."""
        return self._score([self.encode_pair(*pair) for pair in pairs])

    def score_texts(self, texts: Sequence[str]) -> list[float]:
        """The log p of each whole text, in windows of what the model sees at once. Rank 0's."""
        rows, owners = [], []
        for owner, text in enumerate(texts):
            windows = self.encode_text(text)
            rows += windows
            owners += [owner] * len(windows)
        totals = [0.0] * len(texts)
        for owner, answer in zip(owners, self._score(rows), strict=True):
            totals[owner] += answer.log_p
        return totals

    def write(self, asked: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        """A text behind each context, by its ``generation_kwargs``. Rank 0's."""
        questions = []
        for number, (context, settings) in enumerate(asked):
            ids = [self.front_id, *self.tokenizer.encode(context).tolist()]
            question, is_cut, is_short = plan_question(
                ids, settings, max_positions=self.model.max_positions, number=number
            )
            self.num_cut += is_cut
            self.num_short += is_short
            questions.append(question)
        with self._ordering("write", questions=[question.to_json() for question in questions]):
            return self._write(questions)

    def encode_pair(self, context: str, continuation: str) -> Row:
        """The ids of both, cut on the left to what the model sees, and where the second begins.

        As lm-eval 0.4.13 has it (``TemplateLM._encode_pair``): white space at the context's end is
        the continuation's, and of the ids of both together the continuation has those behind as
        many as the context alone has.
        """
        bare = context.rstrip()
        before = self.tokenizer.encode(bare).tolist() if bare else []
        after = self.tokenizer.encode(context + continuation).tolist()[len(before) :]
        if not after:
            raise DataError(
                f"A task asks how likely {continuation[:40]!r} is behind a context, and that is no "
                "token of its own. Give the task's choices and targets some text."
            )
        ids = [self.front_id, *before, *after]
        num_cut = max(0, len(ids) - self.model.max_positions - 1)
        self.num_cut += num_cut > 0
        return ids[num_cut:], max(1, len(before) + 1 - num_cut)

    def encode_text(self, text: str) -> list[Row]:
        """Windows that score every id once, each with as much before it as fits (as lm-eval 0.4.13,
        ``get_rolling_token_windows`` with a context of 1).
        """
        ids = [self.front_id, *self.tokenizer.encode(text).tolist()]
        room = self.model.max_positions
        rows: list[Row] = []
        for first in range(1, len(ids), room):
            end = min(first + room, len(ids))
            begin = max(0, end - room - 1)
            rows.append((ids[begin:end], first - begin))
        return rows

    def _score(self, rows: Sequence[Row]) -> list[Answer]:
        if not rows:
            return []
        requests = pack_requests(rows)
        with self._ordering("score"):
            if self.data.size > 1:
                share_requests(requests, self.device)
            return self._score_requests(requests)

    @contextmanager
    def _ordering(self, what: str, **more: Any) -> Iterator[None]:
        """What fails in the block leaves the other ranks anywhere: no order reaches them then."""
        self.is_busy = True
        self._order(what, **more)
        yield
        self.is_busy = False

    def _order(self, what: str, **more: Any) -> None:
        if self.data.size > 1:
            broadcast_object({"do": what, **more})

    def end(self, result: Any = None, error: LmscaleError | None = None) -> None:
        """Rank 0's last word: what ``follow`` returns on the other ranks, or raises there."""
        self._order("end", result=result, error=error_to_json(error))

    def follow(self) -> Any:
        """Carry out what rank 0 orders, until it ends."""
        while (order := broadcast_object())["do"] != "end":
            if order["do"] == "score":
                self._score_requests(share_requests(None, self.device))
            else:
                self._write([Question.from_json(tree) for tree in order["questions"]])
        if error := error_from_json(order["error"]):
            raise error
        return order["result"]

    def _score_requests(self, requests: TokenRequests) -> list[Answer]:
        return score_requests(
            self.scoring,
            requests,
            self.plan,
            data=self.data,
            device=self.device,
            advance=self.advance,
            between_batches=self.between_batches,
        )

    def _write(self, questions: Sequence[Question]) -> list[str]:
        return write_texts(
            self.model,
            self.tokenizer,
            questions,
            data=self.data,
            sees_whole=self.plan.shows_contexts,
            advance=self.advance,
            between_batches=self.between_batches,
        )


def build_respondent(
    config: RunConfig,
    scoring: nn.Module,
    model: Model,
    tokenizer: Tokenizer,
    *,
    bos_id: int | None,
    data: Axis,
    device: torch.device,
    advance: Callable[[float], None] = lambda requests: None,
    between_batches: Callable[[], None] = lambda: None,
) -> Respondent:
    """The model of a run. Raises ``ConfigError`` where it predicts no next tokens."""
    check_answers(config)
    return Respondent(
        scoring=scoring,
        model=model,
        tokenizer=tokenizer,
        front_id=tokenizer.eos_id if bos_id is None else bos_id,
        plan=plan_scoring(config, shows_contexts=Ability.PREFIX in config.objective.needs),
        data=data,
        device=device,
        advance=advance,
        between_batches=between_batches,
    )
