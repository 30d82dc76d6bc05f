"""Which tensors of a folder become which parameters, and all by which they do not fit, at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod

import torch
from torch import Tensor

from lmscale.config.hf.architecture import Architecture
from lmscale.config.model import ModelConfig, Sizes
from lmscale.errors import DataError
from lmscale.exchange.import_config import SourceConfig
from lmscale.exchange.import_files import FLOATS, SourceWeights
from lmscale.exchange.rules import Rule, plan_rules
from lmscale.model.family import Model, build_model_on
from lmscale.model.initialize import Declared, declared_parameters, initial_value

MAX_TOLD = 10
SEED = 1  # of what a folder lacks
_OLD_LEAVES = {"weight": "gamma", "bias": "beta"}


@dataclass(frozen=True, kw_only=True)
class ImportPlan:
    """A parameter's name → where its value comes from."""

    architecture: Architecture
    shapes: Mapping[str, tuple[int, ...]]  # of every parameter of the run
    rules: Mapping[str, Rule]  # of those that the folder has, in the shapes that it has
    stored: Mapping[str, str]  # a rule's name of theirs → that in the files
    drawn: Mapping[str, Declared]  # those that the folder lacks
    left_behind: tuple[str, ...]  # tensors of another class than the one that the folder names
    known_ids: int  # rows of the embedding that stand for something; the others are padding

    @property
    def sizes(self) -> list[int]:
        """Elements of each parameter."""
        return [prod(shape) for shape in self.shapes.values()]

    def value(self, name: str, read: Callable[[str], Tensor]) -> Tensor:
        """The whole parameter, fp32; ``read`` gives a tensor of the files by its name there."""
        shape = self.shapes[name]
        if name in self.drawn:
            return initial_value(name, shape, self.drawn[name], SEED)
        value = self.rules[name].to_ours(lambda theirs: read(self.stored[theirs]))
        return resize(value, shape[0], known=self.known_ids) if shape else value


def resize(value: Tensor, rows: int, *, known: int) -> Tensor:
    """The same with more rows, each the mean of the ``known`` first ones (Hewitt 2021,
    "Initializing New Word Embeddings for Pretrained Language Models"), or without its last rows.
    """
    more = rows - len(value)
    if more <= 0:
        return value[:rows]
    mean = value[:known].mean(dim=0, keepdim=True)
    return torch.cat([value, mean.expand(more, *value.shape[1:])])


def plan_import(
    config: SourceConfig,
    weights: SourceWeights,
    section: ModelConfig,
    sizes: Sizes,
    *,
    known_ids: int,
) -> ImportPlan:
    """How the folder's tensors become a model of ``section`` and ``sizes``: its own section, but
    for its vocabulary and the layers for a task.

    ``known_ids``: of the tokenizer. Raises ``DataError`` with every tensor that is missing,
    unknown, of another shape or of no numbers.
    """
    where = str(weights.folder)
    theirs = Sizes(
        vocab_size=config.section.vocab_size or sizes.vocab_size,
        max_positions=sizes.max_positions,
        sequence_length=sizes.sequence_length,
        pair_lengths=sizes.pair_lengths,
    )
    model = _build(section, theirs)
    declared = declared_parameters(model)
    rules = {rule.name: rule for rule in plan_rules(config.architecture, model, config.head)}
    stored = {
        name: found
        for rule in rules.values()
        for name in rule.theirs
        if (found := _find(name, config.architecture.prefix, weights)) is not None
    }
    drawn = find_drawn(model, rules, stored)
    left = {name: rule for name, rule in rules.items() if name not in drawn}
    used = {*stored.values()}
    left_behind = tuple(_find_left_behind(config.architecture, used, weights))
    problems = [
        *_find_missing(left.values(), stored),
        *_find_unfit(left.values(), stored, weights),
        *_find_unknown(config.architecture, {*used, *left_behind}, weights),
    ]
    if problems:
        more = len(problems) - MAX_TOLD
        rest = [f"and {more} more like these"] if more > 0 else []
        raise DataError([f"{where}: {each}." for each in [*problems[:MAX_TOLD], *rest]])
    shapes = {n: tuple(p.shape) for n, p in _build(section, sizes).named_parameters()}
    return ImportPlan(
        architecture=config.architecture,
        shapes=shapes,
        rules=left,
        stored=stored,
        drawn={name: declared[name] for name in drawn},
        left_behind=left_behind,
        known_ids=min(known_ids, theirs.vocab_size),
    )


def _build(section: ModelConfig, sizes: Sizes) -> Model:
    return build_model_on(section, sizes, device=torch.device("meta"), dtype=torch.float32)


