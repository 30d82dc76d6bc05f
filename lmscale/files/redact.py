"""Text that will be kept or shown, without the secrets that it may quote. Pure.

A net, not a proof: it knows credentials in URLs, signed queries, assignments whose name sounds
secret, and the shapes of common tokens. Tests hold what it must catch and what it must leave alone.
Every pattern is bounded, so that a megabyte takes no longer than a megabyte.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

HIDDEN = "***"

# Whole words of a name: MAX_TOKENS and tokenizer are none, HF_TOKEN and accessToken are.
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_STRONG = {"password", "passwd", "passphrase", "secret", "secrets", "credential", "credentials"}
_STRONG |= {"apikey", "accesskey", "secretkey", "privatekey", "authorization", "jwt"}
_STRONG_ENDINGS = ("password", "passwd", "secret")  # PGPASSWORD, clientsecret
_WEAK = {"key", "token", "auth", "cookie", "signature", "sig", "bearer"}
_STRONG_PAIRS = {("api", "key"), ("access", "key"), ("secret", "key"), ("private", "key")}
_STRONG_PAIRS |= {("auth", "token"), ("access", "token"), ("refresh", "token")}
_STRONG_PAIRS |= {("account", "key")}
# As the last word only: pass_rate is none, and bypass is another word.
_PASS = {"pass", "pwd", "dbpass", "sshpass", "userpass"}
# A count, a share, a verdict or a folder: pass=2, pass: 0.97, pass: yes, PWD=/home/ada.
_NO_PASSWORD = re.compile(
    r"(?:\d{1,5}%?|\d{0,9}\.\d{1,20}%?|yes|no|ok|done|failed|~?/[\w./-]*)[,;:)\]}]*", re.IGNORECASE
)
# In a variable's name it is better to hide one too many.
_PARTS_OF_SECRET_NAMES = ("KEY", "TOKEN", "SECRET", "PASS", "PWD", "CREDENTIAL")
_PARTS_OF_SECRET_NAMES += ("AUTH", "JWT", "COOKIE", "SIGNATURE")
_FOLDER_NAMES = {"PWD", "OLDPWD"}  # the shell's own
_PLAIN_VALUES = {"null", "None", "none", "true", "false", "True", "False", "str", "bool", "bytes"}
_PLAIN_LOGINS = {"ssh", "git", "git+ssh", "sftp", "scp", "rsync"}

_SCHEME = r"(?<![A-Za-z0-9+.-])([A-Za-z][A-Za-z0-9+.-]{0,30})://"
_USER = re.compile(_SCHEME + r"([^\s/?#'\"<>]{1,512})@")
# A secret may hold a slash or an @, which belong into no URL: the last @ counts. But
# host:8080/path@2 holds none.
_WIDE_USER = re.compile(
    _SCHEME + r"([^\s/?#@:'\"<>]{1,128}:(?!\d+/)(?:(?!://)[^\s?#'\"<>]){1,256})@"
)
_LOOSE_USER = re.compile(_SCHEME + r"([^\s/?#@:'\"<>]{1,128}:(?!\d+/)[^\s@'\"<>]{1,256})@")
_QUERY = re.compile(r"([?&;])([A-Za-z0-9_.%-]{1,64})=([^&;\s'\"<>#]+)")
_VARIABLE = re.compile(
    r"(?<![A-Za-z0-9_])([A-Z][A-Z0-9_]{2,63})(=|:[ \t]{1,8})(['\"]?)([^\s'\"$<{(*][^\s'\"]{5,})"
)
_QUOTED = re.compile(
    r"(?<![A-Za-z0-9_.-])([A-Za-z_][A-Za-z0-9_.-]{0,63})(['\"]?[ \t]{0,8}[=:][ \t]{0,8}[rbuf]?)"
    r"(['\"])([^\n'\"]{1,4096})\3"
)
_LINE = re.compile(
    r"^([+\- \t]{0,40})([A-Za-z_][A-Za-z0-9_.-]{0,63})([ \t]{0,8}[:=][ \t]{0,8})"
    r"([^\s'\"$<{\[(|>&*!=:][^\s]{0,4096})((?:[ \t]{1,8}#[^\n]{0,512})?[ \t]{0,8})$",
    re.MULTILINE,
)
_PAIR = re.compile(
    r"(?<![A-Za-z0-9_.-])([A-Za-z_][A-Za-z0-9_.-]{0,63})="
    r"([^\s'\"$<{\[(|>&*!=,;)][^\s'\",;&]{0,4096})"
)
# A header in quotes, as curl -H takes it; and those whose value is of several words.
_HEADER = re.compile(
    r"(['\"])([A-Za-z][A-Za-z0-9-]{0,63})(:[ \t]{0,8})([^'\"\n*][^'\"\n]{0,4096})\1"
)
_AUTHORIZATION = re.compile(
    r"\b(authorization['\"]?[ \t]{0,8}[:=][ \t]{0,8}['\"]?[A-Za-z]{1,32}[ \t]{1,8})"
    r"([A-Za-z0-9+/=_.~:-]{4,4096})",
    re.IGNORECASE,
)
_COOKIE = re.compile(
    r"\b(cookie['\"]?[ \t]{0,8}:[ \t]{0,8}['\"]?)([^\s=;:'\"]{1,128}=[^'\"\n]{1,4096})",
    re.IGNORECASE,
)
_OPTION = re.compile(r"(?<!\S)(--?[A-Za-z][A-Za-z0-9_-]{1,63})(=|[ \t]{1,8})([^\s'\"$<-][^\s'\"]*)")
_BEARER = re.compile(r"\b(bearer|basic)([ \t]{1,8})([A-Za-z0-9+/=_.~-]{12,})", re.IGNORECASE)
_SHAPES = re.compile(
    r"\b(?:(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_[A-Za-z0-9_]{30,255}"
    r"|glpat-[A-Za-z0-9_-]{20,64}|npm_[A-Za-z0-9]{30,64}|hf_[A-Za-z0-9]{30,64}|sk-[A-Za-z0-9_-]{20,200}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,200}|AIza[A-Za-z0-9_-]{35}"
    r"|eyJ[A-Za-z0-9_-]{8,2000}\.eyJ[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{8,2000})"
)
_HOOK = re.compile(
    r"(//hooks\.slack\.com/[a-z]{1,16}/|//discord(?:app)?\.com/api/webhooks/)[A-Za-z0-9/_-]{8,256}"
)
# A key under a password has headers with hyphens; so has each line of a difference. One whose end
# is missing, as where a text was cut, goes as far as its lines look like a key's.
_PRIVATE_KEY = re.compile(
    r"(-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----)(?:"
    r"(?:[^-]|-(?!----)){1,20000}(-{5,6}END [A-Z ]{0,40}PRIVATE KEY-----)"
    r"|(?:(?:[\s+-]|\\[nr]){1,60}(?:[A-Za-z]{2,20}-[A-Za-z]{2,20}: [^\n\\]{1,200}"
    r"|[A-Za-z0-9+/=]{16,4096}|[A-Za-z0-9+/=]{1,15}\Z)){1,2000})"
)
_PATH = re.compile(r"(?:~|\.{1,2}|[A-Za-z0-9._-]{1,64})?(?:/[A-Za-z0-9._-]{1,64})+/?")
# What steers a terminal: escape sequences among them. Not line breaks and tabs.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def redact(text: str) -> str:
    """``text`` with every secret that is recognised replaced by ``***``."""
    text = _redact_urls(text)
    text = _PRIVATE_KEY.sub(rf"\1{HIDDEN}\2", text)
    text = _SHAPES.sub(HIDDEN, text)
    text = _HOOK.sub(rf"\1{HIDDEN}", text)
    text = _BEARER.sub(rf"\1\2{HIDDEN}", text)
    text = _AUTHORIZATION.sub(rf"\1{HIDDEN}", text)
    text = _COOKIE.sub(rf"\1{HIDDEN}", text)
    text = _VARIABLE.sub(_hide_variable, text)
    text = _QUOTED.sub(_hide_quoted, text)
    text = _HEADER.sub(_hide_header, text)
    text = _LINE.sub(_hide_line, text)
    text = _PAIR.sub(_hide_pair, text)
    return _OPTION.sub(_hide_option, text)


def redact_command(words: Sequence[str]) -> list[str]:
    """The same for a command's words, whose secret may be a word of its own: ``--token``, ``x``."""
    shown, hides_next = [], False
    for word in words:
        is_option = word.startswith("-")
        shown.append(HIDDEN if hides_next and not is_option else redact(word))
        hides_next = is_option and "=" not in word and names_secret(word)
    return shown


