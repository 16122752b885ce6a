/**
 * The OpenAI Agents SDK: all tools of an agent, of the agents that it hands over to, and of its MCP servers. Needs `@openai/agents`, and beside it
 * the `@openai/agents-core` that it is made of.
 *
 * A tool's arguments are read with its own schema before they are frozen, and its function gets what was cleared, which nothing reads again.
 * What runs elsewhere (hosted tools) or takes no JSON (shell, computer, patches) cannot be guarded here, an agent that is a tool hides its
 * own, one of a class of its own (a sandbox's) may add some while it runs, and one whose prompt is kept elsewhere may bring some along: they are
 * refused, unless they are named.
 */

import { Agent } from "@openai/agents";

import { type FrozenAction, plainParameters } from "../action.js";
import { actionHash, parseStrict } from "../canon.js";
import type { Client } from "../client.js";
import { CanonError, ConfigError, Denied, DeniedUnfreezable } from "../errors.js";
import { create, defineProperty, getOwnPropertyDescriptor, getPrototypeOf, hasOwn, isArray, isOneOf, ownKeys, placeOf, structuredClone, weakHas } from "../natives.js";
import { namesOf } from "../settings.js";
import { withSignal } from "../trust.js";
import { checkFramework, isSameJson, readerOf } from "./openai-agents-input.js";
import { Passage, split, told, toldOfRun, Tools, type ToolsSettings } from "./tools.js";

export interface AgentSettings extends ToolsSettings {
  /** The name under which tools are registered, as actions by their names; an MCP server's are those of `mcp:<its name>`. */
  tool: string;
  /**
   * Names of tools and handoffs that stay as they are; `capabilities` for what an agent's class adds at run time; an agent's own for a prompt that is
   * kept elsewhere.
   */
  allowUnprotected?: readonly string[] | ReadonlySet<string>;
}

// Under this name a sandbox's own tools, and others that an agent's class adds, may stay as they are.
const CAPABILITIES = "capabilities";

// As far as this module needs to know them.
interface Details { signal?: AbortSignal; toolCall?: unknown }
type Invoke = (context: unknown, text: string, details?: Details) => Promise<unknown>;
type CallTool = (name: string, args: object | null, ...rest: unknown[]) => Promise<unknown>;
interface Tool { type: string; name?: string; invoke: Invoke; on?: unknown }
interface Server { name: string; callTool: CallTool; callToolResult?: CallTool }
interface Handoff { toolName: string; agent: AnyAgent; onInvokeHandoff: (...given: unknown[]) => unknown }
interface AnyAgent { name: string; tools: Tool[]; handoffs: (AnyAgent | Handoff)[]; mcpServers: Server[]; prompt?: unknown; getPrompt: unknown }
interface Found { agents: object[]; tools: Tool[]; servers: Server[]; handoffs: Handoff[] }

// What gives an agent's tools, or another agent.
const OVERRIDABLE = ["getAllTools", "getMcpTools", "clone"];
// How the framework names the property by which it shows what a tool is about to run.
const PARSED_INPUT_CALLBACK = "openai.agents.functionToolParsedInputCallback";
const usualPrompt: unknown = getOwnPropertyDescriptor(Agent.prototype, "getPrompt")?.value;
const guarded = new WeakSet<object>();
const passage = new Passage<FrozenAction>();

/**
 * Protects all tools of an agent, in place.
 *
 * Protect an agent when it is complete: a tool that is added later is not protected. A function that answers with its error's text, as `tool`
 * makes it, counts as having ended well.
 */
// eslint-disable-next-line @typescript-eslint/no-explicit-any -- agents of every context and output
export function protectAgent<A extends Agent<any, any>>(client: Client, agent: A, settings: AgentSettings): A {
  const { own, rest } = split(settings, ["tool", "allowUnprotected"]);
  const tools = new Tools(client, own.tool, rest);
  checkFramework();
  const found: Found = { agents: [], tools: [], servers: [], handoffs: [] };
  // First look, then change: what is refused leaves nothing half done.
  look(agent as unknown as AnyAgent, namesOf(own.allowUnprotected, "allowUnprotected"), found);
  for (const one of found.tools) guardTool(one, tools);
  for (const server of found.servers) guardServer(server, new Tools(client, `mcp:${server.name}`, rest));
  for (const handoff of found.handoffs) guardHandoff(handoff, found.agents);
  return agent;
}

