import pytest
import torch

from lmscale.errors import ConfigError
from lmscale.runtime.device import (
    cpu_name,
    device_name,
    peak_memory_bytes,
    peak_tflops,
    plan_device_index,
    select_device,
)
from lmscale.runtime.ranks import Ranks


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
    ranks = Ranks(rank=6, world_size=8, local_rank=2, local_world_size=4, node_rank=1)
    assert plan_device_index(ranks, 4, {}) == 2


def test_a_task_that_sees_one_gpu_takes_it():
    ranks = Ranks(rank=2, world_size=4, local_rank=2, local_world_size=4)
    environ = {"SLURM_STEP_ID": "0", "CUDA_VISIBLE_DEVICES": "3"}
    assert plan_device_index(ranks, 1, environ) == 0


def test_more_ranks_than_gpus_are_refused():
    ranks = Ranks(rank=1, world_size=2, local_rank=1, local_world_size=2)
    with pytest.raises(ConfigError, match="2 ranks on this node, but torch sees 1 GPU;"):
        plan_device_index(ranks, 1, {"CUDA_VISIBLE_DEVICES": "0"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_cpu_is_the_device():
    device = select_device(Ranks())
    assert device == torch.device("cpu")
    assert device_name(device) == cpu_name() != ""
    assert 10**6 < peak_memory_bytes(device) < 10**12
