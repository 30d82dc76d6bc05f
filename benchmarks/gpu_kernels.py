"""Part ``kernels``: attention, the objective, compiled blocks and transfers against the CPU.

The reference is always computed on the CPU, in fp32, through the dense mask, from inputs that were
rounded to the dtype under test. Errors are ‖difference‖ / ‖reference‖. In fp32 sums of a few
hundred terms in another order differ by about 1e-6, so 1e-5 is the limit. bf16 rounds by up to
2^-9 = 0.2 % each time a number is stored, and at most a handful of roundings follow one another in
a kernel and its backward pass: 1e-2. Through a model of two blocks they add up to twice that over
all gradients together; a single small parameter, a norm's say, is a sum in which most cancels, and
only a gross error in it is told from rounding.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gpu_check import Bench, Check, NotRun, expect, relative_error
from synthetic import build_config, random_steps
from torch import Tensor, nn
from training_loops import build_bare_model, synchronize

from lmscale.config import RunConfig, plan_batches
from lmscale.model.attention import attend
from lmscale.model.layout import attention_backend, build_layout, mark_starts
from lmscale.model.varlen import DTYPES, can_pack
from lmscale.objective.objective import build_scoring
from lmscale.objective.scores import to_device
from lmscale.stream.batches import Batch

KERNEL_LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
MODEL_LIMITS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
PARAMETER_LIMITS = {torch.float32: 1e-3, torch.bfloat16: 1e-1}


class Heads(NamedTuple):
    """Queries [B, H, T, V], keys and values [B, K, T, V], and the gradient of the output."""

    query: Tensor
    key: Tensor
    value: Tensor
    grad: Tensor


def random_heads(
    dtype: torch.dtype, *, heads: int, kv_heads: int, length: int, width: int
) -> Heads:
    """Heads of random numbers of the given precision, held in fp32 on the CPU."""
    generator = torch.Generator().manual_seed(length)

    def draw(count: int) -> Tensor:
        numbers = torch.randn((2, count, length, width), generator=generator)
        return numbers.to(dtype).float()

    return Heads(draw(heads), draw(kv_heads), draw(kv_heads), draw(heads))


def attend_with_gradients(heads: Heads, mask: Any, softcap: float = 0.0) -> list[Tensor]:
    query, key, value = (tensor.detach().requires_grad_() for tensor in heads[:3])
    output = attend(query, key, value, mask, softcap=softcap)
    output.backward(heads.grad)
    gradients = [tensor.grad for tensor in (query, key, value) if tensor.grad is not None]
    return [output, *gradients]


def compare_attention(
    bench: Bench,
    begins: Tensor,
    *,
    masked: bool,
    backend: Any,
    window: int = 0,
    softcap: float = 0.0,
    sees_ahead: bool = False,
) -> str:
    """Forward and gradients on the device against the CPU's dense mask, over dtypes and groups."""
    torch._dynamo.reset()  # FlexAttention is compiled once per shape, and at most eight times
    length = begins.shape[1]
    seen_begins = begins if masked else torch.zeros_like(begins)
    reference = build_layout(seen_begins, "dense", [window], sees_ahead=sees_ahead)
    seen = []
    for dtype, limit in KERNEL_LIMITS.items():
        if backend == "varlen" and dtype not in DTYPES:  # flash attention computes in 16 bits
            continue
        worst = 0.0
        # Width 128 in low precision only: torch's fp32 FlexAttention of it wants more shared memory
        # than some GPUs have.
        for kv_heads, width in ((4, 64), (2, 64 if dtype == torch.float32 else 128)):
            heads = random_heads(dtype, heads=4, kv_heads=kv_heads, length=length, width=width)
            expected = attend_with_gradients(heads, reference.masks[window], softcap)
            layout = build_layout(
                begins.to(bench.device),
                backend,
                [window],
                sees_ahead=sees_ahead,
                most_documents=int(begins.sum()),
            )
            moved = Heads(*(tensor.to(bench.device, dtype) for tensor in heads))
            actual = attend_with_gradients(moved, layout.masks[window], softcap)
            names = ("output", "query", "key", "value")
            for name, ours, theirs in zip(names, actual, expected, strict=True):
                error = relative_error(ours, theirs)
                expect(error < limit, f"{dtype}, {kv_heads} of 4 heads, {name}: {error:.1e}")
                worst = max(worst, error)
        seen.append(f"{str(dtype).removeprefix('torch.')} {worst:.1e}")
    return f"T = {length}, worst error " + ", ".join(seen)


