/** Commit proofs: an inclusion path of RFC 6962 from a receipt hash to the root that a commit signed. */

import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";

import type { Tree, TreeObject } from "../door.js";
import { hasOwn, isArray } from "../natives.js";
import { VerifyError } from "./failure.js";
import { decodeBase64, type Roots } from "./keys.js";

// A tree of 2^63 leaves is higher than any.
const MAX_PATH = 63;
// A commit's receipts stand close together in a log, so few are enough.
const REMEMBERED_COMMITS = 4096;
const HASH = /^[0-9a-f]{64}$/;

/** The hash that 64 lower-case hex digits write; null for anything else. */
export function hashFromHex(text: unknown): Buffer | null {
  return typeof text === "string" && HASH.test(text) ? Buffer.from(text, "hex") : null;
}

function sha256(...parts: Uint8Array[]): Buffer {
  const hash = createHash("sha256");
  for (const part of parts) hash.update(part);
  return hash.digest();
}

const [LEAF, NODE] = [Buffer.from([0]), Buffer.from([1])];

/** The root that `path` leads to (RFC 9162 section 2.1.3.2); null if no tree of that size has this path. */
export function rootOf(receiptHash: Uint8Array, index: number, size: number, path: readonly Uint8Array[]): Buffer | null {
  if (index >= size) return null;
  // Numbers beyond 32 bits have no shifts of their own.
  let [position, last] = [BigInt(index), BigInt(size) - 1n];
  let node = sha256(LEAF, receiptHash);
  for (const sibling of path) {
    if (last === 0n) return null;
    if (position & 1n || position === last) {
      node = sha256(NODE, sibling, node);
      while (position && !(position & 1n)) [position, last] = [position >> 1n, last >> 1n];
    } else {
      node = sha256(NODE, node, sibling);
    }
    [position, last] = [position >> 1n, last >> 1n];
  }
  return last === 0n ? node : null;
}

interface Claim {
  readonly size: number;
  readonly index: number;
  readonly signer: string;
  readonly signature: Buffer;
  readonly path: readonly Buffer[];
}

/** Checks proofs, and remembers the commits that it has checked: one signature serves all receipts of a commit. */
export class Commits {
  readonly #checked = new Map<string, Buffer>();

  constructor(private readonly roots: Roots | null) {}

  /** With roots, the commit must be signed by one of them; without, all paths under one signature must lead to one root. */
  check(proof: TreeObject, receiptHash: Uint8Array, keyId: string): void {
    const claim = read(proof);
    if (claim.signer !== keyId) throw VerifyError.of("invalid_proof", "body and proof name different keys");
    const root = rootOf(receiptHash, claim.index, claim.size, claim.path);
    if (root === null) throw VerifyError.of("invalid_proof", "its path cannot lead to the root of a commit of its size");
    const key = this.roots === null ? null : this.roots.get(claim.signer);
    if (this.roots !== null && key === null) throw VerifyError.of("unknown_key", "it is signed by a key that is not pinned");
    const identity = `${claim.size} ${claim.signature.toString("base64")} ${claim.signer}`;
    const known = this.#checked.get(identity);
    if (known !== undefined && !known.equals(root)) throw wrongRoot(key !== null);
    if (known === undefined && key !== null && !key.verifies(statement(claim.size, root), claim.signature)) throw wrongRoot(true);
    this.#remember(identity, root);
  }

  #remember(identity: string, root: Buffer): void {
    this.#checked.set(identity, root);
    if (this.#checked.size <= REMEMBERED_COMMITS) return;
    const oldest = this.#checked.keys().next();
    if (oldest.done !== true) this.#checked.delete(oldest.value);
  }
}

function statement(size: number, root: Buffer): Buffer {
  return Buffer.from(`aegis-commit-1\n${size}\n${root.toString("hex")}\n`);
}

function wrongRoot(isSigned: boolean): VerifyError {
  if (isSigned) return VerifyError.of("bad_signature", "the commit's signature is not over the root that its path leads to");
  return VerifyError.of("invalid_proof", "its path leads to another root than its commit's other receipts");
}

function read(proof: TreeObject): Claim {
  const [size, index] = [whole(proof, "size"), whole(proof, "index")];
  const signer = text(proof, "key_id");
  const signature = decodeBase64(text(proof, "signature"));
  if (signature === null) throw malformed("signature is not base64");
  const siblings = member(proof, "path");
  if (!isArray(siblings)) throw malformed("path is not an array");
  if (siblings.length > MAX_PATH) throw VerifyError.of("invalid_proof", "its path is longer than any tree is high");
  const path = siblings.map((sibling) => {
    const node = hashFromHex(sibling);
    if (node === null) throw malformed("path holds something that is not a hash in lower-case hex");
    return node;
  });
  return { size, index, signer, signature, path };
}

function malformed(what: string): VerifyError {
  return VerifyError.of("malformed", `proof.${what}`);
}

function member(proof: TreeObject, key: string): Tree | undefined {
  return hasOwn(proof, key) ? proof[key] : undefined;
}

function whole(proof: TreeObject, key: string): number {
  const value = member(proof, key);
  if (typeof value !== "number" || !Number.isInteger(value) || value < 0 || Object.is(value, -0)) throw malformed(`${key} is not a number`);
  return value;
}

function text(proof: TreeObject, key: string): string {
  const value = member(proof, key);
  if (typeof value !== "string") throw malformed(`${key} is not a string`);
  return value;
}
