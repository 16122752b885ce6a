// The trust context: it follows the work, only tightens, and is sent with every call.

import assert from "node:assert/strict";
import { EventEmitter, once } from "node:events";
import { setTimeout as sleep } from "node:timers/promises";
import { Worker } from "node:worker_threads";

import {
  carriedIn, carry, combine, ConfigError, ContextWorker, currentRun, currentSignal, currentTrust, currentUser, inContext, onBehalfOf, protect, run, RunTokens, SOURCE_TRUST, sourceTrust,
  withSignal,
} from "aegisagent";

import { DEFAULTS, recorder, withClient } from "./calling.mjs";
import { withEdge } from "./fake.mjs";
import { test } from "./feature.mjs";
import { internal } from "./where.mjs";

const WORDS = ["trusted_internal_signed", "trusted_internal_unsigned", "semi_trusted_customer", "unknown", "untrusted_external", "malicious_suspected"];
const pairs = WORDS.flatMap((one) => WORDS.map((other) => [one, other]));
const stricter = (one, other) => WORDS[Math.max(WORDS.indexOf(one), WORDS.indexOf(other))];
const here = () => [currentTrust(), currentRun(), currentUser()];

test("trust-order", "the order is the contract's", () => {
  assert.deepEqual(SOURCE_TRUST, WORDS);
  assert.ok(Object.isFrozen(SOURCE_TRUST));
  for (const [one, other] of pairs) assert.equal(combine(one, other), stricter(one, other));
});

test("trust-context", "the default is unknown, and the first label holds", () => {
  assert.deepEqual(here(), ["unknown", null, null]);
  assert.equal(sourceTrust("trusted_internal_unsigned", currentTrust), "trusted_internal_unsigned");
  assert.equal(currentTrust(), "unknown");
});

test("trust-context", "a label within another only tightens, and leaving restores", () => {
  for (const [outer, inner] of pairs) {
    sourceTrust(outer, () => {
      assert.equal(sourceTrust(inner, currentTrust), stricter(outer, inner));
      assert.equal(currentTrust(), outer);
    });
  }
  assert.throws(() => sourceTrust("untrusted_external", () => { throw new RangeError("mine"); }), RangeError);
  assert.equal(currentTrust(), "unknown");
});

test("trust-context", "a misspelt label is an error where the author wrote it, and unknown where a server did", async () => {
  const { readTrust } = await internal("trust.js");
  for (const word of ["untrusted_extrenal", "UNKNOWN", "", null, undefined, 3, "toString", ["unknown"]]) {
    assert.throws(() => sourceTrust(word, () => 1), ConfigError);
    assert.equal(readTrust(word), "unknown");
  }
  for (const block of [(work) => sourceTrust("unknown", work), (work) => run("r", work), (work) => onBehalfOf("u", work)]) assert.throws(() => block(undefined), ConfigError);
});

test("trust-context", "a label follows await, promises and timers, and does not leak back", async () => {
  const child = async (label) => await sourceTrust(label, async () => {
    await sleep(1);
    return currentTrust();
  });
  await sourceTrust("semi_trusted_customer", async () => {
    const found = await Promise.all(WORDS.map(child));
    assert.deepEqual(found, WORDS.map((word) => stricter("semi_trusted_customer", word)));
    assert.equal(currentTrust(), "semi_trusted_customer");
    const later = [new Promise((done) => setTimeout(() => done(currentTrust()), 1)), new Promise((done) => setImmediate(() => done(currentTrust()))),
      new Promise((done) => queueMicrotask(() => done(currentTrust()))), Promise.resolve().then(currentTrust)];
    assert.deepEqual(await Promise.all(later), Array(4).fill("semi_trusted_customer"));
  });
  assert.equal(currentTrust(), "unknown");
});

test("trust-context", "an iterator that is read outside of a block does not loosen what reads it", async () => {
  const work = sourceTrust("trusted_internal_signed", () => (async function* () { yield currentTrust(); })());
  await sourceTrust("untrusted_external", async () => {
    for await (const label of work) assert.notEqual(label, "trusted_internal_signed");
  });
});

