import json
from itertools import product

import pytest

from launcher.local_ranks import CORES_PER_RANK, parse_nproc, plan_local_ranks
from lmscale.ranks import gpus
from lmscale.ranks.gpus import Gpus, find_gpus


@pytest.mark.parametrize("num_gpus", [0, 1, 2, 3, 6, 8])
def test_the_ranks_divide_every_step_and_are_as_many_as_the_machine_can_use(num_gpus):
    for cores, sizes in product([1, 2, 7, 8, 64], [(8,), (24,), (512,), (7,), (4, 12)]):
        count, why = plan_local_ranks(sizes, gpus=Gpus(count=num_gpus), cores=cores)
        most = num_gpus or max(1, cores // CORES_PER_RANK)
        assert all(size % count == 0 for size in sizes) and 1 <= count <= most
        assert not any(
            all(size % more == 0 for size in sizes) for more in range(count + 1, most + 1)
        )
        assert why.startswith(f"--nproc auto: {count} rank") and why.endswith(".")
        assert (f"of {most} that could be" in why) == (count < most)


def test_one_rank_is_planned_on_a_cpu_until_there_are_cores_for_two():
    assert [plan_local_ranks([8], gpus=Gpus(count=0), cores=n)[0] for n in (1, 2, 7, 8)] == [
        1,
        1,
        1,
        2,
    ]
    _, why = plan_local_ranks([8], gpus=Gpus(count=0), cores=2)
    assert why == "--nproc auto: 1 rank on the CPU, 2 threads: 2 cores, no GPU."
    _, why = plan_local_ranks([8], gpus=Gpus(count=0, has_driver=True), cores=2)
    assert why.endswith("by which torch finds no GPU: lmscale doctor says why.")


def test_a_number_of_ranks_is_read_and_auto_is_none():
    assert [parse_nproc(text) for text in ("3", " 12 ", "auto", "AUTO")] == [3, 12, None, None]


@pytest.mark.parametrize(
    ("devices", "answer", "found"),
    [
        ([], None, Gpus(count=0)),  # nobody is asked
        (["nvidia0"], [], Gpus(count=0, has_driver=True)),  # a driver that torch cannot use
        (
            ["nvidia0", "nvidia1"],
            [["H100", 80], ["H100", 79]],
            Gpus(count=2, name="H100", memory_bytes=79, has_driver=True),
        ),
        (
            ["kfd"],
            [["MI300X", 192]],
            Gpus(count=1, name="MI300X", memory_bytes=192, has_driver=True),
        ),
        (["nvidiactl"], None, Gpus(count=0)),
        (["nvidia0"], None, Gpus(count=0, has_driver=True)),  # the question fails
    ],
)
def test_gpus_are_those_that_torch_sees_in_another_process(
    tmp_path, monkeypatch, devices, answer, found
):
    for name in devices:
        (tmp_path / name).touch()
    script = "raise SystemExit(1)" if answer is None else f"print({json.dumps(answer)!r})"
    monkeypatch.setattr(gpus, "_ASK", script)
    assert find_gpus({}, tmp_path) == found
    assert find_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == Gpus(count=0)


def test_the_question_is_one_that_torch_answers_here(capsys):
    torch = pytest.importorskip("torch")
    exec(gpus._ASK, {})
    assert len(json.loads(capsys.readouterr().out)) == torch.cuda.device_count()
