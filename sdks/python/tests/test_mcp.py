"""MCP client sessions, with the real package: what they send is what was authorized."""

import asyncio

import anyio
import pytest
from adapting import asked, client_of
from given import coroutine

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


EDITED = {"tool": "mcp:files", "action": "write", "resource": None, "mutates_state": True, "parameters": {"path": "z", "text": "edited"}}


@pytest.mark.feature("adapter-mcp")
@pytest.mark.parametrize("kind", ["asynchronous", "blocking"])
def test_an_edited_call_is_sent_as_edited_only_where_that_was_asked_for(edge, ran, kind):
    from aegisagent.adapters.mcp import protect_session

    edge.decision, edge.edited = "require_approval", EDITED

    def calling(**settings):
        async def work(client, asks):
            session = protect_session(asks, client.session, server="files", **settings)
            try:
                return (await session.call_tool("write", {"path": "a", "text": "b"})).content[0].text
            except aegisagent.DeniedByApprover as denied:
                return denied.code

        return with_session(ran, work, edge, kind)

    assert calling() == "approval_edited"
    assert (ran, edge.sent("consume")) == ([], [])
    assert calling(accept_edits=True) == "written"
    assert ran == [EDITED["parameters"]]
    (consumed,), (outcome,) = edge.sent("consume"), edge.sent("outcome")
    hashed = aegisagent.action_hash(*EDITED.values())
    assert (consumed["claimed_action_hash"], outcome["executed_hash"], outcome["status"]) == (hashed, hashed, "ok")
    # Other parameters, another tool of the same server.
    for changes in ({"parameters": {"path": "z"}}, {"action": "fail"}):
        edge.edited = EDITED | changes
        assert calling(accept_edits=True) == "approval_edited"
    assert len(edge.sent("consume")) == len(ran) == 1


@pytest.mark.feature("adapter-mcp")
@pytest.mark.parametrize("kind", ["asynchronous", "blocking"])
def test_a_call_that_is_cancelled_while_it_waits_is_not_sent(edge, ran, kind):
    from aegisagent.adapters.mcp import protect_session

    edge.decision, edge.statuses = "require_approval", ["PENDING"]

    async def work(client, asks):
        session = protect_session(asks, client.session, server="files", reads={"fail"})
        waiting = asyncio.create_task(session.call_tool("write", {"path": "a", "text": "b"}))
        with anyio.fail_after(60):
            while len(edge.sent("approval")) < 2:
                await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        # It would be approved now, and the session goes on to be used.
        edge.statuses, edge.decision = ["APPROVED"], "allow"
        await session.call_tool("write", {"path": "c", "text": "d"})

    with_session(ran, work, edge, kind)
    assert ran == [{"path": "c", "text": "d"}]
    assert edge.sent("consume") == []
    assert [outcome["status"] for outcome in edge.sent("outcome")] == ["ok"]


@pytest.mark.feature("adapter-mcp")
def test_settings_that_cannot_be_safe_are_refused_and_leave_the_session_as_it_was(edge, ran):
    from aegisagent.adapters.mcp import protect_session

    async def work(client, asks):
        session = client.session
        for bad in ({"server": ""}, {"server": None}, {"tell_model": True}, {"reads": "write"}, {"accept_edits": "no"}, {"unreachable_s": -1},
                    {"on_pending": coroutine}, {"channel": "a\nb"}):  # fmt: skip
            with pytest.raises(aegisagent.ConfigError):
                protect_session(asks, session, **({"server": "files"} | bad))
        for unknown in ({"fail_open_reads": True}, {"red": ["write"]}):
            with pytest.raises(TypeError):
                protect_session(asks, session, server="files", **unknown)
        assert "send_request" not in vars(session)
        protect_session(asks, session, server="files")
        with pytest.raises(aegisagent.ConfigError):
            protect_session(asks, session, server="others")
        await session.call_tool("write", {"path": "a", "text": "b"})

    with_session(ran, work, edge, "asynchronous")
    assert asked(edge) == [("mcp:files", "write", True, None)]