def _find(name: str, prefix: str, weights: SourceWeights) -> str | None:
    """What the files call it: a file of the bare model leaves the prefix out, and those that came
    from TensorFlow have its words for a norm's weight and bias.
    """
    module, _, leaf = name.rpartition(".")
    older = f"{module}.{_OLD_LEAVES.get(leaf, leaf)}"
    spellings = (each for n in (name, older) for each in (n, n.removeprefix(prefix)))
    return next((each for each in spellings if each in weights.tensors), None)


def find_drawn(
    model: Model, rules: Mapping[str, Rule], stored: Mapping[str, str]
) -> tuple[str, ...]:
    """Parameters that a folder may lack: those without a place there, those of a layer for one
    task, and of an encoder the whole output, which a model that was made for texts has not.
    """
    lacking = [n for n, rule in rules.items() if not any(each in stored for each in rule.theirs)]
    output = [name for name in rules if name.startswith("head.")]
    is_bare = model.family == "encoder" and {*output} <= {*lacking}
    homeless = [name for name, _ in model.named_parameters() if name not in rules]
    anew = [name for name in lacking if model.begins_anew(name)]
    return tuple(dict.fromkeys([*homeless, *anew, *(output if is_bare else ())]))


def _find_missing(rules: Iterable[Rule], stored: Mapping[str, str]) -> Iterator[str]:
    for rule in rules:
        for name in rule.theirs:
            if name not in stored:
                yield f"{name} is missing"


def _find_unfit(
    rules: Iterable[Rule], stored: Mapping[str, str], weights: SourceWeights
) -> Iterator[str]:
    for rule in rules:
        for name, shape in rule.their_shapes.items():
            tensor = weights.tensors[stored[name]] if name in stored else None
            if tensor is None:
                continue
            if tensor.shape != shape:
                yield (
                    f"{stored[name]} is {list(tensor.shape)}, and by config.json it should be "
                    f"{list(shape)}"
                )
            if tensor.dtype not in FLOATS:
                yield f"{stored[name]} is of {tensor.dtype}, which holds no weights"


def _find_unknown(
    architecture: Architecture, known: set[str], weights: SourceWeights
) -> Iterator[str]:
    """Tensors of the files that are nothing here."""
    for name in weights.tensors:
        if name not in known and not _is_ignored(name, architecture):
            yield f"{name} is no tensor of a {architecture.model_type} that lmscale has"


def _find_left_behind(
    architecture: Architecture, used: set[str], weights: SourceWeights
) -> Iterator[str]:
    """Tensors of the files that only another class of the architecture has."""
    modules = {
        theirs.removeprefix(prefix)
        for names in architecture.head_names.values()
        for theirs in names.values()
        for prefix in ("", architecture.prefix)
    }
    for name in weights.tensors:
        if name not in used and name.rpartition(".")[0] in modules:
            yield name


def _is_ignored(name: str, architecture: Architecture) -> bool:
    tied = f"{architecture.names_of().get('head', '')}.weight"
    return any(fnmatchcase(name, pattern) for pattern in (*architecture.ignored, tied))


def find_originals(plan: ImportPlan, weights: SourceWeights) -> dict[tuple[int, ...], str]:
    """The tensors by the vocabulary that others may repeat, by their shapes."""
    originals = {}
    for ours in ("head.bias", "embedding.weight"):
        if ours in plan.rules:
            name = plan.stored[plan.rules[ours].theirs[0]]
            originals[weights.tensors[name].shape] = name
    return originals


def find_copies(plan: ImportPlan, weights: SourceWeights) -> dict[str, str]:
    """Tensors of the files that should repeat another one, as those of a tied output do: name →
    the name of that one.
    """
    originals, used = find_originals(plan, weights), {*plan.stored.values()}
    return {
        name: originals[tensor.shape]
        for name, tensor in weights.tensors.items()
        if name not in used and tensor.dtype in FLOATS and tensor.shape in originals
    }


def check_copies(plan: ImportPlan, weights: SourceWeights, read: Callable[[str], Tensor]) -> None:
    """Raise ``DataError`` where what is one tensor here is two in the files, or where an output has
    a bias that no model here has (BART's ``final_logits_bias``, which is 0).
    """
    copies = find_copies(plan, weights)
    rows = {shape[0] for shape in find_originals(plan, weights)}
    biases = [n for n, each in weights.tensors.items() if each.shape in {(1, r) for r in rows}]
    if moved := [name for name in biases if read(name).count_nonzero()]:
        raise DataError(
            f"{weights.folder}: {moved[0]} is not 0, and no model here has such a bias."
        )
    differing = [
        f"{weights.folder}: {name} and {original} differ, but by config.json they are one "
        "(tie_word_embeddings: true). Say false there, if the model was trained with two."
        for name, original in copies.items()
        if not torch.equal(read(name), read(original))
    ]
    if differing:
        raise DataError(differing)
