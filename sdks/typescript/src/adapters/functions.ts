/** Plain functions: each becomes the action of its name. */

import type { Json } from "../canon.js";
import type { Client } from "../client.js";
import { ConfigError } from "../errors.js";
import { isOneOf, keys } from "../natives.js";
import { protect, type ProtectSettings } from "../protect.js";
import type { ResourceOf } from "./tools.js";
import { given, namesOf } from "../settings.js";

export type { ResourceOf } from "./tools.js";

// Each takes its own arguments.
type Functions = Record<string, (...args: never[]) => unknown>;

/** Those of `protect` that hold for all, and what differs by function. */
export interface FunctionsSettings extends Pick<
  ProtectSettings, "tool" | "containsSensitiveData" | "channel" | "acceptEdits" | "approvalTimeoutS" | "unreachableS" | "onPending" | "reportOutput" | "passedOn"
> {
  /** The names of those that change nothing; every other one may. */
  reads?: readonly string[] | ReadonlySet<string>;
  resource?: ResourceOf;
  /** The names of the arguments of those that do not take one object. */
  params?: Record<string, readonly string[]>;
}

const NAMES = [
  "tool", "containsSensitiveData", "channel", "acceptEdits", "approvalTimeoutS", "unreachableS", "onPending", "reportOutput", "passedOn", "reads", "resource", "params",
] as const;

/** The functions by name, protected. */
export function protectFunctions<F extends Functions>(client: Client, functions: F, settings: FunctionsSettings): {
  [N in keyof F]: (...args: Parameters<F[N]>) => Promise<Awaited<ReturnType<F[N]>>>
} {
  const { reads: readNames, resource, params = {}, ...shared } = given<FunctionsSettings>(settings, NAMES, "protectFunctions");
  const [names, reads] = [keys(functions), namesOf(readNames, "reads")];
  const unknown = [...reads, ...keys(params)].filter((name) => !names.includes(name));
  if (unknown.length > 0) throw new ConfigError(`there is no function ${unknown.join(", ")}`);
  const made = names.map((name) => {
    const own = {
      ...shared,
      action: name,
      mutatesState: !isOneOf(name, reads),
      ...(resource === undefined ? {} : { resource: (parameters: Json) => resource(name, parameters) }),
      ...(isOneOf(name, keys(params)) ? { params: params[name] as readonly string[] } : {}),
    } as unknown as ProtectSettings;
    return [name, protect(client, own, functions[name] as (...args: unknown[]) => unknown)];
  });
  return Object.fromEntries(made) as ReturnType<typeof protectFunctions<F>>;
}
