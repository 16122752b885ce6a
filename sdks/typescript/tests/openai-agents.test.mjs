// The OpenAI Agents SDK, with the real package: what a framework runs is what was authorized.

import assert from "node:assert/strict";

import { Agent, Handoff, handoff, Runner, tool, Usage, webSearchTool } from "@openai/agents";
import { prepareFunctionToolInput, setFunctionToolPreparedInput } from "@openai/agents-core/utils/internal";
import { RealtimeAgent } from "@openai/agents/realtime";
import { SandboxAgent } from "@openai/agents/sandbox";
import { ConfigError, DeniedByPolicy } from "aegisagent";
import { protectAgent } from "aegisagent/adapters/openai-agents";
import { z } from "zod";

import { withClient } from "./calling.mjs";
import { withEdge } from "./fake.mjs";
import { cases, test } from "./feature.mjs";

const CALL = { customer: "c-1", note: "hello" };
const asked = (edge) => edge.sent("authorize").map(({ tool_call: call }) => [call.tool, call.action, call.mutates_state, call.resource]);

/** Calls a tool once, then ends with what it was told. */
class ScriptedModel {
  constructor(name, text) {
    this.name = name;
    this.text = text;
  }

  async getResponse({ input }) {
    const said = Array.isArray(input) ? input.filter((item) => item.type === "function_call_result") : [];
    const output = said.length > 0
      ? { type: "message", role: "assistant", status: "completed", content: [{ type: "output_text", text: JSON.stringify(said.at(-1).output) }] }
      : { type: "function_call", callId: "call", name: this.name, status: "completed", arguments: this.text };
    return { usage: new Usage(), output: [output] };
  }
}

function makeTools(ran, options = {}) {
  const update = tool({
    name: "update_note", description: "Updates.", parameters: z.object({ customer: z.string(), note: z.string().default("empty") }), ...options, execute: async (given) => {
      ran.push(given);
      return "updated";
    },
  });
  const read = tool({ name: "read_note", description: "Reads.", parameters: z.object({ customer: z.string() }), ...options, execute: ({ customer }) => (ran.push({ customer }), "read") });
  return [update, read];
}

const makeAgent = (ran, { text = JSON.stringify(CALL), name = "update_note", options, ...fields } = {}) =>
  new Agent({ name: "a", model: new ScriptedModel(name, text), tools: makeTools(ran, options), ...fields });

/** Protects an agent and runs it once. */
async function runAgent(edge, agent, settings = {}, runOptions = {}) {
  return await withClient(edge.url, async (client) => {
    assert.equal(protectAgent(client, agent, { tool: "crm", ...settings }), agent);
    return (await new Runner({ tracingDisabled: true }).run(agent, "go", runOptions)).finalOutput;
  });
}

test("adapter-openai-agents", "an agent's tools run as they were authorized", async () => {
  await withEdge(async (edge) => {
    const ran = [];
    assert.match(await runAgent(edge, makeAgent(ran), { reads: ["read_note"], resource: (action, p) => p.customer }), /updated/);
    assert.match(await runAgent(edge, makeAgent(ran, { name: "read_note", text: '{"customer":"c-2"}' }), { reads: ["read_note"] }), /read/);
    assert.deepEqual(ran, [CALL, { customer: "c-2" }]);
    assert.deepEqual(asked(edge), [["crm", "update_note", true, "c-1"], ["crm", "read_note", false, null]]);
    assert.deepEqual(edge.sent("outcome").map(({ status }) => status), ["ok", "ok"]);
  });
});

test("adapter-openai-agents", "an agent's denied tool does not run, and the model is told if it is to be", async () => {
  await withEdge(async (edge) => {
    const ran = [];
    edge.decision = "deny";
    await assert.rejects(runAgent(edge, makeAgent(ran)), (error) => {
      const chain = [];
      for (let one = error; one instanceof Error; one = one.cause ?? one.error) chain.push(one);
      return chain.some((one) => one instanceof DeniedByPolicy);
    });
    assert.match(await runAgent(edge, makeAgent(ran), { tellModel: true }), /The call was denied: policy_denied/);
    assert.deepEqual(ran, []);
  });
});

