// LangChain, as an attacker would have it: callbacks and tracers that change what they are shown. What a tool's function gets has the hash that was
// authorized.

import assert from "node:assert/strict";
import { AsyncLocalStorage } from "node:async_hooks";
import { setTimeout as sleep } from "node:timers/promises";

import { AIMessage } from "@langchain/core/messages";
import { DynamicStructuredTool, DynamicTool, tool } from "@langchain/core/tools";
import { ToolNode } from "@langchain/langgraph/prebuilt";
import { actionHash, Client, ConfigError, run, sourceTrust } from "aegisagent";
import { protectTools } from "aegisagent/adapters/langchain";
import { z } from "zod";
import { z as z3 } from "zod/v3";

import { withClient } from "./calling.mjs";
import { withEdge } from "./fake.mjs";
import { cases, test } from "./feature.mjs";
import { withAegis, withWorld } from "./harness.mjs";
import { call, EVIL, FILE, holds, NAMED, Own, recorder, spoil, Tracer } from "./langchain-tools.mjs";

const FEATURE = "adapter-langchain";

// The tool around a function, what it is given, and what its function is to get.
const KINDS = {
  "a JSON schema": [(work) => tool(work, { ...NAMED, schema: { type: "object", properties: { file: { type: "object" } } } }), FILE, FILE],
  "zod 4": [(work) => tool(work, { ...NAMED, schema: z.object({ file: z.any() }) }), FILE, FILE],
  "zod 3": [(work) => tool(work, { ...NAMED, schema: z3.object({ file: z3.any() }) }), FILE, FILE],
  "what zod lets through": [(work) => tool(work, { ...NAMED, schema: z.looseObject({}) }), FILE, FILE],
  "any value": [(work) => tool(work, { ...NAMED, schema: z.any() }), FILE, FILE],
  "a DynamicStructuredTool": [(work) => new DynamicStructuredTool({ ...NAMED, schema: z.object({ file: z.any() }), func: (given, manager, config) => work(given, config) }), FILE, FILE],
  "a class of one's own": [(work) => new Own(work), FILE, FILE],
  "a text": [(work) => new DynamicTool({ ...NAMED, func: (given, manager, config) => work(given, config) }), "/tmp/a", "/tmp/a"],
  "a text by name": [(work) => tool(work, { ...NAMED, schema: z.string() }), { input: "/tmp/a" }, "/tmp/a"],
  "defaults": [
    (work) => tool(work, { ...NAMED, schema: z.object({ path: z.string(), mode: z.object({ all: z.boolean().default(false) }).prefault({}), size: z.number().default(7) }) }),
    { path: "/tmp/a" }, { path: "/tmp/a", mode: { all: false }, size: 7 },
  ],
  "defaults of zod 3": [(work) => tool(work, { ...NAMED, schema: z3.object({ path: z3.string(), size: z3.number().default(7) }) }), { path: "/tmp/a" }, { path: "/tmp/a", size: 7 }],
  "coercions": [
    (work) => tool(work, { ...NAMED, schema: z.object({ size: z.coerce.number(), all: z.stringbool(), path: z.string().trim() }) }), { size: "7", all: "no", path: " /tmp/a " },
    { size: 7, all: false, path: "/tmp/a" },
  ],
  "coercions of zod 3": [(work) => tool(work, { ...NAMED, schema: z3.object({ size: z3.coerce.number() }) }), { size: "7" }, { size: 7 }],
  "names that the schema drops": [(work) => tool(work, { ...NAMED, schema: z.object({ path: z.string() }) }), { path: "/tmp/a", other: EVIL }, { path: "/tmp/a" }],
  "a transform of one": [(work) => tool(work, { ...NAMED, schema: z.object({ path: z.string().transform((path) => ({ below: `/tmp/${path}` })) }) }), { path: "a" }, { path: { below: "/tmp/a" } }],
  "a transform of all": [(work) => tool(work, { ...NAMED, schema: z.object({ path: z.string() }).transform(({ path }) => ({ parts: path.split("/") })) }), { path: "a/b" }, { parts: ["a", "b"] }],
  "a transform to a list": [(work) => tool(work, { ...NAMED, schema: z3.object({ path: z3.string() }).transform(({ path }) => [path, 1]) }), { path: "a" }, ["a", 1]],
  "a transform that waits": [(work) => tool(work, { ...NAMED, schema: z.object({ path: z.string().transform(async (path) => (await sleep(1), `/tmp/${path}`)) }) }), { path: "a" }, { path: "/tmp/a" }],
};

/** Every way in, with these callbacks. */
const WAYS = {
  "invoke": (made, given, callbacks) => made.invoke(given, { callbacks }),
  "invoke of a call": (made, given, callbacks) => made.invoke(call(given), { callbacks }),
  "call": (made, given, callbacks) => made.call(given, { callbacks }),
  "call of a call": (made, given, callbacks) => made.call(call(given), callbacks),
  "batch": (made, given, callbacks) => made.batch([given, given], { callbacks }),
  "stream": async (made, given, callbacks) => {
    for await (const part of await made.stream(given, { callbacks })) assert.ok(part);
  },
  "events": async (made, given, callbacks) => {
    for await (const { data } of made.streamEvents(given, { version: "v2", callbacks })) if (typeof data?.input === "object") spoil(data.input);
  },
  "callbacks of the tool": async (made, given, callbacks) => {
    made.callbacks = callbacks;
    await made.invoke(given);
  },
  "a ToolNode": async (made, given, callbacks) => {
    const message = new AIMessage({ content: "", tool_calls: [call(typeof given === "string" ? { input: given } : given)] });
    await new ToolNode([made], { handleToolErrors: false }).invoke({ messages: [message] }, { callbacks });
  },
};

