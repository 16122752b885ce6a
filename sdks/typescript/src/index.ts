/** AegisAgent for TypeScript and JavaScript: a tool function runs only as it was authorized, and receipts are verified offline. See README.md. */

export type { Resource } from "./action.js";
export { actionHash, CANON_VERSION, canonicalize, canonicalizeValue, type Json, type JsonValue, type Limits, parseStrict } from "./canon.js";
export { type CallbackSettings, verifyCallback } from "./callbacks.js";
export { Client, type ClientSettings, type Token } from "./client.js";
export type { OutcomeStatus, Page } from "./endpoints.js";
export {
  AegisError, ApiError, BadReply, CanonError, type CanonReason, ConfigError, Denied, DeniedByApprover, DeniedByPolicy, DeniedUnavailable, DeniedUnfreezable,
  DeniedUnverified, LazyResult, RequestFailed, Unreachable,
} from "./errors.js";
export {
  Approval, type ApprovalRef, type Consumed, type ContainedEdges, type Containment, Decision, type Hold, type Outcome, type ReceiptRef, type ReceiptVerdict,
  type Registration, ToolCall,
} from "./models.js";
export { type AskSettings, protect, type ProtectSettings, type Risk } from "./protect.js";
export * as receipts from "./receipts/index.js";
export { Secret } from "./secret.js";
export type { Sink } from "./transport.js";
export {
  carriedIn, carry, combine, ContextWorker, currentRun, currentSignal, currentTrust, currentUser, inContext, onBehalfOf, run, RunTokens, SOURCE_TRUST,
  type SourceTrust, sourceTrust, type User, withSignal, type WorkContext,
} from "./trust.js";
export { VERSION } from "./version.js";
