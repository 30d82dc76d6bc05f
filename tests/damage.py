"""Random damage to every file that lmscale reads back. None of it may pass without a word.

    python tests/damage.py --cases 500 [--seed 1] [--scene NAME] [--verbose]

A ``Scene`` is a folder that lmscale has made (``build``), the files in it that are read back
(``rows``: the row of the table → patterns of their paths), and what reads them again (``use``),
which returns all that a user would get of it, as text. For every case the folder is put back as it
was built, one file is damaged in one way, and ``use`` runs in a process of its own. It ends as

- told: an ``LmscaleError`` (exit code 2, or 1 for what may pass) that names the file, or a warning
  that does so before an error of its folder;
- healed: the result is the same, and the file is not damaged any more;
- harmless: the result is the same;

or as what must not be: ``silent`` (another result), ``unnamed`` (an error that does not name the
file), ``traceback``, ``hang``. To add files, write a ``Scene`` into ``SCENES`` of damage_scenes.py,
or into another module whose list ``main`` adds.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import random
import select
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmscale.errors import LmscaleError

GOOD = ("told", "healed", "harmless")
LIMIT_SECONDS = 60
NOBODY = 65534
Damage = Callable[[Path, random.Random], None]


@dataclass(frozen=True, kw_only=True)
class Scene:
    name: str
    build: Callable[[Path], None]
    rows: Mapping[str, Sequence[str]]
    use: Callable[[Path], str]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    scene: str
    row: str
    kind: str  # of the damage
    path: str
    verdict: str
    text: str  # of the error, or what differs

    @property
    def is_good(self) -> bool:
        return self.verdict in GOOD


def _flip_bit(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def _change_byte(path: Path, draw: random.Random) -> None:
    """To one that text may hold as well: what is still JSON is harder to find."""
    content = bytearray(path.read_bytes())
    if content:
        content[draw.randrange(len(content))] = draw.choice(b'0123456789"{}[],: azAZ_-.\n')
    path.write_bytes(content)


def _cut(path: Path, draw: random.Random) -> None:
    os.truncate(path, draw.randrange(max(path.stat().st_size, 1)))


def _empty(path: Path, draw: random.Random) -> None:
    os.truncate(path, 0)


def _grow(path: Path, draw: random.Random) -> None:
    with open(path, "ab") as file:
        file.write(draw.randbytes(draw.randrange(1, 600)))


def _zero(path: Path, draw: random.Random) -> None:
    """A page of zeros, as a file system leaves it that lost power."""
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.seek(begin := draw.randrange(max(size, 1)))
        file.write(bytes(min(4096, size - begin)))


def _nest(path: Path, draw: random.Random) -> None:
    path.write_text("[" * 100_000)


def _remove(path: Path, draw: random.Random) -> None:
    path.unlink()


def _folder(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _pipe(path: Path, draw: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _loop(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.symlink_to(path)


def _forbid(path: Path, draw: random.Random) -> None:
    path.chmod(0)


KINDS: dict[str, Damage] = {
    "bit": _flip_bit,
    "byte": _change_byte,
    "cut": _cut,
    "empty": _empty,
    "grown": _grow,
    "zeros": _zero,
    "nested": _nest,
    "gone": _remove,
    "folder": _folder,
    "pipe": _pipe,
    "loop": _loop,
    "forbidden": _forbid,
}
# Where a byte lies decides how it is found: of these there are many, of the others one.
OFTEN = ("bit", "byte", "cut")


def run_cases(
    scenes: Iterable[Scene], *, cases: int, seed: int, kinds: Sequence[str] = tuple(KINDS)
) -> list[Outcome]:
    """So many cases, the rows in turn. A row without a file is an error of the scene."""
    draw = random.Random(seed)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)  # another user reads in it
        stages = [_Stage(scene, Path(root)) for scene in scenes]
        turns = [(stage, row) for stage in stages for row in stage.scene.rows]
        weights = [4 if kind in OFTEN else 1 for kind in kinds]
        for case in range(cases):
            stage, row = turns[case % len(turns)]
            (kind,) = draw.choices(kinds, weights)
            outcomes.append(stage.run(row, kind, draw))
    return outcomes


class _Stage:
    """A scene at its place, which is the same every time: keys are made of paths and times."""

    def __init__(self, scene: Scene, root: Path) -> None:
        self.scene = scene
        self.folder, self._built = root / scene.name, root / f"{scene.name}.built"
        self.folder.mkdir()
        scene.build(self.folder)
        os.rename(self.folder, self._built)
        self._put_back()
        self.files = {row: self._find(patterns) for row, patterns in scene.rows.items()}
        # Here, so that every module is loaded, which NOBODY could not.
        self.expected = scene.use(self.folder)

    def _put_back(self) -> None:
        if self.folder.exists():
            shutil.rmtree(self.folder)
        shutil.copytree(self._built, self.folder, symlinks=True)

    def _find(self, patterns: Sequence[str]) -> list[Path]:
        files = sorted(path for each in patterns for path in self.folder.glob(each))
        assert files, f"{self.scene.name}: no file is {', '.join(patterns)}"
        return files

    def run(self, row: str, kind: str, draw: random.Random) -> Outcome:
        self._put_back()
        path = draw.choice(self.files[row])
        KINDS[kind](path, draw)
        before = _look_at(path)
        as_nobody = kind == "forbidden" and os.getuid() == 0
        if as_nobody:
            for each in (self.folder, *self.folder.rglob("*")):
                os.chown(each, NOBODY, NOBODY)
        verdict, text, said = _in_child(lambda: self.scene.use(self.folder), as_nobody=as_nobody)
        if verdict == "ended":
            verdict, text = self._compare(text, before, _look_at(path))
        elif verdict == "told" and path.name not in text + said:
            verdict = "unnamed"
        shown = str(path.relative_to(self.folder))
        return Outcome(
            scene=self.scene.name, row=row, kind=kind, path=shown, verdict=verdict, text=text
        )

    def _compare(self, result: str, before: object, after: object) -> tuple[str, str]:
        if result == self.expected:
            return "harmless" if before == after else "healed", ""
        lines = zip(result.splitlines(), self.expected.splitlines(), strict=False)
        changed = next((pair for pair in lines if pair[0] != pair[1]), ("more or less lines",))
        return "silent", " instead of ".join(changed)[:400]


def _look_at(path: Path) -> object:
    try:
        status = path.lstat()
        is_file = stat.S_ISREG(status.st_mode) and status.st_mode & 0o400
        return status.st_mode, path.read_bytes() if is_file else None
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _in_child(use: Callable[[], str], *, as_nobody: bool) -> tuple[str, str, str]:
    """(verdict, its text, the warnings) of a process that is killed when it hangs."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        answer = _call(use, as_nobody=as_nobody)
        with os.fdopen(writer, "w") as file:
            json.dump(answer, file)
        os._exit(0)
    os.close(writer)
    content, deadline = b"", time.monotonic() + LIMIT_SECONDS
    while select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
        piece = os.read(reader, 1 << 16)
        if not piece:
            break
        content += piece
    else:
        os.kill(pid, signal.SIGKILL)
        content = b'["hang", "", ""]'
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    if not content:
        return "traceback", f"the process ended with {os.waitstatus_to_exitcode(status)}", ""
    verdict, answer, said = json.loads(content)
    return verdict, answer, said


