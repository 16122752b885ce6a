"""Inputs that are no JSON, or no UTF-8: malformed sequences of bytes, texts cut off, tokens lost, doubled and misspelt, something behind the value."""

from collections.abc import Iterator

from accepted import seeded
from corpus import Vector, text
from release2.refusals import placed

TOKENS = ["{", '"a"', ":", "[", "1", ",", "-2.5e3", ",", "true", ",", "{", '"b\\n"', ":", "null", "}", "]", ",", '"c"', ":", '"x\\u00e9"', "}"]


def malformed_sequences() -> Iterator[Vector]:
    """Every byte that begins no character, and every way in which a character of n bytes can be wrong."""
    for byte in [*range(0x80, 0xC2), *range(0xF5, 0x100)]:
        yield f"the byte {byte:02X} alone", b'"' + bytes([byte]) + b'"'
    for lead, good in [(b"\xc2", b"\x80"), (b"\xdf", b"\xbf"), (b"\xe0\xa0", b"\x80"), (b"\xed\x9f", b"\xbf"), (b"\xef\xbf", b"\xbd"),
                       (b"\xf0\x90\x80", b"\x80"), (b"\xf4\x8f\xbf", b"\xbf")]:  # fmt: skip
        whole = lead + good
        for length in range(1, len(whole)):
            cut = whole[:length]
            yield f"{cut.hex()}, cut off before a quote", b'["' + cut + b'"]'
            yield f"{cut.hex()}, cut off before a letter", b'{"k' + cut + b'k":1}'
            yield f"{cut.hex()}, cut off before a character", b'"' + cut + "é".encode() + b'"'
            yield f"{cut.hex()}, cut off at the end", b'"a' + cut
        yield f"{whole.hex()} and one byte more", b'"' + whole + b'\x80"'
    for second in (0xA0, 0xAF, 0xB0, 0xBF):
        for third in (0x80, 0xBF):
            yield f"the surrogate ed{second:02x}{third:02x}", b'"' + bytes([0xED, second, third]) + b'"'
    for overlong in (b"\xc0\x80", b"\xc0\xbf", b"\xc1\x80", b"\xe0\x80\x80", b"\xe0\x9f\xbf", b"\xf0\x80\x80\x80", b"\xf0\x8f\xbf\xbf"):
        yield f"the overlong {overlong.hex()} as a key", b'{"' + overlong + b'":0}'
    for beyond in (b"\xf4\x90\x80\x80", b"\xf4\xbf\xbf\xbf", b"\xf5\x80\x80\x80", b"\xf7\xbf\xbf\xbf"):
        yield f"beyond U+10FFFF: {beyond.hex()}", b'[1,"' + beyond + b'"]'


def bytes_between_tokens() -> Iterator[Vector]:
    for number, byte in enumerate((0x80, 0xA0, 0xC3, 0xE2, 0xF0, 0xFE, 0xFF)):
        for place in range(0, len(TOKENS) + 1, 3):
            before, behind = "".join(TOKENS[:place]).encode(), "".join(TOKENS[place:]).encode()
            yield f"the byte {byte:02X} between tokens, {number}", before + bytes([byte]) + behind


def cut_off() -> Iterator[Vector]:
    """Every beginning of a text. A cut inside a character leaves no UTF-8, and is left to the malformed sequences."""
    whole = '{"a\\u00e9":[1.5e+3,true,{"b":null}],"c":"x\\\\y","d":[false,"\\""]}'
    for length in range(1, len(whole)):
        yield text(f"the first {length} bytes of a text", whole[:length])
    for unfinished in ("[", "[1,2", '{"":{}', '["\\n"', " tru", "nul", "-", "-0.", "1e", "1E-", '"\\ud83', '"a', "[[[[", '[{"a":[{"b":['):
        yield text(f"{unfinished!r}, unfinished", unfinished)


def lost_and_doubled_tokens() -> Iterator[Vector]:
    """A token is lost, or stands twice, or has a stranger before it. What is left is no JSON anywhere."""
    for place, token in enumerate(TOKENS):
        if 0 < place < len(TOKENS) - 1 and token in '{}[]:,"':
            yield text(f"token {place}, {token}, lost", "".join(TOKENS[:place] + TOKENS[place + 1 :]))
        if token in ":,{":
            yield text(f"token {place}, {token}, twice", "".join([*TOKENS[: place + 1], *TOKENS[place:]]))
        for stranger in ("@", "'", "\\", "=", ";", "\x00", "\x0b", "\u00a0", "\u2028", "\ufeff", "#", "/", "tru", "nul,", "+", ".", "*", "E", "é", "😀"):
            if place % 3 == len(stranger.encode()) % 3:
                yield text(f"{stranger!r} before token {place}", "".join([*TOKENS[:place], stranger, *TOKENS[place:]]))


