"""One architecture of transformers: its settings and the names of its tensors beside ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from lmscale.config.model import ModelConfig, Sizes
from lmscale.config.model_base import GATED

Tree = Mapping[str, Any]

Head = Literal["tokens", "order", "texts", "tags", "answers", "pairs", "states"]
"""What a class of theirs ends in: logits of tokens; those and a text's order (BERT's next
sentence); classes of texts; classes of tokens; where an answer begins and ends; tokens of an answer
to what was read; nothing, the bare model's states.
"""
OUTPUTS = ("pooler", "text_classes", "token_classes")
"""Keys of a section that say what a model ends in, and nothing of its body."""

Form = Literal["same", "transposed", "less_one", "padded"]
"""How they store a tensor: as it is; [in, out]; 1 less, as Gemma's norms multiply by 1 + weight;
behind rows that nobody reads (RoBERTa's and BART's positions).
"""


class UnreadableError(ValueError):
    """What a config.json says that no section can."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A ``model_type`` of transformers."""

    model_type: str
    family: str
    classes: Mapping[Head, str]
    """Their class for each head that it can end in, the usual one first."""
    render: Callable[[Any, Sizes], dict[str, Any]]
    """A section of the family, and its sizes → their settings, which ``read`` can always read:
    what they cannot say is as they have it, and ``find_gaps`` finds it. Not ``model_type``,
    ``architectures`` and special ids.
    """
    read: Callable[[Tree], dict[str, Any]]
    """All settings of their config, none left out → the section's. Raises ``UnreadableError``."""
    names: Mapping[str, str]
    """A module of ours, {n} being a block's number → theirs; several, with spaces between, where
    the rows of ours are theirs one after the other.
    """
    head_names: Mapping[Head, Mapping[str, str]] = field(default_factory=dict)
    """What is called otherwise, or is there at all, only where a model ends so."""
    forms: Callable[[str, int], Form] = field(default=lambda module, ndim: "same")
    """The module of ours, number of dimensions of the tensor → how they store it."""
    padding_rows: int = 0
    """Rows in front of a ``padded`` tensor of theirs."""
    positions_key: str = "max_position_embeddings"
    """Their setting of the longest sequence; empty: they know no longest one."""
    counts_padding: bool = True
    """Whether that setting counts the ``padding_rows``, too."""
    exports: bool = True
    """Whether a run becomes one. False: another one here computes the same by fewer rules."""
    ignored: tuple[str, ...] = ()
    """Patterns of tensors in old files that are no parameters, such as ``*.rotary_emb.inv_freq``;
    or that repeat a tied one.
    """
    prefix: str = ""
    """What the names begin with that a file of the bare model, without its head, leaves out."""

    def names_of(self, head: Head | None = None) -> Mapping[str, str]:
        """``names`` of the class that ends so; None: of the usual one."""
        return {**self.names, **self.head_names.get(head or next(iter(self.classes)), {})}

    def find_head(self, tree: Tree) -> Head:
        """What the class ends in that a config.json names; without one, the usual one."""
        named = (tree.get("architectures") or [""])[0]
        heads: dict[str, Head] = {name: head for head, name in self.classes.items()}
        return heads.get(named, next(iter(self.classes)))


_FOLLOWS = {
    "rope_theta": "positions",
    "local_rope_theta": "positions",
    "relative_buckets": "positions",
    "relative_distance": "positions",
    "qkv_bias": "bias",
    "scaled_logits": "tied_embeddings",
}
"""A key → another one, with which it differs of itself."""


def find_gaps(architecture: Architecture, section: ModelConfig, sizes: Sizes) -> Iterator[str]:
    """The settings of a section that the architecture has otherwise, one by one."""
    settings = architecture.read(architecture.render(section, sizes))
    try:
        theirs = type(section)(family=section.family, **settings)
    except ValidationError as error:  # such as of a width that its heads do not divide
        yield from (str(each["msg"]) for each in error.errors())
        return
    wanted, given = canonical(section), canonical(theirs)
    differing = {key for key, value in wanted.items() if value != given[key]}
    for key, value in wanted.items():
        if key in differing and _FOLLOWS.get(key) not in differing:
            yield f"{key} = {_say(value)} (there {_say(given[key])})"


