"""The adapters, with the real packages, against the fake edge: what a framework runs is what was authorized, however it runs it."""

import asyncio
import contextlib
import json
from types import SimpleNamespace

import pytest

import aegisagent
from aegisagent.adapters import protect_functions

CALL = {"customer": "c-1", "note": "hello"}


@pytest.fixture
def ran():
    return []


def client_of(edge, kind):
    return (aegisagent.Client if kind == "blocking" else aegisagent.AsyncClient)(edge.url, "x" * 40)


def asked(edge):
    return [
        (one["tool_call"]["tool"], one["tool_call"]["action"], one["tool_call"]["mutates_state"], one["tool_call"]["resource"])
        for one in edge.sent("authorize")
    ]


# Plain functions


@pytest.mark.feature("adapter-functions")
def test_plain_functions_become_actions_by_name(edge, ran):
    def read(id):
        return ran.append(("read", id))

    def update(id, note):
        return ran.append(("update", id, note))

    with client_of(edge, "blocking") as client:
        tools = protect_functions(client, [read, update], tool="crm", reads=["read"], resource=lambda action, p: f"{action}:{p['id']}")
        tools["read"]("1")
        tools["update"]("2", note="n")
        edge.decision = "deny"
        with pytest.raises(aegisagent.DeniedByPolicy):
            tools["update"]("3", "n")
        for functions, reads in (({"read": read}, ["raed"]), ([read, lambda: 1, lambda: 2], []), ([read, read], ["read"])):
            with pytest.raises(aegisagent.ConfigError):
                protect_functions(client, functions, tool="crm", reads=reads)
    assert ran == [("read", "1"), ("update", "2", "n")]
    assert asked(edge)[:2] == [("crm", "read", False, "read:1"), ("crm", "update", True, "update:2")]


# OpenAI Agents

agents = pytest.importorskip("agents")


class ScriptedModel(agents.Model):
    """Calls a tool once, then ends with what it was told."""

    def __init__(self, name, arguments):
        self.name, self.arguments = name, arguments

    async def get_response(self, system_instructions, input, *_rest, **_more):
        from agents import ModelResponse, Usage
        from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

        outputs = (
            [item["output"] for item in input if isinstance(item, dict) and item.get("type") == "function_call_output"]
            if isinstance(input, list)
            else []
        )
        if outputs:
            text = ResponseOutputText(annotations=[], text=str(outputs[-1]), type="output_text")
            output = [ResponseOutputMessage(id="m", content=[text], role="assistant", status="completed", type="message")]
        else:
            output = [ResponseFunctionToolCall(arguments=self.arguments, call_id="call", name=self.name, type="function_call")]
        return ModelResponse(output=output, usage=Usage(), response_id=None)

    def stream_response(self, *_rest, **_more):
        raise NotImplementedError


def make_agent(ran, arguments=json.dumps(CALL), name="update_note", **fields):
    @agents.function_tool
    async def update_note(customer: str, note: str = "empty") -> str:
        """Updates."""
        ran.append({"customer": customer, "note": note})
        return "updated"

    @agents.function_tool
    def read_note(customer: str) -> str:
        """Reads."""
        ran.append({"customer": customer})
        return "read"

    return agents.Agent(name="a", model=ScriptedModel(name, arguments), tools=[update_note, read_note], **fields)


def run_agent(edge, agent, kind="asynchronous", tool="crm", **settings):
    """Protects an agent and runs it once."""
    from aegisagent.adapters.openai_agents import protect_agent

    async def run(client):
        assert protect_agent(client, agent, tool=tool, **settings) is agent
        config = agents.RunConfig(tracing_disabled=True)
        return (await agents.Runner.run(agent, "go", run_config=config)).final_output

    async def main():
        if kind == "blocking":
            with client_of(edge, kind) as client:
                return await run(client)
        async with client_of(edge, kind) as client:
            return await run(client)

    return asyncio.run(main())


@pytest.mark.feature("adapter-openai-agents")
@pytest.mark.parametrize("kind", ["asynchronous", "blocking"])
def test_an_agent_s_tools_run_as_they_were_authorized(edge, ran, kind):
    assert run_agent(edge, make_agent(ran), kind, reads={"read_note"}, resource=lambda _a, p: p["customer"]) == "updated"
    assert ran == [CALL]
    assert asked(edge) == [("crm", "update_note", True, "c-1")]
    assert [outcome["status"] for outcome in edge.sent("outcome")] == ["ok"]


@pytest.mark.feature("adapter-openai-agents")
def test_an_agent_s_denied_tool_does_not_run(edge, ran):
    edge.decision = "deny"
    with pytest.raises(Exception) as failed:
        run_agent(edge, make_agent(ran))
    assert "denied" in repr(failed.value) + repr(failed.value.__cause__)
    assert "The call was denied: policy_denied" in run_agent(edge, make_agent(ran), tell_model=True)
    assert ran == []


@pytest.mark.feature("adapter-openai-agents")
def test_an_agent_s_edited_action_runs_as_edited(edge, ran):
    edge.decision = "require_approval"
    edge.edited = {"tool": "crm", "action": "update_note", "resource": None, "mutates_state": True, "parameters": CALL | {"note": "edited"}}
    run_agent(edge, make_agent(ran), accept_edits=True)
    assert ran == [CALL | {"note": "edited"}]


