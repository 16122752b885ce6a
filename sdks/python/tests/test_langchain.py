"""LangChain and LangGraph, with the real packages: what they run is what was authorized, however they run it."""

import asyncio
import threading

import pytest
from adapting import CALL, asked, client_of

import aegisagent

pytest.importorskip("langgraph")


def make_tools(ran):
    from langchain_core.tools import tool

    @tool
    def update_note(customer: str, note: str = "empty") -> str:
        """Updates."""
        ran.append({"customer": customer, "note": note})
        return "updated"

    @tool
    async def read_note(customer: str) -> str:
        """Reads."""
        ran.append({"customer": customer})
        return "read"

    return [update_note, read_note]


def ways(tools):
    """Every way in which LangChain runs a tool: blocking, then asynchronous."""
    update = tools[0]
    call = {"name": "update_note", "args": dict(CALL), "id": "1", "type": "tool_call"}
    yield lambda: update.invoke(dict(CALL))
    yield lambda: update.invoke(call).content
    yield lambda: update.run(dict(CALL))
    yield lambda: update.batch([dict(CALL)])[0]
    yield lambda: asyncio.run(update.ainvoke(dict(CALL)))
    yield lambda: asyncio.run(update.ainvoke(call)).content
    yield lambda: asyncio.run(update.abatch([dict(CALL)]))[0]
    yield lambda: node_of(tools, dict(CALL))


def node_of(tools, args, name="update_note"):
    from langchain_core.messages import AIMessage
    from langgraph.graph import END, START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode

    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "tools")
    graph.add_edge("tools", END)
    message = AIMessage("", tool_calls=[{"name": name, "args": args, "id": "1", "type": "tool_call"}])
    return asyncio.run(graph.compile().ainvoke({"messages": [message]}))["messages"][-1].content


@pytest.mark.feature("adapter-langchain")
def test_every_way_to_run_a_tool_is_protected(edge, ran):
    from aegisagent.adapters.langchain import protect_tools

    with client_of(edge, "blocking") as client:
        tools = protect_tools(client, make_tools(ran), tool="crm", reads={"read_note"}, resource=lambda _a, p: p["customer"])
        for number, way in enumerate(ways(tools), start=1):
            assert way() == "updated"
            assert (len(ran), len(edge.sent("authorize")), len(edge.sent("outcome"))) == (number, number, number)
        assert ran == [CALL] * len(ran)
        assert node_of(tools, {"customer": "c-2"}, "read_note") == "read"
        edge.decision = "deny"
        for way in ways(tools):
            with pytest.raises(aegisagent.DeniedByPolicy):
                way()
        assert len(ran) == 9
    assert asked(edge)[0] == ("crm", "update_note", True, "c-1")
    assert asked(edge)[8] == ("crm", "read_note", False, "c-2")


@pytest.mark.feature("adapter-langchain")
def test_a_denial_is_what_the_model_is_told_if_it_is_to_be(edge, ran):
    from aegisagent.adapters.langchain import protect_tools

    edge.decision = "deny"
    with client_of(edge, "blocking") as client:
        tools = protect_tools(client, make_tools(ran), tool="crm", tell_model=True)
        assert all("The call was denied: policy_denied" in way() for way in ways(tools))
    assert ran == []


@pytest.mark.feature("adapter-langchain")
def test_an_edited_action_and_an_asynchronous_client(edge, ran):
    from aegisagent.adapters.langchain import protect_tools

    edge.decision = "require_approval"
    edge.edited = {"tool": "crm", "action": "read_note", "resource": None, "mutates_state": True, "parameters": {"customer": "c-2"}}

    async def main():
        async with client_of(edge, "asynchronous") as client:
            tools = protect_tools(client, make_tools(ran), tool="crm", accept_edits=True)
            assert protect_tools(client, tools, tool="crm") == tools, "not twice"
            for blocks in (lambda: tools[0].invoke(dict(CALL)), lambda: asyncio.run(tools[0].ainvoke(dict(CALL)))):
                with pytest.raises(aegisagent.ConfigError):
                    await asyncio.to_thread(blocks)
            return await tools[1].ainvoke({"customer": "c-1"})

    assert asyncio.run(main()) == "read"
    assert ran == [{"customer": "c-2"}]


