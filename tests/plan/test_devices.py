import json

import pytest

from lmscale.errors import ConfigError
from lmscale.plan.devices import describe_accelerator, find_device, load_device, plan_machine
from lmscale.ranks.accelerators import ACCELERATORS, find_accelerator

NAMES = {  # what drivers say → the row
    "NVIDIA H100 80GB HBM3": "h100-80gb",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H200": "h200",
    "NVIDIA GH200 480GB": "gh200",
    "NVIDIA A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100-SXM4-80GB": "a100-80gb",
    "NVIDIA A100 80GB PCIe": "a100-pcie",
    "Tesla V100-SXM2-16GB": "v100-16gb",
    "AMD Instinct MI300X": "mi300x",
    "NVIDIA L40S": "l40s",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_device_is_found_by_the_name_that_its_driver_gives(name):
    assert find_device(name).name == NAMES[name]


@pytest.mark.parametrize("row", ACCELERATORS, ids=lambda row: row.key)
def test_every_row_of_the_table_is_found_by_its_key_and_is_a_device(row):
    assert find_accelerator(row.key) is row
    device = describe_accelerator(row)
    assert 0 < device.usable_bytes < device.memory_bytes <= row.memory_gib * 2**30
    assert device.peak("bf16") == (row.peak_16_bit * 1e12 if row.has_bf16 else None)


def test_keys_are_each_of_one_row():
    assert len({row.key for row in ACCELERATORS}) == len(ACCELERATORS)


def test_an_unknown_device_is_refused_with_those_that_are_known():
    with pytest.raises(ConfigError, match="--gpu h1000: it is not in the table.*h100-80gb.*cpu"):
        find_device("h1000")


def test_a_file_of_figures_is_a_device_and_its_mistakes_are_told_together(tmp_path):
    path = tmp_path / "mine.json"
    figures = {
        "name": "mine",
        "memory_bytes": 2**36,
        "peak_flops": {"bf16": 4e14},
        "memory_bytes_per_second": 2e12,
    }
    path.write_text(json.dumps(figures))
    assert find_device(str(path)) == load_device(path)
    assert find_device(str(path)).peak("bf16") == 4e14
    path.write_text(json.dumps(figures | {"memory_bytes": -1, "watt": 3}))
    with pytest.raises(ConfigError) as caught:
        find_device(str(path))
    assert len(caught.value.problems) == 2


def test_ranks_on_one_cpu_share_its_memory_and_its_cores():
    alone, shared = (
        plan_machine(find_device("cpu"), devices_per_node=ranks).device for ranks in (1, 4)
    )
    assert shared.memory_bytes == alone.memory_bytes // 4
    assert shared.peak_flops["fp32"] == alone.peak_flops["fp32"] / 4


def test_a_machine_has_the_links_of_its_devices():
    machine = plan_machine(find_device("h100"), nodes=4, devices_per_node=8)
    assert machine.ranks == 32
    assert machine.intra_bytes_per_second == pytest.approx(0.8 * 450e9)
    assert machine.inter_bytes_per_second < 50e9
