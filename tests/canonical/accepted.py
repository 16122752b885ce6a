"""The inputs that have a canonical form, a function for each class."""

import json
import math
import random
import struct
from collections.abc import Iterator
from decimal import Decimal, getcontext

import strict_reader
from corpus import Vector, text

getcontext().prec = 1200  # enough for the exact decimal form of every double and of every halfway point


def interoperability() -> Iterator[Vector]:
    for description, content in [
        ("merge pull request", '{"tool":"github","action":"merge_pull_request","resource":"payments-service#482","mutates_state":true,"parameters":{"base_branch":"main"}}'),
        ("no resource, raw UTF-8", '{"tool":"github","action":"create_pull_request","resource":null,"mutates_state":true,"parameters":{"title":"Café ☕ déjà vu"}}'),
        ("keys to sort, one not ASCII", '{"tool":"t","action":"x","resource":null,"mutates_state":false,"parameters":{"z":1,"a":2,"é":3}}'),
        ("integer and boolean parameters", '{"tool":"github","action":"merge_pull_request","resource":"r","mutates_state":true,"parameters":{"pr_number":482,"draft":false}}'),
    ]:
        yield text(description, content)


def rfc_examples() -> Iterator[Vector]:
    yield text(
        "RFC 8785 section 3.2.2",
        '{\n  "numbers": [333333333.33333329, 1E30, 4.50,\n              2e-3, 0.000000000000000000000000001],\n'
        '  "string": "\\u20ac$\\u000F\\u000aA\'\\u0042\\u0022\\u005c\\\\\\"\\/",\n  "literals": [null, true, false]\n}',
    )
    yield text(
        "RFC 8785 section 3.2.3, key order",
        '{"\\u20ac":"Euro Sign","\\r":"Carriage Return","\\ufb33":"Hebrew Letter Dalet With Dagesh","1":"One",'
        '"\\ud83d\\ude00":"Emoji: Grinning Face","\\u0080":"Control","\\u00f6":"Latin Small Letter O With Diaeresis"}',
    )


def scalars() -> Iterator[Vector]:
    for literal in ["null", "true", "false", "0", "1", "-1", '""', '"a"', "{}", "[]", "[[]]", "[{}]", '{"":{}}', "[null]"]:
        yield text(f"{literal} alone", literal)


def integers() -> Iterator[Vector]:
    for number in [7, 10, 100, 482, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 10**15, 2**53 - 2, 2**53 - 1]:
        yield text(f"integer {number}", str(number))
        yield text(f"integer -{number}", f"-{number}")
    yield text("minus zero as an integer literal", "-0")


def number_spellings() -> Iterator[Vector]:
    for literal in [
        "-0.0", "0.0", "0e0", "0E+5", "-0e-5", "0e400", "0e99999999999999999999", "0.0e400", "1.0", "1.00", "10.0", "1e0",
        "1E0", "1e+0", "1e-0", "1E2", "1e+2", "1e02", "1e0000000000000000000000002", "100e-2", "123e-2", "0.1e1", "0.10", "0.5",
        "-0.5", "4.50", "2e-3", "1.5E+300", "1.5e-300", "1e-400", "-1e-400", "1e-99999999999999999999", "12345678901234567890.0",
        "9007199254740992.0", "9007199254740993.0", "-9007199254740993.0", "9.007199254740993e15", "0.1", "0.2",
        "0.30000000000000004", "3.141592653589793238462643383279502884197169399375105820974944592307816406286",
    ]:
        yield text(f"{literal[:40]} as a literal", literal)
    for zeros in (50, 5000):
        yield text(f"one with {zeros} zeros behind the point", "1." + "0" * zeros)
        yield text(f"a mantissa with {zeros} leading zeros and the exponent that balances them", f"0.{'0' * zeros}1e{zeros + 1}")
        yield text(f"a mantissa with {zeros} trailing zeros and the exponent that balances them", f"25{'0' * zeros}e-{zeros + 1}")
        yield text(f"halfway above 2^53, decided {zeros} digits later", f"9007199254740993.{'0' * zeros}1")
        yield text(f"halfway above 2^53, {zeros} zeros that decide nothing", f"9007199254740993.{'0' * zeros}")


