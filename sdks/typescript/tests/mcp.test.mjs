// MCP client sessions, with the real package: what a session sends is what was authorized, however it is asked.

import assert from "node:assert/strict";

import { Client as Session } from "@modelcontextprotocol/sdk/client/index.js";
import { InMemoryTransport } from "@modelcontextprotocol/sdk/inMemory.js";
import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js";
import { CallToolResultSchema, ListToolsResultSchema } from "@modelcontextprotocol/sdk/types.js";
import { ConfigError, DeniedByPolicy, DeniedUnfreezable } from "aegisagent";
import { protectSession } from "aegisagent/adapters/mcp";
import { z } from "zod";

import { withClient } from "./calling.mjs";
import { withEdge } from "./fake.mjs";
import { test } from "./feature.mjs";

const asked = (edge) => edge.sent("authorize").map(({ tool_call: call }) => [call.tool, call.action, call.mutates_state, call.resource]);

/** A session with a server in this process. */
async function withSession(work) {
  const ran = [];
  const server = new McpServer({ name: "files", version: "1" });
  server.registerTool("write", { inputSchema: { path: z.string(), text: z.string() } }, (given) => {
    ran.push(given);
    return { content: [{ type: "text", text: "written" }] };
  });
  server.registerTool("fail", { inputSchema: {} }, () => {
    throw new Error("no");
  });
  const [ours, theirs] = InMemoryTransport.createLinkedPair();
  const session = new Session({ name: "test", version: "1" });
  await Promise.all([server.connect(theirs), session.connect(ours)]);
  try {
    return await work(session, ran);
  } finally {
    await session.close();
    await server.close();
  }
}

test("adapter-mcp", "a session's calls are authorized", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      await withSession(async (session, ran) => {
        assert.equal(protectSession(client, session, { server: "files", reads: ["fail"], resource: (action, p) => p.path ?? null }), session);
        assert.deepEqual((await session.listTools()).tools.map(({ name }) => name), ["write", "fail"]);
        const given = { path: "a", text: "b" };
        edge.before.authorize = () => {
          given.text = "swapped";
        };
        assert.equal((await session.callTool({ name: "write", arguments: given })).content[0].text, "written");
        const raw = { method: "tools/call", params: { name: "write", arguments: { path: "c", text: "d" }, _meta: { trace: 1 } } };
        assert.equal((await session.request(raw, CallToolResultSchema)).content[0].text, "written");
        for await (const message of session.experimental.tasks.callToolStream({ name: "write", arguments: { path: "e", text: "f" } })) assert.equal(message.type, "result");
        assert.equal((await session.callTool({ name: "fail" })).isError, true);
        edge.decision = "deny";
        await assert.rejects(session.callTool({ name: "write", arguments: { path: "g", text: "h" } }), DeniedByPolicy);
        await assert.rejects(session.request(raw, CallToolResultSchema), DeniedByPolicy);
        for await (const message of session.experimental.tasks.callToolStream({ name: "write", arguments: { path: "i", text: "j" } })) assert.equal(message.type, "error");
        assert.throws(() => protectSession(client, session, { server: "files" }), ConfigError);
        assert.deepEqual(ran, [{ path: "a", text: "b" }, { path: "c", text: "d" }, { path: "e", text: "f" }]);
      });
    });
    assert.deepEqual(asked(edge).slice(0, 4), [["mcp:files", "write", true, "a"], ["mcp:files", "write", true, "c"], ["mcp:files", "write", true, "e"], ["mcp:files", "fail", false, null]]);
    assert.deepEqual(edge.sent("outcome").map(({ status }) => status), ["ok", "ok", "ok", "error"]);
  });
});

test("adapter-mcp", "an edited call is sent as it was edited", async () => {
  await withEdge(async (edge) => {
    edge.decision = "require_approval";
    edge.edited = { tool: "mcp:files", action: "write", resource: null, mutates_state: true, parameters: { path: "a", text: "edited" } };
    await withClient(edge.url, async (client) => {
      await withSession(async (session, ran) => {
        protectSession(client, session, { server: "files", acceptEdits: true });
        await session.callTool({ name: "write", arguments: { path: "a", text: "b" } });
        assert.deepEqual(ran, [{ path: "a", text: "edited" }]);
      });
    });
  });
});

