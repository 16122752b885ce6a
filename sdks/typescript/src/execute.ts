/** Runs a frozen action, if it is cleared, and reports what came of it. */

import { types } from "node:util";

import type { FrozenAction } from "./action.js";
import { exactCopy, type JsonValue } from "./canon.js";
import type { Asker } from "./client.js";
import type { OutcomeStatus } from "./endpoints.js";
import { CanonError, LazyResult } from "./errors.js";
import type { Options } from "./flow.js";
import { getOwnPropertyDescriptor, getPrototypeOf, isArray, isProxy, mapForEach, ownKeys, parse, setForEach } from "./natives.js";
import { currentSignal } from "./trust.js";
import { plainText } from "./writer.js";

// A longer array may be an empty one, and is asked for what it has.
const LONGEST_READ_THROUGH = 10_000_000;

/** Runs `run` with the cleared action, or throws Denied. `status`: what a result says of itself. */
export async function execute<R>(
  client: Asker, action: FrozenAction, options: Options, run: (cleared: FrozenAction) => R, status: (result: Awaited<R>) => OutcomeStatus = () => "ok",
): Promise<Awaited<R>> {
  const signal = currentSignal();
  const { clearance, running } = await client.cleared(action, options, (leave) => ({ clearance: leave, running: started(() => run(leave.action)) }));
  let result: Awaited<R>;
  try {
    result = await running;
    refuseLazy(result);
  } catch (error) {
    await client.report(clearance, statusOf(error, signal));
    throw error;
  }
  await client.report(clearance, status(result), options.reportOutput ? outputOf(client, action, result) : undefined);
  return result;
}

/** Calls at once; what is thrown comes when it is waited for. */
function started<R>(work: () => R): Promise<Awaited<R>> {
  let running: Promise<Awaited<R>>;
  try {
    running = Promise.resolve(work());
  } catch (error) {
    running = Promise.reject(error);
  }
  // It is waited for a moment later; until then an error is not one that nobody looks at.
  running.catch(() => undefined);
  return running;
}

/** An error of the function's own is an error; what broke it off, or is still to come, leaves open what takes effect. */
function statusOf(error: unknown, signal: AbortSignal | null): OutcomeStatus {
  const isBrokenOff = signal?.aborted === true || error instanceof LazyResult || (error instanceof Error && error.name === "AbortError");
  return isBrokenOff ? "ambiguous" : "error";
}

function outputOf(client: Asker, action: FrozenAction, result: unknown): JsonValue | undefined {
  try {
    return parse(plainText(exactCopy(result, "the output"))) as JsonValue;
  } catch (error) {
    const why = error instanceof CanonError ? error.message : "it cannot be read";
    client.warn(`the output of ${action.tool}/${action.action} is not reported: ${why}`);
    return undefined;
  }
}

/** A result that does its work later, or holds what does, would do it when nobody looks any more. */
function refuseLazy(result: unknown): void {
  const lazy = partsOf(result).filter(isLazy);
  for (const one of lazy) leave(one);
  if (lazy.length > 0) {
    throw new LazyResult("the function returned an iterator, a promise or a stream, which would run after it was reported; return an array or a value");
  }
}

/** A result, and what its arrays, maps, sets and plain objects hold, as deep as it goes: each once, for one may stand in itself. */
function partsOf(result: unknown): object[] {
  const seen = new Set<object>();
  const add = (value: unknown): void => {
    if (typeof value === "object" && value !== null) seen.add(value);
  };
  add(result);
  // A set goes on to what is added to it meanwhile.
  for (const one of seen) {
    try {
      eachHeld(one, add);
    } catch {
      // It does not let itself be looked at.
    }
  }
  return [...seen];
}

function eachHeld(value: object, add: (held: unknown) => void): void {
  // What a proxy holds is made when it is asked for, and need not end.
  if (isProxy(value)) return;
  if (types.isMap(value)) {
    mapForEach(value, (held, key) => {
      add(key);
      add(held);
    });
  } else if (types.isSet(value)) {
    setForEach(value, add);
  } else if (isArray(value) && value.length <= LONGEST_READ_THROUGH) {
    for (let place = 0; place < value.length; place += 1) add(value[place]);
  } else if (isArray(value) || isPlain(value)) {
    for (const key of ownKeys(value)) add(getOwnPropertyDescriptor(value, key)?.value);
  }
}

function isPlain(value: object): boolean {
  const prototype: unknown = getPrototypeOf(value);
  // That of another realm, such as a test runner's, has none above it either.
  return prototype === null || getPrototypeOf(prototype) === null;
}

function isLazy(value: object): boolean {
  if (types.isGeneratorObject(value) || types.isPromise(value)) return true;
  try {
    if (Symbol.asyncIterator in value || has(value, "then")) return true;
    return has(value, "next") && Symbol.iterator in value;
  } catch {
    // It does not let itself be looked at. What has run has run.
    return false;
  }
}

function has(value: object, method: "then" | "next"): boolean {
  return typeof (value as Partial<Record<typeof method, unknown>>)[method] === "function";
}

/** Nobody waits for it: a generator is closed, and a promise's error is not one that nobody looks at. */
function leave(lazy: object): void {
  if (types.isPromise(lazy)) lazy.catch(() => undefined);
  // An asynchronous one gives a promise.
  if (types.isGeneratorObject(lazy)) Promise.resolve(lazy.return(undefined)).catch(() => undefined);
}