def exponent_switches() -> Iterator[Vector]:
    """ECMAScript writes plain digits from 1e-6 up to, and not including, 1e21."""
    for exponent in [-8, -7, -6, -5, -4, -1, 1, 5, 14, 15, 16, 17, 19, 20, 21, 22, 23, 100, 300, 308, -100, -307, -308, -323]:
        yield text(f"1e{exponent}", f"1e{exponent}")
        yield text(f"-1.5e{exponent}", f"-1.5e{exponent}")
    for power in (1e21, 1e-6, 1e20, 1e16, 1e-7):
        yield text(f"the double below {power}", repr(math.nextafter(power, 0.0)))
        yield text(f"the double above {power}", repr(math.nextafter(power, math.inf)))
    for digits in range(16, 22):
        yield text(f"{digits} digits as a double", "1" + "2345678901234567890123"[: digits - 1] + ".0")


def double_edges() -> Iterator[Vector]:
    """Bits of doubles where printing or reading goes wrong first; most are of RFC 8785 appendix B."""
    for bits in [
        0x0000000000000001, 0x8000000000000001, 0x0000000000000002, 0x000FFFFFFFFFFFFF, 0x0010000000000000,
        0x0010000000000001, 0x7FEFFFFFFFFFFFFF, 0xFFEFFFFFFFFFFFFF, 0x7FEFFFFFFFFFFFFE, 0x4340000000000000,
        0xC340000000000000, 0x4340000000000001, 0x433FFFFFFFFFFFFF, 0x4430000000000000, 0x44B52D02C7E14AF5,
        0x44B52D02C7E14AF6, 0x44B52D02C7E14AF7, 0x444B1AE4D6E2EF4E, 0x444B1AE4D6E2EF4F, 0x444B1AE4D6E2EF50,
        0x3EB0C6F7A0B5ED8C, 0x3EB0C6F7A0B5ED8D, 0x41B3DE4355555553, 0x41B3DE4355555554, 0x41B3DE4355555555,
        0x41B3DE4355555556, 0x41B3DE4355555557, 0xBECBF647612F3696, 0x43143FF3C1CB0959, 0x3FF0000000000001,
        0x3FEFFFFFFFFFFFFF, 0x3CB0000000000000, 0x3FD5555555555555, 0x400921FB54442D18, 0x4005BF0A8B145769,
        0x7FD0000000000000, 0x0020000000000000, 0x3E60000000000000, 0x4024000000000000,
    ]:
        double = struct.unpack(">d", bits.to_bytes(8, "big"))[0]
        yield text(f"double 0x{bits:016x}, shortest digits", float_literal(repr(double)))
        yield text(f"double 0x{bits:016x}, 17 significant digits", f"{double:.16e}")


def float_literal(spelled: str) -> str:
    """Makes sure that a literal is one of a double, not of an integer."""
    return spelled if any(mark in spelled for mark in ".eE") else spelled + ".0"


def halfway_points() -> Iterator[Vector]:
    """The exact point between two doubles rounds to the even one; the least digit beside it decides."""
    for below in [1.0, math.nextafter(1.0, 2.0), 0.1, 1e22, 1e23, 5e-324, 2.2250738585072011e-308, 9007199254740994.0, 1.7976931348623155e308, 123456.789]:
        halfway = (Decimal(below) + Decimal(math.nextafter(below, math.inf))) / 2
        least = Decimal((0, (1,), halfway.as_tuple().exponent - 4))
        yield text(f"halfway above {below!r}", exact_literal(halfway))
        yield text(f"just over halfway above {below!r}", exact_literal(halfway + least))
        yield text(f"just under halfway above {below!r}", exact_literal(halfway - least))
    half_of_least = Decimal(5e-324) / 2
    yield text("half of the least double, which rounds to zero", exact_literal(half_of_least))
    yield text("just over half of the least double", exact_literal(half_of_least * Decimal("1.0001")))


def exact_literal(number: Decimal) -> str:
    """Plain digits where they are few, an exponent where they would be hundreds."""
    return float_literal(format(number, "f") if abs(number.adjusted()) < 40 else str(number))


def shortest_ties() -> Iterator[Vector]:
    """Doubles that lie exactly between their two shortest spellings: ECMAScript takes the even last digit."""
    rng = seeded("shortest_ties")
    for eighths in (1, 3, 5, 7):
        for sign in (1, -1):
            double = sign * (rng.randrange(2**47, 2**48) + eighths / 8)
            yield text(f"{eighths} eighths above an integer near 2^47", f"{Decimal(double)}")
            yield text(f"{eighths} eighths above an integer near 2^47, shortest digits", repr(double))
    for exponent in (-44, -24, -1022, 60, 67, 89, 1023):
        yield text(f"2^{exponent}, whose neighbours are not equally near", float_literal(repr(2.0**exponent)))


