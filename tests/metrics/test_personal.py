"""Personal data is known by its form and its check digits; what only looks like it is left out."""

from __future__ import annotations

import random
from pydoc_data.topics import topics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmscale.metrics.personal import find_personal, mask

# None of these is anybody's: test numbers of issuers and standards, and made-up digits.
FOUND = [
    ("e-mail", "anna.b+x@mail.uni-ulm.de"),
    ("e-mail", "li_wei@qq.com"),
    ("Chinese resident id", "11010519491231002X"),  # of GB 11643's own example
    ("Chinese resident id", "34052419800101001X"),
    ("card", "4111 1111 1111 1111"),
    ("card", "378282246310005"),
    ("card", "6011-1111-1111-1117"),
    ("IBAN", "DE89 3704 0044 0532 0130 00"),
    ("IBAN", "GB29NWBK60161331926819"),
    ("US social security", "219-09-9999"),
    ("phone", "138 0013 8000"),
    ("phone", "(415) 867-5309"),
    ("phone", "415-867-5309"),
    ("phone with country", "+49 731 1234567"),
    ("phone with country", "+86 13800138000"),
    ("IPv4 address", "8.8.4.4"),
    ("IPv6 address", "2001:4860:4860::8888"),
]
NOT_FOUND = [
    "someone@example.com", "user@host", "x@y.test", "@property", "a@b",
    "110105194912310021",  # another check digit
    "110105194913310029",  # a thirteenth month
    "4111 1111 1111 1112", "1234567812345678", "0000000000000000",
    "DE89 3704 0044 0532 0130 01", "XX89370400440532013000",
    "000-12-3456", "666-12-3456", "900-12-3456",
    "(212) 555-0123", "123-456-7890", "2024-01-15", "12345678",
    "192.168.0.1", "127.0.0.1", "203.0.113.7", "999.1.1.1", "3.11.2", "1.2.3.4.5",
    "::1", "fe80::1", "12:30:45", "std::vector", "2001:db8::1",
    "3.141592653589793238", "0x4111111111111111",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value"), FOUND)
def test_a_value_is_found_in_english_and_in_chinese_text(kind, value):
    for text in (f"It is {value}, they say.", f"是{value}。", value):
        (found,) = find_personal(text)
        assert (found.kind, found.value) == (kind, value)
        assert text[found.start : found.end] == value


@pytest.mark.parametrize("text", NOT_FOUND)
def test_what_only_looks_like_one_is_none(text):
    assert find_personal(f"It is {text} there.") == []


def test_a_value_within_another_one_counts_once():
    text = "card 4111111111111111, id 11010519491231002X, call +86 13800138000"
    kinds = [found.kind for found in find_personal(text)]
    assert kinds == ["card", "Chinese resident id", "phone with country"]


def test_real_text_about_python_holds_none():
    text = "\n".join(topics.values())
    assert len(text) > 400_000
    assert [found for found in find_personal(text)] == []


def test_of_random_digits_a_check_digit_lets_few_through():
    draw = random.Random(0)
    cards = ["4" + "".join(draw.choices("0123456789", k=15)) for _ in range(2000)]
    hits = sum(bool(find_personal(card)) for card in cards)
    assert 150 < hits < 260  # Luhn's digit is right by chance in one of ten
    ids = ["110105" + "".join(draw.choices("0123456789", k=12)) for _ in range(2000)]
    assert sum(found.kind == "Chinese resident id" for i in ids for found in find_personal(i)) < 20


@given(st.text(max_size=30))
@settings(max_examples=50)
def test_a_masked_value_shows_its_first_character_alone(value):
    masked = mask(value)
    assert len(masked) == len(value)
    assert all(m == v or (m == "*" and v.isalnum()) for m, v in zip(masked, value, strict=True))
    assert not any(each.isalnum() for each in masked[1:])
