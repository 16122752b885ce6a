"""LangChain tools, protected in one line, run by a LangGraph `ToolNode`. Needs aegisagent[langgraph]."""

from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode

from aegisagent import Client, source_trust
from aegisagent.adapters.langchain import protect_tools


@tool
def update_customer(id: str, email: str) -> str:  # noqa: A002  # as it is registered
    """Changes a customer's address."""
    return f"{id} has {email}"


@tool
def read_customer(id: str) -> str:  # noqa: A002  # as it is registered
    """Reads a customer."""
    return f"{id} is a customer"


def called(name: str, **arguments: str) -> AIMessage:
    """What a model answers that wants a tool to be called."""
    return AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": "call-1", "type": "tool_call"}])


with Client() as client:
    tools = protect_tools(client, [update_customer, read_customer], tool="crm", reads={"read_customer"}, tell_model=True)
    graph = StateGraph(MessagesState)
    graph.add_node("tools", ToolNode(tools))
    graph.add_edge(START, "tools")
    graph.add_edge("tools", END)
    agent = graph.compile()
    with source_trust("untrusted_external"):
        for message in (called("read_customer", id="c-1"), called("update_customer", id="c-1", email="eve@example.test")):
            print(agent.invoke({"messages": [message]})["messages"][-1].content)
