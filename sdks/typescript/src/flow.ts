/**
 * What stands between a call and its execution: authorize, wait for the approval, consume.
 *
 * Promises that it ends in a clearance for exactly the frozen action, or in `Denied`; nothing else that it throws comes from a server.
 */

import { Buffer } from "node:buffer";

import { type FrozenAction, refreeze, type Resource } from "./action.js";
import { CANON_VERSION, exactCopy, type Json } from "./canon.js";
import * as endpoints from "./endpoints.js";
import {
  ApiError, CanonError, ConfigError, Denied, DeniedByApprover, DeniedByPolicy, DeniedUnavailable, DeniedUnfreezable, DeniedUnverified, RequestFailed,
  Unreachable,
} from "./errors.js";
import { type Request, shownText, spread } from "./exchange.js";
import type { Approval, ApprovalRef, Decision } from "./models.js";
import { epochSeconds, isOneOf, monotonic } from "./natives.js";
import { sleep } from "./pause.js";
import { microseconds } from "./rfc3339.js";
import { currentRun, currentTrust, currentUser, readTrust, type RunTokens, type SourceTrust, strictness } from "./trust.js";
import { plainText } from "./writer.js";

// Pauses between two looks at an approval, seconds: the first, how they grow, the longest, and how far they are spread.
const FIRST_POLL_S = 0.25;
const POLL_GROWTH = 1.5;
const LONGEST_POLL_S = 5;
const POLL_SPREAD = 0.2;
// How much later than it seems an approval may end, seconds: a server counts whole ones, or none, and then its clock may be behind ours.
const CLOCK_GRACE_S = 5;
// Largest body of a request, bytes: what the server takes.
const MAX_BODY_BYTES = 1 << 20;
// Labels under which nothing ever fails open.
const TAINTED: readonly SourceTrust[] = ["untrusted_external", "malicious_suspected"];
const CONTAINED = ["agent_frozen", "agent_revoked", "agent_quarantined"];
const AWAY = [500, 502, 503, 504];
// Nothing was sent, and the server is not to blame: not unverified, and no reason to fail open.
const OURS = ["no_credential", "client_closed"];
// Not longer than a server's other codes.
const REASON_CODE = /^[a-z0-9_]{1,64}$/;

/** How one function is protected; checked by whoever makes it. */
export interface Options {
  readonly resource: Resource;
  readonly containsSensitiveData: boolean;
  readonly channel: string | null;
  readonly acceptEdits: boolean;
  readonly failOpenReads: boolean;
  readonly approvalTimeoutS: number | null;
  readonly unreachableS: number;
  readonly onPending: ((approval: ApprovalRef) => unknown) | null;
  /** Whether what an approver made of the parameters can be run. */
  readonly fits: ((parameters: Json) => boolean | Promise<boolean>) | null;
  readonly reportOutput: boolean;
}

/** Leave to run `action`, once. `decisionId` is null where a read failed open. */
export interface Clearance {
  readonly action: FrozenAction;
  readonly decisionId: string | null;
}

/** Whose calls these are: what a client keeps between them. */
export interface Caller {
  readonly agent: Json;
  readonly tokens: RunTokens;
  isContained: boolean;
  readonly call: <T>(request: Request<T>, signal: AbortSignal | null) => Promise<T>;
  readonly warn: (message: string) => void;
}

/** Asks for leave to run `action`, and calls `run` with it without waiting for anything. */
export async function clear<T>(
  caller: Caller, action: FrozenAction, options: Options, signal: AbortSignal | null, run: (clearance: Clearance) => T,
): Promise<T> {
  const [label, runId] = [currentTrust(), currentRun()];
  const body = authorizeBody(caller, action, options, label, runId);
  let decision: Decision;
  try {
    decision = await caller.call(endpoints.authorize(body, true), signal);
  } catch (failure) {
    if (!(failure instanceof RequestFailed)) throw failure;
    if (!mayFailOpen(caller, action, options, label, failure)) throw denied(failure, {});
    caller.warn(`no server can be asked; a read of ${action.tool}/${action.action} runs without a decision`);
    signal?.throwIfAborted();
    return run({ action, decisionId: null });
  }
  checkDecision(action, label, decision);
  caller.tokens.keep(runId, readTrust(decision.root_trust_level), decision.trust_token);
  caller.isContained = decision.decision === "deny" && isOneOf(decision.reason, CONTAINED);
  if (decision.decision === "deny") {
    const code = isCode(decision.reason) ? decision.reason : "policy_denied";
    throw new DeniedByPolicy(code, shownText(decision.reason), { decisionId: decision.decision_id });
  }
  const cleared = decision.approval === null ? action : await approved(caller, action, options, decision, decision.approval, signal);
  signal?.throwIfAborted();
  return run({ action: cleared, decisionId: decision.decision_id });
}

