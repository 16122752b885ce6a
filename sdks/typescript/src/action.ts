/** A frozen action: one immutable text, from which the hash, what is sent and what runs are all made. So they cannot differ. */

import { actionTree, exactCopy, hashOfTree, type Json } from "./canon.js";
import { emptyObject, read, type TreeObject } from "./door.js";
import { CanonError, ConfigError, DeniedUnfreezable } from "./errors.js";
import type { ToolCall } from "./models.js";
import { freeze as frozen, getOwnPropertyDescriptor, getPrototypeOf, hasOwn, isProxy, isWellFormed, keys, objectPrototype, ownKeys, parse } from "./natives.js";
import { plainText } from "./writer.js";

/** The resource an action is on: none, one, or one that follows from the frozen parameters, of which the function gets a copy. */
export type Resource = string | null | ((parameters: Json) => string | null);

/** `text` is the JSON of the five values, as it is sent. */
export class FrozenAction {
  readonly #text: string;
  readonly actionHash: string;

  constructor(readonly tool: string, readonly action: string, readonly mutatesState: boolean, text: string) {
    this.#text = text;
    this.actionHash = hashOfTree(read(text));
    frozen(this);
  }

  get text(): string {
    return this.#text;
  }

  /** The resource. */
  get resource(): string | null {
    return (parse(this.#text) as { resource: string | null }).resource;
  }

  /** A copy of the parameters that is nobody else's. */
  get parameters(): Json {
    return (parse(this.#text) as { parameters: Json }).parameters;
  }

  /** The parameters as a JSON text, for what takes a text. Written from a tree, so that no `toJSON` that somebody put on a prototype is asked. */
  get parametersText(): string {
    return plainText((read(this.#text) as TreeObject)["parameters"] as TreeObject);
  }
}

/** Freezes an action; DeniedUnfreezable where it has no canonical form. Looks at each value once, and keeps a copy of what it saw. */
export function freeze(tool: string, action: string, resource: Resource, mutatesState: boolean, parameters: object): FrozenAction {
  try {
    const copy = copied(parameters);
    const named = toldResource(resource, parse(plainText(copy)) as Json);
    return new FrozenAction(tool, action, mutatesState, plainText(actionTree(tool, action, named, mutatesState, copy)));
  } catch (error) {
    if (error instanceof CanonError) throw new DeniedUnfreezable(error.reason, error.message);
    throw error;
  }
}

/** A copy of parameters that is nobody else's, as a JSON text; DeniedUnfreezable where they are not plain JSON. */
export function plainParameters(parameters: object): string {
  try {
    return plainText(copied(parameters));
  } catch (error) {
    if (error instanceof CanonError) throw new DeniedUnfreezable(error.reason, error.message);
    throw error;
  }
}

/** One by one, so that an error names the parameter. */
function copied(parameters: object): TreeObject {
  const prototype = isProxy(parameters) ? undefined : (getPrototypeOf(parameters) as unknown);
  if (prototype !== objectPrototype && prototype !== null) throw new CanonError("unsupported_type", "the parameters; they are one plain object");
  const copy = emptyObject();
  for (const name of ownKeys(parameters)) {
    if (typeof name !== "string") throw new CanonError("unsupported_type", "the parameters (a key that is a symbol)");
    if (!isWellFormed(name)) throw new CanonError("lone_surrogate", "the name of a parameter");
    const descriptor = getOwnPropertyDescriptor(parameters, name);
    if (descriptor === undefined || !hasOwn(descriptor, "value") || descriptor.enumerable !== true) {
      throw new CanonError("unsupported_type", `parameter \`${name}\` (an accessor, or hidden)`);
    }
    // Depth 2: within `parameters`, within the action.
    copy[name] = exactCopy(descriptor.value, `parameter \`${name}\``, 2);
  }
  return copy;
}

/** The action as an approver edited it, if the same function can run it; ConfigError says why not. */
export function refreeze(original: FrozenAction, edited: ToolCall, resource: Resource): FrozenAction {
  if (edited.tool !== original.tool || edited.action !== original.action || edited.mutates_state !== original.mutatesState) {
    throw new ConfigError("the edit makes it another tool's action");
  }
  const [before, after] = [original.parameters, edited.parameters];
  const names = keys(before);
  if (keys(after).length !== names.length || !names.every((name) => hasOwn(after, name))) {
    throw new ConfigError("the edit has other parameters than the function");
  }
  const made = freeze(edited.tool, edited.action, edited.resource, edited.mutates_state, after);
  let named: string | null;
  try {
    named = resourceOf(resource, made.parameters);
  } catch {
    // The function was not written for what an approver may write, and its error's text may hold an argument.
    throw new ConfigError("the resource cannot be told from the edited parameters");
  }
  if (named !== edited.resource) throw new ConfigError("the edit names another resource than its parameters do");
  return made;
}

/** The resource of a call. The function's own error may hold an argument, and whoever waits for the call waits for `Denied`. */
function toldResource(resource: Resource, parameters: Json): string | null {
  try {
    return resourceOf(resource, parameters);
  } catch (error) {
    if (error instanceof CanonError) throw error;
  }
  throw new CanonError("unsupported_type", "the resource; its function failed on these parameters");
}

function resourceOf(resource: Resource, parameters: Json): string | null {
  const named: unknown = typeof resource === "function" ? resource(parameters) : resource;
  if (named === null) return null;
  if (typeof named !== "string") throw new CanonError("unsupported_type", "the resource; it is a text or null");
  if (!isWellFormed(named)) throw new CanonError("lone_surrogate", "the resource");
  return named;
}

