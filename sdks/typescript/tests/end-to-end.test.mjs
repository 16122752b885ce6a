// Against the real program. AEGIS_BIN names it; `test.sh` does not start without one.

import assert from "node:assert/strict";
import { after } from "node:test";

import {
  ApiError, carry, DeniedByApprover, DeniedByPolicy, DeniedUnavailable, DeniedUnverified, onBehalfOf, protect, receipts, run, sourceTrust, ToolCall, withSignal,
} from "aegisagent";

import { withBetween } from "./between.mjs";
import { recorder } from "./calling.mjs";
import { test } from "./feature.mjs";
import { Aegis, waitUntil, withAegis, withWorld } from "./harness.mjs";

const READ = { action: "read_customer", mutatesState: false, risk: "low" };
const REFUND = { action: "refund" };
const EDITED = new ToolCall("crm", "refund", "customer-1", true, { note: "edited", amount: 2 });

const aegis = await new Aegis().start();
after(async () => {
  await aegis.close();
});

const testWith = (features, name, work) => test(features, name, async () => {
  await withWorld(aegis, work);
});

testWith("e2e-allow", "an allowed action runs, and its outcome is a receipt", async (world) => {
  const fn = recorder();
  assert.equal(await world.call(fn, { note: "a", amount: 1 }), "done");
  assert.deepEqual(fn.calls, [{ note: "a", amount: 1 }]);
  await waitUntil("the outcome is an event", async () => (await world.outcomes()).join() === "ok");
});

testWith("e2e-deny", "a denied action does not run", async (world) => {
  const fn = recorder();
  const denied = await world.call(fn, undefined, { trust: "untrusted_external" }).catch((error) => error);
  assert.ok(denied instanceof DeniedByPolicy && denied.code === "policy_denied", denied);
  await assert.rejects(world.call(fn, undefined, { action: "drop_tables" }), (error) => error instanceof DeniedByPolicy && error.code === "unknown_action");
  assert.deepEqual(fn.calls, []);
  assert.equal((await world.admin.receipt(denied.decisionId)).decision, "deny");
  assert.equal((await world.admin.decision(denied.decisionId)).decision, "deny");
});

testWith("e2e-approval", "an approved action runs once", async (world) => {
  const [fn, asked] = [recorder(), []];
  const approve = async (approvalId) => {
    asked.push(approvalId);
    await world.approver.approve(approvalId);
  };
  assert.equal(await world.call(fn, undefined, { ...REFUND, onPending: world.whenAsked(approve) }), "done");
  assert.equal(fn.calls.length, 1);
  assert.equal((await world.approver.approval(asked[0])).status, "CONSUMED");
  await waitUntil("the outcome is an event", async () => (await world.outcomes()).join() === "ok");
  assert.ok(!(await world.kinds()).includes("tamper_attempt"));
});

testWith("e2e-approval", "an approval's action comes back with the hash that was sent, whatever stands in it", async (world) => {
  const odd = {
    "é😀": [1, -0, 2 ** 53 - 1, -(2 ** 53) + 1, 1e-7, 0.1, 5e-324, 123456.789, true, null], a: '\u2028\0\u007f"\\/\u200f', "": { "": [{}] }, "10": 1, "9": 2,
  };
  Object.defineProperty(odd, "__proto__", { value: { a: 1 }, enumerable: true });
  const fn = recorder();
  await world.call(fn, { odd }, { ...REFUND, onPending: world.whenAsked((approvalId) => world.approver.approve(approvalId)) });
  assert.deepEqual(fn.calls, [{ odd }]);
  assert.ok(Object.is(fn.calls[0].odd["é😀"][1], -0) && Object.hasOwn(fn.calls[0].odd, "__proto__"));
});

testWith("lost-answer", "a consume and an outcome whose answers are cut off run the function once and are one receipt each", async (world) => {
  const [fn, lost] = [recorder(), []];
  const isLost = (path) => {
    const kind = path.split("/").at(-1);
    const count = lost.filter((one) => one === kind).length;
    if (!["consume", "outcome"].includes(kind) || count === 2) return false;
    lost.push(kind);
    return true;
  };
  await withBetween(aegis.url, () => undefined, async (url) => {
    const onPending = world.whenAsked((approvalId) => world.approver.approve(approvalId));
    assert.equal(await world.call(fn, undefined, { ...REFUND, url, onPending }), "done");
  }, isLost);
  assert.deepEqual([fn.calls.length, lost.sort()], [1, ["consume", "consume", "outcome", "outcome"]]);
  await waitUntil("the outcome is an event", async () => (await world.outcomes()).join() === "ok");
  const kinds = await world.kinds();
  assert.equal(kinds.filter((kind) => kind === "approval_consumed").length, 1);
  assert.ok(!kinds.includes("replay_attempt"), "who lost an answer attacks nobody");
});