/** Lower-case letters, digits and at least one `_`. */
function isCode(reason: string): boolean {
  return REASON_CODE.test(reason) && reason.includes("_") && /[a-z0-9]/.test(reason);
}

function authorizeBody(caller: Caller, action: FrozenAction, options: Options, label: SourceTrust, runId: string | null): Buffer {
  const token = caller.tokens.get(runId);
  const user = currentUser();
  const rest = {
    request_id: endpoints.freshRequestId(),
    agent: caller.agent,
    ...(user === null ? {} : { user: { ...user } }),
    context: {
      source_trust: label,
      contains_sensitive_data: options.containsSensitiveData,
      ...(options.channel === null ? {} : { channel: options.channel }),
    },
    trace: { ...(runId === null ? {} : { run_id: runId }), ...(token === null ? {} : { trust_token: token }) },
    canon_version: CANON_VERSION,
  };
  // The action's own text, not one made anew: what was hashed is what is sent.
  const head = plainText(exactCopy(rest, "the call", 0, Number.MAX_SAFE_INTEGER));
  const body = Buffer.from(`${head.slice(0, -1)},"tool_call":${action.text}}`);
  if (body.length > MAX_BODY_BYTES) {
    throw new DeniedUnfreezable("size_exceeded", `the call is larger than the ${MAX_BODY_BYTES} bytes that a server takes`);
  }
  return body;
}

/** Only a read whose author said so, only while no server can be asked, and never for tainted work or a contained agent. */
function mayFailOpen(caller: Caller, action: FrozenAction, options: Options, label: SourceTrust, failure: RequestFailed): boolean {
  const isAway = failure instanceof Unreachable || (failure instanceof ApiError && isOneOf(failure.status, AWAY));
  const isHarmless = !action.mutatesState && !options.containsSensitiveData && !isOneOf(label, TAINTED);
  return options.failOpenReads && isAway && isHarmless && !caller.isContained;
}

/** What every decision must be, before it is obeyed. */
function checkDecision(action: FrozenAction, label: SourceTrust, decision: Decision): void {
  const unverified = (code: string, reason: string): DeniedUnverified => new DeniedUnverified(code, reason, { decisionId: decision.decision_id });
  if (!isOneOf(decision.decision, ["allow", "deny", "require_approval"])) {
    throw unverified("unknown_decision", "the server answered with a decision that this version does not know");
  }
  if (decision.decision === "deny") return;
  if (decision.action_hash !== action.actionHash) {
    throw unverified("action_hash_mismatch", "the server decided about another action than the one that was asked for");
  }
  if (decision.dry_run || decision.receipt.canon_version !== CANON_VERSION) {
    throw unverified("bad_reply", "the decision is a dry run, or made with another canonical form");
  }
  if (strictness(readTrust(decision.root_trust_level)) < strictness(label)) {
    throw unverified("trust_loosened", "the server took the call for more trusted than it was labelled");
  }
  const isHarmless = decision.decision === "allow" && !action.mutatesState && decision.risk_level === "low";
  if (decision.receipt.receipt_hash === null && !isHarmless) {
    throw unverified("receipt_missing", "the decision has no receipt, and only that of a harmless read may have none");
  }
  if ((decision.decision === "require_approval") !== (decision.approval !== null)) {
    throw unverified("bad_reply", "decision and approval contradict each other");
  }
  if (decision.approval !== null && decision.approval.action_hash !== action.actionHash) {
    throw unverified("action_hash_mismatch", "the approval is for another action than the one that was asked for");
  }
}

/** What names the decision and the approval in a denial that comes of waiting. */
interface Named {
  readonly decisionId?: string;
  readonly approvalId?: string;
}

/** Waits for the approval and consumes it; the action that may run now. */
async function approved(
  caller: Caller, action: FrozenAction, options: Options, decision: Decision, pending: ApprovalRef, signal: AbortSignal | null,
): Promise<FrozenAction> {
  const named = { decisionId: decision.decision_id, approvalId: pending.approval_id };
  tell(caller, options, pending);
  const approval = await decided(caller, action, options, pending, named, signal);
  const current = approval.action_hash === action.actionHash ? action : await editedAction(action, options, approval, named);
  let consumed;
  try {
    consumed = await caller.call(endpoints.consume(approval.approval_id, current.actionHash), signal);
  } catch (failure) {
    throw failure instanceof RequestFailed ? denied(failure, named, true) : failure;
  }
  if (consumed.status !== "consumed" || consumed.approval_id !== approval.approval_id || consumed.action_hash !== current.actionHash) {
    throw new DeniedUnverified("action_hash_mismatch", "what was consumed is not what was asked for", named);
  }
  return current;
}

/** Tells whoever wants to know. What it does meanwhile is not waited for. */
function tell(caller: Caller, options: Options, pending: ApprovalRef): void {
  const { onPending } = options;
  if (onPending === null) return;
  (async () => await onPending(pending))().catch(() => {
    caller.warn(`onPending failed for approval ${pending.approval_id}`);
  });
}

