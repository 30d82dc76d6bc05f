"""What a machine may lack: a test is skipped with the reason, or fails where it may not lack."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

REQUIRED = "LMSCALE_REQUIRE_SLURM"
"""Set where the tests must run: continuous integration may not skip them in silence."""
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "unshare", "nsenter", "mount", "bash")
ACCOUNTING_PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db", "mariadb-admin", "mariadb")
PATHS = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # where daemons are, and often no user's PATH


def demand(reason: str | None) -> None:
    """Skip the test that asks, or fail it where ``REQUIRED`` is set, if there is a reason."""
    if reason is None:
        return
    if os.environ.get(REQUIRED):
        pytest.fail(f"{REQUIRED} is set, but {reason}", pytrace=False)
    pytest.skip(reason)


def search_path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), *PATHS])


def why_no_cluster(*, accounting: bool = False) -> str | None:
    """Why no test cluster can run here, or None if it can."""
    if os.uname().sysname != "Linux":
        return "a test cluster needs Linux"
    if os.geteuid() != 0:
        return "a test cluster needs root: it gives its nodes host names and mounts of their own"
    programs = (*PROGRAMS, *(ACCOUNTING_PROGRAMS if accounting else ()))
    missing = [name for name in programs if not shutil.which(name, path=search_path())]
    if missing:
        packages = "slurmctld slurmd slurm-client munge"
        packages += " slurmdbd mariadb-server" if accounting else ""
        return (
            f"{', '.join(missing)} missing: apt-get install --no-install-recommends {packages} "
            "(and util-linux)"
        )
    spaces = ("unshare", "--pid", "--fork", "--mount", "--mount-proc", "--uts")
    trial = "hostname trial && mount --bind /etc/hosts /etc/hosts"
    tried = subprocess.run(
        [*spaces, "bash", "-c", trial], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if tried.returncode != 0:
        return f"no right to make namespaces or mounts here: {tried.stderr.strip()}"
    return None
