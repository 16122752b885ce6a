"""The OpenAI Agents SDK, with the real package: what it runs is what was authorized, however it runs it."""

import asyncio
import contextlib
import json
from types import SimpleNamespace

import pytest
from adapting import CALL, asked, client_of

import aegisagent

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


@pytest.mark.feature("adapter-openai-agents")
def test_an_agent_s_mcp_server_is_protected_too(edge, ran):
    import mcp
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
