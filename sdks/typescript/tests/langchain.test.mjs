// LangChain and LangGraph, with the real packages: what a framework runs is what was authorized, however it runs it.

import assert from "node:assert/strict";

import { AIMessage } from "@langchain/core/messages";
import { DynamicTool, StructuredTool, tool } from "@langchain/core/tools";
import { END, MessagesAnnotation, START, StateGraph } from "@langchain/langgraph";
import { ToolNode } from "@langchain/langgraph/prebuilt";
import { ConfigError, DeniedByPolicy, DeniedUnfreezable } from "aegisagent";
import { protectTools } from "aegisagent/adapters/langchain";
import { z } from "zod";

import { withClient } from "./calling.mjs";
import { withEdge } from "./fake.mjs";
import { test } from "./feature.mjs";

const CALL = { customer: "c-1", note: "hello" };
const asked = (edge) => edge.sent("authorize").map(({ tool_call: call }) => [call.tool, call.action, call.mutates_state, call.resource, call.parameters]);

function makeTools(ran) {
  const update = tool((given) => {
    ran.push(given);
    return "updated";
  }, { name: "update_note", description: "Updates.", schema: z.object({ customer: z.string(), note: z.string().default("empty") }) });
  const read = tool(async (given) => {
    ran.push(given);
    return "read";
  }, { name: "read_note", description: "Reads.", schema: { type: "object", properties: { customer: { type: "string" } }, required: ["customer"] } });
  const say = new DynamicTool({ name: "say", description: "Says.", func: async (text) => (ran.push(text), `said ${text}`) });
  return [update, read, say];
}

async function nodeOf(tools, args, name = "update_note", handleToolErrors = false) {
  const graph = new StateGraph(MessagesAnnotation).addNode("tools", new ToolNode(tools, { handleToolErrors })).addEdge(START, "tools").addEdge("tools", END).compile();
  const message = new AIMessage({ content: "", tool_calls: [{ name, args, id: "1", type: "tool_call" }] });
  return (await graph.invoke({ messages: [message] })).messages.at(-1).content;
}

async function lastOf(stream) {
  let last;
  for await (const part of stream) last = part;
  return last;
}

/** Every way in which LangChain runs a tool. */
const ways = (tools) => {
  const [update] = tools;
  const call = { name: "update_note", args: CALL, id: "1", type: "tool_call" };
  return {
    "invoke": () => update.invoke(CALL), "invoke of a call": async () => (await update.invoke(call)).content, "call": () => update.call(CALL), "call of a call": async () => (await update.call(call)).content,
    "batch": async () => (await update.batch([CALL]))[0], "stream": async () => await lastOf(await update.stream(CALL)), "a chain": () => update.pipe((text) => text).invoke(CALL),
    "with a configuration": () => update.withConfig({ tags: ["a"] }).invoke(CALL), "with retries": () => update.withRetry({ stopAfterAttempt: 1 }).invoke(CALL), "a ToolNode": () => nodeOf(tools, CALL),
  };
};

test("adapter-langchain", "every way to run a tool is protected, and asks once", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      const ran = [];
      const tools = protectTools(client, makeTools(ran), { tool: "crm", reads: ["read_note"], resource: (action, p) => p.customer ?? null });
      let number = 0;
      for (const [name, way] of Object.entries(ways(tools))) {
        number += 1;
        assert.equal(await way(), "updated", name);
        assert.deepEqual([ran.length, edge.sent("authorize").length, edge.sent("outcome").length], [number, number, number], name);
      }
      assert.deepEqual(ran, Array(number).fill(CALL));
      assert.equal(await nodeOf(tools, { customer: "c-2" }, "read_note"), "read");
      assert.equal(await tools[2].invoke("hello"), "said hello");
      assert.equal(await tools[2].invoke({ input: "again" }), "said again");
      const before = ran.length;
      edge.decision = "deny";
      for (const [name, way] of Object.entries(ways(tools))) await assert.rejects(way(), DeniedByPolicy, name);
      assert.match(await nodeOf(tools, CALL, "update_note", true), /denied \(policy_denied\)/);
      assert.equal(ran.length, before);
      assert.deepEqual(asked(edge)[0], ["crm", "update_note", true, "c-1", CALL]);
      assert.deepEqual(asked(edge).slice(number, number + 3), [
        ["crm", "read_note", false, "c-2", { customer: "c-2" }], ["crm", "say", true, null, { input: "hello" }], ["crm", "say", true, null, { input: "again" }],
      ]);
    });
  });
});

