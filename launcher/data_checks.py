"""What a job reads, looked at before it is submitted, but for what earlier jobs make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launcher.job import JobRequest, SlurmJob
from launcher.scoring import find_scoring_problems, scores_sets
from lmscale.config import RunConfig, load_config
from lmscale.config.labels import find_not_carried, parse_carried
from lmscale.errors import DataError, LmscaleError
from lmscale.files.found import find_named
from lmscale.files.locations import is_remote, local_path
from lmscale.files.reading import read_plain
from lmscale.files.run_files import CONFIG_FILE
from lmscale.files.shard_files import (
    MANIFEST,
    explain_missing,
    find_mixed_datasets,
    find_wrong_files,
    read_shard_sizes,
)
from lmscale.files.strangers import parse_json
from lmscale.files.tokenizer_files import has_tokenizer
from lmscale.runs.commits import read_commits
from lmscale.runs.own_ids import find_idle_rows

MAX_SHARDS = 100_000  # a look at each; on a slow file system some minutes
SPLITS = ("train", "heldout")  # of a source, a dataset each
_MAKE_ALL = "With --job all the command makes the data as well: corpus, tokenizer and shards."
MAX_NAMED = 3  # wrong shards of a dataset


@dataclass
class Findings:
    """What the checks found, in the order in which they were made."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)

    def take(self, problems: Iterable[str], otherwise: str) -> None:
        """Add ``problems``; without any, ``otherwise`` is passed."""
        before = len(self.problems)
        self.problems += problems
        self.passed += [otherwise] if len(self.problems) == before else []


def check_data(request: JobRequest, job: SlurmJob, findings: Findings) -> None:
    """Add what is missing. Behind a job that a person names it is a warning: it may make that."""
    if job.kind == "preflight":
        return
    awaits = request.is_awaited
    problems = [
        problem
        for config in request.runs
        for problem in (
            _input_problems(config, findings)
            if job.kind == "corpus"
            else _data_problems(config, job, awaits=awaits)
        )
    ]
    passed = "its inputs exist" if job.kind == "corpus" else "the manifests of what it reads exist"
    if job.kind == "train":
        left = [p for config in request.runs for p in _data_problems(config, job, awaits=True)]
        problems += [_MAKE_ALL] if len(left) < len(problems) else []
        places = dict.fromkeys(
            place
            for config in request.runs
            for place in _datasets_of(config, without_made=awaits).values()
        )
        shard_problems, is_complete = find_shard_problems(places)
        problems += shard_problems
        passed = "what it reads exists, with all its shards" if is_complete else passed
    if awaits and job.kind != "corpus":
        passed = "what earlier jobs make for it is looked at when it begins"
    if problems and job.after and not awaits and job.kind != "evaluate":
        later = f"It is looked at again when the job begins ({job.after})."
        findings.warnings += [f"{problem} {later}" for problem in dict.fromkeys(problems)]
        return
    findings.take(dict.fromkeys(problems), passed)


def _data_problems(config: RunConfig, job: SlurmJob, *, awaits: bool) -> list[str]:
    """Files that the job would miss on its first second; remote shards are left to the job, and so
    is what jobs that it ``awaits`` make of this configuration.
    """
    if job.kind == "evaluate":
        return _evaluation_problems(config, job)
    corpus = config.corpus
    documents = {f"corpus.sources.{name}": f"{corpus.folder}/{name}" for name in corpus.sources}
    if job.kind == "tokenizer":
        return [] if awaits else _missing_manifests(documents, _build_corpus)
    if job.kind == "shards":
        missing = _missing_tokenizer(config) + _missing_manifests(documents, _build_corpus)
        return [] if awaits else missing
    datasets = _datasets_of(config, without_made=awaits)
    at_hand = {setting: place for setting, place in datasets.items() if not is_remote(place)}
    missing = find_missing_data(config, awaits=awaits)
    return missing + find_mixed_datasets(at_hand) + _carrying_problems(config, at_hand)


def find_missing_data(config: RunConfig, *, awaits: bool = False) -> list[str]:
    """What a training would miss on its first second, of what lies on this machine: its tokenizer,
    and the datasets of its sources and of its held-out sets. Where it ``awaits`` what others make
    of this configuration, without that.
    """
    problems = [] if awaits else _missing_tokenizer(config) or find_idle_rows(config)
    if not config.stream.sources:
        problems.append("stream.sources names no dataset; give at least one, NAME: {shards: …}.")
    return problems + _missing_manifests(_datasets_of(config, without_made=awaits))


def _missing_tokenizer(config: RunConfig) -> list[str]:
    folder = Path(config.tokenizer.folder)
    if has_tokenizer(folder):
        return []
    return [
        f"{folder}: there is no tokenizer here. Run `lmscale tokenizer train CONFIG` first, or set "
        "tokenizer.folder."
    ]


