// Forged exports beyond the corpus, hashed and signed rightly where that is not the point: the same verdict as the server's own verifier.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { createHash, createPrivateKey, createPublicKey, sign } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";

import { canonicalize, ConfigError, receipts } from "aegisagent";

import { cases, test } from "./feature.mjs";

const { BadInput, Roots, VerifyError, verifyEvent, verifyExport, VerifyingKey } = receipts;

const sha256 = (...parts) => parts.reduce((hash, part) => hash.update(part), createHash("sha256")).digest();
const PRIVATE = createPrivateKey({ key: Buffer.concat([Buffer.from("302e020100300506032b657004220420", "hex"), sha256("a test's key")]), format: "der", type: "pkcs8" });
const PUBLIC = createPublicKey(PRIVATE).export({ format: "der", type: "spki" }).subarray(-32);
const ROOT = PUBLIC.toString("base64");
const KEY_ID = sha256(PUBLIC).toString("hex").slice(0, 16);

/** A number that is written with a fraction. */
class Fraction {
  constructor(text) {
    this.text = text;
  }

  toJSON() {
    return `#${this.text}#`;
  }
}
const textOf = (value) => JSON.stringify(value).replace(/"#([^"]*)#"/g, "$1");
const hashOf = (value) => sha256(canonicalize(textOf(value))).toString("hex");

/** An event that is not sealed yet. */
function event(seq, phase, columns = {}) {
  return [{
    event_id: `01a202b2-c500-7000-8000-${String(seq).padStart(12, "0")}`, tenant_id: "acme", lane: "acme.edge-1.0", seq, edge_id: "edge-1", source: "edge", ts: `2026-11-22T10:00:0${seq}.000000Z`,
    kind: "authorize_decision", clock_suspect: false, matched_policies: ["p"], mutates_state: true, ...columns,
  }, phase];
}

/** A lane, each receipt linked to the one before, all of them signed in one commit. `change(seq, body)` may change a body before it is hashed. */
function sealed(drafts, change = () => undefined) {
  let previous = "";
  const lines = drafts.map(([columns, phase]) => {
    const digestForm = Object.fromEntries(Object.entries(columns).filter(([, value]) => value !== null));
    const body = { schema: "aegis-receipt-1", phase, key_id: KEY_ID, detail: null, prev_receipt_hash: previous };
    for (const key of ["event_id", "tenant_id", "lane", "seq", "ts", "matched_policies", "mutates_state", "agent_id"]) body[key] = columns[key] ?? null;
    body.event_digest = hashOf(digestForm);
    change(columns.seq, body);
    previous = hashOf(body);
    return { ...columns, receipt: { ...body, receipt_hash: previous }, receipt_hash: previous };
  });
  const paths = lines.map(() => []);
  let level = lines.map((line) => sha256(Buffer.from([0]), Buffer.from(line.receipt_hash, "hex")));
  for (let height = 0; level.length > 1; height += 1) {
    paths.forEach((steps, place) => {
      const sibling = level[(place >> height) ^ 1];
      if (sibling) steps.push(sibling.toString("hex"));
    });
    const next = [];
    for (let place = 0; place < level.length; place += 2) next.push(level[place + 1] ? sha256(Buffer.from([1]), level[place], level[place + 1]) : level[place]);
    level = next;
  }
  const signature = sign(null, Buffer.from(`aegis-commit-1\n${lines.length}\n${level[0].toString("hex")}\n`), PRIVATE).toString("base64");
  lines.forEach((line, index) => {
    line.proof = { key_id: KEY_ID, size: lines.length, index, path: paths[index], signature };
  });
  return lines;
}

const plain = () => sealed([event(1, "open"), event(2, "decision", { agent_id: "a" }), event(3, "decision"), event(4, "close")]);

/** A lane in which the body with this seq was changed before it was hashed and signed. */
const withBody = (change, seq = 2) => sealed([event(1, "open"), event(2, "decision", { agent_id: "a" }), event(3, "decision")], (found, body) => (found === seq ? change(body) : undefined));

/** A lane of which one line was changed after it was sealed. */
function withLine(change, number = 1) {
  const lines = plain();
  change(lines[number]);
  return lines;
}

const set = (changes) => (of) => Object.assign(of, changes);
const drop = (key) => (of) => delete of[key];
const inProof = (changes) => (line) => Object.assign(line.proof, changes);

