/**
 * LangChain and LangGraph: tools whose every way of being run (`invoke`, `call`, `batch`, `stream`, a `ToolNode`) is protected. Needs
 * `@langchain/core`.
 *
 * The input is read with the tool's own schema before it is frozen. What does the work (`_call`, `func`) gets a fresh copy of what was cleared at
 * the last moment, whatever it is handed: callbacks and tracers get the same objects as LangChain hands on, and may change them.
 */

import { ToolMessage } from "@langchain/core/messages";
import type { StructuredToolInterface } from "@langchain/core/tools";

import type { FrozenAction } from "../action.js";
import type { Client } from "../client.js";
import { ConfigError, Denied } from "../errors.js";
import { defineProperty, getOwnPropertyDescriptor, getPrototypeOf, hasOwn, weakHas } from "../natives.js";
import { namesOf } from "../settings.js";
import { withSignal } from "../trust.js";
import { AS_IS, callOf, type Input, isObject, madeCall, readInput } from "./langchain-input.js";
import { Passage, split, told, toldOfRun, Tools, type ToolsSettings } from "./tools.js";

// What does the work once a call is cleared; by themselves they do nothing.
const WORK = "_call";
const INNER = [WORK, "func"];
const OUTER = ["invoke", "call"];
// Each way in goes through those after it.
const WAYS = [...OUTER, ...INNER];
const SCHEMA = "schema";
// What a tool was made with: LangChain keeps it, the bare function included.
const MADE_WITH = "lc_kwargs";
const guarded = new WeakSet<object>();

type Callable = (this: unknown, ...given: unknown[]) => unknown;
type Tool = Record<string, unknown> & { name: string };

/** What was cleared. Each time it makes it anew of the frozen text. */
interface Cleared {
  readonly given: () => unknown;
  readonly call: (id: string | null) => object;
  readonly isSame: (args: unknown) => boolean;
}

const passage = new Passage<Cleared>();

export interface LangChainSettings extends ToolsSettings {
  /** The name under which they are registered, as actions by their names. */
  tool: string;
  /** Arguments that are neither hashed nor sent: name none that a model can give. */
  passedOn?: readonly string[] | ReadonlySet<string>;
}

/** Protects tools, in place, and returns them. */
export function protectTools<T extends StructuredToolInterface>(client: Client, tools: readonly T[], settings: LangChainSettings): T[] {
  const { own, rest } = split(settings, ["tool", "passedOn"]);
  const [shared, passedOn] = [new Tools(client, own.tool, rest), namesOf(own.passedOn, "passedOn")];
  const made = [...tools];
  // First look, then change: what is refused leaves nothing half done.
  for (const one of made as unknown as (Tool | null)[]) {
    const isTool = isObject(one) && typeof one.name === "string" && OUTER.every((way) => typeof one[way] === "function");
    if (!isTool) throw new ConfigError("a tool is a StructuredTool; make one of a function with `tool` of @langchain/core/tools");
    if (!weakHas(guarded, one) && !isChangeable(one)) throw new ConfigError(`\`${one.name}\` cannot be protected: it cannot be changed`);
  }
  for (const one of made as unknown as Tool[]) if (!weakHas(guarded, one)) guard(one, shared, passedOn);
  return made;
}

function isChangeable(tool: Tool): boolean {
  return Object.isExtensible(tool) && [...WAYS, SCHEMA, MADE_WITH].every((name) => getOwnPropertyDescriptor(tool, name)?.configurable !== false);
}

function guard(tool: Tool, tools: Tools, passedOn: readonly string[]): void {
  // As it is now: another name would be another action, and could be one that only reads.
  const { name } = tool;
  const schema = guardSchema(tool);
  for (const way of OUTER) {
    const original = tool[way] as Callable;
    const further = WAYS.slice(WAYS.indexOf(way) + 1);
    replace(tool, way, async (input: unknown, ...rest: unknown[]) => {
      const call = callOf(input);
      const [args, id] = call === null ? [input, null] : [call.args, call.id];
      const passing = passage.take(tool, way, (cleared) => cleared.isSame(args));
      if (passing !== null) return await original.call(tool, call === null ? passing.given() : passing.call(id), ...rest);
      let hasRun = false;
      const work = async (): Promise<unknown> => {
        const isVerbose = tool["verboseParsingErrors"] === true;
        const read = await readInput(args, { schema: schema(), passedOn, isVerbose });
        const run = async (action: FrozenAction): Promise<unknown> => {
          hasRun = true;
          const cleared = clearedOf(name, read, action);
          const outermost = call === null ? cleared.given() : cleared.call(id);
          return await passage.through(tool, further, cleared, async () => await original.call(tool, outermost, ...rest));
        };
        return await tools.run(name, read.parameters, run, { fits: read.fits });
      };
      const signal = signalOf(rest[0]);
      try {
        return await (signal === null ? work() : withSignal(signal, work));
      } catch (error) {
        if (!(error instanceof Denied) || !tools.tellModel) throw error;
        const content = hasRun ? toldOfRun(error) : told(error);
        return id === null ? content : new ToolMessage({ content, tool_call_id: id, name, status: "error" });
      }
    });
  }
  for (const way of INNER) {
    const original = tool[way];
    if (typeof original !== "function") continue;
    replace(tool, way, (_: unknown, manager: unknown, config: unknown, ...rest: unknown[]) => {
      const passing = passage.take(tool, way);
      if (passing === null) throw new ConfigError(`\`${name}\` is protected: run it by invoke, not by ${way}`);
      return (original as Callable).call(tool, passing.given(), manager, withOwnCall(config, passing), ...rest);
    });
  }
  const madeWith = tool[MADE_WITH];
  if (isObject(madeWith) && hasOwn(madeWith, "func")) replace(tool, MADE_WITH, { ...madeWith, func: tool["func"] });
  guarded.add(tool);
}

function clearedOf(name: string, read: Input, action: FrozenAction): Cleared {
  const given = (): unknown => read.given(action.parameters);
  return { given, call: (id) => madeCall(name, given(), id), isSame: (args) => read.isSame(args, action.parameters) };
}

/** A configuration tells a tool of its call; tracers may have had that one too. */
function withOwnCall(config: unknown, cleared: Cleared): unknown {
  if (!isObject(config) || !isObject(config["toolCall"])) return config;
  const { id } = config["toolCall"];
  return { ...config, toolCall: cleared.call(typeof id === "string" ? id : null) };
}

/** Between a call's clearance and its work the schema takes everything as it is. What it is otherwise, for models too, comes back as a function. */
function guardSchema(tool: Tool): () => unknown {
  const descriptor = getOwnPropertyDescriptor(tool, SCHEMA);
  let kept = descriptor;
  const current = (): unknown => {
    if (kept === undefined) return Reflect.get(getPrototypeOf(tool) as object, SCHEMA, tool);
    return hasOwn(kept, "value") ? kept.value : kept.get?.call(tool);
  };
  defineProperty(tool, SCHEMA, {
    get: () => (passage.isOpen(tool, WORK) ? AS_IS : current()),
    set: (value: unknown) => {
      kept = { value };
    },
    configurable: true,
    enumerable: descriptor?.enumerable ?? false,
  });
  return current;
}

function replace(tool: Tool, name: string, value: unknown): void {
  defineProperty(tool, name, { value, configurable: true, writable: true, enumerable: hasOwn(tool, name) });
}

function signalOf(config: unknown): AbortSignal | null {
  const signal = isObject(config) ? config["signal"] : null;
  return signal instanceof AbortSignal ? signal : null;
}
