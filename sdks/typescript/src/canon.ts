/**
 * aegis-jcs-1: the one canonical JSON form, and the action hash over it (`corpus/canonical/`).
 *
 * Of values only plain JSON passes: an object with a class, an accessor or a `toJSON` of its own could say one thing here and another where it
 * is used. Nothing is converted, and each value is looked at once.
 */

import { Buffer } from "node:buffer";
import { TextDecoder } from "node:util";

import { Double, emptyObject, MAX_DEPTH, read, type Tree, type TreeObject } from "./door.js";
import { CanonError } from "./errors.js";
import {
  arrayPrototype, getOwnPropertyDescriptor, getPrototypeOf, hasOwn, isAdded, isArray, isFinite, isInteger, isProxy, isSafeInteger, isWellFormed,
  objectPrototype, ownKeys, parse, sha256Hex,
} from "./natives.js";
import { canonicalText } from "./writer.js";

export const CANON_VERSION = "aegis-jcs-1";
/** Of an input and of a canonical form, bytes. */
export const DEFAULT_MAX_BYTES = 1 << 20;

/** Plain JSON. */
export type JsonValue = null | boolean | number | string | JsonValue[] | { [key: string]: JsonValue };
export type Json = Record<string, JsonValue>;

export interface Limits {
  /** Largest input and largest canonical form, bytes: 1 MiB. */
  maxBytes?: number;
}

const byteLength = Buffer.byteLength.bind(Buffer);
const bufferFrom = Buffer.from.bind(Buffer) as (text: string, encoding: "utf8") => Buffer;
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const decode = decoder.decode.bind(decoder);

/** The value of a JSON text that means one thing in every language; CanonError for any other text. */
export function parseStrict(data: string | Uint8Array, limits: Limits = {}): JsonValue {
  const text = textOf(data, maxBytesOf(limits));
  read(text);
  // The door has seen that every reader makes the same of it; the built-in one makes ordinary objects, with `__proto__` as a key like others.
  return parse(text) as JsonValue;
}

/** The same as a tree, which keeps `1.0` apart from `1`. */
export function parseTree(data: string | Uint8Array, maxBytes: number): Tree {
  return read(textOf(data, maxBytes));
}

/** The canonical form of a JSON text. `maxBytes` holds for the text and for the form. */
export function canonicalize(data: string | Uint8Array, limits: Limits = {}): Uint8Array {
  const maxBytes = maxBytesOf(limits);
  return bounded(canonicalText(parseTree(data, maxBytes)), maxBytes);
}

/** The canonical form of a value made of null, booleans, numbers, texts, arrays and plain objects, and of nothing else. */
export function canonicalizeValue(value: unknown, limits: Limits = {}): Uint8Array {
  const maxBytes = maxBytesOf(limits);
  return bounded(canonicalText(exactCopy(value, "", 0, maxBytes)), maxBytes);
}

/** What an approval, a receipt and an execution are bound to: lower-case hex SHA-256 over exactly these five. */
export function actionHash(tool: string, action: string, resource: string | null, mutatesState: boolean, parameters: object): string {
  const isResource = resource === null || typeof resource === "string";
  if (typeof tool !== "string" || typeof action !== "string" || !isResource || typeof mutatesState !== "boolean") {
    throw new CanonError("unsupported_type", "the action: texts, a resource or null, a boolean and an object");
  }
  const copy = exactCopy(parameters, "the parameters", 1);
  if (!isTreeObject(copy)) throw new CanonError("unsupported_type", "the parameters; they are a plain object");
  for (const text of [tool, action, resource ?? ""]) soundText(text, "the action");
  return hashOfTree(actionTree(tool, action, resource, mutatesState, copy));
}

/** The five of an action, as they are hashed and sent. */
export function actionTree(tool: string, action: string, resource: string | null, mutatesState: boolean, parameters: TreeObject): TreeObject {
  const five = emptyObject();
  five["tool"] = tool;
  five["action"] = action;
  five["resource"] = resource;
  five["mutates_state"] = mutatesState;
  five["parameters"] = parameters;
  return five;
}

/** Hex SHA-256 of the canonical form; CanonError where that is larger than 1 MiB. */
export function hashOfTree(tree: Tree): string {
  return sha256Hex(bounded(canonicalText(tree), DEFAULT_MAX_BYTES));
}

/** True for an object of a tree. */
export function isTreeObject(tree: unknown): tree is TreeObject {
  return typeof tree === "object" && tree !== null && !isArray(tree) && !(tree instanceof Double);
}