const CASES = {
  "as it should be": [plain(), null, null],
  "columns that contradict": [withBody(set({ agent_id: "b" })), "column_mismatch", 2],
  "a column that the event lacks": [withBody(set({ agent_id: "b" }), 3), "column_mismatch", 3],
  "true and 1": [withBody(set({ mutates_state: 1 })), "column_mismatch", 2],
  "a fraction for a seq": [withBody(set({ seq: new Fraction("2.0") })), "malformed", 2],
  "a fraction for a seq in the event": [withLine((line) => { line.seq = new Fraction("2.0"); }), "column_mismatch", 2],
  "an exponent for a seq": [withBody(set({ seq: new Fraction("2e0") })), "malformed", 2],
  "a fraction in event and body alike": [sealed([event(1, "open", { agent_id: new Fraction("2.0") })]), null, null],
  "a fraction beside a whole number": [sealed([event(1, "open", { agent_id: new Fraction("2.0") })], (seq, body) => { body.agent_id = 2; }), "column_mismatch", 1],
  "lists of fractions": [sealed([event(1, "open", { matched_policies: [new Fraction("1.0"), { a: [new Fraction("1e0")] }] })]), null, null],
  "another tenant's lane": [sealed([event(1, "open", { lane: "beta.edge-1.0" })]), "column_mismatch", 1],
  "a lane without a tenant": [sealed([event(1, "open", { lane: "acme" })]), "column_mismatch", 1],
  "another schema": [withBody(set({ schema: "aegis-receipt-2" })), "unknown_schema", 2],
  "no schema in a receipt": [withBody(drop("schema")), "malformed", 2],
  "a time that is none": [sealed([event(1, "open", { ts: "yesterday" })]), "malformed", 1],
  "a day that is none": [sealed([event(1, "open", { ts: "2026-02-30T10:00:00Z" })]), "malformed", 1],
  "a time before the year 1 in UTC": [sealed([event(1, "open", { ts: "0001-01-01T00:00:00+00:01" })]), "malformed", 1],
  "the last time before it": [sealed([event(1, "open", { ts: "0001-01-01T00:59:59.999999+01:00" })]), "malformed", 1],
  "the first time that is one": [sealed([event(1, "open", { ts: "0001-01-01T01:00:00+01:00" })]), null, null],
  "an hour that is none": [sealed([event(1, "open", { ts: "2026-02-03T24:00:00Z" })]), "malformed", 1],
  "a digest in capitals": [withBody((body) => { body.event_digest = body.event_digest.toUpperCase(); }), "digest_mismatch", 2],
  "a digest that is missing": [withBody(drop("event_digest")), "malformed", 2],
  "no open at the start": [sealed([event(1, "decision")]), "lane_rule", 1],
  "open in the middle": [sealed([event(1, "open"), event(2, "open")]), "lane_rule", 2],
  "something after close": [sealed([event(1, "open"), event(2, "close"), event(3, "decision")]), "lane_rule", 3],
  "time that goes back": [sealed([event(1, "open"), event(2, "decision", { ts: "2026-11-22T10:00:00.999999Z" })]), "time_reversed", 2],
  "time that goes back by a microsecond in another century": [
    sealed([event(1, "open", { ts: "9998-11-22T10:00:00.000002Z" }), event(2, "decision", { ts: "9998-11-22T10:00:00.000001Z" })]), "time_reversed", 2,
  ],
  "time in another offset": [sealed([event(1, "open"), event(2, "decision", { ts: "2026-11-22T11:00:02.5+01:00" })]), null, null],
  "a leap second": [sealed([event(1, "open"), event(2, "decision", { ts: "2026-12-31T23:59:60Z" })]), null, null],
  "a lane that starts late": [plain().slice(1), null, null],
  "a seq of zero": [sealed([event(0, "open")]), "malformed", 1],
  "another hash beside": [withLine(set({ receipt_hash: "0".repeat(64) })), "hash_mismatch", 2],
  "a column more": [withLine(set({ new: "x" })), "digest_mismatch", 2],
  "a column named __proto__": [withLine((line) => Object.defineProperty(line, "__proto__", { value: "x", enumerable: true })), "digest_mismatch", 2],
  "a column that is null more": [withLine(set({ new: null })), null, null],
  "what consumers add": [withLine(set({ verified: true, late: true, bus_ts: "x" })), null, null],
  "a proof of another key": [withLine(inProof({ key_id: "0".repeat(16) })), "invalid_proof", 2],
  "an index beyond the size": [withLine(inProof({ index: 9 })), "invalid_proof", 2],
  "a path that is too long": [withLine(inProof({ path: Array(64).fill("0".repeat(64)) })), "invalid_proof", 2],
  "a path that is too short": [withLine(inProof({ path: [] })), "invalid_proof", 2],
  "a path in capitals": [withLine((line) => { line.proof.path = line.proof.path.map((hash) => hash.toUpperCase()); }), "malformed", 2],
  "a size that is true": [withLine(inProof({ size: true })), "malformed", 2],
  "a size with a fraction": [withLine(inProof({ size: new Fraction("4.0") })), "malformed", 2],
  "another size": [withLine(inProof({ size: 3 })), undefined, 2],
  "a size beyond 32 bits": [withLine(inProof({ size: 2 ** 40 })), "invalid_proof", 2],
  "a signature that is no base64": [withLine(inProof({ signature: "*" })), "malformed", 2],
  "a signature for addresses": [withLine((line) => { line.proof.signature = line.proof.signature.replaceAll("+", "-").replaceAll("/", "_").replace(/=*$/, ""); }), "malformed", 2],
  "a signature that is too short": [withLine(inProof({ signature: "AAAA" })), "bad_signature", 2],
  "a proof that is a list": [withLine(set({ proof: [] })), "missing_proof", 2],
  "a receipt that is a text": [withLine(set({ receipt: "x" })), "unsigned", 2],
};

