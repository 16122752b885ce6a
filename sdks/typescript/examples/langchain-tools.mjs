// LangChain tools, protected in one line, run by a LangGraph `ToolNode`. Needs @langchain/core, @langchain/langgraph and zod.

import { AIMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { END, MessagesAnnotation, START, StateGraph } from "@langchain/langgraph";
import { ToolNode } from "@langchain/langgraph/prebuilt";
import { Client, sourceTrust } from "aegisagent";
import { protectTools } from "aegisagent/adapters/langchain";
import { z } from "zod";

const updateCustomer = tool(async ({ id, email }) => `${id} has ${email}`, {
  name: "update_customer", description: "Changes a customer's address.", schema: z.object({ id: z.string(), email: z.string() }),
});
const readCustomer = tool(async ({ id }) => `${id} is a customer`, { name: "read_customer", description: "Reads a customer.", schema: z.object({ id: z.string() }) });

/** What a model answers that wants a tool to be called. */
const called = (name, args) => new AIMessage({ content: "", tool_calls: [{ name, args, id: "call-1", type: "tool_call" }] });

const client = new Client();
const tools = protectTools(client, [updateCustomer, readCustomer], { tool: "crm", reads: ["read_customer"], tellModel: true });
const agent = new StateGraph(MessagesAnnotation).addNode("tools", new ToolNode(tools)).addEdge(START, "tools").addEdge("tools", END).compile();

await sourceTrust("untrusted_external", async () => {
  for (const message of [called("read_customer", { id: "c-1" }), called("update_customer", { id: "c-1", email: "eve@example.test" })]) {
    console.log((await agent.invoke({ messages: [message] })).messages.at(-1)?.content);
  }
});
client.close();
