"""``lmscale launch``: start the ranks of a run."""

from __future__ import annotations

import typer

from lmscale.cli import launch_options as opt
from lmscale.cli.options import (
    ConfigArgument,
    JsonOption,
    NprocOption,
    ProfileOption,
    ProfileRanksOption,
    SetOption,
    print_problems,
    print_warnings,
)

app = typer.Typer(help="Start the ranks of a run.", no_args_is_help=True)


@app.command()
def local(
    config: ConfigArgument,
    nproc: NprocOption = "auto",
    set_: SetOption = None,
    profile: ProfileOption = None,
    profile_ranks: ProfileRanksOption = None,
) -> None:
    """Train CONFIG with N ranks on this machine.

    Ctrl-C, SIGTERM or SIGUSR1 saves a checkpoint and ends with exit code 75; the same command goes
    on from there. A second Ctrl-C ends without saving.
    """
    from launcher.local import launch_local
    from launcher.local_ranks import parse_nproc
    from lmscale.runs.profiles import parse_profile
    from lmscale.shards.stale import find_stale_data

    outcome = launch_local(
        config,
        set_ or (),
        num_ranks=parse_nproc(nproc),
        profile=parse_profile(profile, profile_ranks),
        before_ranks=lambda loaded: print_warnings(find_stale_data(loaded)),
    )
    print_problems(outcome.problems)
    raise typer.Exit(outcome.exit_code)


@app.command(context_settings={"allow_extra_args": True})
def slurm(
    ctx: typer.Context,
    config: ConfigArgument,
    cluster: opt.ClusterOption,
    nodes: opt.NodesOption = None,
    set_: SetOption = None,
    profile: ProfileOption = None,
    profile_ranks: ProfileRanksOption = None,
    dry_run: opt.DryRunOption = False,
    check: opt.CheckOption = False,
    ignore_plan: opt.IgnorePlanOption = False,
    job: opt.JobOption = "train",
    tasks: opt.TasksOption = None,
    preflight_only: opt.PreflightOption = False,
    array: opt.ArrayOption = None,
    sweep: opt.SweepOption = None,
    chain: opt.ChainOption = None,
    step: opt.StepOption = None,
    time: opt.TimeOption = None,
    after: opt.AfterOption = None,
    partition: opt.PartitionOption = None,
    account: opt.AccountOption = None,
    qos: opt.QosOption = None,
    reservation: opt.ReservationOption = None,
    constraint: opt.ConstraintOption = None,
    exclude: opt.ExcludeOption = None,
    nodelist: opt.NodelistOption = None,
    mail_user: opt.MailUserOption = None,
    mail_type: opt.MailTypeOption = None,
    sbatch: opt.SbatchOption = None,
    as_json: JsonOption = False,
) -> None:
    """Submit CONFIG to Slurm: checked, frozen into the run's folder, requeued until it is done.

    Everything that can be known before is looked at first, and all problems are told at once. What
    runs is a copy of code, configuration and script; the run may be changed and launched again when
    no copy is queued or running. What stands behind -- goes to sbatch.
    """
    from launcher.options import LaunchOptions
    from lmscale.cli.launch_slurm import How, launch_all, launch_one
    from lmscale.runs.profiles import parse_profile

    asked = {"partition": partition, "account": account, "qos": qos, "reservation": reservation}
    asked |= {"constraint": constraint, "exclude": exclude, "nodelist": nodelist}
    asked |= {"mail-user": mail_user, "mail-type": mail_type}
    options = LaunchOptions(
        config=config,
        cluster=cluster,
        overrides=tuple(set_ or ()),
        profile=parse_profile(profile, profile_ranks),
        kind="preflight" if preflight_only else "train" if job == "all" else job,
        nodes=nodes,
        time=time,
        chain=chain,
        tasks=tasks,
        axes=tuple(array or ()),
        sweep=sweep,
        step=step,
        after=after,
        asked={name: value for name, value in asked.items() if value is not None},
        sbatch=tuple(sbatch or ()),
        words=tuple(ctx.args),
        ignores_plan=ignore_plan,
    )
    launch = launch_all if job == "all" and not preflight_only else launch_one
    launch(options, How(dry_run=dry_run, check=check, as_json=as_json))
