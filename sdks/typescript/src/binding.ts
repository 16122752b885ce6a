/**
 * From a call's arguments to parameters by name, and back. Deterministic: given and default arguments come out alike.
 *
 * A JavaScript function tells no names, so it takes one object of named parameters, or `params` names them in their order.
 */

import { types } from "node:util";

import { exactCopy, type Json, type JsonValue } from "./canon.js";
import { CanonError, ConfigError, DeniedUnfreezable } from "./errors.js";
import {
  after, apply, create, defineProperty, getOwnPropertyDescriptor, getPrototypeOf, hasOwn, isArray, isOneOf, isProxy, keys, objectPrototype, ownKeys, parse,
  placeOf, putAt,
} from "./natives.js";
import { plainText } from "./writer.js";

// What stands for the object that a method is called on.
const RECEIVER = "this";
const GATHERS = "...";

export type AnyFunction = (...args: never[]) => unknown;

/** What is passed on, by name. */
export type PassedOn = Record<string, unknown>;

/** The parameters of one call, and beside them what is passed on as it is. */
export interface Bound {
  readonly parameters: object;
  readonly passedOn: PassedOn;
}

/**
 * How one function takes its arguments. What a call does uses no method of an array, a map or a set, which somebody may have replaced: it would
 * decide what is hashed, or what runs.
 */
export class Binding {
  // Null: one object.
  readonly #names: readonly string[] | null;
  readonly #gathering: string | null;
  // Those that are not gathered.
  readonly #single: readonly string[];
  readonly #passedOn: readonly string[];
  readonly #defaults: readonly Default[];
  readonly #function: AnyFunction;

  constructor(fn: AnyFunction, params: readonly string[] | null, passedOn: readonly string[], defaults: object) {
    this.#function = checkedFunction(fn);
    this.#names = params === null ? null : params.map((name) => (name.startsWith(GATHERS) ? name.slice(GATHERS.length) : name));
    this.#gathering = gatheringOf(params ?? []);
    this.#single = this.#names === null ? [] : this.#gathering === null ? this.#names : this.#names.slice(0, -1);
    this.#passedOn = [...passedOn];
    if (this.#names === null) {
      if (fn.length > 1) throw new ConfigError("the function takes several arguments: name them in params, or let it take one object");
    } else {
      this.#checkNames(this.#names, fn.length);
    }
    this.#defaults = frozenDefaults(defaults, this.#passedOn, this.#names);
  }

