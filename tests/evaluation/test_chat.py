"""A dialogue with a run's model: what it is asked, and a terminal that stays whole."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time

import pytest
from handmade_runs import make_run
from labelled_data import labelled_recipe
from theirs import import_transformers
from tiny_run import tiny_config

from lmscale.cli.main import main
from lmscale.errors import ConfigError
from lmscale.evaluation import generate
from lmscale.evaluation.dialogue import Dialogue, fit_question, parse_line
from lmscale.evaluation.prompts import check_chat
from lmscale.files.reading import seal
from lmscale.shards.manifest import load_manifest
from lmscale.tokenizer.chat_template import ChatTemplate
from lmscale.tokenizer.codec import load_tokenizer
from lmscale.tokenizer.kept_template import load_kept_template

STEERS = re.compile(r"[^\r\n\t\x20-\x7e\xa0-\u2027\u202f-\u2065\u206a-\U0010ffff]")


@pytest.fixture(scope="module")
def run(labelled, tiny_data, tmp_path_factory):
    """The folder of one with weights that nothing has trained, which says anything."""
    folder = tmp_path_factory.mktemp("chat") / "run"
    recipe = labelled_recipe("dialogue", labelled) | {"stream.sequence_length": 4096}
    tokenizer = load_tokenizer(labelled.tokenizer.folder)
    make_run(tiny_config(tiny_data, folder, recipe), tokenizer)
    manifest = load_manifest(f"{labelled.shards.folder}/dialogues/train")
    (folder / "tokenizer/chat_template.jinja").write_text(manifest.chat_template)
    record = {"state": {}, "shards": {}, "bos": tokenizer.bos_id}
    (folder / "stream.json").write_bytes(seal(record))
    return folder


@pytest.fixture
def template(run):
    return ChatTemplate(load_kept_template(run), load_tokenizer(run / "tokenizer"))


@pytest.fixture
def talk(run, monkeypatch, capsys):
    def talk(said, *options, folder=run):
        monkeypatch.setattr(sys, "stdin", io.StringIO(said))
        code = main(["chat", str(folder), "--max-tokens", "8", *options])
        return (code, *capsys.readouterr())

    return talk


def test_through_pipes_every_line_is_a_question_and_the_same_seed_answers_the_same(talk):
    code, out, notes = talk("a\n\n 你好\n", "--seed", "7")
    assert (code, out.count("\n")) == (0, 2) and "ends here by max_tokens" in notes
    assert talk("a\n 你好\n", "--seed", "7")[1] == out != talk("a\n 你好\n", "--seed", "8")[1]


def test_the_model_is_asked_with_all_that_was_said_before(talk, template, monkeypatch):
    asked = []

    class Scripted:
        stopped_by = "eos"

        def __init__(self, model, tokenizer, prompt, sampling, *, max_tokens):
            asked.append(prompt)

    monkeypatch.setattr(generate, "Generation", Scripted)
    monkeypatch.setattr(generate, "stream_answer", lambda asked: iter([" it", " is\x1b"]))
    said = "a\nb\n/system be kind\nc\n/reset\nd\n/nope\n"
    code, out, notes = talk(said, "--system", "you")
    assert (code, out) == (2, "it is\x1b\n" * 4)  # a pipe has it as it is
    assert notes.count("a new dialogue begins") == 2 and "/nope is no command" in notes
    you, answer = (
        {"role": "system", "content": "you"},
        {"role": "assistant", "content": "it is\x1b"},
    )
    kind = {"role": "system", "content": "be kind"}
    a, b, c, d = ({"role": "user", "content": each} for each in "abcd")
    expected = [[you, a], [you, a, answer, b], [kind, c], [kind, d]]
    found = [list(prompt.ids) for prompt in asked]
    assert found == [template.encode_prompt(messages).tolist() for messages in expected]
    assert all(template.end_id in prompt.ends for prompt in asked)


def test_through_pipes_ctrl_c_ends_it_and_no_further_question_is_asked(talk, monkeypatch):
    def interrupt(generation):
        yield "it"
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "stream_answer", interrupt)
    assert talk("a\nb\n")[:2] == (130, "it")


def test_what_is_no_text_is_told_and_the_rest_is_asked(talk):
    code, out, notes = talk("\udcff\na\n")
    assert (code, out) == (2, talk("a\n")[1]) and "bytes that are not UTF-8" in notes


def test_a_model_of_two_sequences_has_no_turns(labelled, tiny_data, template, tmp_path):
    config = tiny_config(tiny_data, tmp_path, labelled_recipe("pairs", labelled))
    with pytest.raises(ConfigError, match="family encoder_decoder, which reads one text and"):
        check_chat(config, template, Dialogue().messages("a"))


def test_what_the_model_no_longer_sees_are_whole_questions_with_their_answers(template):
    turns = tuple((f"question {n}", "answer " * 9) for n in range(6))
    dialogue = Dialogue(system="be kind", turns=turns)
    whole, count = fit_question(template, dialogue, "x", max_positions=4096, reserve=64)
    assert count == 0
    cut, count = fit_question(template, dialogue, "x", max_positions=len(whole.ids) + 9, reserve=10)
    assert count == 1
    assert cut.ids == tuple(template.encode_prompt(dialogue.forget(1).messages("x")).tolist())
    alone, count = fit_question(template, dialogue, "x", max_positions=60, reserve=10)
    assert count == 6 and alone.ids[0] == template.tokenizer.bos_id
    with pytest.raises(ConfigError, match="the model sees 60, 10 of them for its answer"):
        fit_question(template, dialogue, "x" * 99, max_positions=60, reserve=10)


def test_a_line_is_a_command_or_is_said():
    assert parse_line("/system  be kind \n") == ("system", "be kind")
    assert parse_line(" /exit is a word\n") == (None, "/exit is a word")
    with pytest.raises(ConfigError, match="/quit is no command; there are /help, /system"):
        parse_line("/quit")


def test_a_run_without_a_chat_template_says_how_to_make_one(talk, run, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    for path in run.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "tokenizer").unlink()
    (folder / "tokenizer").mkdir()
    for path in (run / "tokenizer").iterdir():
        if path.suffix != ".jinja":
            (folder / "tokenizer" / path.name).symlink_to(path)
    code, out, told = talk("a\n", folder=folder)
    told = " ".join(told.split())
    assert (code, out) == (2, "") and "is no chat model: it has no chat template" in told
    assert "run.init_from" in told and "--template plain" in told
    assert talk("a\n", "--template", "plain", folder=folder)[:2] == talk("a\n")[:2]
    code, _, told = talk("a\n", "--template", "chatml")
    assert code == 2 and "<|im_start|>, <|im_end|>, and the tokenizer has no such" in told


def test_an_export_has_the_template_and_ends_where_an_answer_does(run, template, tmp_path):
    import_transformers()
    assert main(["export", str(run), "--out", str(tmp_path / "hf")]) == 0
    assert (tmp_path / "hf/chat_template.jinja").read_text() == template.text
    generation = json.loads((tmp_path / "hf/generation_config.json").read_text())
    assert generation["eos_token_id"] == template.end_id


class Terminal:
    """``lmscale chat`` in a terminal of its own, as a person has it."""

    def __init__(self, *arguments):
        self.master, slave = pty.openpty()
        self.seen = ""
        # What is read may end inside a character, which readline writes byte by byte.
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lmscale", "chat", *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env=os.environ | {"TERM": "dumb", "LC_ALL": "C.UTF-8"},
        )
        os.close(slave)

    def type(self, text):
        os.write(self.master, text.encode())

    def read(self, seconds):
        """Whether something came up within ``seconds``; :attr:`seen` has it."""
        if not select.select([self.master], [], [], max(0, seconds))[0]:
            return False
        with contextlib.suppress(OSError):  # the other end is closed
            self.seen += self.decoder.decode(os.read(self.master, 2**16))
            return True
        return False

    def wait_for(self, pattern, seconds=240):
        """What came up to the pattern, which is then behind."""
        until = time.monotonic() + seconds
        while not (match := re.search(pattern, self.seen)):
            came = self.read(until - time.monotonic())
            assert came, f"{pattern} did not come: {self.seen[-500:]!r}"
        before, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return before

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)


def test_in_a_terminal_ctrl_c_cuts_an_answer_and_what_is_said_steers_nothing(run):
    terminal = Terminal(run, "--temperature", 9, "--top-p", 1, "--max-tokens", 3000)
    try:
        seen = terminal.wait_for("> ")
        assert "Ctrl-C cuts an answer" in seen
        is_long = False  # such a model ends an answer by chance
        while not is_long:
            terminal.type("你好\n")
            seen += terminal.wait_for(r"你好\r\n")
            seen += terminal.wait_for(r"\n> |[\s\S]{300}")
            is_long = not seen.endswith("\n> ")
        terminal.type("\x03")
        seen += terminal.wait_for("note: the answer was cut[\\s\\S]*> ")
        assert r"\x" in seen  # such as a control character's byte, which is told and not sent
        terminal.type("half a line")
        seen += terminal.wait_for("half a line")
        # Python 3.11's readline looks for signals where select() is interrupted, not before it: one
        # that comes between two characters waits for the next key (readline_until_enter_or_signal).
        while r"Ctrl-D or /exit ends" not in terminal.seen:
            terminal.type("\x03")
            terminal.read(seconds=5)
        # Between two prompts the terminal takes lines by itself, and would keep a Ctrl-D for one.
        seen += terminal.wait_for(r"Ctrl-D or /exit ends[\s\S]*> ")
        terminal.type("/reset\n")
        seen += terminal.wait_for(r"a new dialogue begins[\s\S]*> ")
        terminal.type("\x04")
        assert terminal.process.wait(timeout=300) == 0
    finally:
        terminal.close()
    # A terminal without a name is sent no more than a bell and a step back by readline.
    assert not {*STEERS.findall(seen)} - {"\x07", "\x08"}