test("adapter-mcp", "a call with more than arguments is not sent", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      await withSession(async (session, ran) => {
        protectSession(client, session, { server: "files" });
        const call = { name: "write", arguments: { path: "a", text: "b" } };
        for (const more of [{ task: {} }, { inputResponses: {} }, { requestState: "state" }, { input_responses: {} }]) await assert.rejects(session.callTool({ ...call, ...more }), DeniedUnfreezable);
        for (const options of [{ task: { ttl: 1 } }, { relatedTask: { taskId: "1" } }]) await assert.rejects(session.callTool(call, undefined, options), DeniedUnfreezable);
        await assert.rejects(session.callTool({ ...call, _meta: { toJSON: () => 1 } }), DeniedUnfreezable);
        await assert.rejects(session.callTool({ name: "write", arguments: { path: new Date(0) } }), DeniedUnfreezable);
        await assert.rejects(session.callTool({ arguments: {} }), DeniedUnfreezable);
        assert.deepEqual(ran, []);
      });
    });
    assert.deepEqual(edge.seen, []);
  });
});

test("adapter-mcp", "a message that changes while it is asked for is sent as it was", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      await withSession(async (session, ran) => {
        protectSession(client, session, { server: "files" });
        const [sent, send] = [[], session.transport.send.bind(session.transport)];
        session.transport.send = async (message, ...rest) => (sent.push(structuredClone(message)), await send(message, ...rest));
        const [message, options] = [{ method: "tools/call", params: { name: "write", arguments: { path: "a", text: "b" }, _meta: { trace: { id: 1 } } } }, {}];
        edge.before.authorize = () => {
          Object.assign(options, { task: { ttl: 1 }, relatedTask: { taskId: "another" } });
          Object.assign(message.params, { name: "fail", arguments: {}, task: { ttl: 1 } });
          message.params._meta.trace.id = 2;
          Object.assign(message, { method: "tools/list", more: 1 });
        };
        assert.equal((await session.request(message, CallToolResultSchema, options)).content[0].text, "written");
        assert.deepEqual(ran, [{ path: "a", text: "b" }]);
        assert.deepEqual(sent.map(({ id, ...rest }) => rest), [{ jsonrpc: "2.0", method: "tools/call", params: { name: "write", arguments: { path: "a", text: "b" }, _meta: { trace: { id: 1 } } } }]);
      });
    });
  });
});

test("adapter-mcp", "what is no call when it is looked at is none when it is sent", async () => {
  await withEdge(async (edge) => {
    edge.decision = "deny";
    await withClient(edge.url, async (client) => {
      await withSession(async (session, ran) => {
        // As a transport that writes JSON sends it.
        const send = session.transport.send.bind(session.transport);
        session.transport.send = async (message, ...rest) => await send(JSON.parse(JSON.stringify(message)), ...rest);
        protectSession(client, session, { server: "files" });
        const params = { name: "write", arguments: { path: "a", text: "b" } };
        let looks = 0;
        const evil = [
          { get method() { return (looks += 1) === 1 ? "ping" : "tools/call"; }, params }, { method: Object("tools/call"), params }, { method: ["tools/call"], params },
          { method: { toJSON: () => "tools/call" }, params }, { method: "ping", params, toJSON() { return { jsonrpc: "2.0", id: this.id, method: "tools/call", params }; } },
          new Proxy({ params }, { get: (of, name) => (name === "method" ? ((looks += 1) % 2 === 0 ? "ping" : "tools/call") : of[name]), ownKeys: () => ["method", "params"], getOwnPropertyDescriptor: (of, name) => ({ value: name === "method" ? "tools/call" : params, enumerable: true, configurable: true }) }),
        ];
        for (const message of evil) await session.request(message, CallToolResultSchema).catch(() => undefined);
        assert.deepEqual(ran, []);
        assert.equal((await session.request({ method: "tools/list" }, ListToolsResultSchema)).tools.length, 2);
        assert.equal((await session.request({ method: "tools/list", params: {} }, ListToolsResultSchema)).tools.length, 2);
      });
    });
  });
});

test("adapter-mcp", "a call that is broken off while it waits is not sent", async () => {
  await withEdge(async (edge) => {
    const controller = new AbortController();
    edge.decision = "require_approval";
    edge.statuses = ["PENDING"];
    await withClient(edge.url, async (client) => {
      await withSession(async (session, ran) => {
        protectSession(client, session, { server: "files", onPending: () => controller.abort(new RangeError("enough")) });
        await assert.rejects(session.callTool({ name: "write", arguments: { path: "a", text: "b" } }, undefined, { signal: controller.signal }), RangeError);
        assert.deepEqual(ran, []);
      });
    });
  });
});

test("adapter-mcp", "what is no session, or has a model to tell, is refused", async () => {
  await withClient("http://127.0.0.1:1", async (client) => {
    for (const bad of [null, {}, { request: 1 }]) assert.throws(() => protectSession(client, bad, { server: "files" }), ConfigError);
    await withSession((session) => {
      for (const settings of [{}, { server: "" }, { server: "files", tellModel: true }, { server: "files", failOpenReads: true }]) assert.throws(() => protectSession(client, session, settings), ConfigError);
      assert.equal(Object.hasOwn(session, "request"), false);
    });
  });
});
