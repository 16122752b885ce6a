/**
 * How far the origin of the work at hand may be trusted: a label that follows the work, and that only tightens.
 *
 * It is kept in an AsyncLocalStorage, so it follows `await`, promises and timers by itself, and worker threads where they are started or given
 * work through the helpers here.
 */

import { AsyncLocalStorage } from "node:async_hooks";
import { getEnvironmentData, isMainThread, setEnvironmentData, Worker, type WorkerOptions } from "node:worker_threads";

import { ConfigError } from "./errors.js";
import { freeze, isOneOf, isWellFormed, placeOf } from "./natives.js";

/** The six labels, from the least to the most strict. */
export const SOURCE_TRUST = freeze([
  "trusted_internal_signed", "trusted_internal_unsigned", "semi_trusted_customer", "unknown", "untrusted_external", "malicious_suspected",
] as const);
export type SourceTrust = (typeof SOURCE_TRUST)[number];

/** The user on whose behalf work is done. */
export interface User {
  readonly id: string;
  readonly role?: string;
}

/** Label, run and user of some work: plain data, which may be sent to another thread. */
export interface WorkContext {
  readonly label: SourceTrust | null;
  readonly runId: string | null;
  readonly user: User | null;
}

interface Here extends WorkContext {
  readonly signal: AbortSignal | null;
}

// Longest id or name that the server takes, characters.
const LONGEST_NAME = 256;
// Runs whose token is remembered; each is a few hundred bytes.
const REMEMBERED_RUNS = 10_000;
const CONTEXT_KEY = "aegisagent.context";
const UNPRINTABLE = /[\p{C}\p{Zl}\p{Zp}]|(?! )\p{Zs}/u;

/** 0 for the least strict. */
export function strictness(label: SourceTrust): number {
  return placeOf(label, SOURCE_TRUST);
}

/** The stricter of two labels. */
export function combine(one: SourceTrust, other: SourceTrust): SourceTrust {
  return strictness(one) >= strictness(other) ? one : other;
}

/** A label that somebody else wrote; whatever is none of the six is `unknown`. */
export function readTrust(word: unknown): SourceTrust {
  return isOneOf(word, SOURCE_TRUST) ? word : "unknown";
}

/** A label that this program's author wrote: a misspelt one would be looser than what was meant, so it is an error. */
function namedTrust(word: unknown): SourceTrust {
  if (!isOneOf(word, SOURCE_TRUST)) throw new ConfigError(`no such trust label; the labels are ${SOURCE_TRUST.join(", ")}`);
  return word;
}

const NOTHING: Here = freeze({ label: null, runId: null, user: null, signal: null });
const storage = new AsyncLocalStorage<Here>();
const stored = storage.getStore.bind(storage);
const runWith: <T>(store: Here, work: () => T) => T = storage.run.bind(storage);
// Of this thread: what it was started with through `ContextWorker`.
const base = isMainThread ? NOTHING : takenFromStarter();

function here(): Here {
  return stored() ?? base;
}

/** The label of the work at hand; `unknown` where nobody set one. */
export function currentTrust(): SourceTrust {
  return here().label ?? "unknown";
}

/** The run that the work at hand belongs to. */
export function currentRun(): string | null {
  return here().runId;
}

/** The user on whose behalf the work at hand is done. */
export function currentUser(): User | null {
  return here().user;
}

/** What breaks off the work at hand. */
export function currentSignal(): AbortSignal | null {
  return here().signal;
}

function within<T>(change: Partial<Here>, work: () => T): T {
  if (typeof work !== "function") throw new ConfigError("give the work that is to be done within as a function");
  return runWith(freeze({ ...here(), ...change }), work);
}

/** What `work` does counts as coming from a source of this label. Within another such call the stricter of both holds. */
export function sourceTrust<T>(label: SourceTrust, work: () => T): T {
  const said = namedTrust(label);
  const outer = here().label;
  return within({ label: outer === null ? said : combine(outer, said) }, work);
}

/** What `work` does belongs to this run: the server keeps the strictest label that a run has seen, whatever is claimed later. */
export function run<T>(runId: string, work: () => T): T {
  return within({ runId: checkedName(runId, "a run id") }, work);
}

/** What `work` does is done for this user, who may then not approve it. */
export function onBehalfOf<T>(user: string | User, work: () => T): T {
  const given = typeof user === "string" ? { id: user } : user;
  const id = checkedName((given as User | null)?.id, "a user's id");
  const named = given.role === undefined ? { id } : { id, role: checkedName(given.role, "a role") };
  return within({ user: freeze(named) }, work);
}

