"""``lmscale train CONFIG``: train or resume, as one rank of those launched, or alone."""

from __future__ import annotations

import os
import time

import typer

from lmscale.cli.options import ConfigArgument, ProfileOption, ProfileRanksOption, SetOption
from lmscale.config import RunConfig, load_config
from lmscale.config.load import blaming
from lmscale.errors import EXIT_RESUMABLE
from lmscale.runs.profiles import ProfilePlan, parse_profile


def train(
    config: ConfigArgument,
    set_: SetOption = None,
    profile: ProfileOption = None,
    profile_ranks: ProfileRanksOption = None,
) -> None:
    """Train CONFIG, from its newest checkpoint if it has one.

    Exit codes: 0 finished; 75 ended early and resumable, on request, or with a message that says
    why; 76 stopped by the guard; 2 something to mend; 1 a failure that may pass, or a bug. To start
    several ranks use `lmscale launch`; or start this one by srun or torchrun.
    """
    from launcher.rank import join_step, redirect_output

    is_step = join_step(os.environ)
    plan = parse_profile(profile, profile_ranks)
    loaded = load_config(config, set_ or ())
    if is_step:
        redirect_output(loaded.folder, int(os.environ["RANK"]))
    with blaming(set_ or ()):
        stop_reason = run_training(loaded, plan)
    if stop_reason is not None:
        raise typer.Exit(EXIT_RESUMABLE)


def run_training(config: RunConfig, profile: ProfilePlan | None = None) -> str | None:
    """Train on this rank; all ranks call it. Why it stopped early, or None when it finished."""
    began_at = time.time()
    from lmscale.files.progress import progress
    from lmscale.ranks.ranks import ranks_from_environment
    from lmscale.runs.stop import StopRequests

    ranks = ranks_from_environment()
    if profile is not None:
        profile.check(steps=config.train.steps, world_size=ranks.world_size)
        # torch's tracing library prints lines of its own; it looks as torch is loaded.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with StopRequests(config.folder, watch_file=ranks.is_first, leaves_at_once=True) as stop:
        # Only here: torch and DeepSpeed take seconds to import, and a request is heard meanwhile.
        with progress("loading torch and DeepSpeed"):
            from lmscale.train.session import train_run

        return train_run(config, ranks, stop, began_at, profile)
