"""Against the real program: from an action that asks for approval to the one that runs."""

import datetime
import json
import os

import anyio
import pytest
from conftest import Mode
from world import REFUND, wait_until

import aegisagent
from aegisagent import _endpoints, _flow


@pytest.mark.feature("e2e-approval")
def test_an_approved_action_runs_once(world, mode, recorder):
    asked = []

    def approve(approval_id):
        asked.append(approval_id)
        world.approver.approve(approval_id)

    assert world.call(mode, recorder, "a", on_pending=world.when_asked(approve), **REFUND) == "done"
    assert len(recorder.calls) == 1
    approval = world.approver.approval(asked[0])
    assert (approval.status, approval.edited_by, approval.user_id) == ("CONSUMED", None, None)
    assert approval.matched_policies
    wait_until("the outcome is an event", lambda: world.outcomes() == ["ok"])
    assert "tamper_attempt" not in world.kinds()


@pytest.fixture(params=["langchain", "openai-agents"])
def refund_tool(request, ran):
    """A tool that a framework made of a function: how it is protected, and run with arguments as a model writes them."""

    def refund(amount: int, day: datetime.date, note: str = "none") -> str:
        """Refunds."""
        ran.append((amount, day, note))
        return "refunded"

    if request.param == "langchain":
        adapter = pytest.importorskip("aegisagent.adapters.langchain")
        made = pytest.importorskip("langchain_core.tools").tool(refund)
        return lambda client, **how: adapter.protect_tools(client, [made], **how), lambda given: made.invoke(given)
    agents, adapter = pytest.importorskip("agents"), pytest.importorskip("aegisagent.adapters.openai_agents")
    made = agents.function_tool(refund, strict_mode=False, failure_error_function=None)
    agent = agents.Agent(name="a", tools=[made])
    context = agents.tool_context.ToolContext(context=None, tool_name="refund", tool_call_id="1", tool_arguments="{}")
    return (
        lambda client, **how: adapter.protect_agent(client, agent, **how),
        lambda given: anyio.run(made.on_invoke_tool, context, json.dumps(given)),
    )  # fmt: skip


@pytest.mark.feature("e2e-approval")
@pytest.mark.feature("adapter-langchain")
@pytest.mark.feature("adapter-openai-agents")
def test_what_was_approved_is_what_a_tool_s_function_gets(world, ran, refund_tool):
    protect, run = refund_tool
    approved = []

    def approve(approval_id):
        approval = world.approver.approval(approval_id)
        approved.append((approval.action_hash, approval.current.parameters))
        world.approver.approve(approval_id)

    protect(world.client(world.agent.agent_token), tool="crm", resource=lambda *_: "customer-1", on_pending=world.when_asked(approve))
    with aegisagent.source_trust("trusted_internal_unsigned"), aegisagent.run(os.urandom(8).hex()):
        assert run({"amount": "5", "day": "2026-11-26"}) == "refunded"
    read = {"amount": 5, "day": "2026-11-26", "note": "none"}
    assert approved == [(aegisagent.action_hash("crm", "refund", "customer-1", True, read), read)]
    assert ran == [(5, datetime.date(2026, 11, 26), "none")]


@pytest.mark.feature("e2e-approval")
def test_an_approval_s_action_comes_back_with_the_hash_that_was_sent(world):
    odd = {
        "é😀": [1.0, -0.0, 1e20, 1e-7, 0.1, 5e-324, 1.7976931348623157e308, 2**53 - 1, -(2**53) + 1, True, None],
        "a": '\u2028\x00\x7f"\\/\u200f',
        "": {"": [{}]},
    }
    seen = []
    world.call(Mode("blocking"), lambda odd: seen.append(odd), odd, on_pending=world.when_asked(world.approver.approve), **REFUND)
    assert repr(seen) == repr([odd])


@pytest.mark.feature("e2e-rejection")
def test_a_rejected_action_does_not_run(world, mode, recorder):
    with pytest.raises(aegisagent.DeniedByApprover, match="approval_rejected"):
        world.call(mode, recorder, "a", on_pending=world.when_asked(lambda i: world.approver.reject(i, reason="no")), **REFUND)
    assert recorder.calls == []


@pytest.mark.feature("e2e-expiry")
def test_an_approval_past_its_time_does_not_run(world, mode, recorder, monkeypatch):
    # It waits on, until the server has said so: one that takes EXPIRED for pending would end with another code.
    monkeypatch.setattr(_flow, "CLOCK_GRACE_S", 60.0)
    world.tenant.settings(approval_ttl_s=1)
    with pytest.raises(aegisagent.DeniedByApprover) as denied:
        world.call(mode, recorder, "a", **REFUND)
    assert denied.value.code == "approval_expired"
    assert world.approver.approval(denied.value.approval_id).status == "EXPIRED"
    assert recorder.calls == []