def random_doubles() -> Iterator[Vector]:
    rng = seeded("random_doubles")
    for _ in range(60):
        double = random_double(rng)
        style = rng.choice(["shortest", "17 digits", "exact"])
        if style == "shortest":
            literal = float_literal(repr(double))
        elif style == "17 digits":
            literal = f"{double:.16e}"
        else:
            literal = float_literal(str(Decimal(double)))
        yield text(f"a random double, {style}", literal)


def escapes() -> Iterator[Vector]:
    for code in range(0x20):
        yield text(f"C0 control U+{code:04X} as \\u escape", f'"\\u{code:04x}"')
    for name in '"\\/bfnrt':
        yield text(f"short escape \\{name}", f'"a\\{name}b"')
    for code in [0x20, 0x22, 0x27, 0x2F, 0x3C, 0x5C, 0x61, 0x7F, 0x80, 0x9F, 0xA0, 0xAD, 0xE9, 0x7FF, 0x800, 0x200B, 0x200D, 0x2028,
                 0x2029, 0x20AC, 0xD7FF, 0xE000, 0xFB33, 0xFDD0, 0xFEFF, 0xFFFD, 0xFFFE, 0xFFFF]:
        yield text(f"U+{code:04X} as \\u escape", f'"\\u{code:04X}"')
        if code not in (0x22, 0x5C):
            yield text(f"U+{code:04X} raw", f'"{chr(code)}"')
    for code in [0x10000, 0x1F600, 0x1D11E, 0x1FFFF, 0xF0000, 0x10FFFF]:
        high, low = surrogates(code)
        yield text(f"U+{code:X} as a pair of escapes", f'"\\u{high:04x}\\u{low:04X}"')
        yield text(f"U+{code:X} raw", f'"{chr(code)}"')
    yield text("escaped backslash before what looks like an escape", r'"\\u0041\\n\\\\"')
    yield text("escaped backslash before what looks like a surrogate", r'"\\ud800"')
    yield text("two pairs in a row", r'"\ud83d\ude00\ud83d\ude01"')
    yield text("hex digits in either case", r'"\u00E9\u00e9\u00eF"')
    yield text("an escaped NUL inside a word", r'"a\u0000b"')


def surrogates(code: int) -> tuple[int, int]:
    return 0xD800 + ((code - 0x10000) >> 10), 0xDC00 + ((code - 0x10000) & 0x3FF)


def key_order() -> Iterator[Vector]:
    sets = {
        "astral before private use": ["\U0001f600", "\ue000"],
        "astral before U+FB33 and U+FFFD": ["\ufb33", "\ufffd", "\U00010000", "\U0010ffff"],
        "astral and private use behind one prefix": ["x\U0001f600", "x\ue000", "x\uffff", "x"],
        "the ends of every range": ["\x7f", "\x80", "\u07ff", "\u0800", "\ud7ff", "\ue000", "\uffff", "\U00010000", "\U0010ffff", "\x00", ""],
        "private-use planes": ["\ue000", "\uf8ff", "\U000f0000", "\U00100000", "\U0010fffd"],
        "differing in the low surrogate": ["\U0001f601", "\U0001f600", "\U0001f5ff"],
        "upper case before lower case": ["b", "B", "a", "A", "_", "0"],
        "digits as text, not as numbers": ["10", "9", "1", "01", "2", "100", "1.5", "-1"],
        "prefixes first": ["abc", "ab", "a", "", "abcd", "b"],
        "escaped characters sort unescaped": ["\n", '"', "\\", "\t", "\x1f", " ", "!", "]", "["],
        "names with a meaning elsewhere": ["__proto__", "constructor", "toString", "toJSON", "hasOwnProperty", "$ref", "length", "prototype"],
        "names with a meaning inside parsers": ["$serde_json::private::RawValue", "$serde_json::private::Number", "__class__", "@type", "<<"],
        "composed and decomposed": ["\u00e9", "e\u0301", "e", "f"],
        "accents": ["é", "e", "z", "ä", "Z", "ß", "ss"],
    }
    rng = seeded("key_order")
    for description, keys in sets.items():
        members = list(enumerate(keys))
        rng.shuffle(members)
        yield text(f"{description}, raw", object_text([(key, index) for index, key in members]))
        yield text(f"{description}, escaped", object_text([(key, index) for index, key in members], ensure_ascii=True))
    many = [(f"k{rng.randrange(10**6)}-{index}", index) for index in range(200)]
    yield text("200 keys", object_text(many))


