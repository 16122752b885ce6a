// Tools of the OpenAI Agents SDK with schemas, with the real package: what is hashed is what the schema made of a model's text, and what runs.

import assert from "node:assert/strict";

import { Agent, Runner, tool, Usage } from "@openai/agents";
import { actionHash, Client, ConfigError, DeniedByApprover, DeniedUnfreezable, run, sourceTrust } from "aegisagent";
import { protectAgent } from "aegisagent/adapters/openai-agents";
import { z } from "zod";

import { withClient } from "./calling.mjs";
import { withEdge } from "./fake.mjs";
import { cases, test } from "./feature.mjs";
import { withAegis, withWorld } from "./harness.mjs";

const FEATURE = "adapter-openai-agents";
const sent = (edge) => edge.sent("authorize").map(({ tool_call: { parameters } }) => parameters);
const CRM = { tool: "crm" };

/** A tool with these parameters, protected; `ran` gets what its function was given. */
function made(client, ran, parameters, { settings, ...options } = {}) {
  const one = tool({
    name: "update", description: "Updates.", parameters, errorFunction: null, ...options, execute: (given, _context, details) => {
      ran.push(given);
      ran.details = details;
      return "updated";
    },
  });
  protectAgent(client, new Agent({ name: "a", tools: [one] }), { ...CRM, ...settings });
  return one;
}

/** `work(edge, client, ran)` with an edge and a client. */
const within = async (work) => await withEdge(async (edge) => await withClient(edge.url, async (client) => await work(edge, client, [])));
const text = (value) => JSON.stringify(value);

/** A schema of another library: it makes of its one parameter whatever `make` does. */
function schemaOf(name, property, make) {
  const jsonSchema = () => ({ type: "object", properties: { [name]: property }, required: [name], additionalProperties: false });
  const validate = (given) => {
    try {
      return { value: { [name]: make(given[name]) } };
    } catch (error) {
      return { issues: [{ message: error.message }] };
    }
  };
  return { "~standard": { version: 1, vendor: "tests", validate, jsonSchema: { input: jsonSchema, output: jsonSchema } } };
}
const [TEXT, NUMBER, TEXTS] = [{ type: "string" }, { type: "number" }, { type: "array", items: { type: "string" } }];

const READ = {
  "another library's result": [schemaOf("note", TEXT, (note) => note.trim()), { note: " a " }, { note: "a" }],
  "a default": [z.object({ note: z.string().default("empty") }), {}, { note: "empty" }],
  "a coercion": [z.object({ amount: z.coerce.number().int() }), { amount: "5" }, { amount: 5 }],
  "a transform": [z.object({ note: z.string().trim().toUpperCase() }), { note: " a " }, { note: "A" }],
  "keys that the schema leaves out": [z.object({ note: z.string() }), { note: "a", more: { deep: 1 } }, { note: "a" }],
  "keys that it keeps": [z.looseObject({ note: z.string() }), { note: "a", more: { deep: 1 } }, { note: "a", more: { deep: 1 } }],
  "null for what may be left out": [z.object({ note: z.string(), more: z.string().optional() }), { note: "a", more: null }, { note: "a" }],
  "null that is meant": [z.object({ note: z.string().nullable() }), { note: null }, { note: null }],
  "a nested object": [z.object({ item: z.object({ name: z.string(), count: z.coerce.number().default(1) }) }), { item: { name: "pen" } }, { item: { name: "pen", count: 1 } }],
  "a date as a text": [z.object({ day: z.iso.date() }), { day: "2026-11-26" }, { day: "2026-11-26" }],
  "a schema of JSON": [
    { type: "object", properties: { note: { type: "string" } }, required: ["note"], additionalProperties: false }, { note: "a" }, { note: "a" },
  ],
};
cases(FEATURE, "what the schema makes of a model's arguments is hashed and run", READ, async ([schema, given, read]) => {
  await within(async (edge, client, ran) => {
    const one = made(client, ran, schema, { settings: { resource: (_action, p) => Object.keys(p).join() } });
    assert.equal(await one.invoke({}, text(given)), "updated");
    assert.equal(await one.invoke({}, text(given), { toolCall: { callId: "1", arguments: text(given) } }), "updated");
    assert.deepEqual([ran.slice(), sent(edge)], [[read, read], [read, read]]);
    assert.deepEqual(JSON.parse(ran.details.toolCall.arguments), read);
    assert.equal(edge.sent("authorize")[0].tool_call.resource, Object.keys(read).join());
  });
});

