/** A credential that no log, inspection or error shows, and that is neither copied nor serialised. */

import { Buffer } from "node:buffer";
import { timingSafeEqual } from "node:crypto";
import { inspect } from "node:util";

import { ConfigError } from "./errors.js";

// RFC 6750: what may stand behind `Bearer`. Longer than any of ours: 4096.
const MAX_CHARACTERS = 4096;
const CREDENTIAL = /^[\x21-\x7e]+$/;

/** A text that is shown by `reveal()` only. */
export class Secret {
  readonly #value: string;
  // A function of its own: `JSON.stringify` calls it, and a structured clone, which would leave an empty object, refuses.
  readonly toJSON = refuseToSerialise;

  constructor(value: string) {
    const text = typeof value === "string" ? value.trim() : "";
    if (text.length > MAX_CHARACTERS || !CREDENTIAL.test(text)) {
      throw new ConfigError(`a credential is one line of 1 to ${MAX_CHARACTERS} printable ASCII characters without spaces`);
    }
    this.#value = text;
    Object.freeze(this);
  }

  /** The text itself. Where it goes from here is the caller's to answer for. */
  reveal(): string {
    return this.#value;
  }

  /** `text` without the secret in it. */
  redact(text: string): string {
    return text.replaceAll(this.#value, () => "***");
  }

  /** True for the same credential, in a time that does not depend on where they differ. */
  equals(other: unknown): boolean {
    if (!(other instanceof Secret)) return false;
    const [one, two] = [Buffer.from(this.#value), Buffer.from(other.#value)];
    return one.length === two.length && timingSafeEqual(one, two);
  }

  toString(): string {
    return "Secret(***)";
  }

  [Symbol.toPrimitive](): string {
    return "Secret(***)";
  }

  [inspect.custom](): string {
    return "Secret(***)";
  }
}

export function refuseToSerialise(): never {
  throw new TypeError("what holds a credential is not copied or serialised; hand over the object itself");
}
