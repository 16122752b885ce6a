// How long is waited between two attempts and between two looks, by timers that end at once and say what they were asked for.

import assert from "node:assert/strict";
import { syncBuiltinESMExports } from "node:module";
import timers from "node:timers";

import { actionHash, ApiError, Secret, ToolCall, Unreachable } from "aegisagent";

import { recorder, withClient } from "./calling.mjs";
import { HASH, later, raw, TOKEN, withEdge } from "./fake.mjs";
import { cases, test } from "./feature.mjs";
import { internal } from "./where.mjs";

const { exchange } = await internal("exchange.js");
const { clear } = await internal("flow.js");
const { freeze } = await internal("action.js");
const { RunTokens } = await internal("trust.js");
const endpoints = await internal("endpoints.js");

/** What was paused for while `work` ran, seconds; `share` says how every pause is spread: 0.8, 1 or 1.2 times. */
async function pausesOf(share, work) {
  const [pauses, { setTimeout: real }, { random }] = [[], timers, Math];
  timers.setTimeout = (then, milliseconds) => {
    pauses.push(milliseconds / 1000);
    return real(then, 0);
  };
  Math.random = () => (share - 0.8) / 0.4;
  syncBuiltinESMExports();
  try {
    await work();
  } finally {
    timers.setTimeout = real;
    Math.random = random;
    syncBuiltinESMExports();
  }
  return pauses;
}

function assertNear(found, expected) {
  assert.equal(found.length, expected.length, `${found} for ${expected}`);
  for (const [place, pause] of found.entries()) assert.ok(Math.abs(pause - expected[place]) < 1e-9, `${found} for ${expected}`);
}

/** What is left of a request to which `failing(attempt)` happens, until it throws. */
async function sendings(request, failing, timeoutS = 60) {
  let count = 0;
  const transport = {
    send: async () => {
      count += 1;
      return failing(count);
    },
  };
  const failure = await exchange(request, { transport, secret: new Secret(TOKEN), timeoutS, signal: null }).then(() => null, (error) => error);
  return { count, failure };
}

const busy = (retryAfterS) => () => ({ status: 503, headers: { "retry-after": String(retryAfterS) }, body: Buffer.from('{"error":{"code":"busy","message":"m"}}') });

for (const share of [0.8, 1.2]) {
  test("retries", `a pause is spread, ${share} times, and never shorter than what was asked for`, async () => {
    for (const [asked, first, second] of [[0, 0.1 * share, 0.2 * share], [1, 1, 1], [2, 2, 2], [900, 2, 2]]) {
      let found;
      assertNear(await pausesOf(share, async () => { found = await sendings(endpoints.one(["soc", "summary"]), busy(asked)); }), [first, second]);
      assert.ok(found.failure instanceof ApiError && found.count === 3);
    }
    assertNear(await pausesOf(share, () => sendings(endpoints.one(["soc", "summary"]), busy(2), 1.9)), []);
  });
}

test("retries", "what was not sent is sent again, whatever it is", async () => {
  for (const request of [endpoints.decide("a", "approve", {}), endpoints.one(["soc", "summary"])]) {
    await pausesOf(1, async () => {
      const { count, failure } = await sendings(request, () => { throw new Unreachable("unreachable", "m", false); });
      assert.deepEqual([count, failure.code], [3, "unreachable"]);
    });
  }
});

/** Waits for an approval whose looks find these words, one after the other, and then APPROVED. */
async function waited(share, words) {
  const action = freeze("crm", "refund", null, true, { amount: 1 });
  const reference = { approval_id: "approval-1", status: "PENDING", approver_group: "g", expires_at: later(), expires_in: 900, action_hash: action.actionHash };
  const answers = [
    {
      decision_id: "decision-1", decision: "require_approval", reason: "r", root_trust_level: "unknown", trust_token: "t", action_hash: action.actionHash, dry_run: false,
      risk_level: "high", approval: reference, receipt: { receipt_hash: HASH, canon_version: "aegis-jcs-1" },
    },
    ...[...words, "APPROVED"].map((status) => ({ ...reference, status, original_action_hash: action.actionHash })),
    { status: "consumed", approval_id: "approval-1", action_hash: action.actionHash },
  ];
  const call = async () => {
    const answer = answers.shift();
    if (answer.status === "404") throw new ApiError(404, "approval_not_found", "m");
    if (answer.status === "503") throw new ApiError(503, "busy", "m");
    return answer;
  };
  const caller = { agent: { id: "a" }, tokens: new RunTokens(), isContained: false, call, warn: () => undefined };
  const options = { resource: null, containsSensitiveData: false, channel: null, acceptEdits: false, failOpenReads: false, approvalTimeoutS: null, unreachableS: 30, onPending: null, fits: null };
  const fn = recorder();
  const pauses = await pausesOf(share, () => clear(caller, action, options, null, ({ action: cleared }) => fn(cleared.parameters)));
  assert.deepEqual([fn.calls, answers], [[{ amount: 1 }], []]);
  return pauses;
}

