"""Against the real program. AEGIS_BIN names it; `test.sh` does not start without one."""

import contextlib
import datetime
import io
import json
import os
import sys
import threading
import time

import anyio
import pytest
from between import losing
from conftest import Mode, Recorder
from where import REPOSITORY

import aegisagent
from aegisagent import _endpoints, _flow, receipts

if "AEGIS_BIN" not in os.environ:
    pytest.skip("AEGIS_BIN names no program", allow_module_level=True)
sys.path.insert(0, str(REPOSITORY / "tests/e2e"))
from harness import Aegis, wait_until

READ = {"action": "read_customer", "mutates_state": False, "risk": "low"}
REFUND = {"action": "refund"}


@pytest.fixture(scope="module")
def aegis():
    instance = Aegis().start()
    yield instance
    instance.close()


class World:
    """A tenant with its people, and an agent."""

    def __init__(self, aegis):
        self.aegis = aegis
        self._open = contextlib.ExitStack()
        self._threads = []
        self.tenant = aegis.tenant().register_tools()
        self.tenant.settings(automatic_freezes_per_hour=0)
        self.url = f"http://127.0.0.1:{aegis.port}"
        self.admin = self.client(self.tenant.admin)
        self.approver = self.client(self.tenant.key("approver", "rita", groups=("security",)))
        self.agent = self.client(self.tenant.registrar).register("bot", "Bot", environment="production", risk_tier="low")

    def client(self, key):
        return self._open.enter_context(aegisagent.Client(self.url, key))

    def close(self):
        for thread in self._threads:
            thread.join(60)
        self._open.close()

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.close()

    def call(self, mode, function, *args, trust="trusted_internal_unsigned", **how):
        """Calls `function` protected, for work of this label, in a run of its own."""
        with aegisagent.source_trust(trust), aegisagent.run(os.urandom(8).hex()):
            defaults = {"action": "update_customer", "resource": "customer-1"}
            return mode.run(self.url, lambda protect: protect(function, **(defaults | how))(*args), token=self.agent.agent_token)

    def when_asked(self, act):
        """`on_pending` that has `act(approval_id)` done by somebody else, once control has the approval."""

        def begin(pending):
            def decide():
                wait_until("control has the approval", lambda: self.has(pending.approval_id))
                act(pending.approval_id)

            self._threads.append(threading.Thread(target=decide, daemon=True))
            self._threads[-1].start()

        return begin

    def has(self, approval_id):
        try:
            return self.approver.approval(approval_id)
        except aegisagent.ApiError as error:
            assert error.code == "approval_not_found", error
            return None

    def outcomes(self):
        return [event["status"] for event in self.tenant.list("/v1/audit/events?kind=tool_outcome")]

    def kinds(self):
        return [event["kind"] for event in self.tenant.list("/v1/audit/events")]


@pytest.fixture
def world(aegis):
    with World(aegis) as world:
        yield world


@pytest.mark.feature("e2e-allow")
def test_an_allowed_action_runs_and_its_outcome_is_a_receipt(world, mode, recorder):
    assert world.call(mode, recorder, "a") == "done"
    assert recorder.calls == [{"note": "a", "amount": 1}]
    wait_until("the outcome is an event", lambda: world.outcomes() == ["ok"])


@pytest.mark.feature("lost-answer")
def test_a_consume_and_an_outcome_whose_answers_are_cut_off_run_the_function_once_and_are_one_receipt_each(world, mode, recorder):
    lost = []

    def is_lost(path):
        kind = path.rsplit("/", 1)[-1]
        if kind in ("consume", "outcome") and lost.count(kind) < 2:
            lost.append(kind)
            return True
        return False

    approve = world.when_asked(world.approver.approve)
    with losing(world.url, is_lost) as world.url:
        assert world.call(mode, recorder, "a", **REFUND, on_pending=approve) == "done"
    assert sorted(lost) == ["consume"] * 2 + ["outcome"] * 2
    assert len(recorder.calls) == 1
    wait_until("the outcome is an event", lambda: world.outcomes() == ["ok"])
    kinds = world.kinds()
    assert kinds.count("approval_consumed") == 1
    assert "replay_attempt" not in kinds, "who lost an answer attacks nobody"


