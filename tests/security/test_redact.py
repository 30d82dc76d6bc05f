"""What is recognised as a secret, and what is left as it is."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmscale.files.redact import (
    HIDDEN,
    find_url_secrets,
    may_be_secret,
    names_secret,
    printable,
    redact,
    redact_command,
)

S = "s3cr3tVALUE0123456789"  # what may never be left over

CAUGHT = [
    f"s3://AKIDEXAMPLE:{S}@bucket/run",
    f"s3://AKIDEXAMPLE:a/b+{S}/c@bucket/run",
    f"https://user:{S}@host:8080/path?x=1",
    f"https://{S}@github.com/me/lmscale.git",
    f"git clone 'https://oauth2:{S}@gitlab.com/me/x.git'",
    f"postgres://user:p@ss/{S}@host/db",
    f"s3://key:{S}?{S}@bucket/x",
    f"OSError: [Errno 5] https://user:{S}@host/x: [Errno 5] again https://user:{S}@host/y",
    f"https://b.s3.amazonaws.com/k?X-Amz-Date=1&X-Amz-Credential={S}%2F1&x=2",
    f"https://b.s3.amazonaws.com/k?X-Amz-Signature={S}",
    f"https://b.s3.amazonaws.com/k?AWSAccessKeyId={S}&Expires=1",
    f"https://a.blob.core.windows.net/c/x?sv=2024&sig={S}%3D&se=2027",
    f"https://storage.googleapis.com/b/k?X-Goog-Signature={S}",
    f"https://host/x?access_token={S}",
    f"https://host/x?user=me&pass={S}",
    f"HF_TOKEN={S}",
    f"export WANDB_API_KEY='{S}'",
    f"AWS_SECRET_ACCESS_KEY: {S}",
    f"DB_PASS={S}",
    f"MYSQL_PWD={S} mysql -u me",
    f"export PGPASSWORD={S}",
    f'{{"api_key": "{S}", "x": 1}}',
    f"db_password: {S}",
    f"clientsecret: {S}",
    f"--api-key={S}",
    f"srun --container-env=HF_TOKEN={S}",
    f"Authorization: Bearer {S}",
    f"authorization: basic {S}==",
    f"curl -H 'Authorization: Token {S}' https://host/x",
    "aws_secret_access_key=wJalrXUtnFEMI/K7MDENG/s3cr3tVALUE0123456789",
    f"+aws_secret_access_key = {S}/{S}",
    f"connection to host=db password={S}, user=me failed",
    f"{{'password': 'two words {S}', 'user': 'me'}}",
    f"DefaultEndpointsProtocol=https;AccountName=x;AccountKey={S}+/==;EndpointSuffix=core",
    f"tracker.api_key={S}",
    f'+client.password = "{S}"',
    f"-spring.datasource.password={S}",
    f'{{"a.b.client_secret": "{S}"}}',
    f"settings.HF_TOKEN = '{S}'",
    f"--tracker.token={S}",
    f"{'long.' * 15}password: {S}",
    f"nhc --token {S}",
    f"wandb login --token  '{S}' && true",
    f"java -password {S} -jar x.jar",
    f"x --tracker.api_key {S}",
    f"Cookie: sid={S}; id=2",
    f"curl -H 'Set-Cookie: sid={S}; Path=/' https://host/x",
    f"PASS={S}",
    f"ghp_{S}{S}",
    f"hf_{S}{S}",
]

LEFT = [
    "train/tokens 12,000, max_tokens=2048, MAX_TOKENS=123456789",
    "tokenizer.folder=data/tokenizer tokenizer: data/tokenizer-of-mine-2026",
    "sorted(rows, key=lambda row: row.step)",
    'sort_key: str = "position"',
    "HF_TOKEN=$(cat ~/.hf)",
    'export API_KEY="${API_KEY}"',
    "ssh://git@github.com/me/x.git and git@github.com:me/x.git",
    "http://host:8080/path@2/x and user@host.org, s3://bucket/a@b",
    "s3://bucket/run/checkpoints/step-000001000",
    "https://host/list?prefix=a/b&marker=c&max-keys=1000",
    "PWD=/home/someone/lmscale OLDPWD=/home/someone",
    "error: stream.sources.a.shards: there is no such folder",
    "   key   value\nauthor: me",
    "TOKEN_COUNT=123456789 --token-count=512 --key-size=4096",
    '{"train/tokens": 123456, "tokenizer": "data/tokenizer-2026", "token": "the"}',
    "tokenizer: {kind: sentencepiece, bos_token: <s>, pad_token: null}",
    "sort_key=position_of_the_first_token, key=step-000001000-rank-00001",
    "cookies: 3, the author: Ada, authorization is needed",
    "passed_over: 12\npass_rate=0.97531 bypass=tokenizer --passes 3 pass: yes",
    "PASS: tests/train/test_resume.py\nPASS=12 FAIL=0 forward_pass = mlp",
    "self.token = tokens[0]; batch.key: int; password.length=12; model.tokenizer=x",
    'nhc --token "$(cat ~/.t)" --token $TOKEN --token --steps 3 --token | cat; a --token-file x',
    "a cookie: it is sweet, cookie: 3\nthe token abc123def456, the password hunter2",
    "PASSTHROUGH=everything_that_comes passenger: someone-else secretary=ada",
]


@pytest.mark.parametrize("text", CAUGHT)
def test_a_secret_is_hidden(text):
    shown = redact(text)
    assert S not in shown and HIDDEN in shown
    assert redact(shown) == shown, "once is enough"


@pytest.mark.parametrize("text", LEFT)
def test_what_is_no_secret_stays(text):
    assert redact(text) == text


def test_around_a_secret_everything_stays():
    assert (
        redact(f"saving s3://k:{S}@bucket/run failed") == f"saving s3://{HIDDEN}@bucket/run failed"
    )
    assert redact(f"nhc --token {S} --all") == f"nhc --token {HIDDEN} --all"
    assert redact(f"s3://a:{S}@x/y,s3://b:{S}@z/w") == f"s3://{HIDDEN}@x/y,s3://{HIDDEN}@z/w"
    assert redact(f"host=db password={S} user=me") == f"host=db password={HIDDEN} user=me"
    assert redact(f"password: '{S}'  # note") == f"password: '{HIDDEN}'  # note"
    query = f"https://h/x?a=1&sig={S}&b=2"
    assert redact(query) == f"https://h/x?a=1&sig={HIDDEN}&b=2"


def test_a_commands_secret_may_be_a_word_of_its_own():
    command = ["lmscale", "--api-key", S, "--set", "a=1", f"--token={S}", "--token", "--steps"]
    shown = ["lmscale", "--api-key", HIDDEN, "--set", "a=1", f"--token={HIDDEN}"]
    assert redact_command(command) == [*shown, "--token", "--steps"]
    assert redact_command(["mysql", "--pass", S]) == ["mysql", "--pass", HIDDEN]
    dotted = ["--set", "tracker.api_key=abc123def456"]
    assert redact_command(dotted) == ["--set", f"tracker.api_key={HIDDEN}"]


@pytest.mark.parametrize("name", ["HF_TOKEN", "apiKey", "AWSAccessKeyId", "db-password", "X-Auth"])
def test_a_name_of_a_secret(name):
    assert names_secret(name) and may_be_secret(name)


@pytest.mark.parametrize("name", ["MAX_TOKENS", "tokenizer", "keyboard", "author", "pass_rate"])
def test_a_name_that_only_looks_like_one(name):
    assert not names_secret(name)


def test_the_shells_names_of_folders_are_shown():
    assert not may_be_secret("PWD") and not may_be_secret("OLDPWD")


def test_urls_with_credentials_are_found_by_their_key():
    tree = {
        "a": {"b": f"s3://k:{S}@x/y", "c": "s3://x/y"},
        "d": ["x", f"http://h/x?sig={S}"],
        "e": 3,
    }
    assert list(find_url_secrets(tree)) == ["a.b", "d"]


def test_nothing_steers_the_terminal():
    assert printable("\x1b]0;title\x07\x1b[2Ja\tb\nc\rd\x9b1m") == (
        "\\x1b]0;title\\x07\\x1b[2Ja\tb\nc\\x0dd\\x9b1m"
    )


@given(st.text(alphabet="aK:/@=?&\"'- \n.0", max_size=200))
def test_any_text_comes_through_and_a_second_time_changes_nothing(text):
    once = redact(text)
    assert redact(once) == once


@pytest.mark.parametrize(
    "piece",
    ["a://b:x", "a://b:c@", "A", "x" * 63 + "=", 'a="', "?a=b&", "A_KEY=", "password=a", "--pass="]
    + ["a.", "--pass ", "--pass" + " " * 9, "-" + "a." * 63 + " ", "cookie:", "cookie: a"],
)
def test_ten_times_the_text_takes_about_ten_times_as_long_whatever_it_holds(piece):
    seconds = {}
    for size in (10**3, 10**5, 10**6):  # the first is not counted: it warms up
        began = time.process_time()
        redact(piece * (size // len(piece)))
        seconds[size] = time.process_time() - began
    # What grows with the square takes 100 times as long, on any machine.
    assert seconds[10**6] < 40 * seconds[10**5]
