/**
 * What a LangChain tool is run with: its input as the tool's own schema reads it, once, before it is frozen. So defaults, coercions and transforms
 * are hashed, shown to whoever approves, and run; nothing is read again behind the hash.
 */

import { ToolInputParsingException } from "@langchain/core/tools";
import { Validator } from "@langchain/core/utils/json_schema";
import { interopParseAsync, isInteropZodSchema } from "@langchain/core/utils/types";

import { plainParameters } from "../action.js";
import { actionHash, type Json } from "../canon.js";
import { DeniedUnfreezable } from "../errors.js";
import { create, defineProperty, freeze, getOwnPropertyDescriptor, getPrototypeOf, hasOwn, isArray, isOneOf, isProxy, ownKeys, parse } from "../natives.js";

// The parameter that stands for what is no object: the one text of a tool that takes a text.
const TEXT = "input";
// The type of a call that has its parameters in `args`.
const CALL = "tool_call";

/** One call's parameters, and what a tool's function gets for them. */
export interface Input {
  /** To be frozen. */
  readonly parameters: object;
  /** What is run for parameters that were cleared: they and what is passed on, in the form that the schema gave them. */
  readonly given: (cleared: Json) => unknown;
  /** True for an input that is what was cleared. */
  readonly isSame: (args: unknown, cleared: Json) => boolean;
  /** True where the schema takes parameters that somebody else wrote, and makes nothing else of them. */
  readonly fits: (edited: Json) => Promise<boolean>;
}

/** How one tool reads its input. */
export interface Reading {
  readonly schema: unknown;
  readonly passedOn: readonly string[];
  /** LangChain's own setting: an error tells what was wrong. */
  readonly isVerbose: boolean;
}

/** A call that a model made: its parameters, and the id that the answer must name. */
export interface Call {
  readonly args: unknown;
  readonly id: string | null;
}

/** What LangChain takes for a call around its parameters. A proxy is none: it is refused as what it is, without being asked. */
function isCall(value: unknown): value is Record<string, unknown> {
  return isObject(value) && !isProxy(value) && value["type"] === CALL;
}

/** The call that an input is, each of its properties looked at once; null for bare parameters. */
export function callOf(input: unknown): Call | null {
  if (!isCall(input)) return null;
  const [args, id] = [input["args"], input["id"]];
  return { args, id: typeof id === "string" ? id : null };
}

/** A call, to be handed on. Nothing else of the one that came in goes along: it would be told what was not hashed. */
export function madeCall(name: string, args: unknown, id: string | null): object {
  return { name, args, ...(id === null ? {} : { id }), type: CALL };
}

/**
 * Reads bare parameters. DeniedUnfreezable where they are not plain JSON, before the schema sees them: it gets a copy, so that nobody can change
 * them while it reads. LangChain's own error where they do not fit the schema.
 */
export async function readInput(args: unknown, reading: Reading): Promise<Input> {
  refuseCall(args);
  const raw = shaped(apart(args, reading.passedOn));
  const copy = plainParameters(raw.parameters);
  const read = await parsed(raw.given(parse(copy) as Json), reading, copy);
  // Of a call within a call LangChain would run the inner one.
  refuseCall(read);
  const { parameters, given } = shaped(apart(read, reading.passedOn));
  const isSame = (other: unknown, cleared: Json): boolean => {
    try {
      return hashOf(shaped(apart(other, reading.passedOn)).parameters) === hashOf(cleared);
    } catch {
      return false;
    }
  };
  const fits = async (edited: Json): Promise<boolean> => {
    try {
      return isSame(await parsed(given(edited), reading, ""), edited);
    } catch {
      return false;
    }
  };
  return { parameters, given, isSame, fits };
}

function refuseCall(value: unknown): void {
  if (isCall(value)) throw new DeniedUnfreezable("unsupported_type", "the parameters are a tool call themselves");
}

const hashOf = (parameters: object): string => actionHash("", "", null, true, parameters);