/**
 * What `work` does is broken off when the signal is aborted: a call that waits ends with the signal's reason and does not run. A function that
 * runs already is not interrupted; it may look at `currentSignal()`, and what it throws then counts as `ambiguous`.
 */
export function withSignal<T>(signal: AbortSignal, work: () => T): T {
  if (!(signal instanceof AbortSignal)) throw new ConfigError("give an AbortSignal");
  const outer = here().signal;
  return within({ signal: outer === null ? signal : AbortSignal.any([outer, signal]) }, work);
}

/** A name as the server takes it. */
export function checkedName(text: unknown, what: string): string {
  const isName = typeof text === "string" && text.length > 0 && isWellFormed(text) && Array.from(text).length <= LONGEST_NAME && !UNPRINTABLE.test(text);
  if (!isName) throw new ConfigError(`${what} has 1 to ${LONGEST_NAME} printable characters`);
  return text;
}

/** `work`, to be called elsewhere (an emitter's listener, a queue), with the label, run and user of here and now. */
export function inContext<A extends unknown[], R>(work: (...given: A) => R): (...given: A) => R {
  const carried = carry();
  return (...given: A) => carriedIn(carried, () => work(...given));
}

/** The label, run and user of here and now, as plain data for a message to another thread: what `carriedIn` takes there. */
export function carry(): WorkContext {
  const { label, runId, user } = here();
  return { label, runId, user };
}

/** Does `work` with what was carried from elsewhere. Where this place has a label of its own, the stricter holds. */
export function carriedIn<T>(carried: WorkContext, work: () => T): T {
  const from = readContext(carried);
  const outer = here();
  const label = outer.label === null || from.label === null ? (outer.label ?? from.label) : combine(outer.label, from.label);
  return within({ label, runId: from.runId ?? outer.runId, user: from.user ?? outer.user }, work);
}

function readContext(value: unknown): WorkContext {
  if (typeof value !== "object" || value === null) throw new ConfigError("what is carried is what `carry` gave");
  const { label, runId, user } = value as Partial<Record<keyof WorkContext, unknown>>;
  const named = (user ?? null) as User | null;
  return freeze({
    label: (label ?? null) === null ? null : namedTrust(label),
    runId: (runId ?? null) === null ? null : checkedName(runId, "a run id"),
    user: named === null ? null : freeze({ id: checkedName(named.id, "a user's id"), ...(named.role === undefined ? {} : { role: checkedName(named.role, "a role") }) }),
  });
}

/** A worker thread that takes the label, run and user of where it was made, for all that it does. */
export class ContextWorker extends Worker {
  constructor(file: string | URL, options?: WorkerOptions) {
    const before = getEnvironmentData(CONTEXT_KEY);
    // A thread gets a copy of this when it is made; no other work comes between.
    setEnvironmentData(CONTEXT_KEY, carry());
    try {
      super(file, options);
    } finally {
      setEnvironmentData(CONTEXT_KEY, before);
    }
  }
}

function takenFromStarter(): Here {
  const given = getEnvironmentData(CONTEXT_KEY) as unknown;
  // A thread that this one starts otherwise knows nothing of it.
  setEnvironmentData(CONTEXT_KEY, undefined);
  return given === undefined || given === null ? NOTHING : freeze({ ...readContext(given), signal: null });
}

/**
 * The server's word on each run (`trust_token`), sent back with the run's next call so that every edge knows it.
 *
 * Replies may overtake each other: the token of the strictest label is kept, and of two with one label the newer.
 */
export class RunTokens {
  readonly #tokens = new Map<string | null, { label: SourceTrust; token: string }>();

  /** The token to send with a call of this run; null for the agent's implicit run means that run. */
  get(runId: string | null): string | null {
    return this.#tokens.get(runId)?.token ?? null;
  }

  /** Notes what a reply said. */
  keep(runId: string | null, label: SourceTrust, token: string): void {
    const kept = this.#tokens.get(runId);
    const next = kept === undefined || strictness(label) >= strictness(kept.label) ? { label, token } : kept;
    // A map remembers the order in which keys came: the first is the one that was used the longest ago.
    this.#tokens.delete(runId);
    this.#tokens.set(runId, next);
    if (this.#tokens.size <= REMEMBERED_RUNS) return;
    const oldest = this.#tokens.keys().next();
    if (oldest.done !== true) this.#tokens.delete(oldest.value);
  }
}
