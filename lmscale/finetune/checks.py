"""What cannot be learned of the data that was found, and what a person should know of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lmscale.config.corpus import CorpusConfig
from lmscale.config.finetune import FinetuneConfig
from lmscale.config.model_base import ModelConfig
from lmscale.corpus.build import plan_sources
from lmscale.files.printing import count_of
from lmscale.files.strangers import quote
from lmscale.finetune.survey import Survey
from lmscale.finetune.trees import look_up
from lmscale.tasks.target import MANIFEST

MAX_NAMED = 8
SKEWED = 0.9  # share of one class from which on accuracy alone says little
FEW = 100  # held-out documents, of which one more or less moves an accuracy by a percent


def find_data_problems(config: FinetuneConfig, survey: Survey) -> Iterator[str]:
    """Every reason why the data teaches nothing, or something else than it is judged by."""
    train = survey.parts["train"]
    for name, part in survey.parts.items():
        is_of_train = name == "heldout" and not config.data.heldout
        if not part.documents and (train.documents or not is_of_train):
            yield _describe_empty(config, name)
    if not survey.names or not train.documents:
        return
    what, of = ("tag", "word") if config.task == "tags" else ("class", "document")
    taught = survey.counts("train")
    if lacking := [name for name, count in taught.items() if not count]:
        seen = [n for n in lacking if any(survey.counts(p)[n] for p in survey.parts)]
        for name in survey.parts:
            if unseen := [n for n in lacking if survey.counts(name)[n]]:
                where = survey.parts[name].first[survey.names.index(unseen[0])]
                yield (
                    f"data.{name}: {_list(unseen)} (the first at {where}) is no label of the "
                    f"training {of}s, which have {_list([n for n, c in taught.items() if c])}. "
                    f"Add {of}s with it to data.train, or {_advise(unseen, taught)}."
                )
        if never := [name for name in lacking if name not in seen]:
            yield (
                f"data.label_names: the {what} {_list(never)} has no {of} in data.train, so "
                "nothing would be learned of it. Add some, or leave the name out."
            )
    elif len(survey.names) < 2:
        yield (
            f"data.train: all its {of}s are of one {what}, {_list(survey.names)}: there is "
            "nothing to tell apart."
        )


def find_length_problems(
    config: FinetuneConfig, model: ModelConfig, survey: Survey, *, limit: int | None
) -> Iterator[str]:
    """Documents that no window of the base holds; ``limit``: its most tokens."""
    if limit is None:
        return
    for name, part in survey.parts.items():
        number = int((survey.lengths(name) > limit).sum())
        if number and (number == part.documents or not leaves_out(config)):
            yield (
                f"data.{name}: {count_of(number, 'document')} of {part.documents:,} with more than "
                f"{limit:,} tokens, the most of a window (the base {config.base} has learned "
                f"{model.max_positions} positions). The longest has {part.most:,}, at "
                f"{part.longest}. Shorten or split them."
            )


def leaves_out(config: FinetuneConfig) -> bool:
    """Whether documents that no window holds are left out or cut, or else refused."""
    word = look_up(config.settings, "stream.on_overlong")
    return (word or ("drop" if config.task == "dialogue" else "refuse")) != "refuse"


def find_left_out(config: FinetuneConfig, survey: Survey, limit: int | None) -> Iterator[str]:
    """What no window holds, of each part. ``limit``: the most tokens."""
    for name, part in survey.parts.items():
        number = 0 if limit is None else int((survey.lengths(name) > limit).sum())
        if number:
            yield (
                f"data.{name}: {number:,} of {count_of(part.documents, 'document')} with more than "
                f"{limit:,} tokens, which no window holds: left out, or with settings: "
                "{stream.on_overlong: truncate} cut behind an answer. The longest has "
                f"{part.most:,}, at {part.longest}"
            )


def find_doubts(config: FinetuneConfig, model: ModelConfig, survey: Survey) -> Iterator[str]:
    """What is no mistake, perhaps."""
    train = survey.parts["train"]
    for name, part in survey.parts.items():
        if name == "train":
            continue
        if both := len(part.digests & train.digests):
            yield (
                f"data.{name}: {count_of(both, 'text')} of {len(part.digests):,} are in the "
                "training files, too: what is measured on them is remembered, not learned"
            )
        if part.documents < FEW:
            stops = name == "heldout" and config.early_stopping.is_on
            advice = (
                ", and early stopping by them may end the run before it has learned: hold out "
                "more, or train all epochs with --set early_stopping=false"
            )
            yield (
                f"data.{name}: only {count_of(part.documents, 'document')}: figures are coarse"
                f"{advice if stops else ''}"
            )
    positions = model.max_positions
    if positions and train.most > positions and getattr(model, "positions", "") == "rope":
        yield (
            f"the longest document has {train.most:,} tokens, and the base has learned with "
            f"{positions:,}: farther positions are new to it"
        )
    yield from _find_doubtful_names(config, survey)
    if survey.names and config.task == "classes":
        name = most_frequent(survey)
        share = share_of(survey, "train", name)
        if share > SKEWED:
            yield (
                f"{quote(name)} is the class of {100 * share:.0f} % of the training documents: "
                "judge by more than accuracy"
            )


def _find_doubtful_names(config: FinetuneConfig, survey: Survey) -> Iterator[str]:
    """Names that are one, perhaps, and those of which hardly anything can be learned."""
    of = "word" if config.task == "tags" else "document"
    counts = survey.counts("train")
    for alike in find_alike(survey.names):
        told = ", ".join(f"{quote(name)} ({count_of(counts[name], of)})" for name in alike)
        yield (
            f"{told} differ by case or white space alone, and are learned as different ones: write "
            "them alike in the files if they are one"
        )
    if single := [name for name, count in counts.items() if count == 1]:
        yield f"of {_list(single)} there is a single training {of}: little can be learned of it"


def find_alike(names: Sequence[str]) -> list[list[str]]:
    """Names that differ by case or white space alone, those that are alike together."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_plain(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _plain(name: str) -> str:
    return "".join(name.split()).casefold()


