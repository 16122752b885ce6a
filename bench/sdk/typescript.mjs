// Overhead of `protect` over the bare HTTP call, and of the strict canonical form over the npm package canonicalize. Figures only, no verdict.

import { mkdirSync, writeFileSync } from "node:fs";
import http from "node:http";
import os from "node:os";
import { fileURLToPath } from "node:url";

import { askerOf } from "../../sdks/typescript/dist/client.js";
import { canonicalize, canonicalizeValue, Client, protect, run, sourceTrust } from "../../sdks/typescript/dist/index.js";
import library from "../../sdks/typescript/node_modules/canonicalize/lib/canonicalize.js";
import { withAegis, withWorld } from "../../sdks/typescript/tests/harness.mjs";

const OUT = fileURLToPath(new URL("../out/sdk-typescript.json", import.meta.url));
const [ROUNDS, CALLS, TASKS] = [5, 400, 32];
const PARAMETERS = { id: "1", email: "dana@example.test" };

/** Median and p99 of milliseconds, in microseconds. */
function quantiles(samples) {
  const ordered = samples.toSorted((one, other) => one - other);
  const middle = (ordered[Math.floor((ordered.length - 1) / 2)] + ordered[Math.ceil((ordered.length - 1) / 2)]) / 2;
  return { p50_us: middle * 1000, p99_us: ordered[Math.ceil(ordered.length * 0.99) - 1] * 1000 };
}

async function timed(work, count) {
  const samples = [];
  for (let number = 0; number < count; number += 1) {
    const began = performance.now();
    await work();
    samples.push(performance.now() - began);
  }
  return samples;
}

function timedAtOnce(work, count) {
  return Array.from({ length: count }, () => {
    const began = performance.now();
    work();
    return performance.now() - began;
  });
}

/** The same requests by the HTTP library alone: authorize, and what came of it. */
function bare(url, token, withOutcome) {
  const agent = new http.Agent({ keepAlive: true });
  const post = (path, body) =>
    new Promise((resolve, reject) => {
      const text = JSON.stringify(body);
      const headers = { authorization: `Bearer ${token}`, "content-type": "application/json", "content-length": Buffer.byteLength(text) };
      const request = http.request(`${url}${path}`, { method: "POST", agent, headers }, (reply) => {
        const parts = [];
        reply.on("data", (part) => parts.push(part));
        reply.on("end", () => resolve([reply.statusCode, JSON.parse(Buffer.concat(parts).toString())]));
      });
      request.on("error", reject);
      request.end(text);
    });
  const body = {
    agent: { id: "bot", environment: "production" }, context: { source_trust: "trusted_internal_unsigned" }, trace: { run_id: "bare" },
    tool_call: { tool: "crm", action: "update_customer", resource: "customer-1", mutates_state: true, parameters: PARAMETERS },
  };
  return async () => {
    const [, answer] = await post("/v1/authorize", body);
    if (answer.decision !== "allow") throw new Error(`the bare call got ${answer.decision}`);
    if (!withOutcome) return;
    const [status] = await post(`/v1/decisions/${answer.decision_id}/outcome`, { status: "ok", executed_hash: answer.action_hash });
    if (status !== 201) throw new Error(`the bare outcome got ${status}`);
  };
}

function protectedCall(url, token, withOutcome) {
  const client = new Client({ url, token });
  if (!withOutcome) askerOf(client).report = async () => undefined;
  const update = protect(client, { tool: "crm", action: "update_customer", resource: "customer-1" }, () => undefined);
  return () => sourceTrust("trusted_internal_unsigned", () => run("protected", () => update(PARAMETERS)));
}

/** The two in turn, so that the machine's mood falls on both. */
async function compare(url, token) {
  const found = {};
  for (const withOutcome of [false, true]) {
    const works = { bare: bare(url, token, withOutcome), protect: protectedCall(url, token, withOutcome) };
    const samples = { bare: [], protect: [] };
    for (const work of Object.values(works)) await timed(work, 50);
    for (let round = 0; round < ROUNDS; round += 1) for (const [name, work] of Object.entries(works)) samples[name].push(...(await timed(work, CALLS)));
    found[withOutcome ? "with_outcome" : "authorize_alone"] = Object.fromEntries(Object.entries(samples).map(([name, taken]) => [name, quantiles(taken)]));
  }
  return found;
}

