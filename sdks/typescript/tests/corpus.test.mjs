// Every vector of the shared corpus: the same bytes and the same reasons as in every other language.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { createReadStream, readFileSync } from "node:fs";
import path from "node:path";

import { actionHash, canonicalize, CanonError, ConfigError, parseStrict, receipts } from "aegisagent";

import { cases, test } from "./feature.mjs";
import { CORPUS, internal, PACKAGE } from "./where.mjs";

const linesOf = (...where) => readFileSync(path.join(CORPUS, ...where), "utf8").trimEnd().split("\n").map((line) => JSON.parse(line));
const vectors = (name) => linesOf("canonical", name);

test("canonicalize", "the corpus is there, and all of it is looked at", () => {
  const [accepted, rejected] = [vectors("accepted.jsonl"), vectors("rejected.jsonl")];
  assert.ok(accepted.length > 300 && rejected.length > 300);
  const all = [...accepted, ...rejected];
  assert.ok(all.length >= 10_000, String(all.length));
  assert.equal(new Set(all.map(({ id }) => id)).size, all.length);
});

const inputOf = (vector) => Buffer.from(vector.input, "base64");
const limitsOf = (vector) => (vector.limits ? { maxBytes: vector.limits.max_bytes } : {});

test("canonicalize", "every accepted vector has its bytes and its hash", () => {
  for (const vector of vectors("accepted.jsonl")) {
    const found = canonicalize(inputOf(vector), limitsOf(vector));
    assert.equal(Buffer.from(found).toString("base64"), vector.canonical, vector.id);
    assert.equal(createHash("sha256").update(found).digest("hex"), vector.sha256, vector.id);
  }
});

test("canonicalize", "every rejected vector has its reason", () => {
  for (const vector of vectors("rejected.jsonl")) {
    assert.throws(() => canonicalize(inputOf(vector), limitsOf(vector)), (error) => error instanceof CanonError && error.reason === vector.reason, vector.id);
  }
});

test("canonicalize", "the program for other languages' gates says the same", async () => {
  const files = ["accepted.jsonl", "rejected.jsonl"].map((name) => path.join(CORPUS, "canonical", name));
  const done = spawnSync(process.execPath, [path.join(PACKAGE, "tools/corpus.mjs"), ...files], { encoding: "utf8", maxBuffer: 1 << 26 });
  assert.equal(done.status, 0, done.stderr);
  const said = done.stdout.trimEnd().split("\n").map((line) => JSON.parse(line));
  const expected = [
    ...vectors("accepted.jsonl").map(({ id, sha256 }) => ({ id, canonical_sha256: sha256 })), ...vectors("rejected.jsonl").map(({ id, reason }) => ({ id, reason })),
  ];
  assert.deepEqual(said, expected);
});

const INTEROPERABILITY = [
  ["github", "merge_pull_request", "payments-service#482", true, { base_branch: "main" }, "6e729c788f908c95e564d246353ceeee0895630175d19ee34b06fdec32f2cc60"],
  ["github", "create_pull_request", null, true, { title: "Café ☕ déjà vu" }, "30ea153603d6576084ec4d431ec3ff9579ba69eff656101fcbbec5a8c22d0be4"],
  ["t", "x", null, false, { z: 1, a: 2, é: 3 }, "109d964419d41d68dec2667a0e42b1d105c42a8df389b2ffab7b4e0e7c502743"],
  ["github", "merge_pull_request", "r", true, { pr_number: 482, draft: false }, "3781fa8f7d8a5cd13c2686a3e71bdb2fc52d2fd376a67b6e520ce7358eb55bf6"],
];

test("action-hash", "action hashes are those of the contract, of a value and of the frozen text", async () => {
  const { freeze } = await internal("action.js");
  for (const [tool, action, resource, mutates, parameters, expected] of INTEROPERABILITY) {
    assert.equal(actionHash(tool, action, resource, mutates, parameters), expected);
    assert.equal(freeze(tool, action, resource, mutates, parameters).actionHash, expected);
  }
});

const TYPES = { tool: "string", action: "string", mutates_state: "boolean", parameters: "object" };

