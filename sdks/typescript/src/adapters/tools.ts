/** What the adapters share: which actions a set of tools has, and how one of them is run. */

import { AsyncLocalStorage } from "node:async_hooks";

import { freeze, type FrozenAction, type Resource } from "../action.js";
import type { Json } from "../canon.js";
import { type Asker, askerOf, type Client } from "../client.js";
import type { OutcomeStatus } from "../endpoints.js";
import { type Denied, DeniedUnfreezable } from "../errors.js";
import { execute } from "../execute.js";
import type { Options } from "../flow.js";
import { type AskSettings, askOptions, namedText } from "../protect.js";
import { after, isOneOf, placeOf } from "../natives.js";
import { flag, given, maybeFunction, namesOf } from "../settings.js";

/** What an action is on, as a function of its name and parameters. */
export type ResourceOf = (action: string, parameters: Json) => string | null;

export interface ToolsSettings extends AskSettings {
  /** The names of those that change nothing; every other one may. */
  reads?: readonly string[] | ReadonlySet<string>;
  resource?: ResourceOf;
  /** A denial is the tool's answer, for the model to read; otherwise it is thrown. */
  tellModel?: boolean;
}

const SETTINGS = [
  "reads", "resource", "tellModel", "containsSensitiveData", "channel", "acceptEdits", "approvalTimeoutS", "unreachableS", "onPending",
] as const;

/** What an adapter knows of one call. */
export interface How<R> {
  /** What a result says of itself. */
  readonly status?: (result: R) => OutcomeStatus;
  /** Whether what an approver made of the parameters can be run. */
  readonly fits?: Options["fits"];
}

/** A set of tools, registered as the actions of `tool`. */
export class Tools {
  readonly tellModel: boolean;
  readonly #asker: Asker;
  readonly #tool: string;
  readonly #reads: readonly string[];
  readonly #resource: ResourceOf | null;
  readonly #options: Omit<Options, "resource" | "fits">;

  constructor(client: Client, tool: unknown, settings: ToolsSettings) {
    const s = given<ToolsSettings>(settings, SETTINGS, "an adapter");
    this.#asker = askerOf(client);
    this.#tool = namedText(tool, "tool");
    this.#reads = namesOf(s.reads, "reads");
    this.#resource = maybeFunction(s.resource, "resource");
    this.tellModel = flag(s.tellModel, "tellModel", false);
    this.#options = askOptions(s);
  }

  /** Runs a call, or throws Denied. */
  async run<R>(action: string, parameters: object, run: (cleared: FrozenAction) => R, how: How<Awaited<R>> = {}): Promise<Awaited<R>> {
    if (typeof action !== "string") throw new DeniedUnfreezable("unsupported_call", "a call without a tool's name does not run");
    const of = this.#resource;
    const resource: Resource = of === null ? null : (frozen) => of(action, frozen);
    const frozen = freeze(this.#tool, action, resource, !isOneOf(action, this.#reads), parameters);
    return await execute(this.#asker, frozen, { ...this.#options, resource, fits: how.fits ?? null }, run, how.status);
  }
}

/** The settings of `Tools` among those of an adapter, which has `more` of its own. */
export function split<M extends string>(settings: unknown, more: readonly M[]): { own: Partial<Record<M, unknown>>; rest: ToolsSettings } {
  const all = given<Record<string, unknown>>(settings, [...SETTINGS, ...more], "an adapter");
  const own: Partial<Record<M, unknown>> = {};
  const rest: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(all)) {
    if ((more as readonly string[]).includes(name)) own[name as M] = value;
    else rest[name] = value;
  }
  return { own, rest };
}

/** A denial as a model may read it. */
export function told(denied: Denied): string {
  const named = denied.decisionId === null ? "" : ` (decision ${denied.decisionId})`;
  return `The call was denied: ${denied.code}: ${denied.reason}${named}`;
}

/** What a model may read of a denial that came out of a tool that ran: it is no word about that tool's own call. */
export function toldOfRun(within: Denied): string {
  return `The tool ran, and its result is withheld: something that it called was not allowed (${within.code}: ${within.reason})`;
}

/**
 * Leave for one way of being run to go through others, where a framework's ways call each other: `invoke` calls `call`, which runs the tool. Each
 * lets the cleared call through once, from the outermost to the innermost and not back, and none does once the cleared work has ended.
 *
 * `C` is what was cleared: each way takes what it runs from there, whatever it was handed. In between, others may have had it in their hands.
 */
export class Passage<C> {
  readonly #through: <T>(here: Here<C>, work: () => T) => T;
  readonly #here: () => Here<C> | undefined;

  constructor() {
    const storage = new AsyncLocalStorage<Here<C>>();
    this.#through = storage.run.bind(storage);
    this.#here = storage.getStore.bind(storage);
  }

  /** Does cleared work of `thing`, for which these ways are open, the outermost first. */
  async through<T>(thing: object, ways: readonly string[], cleared: C, work: () => Promise<T>): Promise<T> {
    const here: Here<C> = { thing, open: ways, cleared };
    try {
      return await this.#through(here, work);
    } finally {
      here.open = [];
    }
  }

  /**
   * What was cleared, once, within cleared work of `thing`; from then on only what is further in is open. Null where the way is not open, or is
   * gone with something else than was cleared, which `isCleared` may say.
   */
  take(thing: object, way: string, isCleared: (cleared: C) => boolean = () => true): C | null {
    const here = this.#of(thing, way);
    if (here === null || !isCleared(here.cleared)) return null;
    here.open = after(placeOf(way, here.open), here.open);
    return here.cleared;
  }

  /** True within cleared work of `thing` that has not gone this way yet. */
  isOpen(thing: object, way: string): boolean {
    return this.#of(thing, way) !== null;
  }

  #of(thing: object, way: string): Here<C> | null {
    const here = this.#here();
    return here?.thing === thing && placeOf(way, here.open) >= 0 ? here : null;
  }
}

interface Here<C> {
  readonly thing: object;
  open: readonly string[];
  readonly cleared: C;
}
