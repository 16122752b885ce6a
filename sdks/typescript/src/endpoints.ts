/** The calls of the API as requests: paths, bodies, answers, and whether one may be sent twice. */

import type { Buffer } from "node:buffer";
import { randomUUID } from "node:crypto";

import type { Json } from "./canon.js";
import { jsonBody, pathOf, type Request } from "./exchange.js";
import * as models from "./models.js";

export type OutcomeStatus = "ok" | "error" | "ambiguous";
/** A page of a list. */
export interface Page {
  /** 50; at most 500. */
  limit?: number;
  offset?: number;
}

type Query = Readonly<Record<string, string | number | null>>;
type Read<T> = Request<T>["read"];

function get<T>(parts: readonly string[], read: Read<T>, query: Query = {}, expect: readonly number[] = [200]): Request<T> {
  return { method: "GET", path: pathOf(parts, query), read, retry: "safe", expect };
}

function post<T>(parts: readonly string[], read: Read<T>, body: Json, expect: readonly number[] = [200]): Request<T> {
  return { method: "POST", path: pathOf(parts), read, body: jsonBody(body), retry: "unchanged", expect };
}

function page(given: Page): { limit: number; offset: number } {
  return { limit: given.limit ?? 50, offset: given.offset ?? 0 };
}

/** Registers an agent, or takes a fresh token for a known one: the same again changes nothing but the token. */
export function register(fields: Json): Request<models.Registration> {
  return { ...post(["v1", "agents", "register"], models.readRegistration, fields, [200, 201]), retry: "safe" };
}

/** Registers a tool; the same again changes nothing. */
export function putTool(fields: Json): Request<Json> {
  return { ...post(["v1", "tools"], models.readObject, fields, [201]), retry: "safe" };
}

/** Asks for a decision. With a `request_id` the server evaluates a repeated call as the same one. */
export function authorize(body: Buffer, isIdempotent: boolean): Request<models.Decision> {
  const retry = isIdempotent ? "safe" : "unchanged";
  return { method: "POST", path: pathOf(["v1", "authorize"]), read: (tree) => new models.Decision(tree), body, retry, expect: [200] };
}

/** One approval; 404 `approval_not_found` while control has not seen it yet. */
export function approval(approvalId: string): Request<models.Approval> {
  return get(["v1", "approvals", approvalId], (tree) => new models.Approval(tree));
}

/** The tenant's approvals, newest first. */
export function approvals(status: string | null, given: Page): Request<models.Approval[]> {
  return get(["v1", "approvals"], (tree) => models.listOf(tree, (item) => new models.Approval(item)), { status, ...page(given) });
}

/** What an approver says. */
export function decide(approvalId: string, verb: "approve" | "reject" | "edit", body: Json): Request<models.Approval> {
  return post(["v1", "approvals", approvalId, verb], (tree) => new models.Approval(tree), body);
}

/** The key of one request and its repetitions. It is kept nowhere else: who has it may be told again what only one may be told. */
export function freshRequestId(): string {
  return randomUUID();
}

/** The one moment at which an approved action may run. Where the answer is lost, the same request is told it again, and no other is. */
export function consume(approvalId: string, actionHash: string): Request<models.Consumed> {
  const body = { claimed_action_hash: actionHash, request_id: freshRequestId() };
  return { ...post(["v1", "approvals", approvalId, "consume"], models.readConsumed, body), retry: "safe" };
}

/** What came of a decision. Every report is a receipt; one that is sent again is the same. */
export function outcome(decisionId: string, body: Json): Request<models.Outcome> {
  const reported = { ...body, request_id: freshRequestId() };
  return { ...post(["v1", "decisions", decisionId, "outcome"], models.readOutcome, reported, [201]), retry: "safe" };
}

/** Freeze, unfreeze, revoke; quarantine, restore. */
export function contain(kind: "agents" | "mcp_servers", target: string, verb: string, body: Json): Request<models.Containment> {
  const parts = kind === "agents" ? ["agents"] : ["mcp", "servers"];
  return post(["v1", ...parts, target, verb], models.readContainment, body);
}

/** What is held or revoked now. */
export function containment(given: Page): Request<models.Containment[]> {
  return get(["v1", "containment"], (tree) => models.listOf(tree, models.readContainment), page(given));
}

/** Receipt bodies, newest first. */
export function receipts(agentId: string | null, runId: string | null, given: Page): Request<Json[]> {
  return get(["v1", "receipts"], models.readObjects, { agent_id: agentId, run_id: runId, ...page(given) });
}

/** An event in its wire form, with receipt and proof. */
export function receipt(receiptId: string): Request<Json> {
  return get(["v1", "receipts", receiptId], models.readObject);
}

/** The same as the text that came, which says `1.0` where it says `1.0`: what `receipts.verifyEvent` takes. */
export function receiptText(receiptId: string): Request<string> {
  return get(["v1", "receipts", receiptId], (tree, body) => {
    models.readObject(tree);
    return body.toString("utf8");
  });
}

/** The server's own verdict on a receipt. */
export function verifyReceipt(receiptId: string): Request<models.ReceiptVerdict> {
  return get(["v1", "receipts", receiptId, "verify"], models.readReceiptVerdict);
}

/** The tenant's receipts as JSON lines, which are written as they come. */
export function exportReceipts(): Request<null> {
  return { ...get(["v1", "receipts", "export"], () => null), isWritten: true };
}

/** Lists and single things that are looked at as they are. */
export function list(parts: readonly string[], query: Query, given: Page): Request<Json[]> {
  return get(["v1", ...parts], models.readObjects, { ...query, ...page(given) });
}

export function one(parts: readonly string[]): Request<Json> {
  return get(["v1", ...parts], models.readObject);
}

/** Closes an incident. */
export function closeIncident(incidentId: string, body: Json): Request<Json> {
  return post(["v1", "incidents", incidentId, "close"], models.readObject, body);
}

/** Whether the server can do its work; 503 with the same form where it cannot. */
export function ready(): Request<Json> {
  return get(["readyz"], models.readObject, {}, [200, 503]);
}