cases(FEATURE, "what a tracer makes of what it is shown is not what runs", KINDS, async ([make, given, expected]) => {
  for (const [name, way] of Object.entries(WAYS)) {
    await withEdge(async (edge) => {
      edge.decision = "require_approval";
      await withClient(edge.url, async (client) => {
        const [{ ran, work }, tracer] = [recorder(), new Tracer()];
        const [made] = protectTools(client, [make(work)], { tool: "files" });
        await way(made, structuredClone(given), [tracer]);
        // A tool that takes a text shows texts, which nobody can change.
        assert.ok(tracer.seen.length > 0 || typeof given === "string", name);
        holds(edge, ran, expected);
      });
    });
  }
});

test(FEATURE, "a callback that runs the work itself runs what was cleared, once, and nobody after the call has ended", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      for (const inner of ["_call", "func"]) {
        const { ran, work } = recorder();
        const [made] = protectTools(client, [tool(work, { ...NAMED, schema: z.object({ path: z.string() }) })], { tool: "files" });
        const errors = [];
        let later;
        const callbacks = [{
          awaitHandlers: true, handleToolStart: async () => {
            await made[inner]({ path: EVIL }).catch((error) => errors.push(error));
          },
        }];
        await assert.rejects(made.invoke({ path: "/tmp/a" }, { callbacks }), ConfigError);
        assert.deepEqual([ran.map(({ given }) => given), errors], [[{ path: "/tmp/a" }], []], inner);
        // One that breaks the call off, and comes back when it has been reported.
        const failing = [{
          awaitHandlers: true, raiseError: true, handleToolStart: () => {
            later = sleep(50).then(() => made[inner]({ path: EVIL }));
            throw new RangeError("enough");
          },
        }];
        const silenced = console.error;
        console.error = () => undefined;
        await assert.rejects(made.invoke({ path: "/tmp/a" }, { callbacks: failing }), RangeError);
        console.error = silenced;
        await assert.rejects(later, ConfigError);
        assert.equal(ran.length, 1, inner);
      }
    });
  });
});

test(FEATURE, "the bare function is not left where LangChain keeps what a tool was made with", async () => {
  await withClient("http://127.0.0.1:1", async (client) => {
    const { ran, work } = recorder();
    const fields = { ...NAMED, schema: z.object({ path: z.string() }), func: work };
    for (const made of protectTools(client, [tool(work, { ...NAMED, schema: fields.schema }), new DynamicStructuredTool(fields), new DynamicTool(fields)], { tool: "files" })) {
      assert.throws(() => made.lc_kwargs.func({ path: EVIL }), ConfigError);
      assert.throws(() => new made.constructor(made.lc_kwargs)._call({ path: EVIL }), ConfigError);
    }
    assert.equal(fields.func, work, "what it was made of is the caller's");
    assert.deepEqual(ran, []);
  });
});

test(FEATURE, "another name or method that a tool gets later is no other action", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      const { ran, work } = recorder();
      const [made] = protectTools(client, [tool(work, { ...NAMED, schema: z.object({ path: z.string() }) })], { tool: "files", reads: ["look"] });
      made.name = "look";
      await made.invoke({ path: "/tmp/a" });
      assert.deepEqual(edge.sent("authorize").map(({ tool_call: of }) => [of.action, of.mutates_state]), [["write", true]]);
      // Nor is the name in a call.
      await made.invoke({ ...call({ path: "/tmp/a" }), name: "look", more: EVIL });
      assert.equal(ran.length, 2);
    });
  });
});

test(FEATURE, "a tool is told of its call as it was cleared, and of nothing else in it", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      const told = [];
      const [made] = protectTools(client, [tool((given, config) => (told.push(config.toolCall), "a"), { ...NAMED, schema: z.object({ path: z.string(), size: z.number().default(1) }) })], { tool: "files" });
      const answer = await made.invoke({ ...call({ path: "/tmp/a" }), name: "look", more: EVIL });
      assert.equal(answer.tool_call_id, "1");
      await made.invoke({ path: "/tmp/a" }, { toolCall: { name: "look", id: "2", args: { path: EVIL }, more: EVIL } });
      const own = (id) => ({ name: "write", args: { path: "/tmp/a", size: 1 }, id, type: "tool_call" });
      assert.deepEqual(told, [own("1"), own("2")]);
    });
  });
});

