"""What a fine-tuning's survey counts is what the corpus and the shards then hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from labelled_data import FIELDS

from lmscale.config.finetune import FinetuneConfig
from lmscale.config.load import validate_tree
from lmscale.errors import ConfigError, DataError
from lmscale.finetune.base import Base, read_template
from lmscale.finetune.survey import Survey, survey_data
from lmscale.shards.manifest import load_manifest
from lmscale.tokenizer.codec import load_tokenizer

TASK_OF = {"dialogues": "dialogue", "matches": "classes"}  # others have the source's name


def asked(kind: str, train: str, **keys) -> FinetuneConfig:
    data = {"train": train, **FIELDS[kind]}
    tree = {"name": "tuned", "base": "runs/base", "task": TASK_OF.get(kind, kind), "data": data}
    return validate_tree(FinetuneConfig, tree | keys, name="short.yaml")


def base_of(labelled, **keys) -> Base:
    tokenizer = labelled.tokenizer.model_copy(update=keys)
    return Base(init_from="base", model=labelled.model, tokenizer=tokenizer, has_bos=True)


def look(config: FinetuneConfig, labelled) -> Survey:
    base, tokenizer = base_of(labelled), load_tokenizer(labelled.tokenizer.folder)
    template = read_template(config, base, tokenizer)
    return survey_data(
        config, tokenizer, has_bos=True, template=template, advance=lambda documents: None
    )


@pytest.mark.parametrize("kind", FIELDS)
def test_documents_and_tokens_of_both_parts_are_those_of_the_shards(labelled, kind):
    found = look(asked(kind, f"{Path(labelled.corpus.folder).parent}/{kind}.*"), labelled)
    for name, split in (("train", "train"), ("heldout", "heldout")):
        shards = load_manifest(Path(labelled.shards.folder) / kind / split)
        assert found.parts[name].documents == shards.documents > 5
        assert found.lengths(name).sum() == shards.tokens


def test_a_text_without_a_word_is_counted_by_neither(labelled, tmp_path):
    rows = [{"text": text, "kind": "animal"} for text in ("a cat", " ", "", "a dog", "a fish")]
    (tmp_path / "few.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = look(asked("classes", f"{tmp_path}/few.jsonl"), labelled)
    assert sum(part.documents for part in found.parts.values()) == 3


def test_dialogues_without_a_template_or_that_it_refuses_are_told_before_anything_is_built(
    labelled, tmp_path
):
    turns = [{"role": "user", "content": "no"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "one.jsonl").write_text(json.dumps({"messages": turns}))
    config = asked("dialogues", f"{tmp_path}/one.jsonl")
    tokenizer = load_tokenizer(labelled.tokenizer.folder)
    with pytest.raises(ConfigError) as caught:
        read_template(config, base_of(labelled, chat_template=""), tokenizer)
    assert "the base runs/base has no chat template" in str(caught.value)
    assert "settings: {tokenizer.chat_template: plain}" in str(caught.value)
    (tmp_path / "strict.jinja").write_text(
        "{% if messages[0].content == 'no' %}{{ raise_exception('no') }}{% endif %}"
        "{% for message in messages %}{{ message.content + eos_token }}{% endfor %}"
    )
    named = {"tokenizer.chat_template": f"{tmp_path}/strict.jinja"}
    with pytest.raises(DataError, match=r"one\.jsonl:1: "):
        look(asked("dialogues", f"{tmp_path}/one.jsonl", settings=named), labelled)
