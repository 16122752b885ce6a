"""What an export may hold besides: facts in two places, other types, extra keys, bare bodies, the older form, and lines that are no export."""

import copy
import json
from collections.abc import Iterator

from case import Case
from sealing import VALID, alone, bare, hash_of, lane_of, line, proven, sealed, with_body, with_facts
from tampered import EVENT, other_than, replaced

ONE = VALID[1]
SHARED = [
    "event_id", "ref_event_id", "tenant_id", "lane", "seq", "ts", "agent_id", "user_id", "run_id", "trace_id", "tool", "action", "resource",
    "mutates_state", "source_trust", "decision", "matched_policies", "policy_digest", "approval_id", "approver", "action_hash",
]  # fmt: skip


def shared_facts() -> Iterator[Case]:
    """The event says one thing and its body another, both sealed and signed."""
    for key in SHARED:
        value = EVENT["receipt"][key]
        other = "2026-11-22T10:00:03.000000Z" if key == "ts" else other_than(value)
        yield Case(f"{key} differs between event and body", proven([sealed(EVENT | {key: other})]), "column_mismatch")
        if value is not None:
            columns = {name: column for name, column in EVENT.items() if name != key}
            yield Case(f"{key} stands in the body alone", proven([sealed(columns)]), "column_mismatch")
            yield Case(f"{key} is null in the event", proven([sealed(EVENT | {key: None})]), "column_mismatch")
    yield Case("what the body lacks and the event has null", [alone(replaced(EVENT, None, "approver"))])
    body = {key: value for key, value in EVENT["receipt"].items() if key != "approver"}
    yield Case("a fact that both lack", [alone(EVENT | {"receipt": body})])
    for description, column, fact in [
        ("1 and true", 1, True), ("0 and false", 0, False), ("a number and its text", 1, "1"), ("null and the empty text", "", None), ("false and null", False, None),
        ("texts in two normal forms", "\u00e9", "e\u0301"), ("texts of two cases", "a", "A"), ("a text with a space", "a", "a "), ("an empty array and null", [], None),
    ]:  # fmt: skip
        yield Case(f"resource: {description}", proven([sealed(with_body(EVENT, resource=fact) | {"resource": column})]), "column_mismatch")
    for description, column, fact in [
        ("in another order", ["a", "b"], ["b", "a"]), ("one more", ["a", "b"], ["a"]), ("one twice", ["a", "a"], ["a"]), ("an object", {"a": 1}, ["a"]),
        ("1 and true inside", [1], [True]), ("nested", [["a"]], ["a"]),
    ]:  # fmt: skip
        event = with_body(EVENT, matched_policies=fact) | {"matched_policies": column}
        yield Case(f"matched_policies: {description}", proven([sealed(event)]), "column_mismatch")
    same = {"b": [1, {"c": None}], "a": 1.5}
    yield Case("an object in both, its keys in another order", proven([sealed(with_body(EVENT, resource=dict(reversed(same.items()))) | {"resource": same})]))
    foreign = with_facts(EVENT, lane="beta" + EVENT["lane"][4:])
    yield Case("the lane of another tenant", [alone(foreign)], "column_mismatch")
    for lane in ("acme", "", ".acme", "acmeedge-1", "acme-2.edge-1.0", "ACME.edge-1.0"):
        yield Case(f"the lane {lane!r} of tenant acme", [alone(with_facts(EVENT, lane=lane))], "column_mismatch")
    yield Case("a lane of two labels", [alone(with_facts(EVENT, lane="acme.x"))])


def types() -> Iterator[Case]:
    """A key that every rule needs, sealed with another type."""
    for key in ("schema", "event_id", "tenant_id", "lane", "phase", "ts", "prev_receipt_hash", "key_id"):
        for value in (None, 5, True, [], {}):
            event = with_facts(EVENT, **{key: value}) if key in EVENT else with_body(EVENT, **{key: value})
            yield Case(f"{key} is {line(value).decode()}", [proven([sealed(event)])[0]], "malformed")
    for schema in ("aegis-receipt-2", "AEGIS-RECEIPT-1", "aegis-receipt-1 ", "aegis-receipt-10", ""):
        yield Case(f"the schema {schema!r}", [alone(with_body(EVENT, schema=schema))], "unknown_schema")
    for seq in (0, -1, 3.0, 3.5, "3", None, True, [], {}):
        yield Case(f"seq is {line(seq).decode()}", [alone(with_facts(EVENT, seq=seq))], "malformed")
    for value in (None, 5, [], {}):
        yield Case(f"event_digest is {line(value).decode()}", proven([sealed(EVENT, event_digest=value)]), "malformed")
    good = sealed(EVENT)["receipt"]["event_digest"]
    for description, value in [
        ("in upper case", good.upper()),
        ("cut", good[:-2]),
        ("empty", ""),
        ("with a space", good + " "),
        ("of other columns", "0" * 64),
    ]:
        yield Case(f"event_digest {description}", proven([sealed(EVENT, event_digest=value)]), "digest_mismatch")