/** Whether it is the five of an action, and no more. */
function isAction(value) {
  if (typeof value !== "object" || value === null || Object.keys(value).sort().join() !== "action,mutates_state,parameters,resource,tool") return false;
  const isObject = value.parameters !== null && !Array.isArray(value.parameters);
  return isObject && (value.resource === null || typeof value.resource === "string") && Object.entries(TYPES).every(([name, type]) => typeof value[name] === type);
}

/** Whether a whole number stands in it that no value here can say exactly. */
function hasVast(value) {
  if (typeof value === "number") return Number.isInteger(value) && !Number.isSafeInteger(value);
  return typeof value === "object" && value !== null && Object.values(value).some(hasVast);
}

test("action-hash", "every action of the corpus has its hash", () => {
  const found = { hashed: 0, vast: 0 };
  for (const vector of vectors("accepted.jsonl")) {
    const value = parseStrict(inputOf(vector), limitsOf(vector));
    if (!isAction(value)) continue;
    const five = [value.tool, value.action, value.resource, value.mutates_state, value.parameters];
    if (hasVast(value.parameters)) {
      found.vast += 1;
      assert.throws(() => actionHash(...five), (error) => error instanceof CanonError && error.reason === "integer_out_of_range", vector.id);
    } else {
      found.hashed += 1;
      assert.equal(actionHash(...five), vector.sha256, vector.id);
    }
  }
  assert.ok(found.hashed >= 150 && found.vast >= 50, JSON.stringify(found));
});

test("action-hash", "what is no action has no hash", () => {
  for (const bad of [[1, "a", null, true, {}], ["t", "a", 1, true, {}], ["t", "a", null, 1, {}], ["t", "a", null, true, []], ["\ud800", "a", null, true, {}]]) {
    assert.throws(() => actionHash(...bad), CanonError);
  }
});

const index = JSON.parse(readFileSync(path.join(CORPUS, "receipts/index.json"), "utf8"));
const named = Object.fromEntries(index.cases.map((one, place) => [`${place} ${one.file}: ${one.about}`, one]));

cases("verify-receipts", "every export has its verdict", named, async (one) => {
  const roots = one.root_pinned ? receipts.Roots.read([path.join(CORPUS, "receipts/root.pub")]) : null;
  const file = path.join(CORPUS, "receipts", one.file);
  // Parts of a few bytes: where a part ends means nothing.
  const report = await receipts.verifyExport(createReadStream(file, { highWaterMark: 97 }), roots);
  assert.equal(report.verdict, one.verdict);
  if (one.failure === null) {
    assert.deepEqual([report.failure, report.receipts], [null, one.lines]);
  } else {
    const { message, ...found } = report.failure;
    assert.ok(message);
    assert.deepEqual(found, one.failure);
  }
  assert.deepEqual(await receipts.verifyExport(readFileSync(file), roots), report);
});

const judged = linesOf("receipts", "cases.jsonl");

/** What the program of this SDK would say, and with which exit. */
async function verdictOf({ input, roots }) {
  try {
    const report = await receipts.verifyExport(Buffer.from(input, "base64"), receipts.Roots.read(roots));
    if (report.failure === null) return { exit: 0, report };
    const { message, ...failure } = report.failure;
    assert.ok(message);
    return { exit: 1, report: { ...report, failure } };
  } catch (error) {
    if (error instanceof receipts.BadInput || error instanceof ConfigError) return { exit: 2, report: null };
    throw error;
  }
}

test("verify-receipts", "the corpus of cases is there, with every exit and verdict", () => {
  assert.ok(judged.length >= 950, String(judged.length));
  assert.deepEqual([...new Set(judged.map(({ exit }) => exit))].sort(), [0, 1, 2]);
  assert.deepEqual([...new Set(judged.map(({ report }) => report?.verdict))].sort(), ["invalid", "self-consistent", "valid", undefined]);
});

test("verify-receipts", "every case has its exit and its report", async () => {
  for (const one of judged) {
    assert.deepEqual(JSON.parse(JSON.stringify(await verdictOf(one))), { exit: one.exit, report: one.report }, `${one.id}: ${one.description}`);
  }
});
