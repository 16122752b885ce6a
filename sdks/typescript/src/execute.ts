/** Runs a frozen action, if it is cleared, and reports what came of it. */

import { types } from "node:util";

import type { FrozenAction } from "./action.js";
import { exactCopy, type JsonValue } from "./canon.js";
import type { Asker } from "./client.js";
import type { OutcomeStatus } from "./endpoints.js";
import { CanonError, LazyResult } from "./errors.js";
import type { Options } from "./flow.js";
import { parse } from "./natives.js";
import { currentSignal } from "./trust.js";
import { plainText } from "./writer.js";

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

/** A result that does its work later would do it when nobody looks any more. */
function refuseLazy(result: unknown): void {
  if (typeof result !== "object" || result === null || !isLazy(result)) return;
  if (types.isGeneratorObject(result)) close(result);
  throw new LazyResult("the function returned an iterator or a stream, which would run after it was reported; return an array or a value");
}

function isLazy(result: object): boolean {
  if (types.isGeneratorObject(result) || Symbol.asyncIterator in result) return true;
  return typeof (result as { next?: unknown }).next === "function" && Symbol.iterator in result;
}

function close(generator: Generator<unknown, unknown>): void {
  // An asynchronous one gives a promise.
  Promise.resolve(generator.return(undefined)).catch(() => undefined);
}