def extra_content() -> Iterator[Case]:
    """Keys and columns that nobody knows, sealed: they are covered, in canonical form."""
    contents = {
        "a text": "x", "null": None, "numbers": [0, -0.0, 1.0, 1e21, 1e-7, 5e-324, 1e20, 0.1, 2**53 - 1, 123456789.125], "text of every kind": "\u0000\n\"\\/é\u2028😀\ue000",
        "an object to sort": {"\U0001f600": 1, "\ue000": 2, "\ufb33": 3, "b": {"z": [], "a": {}}, "": 0, "10": 1, "9": 2, "__proto__": {}},
        "120 levels": json.loads("[" * 120 + "]" * 120), "4 KiB": "x" * 4096,
    }  # fmt: skip
    for name, content in contents.items():
        yield Case(f"{name} in a key of the body", [alone(with_body(ONE, note=content))])
        yield Case(f"{name} in a column", [alone(ONE | {"note": content})])
        yield Case(f"{name} as detail", [alone(with_body(ONE, detail=content))])
    for key in ("\U0001f600", "\ue000", "é", "e\u0301", "", "constructor", "__proto__", "proof", "0", "\n"):
        yield Case(f"a key of the body named {key!r}", [alone(with_body(ONE, **{key: 1}))])
        if key != "proof":
            yield Case(f"a column named {key!r}", [alone(ONE | {key: 1})])
    keys = {"\U0001f600": 1, "\ue000": 2, "z": 3, "\ufb33": 4}
    both = alone(with_body(ONE, **keys) | keys)
    yield Case("keys whose order by code points is another", [both])
    text = line(both).decode()
    yield Case(
        "escaped, spaced and sorted otherwise", [json.dumps(dict(reversed(both.items())), ensure_ascii=True, indent=None, separators=(" , ", " : ")).encode()]
    )
    yield Case("with slashes escaped", [text.replace("/", "\\/").encode()])
    yield Case("an empty text made of an escape", [text.replace('"z"', '"\\u007a"').encode()])
    long_id = with_facts(ONE, event_id="😀" * 250)
    yield Case("an id of 250 characters beyond the first plane", [alone(long_id)])
    yield Case("an id of 250 characters beyond the first plane, changed", [replaced(alone(long_id), "x", "receipt", "tool")], "hash_mismatch")


def bare_bodies() -> Iterator[Case]:
    lane = lane_of("odugdc")
    bodies, proved = [bare(event) for event in lane], [bare(event, proof=True) for event in lane]
    yield Case("bodies alone, no key pinned", bodies, roots=())
    yield Case("bodies alone", bodies, "missing_proof", 0)
    yield Case("bodies with proofs", proved)
    yield Case("bodies with proofs, no key pinned", proved, roots=())
    yield Case("bodies with and without proofs in turn, no key pinned", [proved[0], bodies[1], proved[2], bodies[3]], roots=())
    yield Case("a body without proof after one with", [proved[0], bodies[1]], "missing_proof")
    yield Case("events and bodies in turn", [lane[0], proved[1], lane[2], proved[3]])
    for value in (None, "x", [], 5):
        yield Case(f"a body whose proof is {line(value).decode()}", [proved[0] | {"proof": value}], "malformed")
        yield Case(f"a body whose proof is {line(value).decode()}, no key pinned", [proved[0] | {"proof": value}], "malformed", roots=())
    yield Case("a body whose proof is empty", [proved[0] | {"proof": {}}], "malformed")
    yield Case("a body with a key more", [bodies[0] | {"note": 1}], "hash_mismatch", roots=())
    yield Case("a body without its hash", [{key: value for key, value in bodies[0].items() if key != "receipt_hash"}], "malformed", roots=())
    yield Case(
        "a body without its schema, which makes it the older form",
        [{key: value for key, value in bodies[0].items() if key != "schema"}],
        "hash_mismatch",
        roots=(),
    )
    yield Case("a body with another schema", [bodies[0] | {"schema": "x"}], "unknown_schema", roots=())
    yield Case("a body with schema null", [bodies[0] | {"schema": None}], "malformed", roots=())
    yield Case("bodies with one missing, no key pinned", [bodies[0], bodies[2]], "missing_seq", roots=())
    yield Case("a proof changed, no key pinned, which nobody can see", [proved[0] | {"proof": proved[0]["proof"] | {"signature": "AAAA"}}], roots=())
    changed = copy.deepcopy(proved[0])
    changed["proof"]["signature"] = "AAA"
    yield Case("a proof that is no base64, no key pinned", [changed], "malformed", roots=())


def older(*bodies: dict, first: object = "") -> list[dict]:
    """A chain of the older form."""
    chain, previous = [], first
    for body in bodies:
        linked = body | {"prev_receipt_hash": previous}
        previous = hash_of(linked).hex()
        chain.append(linked | {"receipt_hash": previous})
    return chain