@pytest.mark.feature("e2e-swap")
def test_arguments_that_are_swapped_after_the_approval_do_not_run(world, mode):
    note, seen = ["pay 1"], []

    def approve_and_swap(approval_id):
        note[0] = "pay 1000"
        world.approver.approve(approval_id)

    world.call(mode, lambda note: seen.append(note), note, on_pending=world.when_asked(approve_and_swap), **REFUND)
    assert (seen, note) == ([["pay 1"]], ["pay 1000"])
    wait_until("the outcome is an event", lambda: world.outcomes() == ["ok"])
    assert "tamper_attempt" not in world.kinds()


@pytest.mark.feature("e2e-swap")
def test_an_action_that_is_swapped_between_approval_and_execution_does_not_run(world, mode, recorder, monkeypatch):
    other = aegisagent.ToolCall("crm", "refund", "customer-1", True, {"note": "swapped", "amount": 1000})
    honest = _endpoints.consume
    monkeypatch.setattr(_flow._endpoints, "consume", lambda approval_id, _hash: honest(approval_id, other.action_hash()))
    with pytest.raises(aegisagent.DeniedUnverified, match="action_hash_mismatch") as denied:
        world.call(mode, recorder, "a", on_pending=world.when_asked(world.approver.approve), **REFUND)
    assert recorder.calls == []
    wait_until("the attempt is an event", lambda: "tamper_attempt" in world.kinds())
    assert world.approver.approval(denied.value.approval_id).status == "APPROVED"


def edit(world, approve=True):
    def act(approval_id):
        edited = aegisagent.ToolCall("crm", "refund", "customer-1", True, {"note": "edited", "amount": 2})
        world.approver.edit(approval_id, edited)
        if approve:
            somebody_else = world.client(world.tenant.key("approver", "sam", groups=("security",)))
            somebody_else.approve(approval_id, action_hash=edited.action_hash())

    return world.when_asked(act)


@pytest.mark.feature("e2e-edit")
def test_an_edited_action_runs_as_edited_if_the_caller_opted_in(world, mode, recorder):
    world.call(mode, recorder, "a", on_pending=edit(world), accept_edits=True, **REFUND)
    assert recorder.calls == [{"note": "edited", "amount": 2}]
    wait_until("the outcome is an event", lambda: world.outcomes() == ["ok"])
    assert "tamper_attempt" not in world.kinds()


@pytest.mark.feature("e2e-edit")
def test_an_edited_action_does_not_run_otherwise(world, mode, recorder):
    with pytest.raises(aegisagent.DeniedByApprover, match="approval_edited"):
        world.call(mode, recorder, "a", on_pending=edit(world), **REFUND)
    assert recorder.calls == []


@pytest.mark.feature("e2e-edit")
def test_an_edit_between_the_approval_and_its_consumption_does_not_run(world, mode, recorder, monkeypatch):
    honest = _endpoints.consume

    def consume(approval_id, action_hash):
        edited = aegisagent.ToolCall("crm", "refund", "customer-1", True, {"note": "edited", "amount": 2})
        world.approver.edit(approval_id, edited)
        return honest(approval_id, action_hash)

    monkeypatch.setattr(_flow._endpoints, "consume", consume)
    with pytest.raises(aegisagent.DeniedUnverified, match="action_hash_mismatch"):
        world.call(mode, recorder, "a", on_pending=world.when_asked(world.approver.approve), accept_edits=True, **REFUND)
    assert recorder.calls == []


@pytest.mark.feature("e2e-replay")
def test_an_approval_is_used_once_and_a_second_call_asks_anew(world, mode, recorder):
    approvals = []

    def approve(approval_id):
        approvals.append(approval_id)
        world.approver.approve(approval_id)

    for _ in range(2):
        world.call(mode, recorder, "a", on_pending=world.when_asked(approve), **REFUND)
    assert len(set(approvals)) == len(recorder.calls) == 2
    agent = world.client(world.agent.agent_token)
    with pytest.raises(aegisagent.ApiError) as refused:
        agent.consume(approvals[0], world.approver.approval(approvals[0]).action_hash)
    assert (refused.value.status, refused.value.code) == (409, "approval_consumed")


@pytest.mark.feature("e2e-replay")
def test_an_approval_that_somebody_else_consumed_does_not_run(world, mode, recorder, monkeypatch):
    agent, honest = world.client(world.agent.agent_token), _endpoints.consume

    def consume(approval_id, action_hash):
        agent._call(honest(approval_id, action_hash))
        return honest(approval_id, action_hash)

    monkeypatch.setattr(_flow._endpoints, "consume", consume)
    with pytest.raises(aegisagent.DeniedByApprover, match="approval_consumed"):
        world.call(mode, recorder, "a", on_pending=world.when_asked(world.approver.approve), **REFUND)
    assert recorder.calls == []


@pytest.mark.feature("trust-context")
def test_nobody_approves_what_is_done_on_their_behalf(world, recorder):
    def approve(approval_id):
        with pytest.raises(aegisagent.ApiError, match="self_approval"):
            world.approver.approve(approval_id)
        world.client(world.tenant.key("approver", "sam", groups=("security",))).approve(approval_id)

    with aegisagent.on_behalf_of("rita"):
        world.call(Mode("blocking"), recorder, "a", on_pending=world.when_asked(approve), **REFUND)
    assert len(recorder.calls) == 1
