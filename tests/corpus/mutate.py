"""Inputs for the fuzzer, from a seed alone: documents made at random, with and without faults, and inputs of the corpus, damaged."""

import random

TOKENS = [
    b"{", b"}", b"[", b"]", b":", b",", b'"', b"\\", b" ", b"\n", b"\t", b"\r", b"0", b"1", b"-", b"+", b".", b"e", b"E", b"e5", b"e-400", b"e400", b"null", b"true", b"false",
    b"NaN", b"Infinity", b"-Infinity", b"\\u0000", b"\\ud800", b"\\udc00", b"\\ud83d\\ude00", b"\\u", b"\\n", b"\\/", b"\\x", b"\x00", b"\x1f", b"\x7f", b"\x80", b"\xc0\x80",
    b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xf0\x9f\x98\x80", b"\xf4\x90\x80\x80", b"\xff", "é".encode(), "\ue000".encode(), "\u2028".encode(), b'"a":', b'"a":1,', b"[" * 60, b"]" * 60,
    b'{"":' * 30, b"9007199254740991", b"9007199254740992", b"0.1", b"1e21", b"1e-7", b"5e-324", b"1.7976931348623158e308", b"2.4703282292062328e-324", b"00", b"1e", b'"":""',
]  # fmt: skip
CHARACTERS = '\x00\x08\t\n\x0c\r\x1f "/\\aAz09{}[]:,\x7f\x80éßſ\u0301\u07ff\u0800\u2028\ud7ff\ue000\ufb33\ufeff\uffff\U00010000😀\U0010ffff'
SPACES = " \t\n\r"
# Few enough that an object often has one twice.
KEYS = [b'"a"', b'"b"', b'"\\u0061"', b'"\xc3\xa9"', b'"\\u00E9"', b'"e\xcc\x81"', b'"__proto__"', b'"10"', b'"9"', b'""']
NOT_FINITE = [b"NaN", b"Infinity", b"-Infinity"]


def batch(rng: random.Random, inputs: list[bytes], count: int) -> list[dict]:
    """So many inputs, each with a limit of its own now and then."""
    entries = []
    for _ in range(count):
        kind, data = made(rng, inputs)
        limit = {"limits": {"max_bytes": max(1, len(data) + rng.randrange(-3, 30))}} if rng.random() < 0.06 else {}
        entries.append({"class": kind, "data": data} | limit)
    return entries


def made(rng: random.Random, inputs: list[bytes]) -> tuple[str, bytes]:
    kind = rng.choices(("damaged", "document", "number", "text", "spliced", "deep"), (36, 27, 15, 12, 7, 3))[0]
    if kind == "damaged":
        return kind, damaged(rng.choice(inputs), rng)
    if kind == "spliced":
        one, other = rng.choice(inputs), rng.choice(inputs)
        return kind, one[: rng.randrange(len(one) + 1)] + other[rng.randrange(len(other) + 1) :]
    if kind == "number":
        literal = number(rng)
        return kind, rng.choice(("{}", "[{}]", '{{"a":{}}}', " {} ")).format(literal).encode()
    if kind == "text":
        return kind, string(rng)
    if kind == "deep":
        return kind, deep(rng)
    whole = document(rng, 4)
    return kind, damaged(whole, rng) if rng.random() < 0.3 else whole


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A few edits, of bytes, of tokens and of stretches."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((1, 1, 2, 4, 16)))
        edit = rng.randrange(7)
        if edit == 0:
            data = data[:start] + data[end:]
        elif edit == 1:
            data = data[:start] + rng.choice(TOKENS) + data[start:]
        elif edit == 2:
            data = data[:start] + rng.choice(TOKENS) + data[end:]
        elif edit == 3:
            data = data[:end] + data[start:end] + data[end:]
        elif edit == 4 and start < len(data):
            data = data[:start] + bytes([data[start] ^ 1 << rng.randrange(8)]) + data[start + 1 :]
        elif edit == 5:
            data = data[:start] if rng.random() < 0.5 else data + rng.choice(TOKENS)
        else:
            data = data[:start] + bytes([rng.randrange(256)]) + data[end:]
    return data


