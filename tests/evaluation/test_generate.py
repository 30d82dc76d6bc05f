"""Generated text is what repeated full forward passes would give, and stops where it should."""

from __future__ import annotations

from pydoc_data.topics import topics

import pytest
import torch

from lmscale.config import RunConfig
from lmscale.config.data import TokenizerConfig
from lmscale.config.model import DecoderConfig, EncoderDecoderConfig, Sizes
from lmscale.errors import ConfigError
from lmscale.evaluation.generate import Generation, end_before, stream_answer, stream_text
from lmscale.evaluation.prompts import Prompt, build_prompt
from lmscale.evaluation.sampling import Sampling
from lmscale.model.family import build_model
from lmscale.model.layout import build_layout
from lmscale.tokenizer.own import OwnTokenizer
from lmscale.tokenizer.train import train_model
from lmscale.train.initial import draw_weights, fill_weights

PROMPT = "The"


def test_greedy_text_is_the_likeliest_token_of_a_full_pass_each_time(model, tokenizer):
    generation = Generation(model, tokenizer, PROMPT, Sampling(is_greedy=True), max_tokens=12)
    ids = list(generation)
    so_far = [*generation.prompt.ids]
    barred = [tokenizer.special_ids[name] for name in ("bos", "pad", "unk")]
    for token in ids:
        begins = torch.zeros(1, len(so_far), dtype=torch.bool)
        layout = build_layout(begins, "causal")
        with torch.no_grad():
            logits = model.head(model(torch.tensor([so_far]), layout))[0, -1]
        logits[barred] = -torch.inf
        logits[tokenizer.vocab_size :] = -torch.inf
        assert token == logits.argmax()
        so_far.append(token)


@pytest.mark.parametrize("windows", [(), (3, 0)])
def test_a_prompt_that_is_seen_as_a_whole_is_the_prefix_of_a_full_pass(tokenizer, windows):
    config = DecoderConfig(layers=2, width=32, heads=4, init_std=0.2, sliding_windows=windows)
    model = build_model(config, Sizes(vocab_size=512, max_positions=24, sequence_length=24))
    fill_weights(model, draw_weights(1))
    prompt = [5, 9, 300, 41, 7, 90, 12]

    def logits(extend_first, ids: list[int]) -> torch.Tensor:
        state = model.build_state(batch=1, capacity=24)
        hidden = extend_first(torch.tensor([ids[: len(prompt)]]), state)
        for token in ids[len(prompt) :]:
            hidden = model.extend(torch.tensor([[token]]), state)
        return model.head(hidden)[0, -1]

    whole = Prompt(ids=tuple(prompt), sees_whole=True)
    generation = Generation(model, tokenizer, whole, Sampling(is_greedy=True), max_tokens=6)
    so_far = prompt[:]
    for token in generation:
        begins = torch.zeros(1, len(so_far), dtype=torch.bool)
        is_prefix = (torch.arange(len(so_far)) < len(prompt))[None]
        layout = model.lay_out_prefixes(begins, is_prefix)
        with torch.no_grad():
            expected = model.head(model(torch.tensor([so_far]), layout))[0, -1]
            torch.testing.assert_close(logits(model.read_prefix, so_far), expected)
            assert (logits(model.extend, so_far) - expected).abs().max() > 0.01
        expected[[tokenizer.special_ids[name] for name in ("bos", "pad", "unk")]] = -torch.inf
        expected[tokenizer.vocab_size :] = -torch.inf
        assert token == expected.argmax()
        so_far.append(token)


