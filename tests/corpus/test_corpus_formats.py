"""What a file is read as: by its ending, or by settings of its own; markup, and arrays of JSON."""

from __future__ import annotations

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmscale.cli.corpus import _render
from lmscale.config import RunConfig
from lmscale.config.corpus import CorpusConfig, CorpusSourceConfig
from lmscale.config.load import validate_tree
from lmscale.corpus.build import _builder, build_corpus
from lmscale.corpus.documents import load_corpus_manifest, read_documents
from lmscale.corpus.inputs import find_inputs
from lmscale.corpus.survey import survey_files
from lmscale.corpus.text_files import cut_array
from lmscale.errors import ConfigError, DataError

PAGE = "<html><head><title>x</title></head><body><p>A &lt;b&gt; page</p></body></html>"
CODE = "#include <stdio.h>\nvector<int> x;"


def build(folder, sources: dict, **settings):
    """The manifests and the texts of each source, held out or not."""
    tree = {"folder": str(folder / "out"), "sources": sources, "heldout_fraction": 0, **settings}
    build_corpus(CorpusConfig.model_validate(tree))
    folders = {name: folder / "out" / name for name in sources}
    manifests = {name: load_corpus_manifest(place) for name, place in folders.items()}
    return manifests, {n: [*read_documents(place / "train")] for n, place in folders.items()}


def test_columns_that_tables_lack_are_told_of_all_files_before_any_is_cleaned(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "read first"}\n')
    for name in "bcd":
        table = pyarrow.table({"text" if name == "d" else "other": [f"text {name}"]})
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet")
    sources = {
        "one": {
            "inputs": [f"{tmp_path}/a.jsonl", f"{tmp_path}/[bc].parquet"],
            "text_field": "body",
        },
        "two": {"inputs": [f"{tmp_path}/d.parquet"], "text_field": "words"},
    }
    with pytest.raises(DataError) as caught:
        build(tmp_path, sources, part_bytes=1)
    assert caught.value.problems == (
        f"{tmp_path}/b.parquet, {tmp_path}/c.parquet: no column 'body'; its columns: other. Set "
        "corpus.sources.one.text_field, or for these files alone {files: PATTERN, text_field: "
        "NAME}.",
        f"{tmp_path}/d.parquet: no column 'words'; its columns: text. Set "
        "corpus.sources.two.text_field.",
    )
    assert not list((tmp_path / "out").rglob("part.json"))


META = "<html><head><meta {}></head><body>“Größe” 中文 Яма</body></html>"
PAGES = [
    ('charset="ISO-8859-1"', "cp1252"),
    ("charset=latin1", "cp1252"),
    ('http-equiv="Content-Type" content="text/html; charset=GB2312"', "gb18030"),
    ("charset=Shift_JIS", "cp932"),
    ("charset=utf-16", "utf-8"),
    ("charset=UTF8", "utf-8"),
    ("charset=nothing-known", "utf-8"),
    *(
        (f"charset={none}", "utf-8")
        for none in ("hex", "utf-32", "cp037", "unicode_escape", "idna")
    ),
    ('name="description" content="charset=big5"', "utf-8"),
    ('name=x><!-- <meta charset=big5> --><meta charset="windows-1251"', "cp1251"),
    ("charset=big5", "utf-16"),  # whose mark goes first
]


@pytest.mark.parametrize(("meta", "encoding"), PAGES)
def test_a_page_is_read_by_the_encoding_that_it_declares(tmp_path, meta, encoding):
    content = META.format(meta).encode(encoding, "ignore")
    expected = "“Größe” 中文 Яма".encode(encoding, "ignore").decode(encoding).strip()
    (tmp_path / "a.html").write_bytes(content)
    manifests, texts = build(tmp_path, {"s": {"inputs": [f"{tmp_path}/*.html"]}})
    assert texts["s"] == [expected]
    assert manifests["s"].made_by["encoding"] == "auto"  # not that of one built by an older rule
    survey = survey_files([f"{tmp_path}/*.html"])
    assert survey.inputs == (f"{tmp_path}/*.html",)
    assert survey.sample == expected
    assert not survey.notes


