"""Against the real program: what runs, and what does not."""

import time

import anyio
import pytest
from between import losing
from conftest import Mode
from world import READ, REFUND, Aegis, World, wait_until

import aegisagent


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


@pytest.mark.feature("e2e-frozen")
def test_a_frozen_agent_does_nothing_until_it_is_unfrozen(world, mode, recorder):
    state = world.admin.freeze_agent(world.agent.id, "test")
    assert (state.verdict, state.enforced, state.holds[0].reason) == ("frozen", True, "test")
    assert (state.edges.live, state.edges.silent) == (0, ()), "edges of their own: there are none"
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
            async def update(id):
                ran.append((backend, id, aegisagent.current_trust().value))

            async def one(number):
                trust = "untrusted_external" if number % 2 else "trusted_internal_unsigned"
                with aegisagent.source_trust(trust), aegisagent.run(f"{backend}-{number}"):
                    if number % 2:
                        with pytest.raises(aegisagent.DeniedByPolicy):
                            await update(str(number))
                    else:
                        await update(str(number))

            async with anyio.create_task_group() as tasks:
                for number in range(200):
                    tasks.start_soon(one, number)

    for backend in ("asyncio", "trio"):
        anyio.run(main, backend, backend=backend)
    assert sorted(ran) == sorted((b, str(n), "trusted_internal_unsigned") for b in ("asyncio", "trio") for n in range(0, 200, 2))
    wait_until("each outcome is an event", lambda: world.outcomes() == ["ok"] * len(ran))


@pytest.mark.feature("e2e-200-tasks")
def test_40_threads_at_once_on_one_client(world):
    with world.client(world.agent.agent_token) as client, aegisagent.source_trust("trusted_internal_unsigned"), aegisagent.run("threads"):
        update = aegisagent.protect(client, tool="crm", action="update_customer")(lambda id: id)
        with aegisagent.TrustThreadPoolExecutor(40) as pool:
            assert list(pool.map(update, map(str, range(200)))) == [str(number) for number in range(200)]
    wait_until("each outcome is an event", lambda: world.outcomes() == ["ok"] * 200)


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
            scope = anyio.CancelScope()

            @aegisagent.protect(client, tool="crm", action="update_customer")
            async def update(id):
                # Once it runs: how long the program takes to allow it is not known.
                scope.cancel()
                await anyio.sleep(30)

            with aegisagent.source_trust("trusted_internal_unsigned"), scope:
                await update("1")
            assert scope.cancelled_caught

    began = time.monotonic()
    anyio.run(main, backend=backend)
    assert time.monotonic() - began < 20
    wait_until("the outcome is an event", lambda: world.outcomes() == ["ambiguous"])
