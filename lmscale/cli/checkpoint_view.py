"""Checkpoints as people read them, and as programs do."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lmscale.cli.options import render_line
from lmscale.errors import CheckpointError
from lmscale.files.printing import render_bytes, render_time
from lmscale.files.redact import printable

if TYPE_CHECKING:
    from lmscale.checkpoint.manifest import Manifest
    from lmscale.checkpoint.retention import Listed

LISTED = ("step", "state", "saved", "why", "kept for", "precision", "size", "ranks", "ZeRO")
_REASONS = {
    "regular": "a save that was due",
    "asked": "somebody asked for it: kept until `lmscale checkpoint prune --asked`",
    "stop": "the run was asked to stop",
    "last": "all steps were done",
}
_KEPT_FOR = {
    "rewind": "rewind (the guard goes back to it, or will once it is old enough)",
    "export": "export (it is still to be exported)",
    "teacher": "teacher (of the runs that students.jsonl names)",
}


def describe_state(listed: Listed) -> str:
    is_nonfinite = listed.manifest is not None and not listed.manifest.is_finite
    return f"{listed.state}, not finite" if is_nonfinite else listed.state


def render_listed(listed: Listed) -> list[str]:
    """The cells of a row under ``LISTED``."""
    if listed.manifest is None:
        return [f"{listed.step:,}", listed.state, *["-"] * (len(LISTED) - 2)]
    writer = listed.manifest.written_by
    time = writer.get("time")
    return [
        f"{listed.step:,}",
        describe_state(listed),
        "-" if time is None else render_time(time),
        listed.manifest.reason,
        ", ".join(listed.kept_for) or "-",
        _plain(writer.get("precision", "-")),
        render_bytes(listed.bytes or 0),
        _plain(writer.get("world_size", "-")),
        _plain(writer.get("zero_stage", "-")),
    ]


def listed_to_json(listed: Listed) -> dict[str, Any]:
    manifest = listed.manifest
    writer: Mapping[str, Any] = {} if manifest is None else manifest.written_by
    return {
        "step": listed.step,
        "name": listed.name,
        "state": listed.state,
        "is_finite": None if manifest is None else manifest.is_finite,
        "reason": None if manifest is None else manifest.reason,
        "kept_for": list(listed.kept_for),
        "bytes": listed.bytes,
        **{key: writer.get(key) for key in ("time", "world_size", "zero_stage", "precision")},
        "rewinds": None if manifest is None else manifest.rewinds,
        "problems": list(listed.problems),
    }


def _plain(value: object) -> str:
    """What a manifest says, on one line: whoever made it may want to steer the terminal."""
    text = str(value).encode(errors="backslashreplace").decode()  # JSON can escape half a character
    return printable(" ".join(text.split()))


def _line(name: str, value: object) -> str:
    return render_line(name, _plain(value))


def _count(number: object, noun: str) -> str:
    return f"{number} {noun}{'s'[: number != 1]}"


def render_verdict(listed: Listed) -> str:
    count = len(listed.manifest.files) if listed.manifest else 0
    files = f"{_count(count, 'file')}, {render_bytes(listed.bytes or 0)}"
    note = "" if listed.is_good else f" ({describe_state(listed)}: no run goes on from it)"
    return f"{listed.name}: whole, {files}{note}"


def render_pruned(
    doomed: Sequence[Listed], kept: Sequence[Listed], sound: Listed | None, *, is_dry: bool
) -> str:
    verb = "would remove" if is_dry else "removed"
    sizes = ["" if listed.bytes is None else f", {render_bytes(listed.bytes)}" for listed in doomed]
    pairs = zip(doomed, sizes, strict=True)
    lines = [f"{verb} {listed.name} ({listed.state}{size})" for listed, size in pairs]
    lines = lines or ["nothing to remove"]
    # With the reason where the run itself would go back to it: no rule of the command keeps it.
    names = [
        f"{listed.step:,}" + (f" ({', '.join(listed.kept_for)})" if listed.is_spared else "")
        for listed in kept
    ]
    steps = ", ".join(names) or "none"
    lines.append(f"{'would keep' if is_dry else 'kept'} steps: {steps}")
    if sound is not None:
        lines.append(f"the newest whole one is of step {sound.step:,}: every file was read")
    elif kept:
        lines.append("none of them is whole, so nothing is removed: one of them may be mended")
    return "\n".join(lines)


def render_checkpoint(listed: Listed, figures: Mapping[str, float]) -> str:
    manifest = listed.manifest
    assert manifest is not None
    lines = [listed.name, *_render_origin(listed, manifest), *_render_tensors(manifest)]
    return "\n".join([*lines, *_render_place(manifest), *_render_figures(manifest, figures)])


def _render_origin(listed: Listed, manifest: Manifest) -> Iterator[str]:
    writer = manifest.written_by
    yield _line("state", describe_state(listed))
    yield from (_line("", problem) for problem in listed.problems)
    time = writer.get("time")
    when = "" if time is None else f"{render_time(time)}: "
    yield _line("saved", when + _REASONS.get(manifest.reason, manifest.reason))
    reasons = ", ".join(_KEPT_FOR.get(reason, reason) for reason in listed.kept_for)
    yield _line("kept for", reasons or "nothing: the next save removes it")
    yield _line(
        "written by",
        f"{_count(writer.get('world_size', '?'), 'rank')}, ZeRO {writer.get('zero_stage', '?')}, "
        f"{writer.get('precision', '?')}, torch {writer.get('torch', '?')}",
    )
    yield _line("run", manifest.identity.get("run", "?"))


def _render_tensors(manifest: Manifest) -> Iterator[str]:
    trained = sum(math.prod(shape) for shape in manifest.parameters.values())
    count = len(manifest.parameters)
    yield _line("parameters", f"{trained:,} trained, in {count:,} tensors, fp32")
    kinds = Counter(kind for kinds in manifest.states.values() for kind in kinds)
    yield _line("of each", ", ".join(f"{kind} ({n:,})" for kind, n in kinds.items()))
    for kind in ("frozen", "buffer", "factor"):
        rows = [row for row in manifest.replicated.values() if row.kind == kind]
        if rows:
            elements = sum(math.prod(row.shape) for row in rows)
            dtypes = ", ".join(sorted({row.dtype for row in rows}))
            yield _line(kind, f"{elements:,} elements in {len(rows):,} tensors, {dtypes}")
    size = sum(file.bytes for file in manifest.files)
    yield _line("files", f"{len(manifest.files)}, {render_bytes(size)}")
    yield _line("weights' hash", manifest.weights or "not known")
    kind, updates = manifest.optimizer.kind, manifest.optimizer.step
    if kind == "none":
        yield _line("optimizer", "none: weights alone")
    else:
        yield _line("optimizer", f"{kind}, {'?' if updates is None else updates} updates")
    if manifest.loss_scale is not None:
        yield _line("loss scale", manifest.loss_scale)


def _render_place(manifest: Manifest) -> Iterator[str]:
    from lmscale.runs.given_weights import IMPORTED
    from lmscale.stream.stream import StreamState
    from lmscale.train.progress import STREAM, read_progress

    yield _line("step", f"{manifest.step:,}")
    if IMPORTED in manifest.state:  # which has seen no data
        return
    try:
        progress = read_progress(manifest, where="it")
        segments = StreamState.from_json(manifest.state.get(STREAM)).segments
    except CheckpointError as error:  # no run can go on from it; one may look at it
        yield from (_line("", problem) for problem in error.problems)
        return
    yield _line("data", f"{progress.n:,} samples, {progress.tokens:,} tokens trained on")
    mixture = ", ".join(
        f"{name} {quota / segments[-1].block:.1%}" for name, quota in segments[-1].quotas.items()
    )
    since = f", since sample {segments[-1].start:,}" if len(segments) > 1 else ""
    yield _line("mixture", mixture + since)


def _render_figures(manifest: Manifest, figures: Mapping[str, float]) -> Iterator[str]:
    for name, value in sorted(figures.items()):
        if name == "train/loss" or name.split("/")[0] in ("evaluation", "final"):
            yield _line("", f"{name} {value:.4f}" if value is not None else name)
    if manifest.probe is not None:
        probe = manifest.probe
        yield _line("probe", f"loss {probe.loss:.6f} of {probe.windows} windows")
    if manifest.rewinds:
        yield _line("rewinds", f"{manifest.rewinds} before it")
    from lmscale.runs.origins import LABELS

    described = {
        "guard": _describe_guard,
        "imported from": _describe_import,
        "made": _describe_made,
        **{label: partial(_describe_origin, name=name) for name, label in LABELS.items()},
        "teacher": partial(_describe_origin, name="teacher"),
    }
    for name, describe in described.items():
        try:
            text = describe(manifest)
        except CheckpointError as error:
            yield from (_line(name, problem) for problem in error.problems)
        else:
            if text is not None:
                yield _line(name, text)


def _describe_guard(manifest: Manifest) -> str | None:
    from lmscale.guard.state import read_guard_state

    guard = read_guard_state(manifest, where="it")
    if guard is None:
        return None
    seen = f"{guard.nonfinite_steps:,} non-finite steps and {guard.spike_steps:,} spiking ones"
    return f"{seen} in the run so far; {len(guard.window):,} steps in its window"


def _describe_origin(manifest: Manifest, name: str) -> str | None:
    from lmscale.checkpoint.manifest import read_state
    from lmscale.runs.origins import ORIGINS, describe_origin

    origin = read_state(manifest, name, ORIGINS, where="it")
    return origin and describe_origin(name, origin)


def _describe_import(manifest: Manifest) -> str | None:
    from lmscale.checkpoint.manifest import read_state
    from lmscale.runs.given_weights import IMPORTED, IMPORTS

    imported = read_state(manifest, IMPORTED, IMPORTS, where="it")
    return imported and f"{imported.described}, {imported.dtype} in {len(imported.files)} files"


def _describe_made(manifest: Manifest) -> str | None:
    from lmscale.checkpoint.manifest import read_state
    from lmscale.runs.given_weights import MADE, MADES

    made = read_state(manifest, MADE, MADES, where="it")
    return made and made.described