def test_a_page_may_declare_in_xml_and_a_setting_overrules_what_is_declared(tmp_path):
    page, russian = f"{tmp_path}/a.xhtml", "Привет".encode("koi8-r")
    (tmp_path / "a.xhtml").write_bytes(b'<?xml version="1.0" encoding="koi8-r"?><p>' + russian)
    sources = {"s": {"inputs": [page]}, "t": {"inputs": [{"files": page, "encoding": "cp1251"}]}}
    texts = build(tmp_path, sources)[1]
    assert [texts["s"], texts["t"]] == [["Привет"], [russian.decode("cp1251")]]
    (tmp_path / "b.html").write_bytes(b"<meta charset=iso-8859-1><p>a\x81b")
    with pytest.raises(DataError) as caught:
        build(tmp_path, {"u": {"inputs": [f"{tmp_path}/b.html"]}})
    assert (
        "b.html: not iso-8859-1, which is cp1252, as it declares; corpus.sources.u.encoding would "
        "overrule that: after 29 characters comes the byte 0x81."
    ) in str(caught.value)


def test_a_corpus_without_pages_is_the_one_of_the_encoding_utf8():
    made_by = [
        CorpusSourceConfig(inputs=("a.txt",), **own).made_by()["encoding"]
        for own in ({}, {"encoding": "utf-8"}, {"encoding": "cp1252"})
    ]
    assert made_by == ["utf-8", "utf-8", "cp1252"]


def test_pages_lose_their_markup_and_nothing_else_does(tmp_path):
    for name, text in (("a.html", PAGE), ("b.md", CODE), ("c.rst", CODE + "!"), ("d.txt", "d <x>")):
        (tmp_path / name).write_text(text)
    (tmp_path / "e.htm.gz").write_bytes(gzip.compress(b"<p>packed</p>"))
    manifests, texts = build(tmp_path, {"s": {"inputs": [f"{tmp_path}/*.*"]}})
    assert texts["s"] == ["A <b> page", CODE, CODE + "!", "d <x>", "packed"]
    removed = len(PAGE) - len("A <b> page") + len("<p></p>")
    assert manifests["s"].markup_chars == removed
    assert f"markup removed: {removed} characters" in _render(manifests["s"])


def test_a_pattern_may_have_settings_of_its_own(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"page": "<i>one</i>"}))
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "<i>two</i>"}))
    (tmp_path / "c.log").write_bytes("drei\fvïer".encode("latin-1"))
    special = {"files": f"{tmp_path}/a.jsonl", "text_field": "page", "strip_html": True}
    logs = {"files": f"{tmp_path}/*.log", "format": "text", "separator": "\f"}
    logs["encoding"] = "latin-1"
    source = {"inputs": [special, f"{tmp_path}/b.jsonl", logs]}
    texts = build(tmp_path, {"s": source, "t": {**source, "strip_html": True}})[1]
    assert texts["s"] == ["one", "<i>two</i>", "drei", "vïer"]
    assert texts["t"] == ["one", "two", "drei", "vïer"]
    dumped = CorpusSourceConfig.model_validate(source).model_dump(mode="json")["inputs"]
    assert dumped == source["inputs"]
    for inputs in ([special, f"{tmp_path}/*.jsonl"], [f"{tmp_path}/*.jsonl", special]):
        config = CorpusConfig(sources={"s": CorpusSourceConfig.model_validate({"inputs": inputs})})
        fields = [file.rules.text_field for file in find_inputs(config)["s"]]
        assert fields == ["page", "text"]  # the path comes before the pattern
    special["files"] = f"{tmp_path}/[a].jsonl"
    both = {"s": {"inputs": [special, f"{tmp_path}/*.jsonl"]}}
    with pytest.raises(DataError, match=r"a\.jsonl is also of inputs\[1\] .* other settings"):
        build(tmp_path, both)


def test_other_settings_of_a_pattern_build_the_corpus_anew(tmp_path):
    (tmp_path / "a.txt").write_text("one\ftwo")
    files = f"{tmp_path}/a.txt"
    assert build(tmp_path, {"s": {"inputs": [files]}})[1]["s"] == ["one\ftwo"]
    tree = {"inputs": [{"files": files, "separator": "\f"}]}
    with pytest.raises(DataError, match=r"other settings \(inputs\)"):
        build(tmp_path, {"s": tree})


def test_a_json_file_holds_an_array_or_lines(tmp_path):
    (tmp_path / "a.json").write_text(
        '\ufeff \n[{"text": "甲, [乙]"},\n {"text": "b \\" ]", "n": [1]}]\n'
    )
    (tmp_path / "b.json").write_text('{"text": "c"}\n{"text": "d"}\n')
    (tmp_path / "c.json").write_text("[]")
    (tmp_path / "d.json").write_text('[{"text": "e"}, 3, {"other": "f"}]')
    source = {"inputs": [f"{tmp_path}/*.json"], "max_bad_records": 2}
    manifests, texts = build(tmp_path, {"s": source})
    assert texts["s"] == ["甲, [乙]", 'b " ]', "c", "d", "e"]
    assert manifests["s"].dropped == {"broken": 2}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[{"text": "a"}, {"te', "its array does not end"),
        ('{\n "text": "a"\n}\n', r"neither an array of objects nor an object a line.*'{'"),
        ('[{"text": "a"}] [1]', "something follows behind the array"),
        ('[{"text": "a"},, {"text": "b"}]', "item 2: not JSON"),
        ('[{"text": "a"} {"text": "b"}]', "item 1: not JSON"),
    ],
)
def test_what_is_no_array_is_named(tmp_path, text, problem):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=problem):
        build(tmp_path, {"s": {"inputs": [f"{tmp_path}/a.json"]}})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='ab"\\[]{},: 中\n', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(st.lists(VALUES, max_size=5), st.booleans(), st.integers(1, 7))
