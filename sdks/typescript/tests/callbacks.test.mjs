// Callbacks: what the server signed is taken, what anybody else made is not.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import http from "node:http";

import { ConfigError, ToolCall, verifyCallback } from "aegisagent";

import { cases, test } from "./feature.mjs";
import { Aegis, waitUntil, withWorld } from "./harness.mjs";
import { REPOSITORY } from "./where.mjs";

const SECRET = "0123456789abcdef0123456789abcdef";
const OTHER = "fedcba9876543210fedcba9876543210";
// Of docs/specs/callback.md, and of the server's own test.
const [NOW, BODY] = [1_800_000_000, '{"a":1}'];
const SIGNATURE = "v1=d40e555bc2c1dae21953757b24b165a171698880732ac310a5c8cf0ab751abf2";
const ANOTHER = `v1=${"0".repeat(64)}`;

function verify({ secret = SECRET, timestamp = String(NOW), signature = SIGNATURE, body = Buffer.from(BODY), now = NOW, ...more } = {}) {
  return verifyCallback(secret, timestamp, signature, body, { now, ...more });
}

test("callbacks", "the specification's vector is right", async () => {
  const text = await readFile(`${REPOSITORY}/docs/specs/callback.md`, "utf8");
  for (const part of [SIGNATURE, SECRET, String(NOW), BODY]) assert.ok(text.includes(part), part);
  assert.equal(verify(), true);
  assert.equal(verify({ secret: Buffer.from(SECRET) }), true);
  assert.equal(verify({ body: new TextEncoder().encode(BODY) }), true);
});

cases("callbacks", "while a secret is changed, one of its signatures is enough", {
  first: `${SIGNATURE},${ANOTHER}`, second: `${ANOTHER},${SIGNATURE}`, "second with a space": `${ANOTHER}, ${SIGNATURE}`,
}, (signature) => {
  assert.equal(verify({ signature }), true);
});

cases("callbacks", "what nobody with the secret signed is refused", {
  "another secret": { secret: OTHER }, "another body": { body: Buffer.from('{"a":2}') }, "no body": { body: Buffer.alloc(0) }, "another time": { timestamp: String(NOW + 1) },
  "another's signature": { signature: ANOTHER }, "an empty signature": { signature: "" }, "no signature": { signature: null }, "no time": { timestamp: null },
  "an empty time": { timestamp: "" }, "a time with a space": { timestamp: ` ${NOW}` }, "a time with a sign": { timestamp: `+${NOW}` },
  "a time with a fraction": { timestamp: `${NOW}.0` }, "other digits": { timestamp: "٣".repeat(10) }, "a time with a line": { timestamp: `${NOW}\n` },
  "a long time": { timestamp: "9".repeat(5000) }, "no version": { signature: SIGNATURE.replace("v1=", "") }, "capitals": { signature: SIGNATURE.toUpperCase() },
  "a short one": { signature: SIGNATURE.slice(0, -1) }, "another version": { signature: SIGNATURE.replace("v1", "v2") }, "an empty second": { signature: `${SIGNATURE},` },
  "a second that is none": { signature: `${SIGNATURE},é` }, "too many": { signature: [...Array(8).fill(ANOTHER), SIGNATURE].join() },
  "two lines": { signature: `${SIGNATURE}\n${SIGNATURE}` }, "a list of times": { timestamp: [String(NOW)] },
}, (forged) => {
  assert.equal(verify(forged), false);
});

cases("callbacks", "what was captured is not taken later", { 300: true, 301: false, "-300": true, "-301": false }, (fresh, age) => {
  assert.equal(verify({ now: NOW + Number(age) }), fresh);
  assert.equal(verify({ now: NOW + Number(age), toleranceS: 1 }), false);
});

test("callbacks", "a secret that anybody could have, or a body that was read, is an error", () => {
  for (const secret of ["", "x".repeat(31), Buffer.alloc(31), null, false]) assert.throws(() => verify({ secret }), ConfigError);
  assert.throws(() => verify({ body: BODY }), ConfigError);
  for (const toleranceS of [-1, Infinity, NaN, "1"]) assert.throws(() => verify({ toleranceS }), ConfigError);
});

/** A receiver of callbacks, and what came to it. */
async function withReceiver(work) {
  const came = [];
  const server = http.createServer(async (request, response) => {
    const parts = [];
    for await (const part of request) parts.push(part);
    came.push({ headers: request.headers, body: Buffer.concat(parts) });
    response.end();
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  try {
    await work(`http://127.0.0.1:${server.address().port}/hook`, came);
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

test("callbacks", "a callback of the real program is right, and says what to ask for", async () => {
  const aegis = await new Aegis("up", { AEGIS_CONTROL_CALLBACK_LOOPBACK: "true" }).start();
  try {
    await withWorld(aegis, async (world) => await withReceiver(async (url, came) => {
      await world.tenant.call("PUT", "/v1/callbacks/secret", { secret: SECRET });
      await world.tenant.settings({ callback_allow_list: [url] });
      const agent = world.client(world.agent.agent_token);
      const call = new ToolCall("crm", "refund", "customer-1", true, { amount: 5 });
      const context = { source_trust: "trusted_internal_unsigned" };
      const decision = await waitUntil("the edge knows the list", async () => await agent.authorize(call, { context, callback: { url } }).catch(() => null));
      const { approval_id: approvalId } = decision.approval;
      await waitUntil("the approval is there", async () => await world.approver.approval(approvalId).catch(() => null));
      await world.approver.reject(approvalId);
      const { headers, body } = await waitUntil("the callback comes", async () => came[0]);
      const given = [headers["aegisagent-timestamp"], headers["aegisagent-signature"]];
      assert.equal(verifyCallback(SECRET, ...given, body), true);
      assert.equal(verifyCallback(OTHER, ...given, body), false);
      assert.equal(verifyCallback(SECRET, ...given, Buffer.from(body.toString().replace("REJECTED", "APPROVED"))), false);
      const asked = await agent.approval(JSON.parse(body).approval_id);
      assert.deepEqual([asked.approval_id, asked.status], [approvalId, "REJECTED"]);
    }));
  } finally {
    await aegis.close();
  }
});
