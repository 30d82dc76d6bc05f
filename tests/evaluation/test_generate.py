"""Generated text is what repeated full forward passes would give, and stops where it should."""

from __future__ import annotations

import pytest
import torch

from lmscale.errors import ConfigError
from lmscale.evaluation import Sampling, TextStream, generate
from lmscale.model import build_layout

PROMPT = "The"


def take(generation) -> list[list[int]]:
    return torch.stack(list(generation), dim=1).tolist()


def test_greedy_text_is_the_likeliest_token_of_a_full_pass_each_time(model, tokenizer):
    generation = generate(model, tokenizer, PROMPT, Sampling(is_greedy=True), max_tokens=12)
    (ids,) = take(generation)
    so_far = generation.prompt[:]
    barred = [tokenizer.bos_id, tokenizer.pad_id, tokenizer.unk_id]
    for token in ids:
        begins_BT = torch.zeros(1, len(so_far), dtype=torch.bool)
        layout = build_layout(begins_BT, mask_documents=False, backend="causal")
        with torch.no_grad():
            logits = model.head(model(torch.tensor([so_far]), layout))[0, -1]
        logits[barred] = -torch.inf
        logits[tokenizer.vocab_size :] = -torch.inf
        assert token == logits.argmax()
        so_far.append(token)


def test_a_seed_gives_the_same_text_and_another_seed_another(model, tokenizer):
    def sample(seed: int) -> list[list[int]]:
        sampling = Sampling(temperature=1.5, top_k=100, top_p=0.99, seed=seed)
        return take(generate(model, tokenizer, PROMPT, sampling, max_tokens=10, batch=2))

    assert sample(1) == sample(1) != sample(2)
    first, second = sample(1)
    assert first != second


def test_ids_that_stand_for_no_text_never_come(model, tokenizer):
    model.head.weight.data[tokenizer.vocab_size :] *= 100  # padding rows that would win
    model.head.weight.data[tokenizer.pad_id] *= 100
    sampling = Sampling(temperature=3.0)
    for row in take(generate(model, tokenizer, PROMPT, sampling, max_tokens=15, batch=8)):
        assert all(token == tokenizer.eos_id or 3 < token < tokenizer.vocab_size for token in row)


def test_it_stops_when_every_row_has_ended(model, tokenizer):
    hidden_row = model.head.weight.data[tokenizer.eos_id]
    hidden_row.copy_(model.head.weight.data.abs().max() * 50 * torch.randn(32))
    generation = generate(model, tokenizer, PROMPT, Sampling(), max_tokens=20, batch=4)
    rows = take(generation)
    assert generation.stopped_by in ("eos", "max_tokens")
    for row in rows:
        if tokenizer.eos_id in row:  # nothing but eos after eos
            assert set(row[row.index(tokenizer.eos_id) :]) == {tokenizer.eos_id}


def test_an_end_of_document_ends_the_text(model, tokenizer):
    model.norm.weight.data.zero_()
    model.head.weight.data.zero_()  # all logits equal: greedy takes the lowest allowed id, eos = 2
    generation = generate(model, tokenizer, PROMPT, Sampling(is_greedy=True), max_tokens=9)
    assert take(generation) == [[tokenizer.eos_id]]
    assert generation.stopped_by == "eos"


def test_it_stops_at_max_tokens_or_at_the_model_s_last_position(model, tokenizer):
    def run(max_tokens: int):
        sampling = Sampling(is_greedy=True)
        generation = generate(model, tokenizer, PROMPT, sampling, max_tokens=max_tokens)
        return generation, take(generation)[0]

    model.head.weight.data[tokenizer.eos_id] = 0
    model.head.weight.data[tokenizer.eos_id + 2 :] += 0.5 * model.norm.weight.data
    generation, ids = run(3)
    if generation.stopped_by != "eos":
        assert (generation.stopped_by, len(ids)) == ("max_tokens", 3)
    generation, ids = run(1000)
    if generation.stopped_by != "eos":
        assert generation.stopped_by == "max_positions"
        assert len(generation.prompt) + len(ids) == model.max_positions


def test_all_problems_of_a_request_are_reported_together(model, tokenizer):
    with pytest.raises(ConfigError) as caught:
        generate(model, tokenizer, "", Sampling(), max_tokens=0)
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigError, match="sees at most 24 and needs one for its answer"):
        generate(model, tokenizer, "x1 " * 40, Sampling(), max_tokens=5)


@pytest.mark.parametrize("text", ["plain words", "天地玄黄 naïve 🙂🙂 ▁ é\n\n  end ", "\ufffd real"])
def test_streamed_pieces_join_to_the_text_and_break_no_character(tokenizer, text):
    stream = TextStream(tokenizer)
    pieces = [stream.add(int(token)) for token in tokenizer.encode(text)] + [stream.finish()]
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_an_unfinished_character_is_shown_at_the_end(tokenizer):
    ids = [int(token) for token in tokenizer.encode("🙂")][:-1]
    stream = TextStream(tokenizer)
    pieces = [stream.add(token) for token in ids]
    assert "".join(pieces).strip() == ""
    assert stream.finish() == "\ufffd"