test("adapter-langchain", "a call within a call is a denial, however it is run", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      const ran = [];
      const file = () => tool((given) => (ran.push(given), "read"), { name: "read_file", description: "Reads.", schema: { type: "object" } });
      const [read] = protectTools(client, [file()], { tool: "files" });
      const [beside] = protectTools(client, [file()], { tool: "files", passedOn: ["type"] });
      const call = (args) => ({ name: "read_file", id: "1", type: "tool_call", args });
      const within = { type: "tool_call", args: { path: "/safe" }, path: "/etc/shadow" };
      for (const args of [within, call({ type: "tool_call", args: "/safe" }), { ...within, args: within }]) {
        for (const one of [read, beside]) {
          for (const way of ["invoke", "call"]) await assert.rejects(one[way](call(args)), { name: "DeniedUnfreezable", code: "unsupported_type" });
          await assert.rejects(one.batch([call(args)]), DeniedUnfreezable);
          await assert.rejects(nodeOf([one], args, "read_file"), DeniedUnfreezable);
        }
      }
      assert.deepEqual([ran, edge.seen], [[], []]);
      // By prototype it is a call to LangChain as well.
      for (const way of ["invoke", "call"]) assert.ok(await read[way](Object.assign(Object.create({ type: "tool_call" }), { args: { path: "/a" }, path: "/b" })));
      assert.deepEqual(ran, [{ path: "/a" }, { path: "/a" }]);
      assert.deepEqual(asked(edge).map(([, , , , parameters]) => parameters), ran);
    });
  });
});

test("adapter-langchain", "what does the work does nothing by itself, nor twice", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      const ran = [];
      const [update] = protectTools(client, makeTools(ran), { tool: "crm" });
      assert.throws(() => update._call(CALL), ConfigError);
      assert.throws(() => update.func(CALL), ConfigError);
      let again;
      const itself = tool(async ({ n }) => {
        ran.push(n);
        if (n > 0) again = await itself.invoke({ n: n - 1 });
        assert.throws(() => itself.func({ n: 7 }), ConfigError);
        return "done";
      }, { name: "itself", description: "Calls itself.", schema: z.object({ n: z.number() }) });
      protectTools(client, [itself], { tool: "crm" });
      await itself.invoke({ n: 1 });
      assert.equal(again, "done");
      assert.deepEqual(ran, [1, 0]);
    });
    assert.deepEqual(asked(edge).map(([, , , , parameters]) => parameters), [{ n: 1 }, { n: 0 }]);
  });
});

test("adapter-langchain", "a tool of a class of one's own is protected, however it runs", async () => {
  class Own extends StructuredTool {
    name = "own";
    description = "Of its own.";
    schema = z.object({ customer: z.string() });
    ran = [];
    async _call(given) {
      this.ran.push(given);
      return "owned";
    }
  }
  class Around extends Own {
    async invoke(input) {
      return await this._call(input);
    }
  }
  class Back extends Own {
    async _call(given) {
      const again = given.customer === "c" ? await this.call({ customer: "another" }).catch((error) => error.name) : "another";
      await super._call(given);
      return again === "another" ? "owned" : again;
    }
  }
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      const back = new Back();
      protectTools(client, [back], { tool: "crm" });
      edge.replace.authorize = ([status, body]) => [status, { ...body, decision: edge.sent("authorize").at(-1).tool_call.parameters.customer === "c" ? "allow" : "deny" }];
      for (const way of ["invoke", "call"]) assert.equal(await back[way]({ customer: "c" }), "DeniedByPolicy", "what it calls again is asked for again");
      assert.deepEqual(back.ran, [{ customer: "c" }, { customer: "c" }]);
      edge.replace = {};
      edge.seen.length = 0;
      for (const own of [new Own(), new Around()]) {
        protectTools(client, [own], { tool: "crm" });
        assert.equal(await own.invoke({ customer: "c" }), "owned");
        edge.decision = "deny";
        await assert.rejects(own.invoke({ customer: "c" }), DeniedByPolicy);
        assert.deepEqual(own.ran, [{ customer: "c" }]);
        edge.decision = "allow";
      }
    });
    assert.equal(edge.sent("authorize").length, 4);
  });
});

