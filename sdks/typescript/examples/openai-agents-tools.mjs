// All tools of an agent of the OpenAI Agents SDK, protected in one line. Needs @openai/agents and zod.
//
// The model here is a script, so that the example runs without an account: it asks for one tool and repeats what that says.

import { Agent, Runner, tool, Usage } from "@openai/agents";
import { Client, sourceTrust } from "aegisagent";
import { protectAgent } from "aegisagent/adapters/openai-agents";
import { z } from "zod";

const scripted = {
  async getResponse({ input }) {
    const said = Array.isArray(input) ? input.filter((item) => item.type === "function_call_result") : [];
    const ask = { type: "function_call", callId: "call-1", name: "update_customer", status: "completed", arguments: JSON.stringify({ id: "c-1", email: "dana@example.test" }) };
    const repeat = { type: "message", role: "assistant", status: "completed", content: [{ type: "output_text", text: said.at(-1)?.output.text }] };
    return { usage: new Usage(), output: [said.length > 0 ? repeat : ask] };
  },
};

const updateCustomer = tool({
  name: "update_customer", description: "Changes a customer's address.", parameters: z.object({ id: z.string(), email: z.string() }),
  execute: async ({ id, email }) => `${id} has ${email}`,
});

const client = new Client();
const agent = new Agent({ name: "helper", model: scripted, tools: [updateCustomer] });
protectAgent(client, agent, { tool: "crm", tellModel: true });

for (const label of ["trusted_internal_unsigned", "untrusted_external"]) {
  const { finalOutput } = await sourceTrust(label, () => new Runner({ tracingDisabled: true }).run(agent, "go"));
  console.log(finalOutput);
}
client.close();
