"""A run's tokenizer → the files from which transformers' ``AutoTokenizer`` loads it.

::

    the model's bytes ──render_sentencepiece──→ tokenizer.json, or what came in as one
    Framing, added ids ───────────────────────→ its template and added tokens
    roles, lengths ───────────────────────────→ tokenizer_config.json

No other package is needed to write them; ``verify_tokenizer`` (tokenizer_check.py) loads them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from lmscale.errors import DataError
from lmscale.exchange.framing import Framing
from lmscale.exchange.sentencepiece_json import Tree, render_added_token, render_sentencepiece
from lmscale.files.atomic import write_bytes, write_json
from lmscale.tokenizer.base import OWN, SPLITS, Tokenizer
from lmscale.tokenizer.hugging_face import HuggingFaceTokenizer

FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
MODEL_FILE = "tokenizer.model"  # beside them, for programs that read SentencePiece's own format
TEMPLATE_FILE = "chat_template.jinja"

_USUAL = {
    "mask": "[MASK]",
    "cls": "[CLS]",
    "sep": "[SEP]",
    "prefix": "<fim_prefix>",
    "suffix": "<fim_suffix>",
    "middle": "<fim_middle>",
    "mode_R": "[NLU]",
    "mode_S": "[S2S]",
    "mode_X": "[NLG]",
}
_ROLES = ("mask", "cls", "sep", "start", "end")  # the others are special without one


def write_tokenizer(
    tokenizer: Tokenizer,
    folder: Path,
    *,
    framing: Framing,
    added_ids: Mapping[str, int],
    objective_ids: Mapping[str, int] | None = None,
    max_length: int,
    chat_template: str = "",
) -> None:
    """Write the tokenizer into a folder that exists, for texts of at most ``max_length`` ids.

    ``objective_ids``: the objective's, by its names; ``added_ids``: those that are no pieces of the
    tokenizer (default: all). What reads like a special token in a text is the token, as for
    others' tokenizers, though it is text for lmscale; unless the tokenizer came in with
    ``split_special_tokens``.

    Raises ``DataError`` for a tokenizer that the format cannot say.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        tree = tokenizer.rules
    else:
        tree = render_sentencepiece(tokenizer.model, is_own=tokenizer.format == OWN)
        write_bytes(folder / MODEL_FILE, tokenizer.model)
    names = _name_ids(tree, tokenizer.vocab_size, added_ids)
    added = [render_added_token(*item) for item in sorted(names.items())]
    tree["added_tokens"] = [*(tree.get("added_tokens") or []), *added]

    def name(number: int) -> str:
        return names[number] if number in names else tokenizer.piece(number)

    objective_ids = added_ids if objective_ids is None else objective_ids
    roles = {role: name(number) for role, number in framing.roles.items()}
    marks = [name(objective_ids[key]) for key in objective_ids if key not in _ROLES]
    if framing.is_known:
        tree["post_processor"] = _render_post_processor(framing, name, tree.get("post_processor"))
    write_json(folder / FILE, tree)
    config = {
        # No class of an architecture: transformers 5 would build another pipeline for that.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "model_input_names": [
            "input_ids",
            *(["token_type_ids"] if framing.has_types else []),
            "attention_mask",
        ],
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": bool(tokenizer.made_by.get(SPLITS)),
        "bos_token": None,
        "eos_token": None,
        "unk_token": None,
        "pad_token": None,
        **roles,
        # Of a tokenizer that came in they may be pieces like others there.
        **({"additional_special_tokens": marks} if marks else {}),
    }
    write_json(folder / CONFIG_FILE, config)
    if chat_template:
        write_bytes(folder / TEMPLATE_FILE, chat_template.encode())


def _name_ids(tree: Tree, num_pieces: int, added_ids: Mapping[str, int]) -> dict[int, str]:
    """Of all ids above the tokenizer's, up to the last added one."""
    vocab = tree["model"]["vocab"]
    taken = {*vocab} if isinstance(vocab, dict) else {piece for piece, _ in vocab}
    taken |= {token["content"] for token in tree.get("added_tokens") or ()}
    if wrong := sorted(name for name, number in added_ids.items() if number < num_pieces):
        raise DataError(
            f"The ids of {', '.join(wrong)} are also ids of the tokenizer, which has "
            f"{num_pieces:,} pieces."
        )
    last = max(added_ids.values(), default=-1)
    return name_ids(range(num_pieces, last + 1), added_ids, taken=taken)


def name_ids(
    numbers: range, added_ids: Mapping[str, int], *, taken: Collection[str]
) -> dict[int, str]:
    """Names for ids that are no piece of the tokenizer's, none of them ``taken``.

    An id that nobody uses (``tokenizer.vocab_size`` may be more than its pieces) has one too: the
    format numbers added tokens without gaps.
    """
    by_id = {number: name for name, number in added_ids.items()}
    names: dict[int, str] = {}
    taken = {*taken}
    for number in numbers:
        names[number] = next(each for each in _names(number, by_id) if each not in taken)
        taken.add(names[number])
    return names


def _names(number: int, by_id: Mapping[int, str]) -> Iterator[str]:
    """Of an added id, what others call it first; the last one is of no tokenizer."""
    name = by_id.get(number)
    if name is None:
        yield f"<|unused_{number}|>"
    elif name.startswith("sentinel_"):
        yield f"<extra_id_{name.removeprefix('sentinel_')}>"
    elif name in _USUAL:
        yield _USUAL[name]
    yield f"<|{name or 'unused'}|>"
    yield f"<|lmscale_{name}_{number}|>"


def _render_post_processor(
    framing: Framing, name: Callable[[int], str], theirs: Tree | None
) -> Tree | None:
    """The template of the framing, in place of another program's; its care for the places of
    tokens in the text stays.
    """
    places = [each for each in _flatten(theirs) if each["type"] == "ByteLevel"]
    specials = {*framing.before, *framing.between, *framing.after}
    if not specials and not places:
        return None

    def special(numbers: tuple[int, ...], kind: int) -> list[Tree]:
        return [{"SpecialToken": {"id": name(each), "type_id": kind}} for each in numbers]

    first, second = ({"Sequence": {"id": text, "type_id": n}} for n, text in enumerate("AB"))
    begin = [*special(framing.before, 0), first]
    pair = [*begin, *special(framing.between, 0), second, *special(framing.after, 1)]
    template = {
        "type": "TemplateProcessing",
        "single": [*begin, *special(framing.after, 0)],
        "pair": pair,
        "special_tokens": {
            name(each): {"id": name(each), "ids": [each], "tokens": [name(each)]}
            for each in sorted(specials)
        },
    }
    return {"type": "Sequence", "processors": [*places, template]} if places else template


def _flatten(processor: Tree | None) -> list[Tree]:
    if processor is None:
        return []
    return processor["processors"] if processor["type"] == "Sequence" else [processor]
