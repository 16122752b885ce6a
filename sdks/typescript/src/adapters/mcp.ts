/**
 * MCP client sessions: every `tools/call` that a session sends is an action of `mcp:<server>`.
 *
 * The session's own way out is guarded, so it makes no difference which framework calls it. Needs `@modelcontextprotocol/sdk`.
 */

import type { Client as Session } from "@modelcontextprotocol/sdk/client/index.js";

import { type FrozenAction, plainParameters } from "../action.js";
import type { Client } from "../client.js";
import type { OutcomeStatus } from "../endpoints.js";
import { ConfigError, DeniedUnfreezable } from "../errors.js";
import { isOneOf, keys, own, parse, weakHas } from "../natives.js";
import { withSignal } from "../trust.js";
import { split, Tools, type ToolsSettings } from "./tools.js";

type Send = (request: unknown, schema: unknown, options?: unknown) => Promise<unknown>;

// What a call may have. Anything else (a task, an answer to a server's question, a server's state) would go along unhashed.
const KNOWN = ["name", "arguments", "_meta"];
// Options that make a task of a call, or part of one: it would be sent later, by somebody else.
const TASKS = ["task", "relatedTask"];
const CALL = "tools/call";
const guarded = new WeakSet<object>();

/** Protects a session, in place. `server`: the key under which it is registered. The rest are settings of a set of tools, such as `reads`. */
export function protectSession<S extends Session>(client: Client, session: S, settings: Omit<ToolsSettings, "tellModel"> & { server: string }): S {
  const { own: mine, rest } = split(settings, ["server"]);
  if (keys(rest).includes("tellModel")) throw new ConfigError("a session has no model to tell; whoever calls it gets the Denied");
  if (typeof mine.server !== "string" || mine.server === "") throw new ConfigError("server is the key under which the server is registered");
  const tools = new Tools(client, `mcp:${mine.server}`, rest);
  if (typeof (session as unknown as { request?: unknown } | null)?.request !== "function") throw new ConfigError("a session is a Client of @modelcontextprotocol/sdk");
  if (weakHas(guarded, session)) throw new ConfigError("this session is protected already");
  const send = session.request.bind(session) as Send;
  const request: Send = async (message, schema, options) => {
    // Each looked at once, and never again: what a message says may change while an approval is waited for.
    const [method, params] = isObject(message) ? [message["method"], message["params"]] : [];
    // A text that is none would be one on the wire.
    if (typeof method !== "string") throw new DeniedUnfreezable("unsupported_call", "a message whose method is no text is not sent");
    if (method !== CALL) return await send(params === undefined ? { method } : { method, params }, schema, options);
    const name = isObject(params) ? own(params, "name") : undefined;
    if (!isObject(params) || typeof name !== "string") throw new DeniedUnfreezable("unsupported_call", "a call without a tool's name is not sent");
    const how = isObject(options) ? { ...options } : options;
    const signal = isObject(how) && how["signal"] instanceof AbortSignal ? how["signal"] : null;
    if (keys(params).some((key) => !isOneOf(key, KNOWN)) || (isObject(how) && TASKS.some((option) => how[option] !== undefined))) {
      throw new DeniedUnfreezable("unsupported_call", "a call with more than arguments is not protected (a task, an answer to a server's question), so it is not sent");
    }
    const meta = own(params, "_meta");
    const beside = meta === undefined ? null : plainParameters({ _meta: meta });
    const run = async ({ parameters }: FrozenAction): Promise<unknown> =>
      await send({ method: CALL, params: { name, arguments: parameters, ...(beside === null ? {} : (parse(beside) as object)) } }, schema, how);
    const status = (result: unknown): OutcomeStatus => (isObject(result) && result["isError"] === true ? "error" : "ok");
    const call = async (): Promise<unknown> => await tools.run(name, own(params, "arguments") ?? {}, run, { status });
    return await (signal === null ? call() : withSignal(signal, call));
  };
  Object.defineProperty(session, "request", { value: request, configurable: true, writable: true });
  guarded.add(session);
  return session;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null;
}
