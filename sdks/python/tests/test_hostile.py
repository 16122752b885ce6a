"""Answers that no server of ours gives. Each is a typed denial, and the function does not run."""

import contextlib
import socket
import threading
import time

import pytest

import aegisagent
from aegisagent import _endpoints, _exchange, canon

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


def assert_denied(edge, mode, recorder, kind, code=None, timeout_s=2.0):
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


@pytest.mark.feature("hostile-hash")
@cases(AUTHORIZE)
def test_a_decision_that_is_not_right_is_a_denial(edge, mode, recorder, change, code):
    edge.replace["authorize"] = change
    assert_denied(edge, mode, recorder, aegisagent.DeniedUnverified, code)


@pytest.mark.feature("hostile-hash")
def test_an_approval_for_another_action_is_a_denial(edge, mode, recorder):
    edge.decision, edge.replace["authorize"] = "require_approval", within("approval", action_hash=OTHER)
    assert_denied(edge, mode, recorder, aegisagent.DeniedUnverified, "action_hash_mismatch")
    for approval_id in (".", ".."):
        edge.replace["authorize"] = within("approval", approval_id=approval_id)
        assert_denied(edge, mode, recorder, aegisagent.DeniedUnverified, "bad_reply")


@pytest.mark.feature("hostile-hash")
@cases(POLL)
def test_an_approval_that_is_not_right_is_a_denial(edge, mode, recorder, change, code):
    edge.decision, edge.replace["approval"] = "require_approval", change
    assert_denied(edge, mode, recorder, aegisagent.DeniedUnverified, code)
    assert edge.sent("consume") == []


@pytest.mark.feature("hostile-hash")
@cases(CONSUME)
def test_a_consume_that_is_not_right_is_a_denial(edge, mode, recorder, change, code):
    edge.decision, edge.replace["consume"] = "require_approval", change
    assert_denied(edge, mode, recorder, aegisagent.DeniedUnverified, code)


@pytest.mark.feature("hostile-garbage")
@answers(GARBAGE)
@pytest.mark.parametrize("where", ["authorize", "approval", "consume"])
def test_garbage_is_a_denial_wherever_it_comes(edge, mode, recorder, where, answer):
    # Where the status says already that it is no answer, it says what the server did; all else is an attack.
    status = next((name for name in ("201", "204") if answer is GARBAGE[name]), None)
    kind, code = (aegisagent.DeniedUnavailable, f"http_{status}") if status else (aegisagent.DeniedUnverified, "bad_reply")
    edge.decision, edge.replace[where] = (
        "require_approval",
        (lambda _honest: answer) if callable(answer) and answer in (redirect, encoded, oversized) else answer,
    )
    assert_denied(edge, mode, recorder, kind, code, timeout_s=10)
    assert len(edge.sent(where)) == 1, "garbage is not asked for again"


@pytest.mark.feature("hostile-500")
@answers(SERVER_ERRORS)
@pytest.mark.parametrize("where", ["authorize", "approval", "consume"])
def test_a_server_error_is_a_denial_wherever_it_comes(edge, mode, recorder, where, answer):
    edge.decision, edge.replace[where] = "require_approval", answer
    status, body = answer
    code = body["error"]["code"] if type(body) is dict and type(body["error"]) is dict else f"http_{status}"
    is_refused_consume = (where, status) == ("consume", 409)
    assert_denied(
        edge, mode, recorder, aegisagent.DeniedByPolicy if is_refused_consume else aegisagent.DeniedUnavailable, code, timeout_s=10
    )
    asked = edge.sent("consume")
    assert len(asked) <= (3 if answer[0] in (429, 503) else 1)
    assert all(one == asked[0] for one in asked), "a consume is repeated word for word"


@pytest.mark.feature("hostile-hash")
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("wrong_agent", aegisagent.DeniedUnverified), ("action_hash_mismatch", aegisagent.DeniedUnverified),
        ("approval_consumed", aegisagent.DeniedByApprover), ("approval_not_approved", aegisagent.DeniedByApprover),
        ("agent_frozen", aegisagent.DeniedByPolicy),
    ],
)  # fmt: skip
def test_a_consume_that_is_refused_is_a_denial_of_its_kind(edge, mode, recorder, code, kind):
    edge.decision, edge.replace["consume"] = "require_approval", (409, {"error": {"code": code, "message": "m"}})
    denied = assert_denied(edge, mode, recorder, kind, code)
    assert type(denied) is kind
    assert denied.approval_id
    assert len(edge.sent("consume")) == 1