/**
 * A deep copy of plain JSON as a tree, each value looked at once. `where` names the value in errors, which never repeat it. A value of more
 * parts and characters than `maxBytes` cannot have a form of that size; looking no further ends also what refers to one thing many times.
 */
export function exactCopy(value: unknown, where = "", depth = 0, maxBytes: number = DEFAULT_MAX_BYTES): Tree {
  return new Copier(where, maxBytes).copy(value, depth);
}

class Copier {
  private left: number;

  constructor(private readonly where: string, maxBytes: number) {
    this.left = maxBytes;
  }

  copy(value: unknown, depth: number): Tree {
    this.spend(1);
    if (value === null || typeof value === "boolean") return value;
    if (typeof value === "string") {
      this.spend(value.length);
      return soundText(value, this.where);
    }
    if (typeof value === "number") return this.number(value);
    if (typeof value !== "object") throw this.unsupported(typeof value);
    // Before anything of it is looked at: a proxy answers as it likes, and could answer otherwise the next time.
    if (isProxy(value)) throw this.unsupported("a Proxy");
    if (depth >= MAX_DEPTH) throw new CanonError("depth_exceeded", this.where);
    return isArray(value) ? this.array(value, depth) : this.object(value, depth);
  }

  private spend(parts: number): void {
    this.left -= parts;
    if (this.left < 0) throw new CanonError("size_exceeded", this.where);
  }

  private number(value: number): number {
    if (!isFinite(value)) throw new CanonError("non_finite_number", this.where);
    if (isInteger(value) && !isSafeInteger(value)) throw new CanonError("integer_out_of_range", this.where);
    return value;
  }

  private array(value: unknown[], depth: number): Tree[] {
    if (getPrototypeOf(value) !== arrayPrototype) throw this.unsupported("an array of a class of its own");
    const length = value.length;
    this.spend(length);
    // Every index and `length`, and nothing else: neither holes nor properties of its own.
    if (ownKeys(value).length !== length + 1) throw this.unsupported("a sparse array, or one with properties of its own");
    const items: Tree[] = [];
    for (let place = 0; place < length; place += 1) {
      if (!isAdded(items, this.copy(this.read(value, String(place)), depth + 1))) throw this.unsupported("an array, whose items somebody takes");
    }
    return items;
  }

  private object(value: object, depth: number): TreeObject {
    const prototype = getPrototypeOf(value) as unknown;
    if (prototype !== objectPrototype && prototype !== null) throw this.unsupported("an object of a class, or with a prototype of its own");
    const members = emptyObject();
    const names = ownKeys(value);
    for (let place = 0; place < names.length; place += 1) {
      const name = names[place];
      if (typeof name !== "string") throw this.unsupported("a key that is a symbol");
      this.spend(name.length);
      members[soundText(name, this.where)] = this.copy(this.read(value, name), depth + 1);
    }
    return members;
  }

  /** What stands in a property; one that would have to be called, or that is hidden, is refused. */
  private read(value: object, name: string): unknown {
    const descriptor = getOwnPropertyDescriptor(value, name);
    if (descriptor === undefined) throw this.unsupported("a sparse array");
    if (!hasOwn(descriptor, "value") || descriptor.enumerable !== true) throw this.unsupported("a property with an accessor, or a hidden one");
    return descriptor.value;
  }

  private unsupported(kind: string): CanonError {
    return new CanonError("unsupported_type", `${this.where || "the value"} (${kind}); only plain JSON types have a canonical form`);
  }
}

function soundText(text: string, where: string): string {
  if (!isWellFormed(text)) throw new CanonError("lone_surrogate", where);
  return text;
}

function maxBytesOf(limits: Limits): number {
  const given = hasOwn(limits, "maxBytes") ? limits.maxBytes : undefined;
  return given ?? DEFAULT_MAX_BYTES;
}

function bounded(canonical: string, maxBytes: number): Buffer {
  const bytes = bufferFrom(canonical, "utf8");
  if (bytes.length > maxBytes) throw new CanonError("size_exceeded");
  return bytes;
}

function textOf(data: string | Uint8Array, maxBytes: number): string {
  if (typeof data === "string") {
    if (byteLength(data, "utf8") > maxBytes) throw new CanonError("size_exceeded");
    if (!isWellFormed(data)) throw new CanonError("invalid_utf8");
    return data;
  }
  if (data.byteLength > maxBytes) throw new CanonError("size_exceeded");
  try {
    return decode(data);
  } catch {
    throw new CanonError("invalid_utf8");
  }
}
