"""Answers that no server of ours gives, and what is to come of them."""

import time

import pytest

import aegisagent
from aegisagent import canon

OTHER = canon.action_hash("crm", "update_note", "customer-1", True, {"note": "swapped", "amount": 1})
FOREVER = 30


def changed(**fields):
    return lambda honest: (honest[0], honest[1] | fields)


def within(name, **fields):
    return lambda honest: (honest[0], honest[1] | {name: honest[1][name] | fields})


def without(name):
    return lambda honest: (honest[0], {key: value for key, value in honest[1].items() if key != name})


def redirect(handler):
    handler.reply(307, b"{}", [("location", "http://127.0.0.1:1/v1/authorize")])


def encoded(handler):
    handler.reply(200, b"\x1f\x8b", [("content-encoding", "gzip")])


def oversized(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b" " * (1 << 16))


def broken_off(handler):
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"decision": "allow"')


def not_http(handler):
    handler.wfile.write(b"allow\r\n\r\n")


def head_without_end(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")


def endless_head(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(1 << 14):
        handler.wfile.write(b"x-%d: " % number + b"x" * 100 + b"\r\n")


def upgrade(handler):
    handler.wfile.write(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nallow")


def broken_chunk(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n")


def short_chunk(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nff\r\n{}")


def slow(handler):
    time.sleep(FOREVER)


def dripped_head(handler):
    for byte in b"HTTP/1.1 200 OK\r\nx-header: " + b"x" * 1000:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.1)


def dripped_body(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(b" ")
        time.sleep(0.1)


GARBAGE = {
    "no JSON": (200, b"<html>allow</html>"), "empty": (200, b""), "null": (200, b"null"), "a list": (200, []), "a word": (200, b'"allow"'),
    "a key twice": (200, b'{"decision":"deny","decision":"allow"}'), "not UTF-8": (200, b"\xff\xfe{}"), "an empty object": (200, {}),
    "201": lambda honest: (201, honest[1]), "204": (204, b""), "302": redirect, "encoded": encoded, "oversized": oversized,
}  # fmt: skip
SERVER_ERRORS = {
    "500": (500, {"error": {"code": "internal", "message": "m"}}), "500 with a page": (500, b"<html>"), "502": (502, b"bad gateway"),
    "503": (503, {"error": {"code": "busy", "message": "m"}}), "504": (504, b"<html>"), "429": (429, {"error": {"code": "rate_limited", "message": "m"}}),
    "401": (401, {"error": {"code": "invalid_token", "message": "m"}}), "403": (403, {"error": {"code": "wrong_role", "message": "m"}}),
    "404": (404, {"error": {"code": "unknown_route", "message": "m"}}), "408": (408, {"error": {"code": "body_too_slow", "message": "m"}}),
    "409": (409, {"error": {"code": "replay_nonce_reused", "message": "m"}}), "418": (418, {"error": "teapot"}),
}  # fmt: skip
BROKEN = {
    "broken off": broken_off, "no HTTP": not_http, "slow": slow, "dripped head": dripped_head, "dripped body": dripped_body,
    "a head without end": head_without_end, "an endless head": endless_head, "a broken chunk": broken_chunk, "a chunk too short": short_chunk,
    "an upgrade": upgrade,
}  # fmt: skip

AUTHORIZE = {
    "an unknown decision": (changed(decision="maybe"), "unknown_decision"), "a decision in capitals": (changed(decision="ALLOW"), "unknown_decision"),
    "a decision that is true": (changed(decision=True), "bad_reply"), "no decision": (without("decision"), "bad_reply"),
    "another action's hash": (changed(action_hash=OTHER), "action_hash_mismatch"), "a hash in capitals": (changed(action_hash="AB" * 32), "bad_reply"),
    "no hash": (without("action_hash"), "bad_reply"), "a dry run": (changed(dry_run=True), "bad_reply"),
    "another canonical form": (within("receipt", canon_version="aegis-jcs-2"), "bad_reply"),
    "no receipt": (within("receipt", receipt_hash=None), "receipt_missing"), "a receipt that is none": (within("receipt", receipt_hash="x"), "bad_reply"),
    "an allow with an approval": (
        changed(approval={"approval_id": "i", "status": "PENDING", "approver_group": "g", "expires_at": "x", "action_hash": OTHER}), "bad_reply"),
    "an approval that is missing": (changed(decision="require_approval"), "bad_reply"),
    "no word of an approval": (without("approval"), "bad_reply"), "an id that leads elsewhere": (changed(decision_id=".."), "bad_reply"),
    "no word of the last receipt": (lambda honest: (200, honest[1] | {"receipt": {
        name: value for name, value in honest[1]["receipt"].items() if name != "prev_receipt_hash"}}), "bad_reply"),
    "a label that was loosened": (changed(root_trust_level="trusted_internal_signed"), "trust_loosened"),
}  # fmt: skip
POLL = {
    "another action's hash": (changed(action_hash=OTHER), "bad_reply"), "another original": (changed(original_action_hash=OTHER), "bad_reply"),
    "an unknown status": (changed(status="YES"), "unknown_status"), "a status in lower case": (changed(status="approved"), "unknown_status"),
    "another approval": (changed(approval_id="other"), "action_hash_mismatch"), "no status": (without("status"), "bad_reply"),
    "another action": (within("tool_call", parameters={"note": "swapped", "amount": 1}), "bad_reply"),
    "edited, and not": (changed(is_edited=True), "bad_reply"), "no word of an edit": (without("edited_tool_call"), "bad_reply"),
    "another action, hashed rightly": (
        lambda honest: (200, honest[1] | {
            "action_hash": OTHER, "original_action_hash": OTHER,
            "tool_call": honest[1]["tool_call"] | {"parameters": {"note": "swapped", "amount": 1}}}),
        "action_hash_mismatch"),
}  # fmt: skip
CONSUME = {
    "another action's hash": (changed(action_hash=OTHER), "action_hash_mismatch"), "another approval": (changed(approval_id="x"), "action_hash_mismatch"),
    "another status": (changed(status="pending"), "action_hash_mismatch"), "no hash": (without("action_hash"), "bad_reply"),
}  # fmt: skip


def assert_denied(edge, mode, recorder, kind, code=None, timeout_s=10.0):
    with pytest.raises(aegisagent.Denied) as denied:
        mode.run(edge.url, lambda protect: protect(recorder, unreachable_s=0.2)("a"), timeout_s=timeout_s)
    assert recorder.calls == []
    assert edge.sent("outcome") == []
    assert isinstance(denied.value, kind), denied.value
    assert code is None or denied.value.code == code
    return denied.value


def cases(table):
    return pytest.mark.parametrize(("change", "code"), table.values(), ids=table.keys())


def answers(*tables):
    return pytest.mark.parametrize("answer", [a for t in tables for a in t.values()], ids=[name for t in tables for name in t])
