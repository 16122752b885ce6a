/**
 * What goes wrong, as types. Messages say what happened and what to do; none holds an argument, a credential or a reply's raw text.
 *
 * Whoever calls a protected function needs one of them: `Denied`, which means that the function did not run.
 */

/** The base of all errors of this package. */
export class AegisError extends Error {
  constructor(message: string, options?: { cause?: unknown }) {
    super(message, options);
    // Not the class's name as a bundler left it.
    Object.defineProperty(this, "name", { value: NAMES.get(new.target) ?? "AegisError", configurable: true });
  }
}

/** The package was set up in a way that cannot be safe, or that means nothing. Thrown before anything is called. */
export class ConfigError extends AegisError {}

/** Why a JSON text or a value has no canonical form; the same in every language, and stable. */
export type CanonReason =
  | "size_exceeded" | "invalid_utf8" | "syntax" | "trailing_data" | "depth_exceeded" | "duplicate_key" | "lone_surrogate" | "integer_out_of_range"
  | "number_out_of_range" | "non_finite_number" | "unsupported_type";

/** A JSON text or a value has no canonical form. `unsupported_type` is for values that are not JSON at all. */
export class CanonError extends AegisError {
  readonly reason: CanonReason;
  readonly where: string;

  constructor(reason: CanonReason, where = "") {
    super(where ? `${reason} in ${where}` : reason);
    this.reason = reason;
    this.where = where;
  }
}

/** A request got no usable answer. `code` is stable; `sent` says whether the server may have received the request. */
export class RequestFailed extends AegisError {
  readonly code: string;
  readonly sent: boolean;

  constructor(code: string, message: string, sent = true) {
    super(`${code}: ${message}`);
    this.code = code;
    this.sent = sent;
  }
}

/** No connection, or no answer in time. `code`: `unreachable` (nothing was sent) or `no_answer` (something may have been). */
export class Unreachable extends RequestFailed {}

/** An answer that no server of ours gives: no JSON, wrong types, too large, a redirect, encoded. `code`: `bad_reply`. */
export class BadReply extends RequestFailed {
  constructor(message: string) {
    super("bad_reply", message);
  }
}

/** The server refused: `status` is the HTTP status, `code` the server's own code (docs/openapi.yaml lists them). */
export class ApiError extends RequestFailed {
  readonly status: number;
  readonly reason: string;
  readonly retryAfterS: number;

  constructor(status: number, code: string, message: string, retryAfterS = 0) {
    super(code, `${message} (HTTP ${status})`);
    this.status = status;
    this.reason = message;
    this.retryAfterS = retryAfterS;
  }
}

/** What names a denial's decision and approval, where there is one to look up. */
export interface About {
  decisionId?: string | null;
  approvalId?: string | null;
  cause?: unknown;
}

/**
 * The protected function did not run.
 *
 * `code` is stable: the server's where it gave one (`agent_frozen`, `approval_rejected`, …), otherwise one of this package's. `reason` is for
 * people. `decisionId` and `approvalId` name what there is to look up.
 */
export class Denied extends AegisError {
  readonly code: string;
  readonly reason: string;
  readonly decisionId: string | null;
  readonly approvalId: string | null;

  constructor(code: string, reason: string, about: About = {}) {
    super(`denied (${code}): ${reason}`, about.cause === undefined ? {} : { cause: about.cause });
    this.code = code;
    this.reason = reason;
    this.decisionId = about.decisionId ?? null;
    this.approvalId = about.approvalId ?? null;
  }
}

/** The server decided: deny. */
export class DeniedByPolicy extends Denied {}

/** The approval was rejected, expired, was edited without leave to run edits, or did not come in time. */
export class DeniedByApprover extends Denied {}

/** There is no decision: the server could not be reached, did not answer in time, or refused the request itself. */
export class DeniedUnavailable extends Denied {}

/** An answer is not what it must be: another action's hash, an unknown word, garbage. Treat it as an attack. */
export class DeniedUnverified extends Denied {}

/**
 * An argument is not plain JSON, or a tool's schema does not take its own result as it is (`schema_not_stable`), so that what would run could not be
 * what was hashed.
 */
export class DeniedUnfreezable extends Denied {}

/** The protected function ran and returned something that does its work later; it is not handed out. */
export class LazyResult extends AegisError {}

const NAMES = new Map<unknown, string>([
  [ConfigError, "ConfigError"], [CanonError, "CanonError"], [RequestFailed, "RequestFailed"], [Unreachable, "Unreachable"], [BadReply, "BadReply"],
  [ApiError, "ApiError"], [Denied, "Denied"], [DeniedByPolicy, "DeniedByPolicy"], [DeniedByApprover, "DeniedByApprover"],
  [DeniedUnavailable, "DeniedUnavailable"], [DeniedUnverified, "DeniedUnverified"], [DeniedUnfreezable, "DeniedUnfreezable"], [LazyResult, "LazyResult"],
]);
