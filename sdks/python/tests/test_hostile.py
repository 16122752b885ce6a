"""Answers that no server of ours gives. Each is a typed denial, and the function does not run."""

import contextlib
import socket
import threading
import time

import pytest
from answers import (
    AUTHORIZE,
    BROKEN,
    CONSUME,
    FOREVER,
    GARBAGE,
    OTHER,
    POLL,
    SERVER_ERRORS,
    answers,
    assert_denied,
    broken_off,
    cases,
    changed,
    encoded,
    oversized,
    redirect,
    within,
)

import aegisagent


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
    # What comes before it is honest, and must be there by then on a busy machine too.
    denied = assert_denied(edge, mode, recorder, aegisagent.DeniedUnavailable, timeout_s=0.5 if where == "authorize" else 2.0)
    assert time.monotonic() - began < FOREVER / 2, "the deadline is for the whole answer"
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
    denied = assert_denied(edge, mode, recorder, aegisagent.DeniedUnavailable, timeout_s=5.0)
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
