"""A plan as the YAML of a run, with the reasons as comments, and as the lines of a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import yaml

from lmscale.config.finetune import FinetuneConfig
from lmscale.files.printing import align_rows, count_of
from lmscale.finetune.checks import most_frequent, share_of
from lmscale.finetune.plan import Plan
from lmscale.finetune.survey import Survey

MAX_COUNTED = 12  # classes whose numbers are shown


def render_plan(config: FinetuneConfig, plan: Plan) -> str:
    """The whole configuration; what is not in it has its default."""
    lines = [
        f"# Planned by lmscale finetune: {config.task} from {config.base}. Give that command again",
        "# to go on; or lmscale launch slurm with this file and --job all.",
    ]
    for section, content in plan.tree.items():
        lines += [f"# {reason}" for reason in plan.reasons.get(section, ())]
        lines.append(_dump({section: content}))
    return "\n".join(lines)


def _dump(tree: Mapping[str, object]) -> str:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=96)


def describe_survey(config: FinetuneConfig, survey: Survey) -> Iterator[str]:
    """What the files hold, a line for each part."""
    for name, part in survey.parts.items():
        told = f"{count_of(part.documents, 'document')}, of at most {part.most:,} tokens"
        yield f"{name:9} {told}{_describe_counts(survey, name)}"
    if survey.names and not config.data.label_names:
        found = ", ".join(survey.names[:MAX_COUNTED])
        more = ", …" if len(survey.names) > MAX_COUNTED else ""
        yield f"names     {found}{more}: found in the files; data.label_names would fix them"


def _describe_counts(survey: Survey, name: str) -> str:
    if not survey.names:
        return ""
    counts = survey.counts(name)
    shown = [f"{each} {count:,}" for each, count in counts.items()][:MAX_COUNTED]
    more = ", …" if len(counts) > MAX_COUNTED else ""
    return f": {', '.join(shown)}{more}"


def describe_plan(config: FinetuneConfig, plan: Plan) -> Iterator[str]:
    """What was chosen, and why."""
    sizes, tree = plan.sizes, plan.tree
    engine = tree["engine"]
    rate = engine["optimizer"]["lr"]
    steps = tree["train"]["steps"]
    length = tree["stream"]["sequence_length"]
    trained = f"{plan.reasons['train'][1]}; {plan.reasons['engine'][0]}"
    yield f"base      {plan.reasons['run'][0]}"
    yield f"model     {plan.reasons['model'][0]}"
    yield f"trained   {trained}"
    yield (
        f"steps     {steps:,} of {tree['batch']['global_windows']} windows of {length} tokens, "
        f"some {sizes.documents_per_step:.3g} documents each: {plan.reasons['train'][0]}"
    )
    yield f"rate      {rate:g}, {plan.reasons['engine'][1]}"
    for weights in plan.reasons["objective"]:
        yield f"weights   {weights}"
    yield f"judged by {plan.metric.rpartition('/')[2]}; {plan.reasons['evaluation'][0]}"


def render_scores(scores: Mapping[str, Mapping[str, float]], survey: Survey) -> str:
    """A table of the sets' figures, and the accuracy of one that always names the class, or tag,
    that comes most often in training.
    """
    names = list(dict.fromkeys(name for row in scores.values() for name in row))
    usual = most_frequent(survey) if survey.names else ""
    rows = [["", *names, *([f"always {usual[:20]}"] if survey.names else [])]]
    for name, figures in scores.items():
        cells = [f"{figures[each]:.4f}" if each in figures else "" for each in names]
        baseline = [f"{share_of(survey, name, usual):.4f}"] if survey.names else []
        rows.append([name, *cells, *baseline])
    return align_rows(rows)