def asked(config, tokenizer, objective: dict, suffix: str | None = None, **more) -> tuple:
    tree = config.model_dump(mode="json")
    tree["stream"] |= {"mask_documents": False, "sequence_length": 64} | more
    tree["tokenizer"]["vocab_size"] = tokenizer.vocab_size
    family = "decoder" if objective["name"] == "fill_middle" else "encoder_decoder"
    tree |= {"objective": objective, "model": {"family": family, "width": 32, "heads": 4}}
    run = RunConfig.model_validate(tree)
    prompt = build_prompt(run, tokenizer, "The", suffix, bos_id=tokenizer.bos_id)
    names = {number: name for name, number in run.added_ids.items()}
    ids = {tuple(tokenizer.encode(text).tolist()): text for text in ("The", " end")}

    def say(numbers) -> str:
        """Our names of the added ids, and the texts between them."""
        text, open_ids = [], []
        for number in [*numbers, -1]:
            if number == tokenizer.bos_id or number in names or number < 0:
                text += [ids[tuple(open_ids)]] if open_ids else []
                text += [names.get(number, "bos")] if number >= 0 else []
                open_ids = []
            else:
                open_ids.append(number)
        return " ".join(text)

    assert {names.get(number) for number in prompt.ends} <= {"end", "sentinel_1"}
    return say(prompt.ids), say(prompt.source or ()), len(prompt.ends), prompt.is_answered


def test_a_text_is_asked_for_as_the_objective_has_taught(config, tokenizer):
    def ask(name: str, *arguments, **more):
        return asked(config, tokenizer, {"name": name}, *arguments, **more)

    whole = {"mask_documents": True, "packing": "best_fit"}
    assert ask("fill_middle", " end") == ("bos prefix The suffix  end middle", "", 0, False)
    assert ask("pairs", **whole) == ("start", "The end", 1, True)
    assert ask("infill", " end") == ("start", "bos The mask  end end", 1, True)
    assert ask("spans") == ("start sentinel_0", "bos The sentinel_0 end", 2, False)
    gap = ("start sentinel_0", "bos The sentinel_0  end end", 2, False)
    assert ask("spans", " end") == gap
    assert ask("denoisers", " end") == (gap[0], f"mode_R {gap[1]}", *gap[2:])
    assert ask("denoisers")[1] == "mode_S bos The sentinel_0 end"


def test_an_answer_ends_with_the_objective_s_own_end(tokenizer):
    sizes = Sizes(vocab_size=512, max_positions=24, sequence_length=24)
    shape = {"layers": 1, "width": 32, "heads": 4}
    model = build_model(EncoderDecoderConfig(family="encoder_decoder", **shape), sizes)
    fill_weights(model, draw_weights(1))
    prompt = Prompt(ids=(500,), source=(5, 9), ends=frozenset({501}))
    sampling = Sampling(is_greedy=True)
    others = list(generation := Generation(model, tokenizer, prompt, sampling, max_tokens=40))
    assert len(others) == 23 and generation.stopped_by == "max_positions"
    with torch.no_grad():
        state = model.build_state(batch=1, capacity=2)
        model.read_source(torch.tensor([[5, 9]]), state)
        model.extend(torch.tensor([[500]]), state)
        second = model.extend(torch.tensor([[others[0]]]), state)[0, 0]
        model.head.weight[501] = second * 1e3  # now the likeliest behind the first token
    ids = list(generation := Generation(model, tokenizer, prompt, sampling, max_tokens=40))
    assert ids[-1] == 501 and generation.stopped_by == "eos" and len(ids) <= 2
    with torch.no_grad():
        model.head.weight[tokenizer.eos_id] = second * 2e3  # a document's end does so, too
    ids = list(generation := Generation(model, tokenizer, prompt, sampling, max_tokens=40))
    assert ids[-1] == tokenizer.eos_id and generation.stopped_by == "eos" and len(ids) <= 2
    without = Prompt(ids=(500,), source=tuple(range(25)))
    with pytest.raises(ConfigError, match="reads at most 24"):
        Generation(model, tokenizer, without, Sampling(), max_tokens=5)
    with pytest.raises(ConfigError, match="of the family encoder_decoder, which writes no text"):
        Generation(model, tokenizer, "x", Sampling(), max_tokens=5)