def object_text(members: list, ensure_ascii: bool = False) -> str:
    written = (f"{json.dumps(key, ensure_ascii=ensure_ascii)}:{json.dumps(value)}" for key, value in members)
    return "{" + ",".join(written) + "}"


def never_folded() -> Iterator[Vector]:
    """Equal to a reader, different to a computer: the canonical form keeps them apart."""
    for description, strings in {
        "e acute, composed and decomposed": ["\u00e9", "e\u0301"],
        "A ring: letter, sign, decomposed": ["\u00c5", "\u212b", "A\u030a"],
        "Hangul, composed and as jamo": ["\uac00", "\u1100\u1161"],
        "a ligature and its letters": ["\ufb01", "fi"],
        "full width and ASCII": ["\uff21", "A"],
        "combining marks in either order": ["q\u0307\u0323", "q\u0323\u0307"],
        "superscript and digit": ["\u00b2", "2"],
        "Cyrillic and Latin look-alikes": ["\u0430", "a"],
        "ohm sign and omega": ["\u2126", "\u03a9"],
        "sharp s and its capitals": ["\u00df", "\u1e9e", "SS"],
        "no-break space and space": ["\u00a0", " "],
        "zero-width joiner inside a word": ["a\u200db", "ab"],
        "right-to-left override": ["\u202eabc", "abc"],
        "emoji with and without a variation selector": ["\u2764\ufe0f", "\u2764"],
        "family emoji": ["\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f468\U0001f469\U0001f467"],
        "line endings": ["a\r\nb", "a\nb", "a\rb"],
        "a byte order mark inside a string": ["\ufeffa", "a"],
    }.items():
        yield text(f"{description}, as values", json.dumps(strings, ensure_ascii=False))
        yield text(f"{description}, as keys", object_text([(key, index) for index, key in enumerate(strings)]))


def whitespace() -> Iterator[Vector]:
    yield text("all four kinds around a scalar", " \t\r\n1 \t\r\n")
    yield text("everywhere it may stand", ' { "a" : [ 1 , 2 , { } , [ ] ] , "b" : { "c" : null } } ')
    yield text("CRLF line ends", '{\r\n\t"b": 1,\r\n\t"a": 2\r\n}\r\n')
    yield text("kept inside strings", '[" a  b ", "\u00a0", "\u3000"]')
    yield text("a thousand spaces", " " * 500 + "[]" + " " * 500)
    yield text("inside empty containers", "[{ \n }, [ \t ]]")


def depth() -> Iterator[Vector]:
    for levels in (2, 64, 127, 128):
        yield text(f"{levels} arrays", "[" * levels + "]" * levels)
        yield text(f"{levels} objects", '{"a":' * levels + "1" + "}" * levels)
    yield text("128 levels, arrays and objects in turn", '[{"a":' * 64 + "null" + "}]" * 64)
    yield text("129 brackets, never more than 2 open", "[" + ",".join(["[]"] * 128) + "]")
    yield text("brackets in a string are not depth", '["' + "[{" * 100 + '"]')


def long_strings() -> Iterator[Vector]:
    yield text("16 KiB of ASCII", '"' + "a" * 16384 + '"')
    yield text("4 Ki characters of three bytes", '"' + "\u20ac" * 4096 + '"')
    yield text("2 Ki characters of four bytes, as escapes", '"' + r"\ud83d\ude00" * 2048 + '"')
    yield text("a key of 4 KiB", '{"' + "k" * 4096 + '":1}')
    yield text("2 Ki quotes and backslashes", '"' + '\\"\\\\' * 1024 + '"')
    yield text("1 Ki controls", '"' + r"\u0001" * 1024 + '"')


def keys_taken_as_they_are() -> Iterator[Vector]:
    yield text("one key in two objects", '[{"a":1},{"a":2}]')
    yield text("one key at two depths", '{"a":{"a":{"a":1}}}')
    yield text("keys that differ in case", '{"a":1,"A":2}')
    yield text("keys that differ in an escaped backslash", r'{"\\u0061":1,"a":2}')
    yield text("the empty key beside a space", '{"":1," ":2}')
    yield text("a name with a meaning inside a parser, alone, with a JSON text", '{"$serde_json::private::RawValue":"[1]"}')
    yield text("a name with a meaning inside a parser, alone, with a number", '{"$serde_json::private::Number":"1"}')