testWith("e2e-rejection", "a rejected action does not run", async (world) => {
  const fn = recorder();
  const reject = world.whenAsked((approvalId) => world.approver.reject(approvalId, { reason: "no" }));
  await assert.rejects(world.call(fn, undefined, { ...REFUND, onPending: reject }), (error) => error instanceof DeniedByApprover && error.code === "approval_rejected");
  assert.deepEqual(fn.calls, []);
});

testWith("e2e-expiry", "an approval past its time does not run", async (world) => {
  const fn = recorder();
  await world.tenant.settings({ approval_ttl_s: 1 });
  // It would be given up soon after its end; it must be told that it has ended.
  const patient = (at, [status, body]) => {
    if (at !== "/v1/authorize") return undefined;
    const decision = JSON.parse(body);
    assert.ok(decision.approval.expires_in <= 1);
    return [status, { ...decision, approval: { ...decision.approval, expires_in: 120 } }];
  };
  await withBetween(aegis.url, () => undefined, async (url) => {
    const denied = await world.call(fn, undefined, { ...REFUND, url }).catch((error) => error);
    assert.ok(denied instanceof DeniedByApprover && denied.code === "approval_expired", denied);
    assert.equal((await world.approver.approval(denied.approvalId)).status, "EXPIRED");
  }, () => false, patient);
  assert.deepEqual(fn.calls, []);
});

testWith("e2e-swap", "arguments that are swapped after the approval do not run", async (world) => {
  const [fn, note] = [recorder(), ["pay 1"]];
  const approveAndSwap = async (approvalId) => {
    note[0] = "pay 1000";
    await world.approver.approve(approvalId);
  };
  await world.call(fn, { note }, { ...REFUND, onPending: world.whenAsked(approveAndSwap) });
  assert.deepEqual([fn.calls, note], [[{ note: ["pay 1"] }], ["pay 1000"]]);
  await waitUntil("the outcome is an event", async () => (await world.outcomes()).join() === "ok");
  assert.ok(!(await world.kinds()).includes("tamper_attempt"));
});

testWith("e2e-swap", "an action that is swapped between approval and execution does not run", async (world) => {
  const fn = recorder();
  const swap = (at, body) => (at.endsWith("/consume") ? { ...body, claimed_action_hash: EDITED.actionHash() } : undefined);
  await withBetween(aegis.url, swap, async (url) => {
    const denied = await world.call(fn, undefined, { ...REFUND, url, onPending: world.whenAsked((approvalId) => world.approver.approve(approvalId)) }).catch((error) => error);
    assert.ok(denied instanceof DeniedUnverified && denied.code === "action_hash_mismatch", denied);
    assert.deepEqual(fn.calls, []);
    await waitUntil("the attempt is an event", async () => (await world.kinds()).includes("tamper_attempt"));
    assert.equal((await world.approver.approval(denied.approvalId)).status, "APPROVED");
  });
});

testWith("e2e-swap", "an action that is swapped on its way to the server does not run", async (world) => {
  const fn = recorder();
  const swap = (at, body) => (at === "/v1/authorize" ? { ...body, tool_call: { ...body.tool_call, parameters: { note: "swapped" } } } : undefined);
  await withBetween(aegis.url, swap, async (url) => {
    await assert.rejects(world.call(fn, undefined, { url }), (error) => error instanceof DeniedUnverified && error.code === "action_hash_mismatch");
  });
  assert.deepEqual(fn.calls, []);
});

const edit = (world) => world.whenAsked(async (approvalId) => {
  await world.approver.edit(approvalId, EDITED);
  const { edited_by: by, risk_level: risk, policy_digest: digest } = await (await world.somebodyElse()).approve(approvalId, { actionHash: EDITED.actionHash() });
  assert.ok(by.includes("rita") && risk === "medium" && digest !== EDITED.actionHash(), `${by} ${risk}`);
});

testWith("e2e-edit", "an edited action runs as edited, if the caller opted in", async (world) => {
  const fn = recorder();
  await world.call(fn, { note: "a", amount: 1 }, { ...REFUND, acceptEdits: true, onPending: edit(world) });
  assert.deepEqual(fn.calls, [{ note: "edited", amount: 2 }]);
  await waitUntil("the outcome is an event", async () => (await world.outcomes()).join() === "ok");
  assert.ok(!(await world.kinds()).includes("tamper_attempt"));
});