@pytest.mark.feature("adapter-openai-agents")
@pytest.mark.parametrize(
    "arguments",
    ['{"customer":"a","customer":"b"}', '{"customer":NaN}', '{"customer":9007199254740993}', "[]", '{"customer":"\\ud800"}', "{"],
)
def test_arguments_of_a_model_pass_the_strict_door(edge, ran, arguments):
    # Some of them the framework itself does not survive.
    with contextlib.suppress(agents.exceptions.AgentsException, UnicodeEncodeError):
        assert "The call was denied" in run_agent(edge, make_agent(ran, arguments), tell_model=True)
    assert (ran, edge.seen) == ([], [])


@pytest.mark.feature("adapter-openai-agents")
def test_every_tool_that_an_agent_can_reach_is_protected_or_refused(edge, ran):
    from aegisagent.adapters.openai_agents import protect_agent

    client = aegisagent.AsyncClient(edge.url, "x" * 40)
    inner = make_agent(ran)
    outer = agents.Agent(name="outer", handoffs=[inner], tools=[make_agent(ran).as_tool("ask", "asks")])
    inner.handoffs.append(outer)
    protect_agent(client, outer, tool="crm")
    guarded = [tool.on_invoke_tool for agent in (outer, inner, outer.tools[0]._agent_instance) for tool in agent.tools]
    assert all(getattr(invoke, "_aegisagent_guarded", False) for invoke in guarded)
    protect_agent(client, inner, tool="crm")
    assert [tool.on_invoke_tool for agent in (outer, inner, outer.tools[0]._agent_instance) for tool in agent.tools] == guarded, "not twice"
    for agent in (
        agents.Agent(name="b", tools=[*make_agent(ran).tools, agents.WebSearchTool()]),
        agents.Agent(name="c", tools=make_agent(ran).tools, handoffs=[agents.handoff(inner)]),
        agents.Agent(name="d", mcp_servers=[SimpleNamespace(name="s", max_retry_attempts=3)]),
    ):
        with pytest.raises(aegisagent.ConfigError, match="cannot be protected"):
            protect_agent(client, agent, tool="crm")
        assert not any(
            getattr(tool.on_invoke_tool, "_aegisagent_guarded", False) for tool in agent.tools if hasattr(tool, "on_invoke_tool")
        )
    protect_agent(client, agents.Agent(name="b", tools=[agents.WebSearchTool()]), tool="crm", allow_unprotected={"web_search"})


@pytest.mark.feature("adapter-openai-agents")
def test_an_agent_whose_tools_cannot_be_seen_is_refused(edge, ran):
    from agents.sandbox import SandboxAgent

    from aegisagent.adapters.openai_agents import protect_agent

    class Growing(agents.Agent):
        async def get_all_tools(self, context):
            return [*await super().get_all_tools(context), *make_agent(ran).tools]

    client = aegisagent.AsyncClient(edge.url, "x" * 40)
    for what, hidden in (
        ("capabilities", SandboxAgent(name="shell")), ("capabilities", Growing(name="grows")), ("prompt", agents.Agent(name="hosted", prompt={"id": "p"})),
    ):  # fmt: skip
        outer = agents.Agent(name="outer", tools=make_agent(ran).tools, handoffs=[hidden])
        for agent in (hidden, outer):
            with pytest.raises(aegisagent.ConfigError, match=f"`{what}` cannot be protected: .*`{hidden.name}`"):
                protect_agent(client, agent, tool="crm")
        assert not any(getattr(tool.on_invoke_tool, "_aegisagent_guarded", False) for tool in outer.tools)
        protect_agent(client, outer, tool="crm", allow_unprotected={what})
        assert all(getattr(tool.on_invoke_tool, "_aegisagent_guarded", False) for tool in outer.tools)


@pytest.mark.feature("adapter-openai-agents")
def test_a_tool_keeps_the_action_that_it_was_protected_as(edge, ran):
    from aegisagent.adapters.openai_agents import protect_agent

    reads, update = {"read_note"}, make_agent(ran).tools[0]
    with client_of(edge, "blocking") as client:
        protect_agent(client, agents.Agent(name="a", tools=[update]), tool="crm", reads=reads)
        # Renamed, and named as a read, when it is protected already.
        reads.add("update_note")
        assert asyncio.run(update.on_invoke_tool(tool_context(), json.dumps(CALL))) == "updated"
        update.name = "read_note"
        assert asyncio.run(update.on_invoke_tool(tool_context(), json.dumps(CALL))) == "updated"
    assert asked(edge) == [("crm", "update_note", True, None)] * 2


def tool_context():
    from agents.tool_context import ToolContext

    return ToolContext(context=None, tool_name="t", tool_call_id="call", tool_arguments="{}")


# LangChain and LangGraph

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


# MCP

mcp = pytest.importorskip("mcp")


