/** A pause that ends early, with the signal's reason, where the work is broken off. Not by a clock that a test has replaced. */

import { clearTimer, setTimer } from "./natives.js";

export async function sleep(seconds: number, signal: AbortSignal | null): Promise<void> {
  signal?.throwIfAborted();
  await new Promise<void>((resolve, reject) => {
    const end = (): void => {
      clearTimer(timer);
      reject(reasonOf(signal));
    };
    const timer = setTimer(() => {
      signal?.removeEventListener("abort", end);
      resolve();
    }, seconds * 1000);
    signal?.addEventListener("abort", end, { once: true });
  });
}

/** What is thrown where work is broken off: the signal's reason, as it is. */
export function reasonOf(signal: AbortSignal | null): Error {
  return signal?.reason as Error;
}