def test_a_seed_gives_the_same_text_and_another_seed_another(model, tokenizer):
    def sample(seed: int) -> list[int]:
        sampling = Sampling(temperature=1.5, top_k=100, top_p=0.99, seed=seed)
        return list(Generation(model, tokenizer, PROMPT, sampling, max_tokens=10))

    assert sample(1) == sample(1) != sample(2)


def test_ids_that_stand_for_no_text_never_come(model, tokenizer):
    model.head.weight.data[tokenizer.vocab_size :] *= 100  # padding rows that would win
    model.head.weight.data[tokenizer.pad_id] *= 100
    for seed in range(8):
        sampling = Sampling(temperature=3.0, seed=seed)
        ids = list(Generation(model, tokenizer, PROMPT, sampling, max_tokens=15))
        assert all(token == tokenizer.eos_id or 3 < token < tokenizer.vocab_size for token in ids)


@pytest.fixture
def constant_model():
    """Build a model whose logits are the same everywhere: 0, but for those given by id."""

    def build(logits: dict[int, float]):
        config = DecoderConfig(layers=1, width=32, heads=4, norm="layernorm", bias=True)
        model = build_model(config, Sizes(vocab_size=512, max_positions=24, sequence_length=24))
        fill_weights(model, draw_weights(1))
        model.norm.weight.data.zero_()
        model.norm.bias.data.fill_(1 / 32)  # the hidden state, so that a row of ones scores 1
        model.head.weight.data.zero_()
        for token, logit in logits.items():
            model.head.weight.data[token] = logit
        return model

    return build


def test_an_end_of_document_ends_the_text(constant_model, tokenizer):
    model = constant_model({tokenizer.eos_id: 5.0})
    generation = Generation(model, tokenizer, PROMPT, Sampling(is_greedy=True), max_tokens=9)
    assert list(generation) == [tokenizer.eos_id]
    assert generation.stopped_by == "eos"


def test_it_stops_at_max_tokens_or_at_the_model_s_last_position(constant_model, tokenizer):
    model = constant_model({50: 5.0})
    for max_tokens, reason in ((3, "max_tokens"), (1000, "max_positions")):
        sampling = Sampling(is_greedy=True)
        generation = Generation(model, tokenizer, PROMPT, sampling, max_tokens=max_tokens)
        ids = list(generation)
        assert set(ids) == {50} and generation.stopped_by == reason
        assert len(ids) == min(max_tokens, 24 - len(generation.prompt.ids))


def test_the_repetition_penalty_counts_the_prompt_too(constant_model, tokenizer):
    seen = int(tokenizer.encode(PROMPT)[0])
    model = constant_model({seen: 6.0, 50: 4.0, 51: 3.9})

    def run(penalty: float) -> list[int]:
        sampling = Sampling(is_greedy=True, repetition_penalty=penalty)
        return list(Generation(model, tokenizer, PROMPT, sampling, max_tokens=3))

    assert run(1.0) == [seen, seen, seen]
    assert run(2.0) == [50, 51, seen]  # 6/2 < 4, then 4/2 < 3.9, then 3 is the largest


def test_all_problems_of_a_request_are_reported_together(model, tokenizer):
    with pytest.raises(ConfigError) as caught:
        Generation(model, tokenizer, "", Sampling(), max_tokens=0)
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match="sees at most 24 and needs one for its answer"):
        Generation(model, tokenizer, "x1 " * 40, Sampling(), max_tokens=5)


@pytest.mark.parametrize("own", ["build_state", "extend", "read_prefix"])
def test_a_family_that_cannot_generate_is_refused_by_its_name(model, tokenizer, own, monkeypatch):
    monkeypatch.delattr(type(model), own)
    with pytest.raises(ConfigError, match="of the family decoder, which writes no text; generate"):
        whole = Prompt(ids=(5, 9), sees_whole=True)
        Generation(model, tokenizer, whole, Sampling(), max_tokens=5)