/** Calls a second of many tasks on one client, with the outcomes. */
async function atOnce(url, token) {
  const client = new Client({ url, token });
  const update = protect(client, { tool: "crm", action: "update_customer" }, () => undefined);
  return await sourceTrust("trusted_internal_unsigned", () => run("many", async () => {
    const many = async () => {
      for (let number = 0; number < CALLS / 8; number += 1) await update({ id: "1" });
    };
    await update({ id: "1" });
    const began = performance.now();
    await Promise.all(Array.from({ length: TASKS }, many));
    client.close();
    return (TASKS * (CALLS / 8)) / ((performance.now() - began) / 1000);
  }));
}

/** Plain parameters whose canonical form has about `size` bytes: texts, numbers, nesting, some of it not ASCII. */
function parameters(size) {
  let state = 1;
  const below = (end) => {
    state = (state * 48_271) % 2_147_483_647;
    return state % end;
  };
  const value = {};
  while (Buffer.byteLength(library(value)) < size) {
    value[`key-${below(10 ** 6)}`] = {
      text: "Café ☕ ".repeat(1 + below(5)), count: below(10 ** 6), ratio: below(10 ** 9) / 10 ** 9, flag: true, none: null,
      items: Array.from({ length: 1 + below(5) }, (_, number) => `item ${number}`),
    };
  }
  return value;
}

function canonicalForms() {
  const found = {};
  for (const [size, count] of [[1024, 5000], [100 * 1024, 200]]) {
    const value = parameters(size);
    const text = Buffer.from(JSON.stringify(value));
    const works = {
      "canonicalize package (value)": () => Buffer.from(library(value)), "canonicalizeValue(value)": () => canonicalizeValue(value),
      "JSON.parse + canonicalize package (text)": () => Buffer.from(library(JSON.parse(text.toString()))), "canonicalize(text)": () => canonicalize(text),
    };
    const forms = new Set(Object.values(works).map((work) => Buffer.from(work()).toString("base64")));
    if (forms.size !== 1) throw new Error("the forms differ");
    for (const work of Object.values(works)) timedAtOnce(work, count);
    found[`${size / 1024} KiB`] = Object.fromEntries(Object.entries(works).map(([name, work]) => [name, quantiles(timedAtOnce(work, count))]));
  }
  return found;
}

function show(figures) {
  const row = (name, ...values) => console.log(name.padEnd(54) + values.map((value) => value.toFixed(value < 1000 ? 1 : 0).padStart(10)).join(""));
  console.log(`${"".padEnd(54)}    p50 µs    p99 µs`);
  for (const [what, taken] of Object.entries(figures.calls)) {
    for (const [name, { p50_us: p50, p99_us: p99 }] of Object.entries(taken)) row(`${what.replaceAll("_", " ")}, ${name}`, p50, p99);
    row("  protect adds", taken.protect.p50_us - taken.bare.p50_us);
  }
  row(`${TASKS} tasks on one client, calls with outcome/s`, figures.calls_per_s_of_32_tasks);
  for (const [size, taken] of Object.entries(figures.canonical)) for (const [name, { p50_us: p50, p99_us: p99 }] of Object.entries(taken)) row(`${size}, ${name}`, p50, p99);
}

const figures = await withAegis((aegis) => withWorld(aegis, async (world) => {
  const token = world.agent.agent_token.reveal();
  return { calls: await compare(aegis.url, token), calls_per_s_of_32_tasks: await atOnce(aegis.url, token) };
}));
Object.assign(figures, { canonical: canonicalForms(), node: process.version, machine: os.cpus()[0]?.model ?? os.arch() });
show(figures);
mkdirSync(new URL("../out/", import.meta.url), { recursive: true });
writeFileSync(OUT, `${JSON.stringify(figures, null, 2)}\n`);
console.log(`\nwritten to ${OUT}`);

