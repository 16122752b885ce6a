// Plain functions: each becomes the action of its name.

import assert from "node:assert/strict";

import { ConfigError, DeniedByPolicy } from "aegisagent";
import { protectFunctions } from "aegisagent/adapters";

import { withClient } from "./calling.mjs";
import { withEdge } from "./fake.mjs";
import { test } from "./feature.mjs";

const asked = (edge) => edge.sent("authorize").map(({ tool_call: call }) => [call.tool, call.action, call.mutates_state, call.resource, call.parameters]);

test("adapter-functions", "plain functions become actions by name", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      const ran = [];
      const functions = { read: ({ id }) => ran.push(["read", id]), update: (id, note) => ran.push(["update", id, note]) };
      const settings = { tool: "crm", reads: ["read"], params: { update: ["id", "note"] }, resource: (action, p) => `${action}:${p.id}` };
      const tools = protectFunctions(client, functions, settings);
      assert.deepEqual(Object.keys(tools), ["read", "update"]);
      functions.read = () => ran.push("another");
      await tools.read({ id: "1" });
      await tools.update("2", "n");
      edge.decision = "deny";
      await assert.rejects(tools.update("3", "n"), DeniedByPolicy);
      assert.deepEqual(ran, [["read", "1"], ["update", "2", "n"]]);
    });
    assert.deepEqual(asked(edge).slice(0, 2), [["crm", "read", false, "read:1", { id: "1" }], ["crm", "update", true, "update:2", { id: "2", note: "n" }]]);
  });
});

test("adapter-functions", "what is named wrongly is refused", async () => {
  await withClient("http://127.0.0.1:1", (client) => {
    const read = ({ id }) => id;
    for (const [functions, settings] of [
      [{ read }, { tool: "crm", reads: ["raed"] }], [{ read }, { tool: "crm", params: { raed: ["id"] } }], [{ read }, { tool: "crm", params: { toString: ["id"] } }], [{ read }, {}], [{ read: 1 }, { tool: "crm" }],
      [{ read }, { tool: "crm", mutatesState: false }], [{ read: function* () { yield 1; } }, { tool: "crm" }], [{ read }, { tool: "crm", reads: "read" }],
    ]) assert.throws(() => protectFunctions(client, functions, settings), ConfigError);
  });
});
