"""The configuration files of a test cluster, as text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a test cluster is made of."""

    folder: Path
    base_port: int
    nodes: int = 4
    cpus: int = 4
    """Per node; Slurm is told so, whatever the machine has."""
    gpus: int = 2
    """Per node: devices that nobody opens, for Slurm to hand out."""
    memory_mb: int = 2000
    allows_requeue: bool = True
    """The default of jobs that say neither --requeue nor --no-requeue."""
    keeps_accounts: bool = False

    @property
    def node_names(self) -> tuple[str, ...]:
        return tuple(f"n{number}" for number in range(1, self.nodes + 1))

    def address_of(self, name: str) -> str:
        """Loopback addresses of this cluster alone, so that two clusters never meet at a port."""
        number = 254 if name == "ctl" else int(name[1:])
        return f"127.{1 + self.base_port // 256}.{self.base_port % 256}.{number}"

    @property
    def first_job(self) -> int:
        return 1 + (self.base_port % 9000) // 32 * 50

    @property
    def accounting_port(self) -> int:
        return self.base_port + 1

    @property
    def database_port(self) -> int:
        return self.base_port + 2

    def node_port(self, name: str) -> int:
        return self.base_port + 10 + int(name[1:])


def render_hosts(shape: Shape, host: str) -> str:
    names = ("ctl", *shape.node_names)
    rows = [f"{shape.address_of(name)} {name}" for name in names]
    return "\n".join(["127.0.0.1 localhost", f"127.0.0.1 {host}", *rows]) + "\n"


def render_slurm_conf(shape: Shape) -> str:
    folder = shape.folder
    main = f"""\
ClusterName=test
SlurmctldHost=ctl({shape.address_of("ctl")})
SlurmctldPort={shape.base_port}
AuthType=auth/munge
CryptoType=crypto/munge
# A requeued job may not start again before cred_expire is over: 120 s, or at least 5.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
SlurmctldDebug=verbose
SlurmdDebug=verbose
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
JobAcctGatherFrequency=0
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,sched_min_interval=0,bf_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# Without it a job that asks for no memory gets all of the node.
DefMemPerCPU={shape.memory_mb // shape.cpus}
JobRequeue={int(shape.allows_requeue)}
MaxArraySize=1001
# Ports follow from jobs' numbers, and another test cluster may be on this machine.
FirstJobId={shape.first_job}
MinJobAge=3600
# A node is down after this time; the default is 300 s.
SlurmdTimeout=10
SlurmctldTimeout=10
MessageTimeout=5
KillWait=8
KillOnBadExit=0
InactiveLimit=0
Waittime=0
TCPTimeout=2
BatchStartTimeout=10
GresTypes=gpu
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/jobcomp.txt
{_render_accounting(shape)}
"""
    nodes = "".join(
        f"NodeName={name} NodeHostname={name} NodeAddr={shape.address_of(name)} "
        f"Port={shape.node_port(name)} CPUs={shape.cpus} RealMemory={shape.memory_mb} "
        f"Gres=gpu:{shape.gpus} State=UNKNOWN\n"
        for name in shape.node_names
    )
    partitions = """\
PartitionName=main Nodes=ALL State=UP PriorityTier=10 PreemptMode=OFF Default=YES
PartitionName=low  Nodes=ALL State=UP PriorityTier=1  PreemptMode=REQUEUE GraceTime=10
PartitionName=bare Nodes=ALL State=UP PriorityTier=1  PreemptMode=REQUEUE GraceTime=0
PartitionName=high Nodes=ALL State=UP PriorityTier=20 PreemptMode=OFF
"""
    return main + nodes + partitions


def _render_accounting(shape: Shape) -> str:
    if not shape.keeps_accounts:
        return "AccountingStorageType=accounting_storage/none"
    return f"""\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={shape.accounting_port}
AccountingStoragePass={shape.folder}/munge/socket
AccountingStorageTRES=gres/gpu"""


def render_gres_conf(shape: Shape) -> str:
    if not shape.gpus:
        return ""
    return f"Name=gpu File={shape.folder}/gpu/nvidia[0-{shape.gpus - 1}]\n"


def render_cgroup_conf(shape: Shape) -> str:
    """For a plugin that slurmd 22.05 loads even where nothing uses it.

    Its autodetection ends slurmd where cgroups are not as under systemd; v1 named outright loads
    without touching anything.
    """
    return f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={shape.folder}/cgroup\n"


def render_slurmdbd_conf(shape: Shape) -> str:
    folder = shape.folder
    return f"""\
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={shape.accounting_port}
SlurmUser=root
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={shape.database_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
"""


def render_database_script(shape: Shape) -> str:
    """Shell that starts the accounting daemon and its database, inside the cluster."""
    folder = shape.folder
    sql = f"--no-defaults --user=root --socket={folder}/run/sql"
    users = " ".join(
        f"CREATE USER IF NOT EXISTS slurm@'{host}' IDENTIFIED BY 'slurm'; "
        f"GRANT ALL ON *.* TO slurm@'{host}';"
        for host in ("127.0.0.1", "localhost")
    )
    return f"""\
#!/usr/bin/env bash
exec >{folder}/log/accounting.log 2>&1
mariadb-install-db --no-defaults --user=root --datadir={folder}/sql \\
  --auth-root-authentication-method=normal --skip-test-db
mariadbd {sql} --datadir={folder}/sql --pid-file={folder}/run/mariadb.pid \\
  --bind-address=127.0.0.1 --port={shape.database_port} --skip-log-bin \\
  --innodb-flush-log-at-trx-commit=0 --innodb-buffer-pool-size=64M &
until mariadb-admin {sql} ping; do sleep 0.1; done
mariadb {sql} -e "{users}"
cd {folder}/etc # it reads the slurmdbd.conf beside slurm.conf
exec slurmdbd -D
"""