const exportOf = (lines) => lines.map((line) => `${textOf(line)}\n`).join("");

function serversVerdict(text, isPinned) {
  const folder = mkdtempSync(path.join(os.tmpdir(), "aegis-sdk-"));
  try {
    const file = path.join(folder, "export.jsonl");
    writeFileSync(file, text);
    const done = spawnSync(process.env.AEGIS_BIN, ["receipts", "verify", file, "--json", ...(isPinned ? ["--root", ROOT] : [])], { encoding: "utf8" });
    return JSON.parse(done.stdout);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

const both = Object.fromEntries(Object.entries(CASES).flatMap(([name, one]) => [[`${name}, pinned`, [...one, true]], [`${name}, not pinned`, [...one, false]]]));
cases("verify-receipts", "a forgery is named, and the server's verifier names the same", both, async ([lines, code, line, isPinned]) => {
  const found = await verifyExport(exportOf(lines), isPinned ? new Roots([new VerifyingKey(ROOT)]) : null);
  if (isPinned && code) assert.deepEqual([found.failure?.code, found.failure?.line], [code, line]);
  else if (isPinned && line === null) assert.equal(found.verdict, "valid", JSON.stringify(found.failure));
  const said = serversVerdict(exportOf(lines), isPinned);
  for (const report of [found, said]) delete report.failure?.message;
  assert.deepEqual(JSON.parse(JSON.stringify(found)), said);
});

test("verify-receipts", "one event alone", () => {
  const good = plain()[1];
  const roots = new Roots([new VerifyingKey(ROOT)]);
  assert.equal(verifyEvent(textOf(good), roots).signed, true);
  assert.equal(verifyEvent(Buffer.from(textOf(good))).signed, false);
  for (const [bad, code] of [[{ ...good, agent_id: "b" }, "digest_mismatch"], [[], "malformed"], [{}, "missing_receipt"], [{ ...good, proof: null }, "missing_proof"], [{ ...good, seq: new Fraction("2.0") }, "column_mismatch"]]) {
    assert.throws(() => verifyEvent(textOf(bad)), (error) => error instanceof VerifyError && error.failure.code === code);
  }
  const other = new Roots([new VerifyingKey("GX9rI+FshTLGq8g4+s1ep4m+DHaykgM0A5v6iz02jWE=")]);
  assert.throws(() => verifyEvent(textOf(good), other), (error) => error.failure.code === "unknown_key" && error.failure.seq === 2 && error.failure.lane === "acme.edge-1.0");
  assert.throws(() => verifyEvent('{"a":1,"a":2}'), BadInput);
});

test("verify-receipts", "what is no export is bad input", async () => {
  const bad = ["", "\n\n", "[]\n", '{"a":1,"a":2}\n', Buffer.from([0xff, 0x0a]), `{"a":${"1".repeat(1 << 20)}}\n`, '{"a":NaN}\n', '"\ud800"\n', `{"a":"${"x".repeat((1 << 20) - 8)}"}\n`];
  for (const text of bad) await assert.rejects(verifyExport(text), BadInput);
  await assert.rejects(verifyExport([Buffer.alloc(1 << 19, 0x20), Buffer.alloc(1 << 19, 0x20), Buffer.from(" ")]), BadInput);
  const lines = exportOf(plain());
  const spaced = await verifyExport(`\r\n \t\n${lines.replaceAll("\n", " \r\n\n")}`);
  assert.equal(spaced.receipts, 4);
  assert.equal((await verifyExport(lines.trimEnd())).receipts, 4);
});

test("verify-receipts", "a key under which anybody can sign is not pinned", () => {
  const little = (value) => Buffer.from(value.toString(16).padStart(64, "0"), "hex").reverse();
  const p = 2n ** 255n - 19n;
  const weak = [0n, 1n, p - 1n, p, p + 1n].flatMap((y) => [little(y), little(y + 2n ** 255n)]);
  const order8 = ["26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05", "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"].map((hex) => Buffer.from(hex, "hex"));
  for (const raw of [...weak, ...order8, Buffer.from(`02${"00".repeat(31)}`, "hex")]) assert.throws(() => new VerifyingKey(raw.toString("base64")), ConfigError, raw.toString("hex"));
  for (const text of ["AAAA", "", ROOT.slice(0, -1), `${ROOT}=`, "*".repeat(44), null]) assert.throws(() => new VerifyingKey(text), ConfigError);
  assert.equal(new VerifyingKey(` ${ROOT}\n`).keyId, KEY_ID);
  assert.throws(() => new Roots([]), ConfigError);
  assert.equal(Roots.read([]), null);
});