def test_an_array_s_items_are_cut_wherever_its_pieces_end(values, is_indented, size):
    text = json.dumps(values, ensure_ascii=False, indent=1 if is_indented else None)[1:]
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    items = [*cut_array(pieces, 10_000)]
    assert [json.loads(item) for item in items if item is not None] == values
    limit = max([0, *(len(item or "") for item in items)]) - 1
    if limit > 0:
        assert [item is None for item in cut_array(pieces, limit)] == [
            len(item or "") > limit for item in items
        ]


def test_files_of_unknown_endings_are_one_line_an_ending(tmp_path):
    for number in range(7):
        (tmp_path / f"{number}.doc").write_text("x")
        (tmp_path / f"{number}.pdf").write_text("x")
    (tmp_path / "table.csv").write_text("text\nx\n")
    with pytest.raises(DataError) as caught:
        build(tmp_path, {"s": {"inputs": [f"{tmp_path}/*.*"]}})
    table, doc, pdf = sorted(caught.value.problems, key=lambda told: told.partition("(.")[2])
    assert "0.doc" in doc and "and 4 more: unknown ending (.doc)" in doc and "(.pdf)" in pdf
    assert "format: text" in doc and "format: text" not in table and "to_parquet" in table


def test_an_input_s_own_settings_are_looked_at_as_the_source_s_are(tmp_path):
    pairs = {"text_field": "a", "target_field": "b"}
    inputs = [{"files": "x.jsonl", "text_field": "b"}, {"files": "y.txt", "format": "text"}]
    with pytest.raises(ValueError, match=r"x\.jsonl: text_field = 'b', target_field = 'b'") as pair:
        CorpusSourceConfig.model_validate({"inputs": inputs, **pairs})
    assert "y.txt: format: text has no fields" in str(pair.value)
    tags = {"tags_field": "t", "label_names": ["A"]}
    marked = [{"files": "x.jsonl", "strip_html": True}]
    with pytest.raises(ValueError, match=r"x\.jsonl: strip_html: it could remove words"):
        CorpusSourceConfig.model_validate({"inputs": marked, **tags})
    with pytest.raises(ValueError, match="strip_html: s has tags of words"):
        source = {"inputs": ["x.jsonl"], **tags}
        CorpusConfig.model_validate({"sources": {"s": source}, "strip_html": True})
    (tmp_path / "a.log").write_bytes(b"\xff")
    own = {"files": f"{tmp_path}/a.log", "format": "text", "encoding": "ascii"}
    with pytest.raises(DataError, match=r"not ascii \(corpus\.sources\.s\.inputs: encoding\)"):
        build(tmp_path, {"s": {"inputs": [own]}})


def test_a_part_is_known_by_its_inputs_settings_too(tmp_path):
    (tmp_path / "a.txt").write_text("one")

    def part_of(source_input):
        sources = {"s": {"inputs": [source_input]}}
        config = CorpusConfig.model_validate({"folder": str(tmp_path), "sources": sources})
        return _builder(config, 1).targets[0].units[0].folder.name

    files = f"{tmp_path}/a.txt"
    assert part_of(files) == part_of({"files": files}) == part_of(f"{tmp_path}/*.txt")
    assert part_of(files) != part_of({"files": files, "separator": "\f"})


def test_a_wrong_key_of_a_pattern_is_told_with_those_that_it_may_have():
    tree = {"run": {"name": "x"}, "corpus": {"sources": {"s": {"inputs": [{"file": "a"}]}}}}
    with pytest.raises(ConfigError) as caught:
        validate_tree(RunConfig, tree, name="x.yaml")
    told = str(caught.value)
    assert "corpus.sources.s.inputs.0.file: unknown key. Did you mean files?" in told
    tree["corpus"]["sources"]["s"]["inputs"] = [{"files": "a", "zzz": 1}]
    with pytest.raises(ConfigError, match="Known here: files, format, text_field, encoding"):
        validate_tree(RunConfig, tree, name="x.yaml")
