/** One receipt alone: its hash, the digest of its event, the facts that both name, and its proof. No link: that needs the lane. */

import { Buffer } from "node:buffer";

import { isTreeObject, parseTree } from "../canon.js";
import { Double, emptyObject, type Tree, type TreeObject } from "../door.js";
import { AegisError, CanonError } from "../errors.js";
import { hasOwn, isArray, keys, sha256Hex } from "../natives.js";
import { microseconds } from "../rfc3339.js";
import { canonicalText } from "../writer.js";
import { VerifyError } from "./failure.js";
import type { Roots } from "./keys.js";
import { Commits, hashFromHex } from "./proof.js";

const SCHEMA = "aegis-receipt-1";
// A receipt has at most 60 KiB, its event as much.
export const MAX_LINE_BYTES = 1 << 20;
// What is added to an event after sealing.
const ADDED = new Set(["receipt", "proof", "receipt_hash", "verified", "bus_ts", "late"]);
// The facts that stand both in the event and in the body: consumers read the event, evidence is the body.
const SHARED = [
  "action", "action_hash", "agent_id", "approval_id", "approver", "decision", "event_id", "lane", "matched_policies", "mutates_state", "policy_digest",
  "ref_event_id", "resource", "run_id", "seq", "source_trust", "tenant_id", "tool", "trace_id", "ts", "user_id",
];

/** The input is not what it must be, whatever its receipts say. */
export class BadInput extends AegisError {
  constructor(message: string) {
    super(message);
    Object.defineProperty(this, "name", { value: "BadInput", configurable: true });
  }
}

/** A receipt whose own parts agree, as far as they were there to check. `ts` in microseconds since the epoch. */
export interface VerifiedReceipt {
  readonly tenant_id: string;
  readonly event_id: string;
  readonly lane: string;
  readonly seq: number;
  readonly phase: string;
  readonly ts: bigint;
  readonly receipt_hash: string;
  readonly prev_receipt_hash: string;
  readonly key_id: string;
  readonly signed: boolean;
}

/**
 * Verifies a published event, as the text that `GET /v1/receipts/{id}` or a line of an export has (`client.receiptText`); VerifyError if it does
 * not hold, BadInput for a text that is not strict JSON. A value would not do: it cannot tell `1` from `1.0`, which are different facts.
 */
export function verifyEvent(text: string | Uint8Array, roots: Roots | null = null): VerifiedReceipt {
  let event: Tree;
  try {
    event = parseTree(text, MAX_LINE_BYTES);
  } catch (error) {
    if (error instanceof CanonError) throw new BadInput(`not strict JSON: ${error.reason}`);
    throw error;
  }
  if (!isTreeObject(event)) throw VerifyError.of("malformed", "it is not a JSON object");
  return checkEvent(event, new Commits(roots), roots !== null);
}

/** The same with a memory of commits. */
export function checkEvent(event: TreeObject, commits: Commits, mustBeSigned: boolean): VerifiedReceipt {
  const body = member(event, "receipt");
  if (!isTreeObject(body)) throw VerifyError.of("missing_receipt", "it has no receipt").about(event);
  return about(body, () => {
    const receipt = readBody(body, ["receipt_hash"], mustBeSigned);
    checkColumns(event, body, receipt);
    const proof = member(event, "proof");
    if (!isTreeObject(proof)) throw VerifyError.of("missing_proof", "it has no proof");
    commits.check(proof, Buffer.from(receipt.receipt_hash, "hex"), receipt.key_id);
    return receipt;
  });
}

/** Verifies a bare body with its `receipt_hash`, and its `proof` if it has one. There is no event to digest. */
export function checkBare(line: TreeObject, commits: Commits, mustBeSigned: boolean): VerifiedReceipt {
  return about(line, () => {
    const receipt = readBody(line, ["receipt_hash", "proof"], mustBeSigned);
    const proof = member(line, "proof");
    if (proof === undefined) {
      if (mustBeSigned) throw VerifyError.of("missing_proof", "it has no proof, and a key is pinned");
    } else if (isTreeObject(proof)) {
      commits.check(proof, Buffer.from(receipt.receipt_hash, "hex"), receipt.key_id);
    } else {
      throw VerifyError.of("malformed", "its proof is not an object");
    }
    return receipt;
  });
}