def names_secret(name: str) -> bool:
    """Whether what is called so is a secret, by the whole words of its name."""
    return not _WEAK.isdisjoint(_words(name)) or _is_pass(name) or _is_strong(name)


def may_be_secret(variable: str) -> bool:
    """Whether an environment variable of this name is better not shown, by any part of its name."""
    if variable in _FOLDER_NAMES:
        return False
    return any(part in variable.upper() for part in _PARTS_OF_SECRET_NAMES)


def find_url_secrets(tree: Any, path: str = "") -> Iterator[str]:
    """The keys of ``tree``, as ``a.b``, whose text holds a URL with credentials in it."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from find_url_secrets(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from find_url_secrets(value, path)
    elif isinstance(tree, str) and "://" in tree and _redact_urls(tree) != tree:
        yield path


def printable(text: str) -> str:
    """``text`` without control characters, which could steer the terminal that shows it.

    Line breaks and tabs stay; an escape is shown as ``\\x1b``.
    """
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def printable_name(name: str) -> str:
    """A name from a file that somebody else made, for the middle of a message: quoted if it holds
    what is not shown, line breaks included.
    """
    return name if name.isprintable() else repr(name)


def _redact_urls(text: str) -> str:
    if "://" in text:
        text = _WIDE_USER.sub(_hide_login, text)
        text = _USER.sub(_hide_login, text)
        text = _LOOSE_USER.sub(_hide_login, text)
    if "=" in text:
        text = _QUERY.sub(_hide_query, text)
    return text


def _hide_login(found: re.Match[str]) -> str:
    scheme, login = found[1], found[2]
    if login == HIDDEN or (":" not in login and scheme.lower() in _PLAIN_LOGINS):
        return found[0]  # git@ is no secret
    return f"{scheme}://{HIDDEN}@"


def _hide_query(found: re.Match[str]) -> str:
    _, name, value = found.groups()
    is_secret = names_secret(name) and not _is_no_password(name, value)
    return f"{found[1]}{name}={HIDDEN}" if is_secret else found[0]


def _hide_variable(found: re.Match[str]) -> str:
    name, sign, quote, value = found.groups()
    is_verdict = name == "PASS" and sign != "="  # PASS: test_resume.py
    if not names_secret(name) or is_verdict or _is_count(name, value):
        return found[0]
    return f"{name}{sign}{quote}{HIDDEN}"


def _hide_quoted(found: re.Match[str]) -> str:
    name, sign, quote, value = found.groups()
    is_word = not any(c.isspace() for c in value) and len(value) >= 4
    is_random = is_word and names_secret(name) and _looks_random(value)
    is_secret = (_is_strong(name) or is_random) and not _is_no_password(name, value)
    # A reference is none: "${TOKEN}", "$(cat file)".
    if not is_secret or value.startswith(("$", "<", "{", HIDDEN)):
        return found[0]
    return f"{name}{sign}{quote}{HIDDEN}{quote}"


def _hide_header(found: re.Match[str]) -> str:
    quote, name, sign, _ = found.groups()
    # There is no header called pass, but much prose: 'pass: the ball'.
    is_secret = _is_strong(name) and not _is_pass(name) and HIDDEN not in found[0]
    return f"{quote}{name}{sign}{HIDDEN}{quote}" if is_secret else found[0]


def _hide_line(found: re.Match[str]) -> str:
    indent, name, sign, value, rest = found.groups()
    is_secret = _is_secret_word(name, value)
    return f"{indent}{name}{sign}{HIDDEN}{rest}" if is_secret else found[0]


def _hide_pair(found: re.Match[str]) -> str:
    name, value = found.groups()
    return f"{name}={HIDDEN}" if _is_secret_word(name, value.rstrip(")]}:")) else found[0]


def _hide_option(found: re.Match[str]) -> str:
    name, sign, value = found.groups()
    is_secret = names_secret(name) and not _is_count(name, value)
    if _is_pass(name) and not name.startswith("--"):
        is_secret = False  # a line that a difference has removed: -pass the ball
    return f"{name}{sign}{HIDDEN}" if is_secret else found[0]


@functools.lru_cache(4096)  # the names of a text come again and again
def _words(name: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in _WORD.findall(name))


def _is_pass(name: str) -> bool:
    return any(word in _PASS for word in _words(name)[-1:])


def _is_strong(name: str) -> bool:
    words = _words(name)
    if not _STRONG.isdisjoint(words) or any(word.endswith(_STRONG_ENDINGS) for word in words):
        return True
    if any(pair in _STRONG_PAIRS for pair in zip(words, words[1:], strict=False)):
        return True
    # forward_pass is code and PASS a verdict; DB_PASS, db_pwd and pass are neither.
    may_be_code = words[-1:] == ("pass",) and (not name.isupper() or name == "PASS")
    return _is_pass(name) and (name == "pass" or not may_be_code)


def _is_secret_word(name: str, value: str) -> bool:
    """Whether what stands without quotes behind a name is a secret; much of it is code."""
    # Code reads `secret = load(path)` and `password=self.password`; a value has no brackets.
    is_code = "(" in value or value.rpartition(".")[2].lower() == name.lower()
    is_code = is_code or value.rstrip(",;:") in _PLAIN_VALUES
    if is_code or HIDDEN in value or _is_path(value) or _is_no_password(name, value):
        return False
    if _is_strong(name):
        return True
    # Of a weak name, such as a key to sort by, only what mixes letters and digits as no word does.
    return names_secret(name) and len(value) >= 16 and _is_mixed(value, 12)


def _is_path(value: str) -> bool:
    # Base64 has slashes as well, and capitals among them.
    is_plain = value.startswith(("~/", "./", "../")) or value == value.lower()
    return is_plain and _PATH.fullmatch(value) is not None and not _is_mixed(value, 8)


def _is_mixed(value: str, length: int) -> bool:
    runs = re.findall(r"[A-Za-z0-9]+", value)
    return any(len(run) >= length and not run.isdigit() and not run.isalpha() for run in runs)


def _is_count(name: str, value: str) -> bool:
    """TOKEN_COUNT=123456, --key-size 4096, pass=2: the name is of what it counts."""
    if _is_no_password(name, value):
        return True
    return value.isdigit() and _words(name)[-1] not in _WEAK and not _is_strong(name)


def _is_no_password(name: str, value: str) -> bool:
    return _is_pass(name) and _NO_PASSWORD.fullmatch(value) is not None


def _looks_random(value: str) -> bool:
    return len(value) >= 20 or (len(value) >= 12 and any(c.isdigit() for c in value))
