/** What is given by name: read once, from the object itself, and nothing that is not known. */

import { ConfigError } from "./errors.js";
import { getOwnPropertyDescriptor, hasOwn, isFinite, ownKeys } from "./natives.js";

/**
 * The properties that an object of settings has itself. One that hangs on a prototype was meant by nobody, and one whose name is not known may be
 * a stricter one that was misspelt.
 */
export function given<T extends object>(settings: unknown, names: readonly (keyof T & string)[], what: string): Partial<T> {
  if (typeof settings !== "object" || settings === null) throw new ConfigError(`${what} is an object of settings`);
  const found = Object.create(null) as Record<string, unknown>;
  for (const name of ownKeys(settings)) {
    if (typeof name !== "string" || !(names as readonly string[]).includes(name)) throw new ConfigError(`${what} has no setting ${String(name)}`);
    const descriptor = getOwnPropertyDescriptor(settings, name);
    if (descriptor === undefined || !hasOwn(descriptor, "value")) throw new ConfigError(`${name} is a value, and no accessor`);
    if (descriptor.value !== undefined) found[name] = descriptor.value;
  }
  return found as Partial<T>;
}

/** True or false, and nothing that could be taken for one of them. */
export function flag(value: unknown, name: string, otherwise: boolean): boolean {
  if (value === undefined) return otherwise;
  if (typeof value !== "boolean") throw new ConfigError(`${name} is true or false: another value could mean what was not meant`);
  return value;
}

/** A number of seconds. */
export function seconds(value: unknown, name: string): number {
  if (typeof value !== "number" || !isFinite(value) || value < 0) throw new ConfigError(`${name} is a number of seconds`);
  return value;
}

/** Names, as an array or a set of texts. */
export function namesOf(value: unknown, name: string): readonly string[] {
  if (value === undefined) return [];
  if (!Array.isArray(value) && !(value instanceof Set)) throw new ConfigError(`${name} is an array or a set of names`);
  const names: unknown[] = [...(value as Iterable<unknown>)];
  if (!names.every((one) => typeof one === "string")) throw new ConfigError(`${name} is an array or a set of names`);
  return names;
}

/** A function, or nothing. */
export function maybeFunction<F>(value: F | undefined, name: string): F | null {
  if (value === undefined || value === null) return null;
  if (typeof value !== "function") throw new ConfigError(`${name} is a function`);
  return value;
}
