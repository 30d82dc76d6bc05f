"""What is chosen for a text and a machine, on a grid of both."""

import json
import math
from itertools import product

import pytest

from lmscale.cli.init_machine import parse_size, plan_device
from lmscale.cli.init_plan import (
    FRACTIONS,
    MAX_EPOCHS,
    SHAPES,
    TOKENS_PER_PARAMETER,
    Device,
    Text,
    count_parameters,
    describe_doubts,
    plan_run,
    plan_vocabulary,
)
from lmscale.cli.init_yaml import render_config
from lmscale.config import parse_config
from lmscale.corpus.survey import Survey
from lmscale.errors import ConfigError
from lmscale.model.family import account_model
from lmscale.ranks import gpus
from lmscale.ranks.device import usual_precision

SIZES = [10**4, 10**6, 10**8, 10**10, 10**13]


def text_of(text_bytes, documents=10**4, east_asian=0.0, needed_chars=90):
    heldout = {fraction: int(fraction * documents) for fraction in FRACTIONS}
    return Text(
        text_bytes=text_bytes,
        heldout=heldout,
        east_asian=east_asian,
        needed_chars=needed_chars,
    )


def device_of(ranks=1, gib=24, flops=4e10, precision="bf16", is_gpu=True):
    return Device(
        ranks=ranks,
        memory_bytes=gib * 2**30,
        flops=flops,
        precision=precision,
        described="x",
        is_gpu=is_gpu,
    )


SURVEY = Survey(
    inputs=("raw/*.txt", {"files": "b: #.txt", "encoding": "gb18030"}),
    files=2,
    formats={"text": 2},
    documents=10,
    text_bytes=1000,
    is_exact=False,
    digests=(),
    sample="",
)
MACHINES = [
    device_of(is_gpu=False, precision="fp32"),
    device_of(ranks=6, gib=16, flops=1e14),
    device_of(ranks=8, gib=80, flops=3e15),
    device_of(ranks=512, gib=80, flops=2e17),
]


@pytest.mark.parametrize("device", MACHINES, ids=["cpu", "6", "8", "512"])
@pytest.mark.parametrize("text_bytes", SIZES)
def test_every_choice_is_a_configuration_that_plans_on_1_on_8_and_on_its_own_ranks(
    device, text_bytes
):
    for documents, asked in product([3, 10**5], [None, 10**8]):
        text = text_of(text_bytes, documents)
        choice = plan_run(text, device, max_hours=24, parameters=asked)
        config = parse_config(render_config("a-b", {"a-b": SURVEY}, choice, device), name="init")
        for ranks in (1, 8, device.ranks):
            plan = config.batch.plan(ranks)
            assert plan.windows_per_rank * ranks == config.batch.global_windows
        assert not list(config.describe_doubts()) and not list(config.find_beginning_problems())
        assert account_model(config.model, config.sizes).total == choice.parameters
        share = choice.trained_tokens / choice.parameters
        assert bool([*describe_doubts(choice)]) == (share < 1 or choice.is_cut)
        assert choice.hours <= 24 * 1.3 or choice.steps == 1
        embedding = config.vocab_size * choice.shape.width
        assert embedding <= 0.55 * choice.parameters or choice.vocab_size <= 1024
        assert bool(config.evaluation.sets) == (documents > 100) == choice.has_heldout
        assert choice.epochs <= MAX_EPOCHS * 1.3 or choice.steps == 1
        assert choice.trained_tokens <= 1.3 * TOKENS_PER_PARAMETER * choice.parameters
        found = [each.settings for each in config.corpus.sources["a-b"].inputs]
        assert found == [{}, {"encoding": "gb18030"}]


@pytest.mark.parametrize("device", MACHINES, ids=["cpu", "6", "8", "512"])
def test_a_larger_text_gets_no_smaller_model_and_none_that_passes_a_bound(device):
    choices = [plan_run(text_of(size), device, max_hours=24) for size in SIZES]
    places = [SHAPES.index(choice.shape) for choice in choices]
    assert places == sorted(places)
    for choice in choices:
        states = choice.parameters * (16 if choice.zero_stage == 1 else 16 / device.ranks)
        states = states if device.ranks == 1 else min(states, choice.parameters * 16)
        assert choice.shape == SHAPES[0] or choice.hours <= 24 * 1.3
        assert choice.zero_stage == 3 or choice.parameters * 4 < device.memory_bytes


