"""MCP client sessions: every `tools/call` that a session sends is an action of `mcp:<server>`.

The session's own way out is guarded, so it makes no difference which framework calls it. Needs the extra `mcp`.
"""

from __future__ import annotations

from typing import Any

from mcp import ClientSession, types

from .._action import Parameters, plain_parameters
from .._endpoints import OutcomeStatus
from ..aclient import AsyncClient
from ..client import Client
from ..errors import ConfigError, DeniedUnfreezable
from ._tools import Tools

_GUARDED = "_aegisagent_guarded"
_CALL = "tools/call"
# What a call may carry: the action, and what says how the answer comes. Answers to a server's questions, its state and tasks are refused.
_SENT = {"name", "arguments", "meta"}


def protect_session(client: AsyncClient | Client, session: ClientSession, *, server: str, **settings: Any) -> ClientSession:
    """Protects a session, in place. `server`: the key under which it is registered. `settings`: those of `Tools`, such as `reads`."""
    if settings.pop("tell_model", False):
        raise ConfigError("a session has no model to tell; whoever calls it gets the Denied")
    if type(server) is not str or not server:
        raise ConfigError("name the server, by the key under which it is registered")
    tools = Tools(client, f"mcp:{server}", **settings)
    if getattr(session, _GUARDED, False):
        raise ConfigError("this session is protected already")
    send = session.send_request

    async def guarded(request: Any, *args: Any, **kwargs: Any) -> Any:
        is_rooted = hasattr(request, "root")
        call = request.root if is_rooted else request
        method = getattr(call, "method", None)
        if type(method) is not str:
            raise DeniedUnfreezable("unsupported_call", "a message whose method is no text is not sent")
        if method != _CALL:
            return await send(request, *args, **kwargs)
        # Of our own, for whoever sends the request still holds it.
        params = call.params.model_copy()
        name, arguments = params.name, params.arguments
        if type(name) is not str:
            raise DeniedUnfreezable("unsupported_call", "a call without a tool's name is not sent")
        if beside := [field for field in params.model_fields_set - _SENT if getattr(params, field) is not None]:
            # It would go along unhashed: a call with a server's state is another call, and a task runs when it has been reported.
            raise DeniedUnfreezable("unsupported_call", f"a call with {', '.join(sorted(beside))} cannot be protected, so it is not sent")
        meta = _plain(params.meta)

        async def run(parameters: Parameters) -> Any:
            # Of the package's own classes: one of somebody else's could be written otherwise than it was read.
            given = {"name": name, "arguments": parameters} | ({} if meta is None else {"_meta": meta})
            frozen: Any = types.CallToolRequest.model_validate({"method": _CALL, "params": given})
            wrapped: Any = types.ClientRequest
            return await send(wrapped(frozen) if is_rooted else frozen, *args, **kwargs)

        return await tools.arun(name, arguments or {}, run, _status)

    setattr(session, "send_request", guarded)  # noqa: B010  # a method is assigned
    setattr(session, _GUARDED, True)
    return session


def _plain(meta: Any) -> Any:
    """What a call says of itself, as it is now."""
    if meta is None:
        return None
    shown = meta if type(meta) is dict else meta.model_dump(by_alias=True, mode="json", exclude_none=True)
    return plain_parameters({"_meta": shown})["_meta"]


def _status(result: Any) -> OutcomeStatus:
    # A server that asks back has not done it yet.
    if not hasattr(result, "content"):
        return "ambiguous"
    return "error" if getattr(result, "is_error", False) or getattr(result, "isError", False) else "ok"