/** Looks at the approval until it is approved. Until then a 404 means that control has not seen it yet. */
async function decided(
  caller: Caller, action: FrozenAction, options: Options, pending: ApprovalRef, named: Named, signal: AbortSignal | null,
): Promise<Approval> {
  const deadline = monotonic() + patienceS(options, pending, named);
  let heard = monotonic();
  let pause = FIRST_POLL_S;
  for (;;) {
    try {
      const approval = await caller.call(endpoints.approval(pending.approval_id), signal);
      checkApproval(action, pending, options, approval, named);
      if (approval.status === "APPROVED") return approval;
      heard = monotonic();
    } catch (failure) {
      if (!(failure instanceof RequestFailed)) throw failure;
      const isAway = failure instanceof Unreachable || (failure instanceof ApiError && isOneOf(failure.status, [429, 503]));
      if (failure instanceof ApiError && failure.status === 404 && failure.code === "approval_not_found") {
        heard = monotonic();
      } else if (!isAway || monotonic() - heard > options.unreachableS) {
        throw denied(failure, named);
      }
    }
    const remaining = deadline - monotonic();
    if (remaining <= 0) throw new DeniedByApprover("approval_timeout", "nobody decided in time", named);
    await sleep(Math.min(spread(pause, POLL_SPREAD), remaining), signal);
    pause = Math.min(pause * POLL_GROWTH, LONGEST_POLL_S);
  }
}

function patienceS(options: Options, pending: ApprovalRef, named: Named): number {
  const ends = microseconds(pending.expires_at);
  if (ends === null) throw new DeniedUnverified("bad_reply", "the approval's end is no time", named);
  const left = (pending.expires_in ?? Number(ends) / 1e6 - epochSeconds()) + CLOCK_GRACE_S;
  return options.approvalTimeoutS === null ? left : Math.min(left, options.approvalTimeoutS);
}

/** What every look at the approval must show. Its hashes have been held against its actions when it was read. */
function checkApproval(action: FrozenAction, pending: ApprovalRef, options: Options, approval: Approval, named: Named): void {
  if (approval.approval_id !== pending.approval_id || approval.original_action_hash !== action.actionHash) {
    throw new DeniedUnverified("action_hash_mismatch", "the approval is about another action than the one that was asked for", named);
  }
  if (!isOneOf(approval.status, ["PENDING", "APPROVED", "REJECTED", "EXPIRED", "CONSUMED"])) {
    throw new DeniedUnverified("unknown_status", "the approval has a status that this version does not know", named);
  }
  if (isOneOf(approval.status, ["REJECTED", "EXPIRED", "CONSUMED"])) {
    throw new DeniedByApprover(`approval_${approval.status.toLowerCase()}`, `the approval is ${approval.status}`, named);
  }
  if (approval.action_hash !== action.actionHash && !options.acceptEdits) {
    throw new DeniedByApprover("approval_edited", "the approver edited the action, and acceptEdits is not set", named);
  }
}

async function editedAction(action: FrozenAction, options: Options, approval: Approval, named: Named): Promise<FrozenAction> {
  let edited: FrozenAction;
  try {
    edited = refreeze(action, approval.current, options.resource);
  } catch (error) {
    if (!(error instanceof ConfigError || error instanceof CanonError || error instanceof DeniedUnfreezable)) throw error;
    throw new DeniedByApprover("approval_edited", `this function cannot run what the approver made of the action: ${error.message}`, named);
  }
  if (options.fits !== null && !(await options.fits(edited.parameters))) {
    throw new DeniedByApprover("approval_edited", "this function cannot be called with what the approver made of its parameters", named);
  }
  if (edited.actionHash !== approval.action_hash) {
    throw new DeniedUnverified("action_hash_mismatch", "the edited action is not the one that was approved", named);
  }
  return edited;
}

function denied(failure: RequestFailed, named: Named, isConsume = false): Denied {
  const about = { ...named, cause: failure };
  if (failure instanceof ApiError) {
    if (isConsume && failure.status === 409) {
      if (failure.code === "action_hash_mismatch" || failure.code === "wrong_agent") return new DeniedUnverified(failure.code, failure.reason, about);
      const kind = failure.code.startsWith("approval_") ? DeniedByApprover : DeniedByPolicy;
      return new kind(failure.code, failure.reason, about);
    }
    return new DeniedUnavailable(failure.code, failure.reason, about);
  }
  if (isOneOf(failure.code, OURS)) return new DeniedUnavailable(failure.code, failure.message, about);
  if (!(failure instanceof Unreachable)) return new DeniedUnverified(failure.code, failure.message, about);
  if (isConsume && failure.sent) {
    return new DeniedUnavailable("consume_ambiguous", "whether the approval was consumed is not known, so the function does not run", about);
  }
  return new DeniedUnavailable(failure.code, failure.message, about);
}