testWith("e2e-edit", "an edited action does not run otherwise", async (world) => {
  const fn = recorder();
  await assert.rejects(world.call(fn, { note: "a", amount: 1 }, { ...REFUND, onPending: edit(world) }), (error) => error instanceof DeniedByApprover && error.code === "approval_edited");
  assert.deepEqual(fn.calls, []);
});

testWith("e2e-edit", "an edit between the approval and its consumption does not run", async (world) => {
  const fn = recorder();
  const editFirst = async (at) => {
    if (at.endsWith("/consume")) await world.approver.edit(at.split("/")[3], EDITED);
  };
  await withBetween(aegis.url, editFirst, async (url) => {
    const how = { ...REFUND, url, acceptEdits: true, onPending: world.whenAsked((approvalId) => world.approver.approve(approvalId)) };
    await assert.rejects(world.call(fn, { note: "a", amount: 1 }, how), (error) => error instanceof DeniedUnverified && error.code === "action_hash_mismatch");
  });
  assert.deepEqual(fn.calls, []);
});

testWith("e2e-replay", "an approval is used once, and a second call asks anew", async (world) => {
  const [fn, approvals] = [recorder(), []];
  const approve = async (approvalId) => {
    approvals.push(approvalId);
    await world.approver.approve(approvalId);
  };
  for (let number = 0; number < 2; number += 1) await world.call(fn, undefined, { ...REFUND, onPending: world.whenAsked(approve) });
  assert.deepEqual([new Set(approvals).size, fn.calls.length], [2, 2]);
  const agent = world.client(world.agent.agent_token);
  const { action_hash: hash } = await world.approver.approval(approvals[0]);
  await assert.rejects(agent.consume(approvals[0], hash), (error) => error instanceof ApiError && error.status === 409 && error.code === "approval_consumed");
});

testWith("e2e-replay", "an approval that somebody else consumed does not run", async (world) => {
  const [fn, agent] = [recorder(), world.client(world.agent.agent_token)];
  const consumeFirst = async (at, body) => {
    if (at.endsWith("/consume")) await agent.consume(at.split("/")[3], body.claimed_action_hash);
  };
  await withBetween(aegis.url, consumeFirst, async (url) => {
    const how = { ...REFUND, url, onPending: world.whenAsked((approvalId) => world.approver.approve(approvalId)) };
    await assert.rejects(world.call(fn, undefined, how), (error) => error instanceof DeniedByApprover && error.code === "approval_consumed");
  });
  assert.deepEqual(fn.calls, []);
});

testWith("e2e-frozen", "a frozen agent does nothing until it is unfrozen", async (world) => {
  const fn = recorder();
  const state = await world.admin.freezeAgent(world.agent.id, "test");
  assert.deepEqual([state.verdict, state.enforced, state.holds[0].reason], ["frozen", true, "test"]);
  for (const how of [{}, READ, { ...READ, failOpenReads: true }]) {
    await assert.rejects(world.call(fn, undefined, how), (error) => error instanceof DeniedByPolicy && error.code === "agent_frozen");
  }
  assert.deepEqual(state.edges, { live: 0, enforcing: 0, silent: [], since: null });
  assert.deepEqual((await world.admin.containment()).map((held) => [held.target_id, held.edges]), [[world.agent.id, null]]);
  await world.admin.unfreezeAgent(world.agent.id, "test");
  await world.call(fn, undefined, READ);
  assert.equal(fn.calls.length, 1);
});

testWith("e2e-frozen", "an agent that is frozen while it waits does not run", async (world) => {
  const fn = recorder();
  const freezeAndApprove = async (approvalId) => {
    await world.admin.freezeAgent(world.agent.id, "test");
    await world.approver.approve(approvalId);
  };
  const how = { ...REFUND, onPending: world.whenAsked(freezeAndApprove) };
  await assert.rejects(world.call(fn, undefined, how), (error) => error instanceof DeniedByPolicy && error.code === "agent_frozen");
  assert.deepEqual(fn.calls, []);
});

test("edge-killed", "an edge that is killed while an approval is waited for is a denial", async () => {
  await withAegis(async (doomed) => {
    await withWorld(doomed, async (world) => {
      const fn = recorder();
      await assert.rejects(world.call(fn, undefined, { ...REFUND, unreachableS: 0.5, onPending: () => doomed.kill9() }), DeniedUnavailable);
      assert.deepEqual(fn.calls, []);
    });
  });
});

