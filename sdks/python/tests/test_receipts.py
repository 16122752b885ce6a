"""Forged exports beyond the corpus, hashed and signed rightly where that is not the point: the same verdict as the server's own verifier."""

import base64
import copy
import hashlib
import io
import json
import os
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aegisagent import ConfigError, canon
from aegisagent._rfc3339 import microseconds
from aegisagent.receipts import BadInput, Roots, VerifyError, VerifyingKey, verify_event, verify_export

KEY = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"a test's key").digest())
PUBLIC = KEY.public_key().public_bytes_raw()
ROOT = base64.b64encode(PUBLIC).decode()
KEY_ID = hashlib.sha256(PUBLIC).hexdigest()[:16]


def event(seq, phase, **columns):
    """An event that is not sealed yet."""
    made = {"event_id": f"01a202b2-c500-7000-8000-{seq:012}", "tenant_id": "acme", "lane": "acme.edge-1.0", "seq": seq, "edge_id": "edge-1", "source": "edge",
            "ts": f"2026-11-22T10:00:0{seq}.000000Z", "kind": "authorize_decision", "clock_suspect": False, "matched_policies": ["p"], "mutates_state": True}  # fmt: skip
    return made | columns, phase


def sealed(*drafts, body=None):
    """A lane, each receipt linked to the one before, all of them signed in one commit. `body(seq, body)` may change a body before it is hashed."""
    lines, previous = [], ""
    for columns, phase in drafts:
        digest_form = {key: value for key, value in columns.items() if value is not None}
        made = {"schema": "aegis-receipt-1", "phase": phase, "key_id": KEY_ID, "detail": None, "prev_receipt_hash": previous}
        made |= {
            key: columns.get(key) for key in ("event_id", "tenant_id", "lane", "seq", "ts", "matched_policies", "mutates_state", "agent_id")
        }
        made["event_digest"] = canon.sha256_hex(canon.canonicalize_value(digest_form))
        if body is not None:
            body(columns.get("seq"), made)
        previous = canon.sha256_hex(canon.canonicalize_value(made))
        lines.append(columns | {"receipt": made | {"receipt_hash": previous}, "receipt_hash": previous})
    level = [hashlib.sha256(b"\x00" + bytes.fromhex(line["receipt_hash"])).digest() for line in lines]
    paths = [[] for _ in lines]
    height = 0
    while len(level) > 1:
        for index, path in enumerate(paths):
            sibling = (index >> height) ^ 1
            if sibling < len(level):
                path.append(level[sibling].hex())
        pairs = [level[place : place + 2] for place in range(0, len(level), 2)]
        level = [hashlib.sha256(b"\x01" + pair[0] + pair[1]).digest() if len(pair) == 2 else pair[0] for pair in pairs]
        height += 1
    signature = base64.b64encode(KEY.sign(f"aegis-commit-1\n{len(lines)}\n{level[0].hex()}\n".encode())).decode()
    for index, line in enumerate(lines):
        line["proof"] = {"key_id": KEY_ID, "size": len(lines), "index": index, "path": paths[index], "signature": signature}
    return lines


def plain():
    return sealed(event(1, "open"), event(2, "decision", agent_id="a"), event(3, "decision"), event(4, "close"))


def with_body(change, seq=2):
    """A lane in which the body with this seq was changed before it was hashed and signed."""
    drafts = event(1, "open"), event(2, "decision", agent_id="a"), event(3, "decision")
    return sealed(*drafts, body=lambda found, body: change(body) if found == seq else None)


def with_line(change, number=1):
    """A lane of which one line was changed after it was sealed."""
    lines = copy.deepcopy(plain())
    change(lines[number])
    return lines


CASES = {
    "as it should be": (plain(), None, None),
    "columns that contradict": (with_body(lambda body: body.update(agent_id="b")), "column_mismatch", 2),
    "a column that the event lacks": (with_body(lambda body: body.update(agent_id="b"), seq=3), "column_mismatch", 3),
    "true and 1": (with_body(lambda body: body.update(mutates_state=1)), "column_mismatch", 2),
    "a fraction for a seq": (with_body(lambda body: body.update(seq=2.0)), "malformed", 2),
    "another tenant's lane": (sealed(event(1, "open", lane="beta.edge-1.0")), "column_mismatch", 1),
    "a lane without a tenant": (sealed(event(1, "open", lane="acme")), "column_mismatch", 1),
    "another schema": (with_body(lambda body: body.update(schema="aegis-receipt-2")), "unknown_schema", 2),
    "no schema in a receipt": (with_body(lambda body: body.pop("schema")), "malformed", 2),
    "a time that is none": (sealed(event(1, "open", ts="yesterday")), "malformed", 1),
    "a time before the year 1": (sealed(event(1, "open", ts="0001-01-01T00:00:00+01:00")), "malformed", 1),
    "a digest in capitals": (with_body(lambda body: body.update(event_digest=body["event_digest"].upper())), "digest_mismatch", 2),
    "a digest that is missing": (with_body(lambda body: body.pop("event_digest")), "malformed", 2),
    "no open at the start": (sealed(event(1, "decision")), "lane_rule", 1),
    "open in the middle": (sealed(event(1, "open"), event(2, "open")), "lane_rule", 2),
    "something after close": (sealed(event(1, "open"), event(2, "close"), event(3, "decision")), "lane_rule", 3),
    "time that goes back": (sealed(event(1, "open"), event(2, "decision", ts="2026-11-22T10:00:00.999999Z")), "time_reversed", 2),
    "time in another offset": (sealed(event(1, "open"), event(2, "decision", ts="2026-11-22T11:00:02.5+01:00")), None, None),
    "a leap second": (sealed(event(1, "open"), event(2, "decision", ts="2026-12-31T23:59:60Z")), None, None),
    "a lane that starts late": (plain()[1:], None, None),
    "a seq of zero": (sealed(event(0, "open")), "malformed", 1),
    "another hash beside": (with_line(lambda line: line.update(receipt_hash="0" * 64)), "hash_mismatch", 2),
    "a column more": (with_line(lambda line: line.update(new="x")), "digest_mismatch", 2),
    "a column that is null more": (with_line(lambda line: line.update(new=None)), None, None),
    "what consumers add": (with_line(lambda line: line.update(verified=True, late=True, bus_ts="x")), None, None),
    "a proof of another key": (with_line(lambda line: line["proof"].update(key_id="0" * 16)), "invalid_proof", 2),
    "an index beyond the size": (with_line(lambda line: line["proof"].update(index=9)), "invalid_proof", 2),
    "a path that is too long": (with_line(lambda line: line["proof"].update(path=["0" * 64] * 64)), "invalid_proof", 2),
    "a path that is too short": (with_line(lambda line: line["proof"].update(path=[])), "invalid_proof", 2),
    "a path in capitals": (with_line(lambda line: line["proof"].update(path=[h.upper() for h in line["proof"]["path"]])), "malformed", 2),
    "a size that is true": (with_line(lambda line: line["proof"].update(size=True)), "malformed", 2),
    "another size": (with_line(lambda line: line["proof"].update(size=3)), None, 2),
    "a signature that is no base64": (with_line(lambda line: line["proof"].update(signature="*")), "malformed", 2),
    "a signature that is too short": (with_line(lambda line: line["proof"].update(signature="AAAA")), "bad_signature", 2),
    "a proof that is a list": (with_line(lambda line: line.update(proof=[])), "missing_proof", 2),
    "a receipt that is a text": (with_line(lambda line: line.update(receipt="x")), "unsigned", 2),
}  # fmt: skip