def check_causal(bench: Bench) -> str:
    length = 96 if bench.is_dry_run else 1024
    begins = torch.zeros(2, length, dtype=torch.bool)
    return compare_attention(bench, begins, masked=False, backend="causal")


def check_flash(bench: Bench) -> str:
    """SDPA's flash kernel alone takes lmscale's heads, grouped ones too: no slower one is used."""
    bench.need_gpu()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    for kv_heads, width in ((12, 64), (3, 64), (12, 128)):
        heads = random_heads(torch.bfloat16, heads=12, kv_heads=kv_heads, length=256, width=width)
        moved = Heads(*(tensor.to(bench.device, torch.bfloat16) for tensor in heads))
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
            attend_with_gradients(moved, None)
    return "bf16, head widths 64 and 128, 12 and 3 of 12 key/value heads"


def check_packed(bench: Bench) -> str:
    """Flash attention of cut sequences: causal, with a window, and to both sides."""
    seen = []
    for window, sees_ahead in ((0, False), (200, False), (0, True), (65, True)):
        options = {"window": window, "sees_ahead": sees_ahead}
        seen.append(check_documents(bench, cuda_backend="varlen", **options))
    return seen[0]


def check_windows(bench: Bench) -> str:
    """Masked documents under a sliding window and soft-capped scores."""
    return check_documents(bench, window=200, softcap=20.0)


def check_both_sides(bench: Bench) -> str:
    """Masked documents and a sliding window of an encoder, which sees what follows as well."""
    return check_documents(bench, window=65, sees_ahead=True)


def check_documents(bench: Bench, cuda_backend: str = "flex", **options: Any) -> str:
    """Masked documents at a length that is no multiple of a block, and at one that is."""
    lengths = (40,) if bench.is_dry_run else (300, 1024)
    seen = []
    for length in lengths:
        begins = torch.rand(2, length, generator=torch.Generator().manual_seed(1)) < 8 / length
        begins[:, 0] = True
        # FlexAttention has no backward pass on the CPU.
        backend = cuda_backend if bench.is_cuda else "dense"
        seen.append(compare_attention(bench, begins, masked=True, backend=backend, **options))
    if not bench.is_cuda:
        raise NotRun(f"no GPU (SDPA with the dense mask: {seen[0]})")
    return "; ".join(seen)


