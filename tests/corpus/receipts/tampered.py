"""One field of a published event changed, emptied or lost: of its columns, its receipt and its proof; nothing sealed anew."""

import copy
from collections.abc import Iterator

from case import Case
from sealing import ADDED, STRANGER, VALID, bare

# A decision about an approval and the line before it, of the same commit: it has nearly all facts that a receipt can have.
BEFORE, EVENT = VALID[1], VALID[2]


def changed(event: dict, *path: str | int) -> dict:
    """The event with the value at `path` replaced by another of its type."""
    copied = copy.deepcopy(event)
    holder = copied
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = other_than(holder[path[-1]])
    return copied


def other_than(value: object) -> object:
    if value is None:
        return "x"
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, list):
        return [*value, "x"]
    if isinstance(value, dict):
        return value | {"x": 1}
    first = {"0": "1", "a": "b"}.get(value[:1], "0" if value[:1].isdigit() else "a")
    return first + value[1:]


def without(event: dict, *path: str) -> dict:
    copied = copy.deepcopy(event)
    holder = copied
    for key in path[:-1]:
        holder = holder[key]
    del holder[path[-1]]
    return copied


def replaced(event: dict, value: object, *path: str) -> dict:
    copied = copy.deepcopy(event)
    holder = copied
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    return copied


def body_fields() -> Iterator[Case]:
    for key, value in EVENT["receipt"].items():
        code = "unknown_schema" if key == "schema" else "hash_mismatch"
        yield Case(f"the body's {key} changed", [changed(EVENT, "receipt", key)], code)
        gone = "malformed" if key in ("schema", "receipt_hash") else "hash_mismatch"
        yield Case(f"the body's {key} lost", [without(EVENT, "receipt", key)], gone)
        if value is not None:
            yield Case(f"the body's {key} emptied", [replaced(EVENT, None, "receipt", key)], gone)
        if isinstance(value, str):
            yield Case(f"the body's {key} made a number", [replaced(EVENT, 5, "receipt", key)], gone)
    yield Case("a key that the body did not have", [replaced(EVENT, None, "receipt", "note")], "hash_mismatch")
    yield Case("the body's seq as a text", [replaced(EVENT, "3", "receipt", "seq")], "hash_mismatch")
    yield Case("the body's receipt_hash in upper case", [replaced(EVENT, EVENT["receipt_hash"].upper(), "receipt", "receipt_hash")], "hash_mismatch")
    yield Case("the body's receipt_hash without its last digit", [replaced(EVENT, EVENT["receipt_hash"][:-1], "receipt", "receipt_hash")], "hash_mismatch")
    yield Case("the body's receipt_hash with a space", [replaced(EVENT, EVENT["receipt_hash"] + " ", "receipt", "receipt_hash")], "hash_mismatch")
    yield Case("the body's receipt_hash with 0x", [replaced(EVENT, "0x" + EVENT["receipt_hash"], "receipt", "receipt_hash")], "hash_mismatch")
    yield Case("the body of another event", [replaced(EVENT, BEFORE["receipt"], "receipt")], "hash_mismatch")
    moved = replaced(replaced(EVENT, BEFORE["receipt"], "receipt"), BEFORE["receipt_hash"], "receipt_hash")
    yield Case("the receipt of another event, with its hash", [moved], "digest_mismatch")