def text_of(lines):
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


@pytest.mark.feature("verify-receipts")
@pytest.mark.parametrize(("lines", "code", "line"), CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("pinned", [True, False], ids=["pinned", "unpinned"])
def test_a_forgery_is_named_and_the_server_s_verifier_names_the_same(lines, code, line, pinned, tmp_path):
    found = verify_export(io.BytesIO(text_of(lines)), Roots([VerifyingKey(ROOT)]) if pinned else None).as_json()
    if pinned and code is not None:
        assert (found["failure"]["code"], found["failure"]["line"]) == (code, line), found
    elif pinned and line is None:
        assert found["verdict"] == "valid", found
    if "AEGIS_BIN" in os.environ:
        (tmp_path / "export.jsonl").write_bytes(text_of(lines))
        arguments = [
            os.environ["AEGIS_BIN"],
            "receipts",
            "verify",
            tmp_path / "export.jsonl",
            "--json",
            *(["--root", ROOT] if pinned else []),
        ]
        said = json.loads(subprocess.run(arguments, capture_output=True, check=False).stdout)
        for report in (found, said):
            (report["failure"] or {}).pop("message", None)
        assert found == said


@pytest.mark.feature("verify-receipts")
def test_one_event_alone():
    good = plain()[1]
    assert verify_event(good, Roots([VerifyingKey(ROOT)])).signed
    assert not verify_event(good).signed
    for bad, code in (
        (good | {"agent_id": "b"}, "digest_mismatch"),
        ([], "malformed"),
        ({}, "missing_receipt"),
        (good | {"proof": None}, "missing_proof"),
    ):
        with pytest.raises(VerifyError) as failed:
            verify_event(bad)
        assert failed.value.failure.code == code


@pytest.mark.feature("verify-receipts")
def test_what_is_no_export_is_bad_input():
    for bad in (b"", b"\n\n", b"[]\n", b'{"a":1,"a":2}\n', b"\xff\n", b'{"a":' + b"1" * (1 << 20) + b"}\n", b'{"a":NaN}\n'):
        with pytest.raises(BadInput):
            verify_export(io.BytesIO(bad))


@pytest.mark.feature("verify-receipts")
def test_a_key_under_which_anybody_can_sign_is_not_pinned():
    weak = [0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18]
    for y in weak:
        with pytest.raises(ConfigError):
            VerifyingKey(base64.b64encode((y % 2**256).to_bytes(32, "little")).decode())
    order_8 = "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"
    for bad in (
        base64.b64encode(bytes.fromhex(order_8)).decode(),
        base64.b64encode(b"\x02" + bytes(31)).decode(),
        "AAAA",
        "",
        ROOT[:-1],
        ROOT + "=",
        "*" * 44,
    ):
        with pytest.raises(ConfigError):
            VerifyingKey(bad)
    assert VerifyingKey(f" {ROOT}\n").key_id == KEY_ID


@pytest.mark.feature("verify-receipts")
def test_a_time_is_one_of_the_years_1_to_9999_wherever_its_clock_stood():
    """As the server's verifier has it, which reckons in UTC too."""
    first = -62_135_596_800_000_000
    for text, expected in (
        ("0001-01-01T00:00:00Z", first), ("0001-01-01T01:00:00+01:00", first), ("0001-01-01T00:00:00-01:00", first + 3_600_000_000),
        ("0001-01-01T00:59:59.999999+01:00", None), ("0001-01-01T00:00:00+00:01", None), ("0000-12-31T23:59:59-00:01", None),
        ("1969-12-31T23:59:59.9999999Z", -1), ("9999-12-31T23:59:59-23:59", 253_402_387_139_000_000),
    ):  # fmt: skip
        assert microseconds(text) == expected, text
