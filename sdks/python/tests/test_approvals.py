"""An action that asks for approval, with an honest server: what is consumed, and what an edit may change."""

import json
import time
import types

import pytest
from fake import name_of
from given import hash_of

import aegisagent
from aegisagent import _action, _exchange, _flow, trust


@pytest.mark.feature("protect-approval")
def test_an_approved_action_is_consumed_and_runs(edge, mode, recorder):
    told = []
    edge.decision, edge.statuses = "require_approval", [404, 404, "PENDING", "APPROVED"]
    assert mode.call(edge.url, recorder, "a", how={"on_pending": told.append}) == "done"
    assert [name for name, _, _ in edge.seen] == ["authorize", "approval", "approval", "approval", "approval", "consume", "outcome"]
    assert (told[0].approver_group, told[0].action_hash) == ("release", hash_of({"note": "a", "amount": 1}))


@pytest.mark.feature("protect-approval")
def test_whoever_is_told_of_an_approval_decides_nothing_by_failing(edge, mode, recorder, caplog):
    def failing(_pending):
        raise aegisagent.DeniedByApprover("approval_rejected", "words that nobody may see")

    edge.decision, edge.statuses = "require_approval", ["PENDING", "APPROVED"]
    assert mode.call(edge.url, recorder, "a", how={"on_pending": failing}) == "done"
    assert len(recorder.calls) == len(edge.sent("consume")) == 1
    assert "on_pending failed" in caplog.text
    assert "nobody may see" not in caplog.text
    edge.statuses = ["REJECTED"]
    with pytest.raises(aegisagent.DeniedByApprover) as denied:
        mode.call(edge.url, recorder, "a", how={"on_pending": failing})
    assert "nobody may see" not in str(denied.value)
    assert len(recorder.calls) == 1


@pytest.mark.feature("protect-approval")
@pytest.mark.parametrize("status", ["REJECTED", "EXPIRED", "CONSUMED"])
def test_an_approval_that_ended_otherwise_is_a_denial(edge, mode, recorder, status):
    edge.decision, edge.statuses = "require_approval", ["PENDING", status]
    with pytest.raises(aegisagent.DeniedByApprover) as denied:
        mode.call(edge.url, recorder, "a")
    assert denied.value.code == f"approval_{status.lower()}"
    assert denied.value.decision_id
    assert denied.value.approval_id
    assert (recorder.calls, edge.sent("consume")) == ([], [])


@pytest.mark.feature("protect-approval")
def test_nobody_who_decides_in_time_is_a_denial(edge, mode, recorder):
    edge.decision, edge.statuses = "require_approval", ["PENDING"]
    for timeout_s in (0, 0.6):
        with pytest.raises(aegisagent.DeniedByApprover, match="approval_timeout"):
            mode.call(edge.url, recorder, "a", how={"approval_timeout_s": timeout_s})
    assert recorder.calls == []