@pytest.mark.feature("adapter-langchain")
def test_what_is_injected_is_a_denial_unless_it_is_named(edge):
    from typing import Annotated

    from langchain_core.tools import tool
    from langgraph.prebuilt import InjectedState

    from aegisagent.adapters.langchain import protect_tools

    @tool
    def count(customer: str, state: Annotated[dict, InjectedState]) -> str:
        """Counts."""
        return f"{customer} {len(state['messages'])}"

    with client_of(edge, "blocking") as client:
        named = protect_tools(client, [count.model_copy()], tool="crm", passed_on={"state"})
        assert node_of(named, {"customer": "c"}, "count") == "c 1"
        assert edge.sent("authorize")[0]["tool_call"]["parameters"] == {"customer": "c"}
        with pytest.raises(aegisagent.DeniedUnfreezable):
            node_of(protect_tools(client, [count], tool="crm"), {"customer": "c"}, "count")


@pytest.mark.feature("adapter-langchain")
@pytest.mark.parametrize("way", ["invoke", "ainvoke", "batch", "abatch", "stream", "astream"])
def test_a_tool_with_a_way_of_its_own_to_be_run_is_refused(edge, ran, way):
    from langchain_core.tools import BaseTool

    from aegisagent.adapters.langchain import protect_tools

    class Direct(BaseTool):
        name: str = "direct"
        description: str = "runs by itself"

        def _run(self, customer: str) -> str:
            return ran.append(customer)

    own = type("Own", (Direct,), {way: lambda self, input, *_rest, **_more: self._run(**input)})
    with client_of(edge, "blocking") as client:
        plain = make_tools(ran)[0]
        with pytest.raises(aegisagent.ConfigError, match="`direct` cannot be protected"):
            protect_tools(client, [plain, own()], tool="crm")
        assert "run" not in vars(plain), "what is refused leaves nothing half done"
        assert protect_tools(client, [Direct()], tool="crm")[0].invoke({"customer": "c"}) is None
    assert ran == ["c"]


@pytest.mark.feature("adapter-langchain")
def test_what_a_tool_runs_in_the_end_is_not_run_beside_it(edge, ran):
    """As adapters of other frameworks do, which take the function out of the tool."""
    from langchain_core.runnables import RunnableConfig
    from langchain_core.tools import BaseTool, tool

    from aegisagent.adapters.langchain import protect_tools

    class Direct(BaseTool):
        name: str = "direct"
        description: str = "runs by itself"

        def _run(self, customer: str, config: RunnableConfig, run_manager=None) -> str:
            ran.append(customer)
            return f"{config['configurable']['who']} {run_manager is not None}"

    @tool
    def configured(customer: str, config: RunnableConfig) -> str:
        """Has a configuration."""
        return f"{config['configurable']['who']} {customer}"

    with client_of(edge, "blocking") as client:
        update, read, direct, _ = protect_tools(client, [*make_tools(ran), Direct(), configured], tool="crm")
        for way in (
            lambda: update.func(**CALL), lambda: update._run(**CALL, config={}), lambda: direct._run("c", {}), lambda: asyncio.run(read.coroutine("c")),
            lambda: asyncio.run(read._arun("c", config={})), lambda: asyncio.run(direct._arun("c", {})), lambda: update.model_copy().func(**CALL),
        ):  # fmt: skip
            with pytest.raises(aegisagent.ConfigError, match="run it by invoke"):
                way()
        assert (ran, edge.seen) == ([], [])
        who = {"configurable": {"who": "dana"}}
        assert (direct.invoke({"customer": "c"}, who), configured.invoke({"customer": "c"}, who)) == ("dana True", "dana c")
        assert asyncio.run(direct.ainvoke({"customer": "c"}, who)) == "dana True"
        assert asyncio.run(read.ainvoke({"customer": "c"})) == "read"
        assert update.model_copy().invoke(dict(CALL)) == "updated"
        assert update.args == make_tools(ran)[0].args
        with pytest.raises(aegisagent.ConfigError, match="run it by invoke"):
            update.func(**CALL)
    assert ran == ["c", "c", {"customer": "c"}, CALL]


@pytest.mark.feature("adapter-langchain")
def test_what_a_callback_is_shown_is_not_what_runs(edge, ran):
    from langchain_core.callbacks import BaseCallbackHandler
    from langchain_core.tools import tool

    from aegisagent.adapters.langchain import protect_tools

    @tool
    def update(ids: list, more: dict) -> str:
        """Updates."""
        ran.append((ids, more))
        return "updated"

    class Swap(BaseCallbackHandler):
        def on_tool_start(self, *_rest, inputs=None, **_more):
            inputs["ids"].append("c-2")
            inputs["more"]["note"] = "swapped"

    with client_of(edge, "blocking") as client:
        protect_tools(client, [update], tool="crm")
        for way in (update.invoke, lambda *given: asyncio.run(update.ainvoke(*given))):
            way({"ids": ["c-1"], "more": {"note": "hello"}}, {"callbacks": [Swap()]})
    assert ran == [(["c-1"], {"note": "hello"})] * 2


