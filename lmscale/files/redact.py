"""Text that will be kept or shown, without the credentials that it quotes. Pure.

Hidden is what is certain: credentials in URLs, the values of variables, keys and options whose name
is that of a secret, and tokens that bear their maker's mark; no other secret. Every pattern is
bounded, so that the time grows with the length of the text and not with its square.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

HIDDEN = "***"
# Endings of a name without its separators: db_password, clientSecret, AWSAccessKeyId, X-Api-Key.
_ENDINGS = ("password", "passwd", "passphrase", "secret", "secrets", "credential", "credentials")
_ENDINGS += ("apikey", "accesskey", "accesskeyid", "secretkey", "privatekey", "accountkey")
_ENDINGS += ("accesstoken", "apitoken", "authtoken", "refreshtoken", "authorization", "jwt")
# Last words that name a secret in capitals, in URLs and in options; in prose and code they do not.
_LAST_WORDS = {"key", "token", "auth", "cookie", "signature", "sig", "pass", "pwd"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
# In an environment variable's name it is better to hide one too many.
_PARTS = ("KEY", "TOKEN", "SECRET", "PASS", "PWD", "CREDENTIAL", "AUTH", "JWT", "COOKIE", "SIGNAT")
_FOLDERS = {"PWD", "OLDPWD"}  # the shell's own

# The secret of a login may hold slashes and @, which a URL does not: up to the last @. What looks
# like a port is none: host:8080/path@2.
_LOGIN = re.compile(
    r"(?<![A-Za-z0-9+.-])([A-Za-z][A-Za-z0-9+.-]{0,30})://"
    r"([^\s/?#@:'\"<>]{1,128}:(?!\d+[/?])(?:(?!://)[^\s'\"<>]){1,256}|[^\s/?#'\"<>]{1,512})@"
)
_QUERY = re.compile(r"([?&;])([A-Za-z0-9_.%-]{1,64})=([^&;\s'\"<>#]+)")
# Behind an option spaces will do, unless something else than its value follows: --token | cat.
_NAME = re.compile(
    r"(?<![\w.-])(-{1,2})?([A-Za-z_][A-Za-z0-9_.-]{0,127})"
    r"(?:['\"]?[ \t]{0,8}([:=])[ \t]{0,8}|(?(1)[ \t]{1,8}(?![\s|&>#-])|(?!)))(['\"]?)"
)
_COOKIE = re.compile(
    r"\b(cookie['\"]?[ \t]{0,8}:[ \t]{0,8}['\"]?)[^\s=;:'\"]{1,128}=[^'\"\n]{1,4096}",
    re.IGNORECASE,
)
# What begins with $, <, { or ( refers to a value, and *** is hidden already.
_BARE = re.compile(r"(?:(?i:basic|bearer|token) )?[^\s'\"$<{(*,;&][^\s'\",;&]{0,4096}")
_QUOTED = re.compile(r"[^\n'\"$<{*][^\n'\"]{0,4096}")
_MARKED = re.compile(
    r"\b(?:(?:AKIA|ASIA)[A-Z0-9]{16}|(?:gh[pousr]|npm|hf)_[A-Za-z0-9]{30,255}|github_pat_\w{30,255})"
)
# What steers a terminal: escape sequences among them. Not line breaks and tabs.
# Nor what turns the direction of what follows.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def redact(text: str) -> str:
    """``text`` with ``***`` in place of every secret that is recognised."""
    text = _MARKED.sub(HIDDEN, _redact_urls(text))
    text = _COOKIE.sub(rf"\1{HIDDEN}", text)
    parts, end = [], 0
    for match in _NAME.finditer(text):
        dashes, path, sign, quote = match.groups()
        name = path.rpartition(".")[2]  # client.password is a password, password.length is none
        is_code = not (dashes or name.isupper())
        if match.end() < end or not names_secret(name, is_code=is_code):
            continue
        value = (_QUOTED if quote else _BARE).match(text, match.end())
        # PASS: test_resume.py and PASS=12 are a test's verdict and a count.
        if value and not (name == "PASS" and (sign == ":" or value[0].isdecimal())):
            parts += [text[end : value.start()], HIDDEN]
            end = value.end()
    return "".join([*parts, text[end:]])


def redact_command(words: Sequence[str]) -> list[str]:
    """The same for a command's words, whose secret may be a word of its own: ``--token``, ``x``."""
    shown, hides_next = [], False
    for word in words:
        is_option = word.startswith("-")
        shown.append(HIDDEN if hides_next and not is_option else redact(word))
        hides_next = is_option and "=" not in word and names_secret(word)
    return shown


@functools.lru_cache(4096)  # the names of a text come again and again
def names_secret(name: str, *, is_code: bool = False) -> bool:
    """Whether a variable, an option or a URL's parameter of this name is a secret.

    ``is_code``: the name may be one of a program, where ``key`` and ``pad_token`` are none.
    """
    words = [word.lower() for word in _WORD.findall(name)]
    is_last = not is_code and bool(words) and words[-1] in _LAST_WORDS and name not in _FOLDERS
    return is_last or "".join(words).endswith(_ENDINGS)


def may_be_secret(variable: str) -> bool:
    """Whether an environment variable of this name is better not shown, by any part of its name."""
    return variable not in _FOLDERS and any(part in variable.upper() for part in _PARTS)


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

    def name(control: re.Match[str]) -> str:
        number = ord(control[0])
        return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"

    return _CONTROL.sub(name, text)


def printable_name(name: str) -> str:
    """A name from a file that somebody else made, for the middle of a message: quoted if it holds
    what is not shown, line breaks included.
    """
    return name if name.isprintable() else repr(name)


def _redact_urls(text: str) -> str:
    if "://" not in text:
        return text
    return _QUERY.sub(_hide_query, _LOGIN.sub(_hide_login, text))


def _hide_login(match: re.Match[str]) -> str:
    scheme, login = match.groups()
    is_plain = ":" not in login and ("ssh" in scheme or scheme == "sftp")  # ssh://git@host
    return match[0] if is_plain else f"{scheme}://{HIDDEN}@"


def _hide_query(match: re.Match[str]) -> str:
    separator, name, _ = match.groups()
    return f"{separator}{name}={HIDDEN}" if names_secret(name) else match[0]
