// What the types of the installed package promise; the compiler is the test. Nothing here is run.

import type { StructuredToolInterface } from "@langchain/core/tools";
import type { Client as Session } from "@modelcontextprotocol/sdk/client/index.js";
import type { Agent } from "@openai/agents";
import {
  type Approval, Client, Denied, type JsonValue, onBehalfOf, parseStrict, protect, receipts, run, type Secret, sourceTrust, type SourceTrust, ToolCall, withSignal,
} from "aegisagent";
import { protectFunctions } from "aegisagent/adapters";
import { protectTools } from "aegisagent/adapters/langchain";
import { protectSession } from "aegisagent/adapters/mcp";
import { protectAgent } from "aegisagent/adapters/openai-agents";
import { verifyExport } from "aegisagent/receipts";

export async function named(client: Client): Promise<string> {
  const refund = protect(client, { tool: "shop", action: "refund", resource: (p) => p.order }, async ({ order, amount }: { order: string; amount: number }) => `${order} ${amount}`);
  // @ts-expect-error an amount is a number
  await refund({ order: "a", amount: "5" });
  // @ts-expect-error the setting is acceptEdits
  protect(client, { tool: "shop", action: "refund", acceptsEdits: true }, () => 1);
  // @ts-expect-error a label is one of six
  sourceTrust("untrusted", () => refund({ order: "a", amount: 5 }));
  return await sourceTrust("semi_trusted_customer", () => run("r", () => onBehalfOf("u", () => refund({ order: "a", amount: 5 }))));
}

export async function inOrder(client: Client, signal: AbortSignal): Promise<number> {
  const add = protect(client, { tool: "t", action: "add", params: ["one", "other"], defaults: { other: 1 } }, (one: number, other?: number) => one + (other ?? 0));
  return await withSignal(signal, () => add(1));
}

export async function answers(client: Client): Promise<[SourceTrust | string, Secret, string | null, JsonValue]> {
  const decision = await client.authorize(new ToolCall("t", "a", null, true, { n: 1 }), { request_id: "r" });
  const approval: Approval = await client.approval("i");
  const registration = await client.register({ agent_key: "k", name: "n", environment: "e", risk_tier: "low" });
  // @ts-expect-error what came is not changed
  approval.status = "APPROVED";
  return [decision.root_trust_level, registration.agent_token, new Denied("a", "b").decisionId, parseStrict("1")];
}

export async function adapters(client: Client, agent: Agent, tools: StructuredToolInterface[], session: Session): Promise<void> {
  const { read } = protectFunctions(client, { read: ({ id }: { id: string }) => id.length }, { tool: "t", reads: ["read"] });
  const length: number = await read({ id: "a" });
  protectAgent(client, agent, { tool: "t", tellModel: true });
  protectTools(client, tools, { tool: "t", reads: new Set(["read"]) });
  protectSession(client, session, { server: "s" });
  // @ts-expect-error a session has no model to tell
  protectSession(client, session, { server: "s", tellModel: true });
  const report = await verifyExport(new Uint8Array(length), receipts.Roots.read([]));
  const { line, code } = report.failure ?? { line: 0, code: "" };
  void [line, code];
}