test("adapter-langchain", "a denial is what the model is told, if it is to be", async () => {
  await withEdge(async (edge) => {
    edge.decision = "deny";
    await withClient(edge.url, async (client) => {
      const ran = [];
      const tools = protectTools(client, makeTools(ran), { tool: "crm", tellModel: true });
      for (const [name, way] of Object.entries(ways(tools))) assert.match(String(await way()), /The call was denied: policy_denied/, name);
      const message = await tools[0].invoke({ name: "update_note", args: CALL, id: "1", type: "tool_call" });
      assert.deepEqual([message.status, message.tool_call_id], ["error", "1"]);
      assert.deepEqual(ran, []);
    });
  });
});

test("adapter-langchain", "a denial from within a tool that ran is not told as the tool's own", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      const make = () => tool(() => { throw new DeniedByPolicy("policy_denied", "of another"); }, { name: "update_note", description: "Updates.", schema: z.object({ customer: z.string(), note: z.string() }) });
      const [teller] = protectTools(client, [make()], { tool: "crm", tellModel: true });
      for (const [name, way] of Object.entries(ways([teller]))) {
        const answer = String(await way());
        assert.match(answer, /The tool ran, and its result is withheld/, name);
        assert.doesNotMatch(answer, /The call was denied/, name);
      }
      const message = await teller.invoke({ name: "update_note", args: CALL, id: "1", type: "tool_call" });
      assert.deepEqual([message.status, message.tool_call_id], ["error", "1"]);
      await assert.rejects(protectTools(client, [make()], { tool: "crm" })[0].invoke(CALL), DeniedByPolicy);
      assert.ok(edge.sent("outcome").every(({ status }) => status === "error"));
    });
  });
});

test("adapter-langchain", "an edited action runs as edited, and is checked against the schema", async () => {
  await withEdge(async (edge) => {
    edge.decision = "require_approval";
    edge.edited = { tool: "crm", action: "update_note", resource: null, mutates_state: true, parameters: { customer: "c-2", note: "edited" } };
    await withClient(edge.url, async (client) => {
      const ran = [];
      const tools = protectTools(client, makeTools(ran), { tool: "crm", acceptEdits: true });
      assert.deepEqual(protectTools(client, tools, { tool: "crm" }), tools, "not twice");
      assert.equal(await tools[0].invoke(CALL), "updated");
      assert.deepEqual(ran, [{ customer: "c-2", note: "edited" }]);
      edge.edited = { ...edge.edited, parameters: { customer: 7, note: "edited" } };
      await assert.rejects(tools[0].invoke(CALL), { name: "DeniedByApprover", code: "approval_edited" });
      assert.deepEqual([ran.length, edge.sent("consume").length], [1, 1], "nothing is consumed for what cannot run");
    });
    assert.equal(edge.sent("authorize").length, 2);
  });
});

test("adapter-langchain", "what is no JSON is a denial unless it is passed on by name, and a signal breaks a call off", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      const make = () => tool(({ customer, state }) => `${customer} ${state.size}`, { name: "count", description: "Counts.", schema: z.object({ customer: z.string(), state: z.any() }) });
      const given = { customer: "c", state: new Map([[1, 1]]) };
      const [named] = protectTools(client, [make()], { tool: "crm", passedOn: ["state"] });
      assert.equal(await named.invoke(given), "c 1");
      assert.deepEqual(asked(edge)[0][4], { customer: "c" });
      const [plain] = protectTools(client, [make()], { tool: "crm", onPending: () => controller.abort(new RangeError("enough")) });
      await assert.rejects(plain.invoke(given), DeniedUnfreezable);
      const controller = new AbortController();
      edge.decision = "require_approval";
      edge.statuses = ["PENDING"];
      await assert.rejects(plain.invoke({ customer: "c", state: 1 }, { signal: controller.signal }), RangeError);
    });
  });
});

test("adapter-langchain", "a function is no tool, and what is refused leaves nothing half done", async () => {
  await withClient("http://127.0.0.1:1", (client) => {
    const [update] = makeTools([]);
    for (const bad of [() => 1, null, {}, { name: "a", invoke: () => 1 }, Object.freeze(makeTools([])[0])]) {
      assert.throws(() => protectTools(client, [update, bad], { tool: "crm" }), ConfigError);
      assert.equal(Object.hasOwn(update, "invoke"), false);
    }
    for (const settings of [{}, { tool: "" }, { tool: "crm", reads: "read_note" }, { tool: "crm", failOpenReads: true }]) assert.throws(() => protectTools(client, [update], settings), ConfigError);
  });
});