function look(agent: AnyAgent, allowed: readonly string[], found: Found): void {
  if (placeOf(agent, found.agents) >= 0) return;
  if (!isArray(agent.tools) || !isArray(agent.handoffs) || !isArray(agent.mcpServers)) throw new ConfigError("an agent is an Agent of @openai/agents");
  if (mayAddTools(agent) && !isOneOf(CAPABILITIES, allowed)) throw unprotected(CAPABILITIES, "a class of its own, as a sandbox's, may add tools at run time");
  if (hasHostedPrompt(agent) && !isOneOf(agent.name, allowed)) throw unprotected(agent.name, "its prompt is kept elsewhere, and may bring tools along");
  found.agents.push(agent);
  for (const server of agent.mcpServers) {
    checkChangeable(server, server.name);
    found.servers.push(server);
  }
  for (const tool of agent.tools) {
    const name = tool.name ?? tool.type;
    if (isOneOf(name, allowed)) continue;
    if (tool.type !== "function") throw unprotected(name, "it does not run here, or takes no JSON");
    // Only a tool that is an agent tells of events.
    if (typeof tool.on === "function") throw unprotected(name, "its agent's tools cannot be seen; protect that agent");
    checkChangeable(tool, name);
    found.tools.push(tool);
  }
  for (const handoff of agent.handoffs) {
    if (!isHandoff(handoff)) look(handoff, allowed, found);
    else if (!isOneOf(handoff.toolName, allowed)) {
      checkChangeable(handoff, handoff.toolName);
      found.handoffs.push(handoff);
      look(handoff.agent, allowed, found);
    }
  }
}

/** A sandbox's agent, or one of any other class than Agent: its tools while it runs need not be those that are looked at. */
function mayAddTools(agent: AnyAgent): boolean {
  return CAPABILITIES in agent || getPrototypeOf(agent) !== Agent.prototype || OVERRIDABLE.some((name) => hasOwn(agent, name));
}

/** A prompt that the model's server keeps, with tools that run there. */
function hasHostedPrompt(agent: AnyAgent): boolean {
  return (agent.prompt ?? null) !== null || agent.getPrompt !== usualPrompt;
}

function isHandoff(value: AnyAgent | Handoff): value is Handoff {
  return typeof (value as Partial<Handoff>).onInvokeHandoff === "function";
}

function unprotected(name: string, why: string): ConfigError {
  return new ConfigError(`\`${name}\` cannot be protected: ${why}. Name it in allowUnprotected if it may stay so`);
}

function checkChangeable(thing: object, name: string): void {
  if (!weakHas(guarded, thing) && Object.isFrozen(thing)) throw unprotected(name, "it cannot be changed");
}

function guardTool(tool: Tool, tools: Tools): void {
  if (weakHas(guarded, tool)) return;
  const [name, invoke] = [tool.name ?? tool.type, tool.invoke];
  const read = readerOf(invoke);
  tool.invoke = async (context, text, details) => {
    let hasRun = false;
    const call = async (): Promise<unknown> => {
      const given = plainParameters(parametersOf(text));
      const input = read(given);
      const invoked = async (cleared: string): Promise<unknown> => {
        let another: DeniedUnfreezable | null = null;
        // Somebody's own invoke may end in the framework's, which shows what its schema made of the text before that is run.
        const check = (seen: unknown): void => {
          if (input.handOver !== null || isSameJson(seen, cleared)) return;
          another = new DeniedUnfreezable("schema_not_stable", "what wraps the tool's invoke hides its schema; protect the tool first");
          throw another;
        };
        const own = detailsOf(details, cleared, check);
        const result = await invoke(context, cleared, input.handOver === null ? own : input.handOver(own ?? {}, cleared));
        // The framework may have made an answer of it.
        if (another !== null) throw another as DeniedUnfreezable;
        return result;
      };
      if (!input.fits) return await invoked(given);
      const run = async ({ parametersText }: FrozenAction): Promise<unknown> => {
        hasRun = true;
        return await invoked(parametersText);
      };
      return await tools.run(name, input.parameters, run, { fits: input.isEditFit });
    };
    try {
      return await (details?.signal === undefined ? call() : withSignal(details.signal, call));
    } catch (error) {
      if (error instanceof Denied && tools.tellModel) return hasRun ? toldOfRun(error) : told(error);
      throw error;
    }
  };
  guarded.add(tool);
}