def columns() -> Iterator[Case]:
    for key in EVENT:
        if key in ADDED:
            continue
        yield Case(f"the event's {key} changed", [changed(EVENT, key)], "digest_mismatch")
        yield Case(f"the event's {key} lost", [without(EVENT, key)], "digest_mismatch")
        yield Case(f"the event's {key} emptied", [replaced(EVENT, None, key)], "digest_mismatch")
    yield Case("a column that the event did not have", [replaced(EVENT, "x", "note")], "digest_mismatch")
    yield Case("a column that the event did not have, false", [replaced(EVENT, False, "note")], "digest_mismatch")
    yield Case("a column that the event did not have, null", [replaced(EVENT, None, "note")])
    yield Case("a known column that the event did not have, null", [replaced(EVENT, None, "approver")])
    for key, value in (("verified", False), ("bus_ts", "2026-11-22T10:00:09.000000Z"), ("late", True)):
        yield Case(f"{key}, which consumers add", [replaced(EVENT, value, key)])
    hash_text = EVENT["receipt_hash"]
    for description, value in [("changed", other_than(hash_text)), ("in upper case", hash_text.upper()), ("null", None), ("a number", 5)]:
        yield Case(f"the event's receipt_hash, {description}", [replaced(EVENT, value, "receipt_hash")], "hash_mismatch")
    yield Case("the event's receipt_hash lost", [without(EVENT, "receipt_hash")], "hash_mismatch")
    yield Case("the same number spelled as a double", [replaced(EVENT, 75.0, "risk_score")])
    yield Case("the event's seq spelled as a double", [replaced(EVENT, 3.0, "seq")], "column_mismatch")
    yield Case("the reason in another normal form", [replaced(EVENT, EVENT["reason"].replace("é", "e\u0301"), "reason")], "digest_mismatch")


