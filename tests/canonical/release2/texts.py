"""Strings: each escape and each page of Unicode, special characters at every place of a run, and forms that must not be folded."""

import json
import unicodedata
from collections.abc import Iterator

from accepted import object_text, random_value, seeded, spell, surrogates
from corpus import Vector, text

# The data that every Python carries unchanged for IDNA, so that another Python makes the same vectors.
UNICODE = unicodedata.ucd_3_2_0
SURROGATES = range(0xD800, 0xE000)


def latin_escapes() -> Iterator[Vector]:
    """U+0000 to U+017F, as escapes with either case of hex, and as they are where they may stand so."""
    for code in range(0x180):
        raw = "" if code < 0x20 or chr(code) in '"\\' else f',"{chr(code)}"'
        yield text(f"U+{code:04X}, escaped and raw", f'["\\u{code:04x}","\\u{code:04X}"{raw}]')


def pages() -> Iterator[Vector]:
    """The first and the last character of each page of 256, escaped and raw."""
    for page in range(0x200, 0x10000, 0x100):
        ends = [code for code in (page, page + 0xFF) if code not in SURROGATES]
        if ends:
            escaped = "".join(f"\\u{code:04x}" for code in ends)
            yield text(f"the ends of page U+{page:04X}", f'["{escaped}","{"".join(map(chr, ends))}"]')


def planes() -> Iterator[Vector]:
    """The ends of each plane beyond the first, its two noncharacters among them, and one character inside."""
    rng = seeded("planes")
    for plane in range(1, 17):
        for offset in (0, 1, rng.randrange(2, 0xFFFD), 0xFFFD, 0xFFFE, 0xFFFF):
            code = plane * 0x10000 + offset
            high, low = surrogates(code)
            yield text(f"U+{code:X}, as a pair of escapes and raw", f'["\\u{high:04X}\\u{low:04x}","{chr(code)}"]')


def surrogate_corners() -> Iterator[Vector]:
    for high in (0xD800, 0xD801, 0xD83D, 0xDBFE, 0xDBFF):
        for low in (0xDC00, 0xDC01, 0xDDFF, 0xDFFE, 0xDFFF):
            yield text("a pair of escapes from the corners", f'"a\\u{high:04x}\\u{low:04x}b"')


def noncharacters() -> Iterator[Vector]:
    for code in [*range(0xFDD0, 0xFDF0), 0xFFFE, 0xFFFF]:
        yield text(f"the noncharacter U+{code:04X}", f'{{"{chr(code)}":"\\u{code:04x}"}}')


def places_in_a_run() -> Iterator[Vector]:
    """Readers look at many bytes at once; a special one must be seen at every place of such a step."""
    for special in ('\\"', "\\\\", "\\u0000", "\\n", "\\u00e9", "é", "😀", "\x7f"):
        for place in range(35):
            yield text(f"{special!r} behind {place} letters", ('"' + "abcdefghij" * 4)[: place + 1] + special + 'tail"')


def run_lengths() -> Iterator[Vector]:
    for power in range(3, 12):
        for length in (2**power - 1, 2**power, 2**power + 1):
            yield text(f"{length} letters", f'"{"x" * length}"')
            yield text(f"{length} characters of two bytes", f'"{"é" * (length // 2)}"')
    yield text("64 KiB of letters", f'"{"y" * 65536}"')


def no_normal_form() -> Iterator[Vector]:
    """A character beside its four normal forms: whatever differs stays different, as a value and as a key."""
    for code in decomposing():
        character = chr(code)
        forms = [character] + [UNICODE.normalize(form, character) for form in ("NFC", "NFD", "NFKC", "NFKD")]
        yield text(f"U+{code:04X} and its normal forms, as values", json.dumps(forms, ensure_ascii=code % 2 == 0))
        keys = sorted(set(forms), key=forms.index)
        yield text(f"U+{code:04X} and its normal forms, as keys", object_text([(key, place) for place, key in enumerate(keys)]))


def decomposing() -> list[int]:
    """Of each stretch of characters that have another normal form, a few."""
    rng = seeded("decomposing")
    stretches = [
        (0xA0, 0x180, 30), (0x180, 0x370, 15), (0x370, 0x400, 15), (0x400, 0x600, 10), (0x600, 0xC00, 15), (0xC00, 0x1E00, 15), (0x1E00, 0x2000, 30),
        (0x2000, 0x2200, 25), (0x2200, 0x3000, 15), (0x3000, 0x3400, 20), (0xAC00, 0xD7A4, 15), (0xF900, 0xFB00, 15), (0xFB00, 0xFF00, 20),
        (0xFF00, 0xFFF0, 10), (0x1D100, 0x1D800, 10), (0x2F800, 0x2FA1E, 8),
    ]  # fmt: skip
    chosen = []
    for first, end, count in stretches:
        changing = [code for code in range(first, end) if UNICODE.normalize("NFKD", chr(code)) != chr(code)]
        chosen += sorted(rng.sample(changing, count))
    return chosen


def no_case_folding() -> Iterator[Vector]:
    groups = [
        "aA", "iıIİ", "sſS", "ßẞ", "σςΣ", "kKK", "åÅÅ", "ωΩΩ", "µμΜ", "ǆǅǄ", "θϑΘϴ", "βϐΒ", "фФ", "ԱաԵ", "ⴀႠ", "ｆＦ", "𐐀𐐨", "ꭰᎠ", "ⅷⅧ", "ⓐⒶ", "éÉ", "ÿŸ",
    ]  # fmt: skip
    for group in groups:
        yield text(f"{group}, as values", json.dumps([*group, group.lower(), group.upper()], ensure_ascii=False))
        yield text(f"{group}, as keys", object_text([(key, place) for place, key in enumerate(dict.fromkeys(group))], ensure_ascii=True))


def invisible() -> Iterator[Vector]:
    """Characters that cannot be seen, or that change how others are shown: none is dropped."""
    for code in [
        0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x180B, 0x180E, *range(0x200B, 0x2010), *range(0x2028, 0x2030), *range(0x205F, 0x2070),
        0x3000, 0x3164, 0xFE00, 0xFE0F, 0xFEFF, 0xFFA0, *range(0xFFF9, 0xFFFE), 0x1D173, 0xE0001, 0xE0020, 0xE007F, 0xE0100, 0xE01EF,
    ]:  # fmt: skip
        yield text(f"U+{code:04X} between letters and at both ends", json.dumps([f"a{chr(code)}b", f"{chr(code)}a{chr(code)}", "ab"], ensure_ascii=False))


def json_in_strings() -> Iterator[Vector]:
    rng = seeded("json_in_strings")
    for _ in range(40):
        inner = spell(random_value(rng, 3), rng)
        yield text("a JSON text inside a string", json.dumps({"body": inner, "again": json.dumps(inner)}, ensure_ascii=rng.random() < 0.5))


CLASSES = [
    latin_escapes, pages, planes, surrogate_corners, noncharacters, places_in_a_run, run_lengths, no_normal_form, no_case_folding, invisible, json_in_strings,
]  # fmt: skip