const UNSTABLE = {
  "a transform that is not idempotent": [z.object({ amount: z.number().overwrite((amount) => amount + 1) }), { amount: 1 }, "schema_not_stable"],
  "the same, deeper": [z.object({ item: z.object({ path: z.string().overwrite((path) => `/tmp/${path}`) }) }), { item: { path: "a" } }, "schema_not_stable"],
  "a result that the schema refuses": [schemaOf("amount", TEXT, (amount) => amount.trim().length), { amount: "5" }, "schema_not_stable"],
  "what differs each time": [z.object({ at: z.string().overwrite(() => String(performance.now())) }), { at: "now" }, "schema_not_stable"],
  "a date": [schemaOf("day", TEXT, (day) => new Date(day)), { day: "2026-11-26" }, "unsupported_type"],
  "a set": [schemaOf("names", TEXTS, (names) => new Set(names)), { names: ["a"] }, "unsupported_type"],
  "no number": [schemaOf("amount", NUMBER, () => NaN), { amount: 1 }, "non_finite_number"],
};
cases(FEATURE, "a schema that does not take its own result is a denial, and nobody is asked", UNSTABLE, async ([schema, given, code]) => {
  await within(async (edge, client, ran) => {
    await assert.rejects(made(client, ran, schema).invoke({}, text(given)), (error) => error instanceof DeniedUnfreezable && error.code === code);
    assert.match(await made(client, ran, schema, { settings: { tellModel: true } }).invoke({}, text(given)), new RegExp(`The call was denied: ${code}`));
    assert.deepEqual([ran, edge.seen], [[], []]);
  });
});

test(FEATURE, "nothing is read again once a call was authorized", async () => {
  await within(async (edge, client, ran) => {
    const drifting = z.object({ note: z.string().overwrite((note) => (edge.seen.length > 0 ? "evil" : note)) });
    for (const options of [{}, { timeoutMs: 10_000 }]) {
      edge.seen.length = 0;
      await made(client, ran, drifting, options).invoke({}, text({ note: "a" }));
      edge.seen.length = 0;
      await made(client, ran, drifting, options).invoke({}, text({ note: "a" }), { toolCall: { callId: "1" } });
    }
    assert.deepEqual(ran.slice(), Array(4).fill({ note: "a" }));
  });
});

test(FEATURE, "what a function does to its arguments, or a schema keeps of them, changes no other call", async () => {
  await within(async (edge, client, ran) => {
    const kept = [];
    const schema = schemaOf("ids", TEXTS, (ids) => (kept.push(ids), ids));
    edge.before.authorize = () => kept.forEach((ids) => ids.push("evil"));
    await made(client, ran, schema).invoke({}, text({ ids: ["a"] }));
    assert.deepEqual([ran.slice(), sent(edge)], [[{ ids: ["a"] }], [{ ids: ["a"] }]]);
  });
});

test(FEATURE, "arguments that do not fit are answered by the framework, and nobody is asked", async () => {
  await within(async (edge, client, ran) => {
    const schema = z.object({ amount: z.number() });
    await assert.rejects(made(client, ran, schema).invoke({}, text({ amount: "many" })), /Invalid JSON input for tool/);
    const told = made(client, ran, schema, { errorFunction: (_context, error) => `told of ${error.name}` });
    assert.match(await told.invoke({}, text({ amount: "many" })), /^told of /);
    let turns = 0;
    const moody = z.object({ note: z.string().refine(() => (turns += 1) > 1, "not now") });
    await assert.rejects(made(client, ran, moody).invoke({}, text({ note: "a" })));
    assert.deepEqual([ran, edge.seen, turns], [[], [], 1]);
  });
});

test(FEATURE, "an edit is read by the schema", async () => {
  await within(async (edge, client, ran) => {
    edge.decision = "require_approval";
    const action = { tool: "crm", action: "update", resource: null, mutates_state: true };
    const schema = z.object({ amount: z.coerce.number().int(), note: z.string().trim().default("none") });
    const one = made(client, ran, schema, { settings: { acceptEdits: true } });
    edge.edited = { ...action, parameters: { amount: 6, note: "edited" } };
    assert.equal(await one.invoke({}, text({ amount: "5" })), "updated");
    for (const parameters of [{ amount: "6", note: "a" }, { amount: 6.5, note: "a" }, { amount: 6, note: " a " }, { amount: "many", note: "a" }]) {
      edge.edited = { ...action, parameters };
      await assert.rejects(one.invoke({}, text({ amount: "5" })), (error) => error instanceof DeniedByApprover && error.code === "approval_edited");
    }
    assert.deepEqual(ran.slice(), [{ amount: 6, note: "edited" }]);
    assert.equal(edge.sent("consume").length, 1);
  });
});

/** Calls the tool `update` once, then ends with what it was told. */
class Scripted {
  async getResponse({ input }) {
    const said = Array.isArray(input) ? input.filter((item) => item.type === "function_call_result") : [];
    const output = said.length > 0
      ? { type: "message", role: "assistant", status: "completed", content: [{ type: "output_text", text: JSON.stringify(said.at(-1).output) }] }
      : { type: "function_call", callId: "call", name: "update", status: "completed", arguments: this.arguments };
    return { usage: new Usage(), output: [output] };
  }

