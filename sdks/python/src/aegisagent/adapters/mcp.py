"""MCP client sessions: every `tools/call` that a session sends is an action of `mcp:<server>`.

The session's own way out is guarded, so it makes no difference which framework calls it. Needs the extra `mcp`.
"""

from __future__ import annotations

from typing import Any

from mcp import ClientSession

from .._action import Parameters
from .._endpoints import OutcomeStatus
from ..aclient import AsyncClient
from ..client import Client
from ..errors import ConfigError, DeniedUnfreezable
from ._tools import Tools

_GUARDED = "_aegisagent_guarded"


def protect_session(client: AsyncClient | Client, session: ClientSession, *, server: str, **settings: Any) -> ClientSession:
    """Protects a session, in place. `server`: the key under which it is registered. `settings`: those of `Tools`, such as `reads`."""
    if settings.pop("tell_model", False):
        raise ConfigError("a session has no model to tell; whoever calls it gets the Denied")
    tools = Tools(client, f"mcp:{server}", **settings)
    if getattr(session, _GUARDED, False):
        raise ConfigError("this session is protected already")
    send = session.send_request

    async def guarded(request: Any, *args: Any, **kwargs: Any) -> Any:
        call = getattr(request, "root", request)
        if getattr(call, "method", None) != "tools/call":
            return await send(request, *args, **kwargs)
        params = call.params
        # What a user was asked for meanwhile goes along unhashed: a call that has such a part is another call.
        if getattr(params, "input_responses", None) or getattr(params, "request_state", None):
            raise DeniedUnfreezable("unsupported_call", "a call that answers a server's question is not protected, so it is not sent")

        async def run(parameters: Parameters) -> Any:
            frozen = call.model_copy(update={"params": params.model_copy(update={"arguments": parameters})})
            sent = frozen if call is request else request.model_copy(update={"root": frozen})
            return await send(sent, *args, **kwargs)

        return await tools.arun(params.name, params.arguments or {}, run, _status)

    setattr(session, "send_request", guarded)  # noqa: B010  # a method is assigned
    setattr(session, _GUARDED, True)
    return session


def _status(result: Any) -> OutcomeStatus:
    return "error" if getattr(result, "is_error", False) or getattr(result, "isError", False) else "ok"
