"""The two readers of the strict door, held against each other and against the standard library, on texts made at random."""

import json
import random

import pytest
import rfc8785

from aegisagent import CanonError, _door, canon

PIECES = ['"a"', '"b"', '"\\u00e9"', '"\\ud83d\\ude00"', '"\\ud83d"', '"é"', "1", "-0", "1.0", "1e400", "9007199254740992", "0.1", "01", "NaN", "-Infinity",
          "true", "null", "nul", "[", "]", "{", "}", ",", ":", " ", "\n", "\\", '"', "\x01", "\ufeff", "１", "1e", "-", "[]", "{}", '{"a":', "[[", "]]"]  # fmt: skip


def value_at_random(rng, depth=0):
    kind = rng.randrange(9 if depth < 6 else 7)
    if kind == 7:
        return [value_at_random(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 8:
        return {text_at_random(rng): value_at_random(rng, depth + 1) for _ in range(rng.randrange(4))}
    return [
        None,
        True,
        rng.randrange(-(2**53) + 1, 2**53),
        rng.uniform(-1e3, 1e3),
        rng.random() * 10.0 ** rng.randrange(-320, 300),
        text_at_random(rng),
        -0.0,
    ][kind]


def text_at_random(rng):
    return "".join(
        chr(rng.choice([rng.randrange(32), rng.randrange(32, 127), rng.randrange(160, 0xD800), rng.randrange(0xE000, 0x110000)]))
        for _ in range(rng.randrange(6))
    )


def answer(read, text):
    try:
        return "value", repr(read(text))
    except CanonError as error:
        return "reason", error.reason


@pytest.mark.feature("canonicalize")
def test_both_readers_agree_on_every_text():
    rng = random.Random(7)
    for _ in range(4000):
        text = "".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 9)))
        assert answer(canon.parse_strict, text) == answer(_door.read, text), repr(text)
    for _ in range(1500):
        text = json.dumps(value_at_random(rng), ensure_ascii=rng.random() < 0.5)
        place = rng.randrange(len(text))
        for changed in (text, text[:place] + rng.choice(PIECES) + text[place:], text[:place] + text[place + 1 :], text[:place]):
            assert answer(canon.parse_strict, changed) == answer(_door.read, changed), repr(changed)


@pytest.mark.feature("canonicalize")
def test_a_value_its_text_and_its_canonical_form_are_one():
    rng = random.Random(8)
    for _ in range(1500):
        value = value_at_random(rng)
        text = json.dumps(value)
        assert repr(canon.parse_strict(text)) == repr(value)
        assert canon.canonicalize(text) == canon.canonicalize_value(value) == rfc8785.dumps(value)


@pytest.mark.feature("canonicalize")
def test_a_value_has_its_form_where_that_is_just_small_enough():
    rng = random.Random(9)
    tight = [[], {}, "", [[]] * 9, [{}] * 9, [0] * 9, ["", "a"], {"": 0}, {"a": "b", "c": []}, "x" * ((1 << 20) - 2), "é" * ((1 << 19) - 1)]
    for value in tight + [value_at_random(rng) for _ in range(1500)]:
        size = len(rfc8785.dumps(value))
        assert len(canon.canonicalize_value(value, max_bytes=size)) == size
        assert answer(lambda value: canon.canonicalize_value(value, max_bytes=size - 1), value) == ("reason", "size_exceeded")  # noqa: B023
    assert answer(canon.canonicalize_value, "x" * ((1 << 20) - 1)) == ("reason", "size_exceeded")
    assert len(canon.canonicalize_value("x" * (3 << 20), max_bytes=4 << 20)) == (3 << 20) + 2


def nested(levels, brackets):
    opening, closing = brackets
    text = '"x"'
    for level in range(levels):
        text = opening[level % len(opening)] + text + closing[level % len(closing)]
    return text


@pytest.mark.feature("canonicalize")
@pytest.mark.parametrize("brackets", [(["["], ["]"]), (['{"a":'], ["}"]), (["[", '{"a":'], ["]", "}"])], ids=["arrays", "objects", "both"])
def test_128_levels_pass_and_129_do_not(brackets):
    for levels, expected in ((128, "value"), (129, "reason")):
        for text in (nested(levels, brackets), nested(levels - 1, brackets).join(["[[],", ",{}]"])):
            assert answer(canon.parse_strict, text) == answer(_door.read, text)
            assert answer(canon.parse_strict, text)[0] == expected
    wide = "[" + ",".join(["[{}]"] * 5000) + "]"
    assert answer(canon.parse_strict, wide)[0] == "value"


@pytest.mark.feature("canonicalize")
def test_the_order_of_reasons_is_the_reading_order():
    cases = {
        '[1e400,{"a":1,"a":2}]': "number_out_of_range", '[{"a":1,"a":2},1e400]': "duplicate_key", '["\\ud800",NaN]': "lone_surrogate",
        '[9007199254740992,"\\ud800"]': "integer_out_of_range", "[NaN,01]": "non_finite_number", "[01,NaN]": "syntax", '{"a":1}x NaN': "trailing_data",
        "[" * 200 + '{"a":1,"a":2}': "depth_exceeded", '{"a":1,"a":' + "[" * 200: "duplicate_key",
    }  # fmt: skip
    for text, reason in cases.items():
        assert answer(canon.parse_strict, text) == ("reason", reason), text
    assert answer(lambda _: canon.canonicalize(b"\xff" * 10, max_bytes=5), "") == ("reason", "size_exceeded")
    assert answer(lambda _: canon.canonicalize(b"[1e400,\xff]"), "") == ("reason", "invalid_utf8")
