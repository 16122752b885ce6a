"""Against the real program: the rest of the client, and its receipts."""

import inspect
import io
import json

import anyio
import pytest
from conftest import Mode, Recorder
from world import wait_until

import aegisagent
from aegisagent import receipts


@pytest.mark.feature("verify-receipts")
def test_an_export_verifies_under_the_pinned_keys_and_a_changed_byte_does_not(world):
    world.call(Mode("blocking"), Recorder(), "a")
    wait_until("the outcome is an event", lambda: world.outcomes() == ["ok"])
    out = io.BytesIO()
    world.admin.export_receipts(out)
    roots = receipts.Roots.read([str(world.aegis.data / "keys" / f"{name}.pub") for name in ("control", "edge")])
    report = receipts.verify_export(io.BytesIO(out.getvalue()), roots)
    assert (report.verdict, report.receipts) == (receipts.Verdict.VALID, out.getvalue().count(b"\n"))
    assert report.receipts >= 10
    changed = out.getvalue().replace(b'"decision":"allow"', b'"decision":"deny"', 1)
    assert receipts.verify_export(io.BytesIO(changed), roots).failure.code in ("hash_mismatch", "digest_mismatch")
    newest = world.admin.receipts(limit=1)[0]
    assert receipts.verify_event(world.admin.receipt(newest["event_id"]), roots).signed
    assert world.admin.verify_receipt(newest["event_id"]).verdict == "valid"


@pytest.mark.feature("action-hash")
def test_the_server_hashes_what_we_hash(world):
    agent = world.client(world.agent.agent_token)
    for parameters in ({}, {"é😀": [1.0, -0.0, 1e20, 1e-7, 0.1, 2**53 - 1, True, None]}, {"a": '\u2028\x00\x7f"\\/', "z": {"": {}}}):
        call = aegisagent.ToolCall("crm", "read_customer", None, False, parameters)
        assert agent.authorize(call).action_hash == call.action_hash()


@pytest.mark.feature("client-api")
def test_the_rest_of_the_client(world):
    registrar = world.client(world.tenant.registrar)
    again = registrar.register("bot", "Bot", environment="production", risk_tier="low")
    assert (again.id, again.agent_key) == (world.agent.id, "bot")
    assert registrar.put_tool({"tool": "t", "name": "T", "actions": []})["tool"] == "t"
    agent = world.client(again.agent_token)
    call = aegisagent.ToolCall("crm", "refund", None, True, {"amount": 1})
    first, second = (agent.authorize(call, request_id="one") for _ in range(2))
    assert first.approval.approval_id == second.approval.approval_id
    wait_until("control has the approval", lambda: world.has(first.approval.approval_id))
    assert [approval.approval_id for approval in world.approver.approvals("PENDING")] == [first.approval.approval_id]
    outcome = agent.outcome(second.decision_id, "ok", executed_hash=call.action_hash(), output={"n": 1})
    assert (outcome.status, outcome.violation) == ("ok", "executed_without_approval")
    assert world.admin.summary()["approvals_pending"] == 1
    assert world.admin.ready()["ready"] is True
    world.tenant.post("/v1/mcp/servers", {"key": "files", "name": "Files", "tools": []}).expect(201)
    held = world.admin.quarantine_mcp_server("files", "q", ttl_s=60)
    assert (held.target_type, held.target_id, held.verdict, held.holds[0].reason) == ("mcp_server", "files", "quarantined", "q")
    assert [one.target_id for one in world.admin.containment()] == ["files"]
    free = world.admin.restore_mcp_server("files", "r")
    assert (free.verdict, free.holds, free.revision > held.revision) == ("free", (), True)
    assert world.admin.freeze_agent(again.id, "a", ttl_s=60).holds[0].until
    assert world.admin.revoke_agent(again.id, "b").verdict == "revoked"
    with pytest.raises(aegisagent.ApiError) as refused:
        agent.freeze_agent(again.id, "c")
    assert (refused.value.status, refused.value.code) == (403, "wrong_role")


@pytest.mark.feature("client-api")
def test_the_rest_of_the_async_client(world):
    async def main():
        async with (
            aegisagent.AsyncClient(world.url, world.tenant.admin) as admin,
            aegisagent.AsyncClient(world.url, world.agent.agent_token) as agent,
        ):
            call = aegisagent.ToolCall("crm", "update_customer", None, True, {"id": "1"})
            with aegisagent.source_trust("trusted_internal_unsigned"):
                decision = await agent.authorize(call)
            assert (await agent.outcome(decision.decision_id, "error")).violation is None
            out = io.BytesIO()
            await admin.export_receipts(out)
            assert json.loads(out.getvalue().splitlines()[0])["receipt"]
            assert (await admin.freeze_agent(world.agent.id, "x")).verdict == "frozen"
            assert (await admin.receipts(agent_id=world.agent.id))[0]["agent_id"] == world.agent.id
            assert (await admin.approvals()) == []
            assert (await admin.ready())["ready"]

    for backend in ("asyncio", "trio"):
        anyio.run(main, backend=backend)
        world.admin.unfreeze_agent(world.agent.id, "next")


async def pending_of(agent, approver, amount):
    """An action that asked for approval, when control has it."""
    call = aegisagent.ToolCall("crm", "refund", None, True, {"amount": amount})
    with aegisagent.source_trust("trusted_internal_unsigned"):
        decision = await agent.authorize(call)
    with anyio.fail_after(60):
        while True:
            try:
                return call, decision, await approver.approval(decision.approval.approval_id)
            except aegisagent.ApiError as error:
                assert error.code == "approval_not_found"
            await anyio.sleep(0.05)