def _carrying_problems(config: RunConfig, places: Mapping[str, str]) -> list[str]:
    """Datasets without the pairs or labels that the objective reads. One whose manifest cannot be
    read is passed over.
    """
    problems: list[str] = []
    for setting, place in places.items():
        try:
            carried = parse_carried(parse_json(read_plain(local_path(place) / MANIFEST)))
        except (OSError, ValueError):
            continue
        problems += find_not_carried(carried, config.window, where=f"{setting}: {place}")
    return problems


def _datasets_of(config: RunConfig, *, without_made: bool = False) -> dict[str, str]:
    """Setting → place of every dataset that a training reads, ``without_made`` of those that
    `lmscale shards build` makes of the configuration's own corpus.
    """
    corpus = config.corpus.sources if without_made else ()
    made = {Path(config.shards.folder, name, split) for name in corpus for split in SPLITS}
    sources = {
        f"stream.sources.{name}": source.shards
        for name, source in config.stream.sources.items()
        if source.weight > 0
    }
    found = sources | _sets_of(config)
    return {s: place for s, place in found.items() if is_remote(place) or Path(place) not in made}


def find_others_shards(config: RunConfig) -> list[str]:
    """A line where a training reads datasets that a pipeline of this configuration does not build.
    They may be meant: others' shards, or an earlier pipeline's.
    """
    folder = local_path(config.shards.folder)
    datasets = _datasets_of(config) if config.corpus.sources else {}
    others = [
        f"{setting} ({place})"
        for setting, place in datasets.items()
        if is_remote(place) or not local_path(place).is_relative_to(folder)
    ]
    if not others:
        return []
    more = f" and {len(others) - MAX_NAMED:,} more" if len(others) > MAX_NAMED else ""
    return [
        f"{', '.join(others[:MAX_NAMED])}{more}: not below shards.folder = {folder}, where this "
        "pipeline builds its shards, so they will not be read there. Name the places there, unless "
        "others' shards are meant."
    ]


def _sets_of(config: RunConfig) -> dict[str, str]:
    return {f"evaluation.sets.{name}": place for name, place in config.evaluation.sets.items()}


def find_shard_problems(places: Iterable[str]) -> tuple[list[str], bool]:
    """A line for each dataset that is not whole, and whether every shard was looked at."""
    problems: list[str] = []
    left = MAX_SHARDS
    is_complete = True
    for place in places:
        sizes: dict[str, int] = {}
        try:
            sizes = {} if is_remote(place) else read_shard_sizes(place)
        except (FileNotFoundError, NotADirectoryError):
            pass  # ``_missing_manifests`` says so
        except (OSError, DataError) as error:
            problems.append(str(error))
            continue
        if not sizes or len(sizes) > left:
            is_complete = False
            continue
        left -= len(sizes)
        if wrong := find_wrong_files(place, sizes):
            named = ", ".join(map(str, wrong[:MAX_NAMED]))
            more = f" and {len(wrong) - MAX_NAMED:,} more" if len(wrong) > MAX_NAMED else ""
            problems.append(
                f"{local_path(place)}: {len(wrong):,} of {len(sizes):,} shards are not as "
                f"{MANIFEST} says: {named}{more}. Copy them again, or build them with "
                "`lmscale shards build CONFIG`."
            )
    return problems, is_complete


def _evaluation_problems(config: RunConfig, job: SlurmJob) -> list[str]:
    """The sets are those of the run's own configuration, the tasks those of what is launched."""
    folder = config.folder
    steps = sorted({commit.step for commit in read_commits(folder)})
    problems = find_scoring_problems(config, step=job.step, steps=steps, after=job.after)
    if problems or not ((folder / CONFIG_FILE).is_file() or job.after is None):
        return problems
    try:
        own = load_config(folder / CONFIG_FILE)
    except LmscaleError as error:
        return list(error.problems)
    if not scores_sets(config.evaluation):
        return []
    sets = _sets_of(own)
    if not sets:
        return [f"{folder / CONFIG_FILE} names no evaluation.sets: there is nothing to score."]
    return _missing_manifests(sets)


def _input_problems(config: RunConfig, findings: Findings) -> list[str]:
    if not config.corpus.sources:
        return ["corpus.sources names no source; give at least one with its inputs."]
    problems: list[str] = []
    for name, source in config.corpus.sources.items():
        patterns = [each.files for each in source.inputs]
        named = find_named(patterns, f"corpus.sources.{name}.inputs", retries=0)
        problems += named.problems
        # Nodes may have a network where the login node has none.
        findings.warnings += [f"{problem} The job tries it again." for problem in named.unreached]
    return problems


def _build_corpus(place: str) -> str:
    return "Build it with `lmscale corpus build CONFIG`, or name another place."


def _missing_manifests(
    places: dict[str, str], explain: Callable[[str], str] = explain_missing
) -> list[str]:
    return [
        f"{setting}: {place} holds no {MANIFEST}. {explain(place)}"
        for setting, place in places.items()
        if not is_remote(place) and not (local_path(place) / MANIFEST).is_file()
    ]