interface Apart {
  readonly rest: unknown;
  /** What is passed on, by name; null where nothing is. */
  readonly beside: object | null;
}

/** A value without the parameters that are passed on, which are taken as they are. */
function apart(value: unknown, passedOn: readonly string[]): Apart {
  if (passedOn.length === 0 || !isObject(value) || isArray(value)) return { rest: value, beside: null };
  if (isProxy(value)) throw new DeniedUnfreezable("unsupported_type", "the parameters (a Proxy)");
  // With the prototype that it has, so that what is not plain is refused where it is frozen.
  const [rest, beside] = [create(getPrototypeOf(value) as object | null) as object, create(null) as object];
  for (const name of ownKeys(value)) {
    const descriptor = getOwnPropertyDescriptor(value, name) as PropertyDescriptor;
    const isBeside = typeof name === "string" && isOneOf(name, passedOn);
    if (isBeside && !hasOwn(descriptor, "value")) throw new DeniedUnfreezable("unsupported_type", `parameter \`${name}\` is an accessor`);
    defineProperty(isBeside ? beside : rest, name, { ...descriptor, configurable: true });
  }
  return { rest, beside };
}

/** A value as parameters by name, and how it is made of them again. */
function shaped({ rest, beside }: Apart): Pick<Input, "parameters" | "given"> {
  if (rest === undefined) return { parameters: {}, given: () => undefined };
  if (!isObject(rest) || isArray(rest)) return { parameters: { [TEXT]: rest }, given: (frozen) => frozen[TEXT] };
  return { parameters: rest, given: (frozen) => (beside === null ? frozen : { ...frozen, ...beside }) };
}

async function parsed(value: unknown, reading: Reading, shown: string): Promise<unknown> {
  const { schema } = reading;
  if (!isInteropZodSchema(schema)) {
    if (!isObject(schema)) return value;
    const { valid, errors } = new Validator(schema).validate(value);
    if (valid) return value;
    throw mismatch(reading, errors.map((one) => `${one.keywordLocation}: ${one.error}`).join("\n"), "", shown);
  }
  try {
    return await interopParseAsync(schema, value);
  } catch (error) {
    // A tool that takes a text may be given it bare, or by name: its schema reads the name, and makes the text of it again.
    const named = isTextOrNothing(value) ? await interopParseAsync(schema, { [TEXT]: value }).then((text: unknown) => ({ text }), () => null) : null;
    if (named !== null && isTextOrNothing(named.text)) return named.text;
    throw mismatch(reading, error instanceof Error ? error.message : "", issuesOf(error), shown);
  }
}

const isTextOrNothing = (value: unknown): boolean => typeof value === "string" || value === undefined;

/** The error that LangChain throws for such an input. */
function mismatch(reading: Reading, details: string, issues: string, shown: string): Error {
  const more = `${reading.isVerbose ? `\nDetails: ${details}` : ""}${issues === "" ? "" : `\n\n${issues}`}`;
  return new ToolInputParsingException(`Received tool input did not match expected schema${more}`, shown);
}

/** What zod, of either version, found. */
function issuesOf(error: unknown): string {
  const found = isObject(error) && isArray(error["issues"]) ? (error["issues"] as { message: string; path?: PropertyKey[] }[]) : [];
  return found.map(({ message, path = [] }) => `✖ ${message}${path.length === 0 ? "" : `\n  → at ${path.map(String).join(".")}`}`).join("\n");
}

/**
 * What stands in for a tool's schema while a cleared call is on its way: LangChain would read the input a second time, and a transform would be
 * done twice. It has zod's shape, and takes everything as it is.
 */
export const AS_IS: object = freeze({
  _def: freeze({ typeName: "ZodAny" }),
  parse: (value: unknown) => value,
  parseAsync: async (value: unknown) => await Promise.resolve(value),
  safeParse: (value: unknown) => ({ success: true, data: value }),
  safeParseAsync: async (value: unknown) => await Promise.resolve({ success: true, data: value }),
});

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}
