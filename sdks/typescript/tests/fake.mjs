// A small server that answers as the real one would, or as a hostile one could: any answer can be put in the place of an honest one.
//
// The tests against the real program are in end-to-end.test.mjs; this is for what no real program does.

import { randomUUID } from "node:crypto";
import http from "node:http";
import { setTimeout as sleep } from "node:timers/promises";

import { actionHash } from "aegisagent";

import { ownHost } from "./loopback.mjs";

export const HASH = "ab".repeat(32);
export const TOKEN = "agent-token-that-nobody-may-see-0123456789";

/** `decision` is what it decides; `statuses` what it says of the approval, one after the other, the last one again and again. */
export class FakeEdge {
  decision = "allow";
  statuses = ["APPROVED"];
  riskLevel = "medium";
  edited = null;
  /** name → an answer `[status, value, headers?]`, a function of the honest one, or `raw(...)`. */
  replace = {};
  /** name → what is done before an answer. */
  before = {};
  seen = [];
  isGone = false;
  #calls = new Map();
  /** approval → the key that consumed it; path and key → the outcome that was made of them. */
  consumed = new Map();
  reported = new Map();
  #server = http.createServer((request, response) => {
    this.#handle(request, response).catch((error) => {
      response.destroy(error);
    });
  });

  /** `url`: where another one was, which is closed. */
  async start(url = null) {
    this.#server.keepAliveTimeout = 15_000;
    const { hostname, port } = url ? new URL(url) : { hostname: await ownHost(), port: 0 };
    await new Promise((done) => this.#server.listen(Number(port), hostname, done));
    return this;
  }

  get url() {
    const { address, port } = this.#server.address();
    return `http://${address}:${port}`;
  }

  async close() {
    this.isGone = true;
    this.#server.closeAllConnections();
    if (this.#server.listening) await new Promise((done) => this.#server.close(done));
  }

  /** The bodies that were sent to an endpoint: authorize, approval, consume, outcome. */
  sent(what) {
    return this.seen.filter((one) => one.name === what).map((one) => (one.text === "" ? null : JSON.parse(one.text)));
  }

  async #handle(request, response) {
    const parts = [];
    for await (const part of request) parts.push(part);
    const text = Buffer.concat(parts).toString("utf8");
    const name = nameOf(request.url);
    this.seen.push({ name, text, headers: request.headers, path: request.url, port: request.socket.remotePort });
    await this.before[name]?.();
    if (this.isGone) {
      request.socket.destroy();
      return;
    }
    const answer = this.#answer(name, request.url, text === "" ? null : JSON.parse(text));
    if (typeof answer === "function") {
      await answer(response, request.socket);
      return;
    }
    const [status, value, headers = {}] = answer;
    const data = typeof value === "string" || Buffer.isBuffer(value) ? value : JSON.stringify(value);
    response.writeHead(status, { ...headers, "content-length": Buffer.byteLength(data) });
    response.end(data);
  }

  #answer(name, path, body) {
    const honest = { authorize: () => this.#authorize(body), approval: () => this.#approval(path), consume: () => this.#consume(path, body), outcome: () => this.#outcome(path, body) }[name]?.() ?? [200, {}];
    const change = this.replace[name];
    if (change === undefined) return honest;
    return typeof change === "function" && !change.isRaw ? change(honest) : change;
  }

  #authorize(body) {
    const call = body.tool_call;
    const hash = actionHash(call.tool, call.action, call.resource, call.mutates_state, call.parameters);
    let approval = null;
    if (this.decision === "require_approval") {
      const approvalId = randomUUID();
      this.#calls.set(approvalId, { call, hash });
      approval = { approval_id: approvalId, status: "PENDING", approver_group: "release", expires_at: later(), expires_in: 900, action_hash: hash };
    }
    const receipt = { receipt_id: randomUUID(), receipt_hash: HASH, prev_receipt_hash: HASH, canon_version: "aegis-jcs-1" };
    return [200, {
      decision_id: randomUUID(), decision: this.decision, reason: "because", matched_policies: [], risk_score: 40, risk_level: this.riskLevel,
      root_trust_level: body.context.source_trust, trust_token: "token", action_hash: hash, dry_run: false, approval, receipt,
    }];
  }

  #approval(path) {
    const approvalId = path.split("/")[3];
    const { call, hash } = this.#calls.get(approvalId) ?? {};
    const status = this.statuses.length > 1 ? this.statuses.shift() : this.statuses[0];
    if (status === 404) return [404, { error: { code: "approval_not_found", message: "not yet" } }];
    const edited = this.edited;
    const current = edited ? actionHash(edited.tool, edited.action, edited.resource, edited.mutates_state, edited.parameters) : hash;
    return [200, {
      approval_id: approvalId, status, agent_id: "a", decision_id: "d", action_hash: current, original_action_hash: hash, is_edited: edited !== null,
      tool_call: call, edited_tool_call: edited, approver_group: "release", approvals_needed: 1, approved_by: [], source_trust: "unknown", reason: "r",
      requested_at: later(0), expires_at: later(), expires_in: 900,
      edited_by: edited && "e", user_id: null, policy_digest: HASH, risk_level: "high", matched_policies: [],
    }];
  }

  #consume(path, body) {
    const approvalId = path.split("/")[3];
    if ((this.consumed.get(approvalId) ?? body.request_id) !== body.request_id) return [409, { error: { code: "approval_consumed", message: "m" } }];
    this.consumed.set(approvalId, body.request_id);
    return [200, { status: "consumed", approval_id: approvalId, action_hash: body.claimed_action_hash }];
  }

  #outcome(path, body) {
    const key = `${path} ${body.request_id}`;
    if (!this.reported.has(key)) this.reported.set(key, `o-${this.reported.size}`);
    const outcomeId = this.reported.get(key);
    return [201, { decision_id: path.split("/")[3], outcome_id: outcomeId, status: body.status, violation: null, receipt_hash: HASH }];
  }
}

export const later = (seconds = 900) => new Date(Date.now() + seconds * 1000).toISOString();

function nameOf(path) {
  if (path === "/v1/authorize") return "authorize";
  const last = path.split("/").at(-1);
  if (last === "consume" || last === "outcome") return last;
  return path.includes("/approvals/") ? "approval" : "other";
}

/** An answer that is written by hand: `write(response, socket)`. */
export function raw(write) {
  return Object.assign(write, { isRaw: true });
}

/** Writes a text slowly, as long as somebody listens. */
export async function drip(socket, text) {
  for (const byte of text) {
    if (socket.destroyed) return;
    socket.write(byte);
    await sleep(50);
  }
}

export async function withEdge(work) {
  const edge = await new FakeEdge().start();
  try {
    return await work(edge);
  } finally {
    await edge.close();
  }
}
