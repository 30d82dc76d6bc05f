"""What is found out about raw files that nobody has described."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest

from lmscale.config import parse_config
from lmscale.config.corpus import CorpusConfig
from lmscale.corpus import survey, text_files
from lmscale.corpus.build import build_corpus
from lmscale.corpus.documents import load_corpus_manifest
from lmscale.corpus.encodings import guess_encoding
from lmscale.corpus.guess import choose_field
from lmscale.corpus.survey import survey_files
from lmscale.errors import DataError
from lmscale.files import meter

ENGLISH = "The owl flies at night. It hears a mouse under the snow, “quite softly”, and turns. "
SIMPLIFIED = "我们在这里说的是中国的大学生，他们来到了这个地方。"
TRADITIONAL = "我們在這裡說的是中國的大學生，他們來到了這個地方。"
JAPANESE = "これは日本語の文章です。ひらがなとカタカナがあります。"
KOREAN = "이것은 한국어 문장입니다. 우리는 여기에 있습니다."
RUSSIAN = "Сова летает ночью над лесом и полями, а днём спит в дупле старого дуба. "
FRENCH = "La chouette vole la nuit au-dessus des forêts et des champs gelés, cachée l’été. "
# Paragraphs of the kind that a table of Hangul has syllables for, byte by byte.
GB_PARAGRAPHS = [
    "要查看软件包的详细信息，请使用下列命令。",
    "内核模块可以在系统启动时自动加载，也可以手动加载。",
    "目录及文件权限的设置方法与其他系统相同。",
    "用户能够通过镜像站点下载安装光盘映像文件。",
]
TEXTS = [f"{ENGLISH} {number}" for number in range(40)]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (ENGLISH, "utf-8"),
        (SIMPLIFIED, "utf-8"),
        ("", "utf-8"),
        (SIMPLIFIED, "gb18030"),
        # By the larger table of each, which a file under its name may need further on.
        (TRADITIONAL, "big5hkscs"),
        (JAPANESE, "cp932"),
        (JAPANESE, "euc_jp"),
        (KOREAN, "cp949"),
        (RUSSIAN, "koi8-r"),
        (RUSSIAN, "cp1251"),
        (FRENCH, "cp1252"),
        (SIMPLIFIED, "utf-16"),
    ],
)
def test_the_encoding_is_the_one_that_gives_the_text(text, encoding):
    content = (text * 20).encode(encoding)
    assert guess_encoding(content) == encoding
    if encoding not in ("utf-16", "cp1252"):  # a character that is cut is no mistake
        assert guess_encoding(content[:-1]) == encoding


@pytest.mark.parametrize("text", GB_PARAGRAPHS)
def test_a_paragraph_of_chinese_is_not_taken_for_korean(text):
    assert guess_encoding(text.encode("gb18030")) == "gb18030"


def test_a_short_file_is_read_as_most_of_its_folder_and_that_is_told(tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.txt").write_bytes((SIMPLIFIED * (9 + number)).encode("gb18030"))
    (tmp_path / "short.txt").write_bytes("한국".encode("euc_kr") + b" x\n")
    (tmp_path / "long.txt").write_bytes((KOREAN * 20).encode("euc_kr"))
    found = survey_files([f"{tmp_path}/*.txt"])
    assert found.inputs == (
        {"files": f"{tmp_path}/*.txt", "encoding": "gb18030"},
        {"files": f"{tmp_path}/long.txt", "encoding": "cp949"},
    )
    assert found.notes[0] == (
        f"1 short file read as gb18030, as most of the folder: {tmp_path}/short.txt, say, which "
        "alone looks like UTF-8 with wrong bytes"
    )


def test_a_few_wrong_bytes_of_many_are_no_other_encoding():
    content = (SIMPLIFIED * 50).encode()
    assert guess_encoding(content[:500] + b"\xff\xe9" + content[501:]) == "utf-8"
    assert guess_encoding(ENGLISH.encode("utf-16-le") * 9) == "utf-16-le"


def test_bytes_that_no_table_has_are_latin_1():
    assert guess_encoding(b"caf\xe9 \x81 \x8d \xe8") == "latin-1"


@pytest.mark.parametrize(
    ("records", "field"),
    [
        ([{"id": "1", "text": "a"}], "text"),
        ([{"title": "a much longer title", "content": "b"}], "content"),
        ([{"url": "http://x", "novel": "It was a dark and stormy night"}], "novel"),
        ([{"n": 1, "body": None}, {"n": 2, "body": "x"}], "body"),
        ([{"text": "a"}, {"text": None}, {"id": "a long id of nobody"}, {"text": "b"}], "text"),
        ([{"note": "x", "long": "a longer text"}, {"long": "y"}, {"long": "z"}], "long"),
        ([{"n": 1}], None),
        ([{"url": "https://a-long-host.example/page", "note": "two words"}], "note"),
        ([{"url": "https://example/a", "sha": "ab12", "path": "x/y.txt"}], None),
    ],
)
def test_the_field_is_a_usual_name_or_that_of_the_longest_texts(records, field):
    assert choose_field(records) == field


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content.encode())
            tar.addfile(member, io.BytesIO(content.encode()))


@pytest.mark.parametrize("first", ["txt", "json"])
def test_of_a_tar_with_txt_the_json_beside_it_is_no_text(tmp_path, first):
    members = {}
    for number, text in enumerate(TEXTS[:10]):
        beside = {"caption": f"a long caption of some words {text}", "url": f"https://x/{number}"}
        pair = {"txt": text, "json": json.dumps(beside)}
        members |= {f"{number}.{key}": pair[key] for key in sorted(pair, reverse=first == "txt")}
    write_tar(tmp_path / "a.tar", members)
    found = survey_files([str(tmp_path / "a.tar")])
    assert found.inputs == (str(tmp_path / "a.tar"),) and found.documents == 10
    assert ENGLISH in found.sample and "caption" not in found.sample


def test_a_key_that_no_text_is_known_by_is_told_with_what_it_holds(tmp_path):
    rows = [json.dumps({"url": "https://x/1", "novel": text}) for text in TEXTS]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    [note] = survey_files([str(tmp_path / "a.jsonl")]).notes
    assert "under the key 'novel'" in note and "such as 'The owl flies at night." in note


def write_formats(folder):
    """The same texts in every format, each source of its own; and how many documents they are."""
    import pyarrow
    import pyarrow.parquet

    for name in ("plain", "pages", "lines", "array", "table", "tars", "chinese"):
        (folder / name).mkdir(parents=True)
    for number, text in enumerate(TEXTS):
        (folder / f"plain/{number}.txt").write_text(f"plain {text}")
        (folder / f"pages/{number}.html").write_text(f"<p>pages <b>{text}</b></p>")
    rows = [{"id": str(number), "content": f"lines {t}"} for number, t in enumerate(TEXTS)]
    with gzip.open(folder / "lines/a.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    (folder / "array/a.json").write_text(json.dumps([{"text": f"array {t}"} for t in TEXTS]))
    table = pyarrow.table({"n": range(len(TEXTS)), "body": [f"table {t}" for t in TEXTS]})
    pyarrow.parquet.write_table(table, folder / "table/a.parquet")
    with tarfile.open(folder / "tars/a.tar", "w") as tar:
        for number, text in enumerate(TEXTS):
            content = f"tars {text}".encode()
            member = tarfile.TarInfo(f"{number}.txt")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (folder / "chinese/a.txt").write_bytes((SIMPLIFIED * 200).encode("gb18030"))
    return 6 * len(TEXTS) + 1


def test_what_is_found_in_files_of_every_format_builds_a_corpus_of_just_that(tmp_path):
    documents = write_formats(tmp_path / "raw")
    (tmp_path / "raw/plain/notes.xyz").write_bytes(b"\0")
    survey = survey_files([str(tmp_path / "raw")])
    assert survey.is_exact and survey.documents == documents == len(survey.digests)
    unknown, encoding = survey.notes
    assert unknown == "passed over: 1 file (.xyz), which lmscale does not know"
    assert encoding.startswith("1 file not of UTF-8, read as gb18030: ")
    base = f"{tmp_path}/raw"
    assert survey.inputs[0] == f"{base}/**/*.html"
    assert {"files": f"{base}/**/*.jsonl.gz", "text_field": "content"} in survey.inputs
    assert {"files": f"{base}/**/*.parquet", "text_field": "body"} in survey.inputs
    assert {"files": f"{base}/chinese/a.txt", "encoding": "gb18030"} in survey.inputs
    section = {
        "run": {"name": "a"},
        "corpus": {
            "folder": str(tmp_path / "corpus"),
            "heldout_fraction": 0.1,
            "sources": {"all": {"inputs": survey.inputs}},
        },
    }
    build_corpus(parse_config(json.dumps(section)).corpus, None, processes=1)
    manifest = load_corpus_manifest(tmp_path / "corpus" / "all")
    assert manifest.documents("train") + manifest.documents("heldout") == documents
    assert manifest.documents("heldout") == survey.count_heldout(0.1)
    text_bytes = manifest.text_bytes("train") + manifest.text_bytes("heldout")
    assert text_bytes == pytest.approx(survey.text_bytes, rel=0.01)


def test_a_pattern_of_ones_own_is_kept_and_files_of_another_encoding_stand_apart(tmp_path):
    for name, encoding in (("a", "utf-8"), ("b", "gb18030"), ("c", "utf-8")):
        (tmp_path / f"{name}.txt").write_bytes((SIMPLIFIED * 20).encode(encoding))
    assert survey_files([f"{tmp_path}/[ac].txt"]).inputs == (f"{tmp_path}/[ac].txt",)
    assert survey_files([f"{tmp_path}/*.txt"]).inputs == (
        f"{tmp_path}/*.txt",
        {"files": f"{tmp_path}/b.txt", "encoding": "gb18030"},
    )


def test_a_file_without_a_known_ending_is_text_if_it_was_named_and_holds_text(tmp_path):
    (tmp_path / "notes.log").write_text(ENGLISH)
    (tmp_path / "image.raw").write_bytes(b"\x89\0\0")
    file = f"{tmp_path}/notes.log"
    assert survey_files([file]).inputs == ({"files": file, "format": "text"},)
    with pytest.raises(DataError, match="no file that can be read"):
        survey_files([f"{tmp_path}/image.raw"])


def test_files_of_which_few_lines_hold_text_are_told_together_with_what_the_others_hold(tmp_path):
    lines = ['{"text": "good"}', '{"text": 5}', "", '{"text": null}', "oops", '{"id": 1}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (tmp_path / "b.jsonl").write_text('{"n": 1}\n{"n": 2}\n')
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": ENGLISH}))
    with pytest.raises(DataError) as caught:
        survey_files([f"{tmp_path}/*.jsonl"])
    assert list(caught.value.problems) == [
        f"{tmp_path}/a.jsonl: the key 'text' holds text in 1 of 5 lines; line 2 holds a number, "
        "line 4 holds null, line 5 is no JSON object and 1 more.",
        f"{tmp_path}/b.jsonl: no key holds text; its keys: n.",
    ]


@pytest.mark.parametrize(
    ("head", "what"), [(b"PK\x03\x04", "a zip"), (b"PAR1", "a Parquet"), (b"%PDF-1.7", "a PDF")]
)
def test_a_file_of_another_kind_that_is_named_as_text_is_told_as_that(tmp_path, head, what):
    (tmp_path / "a.txt").write_bytes(head + b"\xe9\xff\x80 " * 40)
    with pytest.raises(DataError) as caught:
        survey_files([f"{tmp_path}/a.txt"])
    assert f"a.txt: is {what} file by its first bytes, and no text" in str(caught.value)
    tree = {"folder": str(tmp_path / "corpus"), "sources": {"a": {"inputs": [f"{tmp_path}/a.txt"]}}}
    with pytest.raises(DataError) as caught:
        build_corpus(CorpusConfig.model_validate(tree), None, processes=1)
    assert f"it is {what} file by its first bytes" in str(caught.value)


def test_broken_records_are_counted_and_told(tmp_path):
    lines = [json.dumps({"text": text}) for text in TEXTS]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "{oops", lines[0]]))
    wrong = "\n".join(f'{{"text": "{text}"}}' for text in TEXTS).encode() + b"\n\xff\n"
    (tmp_path / "b.jsonl").write_bytes(wrong)
    assert "corpus.sources.owls." in survey_files([f"{tmp_path}/b.jsonl"], "owls").notes[0]
    survey = survey_files([f"{tmp_path}/a.jsonl"])
    assert survey.documents == len(TEXTS) + 1 and len(survey.digests) == len(TEXTS)
    assert "1 broken record, at which corpus build stops" in survey.notes[0]
    assert "a.jsonl:41: not JSON" in survey.notes[0]


def test_of_much_text_the_rest_is_estimated_by_what_was_read(tmp_path, monkeypatch):
    for number in range(8):
        rows = (json.dumps({"text": f"{number} {n} {ENGLISH}"}) for n in range(200))
        (tmp_path / f"{number}.jsonl").write_text("\n".join(rows))
    whole = survey_files([f"{tmp_path}/*.jsonl"])
    assert whole.is_exact and whole.documents == 1600
    monkeypatch.setattr("lmscale.corpus.survey.ALL_BYTES", 50_000)
    part = survey_files([f"{tmp_path}/*.jsonl"])
    assert not part.is_exact
    # By the ratio of text to file of the files that were read, which is the same in all.
    assert part.text_bytes == pytest.approx(whole.text_bytes, rel=0.05)
    assert part.documents == pytest.approx(whole.documents, rel=0.1)
    monkeypatch.setattr("lmscale.corpus.survey.FILE_BYTES", 5_000)
    cut = survey_files([f"{tmp_path}/0.jsonl"])
    assert not cut.is_exact and cut.documents == pytest.approx(200, rel=0.3)


@pytest.mark.parametrize(
    ("word", "said"),
    [("none/*.txt", "no such file"), ("empty", "no such file")],
)
def test_a_word_that_names_nothing_is_told(tmp_path, monkeypatch, word, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=said):
        survey_files([word])


def test_what_lies_behind_a_link_to_a_folder_is_found_and_once(tmp_path):
    for name in ("raw/a.txt", "elsewhere/b.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(f"{name} {ENGLISH}")
    (tmp_path / "raw/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/circle").symlink_to(tmp_path / "raw")
    assert survey_files([str(tmp_path / "raw")]).documents == 2


def test_a_large_file_that_is_one_document_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "FILE_BYTES", 10_000)
    monkeypatch.setattr(text_files, "PIECE_BYTES", 4096)
    read = []
    monkeypatch.setattr(meter, "count", read.append)
    (tmp_path / "a.txt").write_text(ENGLISH * 5000)
    found = survey_files([str(tmp_path / "a.txt")])
    assert (found.documents, found.is_exact) == (1, False)
    assert 300_000 < found.text_bytes < 500_000
    assert sum(read) < 40_000


def test_a_file_that_is_not_looked_at_has_nothing_of_those_of_another_ending(tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "LOOKED_AT", 2)
    for number in range(30):
        (tmp_path / f"{number:02}.txt").write_bytes((SIMPLIFIED * 9).encode("gb18030"))
    for number in range(9):
        (tmp_path / f"{number}.jsonl").write_text(json.dumps({"content": f"{number} {SIMPLIFIED}"}))
    found = survey_files([f"{tmp_path}/*.txt", f"{tmp_path}/*.jsonl"])
    assert found.inputs == (
        {"files": f"{tmp_path}/*.jsonl", "text_field": "content"},
        {"files": f"{tmp_path}/*.txt", "encoding": "gb18030"},
    )
    assert [note.split(":")[0] for note in found.notes] == [
        "30 files not of UTF-8, read as gb18030"
    ]


def test_one_file_of_many_that_is_otherwise_is_named_and_those_of_other_folders_by_their_own(
    tmp_path, monkeypatch
):
    for number in range(9):
        for folder in ("a", "b[1]"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{number}.txt").write_text(f"{folder}{number} {ENGLISH}")
    (tmp_path / "a/0.txt").write_bytes((SIMPLIFIED * 9).encode("gb18030"))
    found = survey_files([str(tmp_path)])
    own = {"files": f"{tmp_path}/a/0.txt", "encoding": "gb18030"}
    assert found.inputs == (f"{tmp_path}/**/*.txt", own) and found.documents == 18
    for number in range(1, 9):
        (tmp_path / f"a/{number}.txt").write_bytes((SIMPLIFIED * number).encode("gb18030"))
    (tmp_path / "a/0.txt").write_text(ENGLISH)
    assert survey_files([str(tmp_path)]).inputs == (
        {"files": f"{tmp_path}/a/*.txt", "encoding": "gb18030"},
        f"{tmp_path}/a/0.txt",
        f"{tmp_path}/b[[]1]/*.txt",
    )
    monkeypatch.setattr(survey, "MOST_INPUTS", 2)
    with pytest.raises(DataError, match=r"3 inputs would .* are 1 encoding gb18030\)\."):
        survey_files([str(tmp_path)])


def test_files_that_a_shell_made_of_a_pattern_are_named_by_one_again(tmp_path):
    paths = [str(tmp_path / f"{number}.txt") for number in range(12)]
    for path in paths:
        Path(path).write_text(f"{path} {ENGLISH}")
    assert survey_files(paths).inputs == (f"{tmp_path}/*.txt",)
    assert survey_files(paths[:11]).inputs == tuple(sorted(paths[:11]))  # and no other
    assert survey_files(paths[:1]).inputs == tuple(paths[:1])