def proof_fields() -> Iterator[Case]:
    proof = EVENT["proof"]
    signature, path = proof["signature"], proof["path"]

    def tampered(key: str, value: object, code: str | None, what: str) -> Case:
        body = replaced(bare(EVENT, proof=True), value, "proof", key)
        # A root that does not fit is found by the signature, or by what is remembered of the commit's other receipts.
        return Case(f"the proof's {key} {what}", [bare(BEFORE, proof=True), body] if code == "bad_signature" and key != "signature" else [body], code)

    for key in proof:
        yield Case(f"the proof's {key} lost", [without(EVENT, "proof", key)], "malformed")
        yield tampered(key, None, "malformed", "null")
        yield tampered(key, {}, "malformed", "an object")
        yield tampered(key, True, "malformed", "true")
    yield Case("the receipts of one commit", [BEFORE, EVENT])
    yield Case("the receipts of one commit, the second changed", [BEFORE, changed(EVENT, "receipt", "tool")], "hash_mismatch")
    yield Case("a root that does not fit, the commit's only line", [replaced(EVENT, 3, "proof", "index")], "bad_signature")
    yield Case("a root that does not fit, the commit's only line, no key pinned, which nobody can see", [replaced(EVENT, 3, "proof", "index")], roots=())
    yield Case("a key that the proof did not have", [replaced(EVENT, "x", "proof", "note")])
    yield Case("the proof null", [replaced(EVENT, None, "proof")], "missing_proof")
    yield Case("the proof an array", [replaced(EVENT, [proof], "proof")], "missing_proof")
    yield Case("the proof a text", [replaced(EVENT, "x", "proof")], "missing_proof")
    yield Case("the proof empty", [replaced(EVENT, {}, "proof")], "malformed")
    yield Case("the proof of the receipt before", [replaced(EVENT, BEFORE["proof"], "proof")], "bad_signature")

    for value, code, what in [
        (0, "invalid_proof", "0"), (1, "invalid_proof", "1"), (2, "invalid_proof", "2"), (3, "invalid_proof", "3"), (4, "invalid_proof", "4"),
        (6, "bad_signature", "one more"), (7, "bad_signature", "two more"), (8, "bad_signature", "three more"), (9, "invalid_proof", "nine"),
        (2**32, "invalid_proof", "2^32"), (2**53 - 1, "invalid_proof", "2^53 - 1"), (-5, "malformed", "negative"), (5.0, "malformed", "a double"),
        (5.5, "malformed", "no integer"), ("5", "malformed", "a text"), ([5], "malformed", "an array"),
    ]:  # fmt: skip
        yield tampered("size", value, code, what)
    for value, code, what in [
        (0, "bad_signature", "0"), (1, "bad_signature", "1"), (3, "bad_signature", "3"), (4, "invalid_proof", "4"), (5, "invalid_proof", "the size"),
        (6, "invalid_proof", "over the size"), (2**53 - 1, "invalid_proof", "2^53 - 1"), (-1, "malformed", "negative"), (2.0, "malformed", "a double"),
        ("2", "malformed", "a text"),
    ]:  # fmt: skip
        yield tampered("index", value, code, what)
    for value, code, what in [
        ([], "invalid_proof", "empty"), (path[:1], "invalid_proof", "cut to one"), (path[:2], "invalid_proof", "cut to two"),
        ([*path, path[0]], "invalid_proof", "one too long"), ([*path] * 21, "invalid_proof", "of 63"), ([*path] * 22, "invalid_proof", "of 66"),
        (path[::-1], "bad_signature", "reversed"), ([path[1], path[0], path[2]], "bad_signature", "with two swapped"),
        ([path[0], path[0], path[2]], "bad_signature", "with one twice"), ([path[0].upper(), *path[1:]], "malformed", "with upper case"),
        ([path[0][:-1], *path[1:]], "malformed", "with 63 digits"), ([path[0] + "0", *path[1:]], "malformed", "with 65 digits"),
        ([path[0][:-1] + "g", *path[1:]], "malformed", "with a g"), (["", *path[1:]], "malformed", "with an empty text"),
        ([5, *path[1:]], "malformed", "with a number"), ([None, *path[1:]], "malformed", "with null"), ([[path[0]], *path[1:]], "malformed", "with an array"),
        ([path[0] + "\n", *path[1:]], "malformed", "with a line feed"), (["０" * 64, *path[1:]], "malformed", "with full-width digits"),
        (path[0], "malformed", "a text"), ({"0": path[0]}, "malformed", "an object of hashes"),
    ]:  # fmt: skip
        yield tampered("path", value, code, what)
    other_bits = signature[:-3] + chr(ord(signature[-3]) + 1) + "=="
    for value, code, what in [
        ("", "bad_signature", "empty"), (other_than(signature), "bad_signature", "changed at its beginning"),
        (VALID[5]["proof"]["signature"], "bad_signature", "of another commit"), ("AAAA" * 21 + "AA==", "bad_signature", "all zeros of 64 bytes"),
        ("AAAA" * 21, "bad_signature", "one byte short"), (signature[:-4] + "AAAA", "bad_signature", "two bytes long"), ("AA==", "bad_signature", "of one byte"),
        (signature.rstrip("="), "malformed", "without padding"), (signature[:-1], "malformed", "with half its padding"),
        (signature + "=", "malformed", "with too much padding"), (other_bits, "malformed", "with unused bits set"),
        (signature.replace("+", "-").replace("/", "_"), "malformed", "in the URL alphabet"), (signature + "\n", "malformed", "with a line feed"),
        (" " + signature, "malformed", "with a space"), (signature[:40] + "\r\n" + signature[40:], "malformed", "on two lines"),
        (signature[:8] + "*" + signature[8:], "malformed", "with a star"), ("é" + signature, "malformed", "with a letter that is not ASCII"),
        ("=" * 4, "malformed", "padding alone"), (signature.encode().hex(), "bad_signature", "in hex, which is base64 too"),
    ]:  # fmt: skip
        yield tampered("signature", value, code, what)
    for value, code, what in [
        ("", "invalid_proof", "empty"), (STRANGER.key_id, "invalid_proof", "another's"), (proof["key_id"].upper(), "invalid_proof", "in upper case"),
        (proof["key_id"] + " ", "invalid_proof", "with a space"), (proof["key_id"][:15], "invalid_proof", "cut"), (5, "malformed", "a number"),
    ]:  # fmt: skip
        yield tampered("key_id", value, code, what)


CLASSES = [body_fields, columns, proof_fields]