test("adapter-openai-agents", "a denial from within a tool that ran is not told as the tool's own", async () => {
  await withEdge(async (edge) => {
    const made = () => {
      const agent = makeAgent([]);
      const options = { errorFunction: null, name: "update_note", description: "Updates.", parameters: z.object({ customer: z.string(), note: z.string() }) };
      agent.tools = [tool({ ...options, execute: () => { throw new DeniedByPolicy("policy_denied", "of another"); } })];
      return agent;
    };
    const answer = await runAgent(edge, made(), { tellModel: true });
    assert.match(answer, /The tool ran, and its result is withheld/);
    assert.doesNotMatch(answer, /The call was denied/);
    await assert.rejects(runAgent(edge, made()));
    assert.deepEqual(edge.sent("outcome").map(({ status }) => status), ["error", "error"]);
  });
});

test("adapter-openai-agents", "an agent's edited action runs as edited", async () => {
  await withEdge(async (edge) => {
    const ran = [];
    edge.decision = "require_approval";
    edge.edited = { tool: "crm", action: "update_note", resource: null, mutates_state: true, parameters: { ...CALL, note: "edited" } };
    await runAgent(edge, makeAgent(ran), { acceptEdits: true });
    assert.deepEqual(ran, [{ ...CALL, note: "edited" }]);
  });
});

const NOT_STRICT = { "a key twice": '{"customer":"a","customer":"b"}', "NaN": '{"customer":NaN}', "too large a number": '{"customer":9007199254740993}', "a list": "[]", "half a pair": '{"customer":"\\ud800"}', "cut off": "{" };
cases("adapter-openai-agents", "arguments of a model pass the strict door", NOT_STRICT, async (text) => {
  await withEdge(async (edge) => {
    const ran = [];
    // Some of them the framework itself refuses.
    assert.match(await runAgent(edge, makeAgent(ran, { text }), { tellModel: true }), /The call was denied|An error occurred while parsing tool arguments/);
    assert.deepEqual([ran, edge.seen], [[], []]);
  });
});

test("adapter-openai-agents", "a tool is run by invoke, which the framework and everybody else calls", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      const ran = [];
      const agent = makeAgent(ran);
      protectAgent(client, agent, { tool: "crm" });
      const [update] = agent.tools;
      assert.equal(await update.invoke({}, '{"customer":"a","note":"b"}'), "updated");
      assert.equal(await agent.clone({ name: "copy" }).tools[0].invoke({}, '{"customer":"a","note":"b"}'), "updated");
      await assert.rejects(update.invoke({}, { customer: "a" }), { name: "DeniedUnfreezable" });
      await assert.rejects(update.invoke({}, '{"customer":"a","customer":"b"}'), { name: "DeniedUnfreezable", code: "duplicate_key" });
      const controller = new AbortController();
      edge.decision = "require_approval";
      edge.statuses = ["PENDING"];
      edge.before.approval = () => controller.abort(new RangeError("enough"));
      await assert.rejects(update.invoke({}, '{"customer":"a","note":"b"}', { signal: controller.signal }), RangeError);
      assert.equal(ran.length, 2);
    });
    assert.equal(edge.sent("authorize").length, 3);
  });
});

test("adapter-openai-agents", "what somebody replaced makes no tool look protected, or left as it is", async () => {
  await withEdge(async (edge) => {
    edge.decision = "deny";
    await withClient(edge.url, async (client) => {
      const [ran, agent] = [[], makeAgent([])];
      agent.tools = makeTools(ran);
      const replaced = [[WeakSet.prototype, WeakSet.prototype.has], [Set.prototype, Set.prototype.has]];
      for (const [of] of replaced) of.has = () => true;
      try {
        protectAgent(client, agent, { tool: "crm" });
      } finally {
        for (const [of, has] of replaced) of.has = has;
      }
      for (const one of agent.tools) await assert.rejects(one.invoke({}, JSON.stringify(CALL)), DeniedByPolicy);
      assert.deepEqual(ran, []);
    });
  });
});

