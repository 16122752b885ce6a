/**
 * The client. One credential: an agent's token to act, or an API key to administer. One client for the whole program: it keeps connections.
 *
 * Every call ends within `timeoutS`, its repetitions included. Nothing is repeated that could take effect twice.
 */

import { inspect } from "node:util";

import type { FrozenAction } from "./action.js";
import type { Json, JsonValue } from "./canon.js";
import * as endpoints from "./endpoints.js";
import { tokenFromEnvironment, urlFromEnvironment } from "./environment.js";
import { AegisError, ConfigError, RequestFailed } from "./errors.js";
import { exchange, jsonBody, type Request } from "./exchange.js";
import { type Caller, clear, type Clearance, type Options } from "./flow.js";
import type * as models from "./models.js";
import { monotonic } from "./natives.js";
import { sleep } from "./pause.js";
import { refuseToSerialise, Secret } from "./secret.js";
import { flag, given, maybeFunction } from "./settings.js";
import { checkedBaseUrl, type Sink, Transport } from "./transport.js";
import { checkedName, currentSignal, currentTrust, RunTokens } from "./trust.js";

/** A credential, or a function that is asked for it before each request. */
export type Token = string | Secret | (() => string | Secret | Promise<string | Secret>);

export interface ClientSettings {
  /** Where the server is: `http(s)://host[:port]`. AEGISAGENT_URL, otherwise http://127.0.0.1:8484. */
  url?: string;
  /** AEGISAGENT_TOKEN, or the file that AEGISAGENT_TOKEN_FILE names. */
  token?: Token;
  /** A label; the agent is the token's. */
  agent?: string;
  environment?: string;
  tenant?: string;
  /** For all of a call, its repetitions included: 10; at most 600. */
  timeoutS?: number;
  /** Certificates of your own, in PEM; then no others are believed. */
  caFile?: string;
  /** Plain HTTP beyond this machine, which shows the credential to whoever listens. */
  allowPlainHttp?: boolean;
  /** Where warnings go: what ran without a decision, what could not be reported. `process.emitWarning`. */
  onWarning?: (message: string) => void;
}

const SETTINGS = ["url", "token", "agent", "environment", "tenant", "timeoutS", "caFile", "allowPlainHttp", "onWarning"] as const;
const DEFAULT_TIMEOUT_S = 10;
const LONGEST_S = 600;
// How long a report of an outcome may hold up the result that it is about.
const REPORT_S = 5;
const TENANT = /^[a-z0-9_-]{1,64}$/;

/** What `protect` asks of a client. */
export interface Asker {
  /** Leave to run a frozen action, or Denied. `run` is called with it at once: nothing comes between the last check and the run. */
  cleared: <T>(action: FrozenAction, options: Options, run: (clearance: Clearance) => T) => Promise<T>;
  /** Reports an outcome. The run cannot be undone, so a failure is a warning and is not thrown. Also of work that is being broken off. */
  report: (clearance: Clearance, status: endpoints.OutcomeStatus, output?: JsonValue) => Promise<void>;
  /** Says something to whoever runs the program. */
  warn: (message: string) => void;
}

/** What a client is asked by; ConfigError for what is no client. Not a method, which somebody could put another one in the place of. */
export let askerOf: (client: unknown) => Asker;

/** The API. Fields of replies are those of docs/openapi.yaml; every method may throw RequestFailed. */
export class Client {
  readonly #transport: Transport;
  readonly #token: Secret | (() => string | Secret | Promise<string | Secret>);
  readonly #caller: Caller;
  readonly #asker: Asker;
  readonly #warn: (message: string) => void;
  /** Where it calls. */
  readonly baseUrl: string;
  readonly toJSON = refuseToSerialise;

