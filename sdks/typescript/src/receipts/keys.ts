/** The public keys that a verifier pins. A key that is no point of the curve, or a weak one, under which anybody can sign, is refused. */

import { Buffer } from "node:buffer";
import { createHash, createPublicKey, type KeyObject, verify } from "node:crypto";
import { readFileSync, statSync } from "node:fs";

import { ConfigError } from "../errors.js";

const KEY_BYTES = 32;
const KEY_ID_DIGITS = 16;
const SIGNATURE_BYTES = 64;
// An Ed25519 public key in the form that the library reads (RFC 8410) is this and the 32 bytes.
const SPKI_HEAD = Buffer.from("302a300506032b6570032100", "hex");
// Edwards25519 (RFC 8032 section 5.1): −x² + y² = 1 + d·x²·y² over the integers modulo p.
const P = 2n ** 255n - 19n;
const D = mod(-121665n * power(121666n, P - 2n));

/** Standard base64 with padding, in its one canonical spelling; null for anything else. */
export function decodeBase64(text: string): Buffer | null {
  const raw = Buffer.from(text, "base64");
  return raw.toString("base64") === text ? raw : null;
}

/** An Ed25519 public key. */
export class VerifyingKey {
  readonly #key: KeyObject;
  readonly keyId: string;

  /** `text`: standard base64 of the 32 bytes. */
  constructor(text: string) {
    const raw = typeof text === "string" ? decodeBase64(text.trim()) : null;
    if (raw?.length !== KEY_BYTES) throw new ConfigError("a root is neither a key file nor an Ed25519 public key in base64");
    if (!isPoint(raw)) throw new ConfigError("a root is no point of the curve");
    if (isWeak(raw)) throw new ConfigError("a root is a weak key");
    this.#key = createPublicKey({ key: Buffer.concat([SPKI_HEAD, raw]), format: "der", type: "spki" });
    this.keyId = createHash("sha256").update(raw).digest("hex").slice(0, KEY_ID_DIGITS);
  }

  /** True if the key has signed `message`. A signature with a weak point is refused, which only the key's holder could make. */
  verifies(message: Uint8Array, signature: Uint8Array): boolean {
    return signature.length === SIGNATURE_BYTES && !isWeak(Buffer.from(signature.subarray(0, KEY_BYTES))) && verify(null, message, this.#key, signature);
  }
}

/** Pinned keys, by id. */
export class Roots {
  readonly #keys: ReadonlyMap<string, VerifyingKey>;

  constructor(keys: Iterable<VerifyingKey>) {
    this.#keys = new Map(Array.from(keys, (key) => [key.keyId, key]));
    if (this.#keys.size === 0) throw new ConfigError("no root is given; leave roots out to verify without one");
  }

  /** Keys given as base64 or as files that hold it; null where none was given. */
  static read(roots: Iterable<string>): Roots | null {
    const keys = Array.from(roots, (root) => new VerifyingKey(contentOf(root)));
    return keys.length === 0 ? null : new Roots(keys);
  }

  /** The key with this id. */
  get(keyId: string): VerifyingKey | null {
    return this.#keys.get(keyId) ?? null;
  }
}

function contentOf(root: string): string {
  try {
    return statSync(root, { throwIfNoEntry: false })?.isFile() === true ? readFileSync(root, "ascii") : root;
  } catch {
    throw new ConfigError("a root's file cannot be read");
  }
}

function mod(value: bigint): bigint {
  const rest = value % P;
  return rest < 0n ? rest + P : rest;
}

function power(base: bigint, exponent: bigint): bigint {
  let [result, square] = [1n, mod(base)];
  for (let left = exponent; left > 0n; left >>= 1n) {
    if (left & 1n) result = mod(result * square);
    square = mod(square * square);
  }
  return result;
}

function yOf(raw: Buffer): bigint {
  const value = BigInt(`0x${Buffer.from(raw).reverse().toString("hex")}`);
  return mod(value & (2n ** 255n - 1n));
}

function isPoint(raw: Buffer): boolean {
  if (raw.subarray(1, 31).every((byte) => byte === 0xff) && (Number(raw[31]) & 0x7f) === 0x7f && Number(raw[0]) >= 0xed) return false;
  const y2 = power(yOf(raw), 2n);
  const x2 = mod((y2 - 1n) * power(D * y2 + 1n, P - 2n));
  return x2 === 0n || power(x2, (P - 1n) / 2n) === 1n;
}

/** True for the points of order 1, 2, 4 and 8: those with y = 1, −1, 0, and those whose double has y = 0. */
function isWeak(raw: Buffer): boolean {
  const y = yOf(raw);
  return y === 0n || y === 1n || y === P - 1n || mod(D * power(y, 4n) + 2n * y * y - 1n) === 0n;
}
