"""The YAML that ``lmscale init`` writes: every choice with its reason."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from lmscale.cli.init_plan import MAX_EPOCHS, TOKENS_PER_PARAMETER, Choice, Device
from lmscale.config.load import parse_yaml
from lmscale.corpus.survey import Survey, merge_surveys
from lmscale.files.printing import count_of, render_bytes, render_duration
from lmscale.ranks.device import usual_setting


def render_config(name: str, surveys: Mapping[str, Survey], choice: Choice, device: Device) -> str:
    """What is chosen, and what a person will want to change; the rest has its defaults.

    ``surveys``: source → what its files hold.
    """
    return "".join(
        [
            _render_head(name, merge_surveys([*surveys.values()]), choice, device),
            _render_data(name, surveys, choice),
            _render_model(choice, device),
            _render_end(name, surveys, choice),
        ]
    )


def _render_head(name: str, survey: Survey, choice: Choice, device: Device) -> str:
    about = "" if survey.is_exact else "about "
    formats = ", ".join(f"{number:,} {form}" for form, number in survey.formats.items())
    return f"""\
# Written by lmscale init; yours to change. lmscale config show prints every key that is not here.
# The text: {count_of(survey.files, "file")} ({formats}), {about}{survey.documents:,} documents, \
{about}{render_bytes(survey.text_bytes)}, some {render_count(choice.tokens)} tokens.
# The machine: {device.described}.
run:
  name: {json.dumps(name)}
  seed: 1
"""


def _render_data(name: str, surveys: Mapping[str, Survey], choice: Choice) -> str:
    sources = "".join(_render_source(source, survey) for source, survey in surveys.items())
    total = sum(survey.text_bytes for survey in surveys.values())
    streams = "".join(
        f"    {_render_key(source)}: {{shards: data/{name}/shards/{source}/train"
        f"{_render_weight(survey.text_bytes, total) if len(surveys) > 1 else ''}}}\n"
        for source, survey in surveys.items()
    )
    if len(surveys) > 1:
        streams = f"    # By their sizes; a larger weight is read more often.\n{streams}"
    if choice.has_heldout:
        heldout = (
            f"heldout_fraction: {choice.heldout_fraction:g}  # of the documents: never trained on, "
            "evaluation reads it"
        )
    else:
        heldout = (
            "# Of so few documents none would be held out. Cut files into more, by separator, and "
            "let\n  # evaluation have some: 0.05, with evaluation as below.\n  heldout_fraction: 0"
        )
    return f"""
corpus:
  folder: data/{name}/corpus
  {heldout}
  sources:
{sources}
tokenizer:
  folder: data/{name}/tokenizer
  vocab_size: {choice.vocab_size}  # a piece stands for some {choice.bytes_per_token:.1f} bytes \
of text then

shards:
  folder: data/{name}/shards

stream:
  sequence_length: {choice.sequence_length}  # tokens that the model sees at once
  packing: best_fit  # documents stay whole where they fit
  sources:
{streams}"""


def _render_source(name: str, survey: Survey) -> str:
    inputs = "".join(f"        - {_render_input(each)}\n" for each in survey.inputs)
    return f"    {_render_key(name)}:\n      inputs:\n{inputs}"


def _render_weight(text_bytes: int, total: int) -> str:
    return f", weight: {max(0.001, text_bytes / max(1, total)):.3g}"


def _render_precision(device: Device) -> str:
    if (setting := usual_setting(device.precision)) == "fp16":
        return "fp16  # no units for bf16 there"
    return f"{setting}  # bf16 where the devices compute in it, else fp32; here {device.precision}"


def _render_model(choice: Choice, device: Device) -> str:
    tokens = choice.global_windows * choice.sequence_length
    recompute = (
        "\n  activation_checkpoint_every: 1  # else the activations would not fit into the memory"
        if choice.recompute
        else ""
    )
    stage = {1: "the optimizer's states are dealt to the ranks", 3: "so are weights and gradients"}
    share = choice.trained_tokens / choice.parameters
    step = f"× {choice.sequence_length} = {tokens:,} tokens a step, shared by 1, 2, 4 or 8 ranks"
    trained = f"{render_count(choice.trained_tokens)} tokens: {choice.epochs:.2g} epochs"
    hours = render_duration(max(60.0, 3600 * choice.hours))
    cut = "\n  # Cut to the hours that were allowed; more steps would be better." * choice.is_cut
    return f"""
batch:
  global_windows: {choice.global_windows}  # {step}
  micro_windows: {choice.micro_windows}  # at once; lower it when memory runs out

model:
  # {choice.parameters:,} parameters: {choice.bound_by}
  layers: {choice.shape.layers}  # shapes as in table 2.1 of GPT-3 (Brown et al. 2020), or alike
  width: {choice.shape.width}
  heads: {choice.shape.heads}
  tied_embeddings: true{recompute}

engine:
  precision: {_render_precision(device)}
  zero_stage: {choice.zero_stage}  # {stage[choice.zero_stage]}
  optimizer: {{lr: {choice.shape.lr:g}}}  # GPT-3's of this size; of small models nanoGPT's
  schedule: {{kind: cosine, warmup_steps: {choice.warmup_steps}, final_ratio: 0.1}}

train:
  # {trained}, {share:.2g} tokens a parameter.
  # {TOKENS_PER_PARAMETER} a parameter use computation best (Hoffmann et al. 2022), and up to
  # {MAX_EPOCHS} epochs are as good as fresh text (Muennighoff et al. 2023).
  # Some {hours} on this machine, by a rule of thumb; the log says it better.{cut}
  steps: {choice.steps}
"""


def _render_end(name: str, sources: Iterable[str], choice: Choice) -> str:
    places = "".join(
        f"    {_render_key(source)}: data/{name}/shards/{source}/heldout\n" for source in sources
    )
    saves = f"""
checkpoint:
  every_steps: {choice.every_steps}
  keep_last: 2  # each is about {render_bytes(12 * choice.parameters)}: fp32 weights and two states
"""
    sets = f"""
evaluation:
  every_steps: {choice.every_steps}
  max_windows: 256  # of every set while it trains; at the end all
  sets:
{places}"""
    commented = "".join(f"# {line}".rstrip() + "\n" for line in sets.strip().splitlines())
    return saves + (sets if choice.has_heldout else f"\n{commented}")


def _render_key(name: str) -> str:
    """A name that YAML would read as something else, such as on, 007 and 1e5, in quotes."""
    return name if [*parse_yaml(f"{name}:", name)] == [name] else json.dumps(name)


def _render_input(each: str | Mapping[str, str]) -> str:
    if isinstance(each, str):
        return json.dumps(each, ensure_ascii=False)
    pairs = (f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in each.items())
    return f"{{{', '.join(pairs)}}}"


def render_commands(path: str, name: str, choice: Choice) -> Sequence[str]:
    """What a person types next."""
    commands = [
        f"lmscale corpus build {path}",
        f"lmscale tokenizer train {path}",
        f"lmscale shards build {path}",
        f"lmscale stream show {path}",
        f"lmscale launch local {path}",
    ]
    return [*commands, f"lmscale evaluate runs/{name}"] if choice.has_heldout else commands


def render_count(number: float) -> str:
    for unit, size in (("billion", 1e9), ("million", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:,.0f}"
