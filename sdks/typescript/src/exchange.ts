/** One call of the API, apart from how bytes move: what is sent, how often, and what an answer must be. */

import { Buffer } from "node:buffer";

import { exactCopy, isTreeObject, type JsonValue, parseTree } from "./canon.js";
import type { Tree } from "./door.js";
import { ApiError, BadReply, CanonError, ConfigError, RequestFailed, Unreachable } from "./errors.js";
import { hasOwn, isOneOf, monotonic } from "./natives.js";
import { sleep } from "./pause.js";
import type { Secret } from "./secret.js";
import type { Sink, Transport } from "./transport.js";
import { plainText } from "./writer.js";

/** Largest answer that is read, bytes: an approval holds two actions of at most 1 MiB each, escaped. */
export const MAX_REPLY_BYTES = 8 << 20;
// Attempts of one call, and the pauses between them, seconds.
const ATTEMPTS = 3;
const FIRST_PAUSE_S = 0.1;
const LONGEST_PAUSE_S = 2;
const PAUSE_SPREAD = 0.2;
// A message of the server's goes into errors and logs no longer than this, characters.
const SHOWN = 300;
// 503 with one of these: the server has changed nothing.
const UNCHANGED = ["control_busy", "receipt_unavailable"];
const CODE = /^[A-Za-z0-9_]{1,64}$/;
const UNPRINTABLE = /[\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}/gu;

/**
 * When the same request may be sent again: `safe`, whatever became of it (a read, or a call with an idempotency key); `unchanged`, only where it
 * is certain that nothing was changed: it was not sent, or the server says so.
 */
export type Retry = "safe" | "unchanged";

/** What came back. Header names are in lower case. */
export interface Reply {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | undefined>>;
  readonly body: Buffer;
}

/**
 * One call: the path is encoded already; `read` makes its answer of what came. `isWritten`: a good answer is no JSON document, and is written
 * as it comes; then it is asked for once.
 */
export interface Request<T> {
  readonly method: "GET" | "POST";
  readonly path: string;
  readonly read: (tree: Tree, body: Buffer) => T;
  readonly body?: Buffer;
  readonly retry: Retry;
  readonly expect: readonly number[];
  readonly isWritten?: true;
}

/** How a call is made. */
export interface Sending {
  readonly transport: Transport;
  readonly secret: Secret;
  readonly timeoutS: number;
  readonly signal: AbortSignal | null;
  readonly sink?: Sink;
}

/** A path of parts that are encoded here, so that no id can lead elsewhere. */
export function pathOf(parts: readonly string[], query: Readonly<Record<string, string | number | null>> = {}): string {
  const path = `/${parts.map(encoded).join("/")}`;
  const given = Object.entries(query).filter(([, value]) => value !== null);
  return given.length === 0 ? path : `${path}?${given.map(([name, value]) => `${name}=${encodedText(String(value))}`).join("&")}`;
}

function encoded(part: unknown): string {
  if (typeof part !== "string" || part === "" || part === "." || part === "..") throw new ConfigError("an id in a path is empty or leads elsewhere");
  return encodedText(part);
}

function encodedText(text: string): string {
  try {
    return encodeURIComponent(text).replace(/[!'()*]/g, (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`);
  } catch {
    throw new ConfigError("an id is no Unicode text");
  }
}

/** A request body: plain JSON only, so that what is sent is what was meant. */
export function jsonBody(value: JsonValue): Buffer {
  return Buffer.from(plainText(exactCopy(value)));
}

/** Sends a request, again where that is safe, within `timeoutS` for all of it; RequestFailed where it gets no usable answer. */
export async function exchange<T>(request: Request<T>, sending: Sending): Promise<T> {
  const deadline = monotonic() + sending.timeoutS;
  let pause = FIRST_PAUSE_S;
  for (let attempt = 1; ; attempt += 1) {
    let failure: RequestFailed;
    try {
      return readReply(request, await sending.transport.send(request, deadline, sending), sending.secret);
    } catch (error) {
      if (!(error instanceof RequestFailed)) throw error;
      failure = error;
    }
    const wait = Math.max(spread(pause, PAUSE_SPREAD), askedPause(failure));
    if (attempt === ATTEMPTS || !maySendAgain(request, failure) || monotonic() + wait >= deadline) throw failure;
    await sleep(wait, sending.signal);
    pause = Math.min(pause * 2, LONGEST_PAUSE_S);
  }
}

/** `seconds`, more or less, so that many who wait do not come back at once. */
export function spread(seconds: number, share: number): number {
  return seconds * (1 - share + 2 * share * Math.random());
}

function maySendAgain(request: Request<unknown>, failure: RequestFailed): boolean {
  if (request.isWritten) return false;
  if (failure instanceof Unreachable) return request.retry === "safe" || !failure.sent;
  if (!(failure instanceof ApiError)) return false;
  if (failure.status === 429) return true;
  return failure.status === 503 && (request.retry === "safe" || isOneOf(failure.code, UNCHANGED));
}

function askedPause(failure: RequestFailed): number {
  return failure instanceof ApiError ? Math.min(failure.retryAfterS, LONGEST_PAUSE_S) : 0;
}

function readReply<T>(request: Request<T>, reply: Reply, secret: Secret): T {
  const isExpected = isOneOf(reply.status, request.expect);
  if (request.isWritten && isExpected) return request.read(null, reply.body);
  const tree = parsed(reply, secret);
  if (reply.status >= 300 && reply.status < 400) {
    throw new BadReply("a redirect; give the address that it leads to as the base URL, if you trust it");
  }
  if (!isExpected) throw apiError(reply, tree);
  if (tree === undefined) throw new BadReply("an answer that is not strict JSON");
  return request.read(tree, reply.body);
}

/** The tree of an answer, undefined where there is none. One that repeats the credential, as it is or in escapes, is not let out of here. */
function parsed(reply: Reply, secret: Secret): Tree | undefined {
  let tree: Tree | undefined;
  try {
    tree = parseTree(reply.body, MAX_REPLY_BYTES);
  } catch (error) {
    if (!(error instanceof CanonError)) throw error;
  }
  const isRepeated = reply.body.includes(secret.reveal()) || (tree !== undefined && plainText(tree).includes(secret.reveal()));
  if (isRepeated) throw new BadReply("an answer that repeats the credential");
  return tree;
}

function apiError(reply: Reply, tree: Tree | undefined): ApiError {
  const error = member(tree, "error");
  const [code, message] = [member(error, "code"), member(error, "message")];
  const after = reply.headers["retry-after"] ?? "";
  const retryAfterS = /^\d{1,8}$/.test(after) ? Number(after) : 0;
  // A proxy's page has no code; a code is a word.
  if (typeof code !== "string" || !CODE.test(code)) return new ApiError(reply.status, `http_${reply.status}`, "the answer says no more", retryAfterS);
  return new ApiError(reply.status, code, typeof message === "string" ? shownText(message) : "the answer says no more", retryAfterS);
}

function member(tree: Tree | undefined, name: string): Tree | undefined {
  return isTreeObject(tree) && hasOwn(tree, name) ? tree[name] : undefined;
}

/** A text of the server's as errors and logs may show it: one line, bounded. */
export function shownText(text: string): string {
  // More is never shown, so it is not looked at.
  const line = Array.from(text.slice(0, 4 * SHOWN).replace(UNPRINTABLE, " "));
  return line.length <= SHOWN ? line.join("") : `${line.slice(0, SHOWN).join("")}…`;
}
