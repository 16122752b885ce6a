"""The strict door, character by character: a JSON text to a value, or the reason for its refusal, in reading order.

`canon.parse_strict` asks it only about texts that the standard library's parser or a quick check has refused, so it is written to be read.
"""

from __future__ import annotations

import math
import re
from typing import Any

from .errors import CanonError

MAX_DEPTH = 128
MAX_SAFE_INTEGER = 2**53 - 1
# Digits of that: a longer literal is out of range, and converting it would be slow.
_INTEGER_DIGITS = 16

_SPACE = re.compile(r"[ \t\n\r]*")
_RUN = re.compile(r'[^"\\\x00-\x1f]*')
_HEX = re.compile(r"[0-9a-fA-F]{4}")
_DIGITS = re.compile(r"[0-9]+")
_SHORT = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None}
_NOT_FINITE = ("NaN", "Infinity", "-Infinity")


def read(text: str) -> Any:
    """The value of a JSON text; CanonError with the first offence in reading order."""
    reader = _Reader(text)
    value = reader.value(0)
    reader.skip_space()
    if reader.at < len(text):
        raise CanonError("trailing_data")
    return value


def integer(literal: str) -> int:
    """The value of an integer literal within ±(2^53 − 1)."""
    if len(literal.lstrip("-")) <= _INTEGER_DIGITS:
        value = int(literal)
        if abs(value) <= MAX_SAFE_INTEGER:
            return value
    raise CanonError("integer_out_of_range")


def double(literal: str) -> float:
    """The nearest double of a literal with fraction or exponent."""
    value = float(literal)
    if math.isinf(value):
        raise CanonError("number_out_of_range")
    return value


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def skip_space(self) -> None:
        self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]  # it matches the empty text

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def next_significant(self) -> str:
        self.skip_space()
        return self.peek()

    def expect(self, character: str) -> None:
        if self.next_significant() != character:
            raise CanonError("syntax")
        self.at += 1

    def value(self, depth: int) -> Any:
        first = self.next_significant()
        if first == "{":
            return self.object(depth)
        if first == "[":
            return self.array(depth)
        if first == '"':
            return self.string()
        if self.text.startswith(_NOT_FINITE, self.at):
            raise CanonError("non_finite_number")
        if first and first in "-0123456789":
            return self.number()
        for word, value in _WORDS.items():
            if self.text.startswith(word, self.at):
                self.at += len(word)
                return value
        raise CanonError("syntax")

    def enter(self, depth: int) -> int:
        if depth >= MAX_DEPTH:
            raise CanonError("depth_exceeded")
        self.at += 1
        return depth + 1

    def object(self, depth: int) -> dict[str, Any]:
        depth = self.enter(depth)
        members: dict[str, Any] = {}
        if self.next_significant() == "}":
            self.at += 1
            return members
        while True:
            if self.next_significant() != '"':
                raise CanonError("syntax")
            key = self.string()
            if key in members:
                raise CanonError("duplicate_key")
            self.expect(":")
            members[key] = self.value(depth)
            if self.next_significant() == "}":
                self.at += 1
                return members
            self.expect(",")

    def array(self, depth: int) -> list[Any]:
        depth = self.enter(depth)
        items: list[Any] = []
        if self.next_significant() == "]":
            self.at += 1
            return items
        while True:
            items.append(self.value(depth))
            if self.next_significant() == "]":
                self.at += 1
                return items
            self.expect(",")

    def string(self) -> str:
        self.at += 1
        parts: list[str] = []
        while True:
            run = _RUN.match(self.text, self.at)
            assert run is not None  # noqa: S101  # it matches the empty text
            parts.append(run.group())
            self.at = run.end()
            end = self.peek()
            if end == '"':
                self.at += 1
                return "".join(parts)
            if end != "\\":
                raise CanonError("syntax")
            parts.append(self.escape())

    def escape(self) -> str:
        self.at += 1
        kind = self.peek()
        if kind != "u":
            if not kind or kind not in _SHORT:
                raise CanonError("syntax")
            self.at += 1
            return _SHORT[kind]
        first = self.code_unit()
        if not 0xD800 <= first <= 0xDFFF:
            return chr(first)
        if first >= 0xDC00 or not self.text.startswith("\\u", self.at):
            raise CanonError("lone_surrogate")
        self.at += 1
        second = self.code_unit()
        if not 0xDC00 <= second <= 0xDFFF:
            raise CanonError("lone_surrogate")
        return chr(0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00))

    def code_unit(self) -> int:
        """Reads `uXXXX` from its `u`."""
        digits = _HEX.match(self.text, self.at + 1)
        if digits is None:
            raise CanonError("syntax")
        self.at = digits.end()
        return int(digits.group(), 16)

    def digits(self) -> None:
        run = _DIGITS.match(self.text, self.at)
        if run is None:
            raise CanonError("syntax")
        self.at = run.end()

    def skip_one(self, characters: str) -> bool:
        found = self.peek() != "" and self.peek() in characters
        self.at += found
        return found

    def number(self) -> int | float:
        start = self.at
        self.skip_one("-")
        first_digit = self.at
        self.digits()
        if self.text[first_digit] == "0" and self.at > first_digit + 1:
            raise CanonError("syntax")
        has_fraction = self.skip_one(".")
        if has_fraction:
            self.digits()
        has_exponent = self.skip_one("eE")
        if has_exponent:
            self.skip_one("+-")
            self.digits()
        literal = self.text[start : self.at]
        return double(literal) if has_fraction or has_exponent else integer(literal)
