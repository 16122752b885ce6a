// An MCP client session whose every tool call is authorized. Needs @modelcontextprotocol/sdk and zod.
//
// The server runs in this process; it is registered as `files` with its two tools.

import { Client as Session } from "@modelcontextprotocol/sdk/client/index.js";
import { InMemoryTransport } from "@modelcontextprotocol/sdk/inMemory.js";
import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js";
import { Client, Denied, sourceTrust } from "aegisagent";
import { protectSession } from "aegisagent/adapters/mcp";
import { z } from "zod";

const server = new McpServer({ name: "files", version: "1" });
const said = (text) => ({ content: [{ type: "text", text }] });
server.registerTool("read_file", { inputSchema: { path: z.string() } }, ({ path }) => said(`what stands in ${path}`));
server.registerTool("write_file", { inputSchema: { path: z.string(), text: z.string() } }, ({ path, text }) => said(`wrote ${text.length} characters to ${path}`));

const [ours, theirs] = InMemoryTransport.createLinkedPair();
const session = new Session({ name: "example", version: "1" });
await Promise.all([server.connect(theirs), session.connect(ours)]);

const client = new Client();
protectSession(client, session, { server: "files", reads: ["read_file"] });

await sourceTrust("untrusted_external", async () => {
  console.log((await session.callTool({ name: "read_file", arguments: { path: "a.txt" } })).content);
  try {
    console.log(await session.callTool({ name: "write_file", arguments: { path: "a.txt", text: "hello" } }));
  } catch (error) {
    if (!(error instanceof Denied)) throw error;
    console.log(error.message);
  }
});
await session.close();
client.close();