@pytest.mark.parametrize(
    "text", ["plain words", "天地玄黄 naïve 🙂🙂 ▁ é\n\n  end ", "\ufffd real"]
)
def test_streamed_pieces_join_to_the_text_and_break_no_character(tokenizer, text):
    pieces = list(stream_text(tokenizer, tokenizer.encode(text).tolist()))
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_an_unfinished_character_is_shown_at_the_end(tokenizer):
    ids = [int(token) for token in tokenizer.encode("🙂")][:-1]
    *pieces, last = stream_text(tokenizer, ids)
    assert "".join(pieces).strip() == ""
    assert last == "\ufffd"


@pytest.fixture(scope="module")
def marked(config) -> OwnTokenizer:
    """Of 400 pieces, with special tokens."""
    special = {"special_tokens": ("<|im_end|>", "<tool>", "<mask>"), "reserved_tokens": 1}
    texts = [text[:1200] for text in list(topics.values())[:30]]
    settings = TokenizerConfig(vocab_size=400, **special)
    return OwnTokenizer(train_model(iter(texts), settings), {"kind": "bpe"})


def test_names_of_special_tokens_in_a_prompt_are_text_unless_they_are_meant(config, marked):
    text, end, tool = "The<|im_end|>", marked.special_tokens["<|im_end|>"], "<tool>"
    words = marked.encode("The").tolist()
    plain, meant = (
        build_prompt(config, marked, text, special=special) for special in (False, True)
    )
    assert plain.ids == tuple(marked.encode(text).tolist()) and not plain.writes
    assert meant.ids == (*words, end)
    assert meant.writes == {*marked.special_tokens.values()}
    ids = config.tokenizer.model_copy(update={"ids": {"mask": marked.special_tokens["<mask>"]}})
    objective = {"name": "infill"}
    tree = config.model_dump(mode="json") | {"objective": objective, "tokenizer": ids.model_dump()}
    tree |= {"model": {"family": "encoder_decoder", "width": 32, "heads": 4}}
    tree["stream"] |= {"mask_documents": False}
    filled = build_prompt(RunConfig.model_validate(tree), marked, text, text, special=True)
    mask = marked.special_tokens["<mask>"]  # the objective's own, which it alone puts there
    assert filled.source == (*words, end, mask, *words, end, max(filled.ends))
    assert filled.writes == meant.writes - {mask}
    stopped = build_prompt(config, marked, "The", stops=(tool, "\n\n"))
    assert stopped.ends == {marked.special_tokens[tool]} and stopped.stops == ("\n\n",)
    with pytest.raises(ConfigError, match="--stop: the text is empty"):
        build_prompt(config, marked, "The", stops=("",))


def test_a_special_token_comes_where_it_may_and_ends_the_text_where_it_is_a_stop(
    config, constant_model, marked
):
    text = int(marked.encode("e")[0])
    model = constant_model({marked.special_tokens["<|im_end|>"]: 5.0, text: 4.0})

    def answer(**how) -> tuple[str, str | None]:
        prompt = build_prompt(config, marked, "The", **how)
        sampling = Sampling(is_greedy=True)
        generation = Generation(model, marked, prompt, sampling, max_tokens=3)
        return "".join(stream_answer(generation)), generation.stopped_by

    assert answer() == ("eee", "max_tokens")
    assert answer(special=True) == ("<|im_end|>" * 3, "max_tokens")
    assert answer(stops=("<tool>", "<|im_end|>")) == ("", "eos")
    assert answer(stops=("ee",)) == ("", None)


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        (("lo w",), "hel"),
        (("xyz", "world"), "hello "),
        (("lo wx", "d"), "hello worl"),
        (("z", "ldx"), "hello world"),
    ],
)
def test_a_text_ends_before_the_first_stop_and_no_part_of_one_is_shown(stops, expected):
    text = "hello world"
    for size in (1, 2, 3, 20):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        assert "".join(end_before(pieces, stops)) == expected
