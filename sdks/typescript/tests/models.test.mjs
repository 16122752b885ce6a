// The models against docs/openapi.yaml: every field is one of the document's, with its type, and every answer of the document can be read.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import path from "node:path";

import { actionHash, Approval, BadReply, Decision, Secret, ToolCall } from "aegisagent";
import { parse } from "yaml";

import { cases, test } from "./feature.mjs";
import { internal, REPOSITORY } from "./where.mjs";

const models = await internal("models.js");
const { Fields } = await internal("fields.js");
const { parseTree } = await internal("canon.js");
const SCHEMAS = parse(readFileSync(path.join(REPOSITORY, "docs/openapi.yaml"), "utf8")).components.schemas;

const HASH = "ab".repeat(32);
const UUID = "01a202b2-c500-7000-8000-000000000002";
const TIME = "2026-11-22T10:00:00.123456Z";
const CALL = { tool: "t", action: "a", resource: null, mutates_state: true, parameters: { n: 1 } };
const CALL_HASH = actionHash("t", "a", null, true, { n: 1 });
const HOLD = { hold_id: "h", kind: "freeze", reason: "r", by: "b", since: TIME, until: null };
const EDGES = { live: 1, enforcing: 1, silent: ["e"], since: TIME };
const APPROVAL_REF = { approval_id: "i", status: "PENDING", approver_group: "g", expires_at: TIME, expires_in: 900, action_hash: HASH };
const RECEIPT_REF = { receipt_id: UUID, receipt_hash: HASH, prev_receipt_hash: "", canon_version: "aegis-jcs-1" };

const ofTree = (read) => (value) => read(parseTree(JSON.stringify(value), 1 << 20));
const ofFields = (read) => ofTree((tree) => read(new Fields(tree, "it")));

/** Schema → how it is read, and an answer. */
const MODELS = {
  ToolCall: [ofFields(ToolCall.read), CALL],
  ReceiptRef: [ofFields(models.readReceiptRef), RECEIPT_REF],
  ApprovalRef: [ofFields(models.readApprovalRef), APPROVAL_REF],
  AuthorizeResponse: [ofTree((tree) => new Decision(tree)), {
    decision_id: UUID, decision: "allow", reason: "r", matched_policies: ["p"], risk_score: 40, risk_level: "medium", root_trust_level: "unknown", trust_token: "t", action_hash: HASH, dry_run: false,
    approval: APPROVAL_REF, receipt: RECEIPT_REF,
  }],
  Approval: [ofTree((tree) => new Approval(tree)), {
    approval_id: "i", status: "PENDING", agent_id: "a", decision_id: UUID, action_hash: CALL_HASH, original_action_hash: CALL_HASH, is_edited: false, tool_call: CALL, edited_tool_call: null,
    approver_group: "g", approvals_needed: 1, approved_by: ["x"], source_trust: "unknown", reason: "r", requested_at: TIME, expires_at: TIME, expires_in: 900,
    edited_by: "e", user_id: "u", policy_digest: HASH, risk_level: "high", matched_policies: ["p"],
  }],
  Consumed: [ofTree(models.readConsumed), { status: "consumed", approval_id: "i", action_hash: HASH }],
  Outcome: [ofTree(models.readOutcome), { decision_id: UUID, outcome_id: UUID, status: "ok", violation: null, receipt_hash: HASH }],
  RegisteredAgent: [ofTree(models.readRegistration), { id: "i", agent_key: "k", agent_token: "t".repeat(40), expires_at: TIME }],
  Hold: [ofTree(models.readHold), HOLD],
  Containment: [ofTree(models.readContainment), {
    tenant_id: "t", target_type: "agent", target_id: "i", holds: [HOLD], revoked: false, revision: 1, issued_at: TIME, verdict: "frozen", enforced: true, edges: EDGES,
  }],
  "Containment.edges": [ofFields(models.readContainedEdges), EDGES],
  ReceiptVerdict: [ofTree(models.readReceiptVerdict), { receipt_id: UUID, receipt_hash: HASH, lane: "l", seq: 1, verdict: "valid", checks: { link: "ok" }, failure: null, same_id: [{ kind: "k" }] }],
};
// Null in lists, which have no word on enforcement; and from servers that do not count the seconds. What may be missing may be null.
const LOOSER = { Containment: { enforced: true, edges: true }, "Containment.edges": { since: true }, ApprovalRef: { expires_in: true }, Approval: { expires_in: true }, ReceiptVerdict: { same_id: true } };

const deref = (schema) => (schema.$ref ? SCHEMAS[schema.$ref.split("/").at(-1)] : schema);

/** Name → schema, and the required names, of a schema with all of its parts. */
function propertiesOf(given) {
  const schema = deref(given);
  const parts = (schema.allOf ?? []).map(propertiesOf);
  return {
    found: Object.assign({ ...schema.properties }, ...parts.map(({ found }) => found)), required: [...(schema.required ?? []), ...parts.flatMap(({ required }) => required)],
  };
}

