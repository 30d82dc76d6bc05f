import os
from datetime import timedelta

import psutil
import pytest
from forked_ranks import run_on_ranks

from launcher.rendezvous import find_free_port
from lmscale.errors import ConfigError, TransientError
from lmscale.ranks.ranks import Ranks, ranks_from_environment

LAUNCHED = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "n0",
    "MASTER_PORT": "1234",
}


def without(*names, **changes):
    return {k: v for k, v in LAUNCHED.items() if k not in names} | changes


def test_a_process_that_nobody_launched_is_alone():
    assert ranks_from_environment({}) == Ranks()
    assert Ranks().is_first and Ranks().is_one_machine


def test_a_launched_process_knows_its_place():
    ranks = ranks_from_environment(LAUNCHED)
    assert ranks == Ranks(rank=5, world_size=8, local_rank=1, local_world_size=4)
    assert not ranks.is_first and not ranks.is_first_on_node and not ranks.is_one_machine


def test_a_world_of_one_needs_nothing_else():
    assert ranks_from_environment({"RANK": "0", "WORLD_SIZE": "1"}) == Ranks()


def test_all_that_is_missing_is_reported_together():
    with pytest.raises(ConfigError) as caught:
        ranks_from_environment({"RANK": "0", "WORLD_SIZE": "2"})
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        assert any(problem.startswith(f"{name} is not set") for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "first"}, "RANK = 'first' in the environment is not a whole number."),
        ({"RANK": "8"}, "RANK = 8 is not below WORLD_SIZE = 8."),
        ({"LOCAL_RANK": "4"}, "do not fit together"),
        ({"LOCAL_WORLD_SIZE": "16"}, "do not fit together"),
        ({"MASTER_PORT": "x"}, "MASTER_PORT = 'x'"),
    ],
)
def test_a_wrong_variable_is_named(changes, message):
    with pytest.raises(ConfigError) as caught:
        ranks_from_environment(LAUNCHED | changes)
    assert message in str(caught.value)


def test_srun_tasks_without_a_rank_do_not_all_train_alone():
    with pytest.raises(ConfigError, match="srun started 4 tasks"):
        ranks_from_environment({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"})
    assert ranks_from_environment({"SLURM_NTASKS": "4"}) == Ranks()  # an sbatch script itself


def test_ranks_that_do_not_meet_are_worth_another_start(monkeypatch):
    import torch

    from lmscale.ranks import ranks as runtime_ranks

    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(find_free_port()))
    monkeypatch.setattr(runtime_ranks, "MEETING_TIMEOUT", timedelta(seconds=1))
    lonely = Ranks(rank=0, world_size=2, local_world_size=2)
    with pytest.raises(TransientError, match="Rank 0 of 2 .* could not meet .* s of at most 1: "):
        # What collectives may take is not what the meeting may take.
        with runtime_ranks.open_process_group(lonely, torch.device("cpu"), timedelta(days=1)):
            pass


def test_a_rank_alone_opens_a_group_without_a_network(monkeypatch):
    import torch
    import torch.distributed as dist

    from lmscale.ranks.collectives import sum_float64
    from lmscale.ranks.ranks import open_process_group

    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setenv("MASTER_ADDR", "no.such.host.invalid")
    with open_process_group(Ranks(), torch.device("cpu")):
        assert dist.is_initialized() and dist.get_world_size() == 1
        assert sum_float64([1.5]) == [1.5]
        assert os.environ["LOCAL_RANK"] == "0" and int(os.environ["MASTER_PORT"]) > 0
    assert not dist.is_initialized()


def test_the_environment_is_completed_for_the_time_of_the_group_only(monkeypatch):
    import torch

    from lmscale.ranks.ranks import open_process_group

    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.delenv("RANK", raising=False)
    before = dict(os.environ)
    with open_process_group(Ranks(), torch.device("cpu")):
        assert (os.environ["RANK"], os.environ["LOCAL_RANK"]) == ("0", "0")
    assert dict(os.environ) == before


def find_listeners(ranks):
    connections = psutil.Process().net_connections("tcp")
    return sorted({row.laddr.ip for row in connections if row.status == psutil.CONN_LISTEN})


@pytest.mark.ranks
def test_ranks_of_one_machine_listen_to_nobody_outside_of_it(tmp_path):
    assert run_on_ranks(find_listeners, 2, tmp_path) == [["127.0.0.1"], ["127.0.0.1"]]