  constructor(given) {
    this.arguments = text(given);
  }
}

const runOnce = async (client, one, given, settings = {}) => {
  const agent = protectAgent(client, new Agent({ name: "a", model: new Scripted(given), tools: [one] }), { ...CRM, ...settings });
  return (await new Runner({ tracingDisabled: true }).run(agent, "go")).finalOutput;
};

test(FEATURE, "the framework's runner runs what was read", async () => {
  await within(async (edge, client, ran) => {
    const parameters = z.object({ amount: z.coerce.number(), note: z.string().default("none") });
    const options = { name: "update", description: "Updates.", parameters, errorFunction: null };
    for (const needsApproval of [false, async () => false]) {
      assert.match(await runOnce(client, tool({ ...options, needsApproval, execute: (given) => (ran.push(given), "updated") }), { amount: "5" }), /updated/);
    }
    const read = { amount: 5, note: "none" };
    assert.deepEqual([ran.slice(), sent(edge)], [[read, read], [read, read]]);
  });
});

test(FEATURE, "an invoke that wraps the framework's does not run what its schema makes of the text that was hashed", async () => {
  await within(async (edge, client, ran) => {
    for (const errorFunction of [null, () => "an error's text"]) {
      const wrapped = () => {
        const one = tool({ name: "update", description: "Updates.", parameters: z.object({ amount: z.coerce.number() }), errorFunction, execute: (given) => (ran.push(given), "updated") });
        return { ...one, invoke: async (...given) => await one.invoke(...given) };
      };
      await assert.rejects(runOnce(client, wrapped(), { amount: "5" }));
      assert.match(await runOnce(client, wrapped(), { amount: "5" }, { tellModel: true }), /its result is withheld: .*schema_not_stable/);
      assert.match(await runOnce(client, wrapped(), { amount: 5 }), /updated/);
    }
    assert.deepEqual(ran.slice(), [{ amount: 5 }, { amount: 5 }]);
    assert.equal(sent(edge).length, 6);
  });
});

test(FEATURE, "a tool with an invoke of its own gets the text as it was hashed", async () => {
  await within(async (edge, client, ran) => {
    const one = { ...tool({ name: "own", description: "Owns.", parameters: z.object({}), execute: () => "" }), invoke: async (_context, given) => (ran.push(given), "own") };
    protectAgent(client, new Agent({ name: "a", tools: [one] }), CRM);
    assert.equal(await one.invoke({}, '{"amount":"5"}'), "own");
    assert.deepEqual([ran.slice(), sent(edge)], [['{"amount":"5"}'], [{ amount: "5" }]]);
  });
});

test(FEATURE, "a tool whose schema the framework does not know any more does not run", async () => {
  await within(async (edge, client, ran) => {
    const one = made(client, ran, z.object({ amount: z.coerce.number() }));
    const { get } = WeakMap.prototype;
    WeakMap.prototype.get = () => undefined;
    try {
      await assert.rejects(one.invoke({}, '{"amount":"5"}'), DeniedUnfreezable);
      assert.throws(() => made(client, ran, z.object({})), ConfigError);
    } finally {
      WeakMap.prototype.get = get;
    }
    assert.deepEqual([ran, edge.seen], [[], []]);
  });
});

test([FEATURE, "e2e-approval"], "real program: what was approved is what an agent's tool gets", async () => {
  await withAegis(async (aegis) => {
    await withWorld(aegis, async (world) => {
      const client = new Client({ url: aegis.url, token: world.agent.agent_token });
      const [ran, approved] = [[], []];
      const onPending = world.whenAsked(async (approvalId) => {
        approved.push((await world.approver.approval(approvalId)).action_hash);
        await world.approver.approve(approvalId);
      });
      const parameters = z.object({ amount: z.coerce.number().int(), note: z.object({ text: z.string().trim(), tags: z.array(z.string()).default(["none"]) }) });
      const refund = tool({ name: "refund", description: "Refunds.", parameters, errorFunction: null, execute: (given) => (ran.push(given), "refunded") });
      try {
        protectAgent(client, new Agent({ name: "a", tools: [refund] }), { ...CRM, resource: () => "customer-1", onPending });
        const ask = () => refund.invoke({}, text({ amount: "5", note: { text: " for you " } }));
        assert.equal(await sourceTrust("trusted_internal_unsigned", () => run("order-1", ask)), "refunded");
        assert.deepEqual(ran, [{ amount: 5, note: { text: "for you", tags: ["none"] } }]);
        assert.deepEqual(approved, [actionHash("crm", "refund", "customer-1", true, ran[0])]);
      } finally {
        client.close();
      }
    });
  });
});