def score(
    config: RunConfig, micro: Batch, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one micro-batch on a device."""
    model = build_bare_model(config, torch.device("cpu")).to(torch.bfloat16).to(torch.float32)
    objective = build_scoring(model, config).to(device, dtype)
    loss = objective(**to_device(micro.arrays, device)).loss.total / micro.targets
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss, gradients


LIKE_GPT2 = "model={positions: learned, norm: layernorm, activation: gelu, bias: true, heads: 4, "
LIKE_GPT2 += "layers: 2, width: 64, vocab_size: 512, tied_embeddings: true}"


def check_objective(bench: Bench) -> str:
    """The whole objective, documents masked, as GPT-2 and as Llama, against the CPU in fp32."""
    return compare_objectives(bench, {"llama": (), "gpt2": (LIKE_GPT2,)})


def check_families(bench: Bench) -> str:
    """The same of prefixes that are seen as a whole, of T5's biased scores, and of cells."""
    cases = {
        "prefix": ("objective.name=prefix",),
        "t5": (
            "model={family: encoder_decoder, layers: 1, width: 64, heads: 4}",
            "batch={global_windows: 128, micro_windows: 128}",
            "objective={name: spans, sentinels: 20}",
            "stream.mask_documents=false",
        ),
    }
    for cell in ("lstm", "gru"):
        cases[cell] = (f"model={{family: recurrent, cell: {cell}, width: 64, vocab_size: 512}}",)
    # Else cuDNN's cells compute fp32 by TF32, with the mantissa of fp16.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return compare_objectives(bench, cases)


def compare_objectives(bench: Bench, cases: Mapping[str, Sequence[str]]) -> str:
    """``cases``: name → overrides of the tiny shape."""
    seen = []
    for name, switches in cases.items():
        # Not all in one chunk, so that the recomputation of logits is in it.
        config = build_config("tiny", [*switches, "objective.chunk_tokens=50"])
        micro = one_micro_batch(config)
        expected, gradients = score(config, micro, torch.device("cpu"), torch.float32)
        for dtype, limit in MODEL_LIMITS.items():
            loss, actual = score(config, micro, bench.device, dtype)
            errors = {key: relative_error(actual[key], gradients[key]) for key in gradients}
            worst = max(errors, key=lambda key: errors[key])
            off = relative_error(loss, expected)
            whole = relative_error(_flat(actual), _flat(gradients))
            short = f"{name} {str(dtype).removeprefix('torch.')}"
            expect(off < limit, f"{short}: loss off by {off:.1e}")
            expect(whole < limit, f"{short}: gradient off by {whole:.1e}")
            expect(
                errors[worst] < PARAMETER_LIMITS[dtype],
                f"{short}: {worst}'s gradient off by {errors[worst]:.1e}",
            )
            seen.append(f"{short} {whole:.1e} ({worst} {errors[worst]:.1e})")
    return "gradient (worst parameter): " + ", ".join(seen)


def _flat(gradients: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([gradients[name].detach().cpu().double().flatten() for name in gradients])


def one_micro_batch(config: RunConfig) -> Batch:
    plan = plan_batches(
        global_windows=config.batch.micro_windows,
        micro_windows=config.batch.micro_windows,
        data_ranks=1,
    )
    return next(random_steps(config, plan)).micro_batches[0]


def check_compiled(bench: Bench) -> str:
    """Compiled blocks give what eager ones give, in one graph each."""
    from torch._dynamo.utils import counters

    backend = "inductor" if bench.is_cuda else "aot_eager"  # the latter needs no C++ compiler
    seen = []
    for name, switches in (
        ("llama", ()),
        ("gpt2", (LIKE_GPT2,)),
        ("unmasked", ("stream.mask_documents=false",)),
    ):
        config = build_config("tiny", switches)
        micro = one_micro_batch(config)
        for dtype, limit in list(MODEL_LIMITS.items())[: 1 if bench.is_dry_run else None]:
            torch._dynamo.reset()
            counters.clear()
            results = []
            for is_compiled in (False, True):
                model = build_bare_model(config, bench.device).to(dtype)
                if is_compiled:
                    for block in model.blocks:
                        block.compile(backend=backend)
                results.append(_loss_and_gradients(model, config, micro, bench.device))
            breaks = sum(counters["graph_break"].values())
            expect(breaks == 0, f"{name}: {breaks} graph breaks: {dict(counters['graph_break'])}")
            expect(counters["stats"]["unique_graphs"] > 0, f"{name}: nothing was compiled")
            eager, compiled = results
            whole = relative_error(_flat(compiled), _flat(eager))
            worst = max(relative_error(compiled[key], eager[key]) for key in eager)
            expect(whole < limit, f"{name}, {dtype}: {whole:.1e} from eager")
            expect(worst < PARAMETER_LIMITS[dtype], f"{name}, {dtype}: {worst:.1e} from eager")
            graphs = counters["stats"]["unique_graphs"]
            seen.append(f"{name} {str(dtype).removeprefix('torch.')} {whole:.1e} ({graphs} graphs)")
    return f"{backend}: " + ", ".join(seen)


def _loss_and_gradients(
    model: nn.Module, config: RunConfig, micro: Batch, device: torch.device
) -> dict[str, Tensor]:
    objective = build_scoring(model, config)  # pyright: ignore[reportArgumentType]
    loss = objective(**to_device(micro.arrays, device)).loss.total / micro.targets
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss[None], **gradients}


def check_compact_tokens(bench: Bench) -> str:
    """Every uint16 and a spread of uint32 ids become the same int64 on the device."""
    for dtype, values in (
        (np.uint16, np.arange(2**16)),
        (np.uint32, np.arange(2**16, 2**18)),
    ):
        ids = torch.from_numpy(values.astype(dtype)).to(bench.device).long()
        expect(bool((ids.cpu().numpy() == values).all()), f"{dtype.__name__} changed on the way")
    return "65,536 uint16 and 196,608 uint32 ids"


def check_transfers(bench: Bench) -> str:
    """Transfers neither wait for the device nor are overtaken by the reuse of pinned memory."""
    config = build_config("tiny", ["stream.sequence_length=1024", "batch.micro_windows=64"])
    micro = one_micro_batch(config)
    to_device(micro.arrays, bench.device)  # the first one allocates the pinned memory
    generator = np.random.default_rng(0)
    shape = micro.arrays["tokens"].shape
    batches = [generator.integers(0, 512, shape).astype(np.uint16) for _ in range(40)]
    synchronize(bench.device)
    if bench.is_cuda:
        torch.cuda._sleep(2 * 10**9)  # cycles: about a second in which the stream does nothing else
    started = time.perf_counter()
    arrived = [
        to_device({**micro.arrays, "tokens": tokens}, bench.device)["tokens"] for tokens in batches
    ]
    issued = time.perf_counter() - started
    synchronize(bench.device)
    finished = time.perf_counter() - started
    for tokens, ours in zip(batches, arrived, strict=True):
        expect(bool((ours.cpu().numpy() == tokens).all()), "a batch arrived changed")
    if not bench.is_cuda:
        raise NotRun("no GPU (the arrays arrive unchanged)")
    expect(issued < finished / 2, f"issued in {issued:.2f} s of {finished:.2f} s: they waited")
    return f"40 issued in {1e3 * issued:.0f} ms while the device was busy for {finished:.1f} s"


def check_marks(bench: Bench) -> str:
    """Document starts and the choice of backend on the device are those of the CPU."""
    micro = one_micro_batch(build_config("tiny"))
    starts = to_device(micro.arrays, bench.device)["starts"]
    rows, length = micro.arrays["tokens"].shape
    ours = mark_starts(starts, batch=rows, length=length).cpu()
    theirs = mark_starts(torch.from_numpy(micro.arrays["starts"]), batch=rows, length=length)
    expect(torch.equal(ours, theirs), "document starts differ")
    packs = can_pack(device=bench.device, dtype=torch.bfloat16, head_width=64)
    chosen = attention_backend(device_type=bench.device.type, masked=True, can_pack=packs)
    wanted = "varlen" if packs else "flex"
    expect(chosen == (wanted if bench.is_cuda else "dense"), f"the backend is {chosen}")
    return f"masked documents go to {chosen}"


CHECKS = (
    Check(name="uint16 and uint32 to int64 on the device", run=check_compact_tokens),
    Check(name="pinned transfers do not block", run=check_transfers),
    Check(name="document starts on the device", run=check_marks),
    Check(name="causal attention = dense mask on the CPU", run=check_causal),
    Check(name="flash kernel takes all heads", run=check_flash),
    Check(name="masked documents = dense mask on the CPU", run=check_documents, limit_seconds=90),
    Check(name="cut sequences = dense on the CPU", run=check_packed, limit_seconds=90),
    Check(name="windows, caps = dense on the CPU", run=check_windows, limit_seconds=120),
    Check(name="both sides = dense mask on the CPU", run=check_both_sides, limit_seconds=120),
    Check(name="objective = CPU in fp32", run=check_objective, limit_seconds=90),
    Check(name="families and prefixes = CPU in fp32", run=check_families, limit_seconds=90),
    Check(name="compiled blocks = eager", run=check_compiled, limit_seconds=120),
)
