"""An MCP client session whose every tool call is authorized. Needs aegisagent[mcp], version 2 of the package mcp.

The server runs in this process; it is registered as `files` with its two tools.
"""

import anyio
import mcp
from mcp.server.mcpserver import MCPServer

from aegisagent import AsyncClient, Denied, source_trust
from aegisagent.adapters.mcp import protect_session

server = MCPServer("files")


@server.tool()
def read_file(path: str) -> str:
    return f"what stands in {path}"


@server.tool()
def write_file(path: str, text: str) -> str:
    return f"wrote {len(text)} characters to {path}"


async def main() -> None:
    async with AsyncClient() as client, mcp.Client(server) as files:
        session = protect_session(client, files.session, server="files", reads={"read_file"})
        with source_trust("untrusted_external"):
            print((await session.call_tool("read_file", {"path": "a.txt"})).content)
            try:
                print(await session.call_tool("write_file", {"path": "a.txt", "text": "hello"}))
            except Denied as denied:
                print(denied)


anyio.run(main)
