"""What is sent again, how often and after which pauses: only what cannot take effect twice."""

import pytest
from answers import GARBAGE, OTHER, SERVER_ERRORS, assert_denied, broken_off

import aegisagent
from aegisagent import _endpoints, _exchange


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