def older_form() -> Iterator[Case]:
    chain = older(*({"tenant_id": "acme", "n": number, "é": [number / 3]} for number in range(4)))
    yield Case("a chain of the older form", chain, roots=())
    yield Case("a chain of the older form, a key pinned", chain, "unsigned", 0)
    yield Case("a chain of the older form from its second on", chain[1:], roots=())
    yield Case("one of the older form missing", [chain[0], *chain[2:]], "broken_link", 1, roots=())
    yield Case("one of the older form twice", [chain[0], chain[0]], "broken_link", roots=())
    yield Case("two of the older form swapped", [chain[1], chain[0]], "broken_link", roots=())
    yield Case("the older form in reverse", chain[:0:-1], "broken_link", 1, roots=())
    yield Case("the older form with a value changed", [chain[0], chain[1] | {"n": 9}], "hash_mismatch", roots=())
    yield Case("the older form with a key more", [chain[0] | {"x": None}], "hash_mismatch", roots=())
    yield Case("the older form with its hash in upper case", [chain[0] | {"receipt_hash": chain[0]["receipt_hash"].upper()}], "hash_mismatch", roots=())
    yield Case("the older form without its hash", [{"tenant_id": "acme"}], "missing_receipt", roots=())
    yield Case("the older form with a hash that is a number", [{"receipt_hash": 5}], "missing_receipt", roots=())
    yield Case("an empty object", [{}], "missing_receipt", roots=())
    for first in (None, "", "0" * 64):
        yield Case(f"the older form begins with {first!r}", older({"n": 1}, {"n": 2}, first=first), roots=())
    absent = {"n": 1}
    absent = absent | {"receipt_hash": hash_of(absent).hex()}
    yield Case("the older form begins without a link", [absent, *older({"n": 2}, first=absent["receipt_hash"])], roots=())
    yield Case("the older form with a link that is a number", [*older({"n": 1}), *older({"n": 2}, first=5)], "malformed", roots=())
    beta = older(*({"tenant_id": "beta", "n": number} for number in range(3)))
    yield Case("two tenants of the older form in turn", [chain[0], beta[0], chain[1], chain[2], beta[1], beta[2]], roots=())
    yield Case("two tenants of the older form, one missing", [chain[0], beta[0], chain[2]], "broken_link", roots=())
    yield Case("a tenant of the older form that begins late", [chain[0], beta[1]], "broken_link", roots=())
    lane = lane_of("od")
    yield Case("the older form among receipts, no key pinned", [chain[0], lane[0], chain[1], bare(lane[1])], roots=())


def lines() -> Iterator[Case]:
    event, after = VALID[5], VALID[6]
    text = line(event)
    yield Case("line ends of CR and LF", [event, after], ending=b"\r\n")
    yield Case("empty lines and spaces between", [b"", event, b" \t ", after, b"", b"\r"])
    yield Case("empty lines before the one that fails", [b"", b"", event, b"", event], "repeated_seq")
    yield Case("spaces around a line", [b" \t" + text + b" \r"])
    yield Case("no end of the last line", [text], ending=b"")
    for description, wrong in [
        ("a byte order mark", b"\xef\xbb\xbf" + text), ("an array", b"[" + text + b"]"), ("two objects", text + text), ("a comma behind", text + b","), ("a text", b'"x"'),
        ("null", b"null"), ("a number", b"1"), ("cut off", text[:-1]), ("a key twice", text[:-1] + b',"kind":"x"}'), ("a key twice, inside", text.replace(b'"seq":', b'"seq":1,"seq":', 2)),
        ("a byte that is no UTF-8", text.replace(b"triage", b"tri\xffge")), ("half a pair", text.replace(b"triage", b"\\ud800")), ("NaN", text[:-1] + b',"x":NaN}'),
        ("an integer out of range", text[:-1] + b',"x":9007199254740992}'), ("a seq out of range", text.replace(b'"seq":4', b'"seq":9007199254740993')),
        ("a number out of range", text[:-1] + b',"x":1e400}'), ("129 levels", text[:-1] + b',"x":' + b"[" * 128 + b"]" * 128 + b"}"), ("a comment", b"// x"),
        ("a no-break space around", "\u00a0".encode() + text), ("a vertical tab around", b"\x0b" + text), ("a NUL behind", text + b"\x00"), ("a line separator between", text + "\u2028".encode() + text),
        ("a carriage return between", text + b"\r" + text),
    ]:  # fmt: skip
        yield Case(f"{description}, alone", [wrong], bad_input=True)
        yield Case(f"{description}, behind a good line, no key pinned", [after, wrong], bad_input=True, roots=())
    yield Case("a failing receipt, then a line that is no JSON", [replaced(event, "x", "receipt", "phase"), b"{"], "hash_mismatch", 0)
    yield Case("nothing", [], bad_input=True)
    yield Case("empty lines alone", [b"", b"  ", b"\t"], bad_input=True)
    yield Case(
        "an event without receipt", [{key: value for key, value in event.items() if key not in ("receipt", "receipt_hash")}], "missing_receipt", roots=()
    )
    yield Case("an event without receipt, a key pinned", [{key: value for key, value in event.items() if key not in ("receipt", "receipt_hash")}], "unsigned")


CLASSES = [shared_facts, types, extra_content, bare_bodies, older_form, lines]