/** What a model wrote. */
function parametersOf(text: unknown): object {
  if (typeof text !== "string") throw new DeniedUnfreezable("unsupported_type", "the model's arguments are no text");
  try {
    const parameters = text.trim() === "" ? {} : parseStrict(text);
    if (typeof parameters === "object" && parameters !== null && !isArray(parameters)) return parameters;
  } catch (error) {
    if (error instanceof CanonError) throw new DeniedUnfreezable(error.reason, "the model's arguments are not strict JSON");
    throw error;
  }
  throw new DeniedUnfreezable("unsupported_type", "the model's arguments are no JSON object");
}

/**
 * What a call's details say to the tool's function, of its own: others hold the framework's. On an object of that may hang parameters that were read
 * before they were authorized, which the framework would run in place of the text; on a copy they do not.
 */
function detailsOf(details: Details | undefined, text: string, check: (seen: unknown) => void): Details | undefined {
  if (details === undefined || details === null) return details;
  const own = create(getPrototypeOf(details) as object | null) as Details;
  for (const key of ownKeys(details)) {
    const descriptor = getOwnPropertyDescriptor(details, key) as PropertyDescriptor;
    const isSeen = typeof key === "symbol" && key.description === PARSED_INPUT_CALLBACK && typeof descriptor.value === "function";
    defineProperty(own, key, isSeen ? { ...descriptor, value: withCopy(descriptor.value as (seen: unknown) => unknown, check) } : descriptor);
  }
  const call = details.toolCall;
  if (typeof call === "object" && call !== null) {
    defineProperty(own, "toolCall", { value: { ...call, arguments: text }, enumerable: true, configurable: true, writable: true });
  }
  return own;
}

/** The framework shows what it is about to run, and does not run it where `check` throws; whoever looks gets a copy. */
function withCopy(show: (seen: unknown) => unknown, check: (seen: unknown) => void): (seen: unknown) => void {
  return (seen) => {
    check(seen);
    let copy: unknown;
    try {
      copy = structuredClone(seen);
    } catch {
      return;
    }
    show(copy);
  };
}

/** A server's ways of being called may call each other: what was cleared for one passes the other, once. */
function guardServer(server: Server, tools: Tools): void {
  if (weakHas(guarded, server)) return;
  for (const way of ["callTool", "callToolResult"] as const) {
    const original = server[way];
    if (original === undefined) continue;
    const other = way === "callTool" ? "callToolResult" : "callTool";
    server[way] = async (name, args, ...rest) => {
      const passing = passage.take(server, way, (cleared) => isSame(cleared, name, args));
      if (passing !== null) return await original.call(server, passing.action, passing.parameters, ...rest);
      const run = async (cleared: FrozenAction): Promise<unknown> =>
        await passage.through(server, [other], cleared, async () => await original.call(server, name, cleared.parameters, ...rest));
      return await tools.run(name, args ?? {}, run);
    };
  }
  guarded.add(server);
}

function isSame(cleared: FrozenAction, name: string, args: object | null): boolean {
  try {
    return name === cleared.action && actionHash("", name, null, true, args ?? {}) === actionHash("", name, null, true, cleared.parameters);
  } catch {
    return false;
  }
}

/** Where it leads is what was looked at. */
function guardHandoff(handoff: Handoff, agents: readonly object[]): void {
  if (weakHas(guarded, handoff)) return;
  const invoke = handoff.onInvokeHandoff.bind(handoff);
  handoff.onInvokeHandoff = async (...given) => {
    const next = await invoke(...given);
    if (typeof next !== "object" || next === null || !isOneOf(next, agents)) {
      throw new ConfigError(`\`${handoff.toolName}\` hands over to another agent than it names, which may be unprotected`);
    }
    return next;
  };
  guarded.add(handoff);
}
