"""A folder of transformers' → the folder of a run that has not begun, with one checkpoint.

::

    config.json ─ import_config ─→ section ┐
    *.safetensors ─ import_files ─→ headers ┼─ import_plan ─→ which tensor is which parameter
    tokenizer ─────────────────────────────┘                       │ one after the other
    RUN/  config.yaml  tokenizer/  import.json  checkpoints/step-000000000/  ←┘

The checkpoint holds weights alone and is written without an engine; its manifest says what they
were. So whatever takes a run takes an import: ``run.init_from``, ``objective.teacher``, evaluate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lmscale.checkpoint.places.place import LocalPlace, Place
from lmscale.checkpoint.weights_alone import (
    Advance,
    WrittenWeights,
    write_weights,
)
from lmscale.config import RunConfig
from lmscale.config.load import validate_tree
from lmscale.config.run import with_absolute_places
from lmscale.errors import CheckpointError, ConfigError, DataError
from lmscale.exchange.continue_file import CONTINUE_FILE, render_continue
from lmscale.exchange.import_config import SourceConfig, check_import
from lmscale.exchange.import_files import SourceWeights, find_source_weights
from lmscale.exchange.import_objective import Written, plan_objective
from lmscale.exchange.import_plan import ImportPlan, check_copies, plan_import
from lmscale.exchange.import_tokenizer import find_bos, read_tokenizer
from lmscale.exchange.weights_folder import Whence, commit_folder
from lmscale.files.atomic import write_bytes, writing
from lmscale.files.output_folder import output_folder
from lmscale.files.reading import sha256_file
from lmscale.files.run_files import CHECKPOINTS, IMPORT_FILE
from lmscale.runs.given_weights import IMPORTED, Imported
from lmscale.tokenizer.codec import KEPT_FOLDER, Tokenizer
from lmscale.tokenizer.kept_template import find_template
from lmscale.tokenizer.named_ids import find_ends, find_named_ids

PRECISIONS = {"bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True, kw_only=True)
class Import:
    """All that is known before anything is written."""

    source: SourceConfig
    weights: SourceWeights
    plan: ImportPlan
    tokenizer: Tokenizer
    config: RunConfig
    origin: Imported
    chat_template: str = ""


def plan_run(
    folder: Path,
    out: Path,
    tokenizer_place: Path,
    *,
    name: str,
    vocab_size: int | None = None,
    objective: Written | None = None,
) -> Import:
    """What the import of ``folder`` to ``out`` will be, by the headers of its files alone.

    ``tokenizer_place``: where its tokenizer is. ``vocab_size``: rows of the embedding, in place of
    those that it has. ``objective``: in place of what its files let guess. Raises ``ConfigError``
    and ``DataError`` with all that does not fit.
    """
    source = check_import(folder, out)
    weights = find_source_weights(folder)
    tokenizer = read_tokenizer(tokenizer_place)
    bos_id = find_bos(tokenizer_place, tokenizer)
    theirs = source.section.vocab_size or 0
    rows = _plan_rows(folder, theirs, tokenizer.vocab_size, vocab_size)
    ids = find_named_ids(tokenizer, tokenizer_place)
    if tokenizer_place != folder:  # what stands around a text that is written, the model says
        ids |= find_ends(tokenizer, folder)
    keys = plan_objective(source, ids, objective) | {"tokenizer": {"ids": ids}}
    config = plan_config(source, weights, tokenizer, out, name=name, rows=rows, keys=keys)
    plan = plan_import(source, weights, config.model, config.sizes, known_ids=tokenizer.vocab_size)
    with weights.opened() as read:
        check_copies(plan, weights, read)
    origin = Imported(
        folder=folder.resolve().name,
        model_type=source.architecture.model_type,
        transformers=source.version,
        dtype=weights.dtype,
        rows=theirs,
        files={},
        drawn=tuple(plan.drawn),
        bos=bos_id,
    )
    return Import(
        source=source,
        weights=weights,
        plan=plan,
        tokenizer=tokenizer,
        config=config,
        origin=origin,
        chat_template=find_template(_folder_of(tokenizer_place)) or find_template(folder),
    )


def _folder_of(place: Path) -> Path:
    return place if place.is_dir() else place.parent


def _plan_rows(folder: Path, theirs: int, num_ids: int, wanted: int | None) -> int:
    """Rows of the embedding. Raises ``DataError`` where the tokenizer has more ids."""
    rows = wanted or theirs
    if rows >= num_ids:
        return rows
    if wanted is None:
        raise DataError(
            f"{folder}: its tokenizer has {num_ids:,} ids and its embedding {theirs:,} rows. If "
            f"ids were added on purpose, --vocab-size {num_ids} gives them rows, each the mean of "
            "the others; else name the tokenizer that the model was trained with (--tokenizer)."
        )
    raise ConfigError(
        f"--vocab-size {wanted}: the tokenizer has {num_ids:,} ids, whose rows would be cut off. "
        f"Give at least {num_ids}; the model has {theirs:,} rows."
    )


def plan_config(
    source: SourceConfig,
    weights: SourceWeights,
    tokenizer: Tokenizer,
    out: Path,
    *,
    name: str,
    rows: int,
    keys: Mapping[str, Mapping[str, Any]],
) -> RunConfig:
    """The configuration of a run with this model, without data: what others read of an import.
    ``keys``: of its sections, what the objective needs.
    """
    section = source.section.model_dump(mode="json") | {"vocab_size": rows}
    positions = source.section.max_positions
    length = RunConfig.model_fields["stream"].get_default(call_default_factory=True).sequence_length
    tree: dict[str, Any] = {
        "run": {"name": name, "folder": str(out)},
        "tokenizer": {
            "folder": str(out / KEPT_FOLDER),
            "vocab_size": tokenizer.vocab_size,
        },
        "stream": {"sequence_length": min(length, positions or length)},
        "model": section,
        "guard": {"on_divergence": "stop"},  # nothing will go back to it
        "engine": {"precision": PRECISIONS.get(weights.dtype, "fp32")},
    }
    for section_name, more in keys.items():
        tree[section_name] = tree.get(section_name, {}) | {**more}
    return validate_tree(RunConfig, tree, name=f"{weights.folder} as a run")


def write_run(plan: Import, out: Path, *, check: Callable[[Path], None], advance: Advance) -> None:
    """Write the run's folder, in bounded memory, and ``check`` it before it gets its name.

    Where anything fails, or ``check`` raises, nothing is left. Raises ``DataError`` for weights
    that are not finite, and ``CheckpointError`` for a folder that cannot be written.
    """
    out = out.absolute()
    with writing("the import", out, CheckpointError), output_folder(out) as work:
        place = LocalPlace(work / CHECKPOINTS)
        place.begin(0)
        written = write_files(plan, place, advance)
        hashes = {path.name: sha256_file(path) for path in source_files(plan.weights)}
        origin = replace(plan.origin, files=hashes)
        commit_folder(
            work,
            place,
            written,
            config=plan.config,
            tokenizer=plan.tokenizer,
            template=plan.chat_template,
            whence=Whence(key=IMPORTED, file=IMPORT_FILE, tree=origin.to_json()),
        )
        text = render_continue(with_absolute_places(plan.config), has_drawn=bool(origin.drawn))
        write_bytes(work / CONTINUE_FILE, text.encode())
        check(work)


def source_files(weights: SourceWeights) -> list[Path]:
    """The weights, and whatever small files stand beside them, such as those of a tokenizer."""
    beside = (p for p in weights.folder.iterdir() if p.suffix in (".json", ".model", ".txt"))
    return sorted({*weights.files, *beside})


def write_files(plan: Import, place: Place, advance: Advance) -> WrittenWeights:
    """The checkpoint's files. Raises ``DataError`` for values that are not finite."""
    with plan.weights.opened() as read:
        written = write_weights(
            place, plan.plan.shapes, lambda name: plan.plan.value(name, read), advance
        )
        infinite = [name for own in written.infinite for name in _find_infinite(plan, own, read)]
    if infinite:
        raise DataError(
            f"{plan.weights.folder}: {', '.join(infinite[:8])}"
            f"{f' and {len(infinite) - 8} more' if len(infinite) > 8 else ''} hold values that are "
            "not finite, so nothing can go on from them."
        )
    return written


def _find_infinite(plan: Import, name: str, read: Callable[[str], torch.Tensor]) -> list[str]:
    """What the files call a parameter that is not finite: of several that make it, those at fault;
    its own name where none is.
    """
    rule = plan.plan.rules.get(name)
    theirs = [plan.plan.stored[each] for each in rule.theirs] if rule else []
    return [each for each in theirs if not read(each).isfinite().all()] or [name]