@pytest.mark.feature("e2e-deny")
def test_a_denied_action_does_not_run(world, mode, recorder):
    with pytest.raises(aegisagent.DeniedByPolicy) as denied:
        world.call(mode, recorder, "a", trust="untrusted_external")
    assert (denied.value.code, recorder.calls) == ("policy_denied", [])
    with pytest.raises(aegisagent.DeniedByPolicy, match="unknown_action"):
        world.call(mode, recorder, "a", action="drop_tables")
    assert recorder.calls == []
    assert world.admin.receipt(denied.value.decision_id)["decision"] == "deny"


@pytest.mark.feature("e2e-approval")
def test_an_approved_action_runs_once(world, mode, recorder):
    asked = []

    def approve(approval_id):
        asked.append(approval_id)
        world.approver.approve(approval_id)

    assert world.call(mode, recorder, "a", on_pending=world.when_asked(approve), **REFUND) == "done"
    assert len(recorder.calls) == 1
    assert world.approver.approval(asked[0]).status == "CONSUMED"
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
def test_an_approval_past_its_time_does_not_run(world, mode, recorder):
    world.tenant.settings(approval_ttl_s=1)
    with pytest.raises(aegisagent.DeniedByApprover, match=r"approval_expired|approval_timeout"):
        world.call(mode, recorder, "a", **REFUND)
    assert recorder.calls == []


@pytest.mark.feature("e2e-swap")
def test_arguments_that_are_swapped_after_the_approval_do_not_run(world, mode):
    note, seen = ["pay 1"], []

    def approve_and_swap(approval_id):
        note[0] = "pay 1000"
        world.approver.approve(approval_id)

    world.call(mode, lambda note: seen.append(note), note, on_pending=world.when_asked(approve_and_swap), **REFUND)
    assert (seen, note) == ([["pay 1"]], ["pay 1000"])
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


@pytest.mark.feature("e2e-frozen")
def test_a_frozen_agent_does_nothing_until_it_is_unfrozen(world, mode, recorder):
    state = world.admin.freeze_agent(world.agent.id, "test")
    assert (state.verdict, state.enforced, state.holds[0].reason) == ("frozen", True, "test")
    for how in ({}, READ, READ | {"fail_open_reads": True}):
        with pytest.raises(aegisagent.DeniedByPolicy, match="agent_frozen"):
            world.call(mode, recorder, "a", **how)
    assert [held.target_id for held in world.admin.containment()] == [world.agent.id]
    world.admin.unfreeze_agent(world.agent.id, "test")
    world.call(mode, recorder, "a", **READ)
    assert len(recorder.calls) == 1


@pytest.mark.feature("e2e-frozen")
def test_an_agent_that_is_frozen_while_it_waits_does_not_run(world, mode, recorder):
    def freeze_and_approve(approval_id):
        world.admin.freeze_agent(world.agent.id, "test")
        world.approver.approve(approval_id)

    with pytest.raises(aegisagent.DeniedByPolicy, match="agent_frozen"):
        world.call(mode, recorder, "a", on_pending=world.when_asked(freeze_and_approve), **REFUND)
    assert recorder.calls == []


@pytest.mark.feature("edge-killed")
def test_an_edge_that_is_killed_while_an_approval_is_waited_for_is_a_denial(mode, recorder):
    doomed = Aegis().start()
    try:
        with World(doomed) as world, pytest.raises(aegisagent.DeniedUnavailable):
            world.call(mode, recorder, "a", on_pending=lambda _pending: doomed.kill9(), unreachable_s=0.5, **REFUND)
        assert recorder.calls == []
    finally:
        doomed.close()


@pytest.mark.feature("edge-killed")
def test_an_edge_that_restarts_while_an_approval_is_waited_for_costs_nothing(recorder):
    restarted = Aegis().start()
    try:
        port = restarted.port

        def restart(approval_id):
            restarted.stop()
            restarted.command = lambda: [part.replace("127.0.0.1:0", f"127.0.0.1:{port}") for part in Aegis.command(restarted)]
            restarted.start()
            world.approver.approve(approval_id)

        with World(restarted) as world:
            assert world.call(Mode("blocking"), recorder, "a", on_pending=world.when_asked(restart), **REFUND) == "done"
        assert len(recorder.calls) == 1
    finally:
        restarted.close()