def deep(rng: random.Random) -> bytes:
    """Around the limit of depth, closed or not."""
    levels = rng.choice((126, 127, 128, 129, 130, rng.randrange(2, 300)))
    opened = [rng.choice((b"[", b"[", b'{"":', b"[0,", b'{"a":[],"b":')) for _ in range(levels)]
    closed = [b"]" if one.startswith(b"[") else b"}" for one in reversed(opened)]
    inside = rng.choice((b"", b"0", b"[]", b"{}", b'"["', document(rng, 1)))
    whole = b"".join(opened) + (inside or b"1") + b"".join(closed)
    return damaged(whole, rng) if rng.random() < 0.3 else whole


def document(rng: random.Random, levels: int) -> bytes:
    gap = "".join(rng.choice(SPACES) for _ in range(rng.choice((0, 0, 0, 0, 2)))).encode()
    kind = rng.randrange(7 if levels else 5)
    if kind == 0:
        value = rng.choice((b"null", b"true", b"false") if rng.random() < 0.97 else NOT_FINITE)
    elif kind in (1, 2):
        value = number(rng).encode()
    elif kind in (3, 4):
        value = string(rng)
    elif kind == 5:
        value = b"[" + b",".join(document(rng, levels - 1) for _ in range(rng.randrange(5))) + b"]"
    else:
        members = (gap + (rng.choice(KEYS) if rng.random() < 0.5 else string(rng)) + gap + b":" + document(rng, levels - 1) for _ in range(rng.randrange(6)))
        value = b"{" + b",".join(members) + b"}"
    return gap + value + gap


def number(rng: random.Random) -> str:
    """Mostly a literal of JSON's grammar, of any length and around every edge."""
    kind = rng.randrange(8)
    sign = rng.choice(("", "", "-"))
    if kind == 0:
        return f"{sign}{rng.choice((0, 1, 2**53 - 1, 2**53, 2**53 + 1, 2**63, 2**64, 10**16)) + rng.randrange(-2, 3)}"
    if kind == 1:
        return sign + digits(rng, rng.randrange(1, 25))
    if kind == 2:
        return f"{sign}{rng.randrange(10 ** rng.randrange(1, 18))}e{rng.randrange(-345, 330)}"
    if kind == 3:
        return f"{sign}{digits(rng, rng.randrange(1, 20))}.{digits(rng, rng.randrange(1, 40), lead=True)}{rng.choice(('', 'e5', 'E-12', 'e+300', 'e-300'))}"
    if kind == 4:
        return f"{sign}0.{'0' * rng.randrange(400)}{digits(rng, rng.randrange(1, 30))}e{rng.randrange(-20, 720)}"
    if kind == 5:
        return f"{sign}{rng.choice(('1797693134862315', '22250738585072014', '4940656458412465', '24703282292062327'))}{digits(rng, rng.randrange(1, 30), lead=True)}e{rng.choice((-365, -340, -324, 279, 290, 292, 293))}"
    if kind == 6:
        return repr(rng.uniform(-1, 1) * 10.0 ** rng.randrange(-30, 30))
    return "".join(rng.choice("0123456789.eE+-") for _ in range(rng.randrange(1, 9)))


def digits(rng: random.Random, count: int, *, lead: bool = False) -> str:
    text = "".join(rng.choice("0123456789") if rng.random() < 0.7 else "0" for _ in range(count))
    return text if lead else (text.lstrip("0") or "0")


def string(rng: random.Random) -> bytes:
    """Raw characters and escapes; half a pair, a raw control or an unknown escape now and then."""
    parts = []
    for _ in range(rng.choice((0, 1, 1, 2, 3, 5, 20))):
        character = rng.choice(CHARACTERS)
        code = ord(character)
        if character in '"\\' or code < 0x20 or rng.random() < 0.4:
            if rng.random() < 0.01:
                parts.append(character.encode("utf-8", "surrogatepass"))
            units = (code,) if code < 0x10000 else (0xD800 + (code - 0x10000 >> 10), 0xDC00 + (code & 0x3FF))
            parts += [("\\u" + format(unit, rng.choice(("04x", "04X")))).encode() for unit in units]
            if rng.random() < 0.03:
                parts.pop()
        else:
            parts.append(character.encode("utf-8", "surrogatepass"))
        if rng.random() < 0.004:
            parts.append(rng.choice(TOKENS))
    return b'"' + b"".join(parts) + b'"'
