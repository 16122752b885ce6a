/**
 * What the server answers, as docs/openapi.yaml has it and with its names. Read strictly, and frozen; what may hold a secret or an argument is not shown
 * when a model is printed.
 *
 * Words (decisions, statuses) stay texts here: whoever acts on one compares it with those it knows, and denies for any other.
 */

import { inspect } from "node:util";

import { actionHash, actionTree, hashOfTree, type Json } from "./canon.js";
import type { Tree } from "./door.js";
import { BadReply, CanonError, ConfigError } from "./errors.js";
import { Fields, ordinary } from "./fields.js";
import { freeze, isArray } from "./natives.js";
import { Secret } from "./secret.js";

/** Prints a model without the fields named. */
function hidden(model: object, ...names: string[]): string {
  const shown = Object.fromEntries(Object.entries(model).filter(([name]) => !names.includes(name)));
  return `${model.constructor.name} ${inspect(shown)}`;
}

/** An action: exactly what the action hash covers. */
export class ToolCall {
  constructor(
    readonly tool: string,
    readonly action: string,
    readonly resource: string | null,
    readonly mutates_state: boolean,
    readonly parameters: Json,
  ) {
    freeze(this);
  }

  /** Its hash; CanonError where it has no canonical form. */
  actionHash(): string {
    return actionHash(this.tool, this.action, this.resource, this.mutates_state, this.parameters);
  }

  /** As requests carry it. */
  asJson(): Json {
    const { tool, action, resource, mutates_state, parameters } = this;
    return { tool, action, resource, mutates_state, parameters };
  }

  static read(f: Fields): ToolCall {
    const resource = f.isAbsent("resource") ? null : f.text("resource");
    return new ToolCall(f.text("tool"), f.text("action"), resource, f.flag("mutates_state"), f.object("parameters"));
  }

  [inspect.custom](): string {
    return hidden(this, "parameters");
  }
}

/** The hash of an action as the server wrote it: a double that is a whole number may stand in it, as no value of ours does. */
function hashOf(f: Fields): string {
  const call = ToolCall.read(f);
  return hashOfTree(actionTree(call.tool, call.action, call.resource, call.mutates_state, f.fields("parameters").tree));
}

/** The receipt of a decision. The hashes are null only for an allowed, low-risk, non-sensitive read, and for a dry run. */
export interface ReceiptRef {
  readonly receipt_id: string;
  readonly receipt_hash: string | null;
  readonly prev_receipt_hash: string | null;
  readonly canon_version: string;
}

export function readReceiptRef(f: Fields): ReceiptRef {
  return freeze({
    receipt_id: f.id("receipt_id"),
    receipt_hash: f.maybeHash("receipt_hash"),
    prev_receipt_hash: f.maybeText("prev_receipt_hash"),
    canon_version: f.text("canon_version"),
  });
}

/**
 * The approval that a decision asks for. `expires_at` is RFC 3339; `expires_in` the seconds until then by the server's clock, null from a server that
 * does not count them.
 */
export interface ApprovalRef {
  readonly approval_id: string;
  readonly status: string;
  readonly approver_group: string;
  readonly expires_at: string;
  readonly expires_in: number | null;
  readonly action_hash: string;
}

export function readApprovalRef(f: Fields): ApprovalRef {
  return freeze({
    approval_id: f.id("approval_id"),
    status: f.text("status"),
    approver_group: f.text("approver_group"),
    expires_at: f.text("expires_at"),
    expires_in: f.maybeSeconds("expires_in"),
    action_hash: f.hash("action_hash"),
  });
}

/** The answer to an authorize call. */
export class Decision {
  readonly decision_id: string;
  readonly decision: string;
  readonly reason: string;
  readonly matched_policies: readonly string[];
  readonly risk_score: number;
  readonly risk_level: string;
  readonly root_trust_level: string;
  readonly trust_token: string;
  readonly action_hash: string;
  readonly dry_run: boolean;
  readonly approval: ApprovalRef | null;
  readonly receipt: ReceiptRef;

  constructor(value: Tree) {
    const f = new Fields(value, "the decision");
    this.decision_id = f.id("decision_id");
    this.decision = f.text("decision");
    this.reason = f.text("reason");
    this.matched_policies = f.texts("matched_policies");
    this.risk_score = f.integer("risk_score");
    this.risk_level = f.text("risk_level");
    this.root_trust_level = f.text("root_trust_level");
    this.trust_token = f.trustToken("trust_token");
    this.action_hash = f.hash("action_hash");
    this.dry_run = f.flag("dry_run");
    this.approval = f.isNull("approval") ? null : readApprovalRef(f.fields("approval"));
    this.receipt = readReceiptRef(f.fields("receipt"));
    freeze(this);
  }

