"""``lmscale show``: how a run's model cuts a text, what it looks at, and what it expects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lmscale.cli.evaluate import StepOption, WeightsOption
from lmscale.cli.options import JsonOption, RunArgument, echo_json, find_file_problems
from lmscale.config.kinds import Ability
from lmscale.config.training import Weights
from lmscale.errors import ConfigError
from lmscale.files.printing import say, say_lines

if TYPE_CHECKING:
    from lmscale.evaluation.found import FoundRun
    from lmscale.evaluation.run import LoadedRun
    from lmscale.views.looks import Look
    from lmscale.views.sides import Sides, Speller

app = typer.Typer(help="Look inside a trained model.", no_args_is_help=True)

TextOption = Annotated[str, typer.Option(help="The text that the model reads.")]
AnswerOption = Annotated[
    str | None,
    typer.Option(
        help="What follows the text, or of a model that reads one text and writes another what it "
        "writes; default there: its own likeliest answer."
    ),
]
PiecesOption = Annotated[
    bool, typer.Option("--pieces", help="By the tokenizer's pieces, not by words.")
]
_LONGEST_ANSWER = 32  # tokens that a model writes by itself, to be looked at


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A checkpoint that was found, and the text as its model reads it."""

    found: FoundRun
    sides: Sides
    speller: Speller

    @property
    def name(self) -> str:
        return f"{self.found.config.run.name}@{self.found.manifest.step}"


@app.command()
def tokens(
    run: RunArgument, text: TextOption, step: StepOption = None, json_: JsonOption = False
) -> None:
    """How a run's model reads a text: each token with its id, and the words that they make."""
    asked = _ask(run, text, None, step=step, weights=None)
    sides = {"reads": asked.sides.read, "text": asked.sides.own}
    there = {name: side for name, side in sides.items() if side is not None}
    if json_:
        echo_json(
            {name: {"ids": side.ids, "tokens": side.shown} for name, side in there.items()},
        )
        return
    say(f"{asked.name}: {len(text.encode()):,} bytes")
    for name, side in there.items():
        words = len(side.group(by_pieces=False))
        say(f"{name}: {len(side.ids):,} tokens, {words:,} words")
        say_lines(
            f"{place:5} {number:7}  {' ' if begins else '·'} {token!r}\n"
            for place, (number, token, begins) in enumerate(
                zip(side.ids, side.shown, side.begins_word, strict=True)
            )
        )


@app.command("next")
def next_(
    run: RunArgument,
    text: TextOption,
    answer: AnswerOption = None,
    top: Annotated[int, typer.Option(min=1, max=1000, help="How many tokens.")] = 10,
    step: StepOption = None,
    weights: WeightsOption = None,
    json_: JsonOption = False,
) -> None:
    """The likeliest next tokens with their probabilities; of a run of masked those of each
    [MASK] in the text.
    """
    from lmscale.views.sides import find_places

    asked = _ask(run, text, answer, step=step, weights=weights)
    find_places(asked.found.config, asked.sides)
    loaded = _load(asked.found)
    from lmscale.views.likely import find_likely

    spell, fills = asked.speller.spell, Ability.BIDIRECTIONAL in loaded.config.model.offers
    rows = find_likely(loaded.model, loaded.config, asked.sides, most=top)
    if json_:
        echo_json([vars(row) | {"tokens": [spell(number) for number in row.ids]} for row in rows])
        return
    for row in rows:
        last = row.place + (not fills)
        before = asked.sides.own.spell(range(max(0, last - 12), last))
        where = "in the place of the mask behind" if fills else "behind"
        say(f"{asked.name}, {where} {before!r}: entropy {row.entropy:.2f} nats")
        for number, share in zip(row.ids, row.probabilities, strict=True):
            bar = "█" * round(40 * share)
            say(f"  {share:7.2%} {number:7}  {spell(number)!r:18} {bar}")


