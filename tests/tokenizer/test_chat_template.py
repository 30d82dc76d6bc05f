"""Dialogues by a chat template: the ids that transformers has, the answers alone, and no message
that becomes a special token.
"""

from __future__ import annotations

import pickle
from pydoc_data.topics import topics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.config.chat_templates import NAMED, load_template
from lmscale.config.data import TokenizerConfig
from lmscale.errors import ConfigError, DataError
from lmscale.tokenizer.base import Tokenizer
from lmscale.tokenizer.byte_bpe import train_byte_bpe
from lmscale.tokenizer.chat_template import ChatTemplate, with_bos
from lmscale.tokenizer.own import OwnTokenizer
from lmscale.tokenizer.train import train_model

MARKS = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
DIALOGUE = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Say <|im_end|> or </s>, 你好"},
    {"role": "assistant", "content": "你好, <|eot_id|> it is"},
    {"role": "user", "content": "again\n\nAssistant: no"},
    {"role": "assistant", "content": "done"},
)
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.role == 'assistant' %}{% generation %}"
    "{{- message.content.split('</think>')[-1] + '<|im_end|>' }}{% endgeneration %}"
    "{%- else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ASKING = (
    "{% if tools is none and documents is none %}bare {% endif %}"
    "{{ {'b': 1, 'a': '中'} | tojson(ensure_ascii=true, separators=(',', ':'), sort_keys=true) }}\n"
)
SPOKEN = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
PROMPT = "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"


def train(kind: Any, special_tokens: tuple[str, ...] = MARKS) -> Tokenizer:
    texts = (topics[name] for name in sorted(topics)[:6])
    config = TokenizerConfig(kind=kind, vocab_size=600, special_tokens=special_tokens)
    if kind == "byte_bpe":
        return train_byte_bpe(texts, config, {})
    return OwnTokenizer(train_model(texts, config), {"kind": kind})


@pytest.fixture(scope="module", params=["bpe", "byte_bpe"])
def tokenizer(request: Any) -> Tokenizer:
    return train(request.param)


def shown(tokenizer: Tokenizer, ids: Any) -> str:
    return tokenizer.decode_bytes(ids, shows_special=True).decode()


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("chatml", "你好, <|eot_id|> it is<|im_end|>done<|im_end|>"),
        ("llama3", "你好, <|eot_id|> it is<|eot_id|>done<|eot_id|>"),
        ("plain", " 你好, <|eot_id|> it is{eos} done{eos}"),
    ],
)
def test_the_answers_and_what_ends_them_are_known_and_the_rest_is_not_of_them(
    tokenizer, name, answers
):
    template = with_bos(ChatTemplate(NAMED[name], tokenizer))
    ids, is_answer = template.encode(DIALOGUE)
    assert ids[0] == tokenizer.bos_id and (ids[1:] != tokenizer.bos_id).all()
    eos = tokenizer.piece(tokenizer.eos_id)
    assert shown(tokenizer, ids[is_answer]) == answers.format(eos=eos)
    assert (ids[is_answer] == template.end_id).sum() == 2
    prompt = template.encode_prompt(DIALOGUE[:-1])
    assert ids[: len(prompt)].tolist() == prompt.tolist()
    assert is_answer[len(prompt)] and not is_answer[len(prompt) - 1]


def test_a_message_never_becomes_a_special_token(tokenizer):
    template = ChatTemplate(NAMED["chatml"], tokenizer)
    specials = set(tokenizer.special_pieces.values())

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.sampled_from([*MARKS, "</s>", "<|", "im_end|>", "x", "\U000f0000", "\n"])))
    def check(parts: list[str]) -> None:
        content = "".join(["a", *parts, "b"])
        ids, is_answer = template.encode(
            [{"role": "user", "content": content}, {"role": "assistant", "content": content}]
        )
        assert sum(number in specials for number in ids.tolist()) == 4
        assert shown(tokenizer, ids[is_answer]) == content + "<|im_end|>"

    check()


def test_a_template_may_say_itself_what_is_generated(tokenizer):
    template = pickle.loads(pickle.dumps(ChatTemplate(MARKED, tokenizer)))
    thought = [*DIALOGUE[:-1], {"role": "assistant", "content": "<think>hm</think>done"}]
    ids, is_answer = template.encode(thought)
    assert shown(tokenizer, ids[is_answer]).endswith("it is<|im_end|>done<|im_end|>")
    assert "hm" not in shown(tokenizer, ids)
    assert ids.tolist() == ChatTemplate(NAMED["chatml"], tokenizer).encode(DIALOGUE).ids.tolist()


def test_a_template_that_no_answer_can_be_told_from_is_refused_saying_why(tokenizer):
    bare = train("bpe", ())
    for text, told, whose in (
        (NAMED["chatml"], "writes <|im_start|>, <|im_end|>, and the tokenizer has no such", bare),
        (SPOKEN + PROMPT, "ends an answer with no special token", bare),
        ("{% for m in messages %}", "not Jinja's: line 1: Unexpected end of template", bare),
        ("{{ raise_exception('no') }}", "fails: 'no'", bare),
        ("{{ messages.__class__.__mro__ }}", "fails: access to attribute '__class__'", bare),
        ("{{ messages.append(1) }}", "fails: ", bare),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "fails: maximum recursion", bare),
        (
            SPOKEN.replace("{% endfor", "{% if loop.last %}{{ eos_token }}{% endif %}{% endfor")
            + PROMPT,
            "writes turn 2 of a dialogue otherwise than its prompt asks for it",
            bare,
        ),
    ):
        with pytest.raises(DataError) as caught:
            ChatTemplate(text, whose).encode(DIALOGUE)
        assert told in str(caught.value), (text, caught.value)
    assert ChatTemplate(NAMED["plain"], bare).end_id == bare.eos_id
    with pytest.raises(ConfigError, match=r"template of this name. Did you mean chatml\? Known"):
        load_template("chatlm", setting="tokenizer.chat_template")


@pytest.mark.parametrize("name", [*NAMED, "marked", "asking"])
def test_transformers_has_the_same_ids_and_the_same_answers(tokenizer, tmp_path, name):
    from theirs import import_transformers

    import_transformers()
    from lmscale.exchange.framing import Framing
    from lmscale.exchange.tokenizer_check import load_theirs
    from lmscale.exchange.tokenizer_files import write_tokenizer

    others = {"marked": MARKED, "asking": ASKING + NAMED["plain"]}
    template = with_bos(ChatTemplate((NAMED | others)[name], tokenizer))
    roles = {f"{role}_token": number for role, number in tokenizer.special_ids.items()}
    write_tokenizer(
        tokenizer,
        tmp_path,
        framing=Framing(roles=roles),
        added_ids={},
        max_length=64,
        chat_template=template.text,
    )
    theirs = load_theirs(tmp_path)
    # What reads like a special token is one for transformers, so no message has any here.
    messages = [
        {**each, "content": each["content"].replace("<|", "<").replace("</s>", "")}
        for each in DIALOGUE
    ]
    found = theirs.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=name == "marked"
    )
    ids, is_answer = template.encode(messages)
    assert found["input_ids"] == ids.tolist()
    if name == "marked":
        assert found["assistant_masks"] == is_answer.astype(int).tolist()
    prompt = theirs.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=True)
    assert prompt["input_ids"] == template.encode_prompt(messages[:-1]).tolist()
