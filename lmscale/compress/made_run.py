"""The folder of a run that has not begun, with weights that were made of another run's.

::

    RUN/checkpoints ──one parameter after the other──→ NEW/  config.yaml  made.json  tokenizer/
                                                             checkpoints/step-000000000/

As an import's, it is evaluated, exported and begun with (``run.init_from``), and never trained in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from lmscale.checkpoint.load import open_weights
from lmscale.checkpoint.manifest import BUFFER
from lmscale.checkpoint.places.place import LocalPlace
from lmscale.checkpoint.weights_alone import Advance, write_weights
from lmscale.config import RunConfig, dump_config, parse_config
from lmscale.config.run import with_absolute_places
from lmscale.errors import CheckpointError, ConfigError
from lmscale.evaluation.found import FoundRun
from lmscale.exchange.weights_folder import Whence, commit_folder
from lmscale.files.atomic import write_bytes, writing
from lmscale.files.output_folder import new_folder
from lmscale.files.run_files import CHECKPOINTS, MADE_FILE
from lmscale.model.lora import is_adapter, merging
from lmscale.runs.given_weights import MADE, Made
from lmscale.stream.ledger import has_read
from lmscale.tokenizer.codec import KEPT_FOLDER
from lmscale.tokenizer.kept_template import load_kept_template

Read = Callable[[str], Tensor]


@dataclass(frozen=True, kw_only=True)
class MadeRun:
    """What the folder will be."""

    found: FoundRun  # the checkpoint that it is made of
    config: RunConfig
    shapes: Mapping[str, Sequence[int]]
    how: str
    """In words, for made.json."""

    @property
    def bytes(self) -> int:
        """Of the weights, in fp32."""
        return sum(4 * _count(shape) for shape in self.shapes.values())


def _count(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def plain_shapes(found: FoundRun) -> dict[str, tuple[int, ...]]:
    """The parameters of a checkpoint with its adapters merged. Raises ``CheckpointError`` for one
    that cannot be made into another.
    """
    manifest = found.manifest
    if not manifest.is_finite:
        raise CheckpointError(f"{found.name} holds weights that are not finite.")
    buffers = [name for name, row in manifest.replicated.items() if row.kind == BUFFER]
    if buffers:
        raise ConfigError(
            f"{found.folder}: its model has buffers ({', '.join(buffers[:3])}), which no weights "
            "that lmscale makes of a run's carry."
        )
    return {name: s for name, s in manifest.weight_shapes.items() if not is_adapter(name)}


@contextmanager
def open_merged(found: FoundRun) -> Iterator[Read]:
    """A checkpoint's parameters, fp32, with adapters merged."""
    with open_weights(found.place, found.manifest, found.weights) as read:
        whole = merging(read, found.manifest.weight_shapes, found.config.model.lora)
        yield lambda name: whole(name).float()


def plan_place(name: str, beside: Path) -> Path:
    """Where the new run NAME is: beside another one, or where a path says.

    Raises ``ConfigError`` where something stands there.
    """
    out = Path(name).expanduser() if "/" in name else beside.absolute().parent / name
    if not out.name.strip("."):
        raise ConfigError(f"{name!r} is no name of a run. Give one, or the path of its folder.")
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{out} is there already, and nothing is replaced. Give another name.")
    return out


def change_config(
    config: RunConfig, changes: Mapping[str, Any], *, name: str, overrides: Sequence[str] = ()
) -> RunConfig:
    """The configuration with other values by dotted keys, and then ``overrides``, as of ``--set``.
    Raises ``ConfigError``, naming ``name``, where they do not fit.
    """
    tree: dict[str, Any] = yaml.safe_load(dump_config(config))
    for key, value in changes.items():
        *sections, last = key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return parse_config(yaml.safe_dump(tree, allow_unicode=True), overrides, name=name)


def merged_changes(config: RunConfig) -> dict[str, Any]:
    """What a run that trains the merged model has otherwise: no adapters, nor exports of them."""
    is_of_adapters = config.export.format == "peft"
    return {"model.lora": {}, **({"export": {}} if is_of_adapters else {})}


def plan_config(found: FoundRun, out: Path, changes: Mapping[str, Any]) -> RunConfig:
    """That of the run in ``found``, for weights alone in ``out``, without adapters."""
    own = {
        "run.name": out.name,
        "run.folder": str(out),
        "run.init_from": "",
        "run.init_optimizer": False,
        "checkpoint.folder": "",
        "export": {},
        "engine.keep_zeros": False,
        "evaluation.weights": None,
        "model.lora": {},
        "tokenizer.folder": str(out / KEPT_FOLDER),
    }
    return change_config(found.config, {**own, **changes}, name=f"{found.folder} as {out}")


def write_made_run(
    plan: MadeRun, value: Read, *, beside: Mapping[str, str], advance: Advance
) -> None:
    """Write the folder of the plan's configuration, in bounded memory; it appears whole or not.

    ``value`` gives a parameter, fp32. ``beside``: file → text, of more files in it. Raises
    ``CheckpointError`` where it cannot be written.
    """
    found, out = plan.found, plan.config.folder
    made = Made(
        run=found.config.run.name,
        checkpoint=found.name,
        step=found.manifest.step,
        weights=found.manifest.weights,
        how=plan.how,
        bos=found.bos_id,
        has_read=has_read(found.folder),
    )
    with writing("the new run", out, CheckpointError), new_folder(out) as work:
        place = LocalPlace(work / CHECKPOINTS)
        place.begin(0)
        written = write_weights(place, plan.shapes, value, advance)
        if written.infinite:
            raise CheckpointError(f"{found.name}: {written.infinite[0]} is not finite.")
        commit_folder(
            work,
            place,
            written,
            config=plan.config,
            tokenizer=found.tokenizer,
            template=load_kept_template(found.folder),
            whence=Whence(key=MADE, file=MADE_FILE, tree=made.to_json()),
        )
        for name, text in beside.items():
            write_bytes(work / name, text.encode())


def render_next(config: RunConfig, said: str) -> str:
    """The YAML of a run that begins with the new folder: what is not a default, and a comment."""
    tree = with_absolute_places(config).model_dump(mode="json", exclude_defaults=True)
    tree["model"] = {"family": config.model.family, **tree.get("model", {})}
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100)
    return "".join(f"# {line}\n" for line in said.splitlines()) + text
