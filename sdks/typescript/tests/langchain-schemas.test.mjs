// Schemas of LangChain's tools, which make something else of an input: what a tool's function gets has the hash that was authorized.

import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";

import { StructuredTool, tool } from "@langchain/core/tools";
import { protectTools } from "aegisagent/adapters/langchain";
import { z } from "zod";
import { z as z3 } from "zod/v3";

import { withClient } from "./calling.mjs";
import { withEdge } from "./fake.mjs";
import { cases, test } from "./feature.mjs";
import { call, EVIL, FILE, holds, NAMED, parametersOf, recorder, spoil, Tracer } from "./langchain-tools.mjs";

const FEATURE = "adapter-langchain";

test(FEATURE, "a schema reads an input once, also where it does something meanwhile", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      let number = 0;
      const { ran, work } = recorder();
      const schema = z.object({ id: z.string().default(() => `made ${(number += 1)}`), path: z.string().transform((path) => `${path}/${(number += 1)}`) });
      const [made] = protectTools(client, [tool(work, { ...NAMED, schema })], { tool: "files" });
      await made.invoke({ path: "a" });
      assert.equal(number, 2);
      holds(edge, ran, ran[0].given);
      assert.equal(made.schema, schema);
      assert.deepEqual(Object.keys(made).filter((name) => name === "schema"), ["schema"]);
      const other = z.object({ other: z.string() });
      made.schema = other;
      assert.equal(made.schema, other);
      await assert.rejects(made.invoke({ path: "a" }), /other/);
    });
  });
});

test(FEATURE, "a tool's schema is its own again for whatever its function does", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      const seen = [];
      class Getter extends StructuredTool {
        name = "write";
        description = "Writes.";
        get schema() {
          return SCHEMA;
        }
        async _call() {
          seen.push(this.schema);
          return "a";
        }
      }
      const SCHEMA = z.object({ path: z.string() });
      const made = [tool(() => (seen.push(made[0].schema), "a"), { ...NAMED, schema: SCHEMA }), new Getter()];
      protectTools(client, made, { tool: "files" });
      for (const one of made) await one.invoke({ path: "a" });
      assert.ok(seen.length === 2 && seen.every((one) => one === SCHEMA));
    });
  });
});

test(FEATURE, "what does not fit the schema is LangChain's own error, and nobody is asked", async () => {
  const schemas = {
    "zod 4": z.object({ file: z.object({ path: z.string() }) }), "zod 3": z3.object({ file: z3.object({ path: z3.string() }) }),
    "a JSON schema": { type: "object", properties: { file: { type: "object", properties: { path: { type: "string" } } } } },
    "a transform that throws": z.object({ file: z.any() }).transform(() => { throw new RangeError("no"); }),
  };
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      for (const [name, schema] of Object.entries(schemas)) {
        const { ran, work } = recorder();
        const bare = tool(work, { ...NAMED, schema });
        const theirs = await bare.invoke({ file: { path: 1 } }).catch((error) => error);
        const text = await bare.invoke("a").catch((error) => error);
        const [made] = protectTools(client, [bare], { tool: "files" });
        assert.deepEqual((await made.invoke("a").catch((error) => error)).message, text.message, name);
        const ours = await made.invoke({ file: { path: 1 } }).catch((error) => error);
        assert.deepEqual([ours.constructor, ours.message, ours.output], [theirs.constructor, theirs.message, theirs.output], name);
        made.verboseParsingErrors = true;
        assert.match((await made.invoke({ file: { path: 1 } }).catch((error) => error)).message, /Details: ./, name);
        assert.deepEqual(ran, []);
      }
    });
    assert.deepEqual(edge.seen, []);
  });
});

const NOT_PLAIN = {
  "a date": z.coerce.date(), "a map": z.string().transform((at) => new Map([[at, 1]])), "a set": z.string().transform((at) => new Set([at])), "undefined": z.string().transform(() => undefined),
  "a function": z.string().transform((at) => () => at), "a class": z.string().transform((at) => new URL(`https://${at}`)), "NaN": z.string().transform(() => NaN), "a promise": z.string().transform((at) => [Promise.resolve(at)]),
  "a getter": z.string().transform((at) => ({ get at() { return at; } })), "a proxy": z.string().transform((at) => new Proxy({ at }, {})), "a bigint": z.string().transform(() => 1n),
  "a date of zod 3": z3.coerce.date(),
};
cases(FEATURE, "what a schema makes that is no plain JSON is a denial", NOT_PLAIN, async (at) => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      const { ran, work } = recorder();
      const schema = "_zod" in at ? z.object({ at }) : z3.object({ at });
      const [made] = protectTools(client, [tool(work, { ...NAMED, schema })], { tool: "files" });
      for (const way of ["invoke", "call"]) await assert.rejects(made[way]({ at: "2026-01-01" }), (error) => error.name === "DeniedUnfreezable" && /`at`/.test(error.message));
      assert.deepEqual([ran, edge.seen], [[], []]);
    });
  });
});