@pytest.mark.feature("client-api")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_every_call_of_the_async_client_about_approvals(world, backend):
    key, other = (world.tenant.key("approver", name, groups=("security",)) for name in ("ada", "bob"))

    async def main():
        async with (
            aegisagent.AsyncClient(world.url, key) as approver, aegisagent.AsyncClient(world.url, other) as another,
            aegisagent.AsyncClient(world.url, world.agent.agent_token) as agent,
        ):  # fmt: skip
            call, decision, approval = await pending_of(agent, approver, 1)
            assert (approval.status, approval.tool_call, approval.decision_id) == ("PENDING", call, decision.decision_id)
            assert (await approver.approve(approval.approval_id, action_hash=call.action_hash(), reason="yes")).approved_by == ("ada",)
            consumed = await agent.consume(approval.approval_id, call.action_hash())
            assert (consumed.status, consumed.action_hash) == ("consumed", call.action_hash())
            assert (await agent.approval(approval.approval_id)).status == "CONSUMED"
            _, _, approval = await pending_of(agent, approver, 2)
            assert (await approver.reject(approval.approval_id, reason="no")).status == "REJECTED"
            _, _, approval = await pending_of(agent, approver, 3)
            smaller = aegisagent.ToolCall("crm", "refund", None, True, {"amount": 1})
            edited = await approver.edit(approval.approval_id, smaller, reason="less")
            assert (edited.status, edited.edited_by, edited.current) == ("PENDING", "ada", smaller)
            assert (await another.approve(approval.approval_id, action_hash=smaller.action_hash())).status == "APPROVED"
            assert [one.approval_id for one in await approver.approvals("APPROVED")] == [approval.approval_id]

    anyio.run(main, backend=backend)


@pytest.mark.feature("client-api")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_every_other_call_of_the_async_client(world, backend):
    world.tenant.post("/v1/mcp/servers", {"key": "files", "name": "Files", "tools": []}).expect(201)

    async def main():
        async with (
            aegisagent.AsyncClient(world.url, world.tenant.registrar) as registrar,
            aegisagent.AsyncClient(world.url, world.tenant.admin) as admin,
        ):
            again = await registrar.register("bot", "Bot", environment="production", risk_tier="low")
            assert (again.id, again.agent_key) == (world.agent.id, "bot")
            assert (await registrar.put_tool({"tool": "t", "name": "T", "actions": []}))["tool"] == "t"
            assert (await admin.freeze_agent(again.id, "a")).verdict == "frozen"
            assert [one.target_id for one in await admin.containment()] == [again.id]
            assert (await admin.unfreeze_agent(again.id, "b")).verdict == "free"
            assert (await admin.quarantine_mcp_server("files", "c")).verdict == "quarantined"
            assert (await admin.restore_mcp_server("files", "d")).verdict == "free"
            assert (await admin.revoke_agent(again.id, "e")).verdict == "revoked"
            assert (await admin.summary())["approvals_pending"] == 0
            newest = (await admin.receipts(limit=1))[0]
            assert (await admin.receipt(newest["event_id"]))["receipt"]
            with anyio.fail_after(60):
                while (verdict := await admin.verify_receipt(newest["event_id"])).verdict != "valid":
                    await anyio.sleep(0.05)
            assert (verdict.receipt_id, verdict.failure) == (newest["event_id"], None)

    anyio.run(main, backend=backend)


@pytest.mark.feature("client-api")
@pytest.mark.parametrize("kind", ["blocking", "asyncio", "trio"])
def test_decisions_events_alerts_and_incidents_are_read(world, kind):
    agent, call = world.client(world.agent.agent_token), aegisagent.ToolCall("crm", "refund", None, True, {"amount": 1})
    with aegisagent.source_trust("trusted_internal_unsigned"):
        decided = agent.authorize(call, trace={"run_id": "run-1"})
    # What an incident is made of.
    agent.outcome(decided.decision_id, "ok", executed_hash=call.action_hash())
    wait_until("an incident is open", lambda: world.admin.incidents())
    wait_until("the decision and its outcome are events", lambda: world.admin.decisions() and world.outcomes())

    def ask(name, *given, **how):
        if kind == "blocking":
            return getattr(world.admin, name)(*given, **how)

        async def main():
            async with aegisagent.AsyncClient(world.url, world.tenant.admin) as admin:
                return await getattr(admin, name)(*given, **how)

        return anyio.run(main, backend=kind)

    def ids(name, **how):
        return [one["event_id"] for one in ask(name, **how)]

    assert ask("decision", decided.decision_id)["decision"] == "require_approval"
    for filters, found in (({}, True), ({"agent_id": world.agent.id, "run_id": "run-1"}, True), ({"run_id": "run-2"}, False),
                           ({"agent_id": "another"}, False), ({"offset": 1}, False)):  # fmt: skip
        assert ids("decisions", **filters) == [decided.decision_id] * found, filters
    assert [one["kind"] for one in ask("events", kind="tool_outcome", agent_id=world.agent.id, limit=1)] == ["tool_outcome"]
    assert decided.decision_id in ids("events", run_id="run-1")
    assert ids("events", kind="tool_outcome", agent_id="another") == []
    (alert, *_), (incident, *_) = ask("alerts"), ask("incidents")
    assert ask("alert", alert["alert_id"])["alert_id"] == alert["alert_id"]
    assert ask("incident", incident["incident_id"])["status"] != "closed"
    assert ask("close_incident", incident["incident_id"], reason="a test")["status"] == "closed"
    assert ask("incident", incident["incident_id"])["status"] == "closed"


@pytest.mark.feature("client-api")
def test_both_clients_have_the_same_methods():
    def shape(kind):
        public = [name for name, value in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")]
        return {name: inspect.signature(getattr(kind, name)) for name in public if name not in ("clearing", "send")}

    assert shape(aegisagent.Client) == shape(aegisagent.AsyncClient)
