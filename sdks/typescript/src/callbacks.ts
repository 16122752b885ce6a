/** Callbacks about approvals: whether one is the server's. docs/specs/callback.md. */

import { Buffer } from "node:buffer";
import { createHmac, timingSafeEqual } from "node:crypto";

import { ConfigError } from "./errors.js";
import { epochSeconds } from "./natives.js";
import { seconds } from "./settings.js";

// What the server takes at least: with a shorter or empty one, anybody could sign.
const LEAST_SECRET_BYTES = 32;
// Two while a secret is changed; room for more, and no room for work without end.
const MOST_SIGNATURES = 8;
const TIMESTAMP = /^[0-9]{1,12}$/;
const SIGNATURE = /^[ \t]*(v1=[0-9a-f]{64})[ \t]*$/;

/** How a callback is verified. */
export interface CallbackSettings {
  /** How old it may be, or how far ahead of our clock, seconds: 300. */
  toleranceS?: number;
  /** The time to go by, seconds since the epoch: the clock's. */
  now?: number;
}

/**
 * True for a callback that a holder of the secret signed not longer than `toleranceS` ago. `timestamp` and `signature` are the headers
 * `AegisAgent-Timestamp` and `AegisAgent-Signature` as they came, null or undefined for one that did not; `body` is what came, before any parser.
 *
 * What is true of a callback is that something changed: ask `Client.approval`, and act on its answer alone.
 */
export function verifyCallback(
  secret: string | Uint8Array, timestamp: string | null | undefined, signature: string | null | undefined, body: Uint8Array, settings: CallbackSettings = {},
): boolean {
  const key = typeof secret === "string" ? Buffer.from(secret, "utf8") : secret;
  if (!(key instanceof Uint8Array) || key.length < LEAST_SECRET_BYTES) {
    throw new ConfigError(`the secret of callbacks has ${LEAST_SECRET_BYTES} bytes at least`);
  }
  if (!(body instanceof Uint8Array)) throw new ConfigError("the body of a callback is bytes, as they came");
  const toleranceS = seconds(settings.toleranceS ?? 300, "toleranceS");
  const now = seconds(settings.now ?? epochSeconds(), "now");
  if (typeof timestamp !== "string" || typeof signature !== "string" || !TIMESTAMP.test(timestamp)) return false;
  if (Math.abs(now - Number(timestamp)) > toleranceS) return false;
  const given = signature.split(",", MOST_SIGNATURES + 1).map((one) => SIGNATURE.exec(one)?.[1]);
  if (given.length > MOST_SIGNATURES || given.includes(undefined)) return false;
  const right = Buffer.from(`v1=${createHmac("sha256", key).update(`${timestamp}.`).update(body).digest("hex")}`);
  // Each is compared, in constant time.
  return given.filter((one) => timingSafeEqual(Buffer.from(one ?? ""), right)).length > 0;
}