test("adapter-openai-agents", "a toJSON that somebody puts on everything is not asked about what runs", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      const [ran, agent] = [[], makeAgent([])];
      agent.tools = makeTools(ran);
      protectAgent(client, agent, { tool: "crm" });
      edge.before.outcome = () => {
        delete Object.prototype.toJSON;
      };
      edge.before.authorize = () => {
        Object.defineProperty(Object.prototype, "toJSON", { value() { return Object.hasOwn(this, "customer") ? { customer: "another", note: "evil" } : this; }, configurable: true });
      };
      try {
        await agent.tools[0].invoke({}, JSON.stringify(CALL));
      } finally {
        delete Object.prototype.toJSON;
      }
      assert.deepEqual(ran, [CALL]);
    });
  });
});

test("adapter-openai-agents", "parameters that were read before they were authorized do not run, nor does anybody get them on their way", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      const [ran, text] = [[], JSON.stringify(CALL)];
      let seen;
      const make = () => tool({
        name: "update_note", description: "Updates.", parameters: z.object({ customer: z.string(), note: z.string() }), execute: (given, context, details) => {
          ran.push({ ...given });
          seen = details;
          return "updated";
        },
      });
      const agent = new Agent({ name: "a", model: new ScriptedModel("update_note", text), tools: [make()] });
      // Before it is protected, as where a run was paused.
      const prepared = prepareFunctionToolInput(agent.tools[0], text);
      assert.deepEqual(prepared.result.value, CALL);
      protectAgent(client, agent, { tool: "crm" });
      const runner = new Runner({ tracingDisabled: true });
      // Whoever listens is shown the framework's own record of the call.
      let record;
      runner.on("agent_tool_start", (_context, _agent, _tool, { toolCall }) => {
        record = toolCall;
      });
      edge.before.authorize = () => {
        record.arguments = '{"customer":"another"}';
      };
      await runner.run(agent, "go");
      assert.equal(seen.toolCall.arguments, text);
      const callback = Reflect.ownKeys(seen).find((key) => /ParsedInput/.test(String(key)));
      assert.equal(typeof seen[callback], "function");
      const details = { toolCall: { callId: "1", arguments: '{"customer":"another"}' } };
      setFunctionToolPreparedInput(details, prepared);
      edge.before.authorize = () => {
        prepared.result.value.customer = "another";
      };
      await agent.tools[0].invoke({}, text, details);
      assert.deepEqual([seen.toolCall, details.toolCall.arguments], [{ callId: "1", arguments: text }, '{"customer":"another"}']);
      // The framework shows what it is about to run to whoever has this name.
      const told = [];
      await agent.tools[0].invoke({}, text, { [callback]: (given) => (told.push({ ...given }), (given.customer = "another")) });
      assert.deepEqual(told, [CALL]);
      assert.deepEqual(ran, [CALL, CALL, CALL]);
    });
  });
});

test("adapter-openai-agents", "every tool that an agent can reach is protected or refused", async () => {
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      const ran = [];
      const [inner, third] = [makeAgent(ran), makeAgent(ran)];
      const outer = new Agent({ name: "outer", handoffs: [inner, handoff(third)], tools: makeTools(ran) });
      inner.handoffs.push(outer);
      protectAgent(client, outer, { tool: "crm" });
      const invokes = () => [outer, inner, third].flatMap(({ tools }) => tools.map(({ invoke }) => invoke));
      const guarded = invokes();
      edge.decision = "deny";
      for (const invoke of guarded) await assert.rejects(invoke({}, '{"customer":"a","note":"b"}'), DeniedByPolicy);
      protectAgent(client, inner, { tool: "crm" });
      assert.deepEqual(invokes(), guarded, "not twice");
      assert.deepEqual(ran, []);
      const refused = [
        new Agent({ name: "b", tools: [...makeTools(ran), webSearchTool()] }),
        new Agent({ name: "c", tools: [...makeTools(ran), makeAgent(ran).asTool({ toolName: "ask", toolDescription: "asks" })] }),
        new Agent({ name: "d", tools: [...makeTools(ran), Object.freeze(makeTools(ran)[0])] }),
        new Agent({ name: "e", tools: makeTools(ran), handoffs: [new Agent({ name: "f", tools: [webSearchTool()] })] }),
      ];
      for (const agent of refused) {
        const before = agent.tools.map(({ invoke }) => invoke);
        assert.throws(() => protectAgent(client, agent, { tool: "crm" }), (error) => error instanceof ConfigError && /cannot be protected/.test(error.message));
        assert.deepEqual(agent.tools.map(({ invoke }) => invoke), before, "nothing half done");
      }
      protectAgent(client, new Agent({ name: "b", tools: [webSearchTool()] }), { tool: "crm", allowUnprotected: ["web_search"] });
      for (const bad of [{}, { tools: [] }, { tools: [], handoffs: [], mcpServers: 1 }]) assert.throws(() => protectAgent(client, bad, { tool: "crm" }), ConfigError);
      for (const settings of [{}, { tool: "crm", allow_unprotected: ["a"] }]) assert.throws(() => protectAgent(client, makeAgent(ran), settings), ConfigError);
    });
  });
});