  static {
    askerOf = (client) => {
      if (typeof client !== "object" || client === null || !(#asker in client)) throw new ConfigError("give the client that is to be asked");
      return client.#asker;
    };
  }

  constructor(settings: ClientSettings = {}) {
    const s = given<ClientSettings>(settings, SETTINGS, "a client");
    const timeoutS = s.timeoutS ?? DEFAULT_TIMEOUT_S;
    if (!(typeof timeoutS === "number" && timeoutS > 0 && timeoutS <= LONGEST_S)) throw new ConfigError(`timeoutS is over 0 and at most ${LONGEST_S}`);
    // Not `??`: null is nothing that was left out.
    const { url: address = urlFromEnvironment(), token = tokenFromEnvironment() } = s;
    const url = checkedBaseUrl(address, flag(s.allowPlainHttp, "allowPlainHttp", false));
    this.baseUrl = url.origin;
    this.#token = typeof token === "string" ? new Secret(token) : token;
    if (!(this.#token instanceof Secret) && typeof this.#token !== "function") throw new ConfigError("token is a text, a Secret or a function");
    if (s.tenant !== undefined && !TENANT.test(s.tenant)) throw new ConfigError("a tenant has 1 to 64 characters of a-z, 0-9, _ and -");
    const id = checkedName(s.agent ?? "agent", "agent");
    const label = s.environment === undefined ? { id } : { id, environment: checkedName(s.environment, "environment") };
    this.#warn = maybeFunction(s.onWarning, "onWarning") ?? warning;
    this.#transport = new Transport(url, s.tenant ?? null, s.caFile ?? null);
    this.#caller = {
      agent: label, tokens: new RunTokens(), isContained: false,
      call: async (request, signal) => await this.#call(request, signal, timeoutS),
      warn: (message) => {
        this.#say(message);
      },
    };
    this.#asker = {
      cleared: async (action, options, run) => await clear(this.#caller, action, options, currentSignal(), run),
      report: async (clearance, status, output) => {
        await this.#report(clearance, status, output);
      },
      warn: this.#caller.warn,
    };
  }

  /** The server's word on each run, which is sent back. */
  get trustTokens(): RunTokens {
    return this.#caller.tokens;
  }

  /** Closes all connections. Nothing is sent any more. */
  close(): void {
    this.#transport.close();
  }

  [inspect.custom](): string {
    return `Client(${inspect(this.baseUrl)})`;
  }

  // Acting

  /**
   * A decision, by itself: it gives no leave to run anything, that is what `protect` is for. `fields`: more of the request; with a `request_id`
   * the server takes a repeated call as the same one.
   */
  async authorize(call: models.ToolCall, fields: Json = {}): Promise<models.Decision> {
    const body = { agent: this.#caller.agent, context: { source_trust: currentTrust() }, ...fields, tool_call: call.asJson() };
    const { request_id: requestId, ...rest } = body as Json;
    // An empty one names no call.
    const sent = requestId === undefined || requestId === "" ? rest : body;
    return await this.#ask(endpoints.authorize(jsonBody(sent), typeof requestId === "string" && requestId !== ""));
  }

  /** One approval; 404 `approval_not_found` means that it is pending. */
  async approval(approvalId: string): Promise<models.Approval> {
    return await this.#ask(endpoints.approval(approvalId));
  }

  /** The tenant's approvals, newest first. */
  async approvals(filter: endpoints.Page & { status?: string } = {}): Promise<models.Approval[]> {
    return await this.#ask(endpoints.approvals(filter.status ?? null, filter));
  }

  /** Consumes an approval. A lost answer is asked for again; where this fails otherwise than with a refusal, it may have been consumed all the same. */
  async consume(approvalId: string, actionHash: string): Promise<models.Consumed> {
    return await this.#ask(endpoints.consume(approvalId, actionHash));
  }

  /** Reports what came of a decision. */
  async outcome(decisionId: string, status: endpoints.OutcomeStatus, more: { executedHash?: string; output?: JsonValue } = {}): Promise<models.Outcome> {
    return await this.#ask(endpoints.outcome(decisionId, { status, ...present({ executed_hash: more.executedHash, output: more.output }) }));
  }

  // Deciding

  /** Approves. `actionHash`: that of the action you were shown; required once it was edited. */
  async approve(approvalId: string, more: { actionHash?: string; reason?: string } = {}): Promise<models.Approval> {
    return await this.#ask(endpoints.decide(approvalId, "approve", present({ action_hash: more.actionHash, reason: more.reason })));
  }

  /** Rejects. */
  async reject(approvalId: string, more: { reason?: string } = {}): Promise<models.Approval> {
    return await this.#ask(endpoints.decide(approvalId, "reject", present({ reason: more.reason })));
  }

  /** Puts another action in the place of the one that was asked for; it must be approved again. */
  async edit(approvalId: string, call: models.ToolCall, more: { reason?: string } = {}): Promise<models.Approval> {
    return await this.#ask(endpoints.decide(approvalId, "edit", { tool_call: call.asJson(), ...present({ reason: more.reason }) }));
  }

  // Registering

  /** Registers an agent, or gets a fresh token for a known one: `{agent_key, name, environment, risk_tier, owner_team?, trust_ceiling?}`. */
  async register(agent: Json): Promise<models.Registration> {
    return await this.#ask(endpoints.register(agent));
  }

  /** Registers a tool with its actions; it replaces an earlier one. */
  async putTool(tool: Json): Promise<Json> {
    return await this.#ask(endpoints.putTool(tool));
  }

  // Containing

  /** Denies the agent everything, until it is unfrozen or `ttlS` has passed. */
  async freezeAgent(agentId: string, reason: string, more: { ttlS?: number } = {}): Promise<models.Containment> {
    return await this.#ask(endpoints.contain("agents", agentId, "freeze", { reason, ...present({ ttl_s: more.ttlS }) }));
  }

  /** Ends the agent's freezes. */
  async unfreezeAgent(agentId: string, reason: string): Promise<models.Containment> {
    return await this.#ask(endpoints.contain("agents", agentId, "unfreeze", { reason }));
  }

  /** Denies the agent everything, for good. */
  async revokeAgent(agentId: string, reason: string): Promise<models.Containment> {
    return await this.#ask(endpoints.contain("agents", agentId, "revoke", { reason }));
  }

  /** Denies every call to an MCP server's tools. */
  async quarantineMcpServer(key: string, reason: string, more: { ttlS?: number } = {}): Promise<models.Containment> {
    return await this.#ask(endpoints.contain("mcp_servers", key, "quarantine", { reason, ...present({ ttl_s: more.ttlS }) }));
  }

  /** Ends the server's quarantines. */
  async restoreMcpServer(key: string, reason: string): Promise<models.Containment> {
    return await this.#ask(endpoints.contain("mcp_servers", key, "restore", { reason }));
  }

  /** What is held or revoked now. */
  async containment(page: endpoints.Page = {}): Promise<models.Containment[]> {
    return await this.#ask(endpoints.containment(page));
  }

  // Looking

  /** Receipt bodies, newest first. */
  async receipts(filter: endpoints.Page & { agentId?: string; runId?: string } = {}): Promise<Json[]> {
    return await this.#ask(endpoints.receipts(filter.agentId ?? null, filter.runId ?? null, filter));
  }

  /** An event with its receipt and proof. */
  async receipt(receiptId: string): Promise<Json> {
    return await this.#ask(endpoints.receipt(receiptId));
  }

  /** The same as the text that came: what `receipts.verifyEvent` takes. */
  async receiptText(receiptId: string): Promise<string> {
    return await this.#ask(endpoints.receiptText(receiptId));
  }

  /** The server's own verdict on a receipt. */
  async verifyReceipt(receiptId: string): Promise<models.ReceiptVerdict> {
    return await this.#ask(endpoints.verifyReceipt(receiptId));
  }

  /** Writes the tenant's receipts as JSON lines: what `receipts.verifyExport` reads. Of a failed export, what came is written. */
  async exportReceipts(sink: Sink): Promise<void> {
    await this.#call(endpoints.exportReceipts(), currentSignal(), LONGEST_S, sink);
  }

  /** Decisions, newest first, as events. */
  async decisions(filter: endpoints.Page & { agentId?: string; runId?: string } = {}): Promise<Json[]> {
    return await this.#ask(endpoints.list(["decisions"], { agent_id: filter.agentId ?? null, run_id: filter.runId ?? null }, filter));
  }

  /** One decision. */
  async decision(decisionId: string): Promise<Json> {
    return await this.#ask(endpoints.one(["decisions", decisionId]));
  }

  /** Events of every kind, newest first. */
  async events(filter: endpoints.Page & { kind?: string; agentId?: string; runId?: string } = {}): Promise<Json[]> {
    const query = { kind: filter.kind ?? null, agent_id: filter.agentId ?? null, run_id: filter.runId ?? null };
    return await this.#ask(endpoints.list(["audit", "events"], query, filter));
  }

  /** Alerts, newest first. */
  async alerts(page: endpoints.Page = {}): Promise<Json[]> {
    return await this.#ask(endpoints.list(["alerts"], {}, page));
  }

  /** One alert. */
  async alert(alertId: string): Promise<Json> {
    return await this.#ask(endpoints.one(["alerts", alertId]));
  }

  /** Incidents, newest first. */
  async incidents(page: endpoints.Page = {}): Promise<Json[]> {
    return await this.#ask(endpoints.list(["incidents"], {}, page));
  }

  /** One incident. */
  async incident(incidentId: string): Promise<Json> {
    return await this.#ask(endpoints.one(["incidents", incidentId]));
  }

  /** Closes an incident. */
  async closeIncident(incidentId: string, fields: Json = {}): Promise<Json> {
    return await this.#ask(endpoints.closeIncident(incidentId, fields));
  }

  /** Counts of incidents, alerts, pending approvals and contained targets. */
  async summary(): Promise<Json> {
    return await this.#ask(endpoints.one(["soc", "summary"]));
  }

  /** `{ready, checks}`, also of a server that is not. */
  async ready(): Promise<Json> {
    return await this.#ask(endpoints.ready());
  }

  async #report(clearance: Clearance, status: endpoints.OutcomeStatus, output: JsonValue | undefined): Promise<void> {
    if (clearance.decisionId === null) return;
    try {
      const body = { status, executed_hash: clearance.action.actionHash, ...present({ output }) };
      await this.#call(endpoints.outcome(clearance.decisionId, body), null, REPORT_S);
    } catch (error) {
      const why = error instanceof AegisError ? error.message : "it failed";
      this.#say(`the outcome of decision ${clearance.decisionId} is not reported: ${why}`);
    }
  }

  #say(message: string): void {
    try {
      this.#warn(message);
    } catch {
      // What is told of a call must not change it.
    }
  }

  async #ask<T>(request: Request<T>): Promise<T> {
    return await this.#caller.call(request, currentSignal());
  }

  async #call<T>(request: Request<T>, signal: AbortSignal | null, timeoutS: number, sink?: Sink): Promise<T> {
    const began = monotonic();
    const secret = await this.#secret(timeoutS, signal);
    const leftS = timeoutS - (monotonic() - began);
    return await exchange(request, { transport: this.#transport, secret, timeoutS: leftS, signal, ...(sink === undefined ? {} : { sink }) });
  }

  /** The credential for the next request; a function is asked each time, so that it may change, and has no more time than the call. */
  async #secret(timeoutS: number, signal: AbortSignal | null): Promise<Secret> {
    const token = this.#token;
    if (token instanceof Secret) return token;
    const late = new AbortController();
    const over = sleep(timeoutS, signal === null ? late.signal : AbortSignal.any([signal, late.signal])).catch(() => undefined);
    try {
      // Its own error may hold what nobody is to see, and is no sign that the server is away.
      const asked = await Promise.race([(async () => await token())().catch(() => undefined), over]);
      signal?.throwIfAborted();
      if (asked === undefined) throw new RequestFailed("no_credential", "the function that is to give the credential failed, or gave none in time", false);
      return asked instanceof Secret ? asked : new Secret(asked);
    } finally {
      late.abort();
    }
  }
}

function present(fields: Readonly<Record<string, JsonValue | undefined>>): Json {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as Json;
}

function warning(message: string): void {
  process.emitWarning(message, "AegisAgentWarning");
}
