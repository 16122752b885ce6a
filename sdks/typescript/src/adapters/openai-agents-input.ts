/**
 * What a tool of the OpenAI Agents SDK is run with: its arguments as the tool's own schema reads them, before they are frozen. So defaults, coercions
 * and transforms are hashed, shown to whoever approves, and run.
 *
 * The framework keeps the schema to itself, and reads with it for its own runners; what was read is handed over in the same way as they do it. A
 * schema must take its own result as it is, so that a framework that reads once more changes nothing.
 */

import { tool } from "@openai/agents";
import { type FunctionToolPreparedInput, prepareFunctionToolInput, setFunctionToolPreparedInput } from "@openai/agents-core/utils/internal";

import { plainParameters } from "../action.js";
import { actionHash, type Json } from "../canon.js";
import { ConfigError, DeniedUnfreezable } from "../errors.js";
import { isArray, parse } from "../natives.js";

/** One call's arguments, read. */
export interface Input {
  /** False where they do not fit the schema: handed over, the framework answers to that, and the function is not called. */
  readonly fits: boolean;
  /** To be frozen. */
  readonly parameters: object;
  /** True where the schema takes parameters that somebody else wrote, and makes nothing else of them; null where there is no schema. */
  readonly isEditFit: ((edited: Json) => boolean) | null;
  /** Puts what was read of a text on a call's details, which are nobody else's; null where a tool takes the text itself. */
  readonly handOver: (<D extends object>(own: D, text: string) => D) | null;
}

type Reader = (given: string) => Input;
type Invoke = Parameters<typeof prepareFunctionToolInput>[0]["invoke"];

const known = tool({
  name: "known", description: "Says whether both packages are one framework.", strict: false, execute: () => "",
  parameters: { type: "object", properties: {}, required: [], additionalProperties: true },
});
// Of a tool whose approvals depend on what was read, the framework reads plain data only; here that is looked at later.
const { needsApproval } = known;
const read = (invoke: unknown, text: string): FunctionToolPreparedInput | undefined =>
  prepareFunctionToolInput({ invoke: invoke as Invoke, needsApproval }, text);

/** ConfigError where `@openai/agents-core` is not the one that `@openai/agents` is made of: it would know none of the tools' schemas. */
export function checkFramework(): void {
  if (read(known.invoke, "{}") === undefined) {
    throw new ConfigError("`@openai/agents-core` is another copy than the one of `@openai/agents`: install the same version of both, once");
  }
}

/** How a tool reads its arguments. `invoke` is the framework's, or somebody's own, which takes the text. */
export function readerOf(invoke: unknown): Reader {
  if (!hasSchema(invoke)) {
    return (given) => ({ fits: true, parameters: parse(given) as object, isEditFit: null, handOver: null });
  }
  return (given) => {
    const first = readAgain(invoke, given);
    if (!first.result.success) return { fits: false, parameters: {}, isEditFit: null, handOver: handingOver(first, () => first.result) };
    const parameters = plain(first.result.value);
    const isEditFit = (edited: Json): boolean => isStable(invoke, edited);
    if (!isEditFit(parameters)) throw new DeniedUnfreezable("schema_not_stable", "the tool's schema does not take what it has read as it is");
    return { fits: true, parameters, isEditFit, handOver: handingOver(first, (text) => ({ success: true, value: parse(text) as unknown })) };
  };
}

function hasSchema(invoke: unknown): boolean {
  try {
    // No JSON, so that no schema sees it.
    return read(invoke, "") !== undefined;
  } catch {
    return true;
  }
}

function readAgain(invoke: unknown, text: string): FunctionToolPreparedInput {
  const prepared = read(invoke, text);
  if (prepared === undefined) throw new DeniedUnfreezable("schema_not_stable", "the framework does not know the tool's schema any more");
  return prepared;
}

function handingOver(first: FunctionToolPreparedInput, resultOf: (text: string) => FunctionToolPreparedInput["result"]): NonNullable<Input["handOver"]> {
  return (own, text) => {
    setFunctionToolPreparedInput(own, { ...first, consumed: false, input: text, result: resultOf(text) });
    return own;
  };
}

/** A copy of what a schema made, which must be plain JSON. */
function plain(value: unknown): Json {
  if (typeof value !== "object" || value === null || isArray(value)) {
    throw new DeniedUnfreezable("unsupported_type", "what the tool's schema makes of its arguments is no object");
  }
  return parse(plainParameters(value)) as Json;
}

function isStable(invoke: unknown, parameters: Json): boolean {
  try {
    const text = plainParameters(parameters);
    const { result } = readAgain(invoke, text);
    return result.success && isSameJson(result.value, text);
  } catch {
    return false;
  }
}

/** True for a value that is the same plain JSON as a text. */
export function isSameJson(value: unknown, text: string): boolean {
  try {
    return hashOf(plain(value)) === hashOf(parse(text) as object);
  } catch {
    return false;
  }
}

const hashOf = (parameters: object): string => actionHash("", "", null, true, parameters);