@pytest.mark.feature("hostile-slow")
@answers(BROKEN)
@pytest.mark.parametrize("where", ["authorize", "approval", "consume"])
def test_a_slow_or_broken_answer_is_a_denial_wherever_it_comes(edge, mode, recorder, where, answer):
    edge.decision, edge.replace[where] = "require_approval", lambda _honest: answer
    began = time.monotonic()
    denied = assert_denied(edge, mode, recorder, aegisagent.DeniedUnavailable, timeout_s=0.5)
    assert time.monotonic() - began < FOREVER / 3, "the deadline is for the whole answer"
    if where == "consume":
        assert denied.code == "consume_ambiguous"
        asked = edge.sent("consume")
        assert 1 <= len(asked) <= 3
        assert all(one == asked[0] for one in asked), "whether it was consumed is not known: the very same is asked again"


@pytest.mark.feature("hostile-slow")
def test_nobody_listening_is_a_denial(mode, recorder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(aegisagent.DeniedUnavailable) as denied:
        mode.call(url, recorder, "a")
    assert denied.value.code == "unreachable"
    assert recorder.calls == []


@pytest.mark.feature("retries")
def test_an_authorize_call_is_repeated_word_for_word_and_only_so_often(edge, mode, recorder):
    edge.replace["authorize"] = (503, {"error": {"code": "busy", "message": "m"}})
    assert_denied(edge, mode, recorder, aegisagent.DeniedUnavailable, "busy")
    asked = edge.sent("authorize")
    assert len(asked) == 3
    assert asked[0] == asked[1] == asked[2]
    assert asked[0]["request_id"]


def pauses_of(request, *failures, timeout_s=60.0):
    """How long a call pauses after each of these failures."""
    steps = _exchange.exchange(request, lambda: aegisagent.Secret("x" * 40), timeout_s)
    next(steps)
    pauses = []
    for failure in failures:
        pauses.append(steps.throw(failure).seconds)
        next(steps)
    return pauses


@pytest.mark.feature("retries")
@pytest.mark.parametrize("spread", [0.8, 1.2])
def test_a_pause_is_spread_and_never_shorter_than_what_was_asked_for(monkeypatch, spread):
    monkeypatch.setattr(_exchange, "FIRST_PAUSE_S", 0.1)
    monkeypatch.setattr(_exchange.random, "uniform", lambda low, high: {0.8: low, 1.2: high}[spread])
    request = _endpoints.summary()
    for asked_s, first_s, second_s in ((0, 0.1 * spread, 0.2 * spread), (1, 1.0, 1.0), (2, 2.0, 2.0), (900, 2.0, 2.0)):
        busy = aegisagent.ApiError(503, "busy", "m", retry_after_s=asked_s)
        assert pauses_of(request, busy, busy) == pytest.approx([first_s, second_s])
    with pytest.raises(aegisagent.ApiError):
        pauses_of(request, aegisagent.ApiError(503, "busy", "m", retry_after_s=2), timeout_s=1.9)


@pytest.mark.feature("retries")
def test_only_a_request_id_that_says_something_makes_authorize_repeatable(edge):
    call = aegisagent.ToolCall("crm", "a", None, True, {})
    edge.replace["authorize"] = (503, {"error": {"code": "busy", "message": "m"}})
    for request_id, times in (("one", 3), ("", 1), (None, 1)):
        edge.seen.clear()
        with aegisagent.Client(edge.url, "x" * 40) as client, pytest.raises(aegisagent.ApiError):
            client.authorize(call, request_id=request_id)
        assert [asked.get("request_id") for asked in edge.sent("authorize")] == [request_id or None] * times


CALL = aegisagent.ToolCall("crm", "a", None, True, {})
SAFE = {
    "authorize with a key": lambda client: client.authorize(CALL, request_id="one"), "consume": lambda client: client.consume("i", OTHER),
    "outcome": lambda client: client.outcome("d", "ok"), "register": lambda client: client.register("k", "K", environment="e", risk_tier="low"),
    "put a tool": lambda client: client.put_tool({"tool": "t"}), "an approval": lambda client: client.approval("i"),
    "approvals": lambda client: client.approvals(), "containment": lambda client: client.containment(), "a receipt": lambda client: client.receipt("r"),
}  # fmt: skip
UNSAFE = {
    "authorize without a key": lambda client: client.authorize(CALL), "approve": lambda client: client.approve("i"),
    "reject": lambda client: client.reject("i"), "edit": lambda client: client.edit("i", CALL), "freeze": lambda client: client.freeze_agent("a", "r"),
    "unfreeze": lambda client: client.unfreeze_agent("a", "r"), "revoke": lambda client: client.revoke_agent("a", "r"),
    "quarantine": lambda client: client.quarantine_mcp_server("m", "r"), "restore": lambda client: client.restore_mcp_server("m", "r"),
    "close an incident": lambda client: client.close_incident("i"),
}  # fmt: skip
# What comes, and how often each kind of call is then sent: one that can be repeated, and one that must not take effect twice.
TIMES = {
    "cut off": (lambda _honest: broken_off, 3, 1), "503 busy": (SERVER_ERRORS["503"], 3, 1), "429": (SERVER_ERRORS["429"], 3, 3),
    "503 control_busy": ((503, {"error": {"code": "control_busy", "message": "m"}}), 3, 3),
    "503 receipt_unavailable": ((503, {"error": {"code": "receipt_unavailable", "message": "m"}}), 3, 3),
    "500": (SERVER_ERRORS["500"], 1, 1), "502": (SERVER_ERRORS["502"], 1, 1), "504": (SERVER_ERRORS["504"], 1, 1), "garbage": (GARBAGE["no JSON"], 1, 1),
}  # fmt: skip


@pytest.mark.feature("retries")
@pytest.mark.parametrize(("answer", "safe", "unsafe"), TIMES.values(), ids=TIMES.keys())
def test_each_call_is_sent_as_often_as_nothing_can_take_effect_twice(edge, answer, safe, unsafe):
    edge.calls["i"] = ({}, OTHER)
    for name in ("authorize", "approval", "consume", "outcome", "other"):
        edge.replace[name] = answer
    with aegisagent.Client(edge.url, "x" * 40) as client:
        for calls, times in ((SAFE, safe), (UNSAFE, unsafe)):
            for name, call in calls.items():
                edge.seen.clear()
                with pytest.raises(aegisagent.RequestFailed):
                    call(client)
                assert len(edge.seen) == times, name
                assert {body for _, body, _ in edge.seen} == {edge.seen[0][1]}, "the same bytes each time"


@pytest.mark.feature("retries")
def test_what_was_not_sent_is_sent_again_whatever_it_is():
    unsafe = _endpoints.decide("i", "approve", {})
    not_sent = aegisagent.Unreachable("unreachable", "m", sent=False)
    assert len(pauses_of(unsafe, not_sent, not_sent)) == 2
    with pytest.raises(aegisagent.Unreachable):
        pauses_of(unsafe, not_sent, aegisagent.Unreachable("no_answer", "m"))
    with pytest.raises(aegisagent.Unreachable):
        pauses_of(_endpoints.export(), not_sent)


@pytest.mark.feature("retries")
def test_a_consume_that_no_server_could_do_yet_is_repeated_under_its_one_key(edge, mode, recorder):
    edge.decision = "require_approval"
    keys = set()
    for code in ("control_busy", "receipt_unavailable", "receipt_pending", "control_unreachable", "store_unavailable"):
        edge.seen.clear()
        edge.replace["consume"] = (503, {"error": {"code": code, "message": "m"}})
        denied = assert_denied(edge, mode, recorder, aegisagent.DeniedUnavailable, code)
        assert denied.code == code
        asked = edge.sent("consume")
        assert len(asked) == 3
        assert asked[0] == asked[1] == asked[2]
        keys.add(asked[0]["request_id"])
    assert len(keys) == 5, "each call has a key of its own"


def cut_off(times):
    """The server has done what it was asked, and its answer does not come: so often, then honest ones."""
    left = [times]

    def change(honest):
        if left[0] == 0:
            return honest
        left[0] -= 1
        return broken_off

    return change


@pytest.mark.feature("lost-answer")
@pytest.mark.parametrize("times", [1, 2])
def test_a_consume_whose_answer_is_cut_off_runs_the_function_exactly_once(edge, mode, recorder, times):
    edge.decision, edge.replace["consume"] = "require_approval", cut_off(times)
    assert mode.call(edge.url, recorder, "a") == "done"
    assert len(recorder.calls) == 1
    asked = edge.sent("consume")
    assert len(asked) == times + 1
    assert all(one == asked[0] for one in asked)


@pytest.mark.feature("lost-answer")
def test_a_consume_that_somebody_else_made_meanwhile_runs_nothing(edge, mode, recorder):
    def by_another(_honest):
        for approval in edge.calls:
            edge.consumed[approval] = "another's"
        edge.replace.pop("consume")
        return broken_off

    edge.decision, edge.replace["consume"] = "require_approval", by_another
    assert_denied(edge, mode, recorder, aegisagent.DeniedByApprover, "approval_consumed")


@pytest.mark.feature("lost-answer")
def test_a_key_is_in_no_error_and_no_log(edge, mode, recorder, caplog):
    caplog.set_level(0)
    edge.decision, edge.replace["consume"] = "require_approval", cut_off(3)
    denied = assert_denied(edge, mode, recorder, aegisagent.DeniedUnavailable, "consume_ambiguous")
    key = edge.sent("consume")[0]["request_id"]
    assert key not in caplog.text
    assert key not in repr(denied) + repr(denied.__cause__) + str(denied.__cause__)


@pytest.mark.feature("lost-answer")
def test_the_end_of_an_approval_is_counted_by_the_server_s_clock(edge, mode, recorder):
    # Its clock is a day behind ours: by ours, the approval has ended before it was asked for.
    edge.decision, edge.statuses = "require_approval", [404, "PENDING", "APPROVED"]
    edge.replace["authorize"] = within("approval", expires_at="2020-01-01T00:00:00Z", expires_in=900)
    assert mode.call(edge.url, recorder, "a") == "done"
    assert len(recorder.calls) == 1


@pytest.mark.feature("hostile-garbage")
@pytest.mark.parametrize("seconds", [-1, 1.5, "900", True, 10**20])
def test_seconds_that_are_none_are_a_denial(edge, mode, recorder, seconds):
    edge.decision, edge.replace["authorize"] = "require_approval", within("approval", expires_in=seconds)
    assert_denied(edge, mode, recorder, aegisagent.DeniedUnverified, "bad_reply")


@pytest.mark.feature("retries")
def test_two_calls_are_two_requests(edge, mode, recorder):
    mode.run(edge.url, lambda protect: [protect(recorder)("a"), protect(recorder)("a")])
    one, other = edge.sent("authorize")
    assert one["request_id"] != other["request_id"]
    assert len(recorder.calls) == 2


READ = {"mutates_state": False, "risk": "low", "fail_open_reads": True}


@pytest.mark.feature("fail-open")
def test_a_read_fails_open_only_by_name_and_only_where_no_server_answers(edge, mode, recorder):
    for answer in (SERVER_ERRORS["500"], SERVER_ERRORS["502"], SERVER_ERRORS["503"], SERVER_ERRORS["504"], lambda _honest: broken_off):
        edge.replace["authorize"] = answer
        assert mode.call(edge.url, recorder, "a", how=READ) == "done"
        with pytest.raises(aegisagent.DeniedUnavailable):
            mode.call(edge.url, recorder, "a", how=READ | {"fail_open_reads": False})
    assert len(recorder.calls) == 5
    assert edge.sent("outcome") == []
    for answer in (SERVER_ERRORS["401"], SERVER_ERRORS["403"], SERVER_ERRORS["409"], SERVER_ERRORS["429"], GARBAGE["no JSON"], changed(action_hash=OTHER),
                   changed(decision="maybe"), changed(decision="deny"), lambda _honest: redirect):  # fmt: skip
        edge.replace["authorize"] = answer
        with pytest.raises(aegisagent.Denied):
            mode.call(edge.url, recorder, "a", how=READ)
    assert len(recorder.calls) == 5


@pytest.mark.feature("fail-open")
def test_nothing_fails_open_for_tainted_work_or_a_contained_agent(edge, mode, recorder):
    edge.replace["authorize"] = SERVER_ERRORS["503"]
    for label in ("untrusted_external", "malicious_suspected"):
        with aegisagent.source_trust(label), pytest.raises(aegisagent.DeniedUnavailable):
            mode.call(edge.url, recorder, "a", how=READ)

    def work(protect):
        read = protect(recorder, **READ)
        for reason in ("agent_frozen", "agent_quarantined", "agent_revoked"):
            edge.replace["authorize"] = changed(decision="deny", reason=reason)
            with pytest.raises(aegisagent.DeniedByPolicy, match=reason):
                read("a")
            # Not even where it asks again and again.
            edge.replace["authorize"] = SERVER_ERRORS["503"]
            for _ in range(2):
                with pytest.raises(aegisagent.DeniedUnavailable):
                    read("a")
        assert recorder.calls == []
        # Heard to be free again, be it by another denial.
        for free in (lambda honest: honest, changed(decision="deny", reason="policy_denied")):
            edge.replace["authorize"] = changed(decision="deny", reason="agent_frozen")
            with pytest.raises(aegisagent.DeniedByPolicy):
                read("a")
            edge.replace["authorize"] = free
            with contextlib.suppress(aegisagent.DeniedByPolicy):
                read("b")
            edge.replace["authorize"] = SERVER_ERRORS["503"]
            assert read("c") == "done"

    mode.run(edge.url, work)
    assert [call["note"] for call in recorder.calls] == ["b", "c", "c"]


@pytest.mark.feature("fail-open")
@pytest.mark.parametrize("where", ["approval", "consume"])
def test_nothing_fails_open_once_it_was_authorized(edge, mode, recorder, where):
    edge.decision = "require_approval"
    for answer in (SERVER_ERRORS["500"], SERVER_ERRORS["502"], SERVER_ERRORS["503"], SERVER_ERRORS["504"], lambda _honest: broken_off):
        edge.replace[where] = answer
        with pytest.raises(aegisagent.DeniedUnavailable):
            mode.call(edge.url, recorder, "a", how=READ | {"unreachable_s": 0})
    assert (recorder.calls, edge.sent("outcome")) == ([], [])


@pytest.mark.feature("edge-killed")
def test_an_edge_that_is_gone_while_an_approval_is_waited_for_is_a_denial(edge, mode, recorder):
    edge.decision, edge.statuses = "require_approval", ["PENDING"]
    edge.before["approval"] = lambda: (setattr(edge, "is_gone", True), threading.Thread(target=edge.close).start())
    denied = assert_denied(edge, mode, recorder, aegisagent.DeniedUnavailable, timeout_s=1.0)
    assert denied.approval_id


@pytest.mark.feature("edge-killed")
def test_an_edge_that_is_away_for_a_moment_costs_no_approval(edge, mode, recorder):
    edge.decision, edge.statuses = "require_approval", ["PENDING", "APPROVED"]
    failing = iter([True] * 3)
    edge.replace["approval"] = lambda honest: SERVER_ERRORS["503"] if next(failing, False) else honest
    assert mode.call(edge.url, recorder, "a") == "done"


@pytest.mark.feature("hostile-garbage")
@pytest.mark.parametrize("where", ["authorize", "approval", "consume"])
def test_a_good_answer_that_says_it_is_encoded_is_a_denial(edge, mode, recorder, where):
    edge.decision = "require_approval"
    edge.replace[where] = lambda honest: lambda handler: handler.reply(*honest, [("content-encoding", "gzip")])
    assert "encoded" in str(assert_denied(edge, mode, recorder, aegisagent.DeniedUnverified, "bad_reply"))


@pytest.mark.feature("hostile-garbage")
def test_a_reason_is_a_code_only_where_it_is_a_short_one(edge, mode, recorder):
    for reason, code in (("agent_frozen", "agent_frozen"), ("a_" + "x" * 62, "a_" + "x" * 62), ("a_" + "x" * 63, "policy_denied"),
                         ("a_" * (3 << 20), "policy_denied"), ("because", "policy_denied"), ("Agent_frozen", "policy_denied")):  # fmt: skip
        edge.replace["authorize"] = changed(decision="deny", reason=reason)
        denied = assert_denied(edge, mode, recorder, aegisagent.DeniedByPolicy, code, timeout_s=10)
        assert denied.reason == (reason if len(reason) <= 300 else reason[:299] + "…")


@pytest.mark.feature("hostile-garbage")
def test_a_message_is_shown_with_at_most_300_characters(edge):
    for length, shown in ((300, "é" * 300), (301, "é" * 299 + "…"), (1 << 20, "é" * 299 + "…")):
        edge.replace["other"] = (400, {"error": {"code": "c", "message": "é" * length}})
        with aegisagent.Client(edge.url, "x" * 40) as client, pytest.raises(aegisagent.ApiError) as refused:
            client.summary()
        assert refused.value.reason == shown


@pytest.mark.feature("hostile-garbage")
def test_an_answer_without_end_is_not_gathered(edge, mode, recorder):
    edge.replace["authorize"] = lambda _honest: oversized
    assert "more than" in str(assert_denied(edge, mode, recorder, aegisagent.DeniedUnverified, "bad_reply", timeout_s=30))


@pytest.mark.feature("lost-answer")
def test_an_outcome_whose_answer_was_lost_is_reported_again_as_the_same(edge, mode, recorder):
    for answer, times in ((cut_off(1), 2), (lambda _honest: broken_off, 3), (SERVER_ERRORS["500"], 1), (SERVER_ERRORS["503"], 3)):
        edge.seen.clear()
        edge.replace["outcome"] = answer
        assert mode.call(edge.url, recorder, "a") == "done"
        reports = edge.sent("outcome")
        assert len(reports) == times
        assert all(one == reports[0] for one in reports)
    assert len(edge.reported) == 4, "four runs, four reports, however often each was sent"
    assert len(recorder.calls) == 4
