/**
 * LangChain and LangGraph: tools whose every way of being run (`invoke`, `call`, `batch`, `stream`, a `ToolNode`) is protected. Needs
 * `@langchain/core`.
 */

import { ToolMessage } from "@langchain/core/messages";
import type { StructuredToolInterface } from "@langchain/core/tools";

import type { Json } from "../canon.js";
import type { Client } from "../client.js";
import { ConfigError, Denied, DeniedUnfreezable } from "../errors.js";
import { hasOwn } from "../natives.js";
import { namesOf } from "../settings.js";
import { withSignal } from "../trust.js";
import { Passage, split, told, Tools, type ToolsSettings } from "./tools.js";

// The parameter that stands for the one text of a tool that takes a text.
const TEXT = "input";
// The type of a call that has its parameters in `args`.
const CALL = "tool_call";
// What does the work once a call is cleared; by themselves they do nothing.
const INNER = ["_call", "func"];
// Each way in goes through those after it.
const WAYS = ["invoke", "call", ...INNER];
const guarded = new WeakSet<object>();

type Callable = (this: unknown, ...given: unknown[]) => unknown;
type Tool = Record<string, unknown> & { name: string };

export interface LangChainSettings extends ToolsSettings {
  /** The name under which they are registered, as actions by their names. */
  tool: string;
  /** Arguments that are neither hashed nor sent: name none that a model can give. */
  passedOn?: readonly string[] | ReadonlySet<string>;
}

/** Protects tools, in place, and returns them. */
export function protectTools<T extends StructuredToolInterface>(client: Client, tools: readonly T[], settings: LangChainSettings): T[] {
  const { own, rest } = split(settings, ["tool", "passedOn"]);
  const [shared, passedOn] = [new Tools(client, own.tool, rest), new Set(namesOf(own.passedOn, "passedOn"))];
  const made = [...tools];
  // First look, then change: what is refused leaves nothing half done.
  for (const one of made as unknown as (Tool | null)[]) {
    const isTool = isObject(one) && typeof one.name === "string" && ["invoke", "call"].every((way) => typeof one[way] === "function");
    if (!isTool) throw new ConfigError("a tool is a StructuredTool; make one of a function with `tool` of @langchain/core/tools");
    if (!guarded.has(one) && !Object.isExtensible(one)) throw new ConfigError(`\`${one.name}\` cannot be protected: it cannot be changed`);
  }
  for (const one of made as unknown as Tool[]) if (!guarded.has(one)) guard(one, shared, passedOn);
  return made;
}

function guard(tool: Tool, tools: Tools, passedOn: ReadonlySet<string>): void {
  for (const way of ["invoke", "call"]) {
    const original = tool[way] as Callable;
    replace(tool, way, async (input: unknown, ...rest: unknown[]) => {
      if (Passage.isOpen(tool, way)) return await original.call(tool, input, ...rest);
      const { parameters, rebuild, callId } = read(input, passedOn);
      const further = WAYS.slice(WAYS.indexOf(way) + 1);
      const run = async (frozen: Json): Promise<unknown> => await Passage.through(tool, further, () => original.call(tool, rebuild(frozen), ...rest));
      const signal = signalOf(rest[0]);
      try {
        const call = async (): Promise<unknown> => await tools.run(tool.name, parameters, run);
        return await (signal === null ? call() : withSignal(signal, call));
      } catch (error) {
        if (!(error instanceof Denied) || !tools.tellModel) throw error;
        return callId === null ? told(error) : new ToolMessage({ content: told(error), tool_call_id: callId, name: tool.name, status: "error" });
      }
    });
  }
  for (const name of INNER) {
    const original = tool[name];
    if (typeof original !== "function") continue;
    replace(tool, name, (...args: unknown[]) => {
      if (!Passage.isOpen(tool, name)) throw new ConfigError(`\`${tool.name}\` is protected: run it by invoke, not by ${name}`);
      return (original as Callable).call(tool, ...args);
    });
  }
  guarded.add(tool);
}

function replace(tool: Tool, name: string, value: unknown): void {
  Object.defineProperty(tool, name, { value, configurable: true, writable: true, enumerable: hasOwn(tool, name) });
}

function signalOf(config: unknown): AbortSignal | null {
  const signal = isObject(config) ? config["signal"] : null;
  return signal instanceof AbortSignal ? signal : null;
}

interface Read {
  readonly parameters: object;
  readonly rebuild: (frozen: Json) => unknown;
  readonly callId: string | null;
}

/** The parameters of an input, and how an input is made of parameters again. Of a call within a call LangChain would run the inner one. */
function read(input: unknown, passedOn: ReadonlySet<string>): Read {
  if (!isCall(input)) return readParameters(input, passedOn);
  const call = { ...input };
  if (isCall(call["args"])) throw new DeniedUnfreezable("unsupported_type", "the parameters are a tool call themselves");
  const inner = readParameters(call["args"], passedOn);
  return {
    parameters: inner.parameters,
    rebuild: (frozen) => ({ ...call, type: CALL, args: inner.rebuild(frozen) }),
    callId: typeof call["id"] === "string" ? call["id"] : null,
  };
}

/** What LangChain takes for a call around its parameters. */
function isCall(value: unknown): value is Record<string, unknown> {
  return isObject(value) && value["type"] === CALL;
}

function readParameters(input: unknown, passedOn: ReadonlySet<string>): Read {
  if (input === undefined || input === null) return { parameters: {}, rebuild: () => input, callId: null };
  if (!isObject(input)) return { parameters: { [TEXT]: input }, rebuild: (frozen) => frozen[TEXT], callId: null };
  const names = Object.keys(input).filter((name) => passedOn.has(name));
  if (names.length === 0) return { parameters: input, rebuild: (frozen) => frozen, callId: null };
  const [parameters, beside] = [{ ...input }, {} as Record<string, unknown>];
  for (const name of names) {
    Object.defineProperty(beside, name, { value: input[name], enumerable: true });
    if (!Reflect.deleteProperty(parameters, name)) throw new DeniedUnfreezable("unsupported_type", `parameter \`${name}\` cannot be passed on`);
  }
  return { parameters, rebuild: (frozen) => ({ ...frozen, ...beside }), callId: null };
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}