def _call(use: Callable[[], str], *, as_nobody: bool) -> tuple[str, str, str]:
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("lmscale").addHandler(handler)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # the progress bars
    try:
        if as_nobody:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        return "ended", use(), "\n".join(said)
    except LmscaleError as error:
        return "told", str(error), "\n".join(said)
    except BaseException:
        return "traceback", traceback.format_exc(), "\n".join(said)


def render_table(outcomes: Sequence[Outcome]) -> str:
    """A row for each kind of file, as docs/reliability.md has it."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for outcome in outcomes:
        counts.setdefault((outcome.scene, outcome.row), Counter())[outcome.verdict] += 1
    bad = sorted({outcome.verdict for outcome in outcomes} - set(GOOD))
    columns = [*GOOD, *bad]
    lines = [f"| file | cases | {' | '.join(columns)} |", f"|---|---{'|---' * len(columns)}|"]
    for (_, row), found in counts.items():
        figures = " | ".join(str(found[verdict]) for verdict in columns)
        lines.append(f"| {row} | {found.total()} | {figures} |")
    total = Counter(outcome.verdict for outcome in outcomes)
    figures = " | ".join(str(total[verdict]) for verdict in columns)
    return "\n".join([*lines, f"| together | {len(outcomes)} | {figures} |"])


def main() -> int:
    from damage_runs import RUN_SCENES
    from damage_scenes import SCENES

    every = [*SCENES, *RUN_SCENES]
    parser = argparse.ArgumentParser(description="Random damage to files that are read back.")
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scene", action="append", choices=[scene.name for scene in every])
    parser.add_argument("--verbose", action="store_true", help="every case that is told")
    options = parser.parse_args()
    scenes = [scene for scene in every if not options.scene or scene.name in options.scene]
    outcomes = run_cases(scenes, cases=options.cases, seed=options.seed)
    for outcome in outcomes:
        if not outcome.is_good or options.verbose:
            print(f"{outcome.verdict}: {outcome.kind} of {outcome.scene}/{outcome.path}")
            print(f"  {outcome.text.strip()}")
    print(render_table(outcomes))
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
