"""What tasks ask of a model, request by request, without the harness."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lmscale.errors import DataError
from lmscale.evaluation.generate import Generation
from lmscale.evaluation.prompts import Prompt
from lmscale.evaluation.sampling import Sampling
from lmscale.evaluation.token_requests import ScoringPlan, score_rows
from lmscale.evaluation.writing import plan_question, write_texts
from lmscale.ranks.mesh import Axis

IDS, START = [5, 9, 300, 41, 7, 90, 12], 4


def score(model, *, num_ids: int = 400, shows_contexts: bool = False) -> tuple[float, bool]:
    plan = ScoringPlan(
        batch_tokens=100, num_ids=num_ids, chunk_tokens=2, shows_contexts=shows_contexts
    )
    with torch.no_grad():
        log_p, is_greedy = score_rows(
            model,
            tokens=torch.tensor([IDS], dtype=torch.int32),
            lengths=torch.tensor([len(IDS)]),
            firsts=torch.tensor([START]),
            plan=plan,
        )
    return float(log_p[0]), bool(is_greedy[0])


@torch.no_grad()
def expected(model, layout, num_ids: int) -> float:
    logits = model.head(model(torch.tensor([IDS[:-1]]), layout))[0, :, :num_ids]
    rows = range(START - 1, len(IDS) - 1)
    return float(logits.log_softmax(-1)[rows, IDS[START:]].sum())


def test_a_context_is_seen_as_a_whole_by_a_model_that_was_trained_so(model):
    begins = torch.zeros(1, len(IDS) - 1, dtype=torch.bool)
    begins[:, 0] = True
    is_prefix = (torch.arange(len(IDS) - 1) < START)[None]
    whole = expected(model, model.lay_out_prefixes(begins, is_prefix), 400)
    causal = expected(model, model.lay_out(begins, mask_documents=False), 400)
    assert abs(whole - causal) > 1e-3
    assert score(model, shows_contexts=True)[0] == pytest.approx(whole, abs=1e-5)
    assert score(model)[0] == pytest.approx(causal, abs=1e-5)


def test_rows_of_the_embedding_that_stand_for_nothing_take_no_part(model):
    begins = torch.zeros(1, len(IDS) - 1, dtype=torch.bool)
    begins[:, 0] = True
    layout = model.lay_out(begins, mask_documents=False)
    for num_ids in (400, 512):
        wanted = expected(model, layout, num_ids)
        assert score(model, num_ids=num_ids)[0] == pytest.approx(wanted, abs=1e-5)
    assert score(model)[0] > score(model, num_ids=512)[0] + 0.1


def test_what_a_task_asks_to_be_drawn_is_drawn_and_else_the_likeliest_is_written(model, tokenizer):
    ids = tokenizer.encode("The").tolist()

    def write(settings: dict) -> tuple[str, str]:
        question, is_cut, is_short = plan_question(ids, settings, max_positions=24, number=3)
        assert not is_cut and not is_short
        (text,) = write_texts(model, tokenizer, [question], data=Axis(), sees_whole=False)
        prompt = Prompt(ids=tuple(ids))
        tokens = list(
            Generation(model, tokenizer, prompt, question.sampling, max_tokens=question.max_tokens)
        )
        return text, tokenizer.decode([token for token in tokens if token != tokenizer.eos_id])

    drawn, same = write({"do_sample": True, "temperature": 3.0, "max_gen_toks": 8})
    likeliest, _ = write({"max_gen_toks": 8})
    greedy = Generation(model, tokenizer, Prompt(ids=tuple(ids)), GREEDY, max_tokens=8)
    assert drawn == same != likeliest == tokenizer.decode(list(greedy))
    assert write({"do_sample": False, "temperature": 3.0, "max_gen_toks": 8})[0] == likeliest


GREEDY = Sampling(is_greedy=True)
BAD = {
    "max_gen_toks": "many",
    "temperature": -1,
    "until": 5,
    "top_p": 3.0,
    "top_k": 1.5,
    "repetition_penalty": float("nan"),
    "presence_penalty": 1.0,
}


@pytest.mark.parametrize("name", BAD)
def test_settings_that_mean_nothing_are_told_in_a_line(name):
    with pytest.raises(DataError, match=f"generation_kwargs: .*{name}"):
        plan_question([1], {"max_gen_toks": 3, name: BAD[name]}, max_positions=24, number=0)


def test_a_context_that_is_cut_is_not_a_text_with_less_room():
    ids = np.arange(30).tolist()
    question, *told = plan_question(ids, {"max_gen_toks": 4}, max_positions=24, number=0)
    assert told == [True, False] and question.ids == tuple(ids[10:])
    question, *told = plan_question(ids[:5], {"max_gen_toks": 20}, max_positions=24, number=0)
    assert told == [False, True] and question.max_tokens == 12