test("adapter-openai-agents", "an agent whose class may add tools at run time is refused, unless that is named", async () => {
  class Own extends Agent {
    async getAllTools() {
      return makeTools([]);
    }
  }
  await withClient("http://127.0.0.1:1", (client) => {
    const made = (Kind, more) => new Kind({ name: "a", tools: makeTools([]), ...more });
    const agents = {
      "a sandbox": made(SandboxAgent), "one without capabilities": made(SandboxAgent, { capabilities: [] }), "a copy of it": made(SandboxAgent).clone({ name: "b" }),
      "a realtime agent": made(RealtimeAgent), "a class of one's own": made(Own), "a method of its own": Object.assign(made(Agent), { getAllTools: () => [] }),
      "a handoff to one": made(Agent, { handoffs: [made(SandboxAgent)] }), "another handoff to one": made(Agent, { handoffs: [handoff(made(SandboxAgent))] }),
    };
    for (const [name, agent] of Object.entries(agents)) {
      const before = agent.tools.map(({ invoke }) => invoke);
      assert.throws(() => protectAgent(client, agent, { tool: "crm" }), (error) => error instanceof ConfigError && /capabilities/.test(error.message), name);
      assert.deepEqual(agent.tools.map(({ invoke }) => invoke), before, name);
      assert.equal(protectAgent(client, agent, { tool: "crm", allowUnprotected: ["capabilities"] }), agent, name);
      assert.ok(agent.tools.every(({ invoke }, place) => invoke !== before[place]), name);
    }
    protectAgent(client, Agent.create({ name: "a", tools: makeTools([]), handoffs: [made(Agent).clone({ name: "b" })] }), { tool: "crm" });
  });
});

test("adapter-openai-agents", "an agent whose prompt is kept elsewhere is refused, unless it is named", async () => {
  await withClient("http://127.0.0.1:1", async (client) => {
    const made = (more) => new Agent({ name: "a", tools: makeTools([]), ...more });
    const hosted = (more) => made({ name: "hosted", prompt: { promptId: "pmpt_1" }, ...more });
    const agents = {
      "a prompt": hosted(), "a function of it": hosted({ prompt: () => ({ promptId: "pmpt_1" }) }), "a copy": hosted().clone({ tools: makeTools([]) }),
      "a method of its own": Object.assign(made({ name: "hosted" }), { getPrompt: async () => ({ promptId: "pmpt_1" }) }),
      "a handoff to one": made({ handoffs: [hosted()] }), "another handoff to one": made({ handoffs: [handoff(hosted())] }),
    };
    for (const [name, agent] of Object.entries(agents)) {
      const before = agent.tools.map(({ invoke }) => invoke);
      for (const allowUnprotected of [[], ["a", "prompt", "capabilities"]]) {
        assert.throws(() => protectAgent(client, agent, { tool: "crm", allowUnprotected }), (error) => error instanceof ConfigError && /`hosted`.*prompt/.test(error.message), name);
      }
      assert.deepEqual(agent.tools.map(({ invoke }) => invoke), before, name);
      assert.equal(protectAgent(client, agent, { tool: "crm", allowUnprotected: ["hosted"] }), agent, name);
      assert.ok(agent.tools.every(({ invoke }, place) => invoke !== before[place]), name);
    }
  });
});

