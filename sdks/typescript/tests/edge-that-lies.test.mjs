// The real program behind an edge that answers wrongly, late or about something else: at authorize, poll and consume.

import assert from "node:assert/strict";
import { after } from "node:test";

import { actionHash, DeniedUnavailable, DeniedUnverified } from "aegisagent";

import { withBetween } from "./between.mjs";
import { recorder } from "./calling.mjs";
import { drip } from "./fake.mjs";
import { cases } from "./feature.mjs";
import { Aegis, waitUntil, withWorld } from "./harness.mjs";

const OTHER = actionHash("crm", "refund", "customer-1", true, { note: "swapped" });
const REFUND = { action: "refund" };
// Enough for an honest answer of a busy machine.
const PATIENT = { timeoutS: 10 };

const aegis = await new Aegis().start();
after(async () => {
  await aegis.close();
});

const AT = { authorize: /^\/v1\/authorize$/, poll: /^\/v1\/approvals\/[^/]+$/, consume: /^\/v1\/approvals\/[^/]+\/consume$/ };
const otherHash = ([status, honest]) => {
  const body = JSON.parse(honest);
  const approval = body.approval && { ...body.approval, action_hash: OTHER };
  return [status, { ...body, action_hash: OTHER, ...(approval ? { approval } : {}) }];
};
const anotherAction = ([status, honest]) => {
  const body = JSON.parse(honest);
  if (!body.tool_call) return otherHash([status, honest]);
  return [status, { ...body, action_hash: OTHER, original_action_hash: OTHER, tool_call: { ...body.tool_call, parameters: { note: "swapped" } } }];
};
const silent = () => () => undefined;
const dripping = () => async (response, socket) => {
  socket.write("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n");
  await drip(socket, " ".repeat(1000));
};

/** Feature, what is answered, the denial, its code at authorize and poll, and that of a consume. */
const LIES = {
  "500": ["hostile-500", () => [500, { error: { code: "internal", message: "m" } }], DeniedUnavailable, "internal", "internal"],
  "500 with a page": ["hostile-500", () => [500, "<html>"], DeniedUnavailable, "http_500", "http_500"],
  "garbage": ["hostile-garbage", () => [200, "<html>allow</html>"], DeniedUnverified, "bad_reply", "bad_reply"],
  "half of the answer": ["hostile-garbage", ([status, honest]) => [status, honest.subarray(0, honest.length / 2)], DeniedUnverified, "bad_reply", "bad_reply"],
  "nothing": ["hostile-slow", silent, DeniedUnavailable, "no_answer", "consume_ambiguous"],
  "a drip": ["hostile-slow", dripping, DeniedUnavailable, "no_answer", "consume_ambiguous"],
  "another action's hash": ["hostile-hash", otherHash, DeniedUnverified, { authorize: "action_hash_mismatch", poll: "bad_reply" }, "action_hash_mismatch"],
  "another action with its hash": ["hostile-hash", anotherAction, DeniedUnverified, "action_hash_mismatch", "action_hash_mismatch"],
};

/** An honest call, approved and run: when its consume and its outcome are events, so is all that came before them. */
async function fence(world, consumes) {
  const onPending = world.whenAsked((approvalId) => world.approver.approve(approvalId));
  assert.equal(await world.call(recorder(), { note: "honest" }, { ...REFUND, onPending, clientSettings: { timeoutS: 60 } }), "done");
  await waitUntil("the outcome is an event", async () => (await world.outcomes()).length > 0);
  await waitUntil("the consumes are events", async () => (await consumed(world)) >= consumes);
}

const consumed = async (world) => (await world.kinds()).filter((kind) => kind === "approval_consumed").length;

for (const feature of new Set(Object.values(LIES).map(([name]) => name))) {
  const table = Object.fromEntries(Object.entries(LIES).filter(([, [name]]) => name === feature)
    .flatMap(([name, [, lie, kind, code, ofConsume]]) => Object.keys(AT).map((where) => [`${where}: ${name}`, { where, lie, kind, code: where === "consume" ? ofConsume : (code[where] ?? code) }])));
  cases(feature, `an edge of the real program that lies runs nothing (${feature})`, table, async ({ where, lie, kind, code }) => {
    await withWorld(aegis, async (world) => {
      const fn = recorder();
      let lies = 0;
      const answered = (at, reply) => {
        // That it is not there yet, or that the server is busy, is asked again.
        if (!AT[where].test(at) || reply[0] !== 200) return undefined;
        lies += 1;
        return lie(reply);
      };
      await withBetween(aegis.url, () => undefined, async (url) => {
        const onPending = world.whenAsked((approvalId) => world.approver.approve(approvalId));
        const denied = await world.call(fn, undefined, { ...REFUND, url, unreachableS: 0.5, onPending, clientSettings: PATIENT }).catch((error) => error);
        assert.ok(denied instanceof kind && denied.code === code, denied?.stack ?? denied);
        assert.equal(denied.approvalId === null, where === "authorize");
      }, () => false, answered);
      assert.ok(lies >= 1);
      assert.deepEqual(fn.calls, []);
      // One outcome and one consume are the honest call's.
      const consumes = where === "consume" ? 2 : 1;
      await fence(world, consumes);
      assert.deepEqual([await world.outcomes(), await consumed(world)], [["ok"], consumes]);
    });
  });
}