test(FEATURE, "a class that asks its own ways for something else is asked for that too", async () => {
  class Twice extends Own {
    async invoke(input) {
      return [await this.call({ file: "first" }), await this.call(input)].join(" ");
    }
  }
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      const ran = [];
      const [made] = protectTools(client, [new Twice(({ file }) => (ran.push(file), file))], { tool: "files" });
      assert.equal(await made.invoke({ file: "second" }), "first second");
      assert.deepEqual(ran, ["first", "second"]);
      assert.deepEqual(edge.sent("authorize").map(({ tool_call: { parameters } }) => parameters.file), ["second", "first"]);
    });
  });
});

test(FEATURE, "what somebody replaces later neither opens a tool nor makes a read of it", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      const { ran, work } = recorder();
      const [made] = protectTools(client, [tool(work, { ...NAMED, schema: z.object({ path: z.string() }) })], { tool: "files", reads: ["look"], passedOn: ["state"] });
      const { getStore } = AsyncLocalStorage.prototype;
      AsyncLocalStorage.prototype.getStore = () => ({ thing: made, open: ["_call", "func"], cleared: { given: () => ({ path: EVIL }) } });
      try {
        for (const inner of ["_call", "func"]) assert.throws(() => made[inner]({ path: EVIL }), ConfigError);
      } finally {
        AsyncLocalStorage.prototype.getStore = getStore;
      }
      const weakHas = WeakSet.prototype.has;
      WeakSet.prototype.has = () => true;
      const other = tool(work, { ...NAMED, schema: z.object({ path: z.string() }) });
      try {
        protectTools(client, [other], { tool: "files" });
      } finally {
        WeakSet.prototype.has = weakHas;
      }
      assert.throws(() => other.func({ path: EVIL }), ConfigError);
      const { has } = Set.prototype;
      Set.prototype.has = function (value) {
        return value === "write" || value === "path" || has.call(this, value);
      };
      try {
        await made.invoke({ path: "/tmp/a" });
      } finally {
        Set.prototype.has = has;
      }
      holds(edge, ran, { path: "/tmp/a" });
      assert.equal(edge.sent("authorize")[0].tool_call.mutates_state, true);
    });
  });
});

test(FEATURE, "calls at once keep apart", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      const { ran, work } = recorder();
      const [made] = protectTools(client, [tool(work, { ...NAMED, schema: z.object({ path: z.string().transform((path) => `/tmp/${path}`) }) })], { tool: "files" });
      const paths = Array.from({ length: 50 }, (_, number) => String(number));
      const tracer = new Tracer();
      await Promise.all(paths.map((path) => made.invoke(call({ path }), { callbacks: [tracer] })));
      const sorted = (list) => list.map(({ path }) => path).sort();
      assert.deepEqual(sorted(ran.map(({ given }) => given)), paths.map((path) => `/tmp/${path}`).sort());
      assert.deepEqual(sorted(edge.sent("authorize").map(({ tool_call: { parameters } }) => parameters)), sorted(ran.map(({ given }) => given)));
    });
  });
});

test(FEATURE, "what cannot be changed wholly is refused, and left as it was", async () => {
  await withClient("http://127.0.0.1:1", (client) => {
    for (const name of ["invoke", "call", "_call", "func", "schema", "lc_kwargs"]) {
      const made = tool(() => "a", { ...NAMED, schema: z.object({}) });
      Object.defineProperty(made, name, { value: made[name], configurable: false });
      assert.throws(() => protectTools(client, [made], { tool: "files" }), ConfigError);
      assert.equal(Object.hasOwn(made, "invoke"), name === "invoke");
    }
  });
});

test([FEATURE, "e2e-approval"], "real program: what was approved is what a tool's function gets, whatever tracers and schemas do", async () => {
  await withAegis(async (aegis) => {
    await withWorld(aegis, async (world) => {
      const client = new Client({ url: aegis.url, token: world.agent.agent_token });
      const [{ ran, work }, approved] = [recorder(), []];
      const approve = world.whenAsked(async (approvalId) => {
        approved.push((await world.approver.approval(approvalId)).action_hash);
        await world.approver.approve(approvalId);
      });
      const schema = z.object({ amount: z.coerce.number().int(), note: z.object({ text: z.string().trim(), tags: z.array(z.any()).default(["none"]) }) });
      const refund = new DynamicStructuredTool({ name: "refund", description: "Refunds.", schema, func: (given, manager, config) => work(given, config) });
      try {
        const [made] = protectTools(client, [refund], { tool: "crm", resource: () => "customer-1", onPending: approve });
        const tracer = new Tracer();
        const input = { name: "refund", id: "1", type: "tool_call", args: { amount: "5", note: { text: " for you " } } };
        const answer = await sourceTrust("trusted_internal_unsigned", () => run("order-1", () => made.invoke(input, { callbacks: [tracer] })));
        assert.deepEqual([answer.content, answer.tool_call_id], ["written", "1"]);
        assert.ok(tracer.seen.length > 0);
        const expected = { amount: 5, note: { text: "for you", tags: ["none"] } };
        assert.deepEqual(ran, [{ given: expected, told: expected, first: expected }]);
        assert.deepEqual(approved, [actionHash("crm", "refund", "customer-1", true, ran[0].given)]);
      } finally {
        client.close();
      }
    });
  });
});
