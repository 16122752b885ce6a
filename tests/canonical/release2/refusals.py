"""Inputs that are well-formed JSON and have no canonical form: duplicate keys, lone surrogates, numbers out of range, too much depth.

Each has one fault, by construction.
"""

import json
import random
from collections.abc import Iterator
from decimal import Decimal

from accepted import seeded, surrogates
from corpus import Vector, text
from release2.integers import LARGEST
from release2.shapes import nested
from strict_reader import MAX_DEPTH

# A fault stands where the dot is, alone and in company.
PLACES = ["·", "[·]", "[1,·]", '{"a":·}', '{"b":[],"a":[{"c":·}]}', " · "]


def placed(content: str, number: int) -> str:
    return PLACES[number % len(PLACES)].replace("·", content)


def more_duplicate_keys() -> Iterator[Vector]:
    """A key twice, spelled in two ways, among others, at some depth."""
    rng = seeded("more_duplicate_keys")
    for number in range(260):
        key = "".join(rng.choice('abé/"\\\n\t\x00\x1f\x7f€\ue000\uffff😀\U0010ffff') for _ in range(rng.randrange(5)))
        keys = [json.dumps(name) for name in rng.sample(["p", "q", "r", "s", "", "__proto__"], rng.randrange(4)) if name != key]
        for _ in range(2):
            keys.insert(rng.randrange(len(keys) + 1), spelled_key(key, rng))
        members = ",".join(f"{name}:{rng.choice(('1', 'null', '{}', '[]', 'false'))}" for name in keys)
        yield text("a key twice", placed("{" + members + "}", number))


def spelled_key(key: str, rng: random.Random) -> str:
    written = []
    for character in key:
        units = surrogates(ord(character)) if ord(character) > 0xFFFF else (ord(character),)
        escaped = "".join("\\u" + format(unit, rng.choice(("04x", "04X"))) for unit in units)
        written.append(escaped if rng.random() < 0.5 else json.dumps(character, ensure_ascii=False)[1:-1])
    return '"' + "".join(written) + '"'


def more_lone_surrogates() -> Iterator[Vector]:
    """Halves from every corner, before and behind everything that makes no pair of them."""
    number = 0
    for high in ("d800", "D83D", "dbfe", "DBFF"):
        for behind in ("", "a", "é", "😀", "\\n", "\\\\", "\\\\udc00", "\\u0041", "\\uD7FF", "\\ue000", "\\ud800\\udc00", "\\uDBFF"):
            content = f'"\\u{high}{behind}"'
            yield text(f"high half \\u{high} before {behind!r}", placed(content, number))
            number += 1
    for low in ("dc00", "DC01", "dfFF"):
        for before in ("", "a", "é", "😀", "\\t", "\\\\", "\\ud83d\\ude00", "\\uE000", "\\u0000"):
            content = f'"{before}\\u{low}"'
            yield text(f"low half \\u{low} behind {before!r}", placed(content, number))
            number += 1
    for halves in ("\\udc00\\ud800", "\\udfff\\udbff", "\\ud800", "\\udc00", "\\uDBFF\\uDBFF\\uDFFF"):
        yield text(f"{halves} in a key", f'{{"{halves}":1}}')
        yield text(f"{halves} in a key inside", f'{{"a":[{{"b{halves}":null}}]}}')


def more_unsafe_integers() -> Iterator[Vector]:
    number = 0
    edges = {2**power + step for power in range(53, 70) for step in (-1, 0, 1)} | {10**power for power in range(16, 40)} | {2**1024, 10**308, 10**400}
    for edge in sorted(edge for edge in edges if edge > LARGEST):
        for sign in ("", "-"):
            shown = str(edge) if edge < 10**40 else f"an integer of {len(str(edge))} digits"
            yield text(f"{sign}{shown}", placed(f"{sign}{edge}", number))
            number += 1
    rng = seeded("more_unsafe_integers")
    for number in range(60):
        sign = rng.choice(("", "-"))
        yield text("a random integer out of range", placed(f"{sign}{rng.randrange(LARGEST + 1, 10 ** rng.randrange(17, 60))}", number))


def more_numbers_too_large() -> Iterator[Vector]:
    # From here on the nearest double would be 2^1024.
    limit = (Decimal(1.7976931348623157e308) + Decimal(2) ** 1024) / 2
    exact = format(limit, "f")
    literals = [
        f"{exact}.0", f"{exact}e0", f"{exact[0]}.{exact[1:]}e308", f"{exact}.{'0' * 50}1", f"0.{exact}e309", f"{exact}{'0' * 20}e-20", f"{limit + 1:f}.0",
        "1.797693134862315808e308", "1.7976931348623159e+308", "17976931348623159e292", "0.017976931348623159E310", "1.8e308", "2e308", "9e308", "1e309",
        "1E+309", "1e0309", "1e1000", "1e9999", "1e65536", "1e2147483648", "1e4294967296", "1e9223372036854775808", "1e18446744073709551616",
        f"1e{'9' * 40}", f"0.{'0' * 30}1e340", f"{'9' * 309}.0", f"1{'0' * 309}e0", f"1{'0' * 309}.5", f"{'1' * 400}e-50",
    ]  # fmt: skip
    for number, literal in enumerate(literals):
        for sign in ("", "-"):
            shown = literal if len(literal) < 40 else f"{literal[:30]}… of {len(literal)} characters"
            yield text(f"{sign}{shown}", placed(sign + literal, number + len(sign)))


def more_non_finite() -> Iterator[Vector]:
    for word in ("NaN", "Infinity", "-Infinity"):
        for place in [*PLACES, "[·,1]", "[[],·]", '{"a":1,"b":·}', '[{"a":·}]', "\t·\n", '{"x":{"y":{"z":·}}}']:
            yield text(f"{word} at {place}", place.replace("·", word))


def more_depth() -> Iterator[Vector]:
    for levels in [*range(MAX_DEPTH + 1, MAX_DEPTH + 9), 255, 256, 257, 1000]:
        yield text(f"{levels} arrays around a number", "[" * levels + "0" + "]" * levels)
        yield text(f"{levels} objects around a number", '{"":' * levels + "0" + "}" * levels)
    rng = seeded("more_depth")
    for number in range(40):
        levels = MAX_DEPTH + 1 + number % 3
        yield text(f"{levels} levels of random shape", nested(levels, rng))
    full = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    for place in ("[·,[]]", "[0,·]", '{"a":·}', '{"a":1,"b":·}'):
        yield text(f"one level too many at {place}, behind what is not too deep", f"[{full},{place.replace('·', full)}]")


CLASSES = [
    ("duplicate_key", more_duplicate_keys), ("lone_surrogate", more_lone_surrogates), ("integer_out_of_range", more_unsafe_integers),
    ("number_out_of_range", more_numbers_too_large), ("non_finite_number", more_non_finite), ("depth_exceeded", more_depth),
]  # fmt: skip