/** Names what a failure is about. */
export function about<T>(body: TreeObject, check: () => T): T {
  try {
    return check();
  } catch (error) {
    throw error instanceof VerifyError ? error.about(body) : error;
  }
}

/** A member of its own; undefined where there is none. */
export function member(tree: TreeObject, key: string): Tree | undefined {
  return hasOwn(tree, key) ? tree[key] : undefined;
}

/** Hex SHA-256 of the canonical form of `members` less those that are left out. */
export function hashOf(members: TreeObject, isLeftOut: (key: string, value: Tree) => boolean): string {
  const kept = emptyObject();
  for (const key of keys(members)) {
    const value = members[key] as Tree;
    if (!isLeftOut(key, value)) kept[key] = value;
  }
  return sha256Hex(canonicalText(kept));
}

function checkColumns(event: TreeObject, body: TreeObject, receipt: VerifiedReceipt): void {
  if (member(event, "receipt_hash") !== receipt.receipt_hash) throw VerifyError.of("hash_mismatch", "the event's receipt_hash is not its receipt's");
  const digest = hashOf(event, (key, value) => value === null || ADDED.has(key));
  if (digest !== member(body, "event_digest")) throw VerifyError.of("digest_mismatch", "event_digest is not the digest of the event's columns");
  for (const key of SHARED) {
    if (!isSame(member(event, key) ?? null, member(body, key) ?? null)) {
      throw VerifyError.of("column_mismatch", `event and receipt name different values of ${key}`);
    }
  }
}

/** Equal as JSON: `1` is neither `true` nor `1.0`. */
function isSame(one: Tree, other: Tree): boolean {
  if (one instanceof Double || other instanceof Double) return one instanceof Double && other instanceof Double && one.value === other.value;
  if (isArray(one)) return isArray(other) && one.length === other.length && one.every((item, place) => isSame(item, other[place] as Tree));
  if (!isTreeObject(one) || !isTreeObject(other)) return one === other;
  const names = keys(one);
  return names.length === keys(other).length && names.every((name) => hasOwn(other, name) && isSame(one[name] as Tree, other[name] as Tree));
}

function readBody(body: TreeObject, beside: readonly string[], isSigned: boolean): VerifiedReceipt {
  if (text(body, "schema") !== SCHEMA) throw VerifyError.of("unknown_schema", `its schema is not ${SCHEMA}`);
  const receiptHash = hashOf(body, (key) => beside.includes(key));
  if (hashFromHex(text(body, "receipt_hash"))?.toString("hex") !== receiptHash) {
    throw VerifyError.of("hash_mismatch", "receipt_hash is not the hash of the body");
  }
  const seq = member(body, "seq");
  if (typeof seq !== "number" || !Number.isInteger(seq) || seq < 1) throw VerifyError.of("malformed", "its seq is not a number from 1");
  const ts = microseconds(text(body, "ts"));
  if (ts === null) throw VerifyError.of("malformed", "its ts is not an RFC 3339 time");
  const [tenantId, lane] = [text(body, "tenant_id"), text(body, "lane")];
  const dot = lane.indexOf(".");
  if (dot < 0 || lane.slice(0, dot) !== tenantId) throw VerifyError.of("column_mismatch", "its lane belongs to another tenant");
  text(body, "event_digest");
  return {
    tenant_id: tenantId,
    event_id: text(body, "event_id"),
    lane,
    seq,
    phase: text(body, "phase"),
    ts,
    receipt_hash: receiptHash,
    prev_receipt_hash: text(body, "prev_receipt_hash"),
    key_id: text(body, "key_id"),
    signed: isSigned,
  };
}

function text(body: TreeObject, key: string): string {
  const value = member(body, key);
  if (typeof value !== "string") throw VerifyError.of("malformed", `its ${key} is not a string`);
  return value;
}
