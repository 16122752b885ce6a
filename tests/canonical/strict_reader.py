"""The strict door of aegis-jcs-1 in Python, over the standard library's JSON parser.

An implementation of its own, sharing nothing with the Rust one, so that agreement between the two means something.
It names the same reason codes for an input with one fault; with several faults it may name another of them.
"""

import json
import math
import re

DEFAULT_MAX_BYTES = 1 << 20
MAX_DEPTH = 128
MAX_SAFE_INTEGER = 2**53 - 1

WHITESPACE = " \t\n\r"
STRING = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Rejected(Exception):
    """An input that has no canonical form; `reason` is the stable code."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read(data: bytes, max_bytes: int = DEFAULT_MAX_BYTES):
    """The value of a JSON text, or Rejected."""
    if len(data) > max_bytes:
        raise Rejected("size_exceeded")
    try:
        text = data.decode("utf-8", "strict")
    except UnicodeDecodeError:
        raise Rejected("invalid_utf8") from None
    check_depth(text)
    start = len(text) - len(text.lstrip(WHITESPACE))
    try:
        value, end = DECODER.raw_decode(text, start)
    except json.JSONDecodeError:
        raise Rejected("syntax") from None
    rest = text[end:]
    if is_number(value) and rest[:1] in tuple(".eE0123456789"):
        # The decoder stops in the middle of a malformed number, such as `1.` or `01`.
        raise Rejected("syntax")
    if rest.strip(WHITESPACE):
        raise Rejected("trailing_data")
    check_surrogates(value)
    return value


def check_depth(text: str) -> None:
    depth = 0
    for character in STRING.sub("", text):
        if character in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise Rejected("depth_exceeded")
        elif character in "]}":
            depth -= 1


def check_surrogates(value) -> None:
    if isinstance(value, str):
        if LONE_SURROGATE.search(value):
            raise Rejected("lone_surrogate")
    elif isinstance(value, list):
        for item in value:
            check_surrogates(item)
    elif isinstance(value, dict):
        for key, member in value.items():
            check_surrogates(key)
            check_surrogates(member)


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def integer(literal: str) -> int:
    if len(literal) > len("-9007199254740991") or abs(int(literal)) > MAX_SAFE_INTEGER:
        raise Rejected("integer_out_of_range")
    return int(literal)


def double(literal: str) -> float:
    value = float(literal)
    if math.isinf(value):
        raise Rejected("number_out_of_range")
    return value


def constant(_name: str):
    raise Rejected("non_finite_number")


def members(pairs: list) -> dict:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise Rejected("duplicate_key")
    return result


DECODER = json.JSONDecoder(
    object_pairs_hook=members, parse_int=integer, parse_float=double, parse_constant=constant
)