test("trust-threads", "a function that is carried knows label, run and user of where it was made", () => {
  const emitter = new EventEmitter();
  const seen = [];
  sourceTrust("untrusted_external", () => run("r", () => onBehalfOf({ id: "u", role: "dev" }, () => emitter.on("event", inContext((...given) => seen.push([...here(), given]))))));
  emitter.emit("event", 1, 2);
  assert.deepEqual(seen, [["untrusted_external", "r", { id: "u", role: "dev" }, [1, 2]]]);
  for (const [made, called] of pairs) {
    const carried = sourceTrust(made, () => inContext(currentTrust));
    assert.equal(sourceTrust(called, carried), stricter(made, called));
  }
  assert.equal(run("r", inContext(currentRun)), "r", "where nothing was set, what is there holds");
});

const WORKER = `
import { parentPort, Worker, workerData } from "node:worker_threads";
import { carriedIn, ContextWorker, currentTrust, currentRun, currentUser, sourceTrust } from "aegisagent";
const here = () => [currentTrust(), currentRun(), currentUser()];
parentPort.postMessage({ data: workerData, at: here(), loosened: sourceTrust("trusted_internal_signed", currentTrust) });
parentPort.on("message", ({ context, nested }) => {
  if (context) parentPort.postMessage(carriedIn(context, here));
  if (nested) new Worker(nested, { eval: true }).once("message", (message) => parentPort.postMessage(message));
  if (!context && !nested) parentPort.close();
});
`;
const SOURCE = new URL(`data:text/javascript,${encodeURIComponent(WORKER.replaceAll('"aegisagent"', JSON.stringify(import.meta.resolve("aegisagent"))))}`);

/** The messages of a thread, one after the other, from its start on. */
function messagesOf(worker) {
  // A test that fails leaves no thread that the others wait for.
  worker.unref();
  const waiting = [];
  const come = [];
  worker.on("message", (message) => (waiting.length > 0 ? waiting.shift()(message) : come.push(message)));
  return () => (come.length > 0 ? Promise.resolve(come.shift()) : Promise.race([new Promise((resolve) => waiting.push(resolve)), once(worker, "error").then(([error]) => Promise.reject(error))]));
}

test("trust-threads", "a worker thread that is started through the helper has label, run and user, and only tightens them", async () => {
  const worker = sourceTrust("untrusted_external", () => run("r", () => onBehalfOf("u", () => new ContextWorker(SOURCE, { workerData: 7 }))));
  const plain = sourceTrust("trusted_internal_signed", () => new Worker(SOURCE));
  const [next, nextOfPlain] = [messagesOf(worker), messagesOf(plain)];
  assert.deepEqual(await next(), { data: 7, at: ["untrusted_external", "r", { id: "u" }], loosened: "untrusted_external" });
  assert.deepEqual((await nextOfPlain()).at, ["unknown", null, null], "a thread of another kind knows nothing");
  worker.postMessage({ nested: `const { parentPort } = require("node:worker_threads"); import(${JSON.stringify(import.meta.resolve("aegisagent"))}).then((a) => parentPort.postMessage(a.currentTrust()));` });
  assert.equal(await next(), "unknown", "nor does one that such a thread starts otherwise");
  for (const one of [worker, plain]) one.postMessage({});
});

test("trust-threads", "work that is sent to a thread carries its context, and what was carried is looked at", async () => {
  const worker = sourceTrust("semi_trusted_customer", () => new ContextWorker(SOURCE));
  const next = messagesOf(worker);
  await next();
  for (const label of WORDS) {
    worker.postMessage({ context: sourceTrust(label, () => run("task", carry)) });
    assert.deepEqual(await next(), [stricter("semi_trusted_customer", label), "task", null]);
  }
  worker.postMessage({});
  for (const bad of [null, 1, { label: "trusted" }, { label: null, runId: "a\nb" }, { user: { id: "" } }]) assert.throws(() => carriedIn(bad, () => 1), ConfigError);
});

