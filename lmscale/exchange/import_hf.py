"""A model of Hugging Face's as a run's folder: planned, written, verified, and only then there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from lmscale.exchange.import_objective import Written
from lmscale.exchange.import_run import Import, plan_run, write_run
from lmscale.exchange.import_verify import How, verify
from lmscale.exchange.parity import Parity

Bar = Callable[..., AbstractContextManager[Callable[[float], None]]]


def no_bar(what: str, total: float | None = None, unit: str = "") -> AbstractContextManager:
    return nullcontext(lambda amount: None)


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """What is imported to where."""

    folder: Path
    out: Path
    name: str  # of the run
    tokenizer: Path | None = None  # where it is; None: in ``folder``
    vocab_size: int | None = None  # rows of the embedding; None: as many as it has
    objective: Written | None = None  # that it was trained for; None: as its files let guess
    how: How = "logits"  # it is verified
    bar: Bar = no_bar  # as ``files.progress.progress``


@dataclass(frozen=True, kw_only=True)
class Done:
    """What was imported."""

    request: ImportRequest
    plan: Import
    parity: Parity | None  # None: tensor by tensor

    @property
    def parameters(self) -> int:
        return sum(self.plan.plan.sizes)


def import_hf(request: ImportRequest) -> Done:
    """Write the run's folder, in bounded memory but for ``logits``, which holds the model in fp32.

    Raises ``ConfigError``, ``DataError`` and ``CheckpointError`` with all that a person can mend,
    and leaves nothing.
    """
    with request.bar("looking at the files"):
        plan = plan_run(
            request.folder,
            request.out,
            request.tokenizer or request.folder,
            name=request.name,
            vocab_size=request.vocab_size,
            objective=request.objective,
        )
    parities: list[Parity | None] = []

    def check(run: Path) -> None:
        with request.bar("verifying"):
            parities.append(verify(plan, run, request.how))

    with request.bar("importing", 4 * sum(plan.plan.sizes) / 1e6, "MB") as advance:
        write_run(plan, request.out, check=check, advance=lambda size: advance(size / 1e6))
    return Done(request=request, plan=plan, parity=parities[0])
