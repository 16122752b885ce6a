"""The OpenAI Agents SDK: all tools of an agent, of the agents that it hands over to, and of its MCP servers.

Needs the extra `openai-agents`. A tool's arguments are read with its own schema before they are frozen; its function gets what was cleared.
What runs elsewhere (hosted tools) or takes no JSON (shell, computer, patches) cannot be guarded here: it is refused, unless it is named.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from agents import Agent, FunctionTool
from agents.agent import AgentBase
from agents.mcp import MCPServer

from .. import canon
from .._action import Parameters
from ..aclient import AsyncClient
from ..client import Client
from ..errors import CanonError, ConfigError, Denied, DeniedUnfreezable
from ._openai_agents_input import FunctionSchema, TextSchema, schema_of
from ._reading import Misfit
from ._tools import Once, Tools, told

_GUARDED = "_aegisagent_guarded"


def protect_agent(
    client: AsyncClient | Client, agent: Agent[Any], *, tool: str, allow_unprotected: Collection[str] = (), **settings: Any
) -> Agent[Any]:
    """Protects all tools of an agent, in place. `tool`: the name under which they are registered, as actions by their names; an MCP
    server's are those of `mcp:<its name>`. `allow_unprotected`: names of tools and handoffs that stay as they are; `capabilities` for what
    an agent's class adds at run time, such as a sandbox's shell, and `prompt` for what a prompt that is kept elsewhere brings along.
    `settings`: those of `Tools`, such as `reads`.

    Protect an agent when it is complete: a tool that is added later is not protected. A function that answers with its error's text, as
    `function_tool` makes it, counts as having ended well.
    """
    tools = Tools(client, tool, **settings)
    seen: set[int] = set()
    # First look, then change: what is refused leaves nothing half done.
    found = _found(agent, frozenset(allow_unprotected), seen)
    functions = [thing for thing in found if isinstance(thing, FunctionTool) and not getattr(thing.on_invoke_tool, _GUARDED, False)]
    schemas = [(thing, schema_of(thing)) for thing in functions]
    for function, schema in schemas:
        _protect_tool(function, schema, tools)
    for server in found:
        if not isinstance(server, FunctionTool):
            _protect_server(server, Tools(client, f"mcp:{server.name}", **settings))
    return agent


def _found(agent: Agent[Any], allowed: frozenset[str], seen: set[int]) -> list[FunctionTool | MCPServer]:
    """Every function tool and MCP server that the agent can reach."""
    if id(agent) in seen:
        return []
    seen.add(id(agent))
    for what, why in _hidden(agent):
        if what not in allowed:
            raise _unprotected(what, why)
    found: list[FunctionTool | MCPServer] = list(agent.mcp_servers)
    for server in agent.mcp_servers:
        if getattr(server, "max_retry_attempts", 0) != 0:
            raise ConfigError(f"`{server.name}` cannot be protected: with max_retry_attempts one leave would run a call several times")
    for tool in agent.tools:
        if isinstance(tool, FunctionTool):
            found.append(tool)
            nested = getattr(tool, "_agent_instance", None)
            if isinstance(nested, Agent):
                found += _found(nested, allowed, seen)
            elif getattr(tool, "_is_agent_tool", False) and tool.name not in allowed:
                raise _unprotected(tool.name, "its agent's tools cannot be seen")
        elif tool.name not in allowed:
            raise _unprotected(tool.name, "it does not run here, or takes no JSON")
    for handoff in agent.handoffs:
        if isinstance(handoff, Agent):
            found += _found(handoff, allowed, seen)
        elif handoff.tool_name not in allowed:
            raise _unprotected(handoff.tool_name, "its agent cannot be seen; protect that, and name the handoff")
    return found


def _hidden(agent: Agent[Any]) -> Iterator[tuple[str, str]]:
    """What may give an agent tools that do not stand in it, and why."""
    if type(agent).get_all_tools is not AgentBase.get_all_tools or type(agent).get_mcp_tools is not AgentBase.get_mcp_tools:
        yield "capabilities", f"the class of the agent `{agent.name}`, as a sandbox's, may add tools at run time"
    if agent.prompt is not None:
        yield "prompt", f"that of the agent `{agent.name}` is kept elsewhere, and may bring tools along"


def _unprotected(name: str, why: str) -> ConfigError:
    return ConfigError(f"`{name}` cannot be protected: {why}. Name it in allow_unprotected if it may stay so")


def _protect_tool(tool: FunctionTool, schema: FunctionSchema | TextSchema, tools: Tools) -> None:
    name = tool.name
    if getattr(tool.on_invoke_tool, _GUARDED, False):
        return

    async def guarded(context: Any, text: str) -> Any:
        once: Once | None = None
        try:
            read = schema.read(name, _parameters(text))
            if isinstance(read, Misfit):
                return await schema.refuse(context, text, read)
            once = Once(lambda cleared: read.invoke(context, cleared))
            return await tools.arun(name, read.parameters, once, fits=read.fits)
        except Denied as denied:
            if tools.tell_model and not (once is not None and once.has_run):
                return told(denied)
            raise

    setattr(guarded, _GUARDED, True)
    tool.on_invoke_tool = guarded


def _parameters(text: str) -> Parameters:
    try:
        parameters = canon.parse_strict(text) if text.strip() else {}
    except CanonError as error:
        raise DeniedUnfreezable(error.reason, "the model's arguments are not strict JSON") from None
    if type(parameters) is not dict:
        raise DeniedUnfreezable("unsupported_type", "the model's arguments are no JSON object")
    return parameters


def _protect_server(server: MCPServer, tools: Tools) -> None:
    call = server.call_tool
    if getattr(call, _GUARDED, False):
        return

    async def guarded(tool_name: str, arguments: Parameters | None, *rest: Any, **more: Any) -> Any:
        return await tools.arun(tool_name, arguments or {}, lambda parameters: call(tool_name, parameters, *rest, **more))

    setattr(guarded, _GUARDED, True)
    setattr(server, "call_tool", guarded)  # noqa: B010  # a method is assigned
