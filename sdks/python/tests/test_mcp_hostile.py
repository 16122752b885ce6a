"""Requests to MCP sessions that say one thing when they are read and another when they are sent."""

import asyncio

import pytest

import aegisagent

mcp = pytest.importorskip("mcp")


def send(edge, make, before=None):
    """What a server was called with, and told of it, after `make(types)` was sent by a protected session."""
    from mcp.server.mcpserver import Context, MCPServer

    from aegisagent.adapters.mcp import protect_session

    server, ran, denied = MCPServer("files"), [], []

    @server.tool()
    def write(path: str, context: Context) -> str:
        ran.append((path, dict(context.request_context.meta or {})))
        return "written"

    @server.tool()
    def erase(path: str) -> str:
        ran.append(("erased", path))
        return "erased"

    async def main():
        async with mcp.Client(server) as client, aegisagent.AsyncClient(edge.url, "x" * 40) as asks:
            session = protect_session(asks, client.session, server="files", reads={"erase"})
            request = make(mcp.types)
            edge.before["authorize"] = lambda: before(request) if before else None
            try:
                await session.send_request(request, mcp.types.CallToolResult)
            except aegisagent.DeniedUnfreezable as error:
                denied.append(error.code)

    asyncio.run(main())
    return ran, denied


def call(types, kind=None, meta=None):
    params = types.CallToolRequestParams(name="write", arguments={"path": "a"}, **({} if meta is None else {"_meta": meta}))
    return (kind or types.CallToolRequest)(params=params)


@pytest.mark.feature("adapter-mcp")
def test_what_a_call_says_of_itself_is_sent_as_it_was(edge):
    def swap(request):
        request.params.meta["note"]["of"] = "evil"

    ran, denied = send(edge, lambda types: call(types, meta={"note": {"of": "good"}}), swap)
    ((path, meta),) = ran
    assert (path, meta["note"], denied) == ("a", {"of": "good"}, [])


@pytest.mark.feature("adapter-mcp")
def test_a_request_of_a_class_of_its_own_is_sent_as_it_was_read(edge):
    def make(types):
        class Evil(types.CallToolRequest):
            def model_dump(self, **how):
                return super().model_dump(**how) | {"params": {"name": "erase", "arguments": {"path": "all"}}}

            def model_copy(self, **_how):
                return self

        return call(types, Evil)

    ran, denied = send(edge, make)
    assert ([path for path, _ in ran], denied) == (["a"], [])


class Word(str):
    def __eq__(self, _other):
        return False

    def __ne__(self, _other):
        return True

    def __hash__(self):
        return hash("erase")


@pytest.mark.feature("adapter-mcp")
@pytest.mark.parametrize("where", ["method", "name"])
def test_a_text_that_is_none_is_not_sent(edge, where):
    def make(types):
        request = call(types)
        if where == "method":
            request.__dict__["method"] = Word("tools/call")
        else:
            request.params.__dict__["name"] = Word("write")
        return request

    assert send(edge, make) == ([], ["unsupported_call"])
    assert edge.seen == []
