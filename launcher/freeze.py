"""What a job runs, copied beside the run: a later change of the clone changes no requeued attempt.

RUN/slurm/ID/    job.sh config.yaml cluster.yaml code/ code.json    configs/ of a sweep
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import launcher
from launcher.job import SlurmJob
from lmscale.config import RunConfig, assets, dump_config
from lmscale.config.cluster import dump_cluster
from lmscale.config.cluster_profile import ClusterConfig
from lmscale.errors import ClusterError
from lmscale.files.atomic import atomic_folder, to_json_bytes
from lmscale.runs.code_state import collect_code

SCRIPT = "job.sh"


def freeze(
    job: SlurmJob,
    *,
    script: str,
    config: RunConfig,
    cluster: ClusterConfig,
    members: Mapping[Path, RunConfig],
) -> Path:
    """Write the frozen copy, whole or not at all, and return the script's path.

    ``members``: path → configuration, of a sweep's runs. Raises ``ClusterError`` when it cannot be
    written.
    """
    final = job.frozen_folder
    try:
        with atomic_folder(final) as work:  # an id is new, so nothing is there
            _write_files(job, work, script=script, config=config, cluster=cluster)
            for path, member in members.items():
                place = work / path.relative_to(final)
                place.parent.mkdir(exist_ok=True)
                place.write_text(dump_config(member), encoding="utf-8")
    except OSError as error:
        raise ClusterError(
            f"{final} cannot be written: {error.strerror or error}. The job needs its frozen copy "
            "there; make room, or set run.folder to another place."
        ) from None
    return final / SCRIPT


def _write_files(
    job: SlurmJob, work: Path, *, script: str, config: RunConfig, cluster: ClusterConfig
) -> None:
    (work / SCRIPT).write_text(script, encoding="utf-8")
    (work / SCRIPT).chmod(0o755)
    (work / job.config.name).write_text(dump_config(config), encoding="utf-8")
    (work / "cluster.yaml").write_text(dump_cluster(cluster), encoding="utf-8")
    (work / "code.json").write_bytes(to_json_bytes(collect_code()))
    copy_code(work / job.code.name)


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