@pytest.mark.feature("adapter-langchain")
def test_what_is_a_read_is_settled_when_a_tool_is_protected(edge, ran):
    from aegisagent.adapters.langchain import protect_tools

    reads = ["read_note"]
    with client_of(edge, "blocking") as client:
        update = protect_tools(client, make_tools(ran), tool="crm", reads=reads)[0]
        reads.append("update_note")
        update.invoke(dict(CALL))
        update.name = "read_note"
        update.invoke(dict(CALL))
    assert asked(edge) == [("crm", "update_note", True, None)] * 2


@pytest.mark.feature("adapter-langchain")
def test_a_model_is_told_of_no_denial_where_the_tool_ran(edge, ran):
    from langchain_core.tools import tool

    from aegisagent.adapters.langchain import protect_tools

    @tool
    def both(customer: str) -> str:
        """Does one thing, and then another."""
        ran.append(customer)
        edge.decision = "deny"
        return inner.invoke(dict(CALL))

    with client_of(edge, "blocking") as client:
        inner = protect_tools(client, make_tools(ran), tool="crm")[0]
        protect_tools(client, [both], tool="crm", tell_model=True)
        with pytest.raises(aegisagent.DeniedByPolicy):
            both.invoke({"customer": "c"})
        edge.decision = "allow"
        with pytest.raises(aegisagent.DeniedByPolicy):
            asyncio.run(both.ainvoke({"customer": "c"}))
    assert ran == ["c", "c"]


@pytest.mark.feature("adapter-langchain")
def test_a_function_is_no_tool(edge):
    from aegisagent.adapters.langchain import protect_tools

    with client_of(edge, "blocking") as client, pytest.raises(aegisagent.ConfigError):
        protect_tools(client, [print], tool="crm")


@pytest.mark.feature("adapter-langchain")
def test_calls_that_wait_for_approvals_take_no_thread_from_others(edge, ran):
    import anyio

    from aegisagent.adapters.langchain import protect_tools

    edge.decision, edge.statuses = "require_approval", ["PENDING"]

    async def main():
        with client_of(edge, "blocking") as client:
            tool = protect_tools(client, make_tools(ran), tool="crm")[1]
            waiting = [
                asyncio.create_task(tool.ainvoke({"customer": "c"}))
                for _ in range(anyio.to_thread.current_default_thread_limiter().total_tokens + 1)
            ]
            with anyio.fail_after(30):
                while len(edge.calls) < len(waiting):
                    await asyncio.sleep(0.01)
            with anyio.fail_after(10):
                assert await anyio.to_thread.run_sync(lambda: "mine") == "mine"
            edge.statuses = ["APPROVED"]
            return await asyncio.gather(*waiting)

    assert asyncio.run(asyncio.wait_for(main(), 60)) == ["read"] * len(ran)


@pytest.mark.feature("adapter-langchain")
@pytest.mark.parametrize("where", ["authorize", "approval", "pause"])
def test_a_call_that_waits_through_a_blocking_client_is_cancelled_at_once(edge, ran, monkeypatch, where):
    import anyio

    from aegisagent import _flow
    from aegisagent.adapters.langchain import protect_tools

    edge.decision = "require_approval"
    waits, goes_on = threading.Event(), threading.Event()
    if where == "pause":
        edge.statuses, sleep = ["PENDING"], anyio.sleep
        for name in ("FIRST_POLL_S", "LONGEST_POLL_S"):
            monkeypatch.setattr(_flow, name, 600)

        async def sleeping(seconds):
            waits.set()
            await sleep(seconds)

        monkeypatch.setattr(anyio, "sleep", sleeping)
    else:
        edge.before[where] = lambda: (waits.set(), goes_on.wait(60))

    async def main():
        with client_of(edge, "blocking") as client:
            tool = protect_tools(client, make_tools(ran), tool="crm")[1]
            call = asyncio.create_task(tool.ainvoke({"customer": "c"}))
            with anyio.fail_after(30):
                while not waits.is_set():
                    await asyncio.sleep(0.01)
            call.cancel()
            with anyio.fail_after(30):
                done, _ = await asyncio.wait([call])
            assert call in done
            assert call.cancelled()
            goes_on.set()
            # What is under way ends; nothing follows it.
            client.ready()

    asyncio.run(main())
    assert ran == []
    assert edge.sent("consume") == []
    assert len(edge.sent("approval")) <= 1
