/**
 * `protect`: a function that runs only as it was authorized.
 *
 * The arguments are frozen, hashed and sent; what runs, if it runs, is made from the frozen text. Everything else is `Denied`.
 */

import { freeze, type Resource } from "./action.js";
import { Binding } from "./binding.js";
import type { Json, JsonValue } from "./canon.js";
import { askerOf, type Client } from "./client.js";
import { ConfigError } from "./errors.js";
import { execute } from "./execute.js";
import type { Options } from "./flow.js";
import type { ApprovalRef } from "./models.js";
import { defineProperty, isWellFormed } from "./natives.js";
import { flag, given, maybeFunction, namesOf, seconds } from "./settings.js";
import { checkedName } from "./trust.js";

export type Risk = "low" | "medium" | "high" | "critical";

/** How the server may be asked, for one function or for all tools of an agent. */
export interface AskSettings {
  /** Default false. */
  containsSensitiveData?: boolean;
  channel?: string;
  /** Run the action as its approver edited it. Otherwise an edit is a denial. */
  acceptEdits?: boolean;
  /** How long to wait for an approval, at most until it expires; 0 looks once. */
  approvalTimeoutS?: number;
  /** How long the server may be away while an approval is waited for: 30. */
  unreachableS?: number;
  /** Called with the approval that is waited for, to tell somebody of it. */
  onPending?: (approval: ApprovalRef) => unknown;
}

export interface ProtectSettings<P = Json> extends AskSettings {
  tool: string;
  action: string;
  /** What it acts on: a text, or a function of the parameters. */
  resource?: string | null | ((parameters: P) => string | null);
  /** What its author says; the server's registry can only make it stricter. Default true and `high`. */
  mutatesState?: boolean;
  risk?: Risk;
  /** Run while no server can be asked. Only for a read of low risk without sensitive data. */
  failOpenReads?: boolean;
  /** Report what the function returned, where it is plain JSON; the server keeps a keyed hash of it alone. */
  reportOutput?: boolean;
  /** The names of the arguments, in their order, of a function that does not take one object; `...name` gathers the rest. */
  params?: readonly string[];
  /** Values of parameters that are not given: hashed and sent like the others, as defaults in the function's own head would not be. */
  defaults?: Record<string, JsonValue>;
  /** Parameters that are neither hashed nor frozen nor sent; `this` for a method's object. They must not decide what the function does. */
  passedOn?: readonly string[] | ReadonlySet<string>;
}

const ASK = ["containsSensitiveData", "channel", "acceptEdits", "approvalTimeoutS", "unreachableS", "onPending"] as const;
const SETTINGS = [...ASK, "tool", "action", "resource", "mutatesState", "risk", "failOpenReads", "reportOutput", "params", "defaults", "passedOn"] as const;
const RISKS: readonly unknown[] = ["low", "medium", "high", "critical"];
const UNREACHABLE_S = 30;

/** The parameters as `resource` sees them. */
type Parameters<A extends readonly unknown[]> = A extends readonly [infer P] ? P : Json;

/**
 * Protects a function as the registered action `tool`/`action`. It takes one object of named parameters; `params` names those of another.
 * ConfigError where it cannot be safe.
 */
export function protect<A extends unknown[], R>(
  client: Client, settings: ProtectSettings<Parameters<A>>, fn: (...args: A) => R,
): (...args: A) => Promise<Awaited<R>> {
  const asker = askerOf(client);
  const s = given<ProtectSettings>(settings, SETTINGS, "protect");
  const [tool, action] = [namedText(s.tool, "tool"), namedText(s.action, "action")];
  const mutatesState = flag(s.mutatesState, "mutatesState", true);
  const risk = s.risk ?? "high";
  if (!RISKS.includes(risk)) throw new ConfigError("risk is one of low, medium, high, critical");
  const failOpenReads = flag(s.failOpenReads, "failOpenReads", false);
  const asked = askOptions(s);
  if (failOpenReads && (mutatesState || risk !== "low" || asked.containsSensitiveData)) {
    throw new ConfigError("only a read fails open: mutatesState: false, risk: \"low\" and no sensitive data");
  }
  const params = s.params === undefined ? null : namesOf(s.params, "params");
  const binding = new Binding(fn, params, namesOf(s.passedOn, "passedOn"), s.defaults ?? {});
  const resource = checkedResource(s.resource);
  const options: Options = {
    ...asked, resource, failOpenReads, reportOutput: flag(s.reportOutput, "reportOutput", false), fits: (parameters) => binding.fits(parameters),
  };
  const guarded = async function (this: unknown, ...args: A): Promise<Awaited<R>> {
    const bound = binding.bind(this, args);
    const frozen = freeze(tool, action, resource, mutatesState, bound.parameters);
    return await execute(asker, frozen, options, (cleared) => binding.call(cleared.parameters, bound.passedOn) as R);
  };
  defineProperty(guarded, "name", { value: fn.name, configurable: true });
  defineProperty(guarded, "length", { value: fn.length, configurable: true });
  return guarded;
}

/** The settings that a function and a set of tools have in common. */
export function askOptions(s: Partial<AskSettings>): Omit<Options, "resource" | "fits"> {
  return {
    containsSensitiveData: flag(s.containsSensitiveData, "containsSensitiveData", false),
    channel: s.channel === undefined ? null : checkedName(s.channel, "channel"),
    acceptEdits: flag(s.acceptEdits, "acceptEdits", false),
    approvalTimeoutS: s.approvalTimeoutS === undefined ? null : seconds(s.approvalTimeoutS, "approvalTimeoutS"),
    unreachableS: s.unreachableS === undefined ? UNREACHABLE_S : seconds(s.unreachableS, "unreachableS"),
    onPending: maybeFunction(s.onPending, "onPending"),
    failOpenReads: false,
    reportOutput: false,
  };
}

function checkedResource(resource: unknown): Resource {
  if (resource === undefined || resource === null || typeof resource === "function") return (resource ?? null) as Resource;
  if (typeof resource === "string" && isWellFormed(resource)) return resource;
  throw new ConfigError("resource is a text, null, or a function of the parameters");
}

/** A text that is not empty. */
export function namedText(value: unknown, name: string): string {
  if (typeof value !== "string" || value === "" || !isWellFormed(value)) throw new ConfigError(`${name} must be a text`);
  return value;
}