def _advise(unseen: Sequence[str], taught: Mapping[str, int]) -> str:
    """What to do with names that training does not have: one of its own may be meant."""
    own = {_plain(name): name for name, count in taught.items() if count}
    meant = [quote(own[_plain(name)]) for name in unseen if _plain(name) in own]
    return f"write {', '.join(meant)} in its place" if meant else "remove it"


def most_frequent(survey: Survey) -> str:
    """The class or tag that comes most often in training."""
    counts = survey.counts("train")
    return max(counts, key=lambda each: counts[each])


def share_of(survey: Survey, part: str, name: str) -> float:
    """What naming one class, or tag, of everything would give."""
    counts = survey.counts(part)
    return counts[name] / max(1, sum(counts.values()))


def _describe_empty(config: FinetuneConfig, name: str) -> str:
    if name == "heldout" and not config.data.heldout:
        return (
            f"data.heldout_fraction = {config.data.heldout_fraction}: of so few documents none is "
            "held out, since a hash of its text decides. Raise it, or name data.heldout."
        )
    return f"data.{name}: its files hold no document."


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(map(quote, names[:MAX_NAMED])) + more


def find_other_data(corpus: CorpusConfig) -> list[str]:
    """Why the corpus of a fine-tuning cannot be built where it would lie: one of other files or
    settings is there, whose shards a run may have read.
    """
    problems = []
    for name, target in plan_sources(corpus).items():
        if not (target.final / MANIFEST).is_file():
            continue
        manifest = target.load(target.final)
        if manifest.key != target.key:
            problems.append(
                f"data.{name}: {target.final} was built {target.describe_difference(manifest)} "
                "A run may have read it, so it stays: give this fine-tuning another name, such as "
                "--set name=NAME-2, or another data.folder."
            )
    return problems
