"""What a job runs, copied beside the run: a later change of the clone changes no requeued attempt.

RUN/slurm/ID/    job.sh config.yaml cluster.yaml code/ code.json    configs/ of a sweep
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import launcher
from launcher.job import JobRequest, SlurmJob
from lmscale.config import assets, dump_config
from lmscale.config.cluster import dump_cluster
from lmscale.errors import ClusterError
from lmscale.files.atomic import atomic_folder, to_json_bytes
from lmscale.runs.environment import collect_code

SCRIPT = "job.sh"


def freeze(job: SlurmJob, request: JobRequest, script: str) -> Path:
    """Write the frozen copy, whole or not at all; gives its script. Raises ``ClusterError``."""
    final = job.frozen_folder
    texts = {final / SCRIPT: script, job.config: dump_config(request.config)}
    texts[final / "cluster.yaml"] = dump_cluster(request.cluster)
    for member, config in zip(job.members, request.runs, strict=False):
        texts[member.config] = dump_config(config)
    try:
        with atomic_folder(final) as work:  # an id is new, so nothing is there
            for path, text in texts.items():
                place = work / path.relative_to(final)
                place.parent.mkdir(exist_ok=True)
                place.write_text(text, encoding="utf-8")
            (work / SCRIPT).chmod(0o755)
            (work / "code.json").write_bytes(to_json_bytes(collect_code()))
            copy_code(work / job.code.name)
    except OSError as error:
        raise ClusterError(
            f"{final} cannot be written: {error.strerror or error}. The job needs its frozen copy "
            "there; make room, or set run.folder to another place."
        ) from None
    return final / SCRIPT


def copy_code(folder: Path) -> None:
    """The packages, and the configs and templates beside them, where the copy looks for them.

    With modification times: what this interpreter has compiled counts for the copy as well.
    """
    for source in (Path(assets.__file__).parents[1], Path(launcher.__file__ or "").parent):
        shutil.copytree(source, folder / source.name, ignore=_ignore)
    for name in ("configs", "slurm"):
        shutil.copytree(assets.find_assets(name), folder / name, ignore=_ignore)


def _ignore(place: str, names: list[str]) -> set[str]:
    """Leave out other interpreters' bytecode, editors' files, and an installed package's assets."""
    if Path(place).name == "__pycache__":
        return {name for name in names if not name.endswith(f".{sys.implementation.cache_tag}.pyc")}
    return {
        name
        for name in names
        if name.startswith(".")
        or name.endswith("~")
        or (name == "assets" and Path(place).name == "lmscale")
    }
