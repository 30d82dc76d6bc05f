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
    f"https://b.s3.amazonaws.com/k?X-Amz-Date=1&X-Amz-Credential={S}%2F1&x=2",
    f"https://b.s3.amazonaws.com/k?X-Amz-Signature={S}",
    f"https://b.s3.amazonaws.com/k?AWSAccessKeyId={S}&Expires=1",
    f"https://a.blob.core.windows.net/c/x?sv=2024&sig={S}%3D&se=2027",
    f"https://storage.googleapis.com/b/k?X-Goog-Signature={S}",
    f"https://host/x?access_token={S}",
    f"HF_TOKEN={S}",
    f"export WANDB_API_KEY='{S}'",
    f"AWS_SECRET_ACCESS_KEY: {S}",
    f'{{"api_key": "{S}", "x": 1}}',
    f"token = '{S}'",
    f"db_password: {S}",
    f"password={S[:5]} ".replace(S[:5], f"'{S}'"),
    f"--token {S} --steps 3",
    f"--api-key={S}",
    f"Authorization: Bearer {S}",
    f"authorization: basic {S}==",
    f"ghp_{S}{S}",
    f"hf_{S}{S}",
    f"eyJhbGciOiJI.eyJzdWIi{S}.{S}",
    f"-----BEGIN RSA PRIVATE KEY-----\n{S}\n{S}\n-----END RSA PRIVATE KEY-----",
    "aws_secret_access_key=wJalrXUtnFEMI/K7MDENG/s3cr3tVALUE0123456789",
    f"+aws_secret_access_key = {S}/{S}",
    f"password: {S} # the one of the database",
    f"password={S} user=me",
    f"connection to host=db password={S}, user=me failed",
    f"password='two words {S}'",
    f"{{'password': 'two words {S}', 'user': 'me'}}",
    f"hf_token: {S}",
    f"token={S}",
    f"DefaultEndpointsProtocol=https;AccountName=x;AccountKey={S}+/==;EndpointSuffix=core",
    f"curl -H 'Authorization: Token {S}' https://host/x",
    f'curl -H "X-Api-Key: two words {S}"',
    f"Cookie: session={S}; theme=dark",
    f"npm_{S}{S}",
    f"https://hooks.slack.com/services/T000/B000/{S}",
    f"https://discord.com/api/webhooks/1234/{S}",
    f"postgres://user:p@ss/{S}@host/db",
    f"s3://key:{S}?{S}@bucket/x",
    f"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,X\nDEK-Info: A-B,1\n\n{S}\n"
    "-----END RSA PRIVATE KEY-----",
    f"------BEGIN PRIVATE KEY-----\n-{S}\n------END PRIVATE KEY-----",
    f"OSError: [Errno 5] https://user:{S}@host/x: [Errno 5] again https://user:{S}@host/y",
    f"DB_PASS={S}",
    "MYSQL_PWD=s3cr3tVALUE0123456789 mysql -u me",
    f"export PGPASSWORD={S}",
    f"SSHPASS={S} sshpass -e ssh host",
    f"clientsecret: {S}",
    f"mypasswd={S}",
    f"pass: {S}",
    f"+  db_pass: {S}",
    f"connect(user='me', pass='{S}')",
    f"Server=db;Uid=me;Pwd={S};",
    f"https://host/x?user=me&pass={S}",
    f"mysql --pass {S}",
    f"mysql --db-pass={S}",
    f"-----BEGIN PRIVATE KEY-----\n{S}{S}{S}\n{S}",
    f"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,X\nDEK-Info: A-B,1\n\n{S}\n",
    f"+-----BEGIN PRIVATE KEY-----\n+{S}{S}{S}\n+{S}\n@@ -9,3 +9,3 @@\n x = 1",
    f'"-----BEGIN PRIVATE KEY-----\\n{S}{S}{S}\\n{S}',
]

