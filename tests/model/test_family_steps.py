"""The step of every family as a GPU would do it: compiled blocks, and tensors that do not stray."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from family_steps import CASES, build_scored, configure, micro_batches
from torch._dynamo.utils import counters
from torch.nn.attention import varlen as theirs

from lmscale.config.model import DecoderConfig, Sizes
from lmscale.model.decoder import Decoder
from lmscale.model.layout import Layout, build_layout
from lmscale.objective.scores import to_device

ROOT = Path(__file__).parents[2]
# A recurrent layout asks the host for the pieces' lengths, which fake tensors do not have.
ON_DEVICES = [case for case in CASES if case not in ("lstm", "gru fill_middle", "recomputed")]
# No block there has masks for the cuts: dense ones of prefixes, segments, caps, or added biases.
UNPACKED = {"transformer_xl", "prefix", "mixture", "t5", "ul2", "bart", "softcap"}
# Of every kind of block one; of segments, each has as many shapes as there are before it.
COMPILED = {
    "llama": 1, "lora": 1, "prefix": 1, "masked": 1, "masked_next": 1, "t5": 2, "bart": 2,
    "gpt2": 1, "windows": 1, "softcap": 1, "recomputed": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def traced(tiny_data, tmp_path_factory):
    """Case → what was found of it, all by one process, whose torch has another device."""
    folder = tmp_path_factory.mktemp("traced")
    command = [sys.executable, ROOT / "tests/model/elsewhere.py", tiny_data, folder, *ON_DEVICES]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    rows = {row["case"]: row for row in map(json.loads, ended.stdout.splitlines())}
    assert ended.returncode == 0, ended.stderr[-3000:]
    return rows


@pytest.mark.slow
@pytest.mark.parametrize("case", ON_DEVICES)
def test_no_tensor_of_a_step_is_on_another_device_and_nothing_waits_for_it(traced, case):
    found = traced[case]
    assert found["problems"] == []
    assert found["has_gradients"]
    assert found["packs"] == (case not in UNPACKED)


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPILED)
def test_blocks_compile_whole_and_once_over_batches_of_other_documents(case, tiny_data, tmp_path):
    config = configure(case, tiny_data, tmp_path)
    plain, compiled = build_scored(config), build_scored(config)
    torch._dynamo.reset()
    counters.clear()
    model: Any = compiled.model
    for block in model.blocks_to_compile():
        block.compile(backend="aot_eager", fullgraph=True)
    graphs = []
    for micro in micro_batches(config, 3):
        arrays = to_device(micro.arrays, torch.device("cpu"))
        for scoring in (plain, compiled):
            scoring.zero_grad()
            scoring(**arrays).terms().sum().backward()
        graphs.append(counters["stats"]["unique_graphs"])
        for ours, theirs_ in zip(compiled.parameters(), plain.parameters(), strict=True):
            if theirs_.grad is not None:
                torch.testing.assert_close(ours.grad, theirs_.grad)
    assert graphs == [COMPILED[case]] * 3
    assert not counters["graph_break"]


def test_a_compiled_block_takes_any_number_of_packed_documents_as_it_is():
    """Of up to 64 documents, and once more for up to 128, with the kernels' place taken."""
    length = 256
    config = DecoderConfig(layers=1, width=32, heads=4)
    sizes = Sizes(vocab_size=64, max_positions=length, sequence_length=length)
    (block,) = Decoder(config, sizes).bfloat16().blocks
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.02)
    seen = []

    def kernel(query, *arguments):
        seen.append(arguments[2])
        return query.clone(), query.new_empty(4, length), query.new_empty(2, dtype=torch.uint64)

    layouts: list[Layout] = []
    for documents in (1, 3, 40, 64, 65, 128):
        begins_BT = torch.zeros(1, length, dtype=torch.bool)
        begins_BT[0, torch.arange(documents) * (length // documents)] = True
        layouts.append(build_layout(begins_BT, "varlen", most_documents=documents))
    operation = theirs._varlen_attn
    operation.register_kernel("cpu")(kernel)
    torch._dynamo.reset()
    counters.clear()
    block.compile(backend="eager", fullgraph=True)
    graphs = []
    with torch.no_grad(), torch._dynamo.config.patch(automatic_dynamic_shapes=False):
        for layout in layouts:
            block(torch.ones(1, length, 32, dtype=torch.bfloat16), None, layout.mask)
            graphs.append(counters["stats"]["unique_graphs"])
    operation.set_kernel_enabled("cpu", False).__enter__()
    assert graphs == [1, 1, 1, 1, 2, 2]
    assert [len(cuts) for cuts in seen] == [65, 65, 65, 65, 129, 129]
