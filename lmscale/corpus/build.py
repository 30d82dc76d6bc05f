"""Build the corpus: clean each part of each source, take duplicates out, swap the result in.

One process builds all, or the tasks of an array share the work: documents, order and files are
the same. ``lmscale.tasks`` says how.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from lmscale.config.data import CorpusConfig
from lmscale.corpus.documents import SPLITS, CorpusManifest, load_corpus_manifest
from lmscale.corpus.finish import assemble
from lmscale.corpus.inputs import find_inputs
from lmscale.corpus.parts import PartTask
from lmscale.corpus.plan import SourcePlan, made_by, plan_source
from lmscale.errors import ConfigError
from lmscale.tasks.array_tasks import ArrayTask, Progress
from lmscale.tasks.building import Builder, BuildSummary
from lmscale.tasks.target import Target, Unit


def build_corpus(
    config: CorpusConfig,
    task: ArrayTask | None = None,
    *,
    processes: int = 1,
    force: bool = False,
) -> BuildSummary[CorpusManifest]:
    """Build every source that is not built yet, or do one task's share; see ``Builder.build``.

    0 processes means one per core. A source appears whole or not at all.
    """
    return _builder(config, processes).build(task, force=force)


def corpus_progress(config: CorpusConfig, num_tasks: int) -> tuple[Progress, ...]:
    """How far each source is when built by ``num_tasks`` tasks. Changes nothing."""
    return _builder(config, 1).progress(num_tasks)


def _builder(config: CorpusConfig, processes: int) -> Builder[CorpusManifest]:
    if not config.sources:
        raise ConfigError("corpus.sources: names no source; give at least one with its inputs.")
    targets = [
        _target(plan_source(config, name, files, rank=rank))
        for rank, (name, files) in enumerate(find_inputs(config.sources).items())
    ]
    return Builder(targets=targets, title="corpus", unit="raw bytes", processes=processes)


def _target(plan: SourcePlan) -> Target[CorpusManifest]:
    """A source's folder, of parts that are runs of raw files."""

    def units(numbers: Iterable[int]) -> list[Unit]:
        parts = (plan.parts[number] for number in numbers)
        return [
            PartTask(source=plan.name, config=plan.config, part=part, folder=plan.folder)
            for part in parts
        ]

    return Target(
        name=plan.name,
        kind="corpus",
        what=f"the documents of source {plan.name}",
        setting="corpus.folder",
        build=plan.build,
        parts=plan.folder,
        contents=SPLITS,
        leftovers=tuple(plan.folder / part.key for part in plan.parts),
        load=load_corpus_manifest,
        key_of=lambda manifest: manifest.key,
        files_of=_files_of,
        describe_difference=partial(_describe_difference, plan),
        units=units,
        assemble=partial(assemble, plan),
    )


def _files_of(manifest: CorpusManifest) -> Iterable[tuple[str, int]]:
    for split, files in manifest.splits.items():
        yield from ((f"{split}/{file.name}", file.bytes) for file in files)


def _describe_difference(plan: SourcePlan, manifest: CorpusManifest) -> str:
    wanted = made_by(plan.config, plan.name)
    changed = sorted(key for key in wanted if manifest.made_by.get(key) != wanted[key])
    if changed:
        return f"from other settings ({', '.join(changed)})"
    return "from raw files that have changed since"