function typesOf(given) {
  const schema = deref(given);
  if (schema.anyOf) return schema.anyOf.flatMap(typesOf);
  return [schema.type ?? "object"].flat();
}

SCHEMAS["Containment.edges"] = propertiesOf(SCHEMAS.Containment).found.edges;

const WRONG = { string: [1, true, [], {}], boolean: [0, 1, "true", [], {}], integer: [1.5, "1", true, [], {}], array: ["a", 1, {}], object: ["a", 1, [], true] };

cases("models-openapi", "a model's fields are the document's, of its types, and nothing else is read", MODELS, ([read, good], name) => {
  const { found, required } = propertiesOf({ $ref: `#/${name}` });
  const model = read(good);
  assert.deepEqual(Object.keys(model).filter((key) => key !== "toJSON").sort(), Object.keys(good).sort());
  assert.deepEqual(Object.keys(good).sort(), Object.keys(found).sort(), "the model has every field of the document, and no other");
  for (const field of Object.keys(good)) {
    const types = typesOf(found[field]);
    const isNullable = types.includes("null") || LOOSER[name]?.[field] === true;
    assert.ok(required.includes(field) || isNullable, `${name}.${field} may be missing`);
    for (const type of types.filter((one) => one !== "null")) {
      for (const bad of WRONG[type]) {
        if (types.some((one) => one !== "null" && one === (Array.isArray(bad) ? "array" : typeof bad))) continue;
        assert.throws(() => read({ ...good, [field]: bad }), BadReply, `${name}.${field} = ${JSON.stringify(bad)}`);
      }
    }
    const rest = Object.fromEntries(Object.entries(good).filter(([key]) => key !== field));
    const mayMiss = !required.includes(field) || LOOSER[name]?.[field] === true;
    for (const [absent, isGood] of [[{ ...good, [field]: null }, isNullable], [rest, mayMiss]]) {
      if (isGood) assert.equal(read(absent)[field] ?? null, null);
      else assert.throws(() => read(absent), BadReply, `${name} without ${field}`);
    }
  }
  assert.ok(Object.isFrozen(model));
  assert.deepEqual(Object.keys(read({ ...good, new_field: 1 })), Object.keys(model), "an unknown field is ignored");
  for (const bad of [null, [], "x", 1, true]) assert.throws(() => read(bad), BadReply);
});

test("models-openapi", "hashes are 64 lower-case hex digits, whole numbers are written as such, and ids are ids", () => {
  const [read, good] = MODELS.Consumed;
  for (const bad of ["AB".repeat(32), "ab".repeat(31), `${HASH}\n`, "xy".repeat(32)]) assert.throws(() => read({ ...good, action_hash: bad }), BadReply);
  for (const bad of ["", ".", "..", "a b", "a/b", "é", "x".repeat(257)]) assert.throws(() => read({ ...good, approval_id: bad }), BadReply);
  const text = JSON.stringify(MODELS.AuthorizeResponse[1]);
  for (const bad of ["40.0", "4e1", "true", '"40"']) assert.throws(() => new Decision(parseTree(text.replace('"risk_score":40', `"risk_score":${bad}`), 1 << 20)), BadReply);
});

test("models-openapi", "an approval's hashes are those of its actions, also of numbers that no value here can have", async () => {
  const [, good] = MODELS.Approval;
  const read = (text) => new Approval(parseTree(text, 1 << 20));
  const { createHash } = await import("node:crypto");
  const hash = createHash("sha256").update('{"action":"a","mutates_state":true,"parameters":{"n":100000000000000000000},"resource":null,"tool":"t"}').digest("hex");
  const text = JSON.stringify({ ...good, action_hash: hash, original_action_hash: hash }).replace('"n":1', '"n":1e20');
  assert.equal(read(text).current.parameters.n, 1e20);
  assert.throws(() => read(JSON.stringify(good).replace('"n":1', '"n":2')), BadReply);
  assert.throws(() => read(JSON.stringify({ ...good, is_edited: true })), BadReply);
  assert.throws(() => read(JSON.stringify({ ...good, edited_tool_call: CALL })), BadReply);
  assert.throws(() => read(JSON.stringify({ ...good, action_hash: HASH })), BadReply);
  const edited = { ...CALL, parameters: { n: 2 } };
  const both = { ...good, is_edited: true, edited_tool_call: edited, action_hash: actionHash("t", "a", null, true, { n: 2 }) };
  assert.equal(read(JSON.stringify(both)).current.parameters.n, 2);
});

test("models-openapi", "every model of a reply is looked at", () => {
  const readers = Object.entries(models).filter(([name, value]) => (/^read/.test(name) && !/^readObjects?$/.test(name)) || /^class /.test(Function.prototype.toString.call(value)));
  assert.equal(readers.length, Object.keys(MODELS).length, readers.map(([name]) => name).join());
  assert.ok(MODELS.RegisteredAgent[0](MODELS.RegisteredAgent[1]).agent_token instanceof Secret);
});
