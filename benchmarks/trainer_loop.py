"""The same shapes under transformers' Trainer, where transformers and accelerate are installed."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import torch
from training_loops import TrainingLoop, synchronize

from lmscale.config import BatchPlan, RunConfig


class TrainerLoop(TrainingLoop):
    """Trainer over a Llama or GPT-2 of transformers with this configuration's shapes.

    Windows of random tokens without document masks, which Trainer's models do not have; AdamW of
    torch, fused; ``bf16=True`` (autocast) in bf16. Raises ``ImportError`` where it is not
    installed.
    """

    name = "transformers Trainer"

    def __init__(self, config: RunConfig, plan: BatchPlan, device: torch.device) -> None:
        super().__init__(device)
        from transformers import (  # pyright: ignore[reportMissingImports]  # optional
            Trainer,
            TrainerCallback,
            TrainingArguments,
        )

        self.config, self.plan = config, plan
        self.folder = tempfile.TemporaryDirectory(prefix="lmscale-benchmark-")
        self.arguments: dict[str, Any] = {
            "output_dir": self.folder.name,
            "per_device_train_batch_size": plan.micro_windows,
            "gradient_accumulation_steps": plan.accumulation,
            "bf16": config.engine.precision == "bf16",
            "use_cpu": device.type == "cpu",
            "optim": "adamw_torch_fused" if device.type == "cuda" else "adamw_torch",
            "torch_compile": config.engine.compile,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "logging_strategy": "no",
            "dataloader_pin_memory": device.type == "cuda",
        }
        self.model = _build_model(config)
        self.trainer_class, self.arguments_class = Trainer, TrainingArguments

        class Clock(TrainerCallback):
            """When each optimizer step ended."""

            def __init__(self, clock: Callable[[], float]) -> None:
                self.clock = clock
                self.ended_at: list[float] = []

            def on_step_end(self, *_: Any, **__: Any) -> None:
                synchronize(device)
                self.ended_at.append(self.clock())

        self.clock_class = Clock
        generator = np.random.default_rng(0)
        length = config.stream.sequence_length
        windows = generator.integers(0, config.vocab_size, (plan.global_windows * 4, length))
        self.windows = [{"input_ids": row, "labels": row} for row in torch.from_numpy(windows)]

    def step(self) -> None:
        self.run(1)

    def run(self, steps: int, clock: Callable[[], float] = time.perf_counter) -> float:
        """As for the others; each call of ``train`` begins with one step that is not counted."""
        ends = self.clock_class(clock)
        trainer = self.trainer_class(
            model=self.model,
            args=self.arguments_class(**self.arguments, max_steps=steps + 1),
            train_dataset=self.windows,
            callbacks=[ends],
        )
        with redirect_stdout(io.StringIO()):  # it prints a dictionary at the end of each training
            trainer.train()
        return ends.ended_at[-1] - ends.ended_at[0]

    def close(self) -> None:
        self.folder.cleanup()
        super().close()


def _build_model(config: RunConfig) -> torch.nn.Module:
    from transformers import (  # pyright: ignore[reportMissingImports]  # optional
        AutoModelForCausalLM,
        GPT2Config,
        LlamaConfig,
    )

    shape = config.model
    if shape.positions == "learned":
        return AutoModelForCausalLM.from_config(
            GPT2Config(
                vocab_size=config.vocab_size,
                n_positions=config.max_positions,
                n_embd=shape.width,
                n_layer=shape.layers,
                n_head=shape.heads,
                n_inner=shape.resolved_ffn_width,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                use_cache=False,
            )
        )
    return AutoModelForCausalLM.from_config(
        LlamaConfig(
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_positions,
            hidden_size=shape.width,
            intermediate_size=shape.resolved_ffn_width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.resolved_kv_heads,
            tie_word_embeddings=shape.tied_embeddings,
            use_cache=False,
        )
    )