LEFT = [
    "train/tokens 12,000, max_tokens=2048, MAX_TOKENS=123456789",
    "tokenizer.folder=data/tokenizer tokenizer: data/tokenizer-of-mine-2026",
    "sorted(rows, key=lambda row: row.step)",
    'sort_key: str = "position"',
    "secret = load(path)",
    "HF_TOKEN=$(cat ~/.hf)",
    'export API_KEY="${API_KEY}"',
    "ssh://git@github.com/me/x.git and git@github.com:me/x.git",
    "http://host:8080/path@2/x and user@host.org",
    "s3://bucket/run/checkpoints/step-000001000",
    "https://host/list?prefix=a/b&marker=c&max-keys=1000",
    "PWD=/home/someone/lmscale",
    "step 12: loss 3.25, gradient norm 0.5, samples from 2,400",
    "error: stream.sources.a.shards: there is no such folder",
    "   key   value\nauthor: me",
    "-  keep_last: 3\n+  keep_last: 5",
    "tokens: 512",
    "tokens=512 max_token=512 token_count: 123456789012",
    "TOKEN_COUNT=123456789 --token-count 512 --key-size 4096",
    "vocab_size: 32000\nvocab_size=32000 key=value",
    "train/tokens: 1234567890123 train/tokens_per_second=123456.789",
    '{"train/tokens": 123456, "tokenizer": "data/tokenizer-2026", "token": "the"}',
    "tokenizer: {kind: sentencepiece, bos_token: <s>, pad_token: null}",
    "tokenizer.bos_token=</s> pad_token_id=0 special_tokens=['<s>', '</s>']",
    "sort_key=position_of_the_first_token, key=step-000001000-rank-00001",
    "key: /shared/ada/runs/llama_7b/checkpoints",
    "credentials: ~/.aws/credentials\nsecrets=./data/secrets\nprivate_key: /home/ada/.ssh/id",
    "def connect(user, password=None): login(user, password=self.password)",
    "password: str",
    "host:8080/path@2 and http://host:8080/path@2, s3://bucket/a@b",
    "cookies: 3, the author: Ada, authorization is needed",
    "'error: no shard of a token' and \"step: 12\"",
    "passed_over: 12\npass_rate=0.97531 bypass=tokenizer --passes 3 num_passes: 123456",
    "pass: 2\npass: 0.97\npass: yes\npass: True\nPASS=12 FAIL=0 pass=98% (pass=3)",
    "PASS: tests/train/test_resume.py\nPASS: test_resume",
    "    may_pass = True\nforward_pass = attention_then_mlp\n-pass the ball\n    pass",
    "'pass: the ball to me' and compass: north, surpassed=everything_before",
    "PWD=/home/Ada/lmscale OLDPWD=/home/Ada/Data2026\npwd: /home/Ada",
    "https://host/x?pass=2&secretary=ada ffmpeg --pass 2 --bypass cache",
    "PASSTHROUGH=everything_that_comes passenger: someone-else secretary=ada",
    "a -----BEGIN PRIVATE KEY----- is looked for\nin every line of a text",
    '    "-----BEGIN PRIVATE KEY-----",\n]\nlong_names_of_a_program = 1',
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
    assert redact(f"s3://a:{S}@x/y,s3://b:{S}@z/w") == f"s3://{HIDDEN}@x/y,s3://{HIDDEN}@z/w"
    assert redact(f"host=db password={S} user=me") == f"host=db password={HIDDEN} user=me"
    assert redact(f"password: {S}  # note") == f"password: {HIDDEN}  # note"
    assert redact(f"curl -H 'Authorization: Token {S}' x") == (
        f"curl -H 'Authorization: Token {HIDDEN}' x"
    )
    query = f"https://h/x?a=1&sig={S}&b=2"
    assert redact(query) == f"https://h/x?a=1&sig={HIDDEN}&b=2"


def test_a_key_without_its_end_hides_no_more_than_what_looks_like_one():
    head = "-----BEGIN PRIVATE KEY-----"
    text = f"+{head}\n+{S}{S}{S}\n+{S}\n@@ -9,3 +9,3 @@\n a_name_of_a_program = 1\n"
    assert redact(text) == f"+{head}{HIDDEN}\n@@ -9,3 +9,3 @@\n a_name_of_a_program = 1\n"


@pytest.mark.parametrize("length", [*range(29, 110, 9)])
def test_a_text_that_is_cut_within_a_key_holds_nothing_of_it(length):
    body = "\n".join(["MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcw"] * 3)
    key = f"-----BEGIN PRIVATE KEY-----\n{body}"
    assert redact(key[:length]).rstrip() == f"-----BEGIN PRIVATE KEY-----{HIDDEN}"


def test_a_commands_secret_may_be_a_word_of_its_own():
    command = ["lmscale", "--api-key", S, "--set", "a=1", f"--token={S}", "--token", "--steps"]
    shown = ["lmscale", "--api-key", HIDDEN, "--set", "a=1", f"--token={HIDDEN}"]
    assert redact_command(command) == [*shown, "--token", "--steps"]
    assert redact_command(["mysql", "--pass", S, "-pass", S]) == [
        *("mysql", "--pass", HIDDEN),
        *("-pass", HIDDEN),
    ]


@pytest.mark.parametrize("name", ["HF_TOKEN", "apiKey", "AWSAccessKeyId", "db-password", "X-Auth"])
def test_a_name_of_a_secret(name):
    assert names_secret(name) and may_be_secret(name)


@pytest.mark.parametrize("name", ["DB_PASS", "MYSQL_PWD", "PGPASSWORD", "clientsecret", "pass"])
def test_a_name_that_ends_like_a_password_is_one_of_a_secret(name):
    assert names_secret(name) and may_be_secret(name)


@pytest.mark.parametrize("name", ["MAX_TOKENS", "tokenizer", "keyboard", "author", "keep_last"])
def test_a_name_that_only_looks_like_one(name):
    assert not names_secret(name)


@pytest.mark.parametrize("name", ["passed_over", "pass_rate", "bypass", "passes", "secretary"])
def test_a_name_with_the_letters_of_a_password_in_it_is_none(name):
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
    [
        "a://b:x",
        "A",
        "key=",
        "- ",
        "x" * 63 + "=",
        'a="',
        "?a=b&",
        "A_KEY=",
        "password=a",
        "a_key=b1,",
        "'a-key: ",
        "cookie: a=",
        "authorization: a ",
        "password: a #",
        "a://b:c@",
        "key/",
        "-----BEGIN PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\n+",
        "-----BEGIN PRIVATE KEY-----\nab-cd: ",
        "DB_PASS=",
        "--pass ",
        "pass: 1",
        "pass=/a",
    ],
)
def test_a_megabyte_takes_seconds_at_most_whatever_it_holds(piece):
    text = piece * (10**6 // len(piece))
    began = time.process_time()
    redact(text)
    assert time.process_time() - began < 10, "what grows with the square takes minutes"


@pytest.mark.parametrize("piece", ["+", "A", "a-b", "\n+A", "A" * 64 + "\n", "\\n", "aa-bb: c\n"])
def test_a_megabyte_behind_the_start_of_a_key_takes_seconds_at_most(piece):
    text = "-----BEGIN PRIVATE KEY-----\n" + piece * (10**6 // len(piece))
    began = time.process_time()
    redact(text)
    assert time.process_time() - began < 10, "what grows with the square takes minutes"