def actions() -> Iterator[Vector]:
    rng = seeded("actions")
    verbs = ["get_file_contents", "merge_pull_request", "create_issue", "send_email", "read", "delete_branch", "execute"]
    for _ in range(30):
        action = {
            "tool": rng.choice(["github", "mail", "shell", "mcp:files", "stripe"]),
            "action": rng.choice(verbs),
            "resource": rng.choice([None, "acme/api#17", "payments-service", "arn:aws:s3:::bucket/key", "https://example.com/a?b=c&d=é"]),
            "mutates_state": rng.random() < 0.5,
            "parameters": {random_key(rng): random_value(rng, 3) for _ in range(rng.randrange(6))},
        }
        yield text("a random action", spell(action, rng))


def random_documents() -> Iterator[Vector]:
    rng = seeded("random_documents")
    for _ in range(90):
        yield text("a random document, its whitespace, key order and escapes random too", spell(random_value(rng, 5), rng))


def seeded(name: str) -> random.Random:
    """Each class has its own generator, so that one class can grow without changing another."""
    return random.Random(f"aegis-jcs-1/{name}")


def random_double(rng: random.Random) -> float:
    while True:
        double = struct.unpack(">d", rng.getrandbits(64).to_bytes(8, "big"))[0]
        if math.isfinite(double):
            return double


def random_string(rng: random.Random) -> str:
    alphabets = ["abcXYZ019 _-./", '\x00\x01\x08\t\n\x0b\x0c\r\x1f"\\/', "éßñ€\u0301\u200d", "\ue000\uf8ff\ufb33\uffff\ufffd", "😀𝄞\U00010000\U0010ffff"]
    return "".join(rng.choice(rng.choice(alphabets)) for _ in range(rng.randrange(9)))


def random_key(rng: random.Random) -> str:
    return rng.choice(["path", "title", "body", "amount", "to", "ref", "labels", "größe"]) if rng.random() < 0.6 else random_string(rng)


def random_value(rng: random.Random, levels: int):
    kind = rng.randrange(8 if levels > 0 else 6)
    if kind == 0:
        return rng.choice([None, True, False])
    if kind == 1:
        return rng.randrange(-1000, 1000)
    if kind == 2:
        return rng.randrange(-(2**53) + 1, 2**53)
    if kind == 3:
        return random_double(rng)
    if kind == 4:
        return round(rng.uniform(-1e6, 1e6), rng.randrange(6))
    if kind == 5:
        return random_string(rng)
    if kind == 6:
        return [random_value(rng, levels - 1) for _ in range(rng.randrange(6))]
    return {random_key(rng): random_value(rng, levels - 1) for _ in range(rng.randrange(8))}


def spell(value, rng: random.Random) -> str:
    """One of the many JSON texts for a value."""
    gap = "".join(rng.choice(strict_reader.WHITESPACE) for _ in range(rng.choice([0, 0, 0, 1, 3])))
    if isinstance(value, dict):
        members = [f"{gap}{spell_string(key, rng)}{gap}:{spell(member, rng)}" for key, member in value.items()]
        rng.shuffle(members)
        return gap + "{" + ",".join(members) + gap + "}" + gap
    if isinstance(value, list):
        return gap + "[" + ",".join(spell(item, rng) for item in value) + gap + "]" + gap
    if isinstance(value, str):
        return gap + spell_string(value, rng) + gap
    if isinstance(value, float):
        return gap + rng.choice([float_literal(repr(value)), f"{value:.16e}", f"{value:.18E}"]) + gap
    return gap + json.dumps(value) + gap


def spell_string(content: str, rng: random.Random) -> str:
    spelled = []
    for character in content:
        if rng.random() < 0.7:
            spelled.append(json.dumps(character, ensure_ascii=False)[1:-1])
            continue
        code = ord(character)
        units = surrogates(code) if code > 0xFFFF else (code,)
        spelled.extend("\\u" + format(unit, rng.choice(["04x", "04X"])) for unit in units)
    return '"' + "".join(spelled) + '"'


CLASSES = [
    interoperability, rfc_examples, scalars, integers, number_spellings, exponent_switches, double_edges, halfway_points, shortest_ties, random_doubles,
    escapes, key_order, never_folded, whitespace, depth, long_strings, keys_taken_as_they_are, actions, random_documents,
]  # fmt: skip
