/**
 * The built-in functions that safety hangs on, as they were when this package was loaded. Whoever replaces one of them later (a test's fake
 * clock, a library that patches `JSON`, an attacker's dependency) changes neither what is hashed nor what runs. Load this package early.
 */

import { createHash } from "node:crypto";
import { performance } from "node:perf_hooks";
import { clearTimeout as clearTimer, setTimeout as setTimer } from "node:timers";
import { types } from "node:util";

const { hasOwn, getPrototypeOf, getOwnPropertyDescriptor, defineProperty, create, freeze, keys } = Object;
const { ownKeys, apply } = Reflect;
const { isArray } = Array;
const { isFinite, isInteger, isSafeInteger } = Number;
const { parse, stringify } = JSON;
const { structuredClone } = globalThis;
const { fromCharCode } = String;
const { isProxy } = types;
const objectPrototype = Object.prototype;
const arrayPrototype = Array.prototype;
const makeHash = createHash;
const now = performance.now.bind(performance);
const wallClock = Date.now;

// The prototype's method, called on what is given: a method that somebody replaces later is not the one that is called.
const uncurry = <T, A extends readonly unknown[], R>(method: (this: T, ...rest: A) => R) =>
  (self: T, ...rest: A): R => apply(method, self, rest);

/* eslint-disable @typescript-eslint/unbound-method -- taken from their object on purpose */
const charCodeAt = uncurry<string, [number], number>(String.prototype.charCodeAt);
const slice = uncurry<string, [number, number?], string>(String.prototype.slice);
const startsWith = uncurry<string, [string, number?], boolean>(String.prototype.startsWith);
const isWellFormed = uncurry<string, [], boolean>(String.prototype.isWellFormed);
const sort = uncurry<string[], [], string[]>(Array.prototype.sort as (this: string[]) => string[]);
const join = uncurry<string[], [string], string>(Array.prototype.join);
const weakHas = uncurry<WeakSet<object>, [object], boolean>(WeakSet.prototype.has);
const mapForEach = uncurry<ReadonlyMap<unknown, unknown>, [(value: unknown, key: unknown) => void], unknown>(Map.prototype.forEach);
const setForEach = uncurry<ReadonlySet<unknown>, [(value: unknown) => void], unknown>(Set.prototype.forEach);
/* eslint-enable @typescript-eslint/unbound-method */

/** Monotonic seconds. */
export const monotonic = (): number => now() / 1000;
/** Seconds since the epoch. */
export const epochSeconds = (): number => wallClock() / 1000;

export {
  apply, arrayPrototype, charCodeAt, clearTimer, create, defineProperty, freeze, fromCharCode, getOwnPropertyDescriptor, getPrototypeOf, hasOwn, isArray,
  isFinite, isInteger, isProxy, isSafeInteger, isWellFormed, join, keys, mapForEach, objectPrototype, ownKeys, parse, setForEach, setTimer, slice, sort,
  startsWith, stringify, structuredClone, weakHas,
};

/** The place of a value in a list; −1 where it is not in it. */
export function placeOf(value: unknown, list: readonly unknown[]): number {
  for (let place = 0; place < list.length; place += 1) if (list[place] === value) return place;
  return -1;
}

/** An item of the list itself, whatever setters somebody has hung on the prototype of all arrays. */
export function putAt(list: unknown[], place: number, value: unknown): void {
  defineProperty(list, place, { value, enumerable: true, configurable: true, writable: true });
}

/** Adds to a list; false where a setter on the prototype of all arrays took what was added. */
export function isAdded(list: unknown[], value: unknown): boolean {
  const place = list.length;
  list[place] = value;
  return list.length === place + 1;
}

/** What stands in a list behind a place. */
export function after<T>(place: number, list: readonly T[]): T[] {
  const rest: T[] = [];
  for (let at = place + 1; at < list.length; at += 1) rest[at - place - 1] = list[at] as T;
  return rest;
}

/** True where a value is in a list. */
export const isOneOf = <T>(value: unknown, list: readonly T[]): value is T => placeOf(value, list) >= 0;

const hashPrototype = getPrototypeOf(makeHash("sha256")) as { update: unknown; digest: unknown };
const update = uncurry(hashPrototype.update as (this: unknown, data: Uint8Array | string) => unknown);
const digest = uncurry(hashPrototype.digest as (this: unknown, encoding: "hex") => string);

/** Lower-case hex SHA-256. */
export function sha256Hex(data: Uint8Array | string): string {
  const hash = makeHash("sha256");
  update(hash, data);
  return digest(hash, "hex");
}

/** A property of the object itself: one that somebody hung on `Object.prototype` is not it. */
export function own(object: object, name: string): unknown {
  const descriptor = getOwnPropertyDescriptor(object, name);
  return descriptor !== undefined && hasOwn(descriptor, "value") ? descriptor.value : undefined;
}
