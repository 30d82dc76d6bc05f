"""A real Slurm cluster for the tests of this folder: one for each worker of pytest-xdist."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from demands import demand, why_no_cluster
from filelock import FileLock
from jobs import OVERRIDES, Lab
from tiny_run import launch, ledger_of, write_tiny_config


@pytest.fixture(scope="session")
def session_cluster() -> Iterator[Cluster]:
    demand(why_no_cluster())
    with Cluster(nodes=4, cpus=4, gpus=2) as cluster:
        yield cluster


@pytest.fixture
def cluster(session_cluster: Cluster) -> Iterator[Cluster]:
    """Four idle nodes, n1 to n4."""
    yield session_cluster
    session_cluster.clear()


@pytest.fixture(scope="session")
def whole_ledger(tiny_data: Path) -> list[str]:
    """Of the run that no test interrupts: one rank, on this machine."""
    folder = tiny_data.with_name("whole-run")
    with FileLock(f"{folder}.lock"):
        config = write_tiny_config(Path(f"{folder}.yaml"), tiny_data, folder, OVERRIDES)
        if not (folder / "ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            ended = launch(config, 1)
            assert ended.code == 0, ended.output
            (folder / "ready").touch()
    return ledger_of(folder)


@pytest.fixture
def lab(cluster: Cluster, tiny_data: Path, whole_ledger: list[str], tmp_path: Path) -> Lab:
    """Four idle nodes, and runs to submit to them."""
    return Lab(cluster=cluster, data=tiny_data, folder=tmp_path, whole=whole_ledger)