for (const share of [0.8, 1, 1.2]) {
  test("protect-approval", `an approval is looked at with pauses that grow and end at the longest, spread ${share} times`, async () => {
    const expected = Array.from({ length: 12 }, (_, look) => Math.min(0.25 * 1.5 ** look, 5) * share);
    assert.equal(expected.at(-1), 5 * share);
    assertNear(await waited(share, Array(12).fill("PENDING")), expected);
    assertNear(await waited(share, ["404", "404", "503", "PENDING", "503", ...Array(7).fill("PENDING")]), expected);
  });
}

const CALL = new ToolCall("crm", "a", null, true, {});
const CALL_HASH = actionHash("crm", "a", null, true, {});
/** What could take effect twice; what is told again what it was, or changes nothing; and what is written as it comes. */
const UNSAFE = {
  "approve": (client) => client.approve("a"), "reject": (client) => client.reject("a"), "edit": (client) => client.edit("a", CALL), "authorize without a key": (client) => client.authorize(CALL),
  "freeze": (client) => client.freezeAgent("a", "r"), "unfreeze": (client) => client.unfreezeAgent("a", "r"), "revoke": (client) => client.revokeAgent("a", "r"),
  "quarantine": (client) => client.quarantineMcpServer("a", "r"), "restore": (client) => client.restoreMcpServer("a", "r"), "close": (client) => client.closeIncident("a"),
};
const SAFE = {
  "authorize with a key": (client) => client.authorize(CALL, { request_id: "one" }), "consume": (client) => client.consume("a", CALL_HASH), "outcome": (client) => client.outcome("d", "ok"),
  "register": (client) => client.register({ agent_key: "k" }), "put a tool": (client) => client.putTool({ tool: "t" }), "a look": (client) => client.approval("a"), "a list": (client) => client.events(),
};
const EXPORT = { "export": (client) => client.exportReceipts(() => undefined) };

const refused = (status, code) => [status, { error: { code, message: "m" } }];
/** Failure → how often an unsafe and a safe call are sent. */
const FAILURES = {
  "cut off": [raw((response, socket) => {
    socket.write('HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{"');
    socket.destroySoon();
  }), 1, 3],
  "hung up on": [raw((response, socket) => socket.destroy()), 1, 3],
  "503 busy": [refused(503, "busy"), 1, 3], "503 control_unreachable": [refused(503, "control_unreachable"), 1, 3], "503 without a code": [[503, "<html>"], 1, 3],
  "503 control_busy": [refused(503, "control_busy"), 3, 3], "503 receipt_unavailable": [refused(503, "receipt_unavailable"), 3, 3], "429": [refused(429, "rate_limited"), 3, 3],
  "500": [refused(500, "internal"), 1, 1], "502": [refused(502, "control_busy"), 1, 1], "409": [refused(409, "control_busy"), 1, 1], "no JSON": [[200, "{"], 1, 1],
};

const table = Object.fromEntries([[UNSAFE, 1], [SAFE, 2], [EXPORT, 0]].flatMap(([calls, place]) => Object.entries(calls).flatMap(([name, made]) =>
  Object.entries(FAILURES).filter(([failure]) => place !== 0 || failure !== "no JSON").map(([failure, one]) => [`${name}: ${failure}`, { made, answer: one[0], times: place === 0 ? 1 : one[place] }]))));
cases("retries", "a call is sent again only where it cannot take effect twice", table, async ({ made, answer, times }) => {
  await withEdge(async (edge) => {
    for (const what of ["authorize", "approval", "consume", "outcome", "other"]) edge.replace[what] = answer;
    await withClient(edge.url, async (client) => await assert.rejects(made(client), { name: /^(ApiError|BadReply|Unreachable)$/ }), { timeoutS: 30 });
    assert.deepEqual([edge.seen.length, new Set(edge.seen.map(({ text }) => text)).size], [times, 1]);
  });
});
