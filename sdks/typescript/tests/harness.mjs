// The real program under test: started, stopped, killed, spoken to over HTTP and by its command line. AEGIS_BIN names it.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

import { ApiError, Client, currentTrust, protect, run, sourceTrust } from "aegisagent";

const BINARY = process.env.AEGIS_BIN;
// The program's own variables would reach it from the caller's environment and change what is tested.
export const CLEAN_ENVIRONMENT = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^AEGIS/.test(name)));
// Long, because the machine may be busy; a condition that holds ends the wait at once.
const DEADLINE_S = 60;

export const unique = (prefix) => `${prefix}-${randomUUID().slice(0, 8)}`;

/** The first truthy value of `condition`; fails when there is none within the deadline. */
export async function waitUntil(what, condition) {
  const end = performance.now() + DEADLINE_S * 1000;
  for (let pause = 5; ; pause = Math.min(pause * 1.5, 250)) {
    const value = await condition();
    if (value) return value;
    assert.ok(performance.now() < end, `not within ${DEADLINE_S} s: ${what}`);
    await sleep(pause);
  }
}

/** One data folder and the process that runs on it. */
export class Aegis {
  #folder = mkdtempSync(path.join(os.tmpdir(), "aegis-sdk-"));
  #process = null;
  data = path.join(this.#folder, "data");
  port = 0;

  /** `role`: up, control or edge. `environment`: variables of the program's own. */
  constructor(role = "up", environment = {}) {
    assert.ok(BINARY, "set AEGIS_BIN to the built program");
    this.role = role;
    this.environment = { ...CLEAN_ENVIRONMENT, ...environment };
  }

  get url() {
    return `http://127.0.0.1:${this.port}`;
  }

  /** Starts the process and waits until it says where it listens and is ready; at the same port again after a stop. */
  async start() {
    this.#process = spawn(BINARY, [this.role, "--data", this.data, "--listen", `127.0.0.1:${this.port}`], { env: this.environment, stdio: ["ignore", "pipe", "ignore"] });
    for await (const line of createInterface({ input: this.#process.stdout })) {
      const said = /^aegis: listening on http:\/\/.*:(\d+)/.exec(line);
      if (!said) continue;
      this.port = Number(said[1]);
      break;
    }
    this.#process.stdout.resume();
    await waitUntil("/readyz answers 200", async () => (await fetch(`${this.url}/readyz`).catch(() => null))?.status === 200);
    return this;
  }

  async #end(signal) {
    const ending = this.#process;
    this.#process = null;
    if (ending === null || ending.exitCode !== null) return;
    const ended = once(ending, "exit");
    ending.kill(signal);
    await ended;
  }

  /** Ends the process as a power cut does. */
  async kill9() {
    await this.#end("SIGKILL");
  }

  /** Stops it as an operator does. */
  async stop() {
    await this.#end("SIGTERM");
  }

  async close() {
    await this.#end("SIGTERM");
    rmSync(this.#folder, { recursive: true, force: true });
  }

  /** What a command of the program prints. */
  cli(...args) {
    return this.cliWith("", ...args);
  }

  /** The same with something to read. */
  cliWith(input, ...args) {
    return execFileSync(BINARY, args, { env: this.environment, encoding: "utf8", input });
  }

  /** A new tenant with its tools. */
  async tenant() {
    return await new Tenant(this, unique("tenant")).registerTools();
  }
}

export async function withAegis(work) {
  const aegis = await new Aegis().start();
  try {
    return await work(aegis);
  } finally {
    await aegis.close();
  }
}

const action = (name, risk, mutates_state, parameters = {}, fields = {}) => ({
  action: name, risk, mutates_state, approval_required: false, default_decision: "policy",
  parameters: { type: "object", properties: Object.fromEntries(Object.entries(parameters).map(([key, type]) => [key, { type }])) }, ...fields,
});
const CRM = {
  tool: "crm", name: "CRM", default_risk: "medium", actions: [
    action("read_customer", "low", false, { id: "string" }, { data_access: "internal" }), action("update_customer", "medium", true, { id: "string", email: "string", amount: "integer" }),
    action("refund", "medium", true, { amount: "integer" }, { approval_required: true }),
  ],
};

/** A tenant of a running instance, with keys of its people. */
export class Tenant {
  constructor(aegis, name) {
    this.aegis = aegis;
    this.name = name;
    this.admin = JSON.parse(aegis.cli("keys", "create", "--tenant", name, "--role", "admin", "--name", "ada", "--data", aegis.data, "--json")).key;
  }

  async call(method, at, body, key = this.admin) {
    const headers = { authorization: `Bearer ${key}`, ...(body === undefined ? {} : { "content-type": "application/json" }) };
    const reply = await fetch(`${this.aegis.url}${at}`, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
    const text = await reply.text();
    assert.ok(reply.ok, `${method} ${at}: HTTP ${reply.status}: ${text.slice(0, 600)}`);
    return JSON.parse(text);
  }

  async key(role, name = `${role}-person`, groups = []) {
    return (await this.call("POST", "/v1/keys", { role, name, groups })).key;
  }

  async settings(changes) {
    await this.call("PUT", "/v1/settings", { ...(await this.call("GET", "/v1/settings")), ...changes });
  }

  async registerTools() {
    await this.call("POST", "/v1/tools", CRM);
    return this;
  }
}

/** A tenant with its people, and an agent. */
export class World {
  #open = [];
  #deciding = [];

  static async of(aegis) {
    const world = new World();
    world.aegis = aegis;
    world.tenant = await aegis.tenant();
    await world.tenant.settings({ automatic_freezes_per_hour: 0 });
    world.admin = world.client(world.tenant.admin);
    world.approver = world.client(await world.tenant.key("approver", "rita", ["security"]));
    world.registrar = world.client(await world.tenant.key("registrar"));
    world.agent = await world.registrar.register({ agent_key: "bot", name: "Bot", environment: "production", risk_tier: "low" });
    return world;
  }

  client(token, settings = {}) {
    const made = new Client({ url: this.aegis.url, token, ...settings });
    this.#open.push(made);
    return made;
  }

  /** Another approver. */
  async somebodyElse() {
    return this.client(await this.tenant.key("approver", "sam", ["security"]));
  }

  async close() {
    const decided = await Promise.allSettled(this.#deciding);
    for (const one of this.#open) one.close();
    for (const { reason } of decided) if (reason) throw reason;
  }

  /** Calls `fn` protected, for work of this label, in a run of its own. */
  async call(fn, given = { note: "a" }, how = {}) {
    const { trust = "trusted_internal_unsigned", url = this.aegis.url, runId = randomUUID(), clientSettings = {}, ...settings } = how;
    const client = this.client(this.agent.agent_token, { url, onWarning: () => undefined, ...clientSettings });
    const protectedCall = protect(client, { tool: "crm", action: "update_customer", resource: "customer-1", ...settings }, fn);
    return await sourceTrust(trust, () => run(runId, () => protectedCall(given)));
  }

  /** `onPending` that has `act(approvalId)` done by somebody else, once control has the approval. */
  whenAsked(act) {
    return (pending) => {
      const decide = async () => {
        await waitUntil("control has the approval", () => this.has(pending.approval_id));
        await act(pending.approval_id);
      };
      assert.equal(currentTrust(), "trusted_internal_unsigned");
      this.#deciding.push(decide());
    };
  }

  async has(approvalId) {
    try {
      return await this.approver.approval(approvalId);
    } catch (error) {
      if (error instanceof ApiError && error.code === "approval_not_found") return null;
      throw error;
    }
  }

  async outcomes() {
    return (await this.admin.events({ kind: "tool_outcome" })).map(({ status }) => status);
  }

  async kinds() {
    return (await this.admin.events({ limit: 500 })).map(({ kind }) => kind);
  }
}

export async function withWorld(aegis, work) {
  const world = await World.of(aegis);
  let failed = true;
  try {
    const result = await work(world);
    failed = false;
    return result;
  } finally {
    await world.close().catch((error) => {
      if (!failed) throw error;
    });
  }
}
