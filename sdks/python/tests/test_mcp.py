"""MCP client sessions, with the real package: what they send is what was authorized."""

import asyncio

import pytest
from adapting import asked, client_of

import aegisagent

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