test("trust-context", "a signal within another ends with either", () => {
  const [outer, inner] = [new AbortController(), new AbortController()];
  withSignal(outer.signal, () => {
    const both = withSignal(inner.signal, currentSignal);
    assert.equal(currentSignal(), outer.signal);
    outer.abort();
    assert.equal(both.aborted, true);
  });
  assert.equal(currentSignal(), null);
  assert.throws(() => withSignal({ aborted: true }, () => 1), ConfigError);
});

test("trust-token", "a call says its label, run and user, and echoes the token", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      const fn = recorder();
      const one = protect(client, { ...DEFAULTS, channel: "c", containsSensitiveData: true }, fn);
      const other = protect(client, DEFAULTS, fn);
      await sourceTrust("semi_trusted_customer", () => run("r", () => onBehalfOf({ id: "u", role: "role" }, async () => {
        await one({ note: "a" });
        edge.replace.authorize = ([status, body]) => [status, { ...body, root_trust_level: "untrusted_external", trust_token: "strict" }];
        await other({ note: "a" });
        edge.replace = {};
        await other({ note: "a" });
        await other({ note: "a" });
      })));
      await run("other", () => other({ note: "a" }));
      await other({ note: "a" });
      await other({ note: "a" });
    });
    const asked = edge.sent("authorize");
    assert.deepEqual(asked[0].context, { source_trust: "semi_trusted_customer", contains_sensitive_data: true, channel: "c" });
    assert.deepEqual(asked[0].user, { id: "u", role: "role" });
    assert.deepEqual(asked.map(({ trace }) => trace), [
      { run_id: "r" }, { run_id: "r", trust_token: "token" }, { run_id: "r", trust_token: "strict" }, { run_id: "r", trust_token: "strict" }, { run_id: "other" }, {}, { trust_token: "token" },
    ]);
    assert.deepEqual([asked.at(-1).context.source_trust, "user" in asked.at(-1)], ["unknown", false]);
  });
});

test("trust-token", "the label is that of the call, not of when an answer comes", async () => {
  await withEdge(async (edge) => {
    edge.decision = "require_approval";
    edge.statuses = ["PENDING", "APPROVED"];
    await withClient(edge.url, async (client) => {
      const fn = protect(client, DEFAULTS, () => currentTrust());
      const running = sourceTrust("semi_trusted_customer", () => run("r", () => fn({ note: "a" })));
      await sourceTrust("untrusted_external", () => sleep(10));
      assert.equal(await running, "semi_trusted_customer", "what runs has the label of its call");
      assert.equal(client.trustTokens.get("r"), "token");
    });
  });
});

test("trust-token", "of tokens the strictest is kept, of equals the newer, and the memory of runs is bounded", () => {
  const tokens = new RunTokens();
  for (const [label, token] of [["unknown", "a"], ["semi_trusted_customer", "b"], ["unknown", "c"], ["untrusted_external", "d"], ["unknown", "e"]]) tokens.keep("r", label, token);
  assert.equal(tokens.get("r"), "d");
  tokens.keep(null, "unknown", "implicit");
  for (let number = 0; number < 9_998; number += 1) tokens.keep(String(number), "unknown", "t");
  tokens.keep("r", "unknown", "late");
  for (let number = 0; number < 10; number += 1) tokens.keep(`new ${number}`, "unknown", "t");
  assert.deepEqual([tokens.get("r"), tokens.get(null), tokens.get("0"), tokens.get("9997")], ["d", null, null, "t"]);
});

test("trust-context", "a run id and a user are names that a server takes", () => {
  for (const bad of ["", "x".repeat(257), "a\nb", "\ud800", "a\u2028b", "\u202e", null, 7, undefined]) {
    assert.throws(() => run(bad, () => 1), ConfigError);
    assert.throws(() => onBehalfOf({ id: bad }, () => 1), ConfigError);
    if (bad !== undefined) assert.throws(() => onBehalfOf({ id: "u", role: bad }, () => 1), ConfigError);
  }
  assert.throws(() => onBehalfOf(null, () => 1), ConfigError);
  assert.equal(run("😀".repeat(256), currentRun).length, 512);
});
