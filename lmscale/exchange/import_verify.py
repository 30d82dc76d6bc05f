"""An import against the folder that it came from: as the run's own model, read from its checkpoint.

``logits``: transformers loads the folder, and both answer the same. ``tensors``: every parameter is
read back and compared with the files, for models that do not fit into memory.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from lmscale.checkpoint.load import open_weights
from lmscale.errors import CheckpointError
from lmscale.evaluation.found import FoundRun, find_run
from lmscale.exchange.import_run import Import
from lmscale.exchange.parity import Outputs, Parity, ask_theirs, compare, read_barred
from lmscale.exchange.samples import Samples, longest_sample, random_samples
from lmscale.model.family import Model, build_model_on
from lmscale.tokenizer.codec import Tokenizer

How = Literal["logits", "tensors"]
TEXTS = (
    "The quick brown fox jumps over the lazy dog. In 1969 two men walked on the moon, and 600 "
    "million people watched it; the third one, in orbit, could only listen.",
    "今天天气很好，我们去公园散步。他说：“这本书一共有三百二十页，我昨天晚上就看完了。”",
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n"
    "    return total / len(values)  # 3.14\n",
    "naïve café, Größe 12 µm — 日本語, русский, العربية 🙂🚀\n",
)


def verify(plan: Import, run: Path, how: How) -> Parity | None:
    """How near both came, or None where tensors were compared. Raises ``DataError``."""
    found = find_run(run, step=None)
    if how == "tensors":
        check_tensors(plan, found)
        return None
    samples, head = draw_texts(plan, plan.tokenizer), plan.source.head
    rows = min(plan.origin.rows, plan.config.vocab_size)  # that both have
    is_cut = rows < plan.origin.rows
    answers = ask_theirs(
        plan.weights.folder,
        samples,
        family=found.config.model.family,
        head=head,
        beside=plan.plan.left_behind,
        writes=plan.config.model.family != "encoder" and head != "texts" and not is_cut,
    )
    if is_cut:
        answers = replace(
            answers, outputs=tuple(cut(each, plan.origin.rows, rows) for each in answers.outputs)
        )
    return compare(
        load_model(found, rows),
        samples,
        answers,
        head=head,
        barred=read_barred(plan.weights.folder),
    )


def cut(outputs: Outputs, rows: int, left: int) -> Outputs:
    """Logits of a vocabulary of ``rows`` without those that are not ``left``."""
    return tuple(each[:, :left] if each.shape[-1] == rows else each for each in outputs)


def check_tensors(plan: Import, found: FoundRun) -> None:
    """Raise ``CheckpointError`` where a parameter is not bit for bit what the files say."""
    with (
        plan.weights.opened() as read,
        open_weights(found.place, found.manifest) as read_own,
        torch.no_grad(),
    ):
        for name in plan.plan.shapes:
            if not torch.equal(read_own(name), plan.plan.value(name, read)):
                raise CheckpointError(f"{found.name}: {name} is not what was written.")


def load_model(found: FoundRun, rows: int) -> Model:
    """The model in fp32 on the CPU, filled from the checkpoint; of its vocabulary the first rows"""
    config, cpu = found.config, torch.device("cpu")
    sizes = replace(config.sizes, vocab_size=rows)
    model = build_model_on(config.model, sizes, device=cpu, dtype=torch.float32)
    with open_weights(found.place, found.manifest) as read, torch.no_grad():
        for name, parameter in model.named_parameters():
            value = read(name)
            parameter.copy_(value[:rows] if len(value) != len(parameter) else value)
    return model.eval()


def draw_texts(plan: Import, tokenizer: Tokenizer) -> Samples:
    """Texts as the tokenizer cuts them, and one sample of random ids as long as the model sees."""
    config = plan.config
    longest = longest_sample(config)
    num_ids = min(tokenizer.vocab_size, plan.origin.rows)
    random = random_samples(num_ids, longest).rows[0]
    texts = [tokenizer.encode(text).tolist()[:longest] for text in TEXTS]
    # Some of theirs count positions by what is no padding.
    padding = plan.source.tree.get("pad_token_id")
    known = [tuple(i for i in ids if i < num_ids and i != padding) for ids in (random, *texts)]
    bos = () if plan.origin.bos is None else (plan.origin.bos,)
    return Samples(
        rows=tuple((*bos, *ids)[:longest] for ids in known if ids),
        origin="texts and random ids",
        start=config.objective_ids.get("start"),
        has_types=getattr(config.model, "token_types", 0) > 1,
    )