def waits(edge, monkeypatch, **how):
    """The pauses of a call that waits for an approval, by a clock that only its pauses move; and what it ended with."""
    now, pauses = [0.0], []
    monkeypatch.setattr(_flow, "time", types.SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    caller = _flow.Caller(lambda: aegisagent.Secret("x" * 40), {"id": "a"}, 10.0, trust.RunTokens())
    steps = _flow.clear(caller, _action.freeze("crm", "update_note", None, True, {}), _flow.Options(**how))
    answer = None
    while True:
        try:
            step = _exchange.advanced(steps, answer, None)
        except aegisagent.Denied as denied:
            return pauses, denied.code
        answer = None
        if isinstance(step, _exchange.Ended):
            return pauses, "cleared"
        if isinstance(step, _exchange.Sleep):
            pauses.append(step.seconds)
            now[0] += step.seconds
            continue
        request = step.request
        status, body = edge.answer(name_of(request.method, request.path), request.path, request.body and json.loads(request.body))
        answer = _exchange.Reply(status, {}, json.dumps(body).encode())


@pytest.mark.feature("protect-approval")
@pytest.mark.parametrize("spread", [0.8, 1.0, 1.2])
def test_the_pauses_between_two_looks_grow_and_are_spread(edge, monkeypatch, spread):
    monkeypatch.setattr(_flow, "FIRST_POLL_S", 0.25)
    monkeypatch.setattr(_flow.random, "uniform", lambda low, high: {0.8: low, 1.0: 1.0, 1.2: high}[spread])
    edge.decision, edge.statuses = "require_approval", [404] * 2 + ["PENDING"] * 9 + ["APPROVED"]
    pauses, ended = waits(edge, monkeypatch)
    assert ended == "cleared"
    assert pauses == pytest.approx([spread * min(0.25 * 1.5**look, 5.0) for look in range(11)])
    assert pauses[:8] == sorted(set(pauses[:8]))
    assert pauses[8:] == pytest.approx([5.0 * spread] * 3), "none is longer than the longest"


@pytest.mark.feature("protect-approval")
@pytest.mark.parametrize(("how", "until"), [({"approval_timeout_s": 20}, 20.0), ({}, 905.0)])
def test_no_pause_is_longer_than_what_is_left(edge, monkeypatch, how, until):
    edge.decision, edge.statuses = "require_approval", ["PENDING"]
    pauses, ended = waits(edge, monkeypatch, **how)
    assert ended == "approval_timeout"
    assert sum(pauses) == pytest.approx(until)


def edit_of(**changes):
    call = {
        "tool": "crm",
        "action": "update_note",
        "resource": "customer-1",
        "mutates_state": True,
        "parameters": {"note": "b", "amount": 2},
    }
    return call | changes


@pytest.mark.feature("protect-edit")
def test_an_edited_action_runs_as_it_was_edited_if_the_caller_opted_in(edge, mode, recorder):
    edge.decision, edge.edited = "require_approval", edit_of()
    mode.call(edge.url, recorder, "a", how={"accept_edits": True})
    assert recorder.calls == [{"note": "b", "amount": 2}]
    assert [consume["claimed_action_hash"] for consume in edge.sent("consume")] == [hash_of({"note": "b", "amount": 2})]
    assert [outcome["executed_hash"] for outcome in edge.sent("outcome")] == [hash_of({"note": "b", "amount": 2})]


@pytest.mark.feature("protect-edit")
def test_an_edited_action_is_a_denial_otherwise(edge, mode, recorder):
    edge.decision, edge.edited = "require_approval", edit_of()
    with pytest.raises(aegisagent.DeniedByApprover, match="approval_edited"):
        mode.call(edge.url, recorder, "a")
    assert (recorder.calls, edge.sent("consume")) == ([], [])


@pytest.mark.feature("protect-edit")
@pytest.mark.parametrize(
    "edited",
    [
        edit_of(tool="shell"), edit_of(action="delete"), edit_of(mutates_state=False), edit_of(resource="customer-2"),
        edit_of(parameters={"note": "b"}), edit_of(parameters={"note": "b", "amount": 2, "force": True}), edit_of(parameters={}),
    ],
    ids=["tool", "action", "mutates_state", "resource", "fewer", "more", "none"],
)  # fmt: skip
def test_an_edit_that_this_function_cannot_run_is_a_denial_and_consumes_nothing(edge, mode, recorder, edited):
    edge.decision, edge.edited = "require_approval", edited
    with pytest.raises(aegisagent.DeniedByApprover, match="approval_edited"):
        mode.call(edge.url, recorder, "a", how={"accept_edits": True})
    assert (recorder.calls, edge.sent("consume")) == ([], [])


@pytest.mark.feature("protect-edit")
def test_an_edit_of_gathered_arguments_must_still_fit(edge, mode):
    edge.decision, edge.edited = "require_approval", edit_of(parameters={"rest": 7})
    with pytest.raises(aegisagent.DeniedByApprover, match="approval_edited"):
        mode.call(edge.url, lambda *rest: rest, 1, how={"accept_edits": True})
    assert edge.sent("consume") == []


@pytest.mark.feature("protect-edit")
def test_an_edit_says_each_argument_once(edge, mode):
    """Otherwise policy and approver would see one amount, and another would run."""
    seen = []

    def function(note, /, amount, *, limit=1, db=None, **more):
        seen.append((note, amount, limit, db, more))

    how = {"accept_edits": True, "passed_on": ["db"]}
    edge.decision = "require_approval"
    for name in ("amount", "limit", "db"):
        edge.edited = edit_of(parameters={"note": "b", "amount": 2, "limit": 1, "more": {name: 500}})
        with pytest.raises(aegisagent.DeniedByApprover, match="approval_edited"):
            mode.call(edge.url, function, "a", 1, how=how)
    assert (seen, edge.sent("consume")) == ([], [])
    edge.edited = edit_of(parameters={"note": "b", "amount": 2, "limit": 1, "more": {"note": "beside", "more": 3}})
    mode.call(edge.url, function, "a", 1, how=how)
    assert seen == [("b", 2, 1, None, {"note": "beside", "more": 3})]


@pytest.mark.feature("protect-edit")
def test_a_resource_that_follows_from_the_parameters_follows_the_edit(edge, mode, recorder):
    how = {"accept_edits": True, "resource": lambda parameters: f"customer-{parameters['amount']}"}
    edge.decision, edge.edited = "require_approval", edit_of(resource="customer-2")
    mode.call(edge.url, recorder, "a", how=how)
    assert recorder.calls == [{"note": "b", "amount": 2}]
    # Another one, and one that cannot be told.
    for edited in (edit_of(resource="customer-3"), edit_of(parameters={"note": "b", "amount": "two"})):
        edge.edited = edited
        with pytest.raises(aegisagent.DeniedByApprover, match="approval_edited"):
            mode.call(edge.url, recorder, "a", how=how | {"resource": lambda parameters: f"customer-{parameters['amount'] + 0}"})
    assert len(edge.sent("consume")) == 1
