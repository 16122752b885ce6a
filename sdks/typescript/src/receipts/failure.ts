/** Why a receipt does not verify. The codes are part of the format; exports, events and corpora name them. */

import type { TreeObject } from "../door.js";
import { AegisError } from "../errors.js";
import { hasOwn } from "../natives.js";

// What fails may be hostile, and this goes into reports and logs.
const SHOWN = 200;

/** The first rule that is broken, and what the receipt says it is, where that can be read. */
export interface Failure {
  readonly code: string;
  readonly message: string;
  readonly event_id: string | null;
  readonly lane: string | null;
  readonly seq: number | null;
}

/** A receipt does not verify: see `failure`. */
export class VerifyError extends AegisError {
  readonly failure: Failure;

  constructor(failure: Failure) {
    super(`${failure.code}: ${failure.message}`);
    Object.defineProperty(this, "name", { value: "VerifyError", configurable: true });
    this.failure = failure;
  }

  /** A failure of which only the rule is known yet. */
  static of(code: string, message: string): VerifyError {
    return new VerifyError({ code, message, event_id: null, lane: null, seq: null });
  }

  /** The same with what `body` claims to be. */
  about(body: TreeObject): VerifyError {
    const seq = hasOwn(body, "seq") ? body["seq"] : null;
    return new VerifyError({
      ...this.failure,
      event_id: this.failure.event_id ?? text(body, "event_id"),
      lane: this.failure.lane ?? text(body, "lane"),
      seq: this.failure.seq ?? (typeof seq === "number" && Number.isInteger(seq) ? seq : null),
    });
  }
}

function text(body: TreeObject, key: string): string | null {
  const value = hasOwn(body, key) ? body[key] : null;
  return typeof value === "string" ? Array.from(value.slice(0, 2 * SHOWN)).slice(0, SHOWN).join("") : null;
}
