"""The page and the words of a plan, and the command that writes them."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmscale.cli.main import main
from lmscale.plan.page import draw_memory
from lmscale.plan.pictures import COLORS, Axis, Line, Span, render_chart, render_timeline
from lmscale.plan.words import show_bytes, show_seconds

SVG = "{http://www.w3.org/2000/svg}"


def test_the_page_needs_nothing_from_elsewhere_and_shows_every_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "plan.html"
    words = ["plan", "gpt2_124m", "--gpu", "h100-80gb", "--nodes", "4", "--price", "2.5"]
    assert main([*words, "--html", str(path)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^cost +\d", said, re.MULTILINE)
    page = path.read_text()
    assert "<script" not in page and "src=" not in page and "@import" not in page
    assert {*re.findall(r"https?://[^\"]+", page)} == {"http://www.w3.org/2000/svg"}
    for title in ("One step", "Failures", "Loss to expect", "Text"):
        assert f"<h2>{title}</h2>" in page
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) >= 2
    for picture in pictures:
        ElementTree.fromstring(picture)
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["run"]["cost"] == pytest.approx(2.5 * told["run"]["device_hours"])
    spent = sum(sum(phase.values()) for phase in told["step"]["phases"].values())
    assert spent == pytest.approx(told["step"]["seconds"])


def test_a_bar_is_as_long_as_its_parts_and_says_whether_they_fit():
    memory = {"weights": 30 << 30, "activations": 10 << 30, "none": 0}
    bar = ElementTree.fromstring(draw_memory(memory, 80 << 30))
    parts = [each for each in bar.iter(f"{SVG}rect") if each.find(f"{SVG}title") is not None]
    wide = [float(part.get("width", "0")) for part in parts]
    assert wide[0] / wide[1] == pytest.approx(3, rel=0.01)
    said = [each.text for each in bar.iter(f"{SVG}text")]
    assert said[0] == "40.0 GiB of 80.0 GiB: fits"
    over = draw_memory({"weights": 90 << 30}, 80 << 30)
    assert "90.0 GiB of 80.0 GiB: does not fit" in over


@given(
    low=st.floats(1e-3, 1e6),
    wide=st.floats(1.5, 1e6),
    is_log=st.booleans(),
)
def test_marks_of_an_axis_lie_on_it_and_are_few(low: float, wide: float, is_log: bool):
    axis = Axis(title="", low=low, high=low * wide, is_log=is_log)
    ticks = [*axis.ticks()]
    assert len(ticks) <= 14
    assert all(-1e-6 <= axis.share(tick) <= 1 + 1e-6 for tick in ticks)


def test_names_from_elsewhere_are_escaped():
    line = Line(name="<a&b>", points=[(1, 1), (2, 2)], color=COLORS[0])
    axis = Axis(title="<x>", low=1, high=2)
    chart = ElementTree.fromstring(render_chart('"t"', [line], axis, axis))
    assert "<a&b>" in [each.text for each in chart.iter(f"{SVG}text")]


def test_spans_lie_in_the_rows_that_they_name():
    spans = [
        Span(row="a", name="one", begin=0.0, end=1.0, color="#111"),
        Span(row="b", name="two", begin=1.0, end=4.0, color="#222"),
    ]
    drawn = ElementTree.fromstring(render_timeline("t", spans, form=show_seconds))
    parts = [each for each in drawn.iter(f"{SVG}rect") if each.find(f"{SVG}title") is not None]
    assert float(parts[1].get("width", "0")) == pytest.approx(
        3 * float(parts[0].get("width", "0")), rel=0.01
    )
    assert parts[0].get("y") != parts[1].get("y")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "0"),
        (2e-5, "20 µs"),
        (0.25, "250 ms"),
        (90, "90 s"),
        (600, "10 min"),
        (1e6, "11.6 days"),
    ],
)
def test_times_are_said_in_a_unit_that_suits_them(value: float, said: str):
    assert show_seconds(value) == said
    assert show_bytes(2.5e12) == "2.5 TB"