def test_text_of_one_billion_tokens_on_eight_gpus_gets_what_chinchilla_would_give_it():
    choice = plan_run(text_of(4 * 10**9), device_of(ranks=8, gib=80, flops=3e15), max_hours=24)
    assert choice.vocab_size == 32_000
    assert choice.parameters == pytest.approx(MAX_EPOCHS * choice.tokens / 20, rel=0.6)
    assert "4 epochs of the text hold 20 tokens for each" in choice.bound_by


def test_where_no_shape_is_small_enough_for_the_hours_the_steps_are_cut_to_them_and_it_is_told():
    whole, cut = (plan_run(text_of(10**9), MACHINES[0], max_hours=hours) for hours in (24, 0.02))
    assert not whole.is_cut and cut.is_cut and cut.hours <= 0.02 * 1.1
    assert "cut to the hours" in "".join(describe_doubts(cut))
    assert "Cut to the hours" in render_config("a", {"a": SURVEY}, cut, MACHINES[0])
    asked = plan_run(text_of(10**10), MACHINES[0], max_hours=1, parameters=10**8)
    assert asked.is_cut and asked.hours <= 1.1


def test_the_memory_bounds_the_model_and_then_more_gpus_allow_a_larger_one():
    small, large = (
        plan_run(text_of(10**13), device_of(ranks=n, gib=16, flops=1e18), max_hours=10**4)
        for n in (1, 64)
    )
    assert small.parameters < large.parameters
    assert "memory" in small.bound_by and large.zero_stage == 3


def test_a_vocabulary_has_room_for_the_characters_and_grows_with_the_text():
    sizes = [plan_vocabulary(text_of(size))[0] for size in SIZES]
    assert sizes == sorted(sizes) and sizes[-1] == 32_000
    chinese, _ = plan_vocabulary(text_of(10**6, east_asian=0.9, needed_chars=3000))
    assert chinese >= 3000 + 256
    bytes_a_token = [plan_vocabulary(text_of(size))[1] for size in SIZES]
    assert bytes_a_token == sorted(bytes_a_token) and 2 < bytes_a_token[0] < bytes_a_token[-1] < 5


def test_parameters_are_counted_as_the_model_has_them():
    for shape, vocab_size in product(SHAPES, [300, 32_000]):
        tree = {"run": {"name": "a"}, "tokenizer": {"vocab_size": vocab_size}}
        model = {"layers": shape.layers, "width": shape.width, "heads": shape.heads}
        config = parse_config(json.dumps({**tree, "model": {**model, "tied_embeddings": True}}))
        counted = count_parameters(shape.layers, shape.width, vocab_size)
        assert account_model(config.model, config.sizes).total == counted


@pytest.mark.parametrize(
    ("text", "number"),
    [("125M", 125e6), ("1.3B", 1.3e9), ("7b", 7e9), ("500k", 5e5), ("5000", 5e3)],
)
def test_a_size_is_read(text, number):
    assert parse_size(text) == int(number)


@pytest.mark.parametrize(
    ("given", "ranks", "gib", "precision"),
    [
        ("8xH100", 8, 80, "bf16"),
        ("4x24GB", 4, 24, "bf16"),
        ("2 x V100", 2, 32, "fp16"),
        ("16×A100-40", 16, 40, "bf16"),
    ],
)
def test_gpus_are_known_by_their_name_or_their_memory(given, ranks, gib, precision):
    device = plan_device(given)
    assert (device.ranks, device.memory_bytes, device.precision) == (ranks, gib * 2**30, precision)
    assert device.is_gpu and math.isfinite(device.flops)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("many", "give a number"),
        ("8xPotato", "its memory is not known"),
        ("8xH1000", "H1000: its memory is not known"),
    ],
)
def test_gpus_that_are_not_known_are_told(given, words):
    with pytest.raises(ConfigError, match=words):
        plan_device(given)


def test_without_gpus_the_cpu_is_planned_for(monkeypatch):
    monkeypatch.setattr(gpus, "_DEVICES", ())
    for given in (None, "0"):
        device = plan_device(given)
        assert (device.ranks, device.is_gpu) == (1, False)
        assert device.precision == usual_precision("")
    with pytest.raises(ConfigError, match="8xH100"):
        plan_device("8")