def malformed_numbers() -> Iterator[Vector]:
    literals = [
        "00", "01", "-00", "-01", "007", "00.0", "01e1", "-", "-a", "--1", "+1", "+-1", "1.", "1.e1", "1.E", "-1.", ".1", "-.1", ".", "1e", "1E", "1e+", "1e-", "1.5e",
        "1.5E+", "1ee1", "1e++1", "1e1.", "1e.1", "1..1", "1.1.1", "1,1.", "0x1", "0b1", "0o7", "1_0", "1e1_0", "1f", "1.0f", "1L", "1n", "1d", "1/2", "1:1", "0e", "0.e1",
        "-0.", "-e1", "1 .5", "1. 5", "1 e5", "1e 5", "- 1", "1'000", "1\u00a0000", "１", "1．5", "−1", "∞", "1e５", "1.０", "½", "²", "NAN", "nan", "inf", "+Infinity",
        "infinity", "INFINITY", "Inf", "-inf", "-NaN", "+NaN", "-Infinit", "Infinit", "Na",
    ]  # fmt: skip
    for number, literal in enumerate(literals):
        # In an array, what begins well and goes on badly is not a value with something behind it.
        yield text(f"{literal} in an array", f"[{literal}]")
        if number % 2:
            yield text(f"{literal} in an object", f'{{"a":{literal}}}')


def malformed_escapes() -> Iterator[Vector]:
    for code in range(0x20, 0x7F):
        character = chr(code)
        if character not in '"\\/bfnrtu':
            yield text(f"\\{character}", placed(f'"\\{character}"', code))
    for digits in (
        "",
        "0",
        "00",
        "000",
        "g000",
        "0g00",
        "00g0",
        "000g",
        "-041",
        "+041",
        " 041",
        "0 41",
        "00 4",
        "0x41",
        "{41}",
        "é000",
        "000é",
        "００００",
        "00\\n",
        "004\\",
    ):
        yield text(f"\\u{digits}", f'["\\u{digits}"]')
        yield text(f"\\u{digits} in a key", f'{{"\\u{digits}":1}}')
    for behind in ("\\u", "\\u0", "\\udc0", "\\ug000"):
        yield text(f"a high half before the unfinished {behind}", f'["\\ud83d{behind}"]')
    for code in range(0x20):
        yield text(f"raw U+{code:04X} in a key", f'{{"a{chr(code)}":1}}')
        yield text(f"raw U+{code:04X} behind 20 letters", f'"{"abcdefghij" * 2}{chr(code)}z"')


def misspelt_words() -> Iterator[Vector]:
    for word in ("true", "false", "null"):
        for place in range(len(word)):
            yield text(f"{word} without letter {place}", f"[{word[:place]}{word[place + 1 :]}]")
            yield text(f"{word} with letter {place} in upper case", f"[{word[:place]}{word[place].upper()}{word[place + 1 :]}]")
        for behind in ("e", "1", "_", '"a"', "[]", "\x00", "é"):
            yield text(f"{word} followed by {behind!r} in an array", f"[{word}{behind}]")


def more_trailing_data() -> Iterator[Vector]:
    rng = seeded("more_trailing_data")
    values = ["1", "-0.5", "true", "null", '"a"', "[]", "{}", '{"a":[1,2]}', "1e5", '""']
    rests = [
        "1",
        " 1",
        "\n2",
        ",",
        "]",
        "}",
        ":",
        '"',
        "'",
        "null",
        "//",
        "#",
        ";",
        "\x00",
        "\x0c",
        "\u00a0",
        "\ufeff",
        "{}",
        "[]",
        "\\",
        "é",
        "😀",
        "-",
        "tru",
    ]
    for value in values:
        for rest in rests:
            if value[-1].isdigit() and rest[0] in "1":
                continue  # one longer number
            if rng.random() < 0.75:
                yield text(f"{rest!r} behind {value}", value + rest)


CLASSES = [
    ("invalid_utf8", malformed_sequences), ("invalid_utf8", bytes_between_tokens), ("syntax", cut_off), ("syntax", lost_and_doubled_tokens),
    ("syntax", malformed_numbers), ("syntax", malformed_escapes), ("syntax", misspelt_words), ("trailing_data", more_trailing_data),
]  # fmt: skip