  /** Without the trust token. */
  toJSON(): object {
    return Object.fromEntries(Object.entries(this).filter(([name]) => name !== "trust_token"));
  }

  [inspect.custom](): string {
    return hidden(this, "trust_token");
  }
}

/** An approval as people and agents see it. `action_hash` is what a consume must present now. Its hashes are those of its actions. */
export class Approval {
  readonly approval_id: string;
  readonly status: string;
  readonly agent_id: string;
  readonly decision_id: string;
  readonly action_hash: string;
  readonly original_action_hash: string;
  readonly is_edited: boolean;
  readonly tool_call: ToolCall;
  readonly edited_tool_call: ToolCall | null;
  readonly approver_group: string;
  readonly approvals_needed: number;
  readonly approved_by: readonly string[];
  readonly source_trust: string;
  readonly reason: string;
  readonly requested_at: string;
  readonly expires_at: string;
  readonly expires_in: number | null;
  /** Who edited it last; null while nobody has. */
  readonly edited_by: string | null;
  /** For whom it is done; null where nobody was named. */
  readonly user_id: string | null;
  /** Of the decision that asks for it. */
  readonly policy_digest: string;
  readonly risk_level: string;
  readonly matched_policies: readonly string[];

  constructor(value: Tree) {
    const f = new Fields(value, "the approval");
    this.approval_id = f.id("approval_id");
    this.status = f.text("status");
    this.agent_id = f.text("agent_id");
    this.decision_id = f.id("decision_id");
    this.action_hash = f.hash("action_hash");
    this.original_action_hash = f.hash("original_action_hash");
    this.is_edited = f.flag("is_edited");
    this.tool_call = ToolCall.read(f.fields("tool_call"));
    this.edited_tool_call = f.isNull("edited_tool_call") ? null : ToolCall.read(f.fields("edited_tool_call"));
    this.approver_group = f.text("approver_group");
    this.approvals_needed = f.integer("approvals_needed");
    this.approved_by = f.texts("approved_by");
    this.source_trust = f.text("source_trust");
    this.reason = f.text("reason");
    this.requested_at = f.text("requested_at");
    this.expires_at = f.text("expires_at");
    this.expires_in = f.maybeSeconds("expires_in");
    this.edited_by = f.maybeText("edited_by");
    this.user_id = f.maybeText("user_id");
    this.policy_digest = f.hash("policy_digest");
    this.risk_level = f.text("risk_level");
    this.matched_policies = f.texts("matched_policies");
    this.#check(f);
    freeze(this);
  }

  /** The action that is up for approval: the edited one, if it was edited. */
  get current(): ToolCall {
    return this.edited_tool_call ?? this.tool_call;
  }

  #check(f: Fields): void {
    if (this.is_edited !== (this.edited_tool_call !== null)) throw new BadReply("`is_edited` of the approval contradicts `edited_tool_call`");
    try {
      const original = hashOf(f.fields("tool_call"));
      const current = this.is_edited ? hashOf(f.fields("edited_tool_call")) : original;
      if (original === this.original_action_hash && current === this.action_hash) return;
    } catch (error) {
      if (error instanceof CanonError) throw new BadReply(`an action of the approval has no canonical form: ${error.reason}`);
      throw error;
    }
    throw new BadReply("a hash of the approval is not that of the action beside it");
  }
}

/** The answer to a consume that won. */
export interface Consumed {
  readonly status: string;
  readonly approval_id: string;
  readonly action_hash: string;
}

export function readConsumed(value: Tree): Consumed {
  const f = new Fields(value, "the consume");
  return freeze({ status: f.text("status"), approval_id: f.id("approval_id"), action_hash: f.hash("action_hash") });
}

/** The receipt of an outcome. `violation` says what was wrong with the execution, if anything. */
export interface Outcome {
  readonly decision_id: string;
  readonly outcome_id: string;
  readonly status: string;
  readonly violation: string | null;
  readonly receipt_hash: string;
}

export function readOutcome(value: Tree): Outcome {
  const f = new Fields(value, "the outcome");
  return freeze({
    decision_id: f.id("decision_id"),
    outcome_id: f.id("outcome_id"),
    status: f.text("status"),
    violation: f.maybeText("violation"),
    receipt_hash: f.hash("receipt_hash"),
  });
}