test("edge-killed", "an edge that restarts while an approval is waited for costs nothing", async () => {
  await withAegis(async (restarted) => {
    await withWorld(restarted, async (world) => {
      const fn = recorder();
      const restart = async (approvalId) => {
        await restarted.stop();
        await restarted.start();
        await world.approver.approve(approvalId);
      };
      assert.equal(await world.call(fn, undefined, { ...REFUND, onPending: world.whenAsked(restart) }), "done");
      assert.equal(fn.calls.length, 1);
    });
  });
});

testWith("e2e-200-tasks", "200 tasks at once on one client, each with its own label", async (world) => {
  const ran = [];
  const client = world.client(world.agent.agent_token);
  const update = protect(client, { tool: "crm", action: "update_customer", resource: (p) => p.id }, async (parameters) => {
    await new Promise((done) => setTimeout(done, 1));
    ran.push([parameters.id, parameters.trust, carry().label]);
  });
  const one = async (number) => {
    const trust = number % 2 ? "untrusted_external" : "trusted_internal_unsigned";
    const work = sourceTrust(trust, () => run(`task-${number}`, () => update({ id: String(number), trust })));
    if (number % 2) await assert.rejects(work, DeniedByPolicy);
    else await work;
  };
  await Promise.all(Array.from({ length: 200 }, (_, number) => one(number)));
  const expected = Array.from({ length: 100 }, (_, number) => [String(2 * number), "trusted_internal_unsigned", "trusted_internal_unsigned"]);
  assert.deepEqual(ran.sort(), expected.sort());
  await waitUntil("the outcomes are events", async () => (await world.admin.events({ kind: "tool_outcome", limit: 500 })).length === 100);
});

testWith("trust-context", "a label that was seen in a run stays with it", async (world) => {
  const fn = recorder();
  const client = world.client(world.agent.agent_token);
  const read = protect(client, { tool: "crm", action: "read_customer", mutatesState: false }, fn);
  const update = protect(client, { tool: "crm", action: "update_customer" }, fn);
  await run("tainted", async () => {
    await sourceTrust("untrusted_external", () => read({ note: "a" }));
    await assert.rejects(sourceTrust("trusted_internal_unsigned", () => update({ note: "b" })), DeniedByPolicy);
  });
  await run("clean", () => sourceTrust("trusted_internal_unsigned", () => update({ note: "c" })));
  assert.deepEqual(fn.calls.map(({ note }) => note), ["a", "c"]);
});

testWith("trust-context", "nobody approves what is done on their behalf", async (world) => {
  const fn = recorder();
  const approve = async (approvalId) => {
    await assert.rejects(world.approver.approve(approvalId), (error) => error instanceof ApiError && /self_approval/.test(error.message));
    await (await world.somebodyElse()).approve(approvalId);
  };
  await onBehalfOf("rita", () => world.call(fn, undefined, { ...REFUND, onPending: world.whenAsked(approve) }));
  assert.equal(fn.calls.length, 1);
});

test("fail-open", "a read runs without a server only where its author said so", async () => {
  await withAegis(async (doomed) => {
    await withWorld(doomed, async (world) => {
      const fn = recorder();
      await world.call(fn, undefined, READ);
      await doomed.kill9();
      for (const how of [READ, {}, { risk: "low" }]) await assert.rejects(world.call(fn, undefined, how), (error) => error instanceof DeniedUnavailable && error.code === "unreachable");
      await world.call(fn, { note: "b" }, { ...READ, failOpenReads: true });
      assert.deepEqual(fn.calls.map(({ note }) => note), ["a", "b"]);
    });
  });
});

testWith("verify-receipts", "an export verifies under the pinned keys, and a changed byte does not", async (world) => {
  await world.call(recorder());
  await waitUntil("the outcome is an event", async () => (await world.outcomes()).join() === "ok");
  const parts = [];
  await world.admin.exportReceipts((part) => parts.push(part));
  const text = Buffer.concat(parts).toString();
  const roots = receipts.Roots.read(["control", "edge"].map((name) => `${aegis.data}/keys/${name}.pub`));
  const report = await receipts.verifyExport(text, roots);
  assert.deepEqual([report.verdict, report.receipts], ["valid", text.trimEnd().split("\n").length], JSON.stringify(report.failure));
  assert.ok(report.receipts >= 5);
  const changed = await receipts.verifyExport(text.replace('"decision":"allow"', '"decision":"deny"'), roots);
  assert.ok(["hash_mismatch", "digest_mismatch"].includes(changed.failure.code));
  const [newest] = await world.admin.receipts({ limit: 1 });
  assert.equal(receipts.verifyEvent(await world.admin.receiptText(newest.event_id), roots).signed, true);
  assert.equal((await world.admin.verifyReceipt(newest.event_id)).verdict, "valid");
});