def with_session(ran, work, edge, kind):
    from mcp.server.mcpserver import MCPServer

    server = MCPServer("files")

    @server.tool()
    def write(path: str, text: str) -> str:
        ran.append({"path": path, "text": text})
        return "written"

    @server.tool()
    def fail() -> str:
        raise ValueError("no")

    async def main():
        async with mcp.Client(server) as client:
            if kind == "blocking":
                with client_of(edge, kind) as asks:
                    return await work(client, asks)
            async with client_of(edge, kind) as asks:
                return await work(client, asks)

    return asyncio.run(main())


@pytest.mark.feature("adapter-mcp")
@pytest.mark.parametrize("kind", ["asynchronous", "blocking"])
def test_a_session_s_calls_are_authorized(edge, ran, kind):
    from aegisagent.adapters.mcp import protect_session

    async def work(client, asks):
        session = client.session
        assert protect_session(asks, session, server="files", reads={"fail"}) is session
        assert [tool.name for tool in (await session.list_tools()).tools] == ["write", "fail"]
        arguments = {"path": "a", "text": "b"}
        edge.before["authorize"] = lambda: arguments.update(text="swapped")
        assert (await session.call_tool("write", arguments)).content[0].text == "written"
        assert (await client.call_tool("write", {"path": "c", "text": "d"})).content[0].text == "written"
        assert (await session.call_tool("fail", {})).is_error
        edge.decision = "deny"
        for call in (session.call_tool, client.call_tool):
            with pytest.raises(aegisagent.DeniedByPolicy):
                await call("write", {"path": "e", "text": "f"})
        with pytest.raises(aegisagent.ConfigError):
            protect_session(asks, session, server="files")

    with_session(ran, work, edge, kind)
    assert ran == [{"path": "a", "text": "b"}, {"path": "c", "text": "d"}]
    assert asked(edge)[0] == ("mcp:files", "write", True, None)
    assert asked(edge)[2] == ("mcp:files", "fail", False, None)
    assert [outcome["status"] for outcome in edge.sent("outcome")] == ["ok", "ok", "error"]


@pytest.mark.feature("adapter-mcp")
def test_an_answer_to_a_server_s_question_is_not_sent(edge, ran):
    import mcp_types

    from aegisagent.adapters.mcp import protect_session

    async def work(client, asks):
        session = protect_session(asks, client.session, server="files")
        with pytest.raises(aegisagent.DeniedUnfreezable):
            await session.call_tool("write", {"path": "a", "text": "b"}, request_state="state")
        # One that would run when its outcome has been reported.
        params = mcp.types.CallToolRequestParams(name="write", arguments={"path": "a", "text": "b"}, task=mcp_types.TaskMetadata(ttl=1))
        with pytest.raises(aegisagent.DeniedUnfreezable):
            await session.send_request(mcp.types.CallToolRequest(params=params), mcp.types.CallToolResult)

    with_session(ran, work, edge, "asynchronous")
    assert (ran, edge.seen) == ([], [])


@pytest.mark.feature("adapter-mcp")
def test_a_tool_that_asks_back_has_not_ended_well(edge):
    from aegisagent.adapters.mcp import _status

    assert _status(mcp.types.CallToolResult(content=[])) == "ok"
    assert _status(mcp.types.CallToolResult(content=[], is_error=True)) == "error"
    assert _status(mcp.types.InputRequiredResult(request_state="state")) == "ambiguous"


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


@pytest.mark.feature("adapter-mcp")
def test_a_request_that_its_sender_changes_meanwhile_is_sent_as_it_was(edge, ran):
    from aegisagent.adapters.mcp import protect_session

    async def work(client, asks):
        session = protect_session(asks, client.session, server="files")
        params = mcp.types.CallToolRequestParams(name="write", arguments={"path": "a", "text": "b"})
        request = mcp.types.CallToolRequest(params=params)

        def swap():
            params.name, params.arguments, params.request_state = "fail", {}, "state"
            request.params = params

        edge.before["authorize"] = swap
        return await session.send_request(request, mcp.types.CallToolResult)

    assert not with_session(ran, work, edge, "asynchronous").is_error
    assert ran == [{"path": "a", "text": "b"}]


@pytest.mark.feature("adapter-openai-agents")
def test_an_agent_s_mcp_server_is_protected_too(edge, ran):
    from agents.mcp import MCPServer

    class Server(MCPServer):
        name = "files"

        async def connect(self):
            pass

        async def cleanup(self):
            pass

        async def list_tools(self, *_):
            return [mcp.Tool(name="write", input_schema={"type": "object", "properties": {"path": {"type": "string"}}})]

        async def call_tool(self, tool_name, arguments, meta=None):
            ran.append((tool_name, arguments))
            return mcp.types.CallToolResult(content=[mcp.types.TextContent(type="text", text="written")])

        async def list_prompts(self):
            return []

        async def get_prompt(self, name, arguments=None):
            return None

    agent = agents.Agent(name="a", model=ScriptedModel("write", '{"path":"p"}'), mcp_servers=[Server()])
    assert "written" in run_agent(edge, agent)
    assert ran == [("write", {"path": "p"})]
    assert asked(edge) == [("mcp:files", "write", True, None)]