def canonical(section: ModelConfig) -> dict[str, Any]:
    """What a section says of the function that its model computes, each said in one way only."""
    tree = section.model_dump(mode="json")
    # How it is trained and computed; sizes, which any architecture has; adapters, which are merged;
    # and its end.
    for key in (*section.free, "init_std", "vocab_size", "max_positions", "lora", *OUTPUTS):
        tree.pop(key, None)
    for key in tree:
        if hasattr(section, f"resolved_{key}"):
            tree[key] = getattr(section, f"resolved_{key}")
    windows = list(getattr(section, "layer_windows", ()))
    if "sliding_windows" in tree:
        tree["sliding_windows"] = windows
    if "attention_width" in tree:
        tree["attention_width"] = tree["attention_width"] or section.resolved_head_width  # pyright: ignore
    if "local_rope_theta" in tree:
        has_local = any(windows) and tree["positions"] == "rope"
        tree["local_rope_theta"] = (tree["local_rope_theta"] or tree["rope_theta"]) * has_local
    if "rope_theta" in tree and tree["positions"] != "rope":
        tree["rope_theta"] = None
    if "relative_buckets" in tree and tree["positions"] != "relative":
        tree["relative_buckets"] = tree["relative_distance"] = None
    if "scaled_logits" in tree:
        tree["scaled_logits"] = tree["scaled_logits"] and tree["tied_embeddings"]
    if "qkv_bias" in tree:
        tree["qkv_bias"] = tree["qkv_bias"] or tree["bias"]
    return tree


FUNCTIONS = {
    "relu": "relu",
    "gelu": "gelu_pytorch_tanh",
    "gelu_exact": "gelu",
    "silu": "silu",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
}
"""Our name of a function → theirs."""
_ALIASES = {"gelu_new": "gelu", "gelu_fast": "gelu", "swish": "silu", "gelu_python": "gelu_exact"}


def their_function(activation: str) -> str:
    """Theirs of an activation, or of its gate."""
    return FUNCTIONS[GATED.get(activation, activation)]


def our_activation(function: str | None, *, gated: bool) -> str:
    """Ours of their function. Raises ``UnreadableError``."""
    ours = {theirs: name for name, theirs in FUNCTIONS.items()} | _ALIASES
    if function not in ours:
        raise UnreadableError([f"the activation {function!r}; known are {', '.join(ours)}"])
    activation = ours[function]
    gates = {f: name for name, f in GATED.items()}
    return gates[activation] if gated else activation


def demand(tree: Tree, **wanted: Any) -> None:
    """Raise ``UnreadableError`` for every setting that is not what it has to be."""
    wrong = [
        f"{key} = {_say(tree.get(key))}, where only {_say(value)} can be read"
        for key, value in wanted.items()
        if tree.get(key) != value
    ]
    if wrong:
        raise UnreadableError(wrong)


def refuse(tree: Tree, *keys: str) -> None:
    """Raise ``UnreadableError`` for every one of these settings that is on."""
    if on := [f"{key} = {_say(tree[key])} cannot be read" for key in keys if tree.get(key)]:
        raise UnreadableError(on)


def read_text_classes(tree: Tree) -> int:
    """The outputs of a classifier of texts; 0 of another class. Raises ``UnreadableError``."""
    named, classes = (tree.get("architectures") or [""])[0], len(tree.get("id2label") or ())
    if not named.endswith("ForSequenceClassification"):
        return 0
    kind = tree.get("problem_type")
    if kind == "multi_label_classification" or (kind == "regression" and classes > 1):
        raise UnreadableError(
            [
                f"problem_type = {kind!r} of {classes} labels; known are one label of several, "
                "and one number"
            ]
        )
    return classes


def read_number(tree: Tree, key: str) -> float:
    """A setting that has to be a number. Raises ``UnreadableError``."""
    value = tree.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnreadableError([f"{key} = {_say(value)}, where a number is needed"])
    return float(value)


def read_kinds(tree: Tree, window: int) -> tuple[int, ...]:
    """The sliding window of every layer, or none at all, of their ``layer_types``."""
    kinds = tree["layer_types"]
    if odd := {*kinds} - {"full_attention", "sliding_attention"}:
        raise UnreadableError([f"layer_types has {', '.join(map(repr, sorted(odd)))}"])
    windows = tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    return windows if any(windows) else ()


def _say(value: Any) -> str:
    if isinstance(value, list) and len(value) > 4:
        return f"[{', '.join(map(str, value[:4]))}, …]"
    return str(value).lower() if isinstance(value, bool) else repr(value)