  #checkNames(names: readonly string[], length: number): void {
    if (new Set(names).size !== names.length || names.includes("") || names.includes(RECEIVER)) {
      throw new ConfigError("params names each parameter once, and `this` is none");
    }
    if (length > names.length) throw new ConfigError("the function takes more arguments than params names");
    const unknown = this.#passedOn.filter((name) => name !== RECEIVER && !names.includes(name));
    if (unknown.length > 0) throw new ConfigError(`the function has no parameter ${unknown.join(", ")}`);
  }

  /** The parameters of a call; TypeError for arguments that the function does not take. */
  bind(receiver: unknown, given: readonly unknown[]): Bound {
    const parameters = create(null) as object;
    const passedOn = create(null) as PassedOn;
    if (isOneOf(RECEIVER, this.#passedOn)) passedOn[RECEIVER] = receiver;
    if (this.#names === null) this.#bindObject(given, parameters, passedOn);
    else this.#bindInOrder(this.#names, given, parameters, passedOn);
    for (let place = 0; place < this.#defaults.length; place += 1) {
      const { name, value } = this.#defaults[place] as Default;
      const descriptor = getOwnPropertyDescriptor(parameters, name);
      // As in the language itself, `undefined` means the default.
      if (descriptor === undefined || (hasOwn(descriptor, "value") && descriptor.value === undefined)) put(parameters, name, value);
    }
    return { parameters, passedOn };
  }

  #bindObject(given: readonly unknown[], parameters: object, passedOn: PassedOn): void {
    if (given.length > 1) throw new TypeError("the function takes one object of named parameters");
    const only: unknown = given.length === 0 ? {} : given[0];
    const isObject = typeof only === "object" && only !== null && !isProxy(only);
    const prototype: unknown = isObject ? getPrototypeOf(only) : undefined;
    if (!isObject || (prototype !== objectPrototype && prototype !== null)) {
      throw new DeniedUnfreezable("unsupported_type", "the function takes one plain object of named parameters");
    }
    const keysOfIt = ownKeys(only);
    for (let place = 0; place < keysOfIt.length; place += 1) {
      const name = keysOfIt[place] as string | symbol;
      const descriptor = getOwnPropertyDescriptor(only, name) as PropertyDescriptor;
      if (typeof name !== "string" || name === RECEIVER || !isOneOf(name, this.#passedOn)) {
        defineProperty(parameters, name, { ...descriptor, configurable: true });
      } else {
        if (!hasOwn(descriptor, "value")) throw new DeniedUnfreezable("unsupported_type", `parameter \`${name}\` is an accessor`);
        passedOn[name] = descriptor.value;
      }
    }
  }

  #bindInOrder(names: readonly string[], given: readonly unknown[], parameters: object, passedOn: PassedOn): void {
    if (this.#gathering === null && given.length > names.length) throw new TypeError(`the function takes at most ${names.length} arguments`);
    const single = this.#single;
    for (let place = 0; place < single.length; place += 1) {
      const name = single[place] as string;
      if (isOneOf(name, this.#passedOn)) passedOn[name] = given[place];
      else if (place < given.length) put(parameters, name, given[place]);
    }
    if (this.#gathering === null) return;
    const rest = after(single.length - 1, given);
    if (isOneOf(this.#gathering, this.#passedOn)) passedOn[this.#gathering] = rest;
    else put(parameters, this.#gathering, rest);
  }

  /** True if the function can be called with parameters that somebody else has written. */
  fits(parameters: Json): boolean {
    const gathering = this.#gathering;
    return gathering === null || !hasOwn(parameters, gathering) || isArray(parameters[gathering]);
  }

  /** Calls the function. */
  call(parameters: Json, passedOn: PassedOn): unknown {
    return apply(this.#function as (this: unknown, ...args: unknown[]) => unknown, passedOn[RECEIVER], this.#arguments(parameters, passedOn));
  }

  #arguments(parameters: Json, passedOn: PassedOn): unknown[] {
    if (this.#names === null) {
      const beside = keys(passedOn);
      for (let place = 0; place < beside.length; place += 1) {
        const name = beside[place] as string;
        if (name !== RECEIVER) put(parameters, name, passedOn[name]);
      }
      return [parameters];
    }
    const valueOf = (name: string): unknown => (hasOwn(passedOn, name) ? passedOn[name] : hasOwn(parameters, name) ? parameters[name] : undefined);
    const [values, single]: [unknown[], readonly string[]] = [[], this.#single];
    for (let place = 0; place < single.length; place += 1) putAt(values, place, valueOf(single[place] as string));
    if (this.#gathering === null) return values;
    const rest = valueOf(this.#gathering) as unknown[];
    for (let place = 0; place < rest.length; place += 1) putAt(values, single.length + place, rest[place]);
    return values;
  }
}

interface Default {
  readonly name: string;
  readonly value: JsonValue;
}

function put(object: object, name: string, value: unknown): void {
  defineProperty(object, name, { value, enumerable: true, configurable: true, writable: true });
}

function gatheringOf(params: readonly string[]): string | null {
  const gathering = params.filter((name) => name.startsWith(GATHERS));
  if (gathering.length === 0) return null;
  if (gathering.length > 1 || gathering[0] !== params.at(-1)) throw new ConfigError("only the last of params gathers the rest");
  return gathering[0]?.slice(GATHERS.length) ?? null;
}

function checkedFunction(fn: unknown): AnyFunction {
  if (typeof fn !== "function") throw new ConfigError("give the function that is to be protected");
  if (types.isGeneratorFunction(fn)) throw new ConfigError("a generator runs after it was returned, so it cannot be protected; protect what it calls");
  const prototype = getOwnPropertyDescriptor(fn, "prototype");
  if (prototype?.writable === false) throw new ConfigError("a class is no function; protect one that makes the object");
  return fn as AnyFunction;
}

function frozenDefaults(defaults: object, passedOn: readonly string[], names: readonly string[] | null): readonly Default[] {
  const found: Default[] = [];
  try {
    const copy = parse(plainText(exactCopy(defaults, "defaults", 1))) as unknown;
    if (typeof copy !== "object" || copy === null || isArray(copy)) throw new ConfigError("defaults is an object of values by name");
    for (const name of keys(copy)) {
      if (placeOf(name, passedOn) >= 0) throw new ConfigError(`\`${name}\` is passed on, so it has no default that is hashed`);
      if (names !== null && !names.includes(name)) throw new ConfigError(`the function has no parameter ${name}`);
      found.push({ name, value: (copy as Json)[name] as JsonValue });
    }
  } catch (error) {
    if (error instanceof CanonError) throw new ConfigError(`${error.message}; or name the parameter in passedOn`);
    throw error;
  }
  return found;
}
