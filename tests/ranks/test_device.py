import pytest
import torch

from lmscale.errors import ConfigError, TransientError
from lmscale.ranks.device import (
    check_gpus,
    cpu_name,
    device_name,
    peak_memory_bytes,
    peak_tflops,
    plan_device_index,
    select_device,
)
from lmscale.ranks.ranks import Ranks


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H100 NVL", "fp16", 835),
        ("NVIDIA H200", "fp16", 989),
        ("NVIDIA B200", "bf16", 2250),
        ("NVIDIA GB200", "bf16", 2500),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA L40", "bf16", 181),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
        ("Tesla V100-SXM2-32GB", "fp16", 125),
        ("Tesla V100-SXM2-32GB", "bf16", None),
        ("NVIDIA A100-SXM4-40GB", "fp32", 19.5),
        ("AMD EPYC 7B13", "bf16", None),
        ("Intel(R) Xeon(R) Platinum 8481C", "bf16", None),
    ],
)
def test_the_peak_goes_by_the_devices_name(name, precision, peak):
    assert peak_tflops(name, precision) == peak


def test_each_rank_of_a_node_takes_its_own_gpu():
    ranks = Ranks(rank=6, world_size=8, local_rank=2, local_world_size=4)
    assert plan_device_index(ranks, 4, {}) == 2


def test_a_task_that_sees_one_gpu_takes_it():
    ranks = Ranks(rank=2, world_size=4, local_rank=2, local_world_size=4)
    environ = {"SLURM_STEP_ID": "0", "CUDA_VISIBLE_DEVICES": "3"}
    assert plan_device_index(ranks, 1, environ) == 0


def test_more_ranks_than_gpus_are_refused():
    ranks = Ranks(rank=1, world_size=2, local_rank=1, local_world_size=2)
    with pytest.raises(ConfigError, match="2 ranks on this node, but torch sees 1 GPU;"):
        plan_device_index(ranks, 1, {"CUDA_VISIBLE_DEVICES": "0"})


@pytest.fixture
def listing(tmp_path, monkeypatch):
    """Put an ``nvidia-smi`` of these words on PATH."""

    def say(words):
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\nprintf '%s\\n' '{words}'\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return say


def test_a_node_that_has_lost_its_gpus_is_named_with_what_the_driver_says(listing):
    listing("Unable to determine the device handle for GPU0")
    with pytest.raises(TransientError, match="n7: torch sees 1 GPU, .* 8 a node") as caught:
        check_gpus(1, {"LMSCALE_GPUS_PER_NODE": "8", "SLURMD_NODENAME": "n7"})
    assert "nvidia-smi -L says: Unable to determine the device handle" in str(caught.value)
    assert caught.value.exit_code == 1


def test_without_nvidia_smi_it_says_that(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TransientError, match="torch sees 0 GPUs.*nvidia-smi cannot be run"):
        check_gpus(0, {"LMSCALE_GPUS_PER_NODE": "1"})


@pytest.mark.parametrize(
    ("num_devices", "environ"),
    [
        (8, {"LMSCALE_GPUS_PER_NODE": "8"}),
        (0, {"LMSCALE_GPUS_PER_NODE": "0"}),
        (0, {}),
        (1, {"LMSCALE_GPUS_PER_NODE": "8", "SLURM_STEP_ID": "0", "CUDA_VISIBLE_DEVICES": "3"}),
    ],
)
def test_a_node_with_the_gpus_that_were_asked_for_is_taken(num_devices, environ):
    check_gpus(num_devices, environ)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_rank_whose_node_should_have_gpus_does_not_train_on_the_cpu(monkeypatch):
    monkeypatch.setenv("LMSCALE_GPUS_PER_NODE", "4")
    with pytest.raises(TransientError, match="torch sees 0 GPUs"):
        select_device(Ranks())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_cpu_is_the_device():
    device = select_device(Ranks())
    assert device == torch.device("cpu")
    assert device_name(device) == cpu_name() != ""
    assert 10**6 < peak_memory_bytes(device) < 10**12
