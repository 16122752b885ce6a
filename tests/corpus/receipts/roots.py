"""Keys that are pinned, and those that are refused: no keys, no points of the curve, and the weak ones, under which anybody can sign."""

import base64
import hashlib
from collections.abc import Iterator

from case import Case
from sealing import GROUP_ORDER, PINNED, STRANGER, VALID, bare, leaf, statement
from tampered import replaced

ONE = bare(VALID[5], proof=True)
# The eight points of small order in every encoding that names them (y, and y + p where it fits; with either sign), little-endian.
WEAK = [
    "01" + "00" * 31, "ec" + "ff" * 30 + "7f", "00" * 32, "00" * 31 + "80",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05", "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a", "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "01" + "00" * 30 + "80", "ec" + "ff" * 31, "ed" + "ff" * 30 + "7f", "ed" + "ff" * 31, "ee" + "ff" * 30 + "7f", "ee" + "ff" * 31,
]  # fmt: skip
FIELD = 2**255 - 19


def encoded(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def pinned() -> Iterator[Case]:
    root = PINNED.root
    yield Case("the key", [ONE], roots=(root,))
    yield Case("the key with spaces and line ends around", [ONE], roots=(f" {root}\r\n",))
    yield Case("the key twice", [ONE], roots=(root, root))
    yield Case("the key after another", [ONE], roots=(STRANGER.root, root))
    yield Case("another key", [ONE], "unknown_key", roots=(STRANGER.root,))


def refused() -> Iterator[Case]:
    raw, root = PINNED.public, PINNED.root
    for description, text in [
        ("without padding", root.rstrip("=")), ("with too much padding", root + "="), ("in the URL alphabet", root.replace("+", "-").replace("/", "_")),
        ("in hex", raw.hex()), ("with a space inside", root[:8] + " " + root[8:]), ("with a line end inside", root[:8] + "\n" + root[8:]), ("with a star", "*" + root[1:]),
        ("with unused bits set", root[:-2] + chr(ord(root[-2]) + 1) + "="), ("of 31 bytes", encoded(raw[:31])), ("of 33 bytes", encoded(raw + b"\0")), ("twice in one", root + root),
        ("its id", PINNED.key_id), ("empty", ""), ("a word", "root"), ("an X.509 key", encoded(bytes.fromhex("302a300506032b6570032100") + raw)),
        ("in PEM", f"-----BEGIN PUBLIC KEY-----\n{encoded(bytes.fromhex('302a300506032b6570032100') + raw)}\n-----END PUBLIC KEY-----\n"),
    ]:  # fmt: skip
        yield Case(f"the key {description}", [ONE], bad_input=True, roots=(text,))
    yield Case("a good key and a bad one", [ONE], bad_input=True, roots=(root, "x"))
    for hexadecimal in WEAK:
        yield Case(f"the weak key {hexadecimal[:8]}…{hexadecimal[-2:]}", [ONE], bad_input=True, roots=(encoded(bytes.fromhex(hexadecimal)),))
        yield Case(
            f"the weak key {hexadecimal[:8]}…{hexadecimal[-2:]} beside a good one", [ONE], bad_input=True, roots=(root, encoded(bytes.fromhex(hexadecimal)))
        )
    for y in no_points(12):
        yield Case(f"no point of the curve: y = {y}", [ONE], bad_input=True, roots=(encoded(y.to_bytes(32, "little")),))


def no_points(count: int) -> list[int]:
    """Small y for which the curve has no x (RFC 8032 section 5.1.3)."""
    d = -121665 * pow(121666, -1, FIELD) % FIELD
    found = []
    for y in range(2, 1000):
        x2 = (y * y - 1) * pow(d * y * y + 1, -1, FIELD) % FIELD
        if pow(x2, (FIELD - 1) // 2, FIELD) == FIELD - 1:
            found.append(y)
    return found[:count]


def signatures() -> Iterator[Case]:
    """Signatures that are not the one that RFC 8032 makes: the same with a multiple of the group's order, the parts of another."""
    raw = base64.b64decode(ONE["proof"]["signature"])
    point, scalar = raw[:32], int.from_bytes(raw[32:], "little")

    def signed(signature: bytes) -> dict:
        return replaced(ONE, encoded(signature), "proof", "signature")

    yield Case("the signature as it is", [signed(raw)])
    for times in range(1, 16):
        larger = scalar + times * GROUP_ORDER
        if larger < 2**256:
            yield Case(f"the scalar plus {times} times the order", [signed(point + larger.to_bytes(32, "little"))], "bad_signature")
    # Only the key's holder can make it, and RFC 8032 alone would let it pass.
    yield Case("the neutral point, and the scalar that fits it", [signed(fitting(WEAK[0]))], "bad_signature")
    yield Case("the scalar negated", [signed(point + (GROUP_ORDER - scalar).to_bytes(32, "little"))], "bad_signature")
    yield Case("the scalar 0", [signed(point + bytes(32))], "bad_signature")
    yield Case("the point's sign turned", [signed(point[:31] + bytes([point[31] ^ 0x80]) + raw[32:])], "bad_signature")
    yield Case("the halves swapped", [signed(raw[32:] + point)], "bad_signature")
    for hexadecimal in WEAK:
        yield Case(f"the weak point {hexadecimal[:8]}…{hexadecimal[-2:]} and the scalar 0", [signed(bytes.fromhex(hexadecimal) + bytes(32))], "bad_signature")
    for bit in range(0, 512, 37):
        changed = int.from_bytes(raw, "little") ^ (1 << bit)
        yield Case(f"bit {bit} turned", [signed(changed.to_bytes(64, "little"))], "bad_signature")


def fitting(point: str) -> bytes:
    """A signature with this point, which must be the neutral one, that satisfies the equation of RFC 8032 section 5.1.7."""
    raw = bytes.fromhex(point)
    signed = statement(1, leaf(bytes.fromhex(ONE["receipt_hash"])))
    challenge = int.from_bytes(hashlib.sha512(raw + PINNED.public + signed).digest(), "little")
    secret = int.from_bytes(hashlib.sha512(PINNED.seed).digest()[:32], "little") & ((1 << 254) - 8) | 1 << 254
    return raw + (challenge * secret % GROUP_ORDER).to_bytes(32, "little")


CLASSES = [pinned, refused, signatures]
