/** What the adapters share: which actions a set of tools has, and how one of them is run. */

import { AsyncLocalStorage } from "node:async_hooks";

import { freeze, type Resource } from "../action.js";
import type { Json } from "../canon.js";
import { type Asker, askerOf, type Client } from "../client.js";
import type { OutcomeStatus } from "../endpoints.js";
import { type Denied } from "../errors.js";
import { execute } from "../execute.js";
import type { Options } from "../flow.js";
import { type AskSettings, askOptions, namedText } from "../protect.js";
import { placeOf } from "../natives.js";
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

/** A set of tools, registered as the actions of `tool`. */
export class Tools {
  readonly tellModel: boolean;
  readonly #asker: Asker;
  readonly #tool: string;
  readonly #reads: ReadonlySet<string>;
  readonly #resource: ResourceOf | null;
  readonly #options: Omit<Options, "resource" | "fits">;

  constructor(client: Client, tool: unknown, settings: ToolsSettings) {
    const s = given<ToolsSettings>(settings, SETTINGS, "an adapter");
    this.#asker = askerOf(client);
    this.#tool = namedText(tool, "tool");
    this.#reads = new Set(namesOf(s.reads, "reads"));
    this.#resource = maybeFunction(s.resource, "resource");
    this.tellModel = flag(s.tellModel, "tellModel", false);
    this.#options = askOptions(s);
  }

  /** Runs a call, or throws Denied. */
  async run<R>(action: string, parameters: object, run: (parameters: Json) => R, status?: (result: Awaited<R>) => OutcomeStatus): Promise<Awaited<R>> {
    const of = this.#resource;
    const resource: Resource = of === null ? null : (frozen) => of(action, frozen);
    const frozen = freeze(this.#tool, action, resource, !this.#reads.has(action), parameters);
    return await execute(this.#asker, frozen, { ...this.#options, resource, fits: null }, run, status);
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

/**
 * Leave for one way of being run to go through others, where a framework's ways call each other: `invoke` calls `call`, which runs the tool. Each
 * lets the cleared call through once, from the outermost to the innermost and not back.
 */
export class Passage {
  static readonly #current = new AsyncLocalStorage<{ readonly thing: object; open: readonly string[] }>();

  /** Does cleared work of `thing`, for which these ways are open, the outermost first. */
  static through<T>(thing: object, ways: readonly string[], work: () => T): T {
    return Passage.#current.run({ thing, open: ways }, work);
  }

  /** True, once, within cleared work of `thing`; from then on only what is further in is open. */
  static isOpen(thing: object, way: string): boolean {
    const current = Passage.#current.getStore();
    const place = current?.thing === thing ? placeOf(way, current.open) : -1;
    if (current === undefined || place < 0) return false;
    current.open = current.open.slice(place + 1);
    return true;
  }
}