@app.command()
def attention(
    run: RunArgument,
    text: TextOption,
    token: Annotated[
        str | None,
        typer.Option(help="The word that looks, as it is written, or #5 for place 5."),
    ] = None,
    layer: Annotated[
        int | None, typer.Option(min=0, help="One layer with its heads; default: all layers.")
    ] = None,
    part: Annotated[
        str | None,
        typer.Option(
            help="Of a model that reads one text and writes another: read, own (of what it writes) "
            "or cross, the default."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also a picture: a .svg or .html file.")
    ] = None,
    answer: AnswerOption = None,
    pieces: PiecesOption = False,
    top: Annotated[int, typer.Option(min=1, max=1000, help="How many words, of each.")] = 8,
    force: Annotated[bool, typer.Option("--force", help="Replace a file at --out.")] = False,
    step: StepOption = None,
    weights: WeightsOption = None,
    json_: JsonOption = False,
) -> None:
    """Which words a word looks at: a table, and with --out a picture. Attention to a word is the
    sum over its tokens, from a word their mean.
    """
    from lmscale.views.looks import PARTS, choose_sides, find_word, name_words

    if part not in (None, *PARTS):
        raise ConfigError(f"--part {part}: give one of {', '.join(PARTS)}.")
    if out is not None:
        _check_picture(out, force=force, run=run)
    asked = _ask(run, text, answer, step=step, weights=weights)
    is_pair = asked.sides.read is not None
    part = part or ("cross" if is_pair else "own")
    looking, _ = choose_sides(asked.sides, part)
    writes = is_pair and answer is None
    if token is not None and (part == "read" or not writes):  # else it may yet be written
        find_word(name_words(looking, by_pieces=pieces), token)
    look = _look(asked, layer=layer, part=part, by_pieces=pieces, writes=writes)
    places = [] if token is None else find_word(look.queries, token)
    if out is not None:
        _draw(look, places[0] if places else None, out, model=asked.name)
    _show(look, asked, places, top=top, as_json=json_)
    if out is not None and not json_:
        say(f"{out}: the picture")


def _ask(
    run: Path, text: str, answer: str | None, *, step: int | None, weights: Weights | None
) -> _Asked:
    """All that is wrong is told before torch is loaded."""
    from lmscale.cli.scoring_ranks import ModelAsked, find_asked
    from lmscale.ranks.ranks import Ranks
    from lmscale.views.sides import Speller, plan_sides

    found = find_asked(ModelAsked(run=run, step=step, weights=weights), Ranks())
    assert found is not None  # of one rank
    config, tokenizer = found.config, found.tokenizer
    sides = plan_sides(config, tokenizer, text, bos_id=found.bos_id, answer=answer or "")
    return _Asked(found=found, sides=sides, speller=Speller(config, tokenizer))


def _load(found: FoundRun) -> LoadedRun:
    """On the CPU: the figures of a text are few, and the same on every machine."""
    from lmscale.files.progress import progress

    with progress("loading the model"):
        import torch

        from lmscale.evaluation.run import load_found

        return load_found(found, device=torch.device("cpu"))


def _look(asked: _Asked, *, layer: int | None, part: str, by_pieces: bool, writes: bool) -> Look:
    """``writes``: the model's own likeliest answer is looked at."""
    from lmscale.views.looks import merge_layers

    loaded = _load(asked.found)
    from lmscale.views.attention import find_attention, write_answer

    sides = asked.sides
    if writes:
        sides = write_answer(loaded.model, loaded.tokenizer, sides, asked.speller, _LONGEST_ANSWER)
    layers = [each for each in find_attention(loaded.model, sides) if each.part == part]
    if layer is not None and layer >= len(layers):
        raise ConfigError(f"--layer {layer}: the model has the layers 0 to {len(layers) - 1}.")
    chosen = layers if layer is None else layers[layer : layer + 1]
    return merge_layers(
        [each.shares_HTS for each in chosen],
        [each.layer for each in chosen],
        sides,
        part=part,
        by_pieces=by_pieces,
    )


def _show(look: Look, asked: _Asked, places: list[int], *, top: int, as_json: bool) -> None:
    from lmscale.views.looks import render_all, render_word

    if as_json:
        shares = look.shares[:, :, places] if places else look.shares
        echo_json(
            {
                "part": look.part,
                "layers": look.layers,
                "looking": [look.queries[p] for p in places] or look.queries,
                "looked_at": look.keys,
                "shares": shares.round(6).tolist(),
            }
        )
        return
    of = f"layer {look.layers[0]}" if len(look.layers) == 1 else f"{len(look.layers)} layers"
    heads = look.shares.shape[1]
    if not places:
        say(f"{asked.name}: what each word looks at, the mean of {of} with {heads} heads each")
        say_lines(f"{line}\n" for line in render_all(look, most=min(top, 5)))
        return
    also = f" (also at {', '.join(f'#{place}' for place in places[1:])})" if places[1:] else ""
    say(
        f"{asked.name}: what #{places[0]} {look.queries[places[0]]}{also} looks at, the mean of "
        f"{of} with {heads} heads each"
    )
    say_lines(f"{line}\n" for line in render_word(look, places[0], most=top))


def _check_picture(out: Path, *, force: bool, run: Path) -> None:
    from lmscale.files.output_folder import check_output_file
    from lmscale.views.attention_picture import is_ours

    if problems := find_file_problems("--out", out, ".svg", ".html"):
        raise ConfigError(problems)
    check_output_file(out, is_ours=is_ours, force=force, source=run)


def _draw(look: Look, place: int | None, out: Path, *, model: str) -> None:
    from lmscale.files.atomic import write_bytes
    from lmscale.views.attention_picture import render_html, render_svg
    from lmscale.views.looks import plan_grids

    is_page = out.suffix == ".html"
    grids = list(plan_grids(look, place, model=model, every_layer=is_page))
    text = render_html(grids, title=model) if is_page else render_svg(grids)
    write_bytes(out, text.encode())
