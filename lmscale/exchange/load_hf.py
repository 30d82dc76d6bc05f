"""The weights of a folder of transformers' as the model of a run, to be judged as the run's are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from lmscale.config import RunConfig
from lmscale.config.masked import MaskedPartsConfig
from lmscale.config.supervised import LabelledConfig
from lmscale.errors import ConfigError, DataError
from lmscale.evaluation.run import LoadedRun, choose_dtype
from lmscale.exchange.framing import Framing
from lmscale.exchange.import_config import SourceConfig, read_source_config
from lmscale.exchange.import_files import find_source_weights
from lmscale.exchange.import_plan import ImportPlan, check_copies, plan_import
from lmscale.exchange.import_tokenizer import read_tokenizer
from lmscale.exchange.samples import draw_samples
from lmscale.exchange.tokenizer_check import verify_tokenizer
from lmscale.files.reading import read_plain
from lmscale.model.family import build_model_on
from lmscale.runs.run_folder import load_run_config
from lmscale.stream.ledger import load_bos
from lmscale.tokenizer.codec import Tokenizer, load_kept_tokenizer, model_name

MOST_OTHER_TOKENS = 0.01  # of a tokenizer that may cut a text otherwise, such as unigram
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model")


def load_hf(run: Path, folder: Path, *, device: torch.device) -> LoadedRun:
    """A run's configuration and tokenizer with the weights in ``folder``, in the run's precision.

    Nothing of the run's checkpoints is read. Raises ``ConfigError`` and ``DataError`` where the
    folder's model or tokenizer cannot be scored on what the run is scored on.
    """
    config = load_run_config(run)
    tokenizer = load_kept_tokenizer(run, config.tokenizer.folder)
    source, weights = read_source_config(folder), find_source_weights(folder)
    if problems := [*find_model_problems(config, source)]:
        raise ConfigError([f"{folder}: {problem}." for problem in problems])
    check_same_tokenizer(config, tokenizer, folder)
    judged = config.model_copy(update={"model": source.section})
    plan = plan_import(
        source, weights, source.section, judged.sizes, known_ids=tokenizer.vocab_size
    )
    check_trained(judged, plan, folder)
    dtype = choose_dtype(config, device)
    model = build_model_on(source.section, judged.sizes, device=device, dtype=dtype)
    with weights.opened() as read, torch.no_grad():
        check_copies(plan, weights, read)
        for name, parameter in model.named_parameters():
            parameter.copy_(plan.value(name, read))
    return LoadedRun(
        config=judged,
        tokenizer=tokenizer,
        model=model.eval(),
        step=0,
        weights="trained",
        bos_id=load_bos(run),
    )


def find_model_problems(config: RunConfig, source: SourceConfig) -> Iterator[str]:
    """Why a folder's model cannot be scored by the run's objective on its windows."""
    section, objective = source.section, config.objective
    if not objective.needs <= section.offers:
        yield (
            f"it is of the family {section.family}, which has not what objective.name = "
            f"{objective.name!r} of the run needs ({', '.join(sorted(objective.needs))})"
        )
    rows = section.vocab_size or 0
    if rows < config.num_ids:
        yield (
            f"its embedding has {rows:,} rows, and the run's sets {config.num_ids:,} ids: it is "
            "of another tokenizer"
        )
    length = config.stream.sequence_length
    if section.max_positions is not None and section.max_positions < length:
        yield (
            f"it knows {section.max_positions:,} positions, and the windows of the run's sets have "
            f"{length:,}"
        )
    yield from objective.find_model_problems(section)


def check_trained(config: RunConfig, plan: ImportPlan, folder: Path) -> None:
    """Raise ``DataError`` where the objective is scored by a part that the folder lacks."""
    objective, parts = config.objective, ["head"]
    if isinstance(objective, LabelledConfig):
        parts = ["token_classifier"] if objective.outputs == "token_classes" else ["classifier"]
    elif isinstance(objective, MaskedPartsConfig):
        parts = ["head", "pooler", "classifier"]
    lacking = [name for name in plan.drawn if name.partition(".")[0] in parts]
    if lacking:
        raise DataError(
            f"{folder}: objective.name = {objective.name!r} of the run is scored by "
            f"{', '.join(lacking)}, which this model has not. Name a folder of the class "
            f"that the run exports as."
        )


def check_same_tokenizer(config: RunConfig, tokenizer: Tokenizer, folder: Path) -> None:
    """Raise ``DataError`` unless the folder's tokenizer gives the ids that the run's gives.

    That is seen by its files, by its fingerprint, or on held-out texts and hard ones.
    """
    if not any((folder / name).exists() for name in _TOKENIZER_FILES):
        raise DataError(
            f"{folder} holds no tokenizer, so it is not known whether its ids are the run's. If it "
            "was made of an export of this run, copy tokenizer.json and tokenizer_config.json from "
            "there."
        )
    kept = folder / model_name(tokenizer.format)
    try:
        if kept.exists() and read_plain(kept) == tokenizer.model:
            return
        if read_tokenizer(folder).fingerprint == tokenizer.fingerprint:
            return
    except DataError:
        pass  # not as a run's: whether its ids are the same, transformers tells
    samples = draw_samples(config, tokenizer.fingerprint)
    texts = [tokenizer.decode(row) for row in samples.rows[1:]]
    nothing_around = Framing(is_known=False, roles={})
    try:
        check = verify_tokenizer(tokenizer, folder, texts, framing=nothing_around)
    except (OSError, ValueError, LookupError) as error:
        said = " ".join(str(error).split())[:300]
        raise DataError(
            f"{folder}: its tokenizer cannot be loaded by transformers: {said}"
        ) from None
    share = check.differing_tokens / check.tokens
    if check.undecoded or share > MOST_OTHER_TOKENS or (check.differing and check.must_agree):
        raise DataError(
            f"{folder}: its tokenizer is another one than the run's: {check.differing} of "
            f"{check.texts} texts get other ids, and {check.undecoded} come back otherwise. Losses "
            "of other tokens cannot be compared: name a model that was made of this run, or "
            "evaluate a run of its own (lmscale import hf)."
        )
