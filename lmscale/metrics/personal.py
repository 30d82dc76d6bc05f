"""Personal data in text, by its form: what looks like it, and where its numbers can be checked, is
consistent. Whether somebody has it, no form tells.

Names, addresses and dates of birth have no form that could be told from others' and are not found.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from datetime import date
from typing import NamedTuple


class Personal(NamedTuple):
    """A value in a text."""

    kind: str
    start: int  # characters
    end: int
    value: str


def find_personal(text: str) -> list[Personal]:
    """In their order, none within another one: the kinds that stand first in ``KINDS`` win."""
    found: list[Personal] = []
    for kind, (pattern, is_sound) in KINDS.items():
        for match in pattern.finditer(text):
            start, end = match.span()
            is_free = all(end <= other.start or other.end <= start for other in found)
            if is_free and is_sound(match[0]):
                found.append(Personal(kind, start, end, match[0]))
    return sorted(found, key=lambda each: each.start)


def mask(value: str) -> str:
    """What may be shown of a value: its first character, and of all others whether they are letters
    or digits.
    """
    return value[:1] + "".join("*" if each.isalnum() else each for each in value[1:])


def _is_mail(value: str) -> bool:
    """Not of a domain that is reserved for examples (RFC 2606, RFC 6761)."""
    domain = value.rpartition("@")[2].lower()
    last = domain.rpartition(".")[2]
    is_example = re.search(r"(^|\.)example\.(com|net|org)$", domain)
    return not is_example and last not in ("test", "invalid", "localhost", "example", "local")


def _is_chinese_id(value: str) -> bool:
    """GB 11643-1999: a province, a date of birth, and a check digit (ISO 7064, MOD 11-2)."""
    try:
        born = date(int(value[6:10]), int(value[10:12]), int(value[12:14]))
    except ValueError:
        return False
    weights = [pow(2, 17 - place, 11) for place in range(17)]
    total = sum(int(digit) * weight for digit, weight in zip(value, weights, strict=False))
    is_checked = "10X98765432"[total % 11] == value[17].upper()
    return is_checked and 1900 <= born.year <= 2099 and int(value[:2]) in _PROVINCES


_PROVINCES = {
    *(range(11, 16)), *(range(21, 24)), *(range(31, 38)), *(range(41, 47)),
    *(range(50, 55)), *(range(61, 66)), 71, 81, 82, 83,
}  # fmt: skip


def _is_card(value: str) -> bool:
    """A number of an issuer's, as long as his are, with Luhn's check digit (ISO/IEC 7812)."""
    digits = re.sub(r"\D", "", value)
    if not _ISSUERS.fullmatch(digits) or len(set(digits)) < 2:
        return False
    doubled = [int(each) * (1 + place % 2) for place, each in enumerate(reversed(digits))]
    return sum(each - 9 * (each > 9) for each in doubled) % 10 == 0


_ISSUERS = re.compile(
    r"4\d{12}(\d{3}){0,2}"  # Visa: 13, 16, 19
    r"|5[1-5]\d{14}|2(22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|3(0[0-5]|[68]\d)\d{11}"  # Diners Club
    r"|6(011|5\d\d|4[4-9]\d)\d{12}"  # Discover
    r"|35(2[89]|[3-8]\d)\d{12}"  # JCB
    r"|62\d{14,17}"  # UnionPay
)


def _is_iban(value: str) -> bool:
    """ISO 13616: the country's length, and the check digits modulo 97."""
    plain = value.replace(" ", "")
    if _IBAN_LENGTHS.get(plain[:2]) != len(plain):
        return False
    return int("".join(str(int(each, 36)) for each in plain[4:] + plain[:4])) % 97 == 1


_IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AT": 20, "BE": 16, "BG": 22, "CH": 21, "CY": 28, "CZ": 24, "DE": 22,
    "DK": 18, "EE": 20, "ES": 24, "FI": 18, "FR": 27, "GB": 22, "GR": 27, "HR": 21, "HU": 28,
    "IE": 22, "IL": 23, "IS": 26, "IT": 27, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "MC": 27,
    "MT": 31, "NL": 18, "NO": 15, "PL": 28, "PT": 25, "RO": 24, "SA": 24, "SE": 24, "SI": 19,
    "SK": 24, "TR": 26, "UA": 29,
}  # fmt: skip


def _is_phone(value: str) -> bool:
    """7 to 15 digits behind a plus (ITU-T E.164); no number that is reserved for films."""
    digits = re.sub(r"\D", "", value)
    is_fiction = re.search(r"555\D?01\d\d$", value)
    return not is_fiction and len(set(digits)) > 2 and 8 <= len(digits) <= 15


def _is_public(value: str) -> bool:
    """An address that others can reach: none of a local network, or of documentation."""
    try:
        return ipaddress.ip_address(value).is_global
    except ValueError:
        return False


_NO_DIGIT_BEFORE, _NO_DIGIT_BEHIND = r"(?<![\w.+-])", r"(?![\w-]|\.\d)"


def _alone(pattern: str) -> re.Pattern[str]:
    """Not part of a longer number or word. Of Chinese characters there may be some beside it."""
    return re.compile(_NO_DIGIT_BEFORE + "(?:" + pattern + ")" + _NO_DIGIT_BEHIND, re.ASCII)


KINDS: dict[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "e-mail": (
        _alone(
            r"[A-Za-z0-9_][\w.+-]{0,62}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,5}"
            r"[A-Za-z]{2,24}"
        ),
        _is_mail,
    ),
    "IBAN": (_alone(r"[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?"), _is_iban),
    "Chinese resident id": (_alone(r"[1-8]\d{16}[\dXx]"), _is_chinese_id),
    "card": (_alone(r"\d{13,19}|\d{4}([ -])\d{4,6}\1\d{4,5}(?:\1\d{1,4}){0,2}"), _is_card),
    "US social security": (
        _alone(r"(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}"),
        lambda value: True,
    ),
    "phone with country": (
        re.compile(r"(?<![\w+])\+[1-9]\d{0,2}(?:[ .-]?\(?\d{1,5}\)?){2,5}(?![\w-]|\.\d)", re.ASCII),
        _is_phone,
    ),
    "phone": (
        _alone(
            r"1[3-9]\d[ -]?\d{4}[ -]?\d{4}"  # Chinese mobile
            r"|(?:\([2-9]\d\d\) ?|[2-9]\d\d[-.])[2-9]\d\d[-.]\d{4}"  # North American
        ),
        _is_phone,
    ),
    "IPv4 address": (_alone(r"\d{1,3}(?:\.\d{1,3}){3}"), _is_public),
    "IPv6 address": (
        re.compile(
            r"(?<![\w:.])[0-9A-Fa-f]{1,4}(?::{1,2}[0-9A-Fa-f]{1,4}){2,7}(?![\w:.]|::)", re.ASCII
        ),
        _is_public,
    ),
}
"""Kind → the form of its values, and what else is true of them."""
