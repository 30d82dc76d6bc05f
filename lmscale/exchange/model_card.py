"""README.md of an export: which model it is, what it has read, how it was verified."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from lmscale.config.hf.architecture import Head
from lmscale.config.training import AVERAGE
from lmscale.errors import LmscaleError
from lmscale.evaluation.found import FoundRun
from lmscale.exchange.exported import Exported, Report, describe
from lmscale.exchange.parity import AUTO_CLASSES
from lmscale.files.printing import count_of
from lmscale.ranks.limbs import DIGEST_BITS
from lmscale.runs.given_weights import read_import, read_made
from lmscale.runs.run_folder import read_status
from lmscale.stream.ledger import read_ledger
from lmscale.stream.stream import StreamState

CARD = "README.md"
_TASKS: Mapping[tuple[str, Head], str] = {
    ("decoder", "tokens"): "text-generation",
    ("decoder", "texts"): "text-classification",
    ("encoder", "tokens"): "fill-mask",
    ("encoder", "order"): "fill-mask",
    ("encoder", "texts"): "text-classification",
    ("encoder", "tags"): "token-classification",
    ("encoder", "answers"): "question-answering",
    ("encoder_decoder", "pairs"): "text2text-generation",
}
"""The hub's names of tasks."""


def render_card(exported: Exported) -> str:
    """The model card. Its facts are the run's own, as of the checkpoint."""
    sections = (
        _front_matter(exported),
        _summary(exported),
        _loading(exported),
        _data(exported.found),
        _figures(exported.found),
        _checks(exported),
        _limits(exported),
    )
    return "\n\n".join("\n".join(lines) for lines in map(tuple, sections) if lines) + "\n"


def render_loading(exported: Exported, folder: str) -> list[str]:
    """Lines of Python that load the folder and ask the model something."""
    plan = exported.plan
    auto = AUTO_CLASSES[plan.section.family, plan.head]
    lines = [
        f"from transformers import {auto}, AutoTokenizer",
        f"model = {auto}.from_pretrained({json.dumps(folder)})",
        f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(folder)})",
    ]
    if not plan.writes:
        return [*lines, 'print(model(**tokenizer("A text.", return_tensors="pt")).logits.shape)']
    added, text = exported.found.config.objective_ids, '"A text"'
    if "sentinel_0" in added:  # what is asked for is what it stands for
        lines.append(f"gap = tokenizer.convert_ids_to_tokens({added['sentinel_0']})")
        text = 'f"A text {gap}"'
    return [
        *lines,
        f'ids = tokenizer({text}, return_tensors="pt").input_ids',
        "print(tokenizer.decode(model.generate(ids, max_new_tokens=40)[0]))",
    ]


def report_export(exported: Exported) -> Report:
    """What the command line says."""
    plan, found, request = exported.plan, exported.found, exported.request
    files = count_of(len(exported.files), "file")
    size = f"{exported.bytes / 1e6:,.1f} MB in {files}"
    code = "; ".join(render_loading(exported, str(request.out)))
    rows = [
        ("exported", f"{found.name}, {found.weights} weights"),
        ("folder", str(request.out)),
        ("as", f"{plan.class_name}, {exported.check.tensors} tensors of {request.dtype}, {size}"),
        *(("verified", line) for line in exported.check.describe()),
        ("tokenizer", exported.tokenizer.describe()),
        *(("note", note) for note in exported.notes),
        ("try it", f"python -c {shlex.quote(code)}"),
    ]
    return Report(describe(exported), rows)


def _front_matter(exported: Exported) -> Iterator[str]:
    plan = exported.plan
    yield from ("---", "library_name: transformers")
    yield f"pipeline_tag: {_TASKS[plan.section.family, plan.head]}"
    yield from ("tags:", "- lmscale", f"- {plan.architecture.model_type}", "---")


def _summary(exported: Exported) -> Iterator[str]:
    found, plan = exported.found, exported.plan
    step, name = found.manifest.step, found.config.run.name
    yield f"# {name}"
    yield ""
    size = f"{exported.parameters:,} parameters in {exported.request.dtype}"
    what = f"A `{plan.class_name}` of {size}"
    if imported := read_import(found.folder):
        yield f"{what}: `{imported.described}`, as lmscale has imported it."
        return
    if made := read_made(found.folder):
        yield f"{what}: {made.how}; made of step {made.step:,} of the run `{made.run}` by lmscale."
        return
    average = "; the average of its weights over the steps" if found.weights == AVERAGE else ""
    yield f"{what}: step {step:,} of the run `{name}`, trained with lmscale{average}."
    origin = found.manifest.state.get("initial")
    if isinstance(origin, dict):
        source = origin.get("imported") or {}
        was = f", which was imported: `{source.get('folder')}`" if source else ""
        yield f"It began with step {origin.get('step')} of the run `{origin.get('run')}`{was}."