@pytest.mark.feature("e2e-200-tasks")
def test_200_tasks_at_once_on_one_client(world):
    ran = []

    async def main(backend):
        async with aegisagent.AsyncClient(world.url, world.agent.agent_token) as client:

            @aegisagent.protect(client, tool="crm", action="update_customer", resource=lambda p: p["id"])
            async def update(id, trust):
                ran.append((backend, id, trust))

            async def one(number):
                trust = "untrusted_external" if number % 2 else "trusted_internal_unsigned"
                with aegisagent.source_trust(trust), aegisagent.run(f"{backend}-{number}"):
                    if number % 2:
                        with pytest.raises(aegisagent.DeniedByPolicy):
                            await update(str(number), trust)
                    else:
                        await update(str(number), trust)

            async with anyio.create_task_group() as tasks:
                for number in range(200):
                    tasks.start_soon(one, number)

    for backend in ("asyncio", "trio"):
        anyio.run(main, backend, backend=backend)
    assert sorted(ran) == sorted((b, str(n), "trusted_internal_unsigned") for b in ("asyncio", "trio") for n in range(0, 200, 2))


@pytest.mark.feature("e2e-200-tasks")
def test_40_threads_at_once_on_one_client(world):
    with world.client(world.agent.agent_token) as client, aegisagent.source_trust("trusted_internal_unsigned"), aegisagent.run("threads"):
        update = aegisagent.protect(client, tool="crm", action="update_customer")(lambda id: id)
        with aegisagent.TrustThreadPoolExecutor(40) as pool:
            assert list(pool.map(update, map(str, range(200)))) == [str(number) for number in range(200)]


@pytest.mark.feature("trust-context")
def test_a_label_that_was_seen_in_a_run_stays_with_it(world, mode, recorder):
    def work(protect):
        protected = protect(recorder, tool="crm", action="read_customer", mutates_state=False)
        with aegisagent.run("tainted"):
            with aegisagent.source_trust("untrusted_external"):
                protected("a")
            with aegisagent.source_trust("trusted_internal_unsigned"), pytest.raises(aegisagent.DeniedByPolicy):
                protect(recorder, action="update_customer")("b")
        with aegisagent.run("clean"), aegisagent.source_trust("trusted_internal_unsigned"):
            protect(recorder, action="update_customer")("c")

    mode.run(world.url, work, token=world.agent.agent_token)
    assert [call["note"] for call in recorder.calls] == ["a", "c"]


@pytest.mark.feature("trust-context")
def test_nobody_approves_what_is_done_on_their_behalf(world, recorder):
    def approve(approval_id):
        with pytest.raises(aegisagent.ApiError, match="self_approval"):
            world.approver.approve(approval_id)
        world.client(world.tenant.key("approver", "sam", groups=("security",))).approve(approval_id)

    with aegisagent.on_behalf_of("rita"):
        world.call(Mode("blocking"), recorder, "a", on_pending=world.when_asked(approve), **REFUND)
    assert len(recorder.calls) == 1


@pytest.mark.feature("fail-open")
def test_a_read_runs_without_a_server_only_where_its_author_said_so(mode, recorder):
    doomed = Aegis().start()
    with World(doomed) as world:
        world.call(mode, recorder, "a", **READ)
        doomed.kill9()
        doomed.close()
        for how in (READ, {}, {"risk": "low"}):
            with pytest.raises(aegisagent.DeniedUnavailable, match="unreachable"):
                world.call(mode, recorder, "a", **how)
        world.call(mode, recorder, "b", fail_open_reads=True, **READ)
    assert [call["note"] for call in recorder.calls] == ["a", "b"]


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


@pytest.mark.feature("e2e-cancel")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_call_that_is_cancelled_while_it_waits_does_not_run(world, backend):
    ran = []

    async def main():
        async with aegisagent.AsyncClient(world.url, world.agent.agent_token) as client:

            @aegisagent.protect(client, tool="crm", action="refund")
            async def refund(amount):
                ran.append(amount)

            with aegisagent.source_trust("trusted_internal_unsigned"), anyio.move_on_after(0.5) as scope:
                await refund(1)
            assert scope.cancelled_caught

    anyio.run(main, backend=backend)
    assert ran == []


@pytest.mark.feature("e2e-cancel")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_call_that_is_cancelled_while_it_runs_is_reported_as_ambiguous(world, backend):
    async def main():
        async with aegisagent.AsyncClient(world.url, world.agent.agent_token) as client:

            @aegisagent.protect(client, tool="crm", action="update_customer")
            async def update(id):
                await anyio.sleep(30)

            with aegisagent.source_trust("trusted_internal_unsigned"), anyio.move_on_after(0.5):
                await update("1")

    began = time.monotonic()
    anyio.run(main, backend=backend)
    assert time.monotonic() - began < 20
    wait_until("the outcome is an event", lambda: world.outcomes() == ["ambiguous"])
