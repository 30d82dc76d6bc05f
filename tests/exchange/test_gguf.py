# Shape letters: B batch, T time, V vocabulary.
"""llama.cpp computes of a GGUF file what the model does, and cuts text as the run's tokenizer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import gguf
import numpy as np
import psutil
import pytest
import torch
from tiny_run import children_of
from torch import Tensor

from lmscale.config import parse_config
from lmscale.config.data import TokenizerConfig
from lmscale.config.hf.choose import choose_architecture
from lmscale.config.hf.llama_cpp import LLAMA_CPP, choose_llama_cpp
from lmscale.config.model import DecoderConfig, Sizes
from lmscale.errors import ConfigError, DataError
from lmscale.exchange.exported import Dtype
from lmscale.exchange.gguf_settings import add_settings
from lmscale.exchange.gguf_tensors import (
    GgufTensor,
    convert,
    plan_tensors,
    round_as_stored,
    slowed_frequencies,
)
from lmscale.exchange.gguf_tokenizer import add_tokenizer, plan_vocabulary
from lmscale.exchange.gguf_write import check_gguf, write_gguf
from lmscale.exchange.llama_cpp import check_llama_cpp, compare_places, tolerance_of
from lmscale.exchange.rules import plan_rules
from lmscale.model.family import Model, build_model
from lmscale.tokenizer.base import Tokenizer
from lmscale.tokenizer.byte_bpe import train_byte_bpe
from lmscale.tokenizer.codec import load_tokenizer
from lmscale.tokenizer.own import OwnTokenizer
from lmscale.tokenizer.train import train_model

ROWS, LENGTH = 515, 64  # the tokenizer's pieces and some ids of an objective's
SIZES = Sizes(vocab_size=ROWS, max_positions=LENGTH, sequence_length=LENGTH)
GROUPED = {"kv_heads": 2, "ffn_width": 96}
GPT2 = {"positions": "learned", "norm": "layernorm", "activation": "gelu", "bias": True}
GEMMA = GROUPED | {"activation": "geglu", "scaled_embeddings": True, "tied_embeddings": True}
GEMMA2 = GEMMA | {
    "output_norms": True,
    "sliding_windows": (9, 0),
    "attention_softcap": 5.0,
    "logit_softcap": 3.0,
}


def scaled(kind: str, **more: float) -> dict:
    return {"rope_theta": 500.0, "rope_scaling": {"kind": kind, "factor": 4.0, **more}}


YARN, LLAMA3 = (scaled(kind, original_positions=16) for kind in ("yarn", "llama3"))
CASES = {
    "gpt2": GPT2 | {"tied_embeddings": True},
    "llama": GROUPED | LLAMA3 | {"bias": True},
    "mistral": GROUPED | YARN | {"sliding_windows": (LENGTH,), "tied_embeddings": True},
    "qwen2": GROUPED | scaled("linear") | {"qkv_bias": True},
    "qwen3": GROUPED | YARN | {"qk_norm": True, "head_width": 24},
    "starcoder2": GPT2 | GROUPED | {"positions": "rope"},
    "gemma": GEMMA | {"head_width": 24},
    "gemma2": GEMMA2,
}
TEXTS = [
    "def f(x):\n\treturn {'天地': '🙂'}  \r\n",
    "",
    "   two   runs   ",
    "a\x00nul \x1b[0m </s><s><unk><0x0A> ﬁ Ａ e\u0301 \ufeff \U0010ffff",
    "a real \u2581, which llama.cpp takes for a space, is left out",
]


@dataclass(frozen=True, kw_only=True)
class Written:
    path: Path
    model: Model
    section: DecoderConfig
    dtype: Dtype
    tensors: tuple[GgufTensor, ...]
    digests: dict[str, str]

    def check(self, tokenizer: Tokenizer, **changes):
        torch.manual_seed(2)
        given = {
            "logits": self.logits,
            "tokenizer": tokenizer,
            "num_rows": ROWS,
            "prompts": torch.randint(4, 500, (2, 24)).tolist(),
            "texts": TEXTS,
            "tolerance": tolerance_of(self.dtype, self.section.activation),
        }
        return check_llama_cpp(self.path, **(given | changes))

    @torch.no_grad()
    def logits(self, ids) -> Tensor:
        ids_1T = torch.tensor([list(ids)])
        layout = self.model.lay_out(torch.zeros_like(ids_1T).bool(), mask_documents=False)
        return self.model.head(self.model(ids_1T, layout))[0]


@pytest.fixture(autouse=True)
def _a_proxy_that_must_not_be_asked(monkeypatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")


@pytest.fixture(scope="module")
def tokenizer(tiny_data) -> Tokenizer:
    return load_tokenizer(tiny_data / "tokenizer")


@pytest.fixture
def write(tmp_path, tokenizer) -> Callable[..., Written]:
    def write(
        settings: dict,
        dtype: Dtype = "fp32",
        tokenizer: Tokenizer = tokenizer,
        begins_with_bos: bool = True,
    ) -> Written:
        section = DecoderConfig(layers=3, width=64, heads=4, **settings)
        architecture = choose_architecture(section, SIZES)
        there, section = choose_llama_cpp(architecture.model_type, section, SIZES)
        torch.manual_seed(1)
        model = build_model(section, SIZES).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            is_scale = parameter.ndim == 1 and name.endswith("weight")
            torch.nn.init.normal_(parameter, mean=float(is_scale), std=0.1)
        tensors = plan_tensors(plan_rules(architecture, model), there, section, dtype)
        vocabulary = plan_vocabulary(tokenizer, {"mask": 512}, num_rows=ROWS)

        def describe(writer):
            add_settings(writer, there, section, SIZES)
            add_tokenizer(
                writer, vocabulary, tokenizer.special_ids, begins_with_bos=begins_with_bos
            )

        def read(tensor: GgufTensor) -> Tensor:
            if not tensor.parameter:
                return slowed_frequencies(section)
            return model.get_parameter(tensor.parameter)

        path = tmp_path / "model.gguf"
        digests = write_gguf(path, there.name, dtype, tensors, read, describe)
        check_gguf(path, tensors, digests)
        written = {"dtype": dtype, "tensors": tensors, "digests": digests}
        return Written(path=path, model=model, section=section, **written)

    return write


@pytest.mark.parametrize("model_type", CASES)
def test_llama_cpp_gives_the_models_logits_and_the_tokenizers_ids(model_type, write, tokenizer):
    written = write(CASES[model_type])
    assert choose_architecture(written.section, SIZES).model_type == model_type
    check = written.check(tokenizer)
    assert (check.tokens, check.texts, check.other_texts) == (64, len(TEXTS) - 1, 1)


def test_byte_level_bpe_is_llama_cpps_own(write):
    texts = [topics[name] for name in sorted(topics)[:20]]
    special = {"special_tokens": ("<|im_end|>", "class"), "reserved_tokens": 1}
    config = TokenizerConfig(kind="byte_bpe", vocab_size=ROWS - 3, **special)
    tokenizer = train_byte_bpe(["天地玄黄，宇宙洪荒。" * 9, *texts], config, {})
    names = " a class".join(tokenizer.special_tokens)  # which are text in a text
    check = write(CASES["llama"], tokenizer=tokenizer).check(tokenizer, texts=[*TEXTS, names])
    assert (check.texts, check.other_texts) == (len(TEXTS) + 1, 0)
    grouped = TokenizerConfig(kind="byte_bpe", vocab_size=ROWS - 3, split_digits=False)
    with pytest.raises(DataError, match="as tokenizer.kind = byte_bpe has with split_digits"):
        plan_vocabulary(train_byte_bpe(texts, grouped, {}), {}, num_rows=ROWS)


def test_every_architecture_that_is_claimed_has_been_run():
    assert CASES.keys() == LLAMA_CPP.keys()


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "q8_0", "q4_0"])
def test_weights_are_rounded_once_and_llama_cpp_computes_with_them(dtype, write, tokenizer):
    written = write(CASES["qwen3"], dtype)
    stored = {each.name: each for each in gguf.GGUFReader(str(written.path)).tensors}
    for tensor in written.tensors:
        there = stored[tensor.name]
        values = gguf.quants.dequantize(there.data, there.tensor_type).reshape(tensor.shape)
        parameter = written.model.get_parameter(tensor.parameter)
        ours = parameter[tensor.rows].numpy()
        steps = {"fp32": 0, "fp16": 2**-11, "bf16": 2**-8, "q8_0": 1 / 127, "q4_0": 1 / 4}
        step = steps[tensor.dtype]  # of 4 bits -8 to 7: the other side's largest is cut by 1/8
        np.testing.assert_allclose(values, ours, atol=step * np.abs(ours).max() * 0.51, rtol=step)
        stored_as = round_as_stored(tensor, parameter)
        assert torch.equal(stored_as, torch.from_numpy(values.copy()))
        parameter[tensor.rows] = stored_as
    assert {tensor.dtype for tensor in written.tensors} == {"fp32", dtype}
    written.check(tokenizer)


def test_a_file_of_other_weights_or_ids_is_told(write, tokenizer):
    written = write(CASES["llama"])
    part = written.model.get_parameter("blocks.1.attention.qkv.weight")
    part[:8], part[8:16] = part[8:16].clone(), part[:8].clone()  # two halves of a head
    with pytest.raises(DataError, match="computes something else of the file: at token 1 "):
        written.check(tokenizer, texts=[])
    other = OwnTokenizer(tokenizer.model, {})
    other.encode = lambda text: np.array([5])
    with pytest.raises(DataError, match="other ids than the tokenizer to .def f"):
        written.check(other, logits=written.logits, tolerance=100)


@pytest.mark.parametrize("begins", [True, False])
def test_the_file_says_where_a_text_begins_and_ends(begins, write, tokenizer):
    path = write(CASES["llama"], begins_with_bos=begins).path
    fields = gguf.GGUFReader(str(path)).fields
    said = {name: field.contents() for name, field in fields.items()}
    ids = tokenizer.special_ids
    assert ids["bos"] != ids["eos"]
    for name, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items():
        assert said.get(f"tokenizer.ggml.{key}_token_id") == ids.get(name), name
    assert said["tokenizer.ggml.add_bos_token"] is begins
    assert said["tokenizer.ggml.add_eos_token"] is False


def test_one_bit_that_is_not_as_it_was_written_is_told(write):
    written = write(CASES["llama"])
    last = gguf.GGUFReader(str(written.path)).tensors[-1]
    content = bytearray(written.path.read_bytes())
    content[last.data_offset] ^= 1
    written.path.write_bytes(content)
    with pytest.raises(DataError, match=f"{last.name} has other bits than were written"):
        check_gguf(written.path, written.tensors, written.digests)


def test_a_token_that_is_not_the_likeliest_is_told_though_all_probabilities_are_right():
    logits_1V = torch.tensor([[3.0, 1.0, 0.0, -1.0]])
    top = [*enumerate(logits_1V[0].log_softmax(-1).tolist())]
    for token, never in ((0, []), (1, [0])):
        assert (
            compare_places(logits_1V, {"tokens": [token], "likeliest": [top]}, never, 1, 1e-3)
            < 1e-6
        )
    with pytest.raises(DataError, match="its likeliest token 1.2e.00 behind the model's"):
        compare_places(logits_1V, {"tokens": [1], "likeliest": [top]}, [], 1, 1e-3)


def test_llama_cpp_ends_with_the_process_that_asks_it(tmp_path):
    """Of a large model it would go on for long, in the memory that others need."""
    os.mkfifo(tmp_path / "model.gguf")  # which is opened for ever
    question = {"path": str(tmp_path / "model.gguf"), "context": 8, "threads": 1}
    code = f"from lmscale.exchange.llama_cpp import ask_llama_cpp; ask_llama_cpp({question})"
    with subprocess.Popen([sys.executable, "-c", code]) as asking:
        try:
            wait_until(lambda: bool(children_of(asking.pid)))
            child = psutil.Process(*children_of(asking.pid))
            wait_until(lambda: any("xllamacpp" in each.path for each in child.memory_maps()))
        finally:
            asking.terminate()
    try:
        wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    finally:
        if child.is_running():
            child.kill()


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_file_that_llama_cpp_cannot_run_is_told(write, tokenizer):
    written = write(CASES["llama"])
    written.path.write_bytes(written.path.read_bytes()[:20_000])
    with pytest.raises(DataError, match="llama.cpp could not run the file: its process ended"):
        written.check(tokenizer)


REFUSED = {
    "model.activation = geglu, only swiglu": {"activation": "geglu"},
    "model.sliding_windows = [9]: all its layers see all of the 64 positions": {
        "sliding_windows": (9,)
    },
    "model.head_width = 20: times heads it must be the width": {"head_width": 20, "qkv_bias": True},
    "model.rope_scaling.kind = llama3, only none, linear, yarn": LLAMA3 | {"qk_norm": True},
    "model.tied_embeddings = false": GEMMA | {"tied_embeddings": False},
    "model.sliding_windows = [0, 9], only [9, 0]": GEMMA2 | {"sliding_windows": (0, 9)},
    "model.attention_width = 20, only 16": GEMMA2 | {"attention_width": 20},
    "model.logit_softcap = 0": GEMMA2 | {"logit_softcap": 0.0},
}


@pytest.mark.parametrize("problem", REFUSED)
def test_what_llama_cpp_cannot_compute_is_told_with_what_it_can(problem):
    section = DecoderConfig(layers=3, width=64, heads=4, **REFUSED[problem])
    model_type = choose_architecture(section, SIZES).model_type
    with pytest.raises(ConfigError, match=re.escape(f"cannot compute {problem}")):
        choose_llama_cpp(model_type, section, SIZES)


def test_a_run_that_shall_become_gguf_is_refused_before_it_is_trained(tmp_path):
    text = "run: {name: a}\nexport: {format: gguf}\nbatch: {global_windows: 8, micro_windows: 2}\n"
    parse_config(text)
    with pytest.raises(ConfigError) as caught:
        parse_config(text, ["tokenizer.kind=unigram", "model.activation=geglu"])
    told = str(caught.value)
    assert "llama cannot compute model.activation = geglu, only swiglu" in told
    assert "tokenizer.kind = unigram: llama.cpp has no tokenizer that gives its ids" in told


def test_an_architecture_that_llama_cpp_lacks_is_told_with_those_it_has():
    with pytest.raises(ConfigError, match="bart cannot be exported as GGUF. Those that can"):
        choose_llama_cpp("bart", DecoderConfig(), SIZES)


def test_a_unigram_tokenizer_is_refused():
    model = train_model([topics["class"]], TokenizerConfig(kind="unigram", vocab_size=340))
    with pytest.raises(DataError, match="gives the ids of this one: it is not BPE. Export it with"):
        plan_vocabulary(OwnTokenizer(model, {}), {}, num_rows=340)


def test_a_weight_too_large_for_fp16_is_told():
    large = GgufTensor(name="output.weight", shape=(2, 32), dtype="fp16", parameter="head.weight")
    with pytest.raises(DataError, match="weight of 7e.04, more than fp16 can hold"):
        [*convert(large, torch.full((2, 32), 7e4))]