def _loading(exported: Exported) -> Iterator[str]:
    yield from ("## Load it", "", "```python", *render_loading(exported, "FOLDER"), "```")


def _data(found: FoundRun) -> Iterator[str]:
    """What it has read, by the checkpoint's own account."""
    state = found.manifest.state
    progress, stream = state.get("progress"), state.get("stream")
    if not isinstance(progress, dict) or not isinstance(stream, dict):
        return
    yield from ("## What it has read", "")
    yield (
        f"{progress.get('n', 0):,} windows of {found.config.stream.sequence_length:,} tokens, "
        f"{progress.get('tokens', 0):,} tokens trained on; objective "
        f"`{found.config.objective.name}`."
    )
    if digest := _digest_ledger(found):
        yield f"The digest of all samples, in the run's ledger: `{digest}`."
    yield from ("", "| source | share | dataset |", "|---|---|---|")
    for name, share, fingerprint in _sum_shares(StreamState.from_json(stream)):
        yield f"| {_cell(name)} | {share:.1%} | `{fingerprint}` |"
    yield ""
    yield f"Tokenizer: `{found.tokenizer.fingerprint[:16]}`, {found.tokenizer.vocab_size:,} pieces."


def _sum_shares(state: StreamState) -> list[tuple[str, float, str]]:
    """Name, share of the samples over all mixtures of the run, and dataset of each source."""
    samples: Counter[str] = Counter()
    fingerprints: dict[str, str] = {}
    ends = [segment.start for segment in state.segments[1:]] + [state.n]
    for segment, end in zip(state.segments, ends, strict=True):
        fingerprints |= segment.fingerprints
        for name, quota in segment.quotas.items():
            samples[name] += max(0, end - segment.start) * quota // segment.block
    total = max(1, samples.total())
    return [(name, n / total, fingerprints.get(name, "")) for name, n in samples.most_common()]


def _digest_ledger(found: FoundRun) -> str:
    """Of all samples up to the checkpoint; empty where the ledger does not have each step."""
    try:
        rows = [row for row in read_ledger(found.folder) if row.step < found.manifest.step]
    except LmscaleError:
        return ""
    if len(rows) != found.manifest.step:
        return ""
    return f"{sum(row.digest for row in rows) % 2**DIGEST_BITS:016x}"


def _figures(found: FoundRun) -> Iterator[str]:
    """Those of held-out sets that were measured at this very step."""
    rows = held_out_figures(found)
    if not rows:
        return
    names = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    yield from ("## Held out", "")
    yield f"| set | {' | '.join(names)} |"
    yield "|---" * (len(names) + 1) + "|"
    for name, figures in rows.items():
        cells = (f"{figures[each]:.4f}" if each in figures else "-" for each in names)
        yield f"| {_cell(name)} | {' | '.join(cells)} |"


def held_out_figures(found: FoundRun) -> dict[str, dict[str, float]]:
    """Set → name → figure of the weights that are exported, as the run logged them."""
    if (found.weights == AVERAGE) != found.config.scores_average:
        return {}
    try:
        status = read_status(found.folder)
    except LmscaleError:
        return {}
    sets: dict[str, dict[str, float]] = {}
    for key, value in status.figures.items():
        kind, _, rest = key.partition("/")
        name, _, figure = rest.rpartition("/")
        is_own = kind in ("evaluation", "final") and name
        if is_own and value is not None and status.figure_steps[key] == found.manifest.step:
            sets.setdefault(name, {})[figure] = value
    return sets


def _checks(exported: Exported) -> Iterator[str]:
    yield from ("## How it was verified", "", *exported.check.describe(), "")
    yield f"Tokenizer: {exported.tokenizer.describe()}, loaded by `AutoTokenizer`."
    yield "Every file was read back, and has the hash that `lmscale_export.json` names."


def _limits(exported: Exported) -> Iterator[str]:
    yield from ("## What to know", "")
    yield "- Neither the weights' licence nor the data's is known to lmscale: say it here."
    for note in exported.notes:
        yield f"- {note}"


def _cell(text: Any) -> str:
    """A name in a table, whatever is in it."""
    return json.dumps(str(text), ensure_ascii=False)[1:-1].replace("|", "\\|")