let looked = 0;
const ODD = {
  "a getter": { get path() { looked += 1; return "/tmp/a"; } }, "a proxy": new Proxy({ path: "/tmp/a" }, { get: (of, name) => (looked += 1, of[name]) }), "a toJSON": { path: "/tmp/a", toJSON: () => ({ path: EVIL }) },
  "a getter within": { path: "/tmp/a", file: { get path() { looked += 1; return EVIL; } } }, "a boxed text": { path: Object("/tmp/a") }, "a class": Object.assign(new (class File {})(), { path: "/tmp/a" }), "a prototype": Object.create({ path: "/tmp/a" }),
};
cases(FEATURE, "an input that could say one thing and another is a denial, before the schema sees it", ODD, async (given) => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      const { ran, work } = recorder();
      let read = 0;
      const schema = z.looseObject({ path: z.any().transform((path) => (read += 1, String(path))) });
      for (const passedOn of [[], ["state"]]) {
        const [made] = protectTools(client, [tool(work, { ...NAMED, schema })], { tool: "files", passedOn });
        for (const input of [given, call(given)]) await assert.rejects(made.invoke(input), { name: "DeniedUnfreezable" });
      }
      assert.deepEqual([ran, edge.seen, read, looked], [[], [], 0, 0]);
    });
  });
});

test(FEATURE, "an input that is changed while the schema reads it, and while it is asked for, changes nothing", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      const { ran, work } = recorder();
      const given = structuredClone(FILE);
      const kept = [];
      const schema = z.object({
        file: z.any().transform(async (file) => {
          spoil(given);
          kept.push(file);
          await sleep(1);
          return file;
        }),
      });
      edge.before.authorize = () => kept.forEach(spoil);
      const [made] = protectTools(client, [tool(work, { ...NAMED, schema })], { tool: "files" });
      await made.invoke(given);
      holds(edge, ran, FILE);
    });
  });
});

test(FEATURE, "an edit runs where the schema takes it and makes nothing else of it", async () => {
  const edits = [
    // Schema, what is asked for, the edit, and whether it runs.
    [z.object({ size: z.coerce.number(), more: z.string().default("a") }), { size: "7" }, { size: 8, more: "b" }, true],
    [z.object({ size: z.coerce.number() }), { size: "7" }, { size: "8" }, false],
    [z.object({ path: z.string().trim() }), { path: " a " }, { path: "b" }, true],
    [z.object({ path: z.string().trim() }), { path: " a " }, { path: " b " }, false],
    [z.object({ path: z.string().transform((path) => path.length) }), { path: "abc" }, { path: 4 }, false],
    [z.object({ path: z.string().transform((path) => `/tmp/${path}`) }), { path: "a" }, { path: "/tmp/b" }, false],
    [{ type: "object", properties: { path: { type: "string" } } }, { path: "a" }, { path: "b" }, true],
    [{ type: "object", properties: { path: { type: "string" } } }, { path: "a" }, { path: 1 }, false],
    [undefined, "a", { input: "b" }, true], [undefined, "a", { input: 1 }, false], [undefined, "a", { input: { input: "b" } }, false],
  ];
  for (const [schema, given, edited, runs] of edits) {
    await withEdge(async (edge) => {
      edge.decision = "require_approval";
      edge.edited = { tool: "files", action: "write", resource: null, mutates_state: true, parameters: edited };
      await withClient(edge.url, async (client) => {
        const { ran, work } = recorder();
        const [made] = protectTools(client, [tool(work, { ...NAMED, schema })], { tool: "files", acceptEdits: true });
        const invoked = made.invoke(given);
        if (!runs) await assert.rejects(invoked, { name: "DeniedByApprover", code: "approval_edited" });
        else await invoked;
        assert.deepEqual(ran.map((one) => parametersOf(one.given)), runs ? [edited] : []);
        assert.equal(edge.sent("consume").length, runs ? 1 : 0);
      });
    });
  }
});

test(FEATURE, "a schema that makes a call of its input is refused, and an accessor is not passed on", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      const { ran, work } = recorder();
      const calling = z.object({ path: z.string() }).transform((args) => ({ type: "tool_call", args }));
      const [one] = protectTools(client, [tool(work, { ...NAMED, schema: calling })], { tool: "files" });
      await assert.rejects(one.invoke({ path: "/tmp/a" }), { name: "DeniedUnfreezable" });
      const [other] = protectTools(client, [tool(work, { ...NAMED, schema: z.object({ path: z.string(), state: z.any() }) })], { tool: "files", passedOn: ["state"] });
      for (const input of [{ path: "a", get state() { return EVIL; } }, new Proxy({ path: "a", state: 1 }, {})]) await assert.rejects(other.invoke(input), { name: "DeniedUnfreezable" });
      assert.deepEqual([ran, edge.seen], [[], []]);
    });
  });
});

test(FEATURE, "what is passed on goes through the schema, and is neither hashed nor kept from it", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      const [ran, state] = [[], new Map([[1, 1]])];
      const schema = z.object({ path: z.string().default("/tmp/a"), state: z.instanceof(Map) });
      const [made] = protectTools(client, [tool((given) => (ran.push(given), "a"), { ...NAMED, schema })], { tool: "files", passedOn: ["state"] });
      for (const input of [{ state }, call({ state })]) await made.invoke(input, { callbacks: [new Tracer()] });
      assert.equal(ran.length, 2);
      for (const given of ran) assert.deepEqual([given.path, given.state], ["/tmp/a", state]);
      assert.deepEqual(edge.sent("authorize").map(({ tool_call: { parameters } }) => parameters), [{ path: "/tmp/a" }, { path: "/tmp/a" }]);
    });
  });
});