test("adapter-openai-agents", "a handoff leads where it says", async () => {
  await withClient("http://127.0.0.1:1", async (client) => {
    const [named, another] = [makeAgent([]), makeAgent([])];
    const lying = new Handoff(named, () => another);
    const honest = new Handoff(named, async () => named);
    protectAgent(client, new Agent({ name: "outer", handoffs: [lying, honest] }), { tool: "crm" });
    await assert.rejects(lying.onInvokeHandoff({}, ""), ConfigError);
    assert.equal(await honest.onInvokeHandoff({}, ""), named);
  });
});

/** A server of the framework's shape, whose ways of being called call each other as the framework's own do. */
class Server {
  cacheToolsList = false;
  name = "files";
  ran = [];
  async connect() {}
  async close() {}
  async invalidateToolsCache() {}
  async listTools() {
    return [{ name: "write", inputSchema: { type: "object", properties: { path: { type: "string" } }, required: ["path"], additionalProperties: false } }];
  }
  async callTool(name, args, ...rest) {
    return (await this.callToolResult(name, args, ...rest)).content;
  }
  async callToolResult(name, args) {
    this.ran.push([name, args]);
    return { content: [{ type: "text", text: "written" }] };
  }
}

test("adapter-openai-agents", "an agent's MCP servers are protected too, and each call asks once", async () => {
  await withEdge(async (edge) => {
    const server = new Server();
    const agent = new Agent({ name: "a", model: new ScriptedModel("write", '{"path":"p"}'), mcpServers: [server] });
    assert.match(await runAgent(edge, agent), /written/);
    assert.deepEqual(server.ran, [["write", { path: "p" }]]);
    assert.deepEqual(asked(edge), [["mcp:files", "write", true, null]]);
    await withClient(edge.url, async (client) => {
      const other = new Server();
      protectAgent(client, new Agent({ name: "a", mcpServers: [other] }), { tool: "crm" });
      await other.callTool("write", { path: "a" });
      await other.callToolResult("write", null);
      edge.decision = "deny";
      for (const way of ["callTool", "callToolResult"]) await assert.rejects(other[way]("write", { path: "b" }), DeniedByPolicy);
      assert.deepEqual(other.ran, [["write", { path: "a" }], ["write", {}]]);
    });
    assert.equal(edge.sent("authorize").length, 5);
  });
});

test("adapter-openai-agents", "a server's ways pass on what was cleared, to its own work alone", async () => {
  class Odd extends Server {
    held = [];
    async callTool(name, args) {
      if (args.path === "other") await this.callToolResult("delete", { path: "b" });
      if (args.path === "later") return void this.held.push(() => this.callToolResult(name, args));
      const given = args.path === "json" ? Object.assign(Object.create({ toJSON: () => ({ path: "json" }) }), { path: "evil" }) : args;
      return (await this.callToolResult(name, given)).content;
    }
  }
  await withEdge(async (edge) => {
    await withClient(edge.url, async (client) => {
      const server = new Odd();
      protectAgent(client, new Agent({ name: "a", mcpServers: [server] }), { tool: "crm" });
      await server.callTool("write", { path: "other" });
      assert.deepEqual(server.ran.splice(0), [["delete", { path: "b" }], ["write", { path: "other" }]]);
      await assert.rejects(server.callTool("write", { path: "json" }), { name: "DeniedUnfreezable" });
      await server.callTool("write", { path: "later" });
      edge.decision = "deny";
      await assert.rejects(server.held[0](), DeniedByPolicy);
      await assert.rejects(server.callTool(Object("write"), { path: "a" }), { name: "DeniedUnfreezable" });
      assert.deepEqual(server.ran, []);
      assert.deepEqual(asked(edge).map(([, action]) => action), ["write", "delete", "write", "write", "write"]);
    });
  });
});
