"""All tools of an agent, protected in one line: plain functions, OpenAI Agents, LangChain and LangGraph, MCP client sessions.

They share their settings (`Tools`), and one rule: what is not named as a read changes something. Where a framework keeps the tools in
objects of its own, those are changed in place, so that no unprotected one is left to be used by accident.
"""

from .functions import protect_functions

__all__ = ["protect_functions"]
