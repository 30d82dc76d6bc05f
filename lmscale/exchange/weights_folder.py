"""The folder of a run that has not begun, around weights alone: an import's, or made of a run's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmscale.checkpoint.places.place import LocalPlace
from lmscale.checkpoint.weights_alone import WrittenWeights, commit_weights
from lmscale.config import RunConfig, dump_config
from lmscale.config.run import with_absolute_places
from lmscale.files.atomic import write_bytes, write_json
from lmscale.files.run_files import CONFIG_FILE
from lmscale.runs.continuation import identity_of
from lmscale.runs.environment import collect_code, save_provenance
from lmscale.tokenizer.base import Tokenizer
from lmscale.tokenizer.codec import KEPT_FOLDER, save_tokenizer
from lmscale.tokenizer.kept_template import save_template


@dataclass(frozen=True, kw_only=True)
class Whence:
    """Where weights are from: ``tree``, in the manifest's state as ``key`` and in a ``file``."""

    key: str
    file: str
    tree: dict[str, Any]


def commit_folder(
    folder: Path,
    place: LocalPlace,
    written: WrittenWeights,
    *,
    config: RunConfig,
    tokenizer: Tokenizer,
    template: str,
    whence: Whence,
) -> None:
    """Make the files that are written the checkpoint of step 0 of ``folder``, and write all that a
    run's folder has beside it. ``template``: of its chat; "": none.
    """
    commit_weights(
        folder,
        place,
        written,
        identity=identity_of(config, tokenizer.fingerprint),
        state={whence.key: whence.tree},
    )
    save_tokenizer(tokenizer, folder / KEPT_FOLDER)
    save_template(template, folder / KEPT_FOLDER)
    write_json(folder / whence.file, whence.tree)
    save_provenance(folder, config, collect_code())
    write_bytes(folder / CONFIG_FILE, dump_config(with_absolute_places(config)).encode())