testWith("action-hash", "the server hashes what we hash", async (world) => {
  const agent = world.client(world.agent.agent_token);
  for (const parameters of [{}, { "é😀": [1, -0, 1e-7, 0.1, 2 ** 53 - 1, true, null] }, { a: '\u2028\0\u007f"\\/', z: { "": {} } }, { "10": 1, "9": 2, "\ue000": 3, "😀": 4 }]) {
    const call = new ToolCall("crm", "read_customer", null, false, parameters);
    assert.equal((await agent.authorize(call)).action_hash, call.actionHash());
  }
});

testWith("client-api", "the rest of the client", async (world) => {
  const again = await world.registrar.register({ agent_key: "bot", name: "Bot", environment: "production", risk_tier: "low" });
  assert.deepEqual([again.id, again.agent_key], [world.agent.id, "bot"]);
  assert.equal((await world.registrar.putTool({ tool: "t", name: "T", actions: [] })).tool, "t");
  const agent = world.client(again.agent_token);
  const call = new ToolCall("crm", "refund", null, true, { amount: 1 });
  const [first, second] = [await agent.authorize(call, { request_id: "one" }), await agent.authorize(call, { request_id: "one" })];
  assert.equal(first.approval.approval_id, second.approval.approval_id);
  await waitUntil("control has the approval", () => world.has(first.approval.approval_id));
  assert.deepEqual((await world.approver.approvals({ status: "PENDING" })).map((approval) => approval.approval_id), [first.approval.approval_id]);
  const outcome = await agent.outcome(second.decision_id, "ok", { executedHash: call.actionHash(), output: { n: 1 } });
  assert.deepEqual([outcome.status, outcome.violation], ["ok", "executed_without_approval"]);
  assert.equal((await world.admin.summary()).approvals_pending, 1);
  assert.equal((await world.admin.ready()).ready, true);
  assert.ok((await world.admin.decisions({ agentId: again.id })).length >= 1);
  assert.ok((await world.admin.receipts({ agentId: again.id })).every((receipt) => receipt.agent_id === again.id));
  assert.ok(Array.isArray(await world.admin.alerts()));
  const [incident] = await waitUntil("an incident is open", async () => {
    const found = await world.admin.incidents();
    return found.length > 0 && found;
  });
  assert.equal((await world.admin.incident(incident.incident_id)).incident_id, incident.incident_id);
  const [alert] = await world.admin.alerts();
  assert.equal((await world.admin.alert(alert.alert_id)).alert_id, alert.alert_id);
  assert.equal((await world.admin.closeIncident(incident.incident_id, { reason: "a test" })).incident_id, incident.incident_id);
  assert.ok((await world.admin.freezeAgent(again.id, "a", { ttlS: 60 })).holds[0].until);
  assert.equal((await world.admin.revokeAgent(again.id, "b")).verdict, "revoked");
  await world.tenant.call("POST", "/v1/mcp/servers", { key: "files", name: "Files", tools: [{ name: "read_file", mutates_state: false, risk: "low" }] });
  assert.equal((await world.admin.quarantineMcpServer("files", "a", { ttlS: 60 })).verdict, "quarantined");
  assert.equal((await world.admin.restoreMcpServer("files", "b")).verdict, "free");
  await assert.rejects(agent.freezeAgent(again.id, "c"), (error) => error instanceof ApiError && error.status === 403 && error.code === "wrong_role");
});

testWith("e2e-cancel", "a call that is broken off while it waits does not run", async (world) => {
  const [fn, controller] = [recorder(), new AbortController()];
  const how = { ...REFUND, onPending: () => setTimeout(() => controller.abort(), 100) };
  await assert.rejects(withSignal(controller.signal, () => world.call(fn, undefined, how)), { name: "AbortError" });
  assert.deepEqual(fn.calls, []);
});

testWith("e2e-cancel", "a call that is broken off while it runs is reported as ambiguous", async (world) => {
  const controller = new AbortController();
  const fn = () => new Promise((resolve, reject) => {
    controller.signal.addEventListener("abort", () => reject(controller.signal.reason));
    setTimeout(() => controller.abort(), 50);
  });
  await assert.rejects(withSignal(controller.signal, () => world.call(fn)), { name: "AbortError" });
  await waitUntil("the outcome is an event", async () => (await world.outcomes()).join() === "ambiguous");
});
