// Against an edge that is a process of its own: one base URL is enough to act, and a control plane that is gone costs an approval, not an answer.

import assert from "node:assert/strict";

import { Client, DeniedUnavailable, protect, run, sourceTrust } from "aegisagent";

import { recorder } from "./calling.mjs";
import { test } from "./feature.mjs";
import { Aegis, unique, waitUntil, Tenant } from "./harness.mjs";
import { withNats } from "./nats.mjs";

/** `work(control, edge, tenant, token)` with a control plane, an edge, a tenant and its agent. */
async function withSplit(work) {
  await withNats(async (url) => {
    const environment = { AEGIS_NATS_SERVERS: url };
    const [control, edge] = [new Aegis("control", environment), new Aegis("edge", environment)];
    try {
      control.cli("streams", "apply", "--nats", url);
      await control.start();
      const tenant = await new Tenant(control, unique("tenant")).registerTools();
      // Calls that are polled for are denied until the edge knows the tools: five of them are a storm.
      await tenant.settings({ automatic_freezes_per_hour: 0 });
      const agent = await tenant.call("POST", "/v1/agents/register", { agent_key: "bot", name: "Bot", environment: "production", risk_tier: "low" });
      const invitation = control.cli("edge", "invite", "--id", "edge-1", "--tenant", tenant.name, "--data", control.data).trim();
      edge.cliWith(invitation, "edge", "enroll", "--control", control.url, "--data", edge.data);
      await edge.start();
      await work(control, edge, tenant, agent.agent_token);
    } finally {
      await edge.close();
      await control.close();
    }
  });
}

const trusted = (protectedCall, note) => sourceTrust("trusted_internal_unsigned", () => run("r", () => protectedCall({ note })));

test("edge-killed", "an edge of its own is enough to act, and control that is gone costs an approval", async () => {
  await withSplit(async (control, edge, tenant, token) => {
    const fn = recorder();
    const approver = new Client({ url: control.url, token: await tenant.key("approver", "rita", ["security"]) });
    const client = new Client({ url: edge.url, token, onWarning: () => undefined });
    const update = protect(client, { tool: "crm", action: "update_customer" }, fn);
    await waitUntil("the edge knows the agent and the tools", () => trusted(update, "known").catch(() => null));
    fn.calls.length = 0;
    let deciding;
    const approve = (pending) => {
      deciding = waitUntil("control has it", async () => (await approver.approvals({ status: "PENDING" })).length > 0).then(() => approver.approve(pending.approval_id));
    };
    assert.equal(await trusted(protect(client, { tool: "crm", action: "refund", onPending: approve }, fn), "a"), "done");
    await deciding;
    approver.close();
    await control.kill9();
    assert.equal(await trusted(update, "b"), "done");
    const refund = protect(client, { tool: "crm", action: "refund", unreachableS: 0.5 }, fn);
    await assert.rejects(trusted(refund, "c"), (error) => error instanceof DeniedUnavailable && error.code === "control_unreachable");
    assert.deepEqual(fn.calls.map(({ note }) => note), ["a", "b"]);
    client.close();
  });
});
