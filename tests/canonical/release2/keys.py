"""Keys: their order by UTF-16 code units, names that mean something to a language or a parser, and names that look like numbers."""

import json
import random
from collections.abc import Iterator
from itertools import combinations

from accepted import object_text, seeded
from corpus import Vector, text

# Between U+E000 and U+FFFF the order of code units and that of code points part.
EDGES = [0x00, 0x1F, 0x20, 0x2F, 0x7E, 0x7F, 0x80, 0xFF, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xF8FF, 0xFB33, 0xFFFD, 0xFFFF, 0x10000, 0x1F600, 0xF0000, 0x10FFFF]

MEANINGFUL = [
    "__proto__", "constructor", "prototype", "hasOwnProperty", "toString", "toJSON", "valueOf", "__defineGetter__", "then", "length", "name", "$ref", "@type",
    "__class__", "__dict__", "$serde_json::private::Number", "$serde_json::private::RawValue", "<<", "Symbol.iterator", "null", "true", "undefined", "NaN",
]  # fmt: skip


def key_edges() -> Iterator[Vector]:
    """Two keys that differ in one character, for every two characters at an edge."""
    for number, (one, other) in enumerate(combinations(EDGES, 2)):
        prefix, suffix = ("", "a", "é", "😀", "x")[number % 5], ("", "b", "\ue000")[number % 3]
        members = [(prefix + chr(code) + suffix, code) for code in (other, one)]
        yield text(f"U+{one:04X} against U+{other:04X}", object_text(members, ensure_ascii=number % 4 == 3))


def key_sets() -> Iterator[Vector]:
    rng = seeded("key_sets")
    for number in range(220):
        keys = list(dict.fromkeys(edge_key(rng) for _ in range(rng.randrange(2, 14))))
        yield text("keys of characters at the edges", object_text([(key, place) for place, key in enumerate(keys)], ensure_ascii=number % 3 == 0))


def edge_key(rng: random.Random) -> str:
    return "".join(chr(rng.choice(EDGES) if rng.random() < 0.7 else rng.choice((0x61, 0x62, 0xE001, 0x10001))) for _ in range(rng.randrange(5)))


def keys_like_numbers() -> Iterator[Vector]:
    """Some languages keep such members apart, and first."""
    names = [
        "0", "1", "2", "9", "10", "11", "100", "-0", "-1", "01", "1.0", "1e3", "1E3", " 1", "1 ", "+1", "0x1", "4294967294", "4294967295", "4294967296",
        "9007199254740991", "9007199254740992", "18446744073709551616", "Infinity", "NaN", "", "a", "B", "_",
    ]  # fmt: skip
    rng = seeded("keys_like_numbers")
    for _ in range(80):
        chosen = rng.sample(names, rng.randrange(2, 12))
        yield text("keys that look like numbers", object_text([(key, place) for place, key in enumerate(chosen)]))


def keys_with_a_meaning() -> Iterator[Vector]:
    for name in MEANINGFUL:
        key = json.dumps(name)
        yield text(f"{name} with an object", f'{{"b":1,{key}:{{"a":[]}},"_":2}}')
        yield text(f"{name} with null, alone", f"{{{key}:null}}")
        yield text(f"{name} inside itself", f"{{{key}:{{{key}:{{{key}:[{{{key}:true}}]}}}}}}")
        yield text(f"{name}, escaped", '{"' + "".join(map(escape, name)) + '":"text","z":0}')


def keys_with_long_prefixes() -> Iterator[Vector]:
    for length in [*range(1, 34), 63, 64, 65, 127, 128, 129, 255, 256, 257]:
        prefix = "k" * length
        yield text(
            f"keys alike for {length} letters",
            object_text([(prefix + "b", 1), (prefix, 2), (prefix + "a", 3), (prefix + "\U00010000", 4), (prefix + "\uffff", 5)]),
        )


def keys_escaped_in_part() -> Iterator[Vector]:
    """Sorted by what they mean, not by how they are written."""
    rng = seeded("keys_escaped_in_part")
    for _ in range(80):
        keys = list(dict.fromkeys("".join(rng.choice('ab\\"/\n\t\x01éz') for _ in range(rng.randrange(1, 5))) for _ in range(rng.randrange(2, 7))))
        members = ['"' + "".join(written(character, rng) for character in key) + f'":{place}' for place, key in enumerate(keys)]
        yield text("keys, some of their characters escaped", "{" + ",".join(members) + "}")


def written(character: str, rng: random.Random) -> str:
    return escape(character) if rng.random() < 0.5 else json.dumps(character, ensure_ascii=False)[1:-1]


def escape(character: str) -> str:
    return f"\\u{ord(character):04x}"


def many_keys() -> Iterator[Vector]:
    rng = seeded("many_keys")
    for count in (33, 65, 129, 257, 1000):
        keys = dict.fromkeys(f"{rng.randrange(10**4)}{chr(rng.choice((0x61, 0xE9, 0xE000, 0x1F600)))}" for _ in range(count))
        yield text(f"about {count} keys", object_text([(key, place) for place, key in enumerate(keys)]))


CLASSES = [key_edges, key_sets, keys_like_numbers, keys_with_a_meaning, keys_with_long_prefixes, keys_escaped_in_part, many_keys]