/** A registered agent with a fresh token, valid until `expires_at` (RFC 3339). */
export interface Registration {
  readonly id: string;
  readonly agent_key: string;
  readonly agent_token: Secret;
  readonly expires_at: string;
}

export function readRegistration(value: Tree): Registration {
  const f = new Fields(value, "the registration");
  return freeze({ id: f.text("id"), agent_key: f.text("agent_key"), agent_token: token(f), expires_at: f.text("expires_at") });
}

function token(f: Fields): Secret {
  const text = f.text("agent_token");
  try {
    return new Secret(text);
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
  }
  throw new BadReply("`agent_token` of the registration is no credential");
}

/** One reason why a target is held. `until` null: until it is released. */
export interface Hold {
  readonly hold_id: string;
  readonly kind: string;
  readonly reason: string;
  readonly by: string;
  readonly since: string;
  readonly until: string | null;
}

export function readHold(value: Tree): Hold {
  const f = new Fields(value, "a hold");
  return freeze({
    hold_id: f.id("hold_id"),
    kind: f.text("kind"),
    reason: f.text("reason"),
    by: f.text("by"),
    since: f.text("since"),
    until: f.maybeText("until"),
  });
}

/**
 * The edges of their own that serve the tenant: how many live, how many of those enforce a containment, which lived and are not heard, and since when
 * all of the live ones enforce it; null while one does not.
 */
export interface ContainedEdges {
  readonly live: number;
  readonly enforcing: number;
  readonly silent: readonly string[];
  readonly since: string | null;
}

export function readContainedEdges(f: Fields): ContainedEdges {
  return freeze({
    live: f.integer("live"),
    enforcing: f.integer("enforcing"),
    silent: f.texts("silent"),
    since: f.isAbsent("since") ? null : f.text("since"),
  });
}

/** What holds for an agent or an MCP server. `enforced`: every edge that lives has confirmed it; null in lists, as `edges` is. */
export interface Containment {
  readonly tenant_id: string;
  readonly target_type: string;
  readonly target_id: string;
  readonly holds: readonly Hold[];
  readonly revoked: boolean;
  readonly revision: number;
  readonly issued_at: string;
  readonly verdict: string;
  readonly enforced: boolean | null;
  readonly edges: ContainedEdges | null;
}

export function readContainment(value: Tree): Containment {
  const f = new Fields(value, "the containment");
  return freeze({
    tenant_id: f.text("tenant_id"),
    target_type: f.text("target_type"),
    target_id: f.text("target_id"),
    holds: f.items("holds").map(readHold),
    revoked: f.flag("revoked"),
    revision: f.integer("revision"),
    issued_at: f.text("issued_at"),
    verdict: f.text("verdict"),
    enforced: f.isAbsent("enforced") ? null : f.flag("enforced"),
    edges: f.isAbsent("edges") ? null : readContainedEdges(f.fields("edges")),
  });
}

/** What the server finds when it verifies one of its receipts now. `aegisagent/receipts` does it without the server. */
export interface ReceiptVerdict {
  readonly receipt_id: string;
  readonly receipt_hash: string | null;
  readonly lane: string | null;
  readonly seq: number | null;
  readonly verdict: string;
  readonly checks: Json;
  readonly failure: string | null;
  /** Other events that have its id, as they are; null where there is none. */
  readonly same_id: readonly Json[] | null;
}

export function readReceiptVerdict(value: Tree): ReceiptVerdict {
  const f = new Fields(value, "the verdict");
  return freeze({
    receipt_id: f.id("receipt_id"),
    receipt_hash: f.maybeHash("receipt_hash"),
    lane: f.maybeText("lane"),
    seq: f.isNull("seq") ? null : f.integer("seq"),
    verdict: f.text("verdict"),
    checks: f.object("checks"),
    failure: f.maybeText("failure"),
    same_id: f.isAbsent("same_id") ? null : f.items("same_id").map((item) => readObject(item)),
  });
}

/** One object as it is. */
export function readObject(value: Tree): Json {
  return ordinary(new Fields(value, "the reply").tree);
}

/** A list of objects as they are: receipts, events, decisions. */
export function readObjects(value: Tree): Json[] {
  return listOf(value, readObject);
}

/** A list. */
export function listOf<T>(value: Tree, each: (item: Tree) => T): T[] {
  if (!isArray(value)) throw new BadReply("the reply is not a list");
  return value.map((item) => each(item));
}
