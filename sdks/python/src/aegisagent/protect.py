"""`protect`: a function that runs only as it was authorized.

The arguments are frozen, hashed and sent; what runs, if it runs, is made from the frozen text. Everything else is `Denied`.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Awaitable, Callable, Collection, Coroutine
from dataclasses import replace
from typing import Any, Literal, ParamSpec, TypeVar, overload

from . import _execute
from ._action import Parameters, Resource, freeze
from ._binding import Binding, Bound
from ._flow import Options
from .aclient import AsyncClient
from .client import Client
from .errors import ConfigError
from .models import ApprovalRef

P = ParamSpec("P")
R = TypeVar("R")
Risk = Literal["low", "medium", "high", "critical"]

# Copied from the function; not `__wrapped__`, through which frameworks would call it unprotected.
_COPIED = ("__module__", "__name__", "__qualname__", "__doc__")


class _Protector:
    def __init__(self, client: Client | AsyncClient, settings: dict[str, Any]) -> None:
        self._client = client
        self._settings = settings

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, function: Callable[P, R]) -> Callable[P, R]: ...
    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        guard = Guard(function, **self._settings)
        is_async = is_coroutine_function(function)
        if isinstance(self._client, AsyncClient):
            if not is_async:
                raise ConfigError("an AsyncClient protects async functions; use a Client for this one")
            return guard.asynchronous(self._client)
        if is_async:
            raise ConfigError("a Client would block the event loop; protect async functions with an AsyncClient")
        return guard.blocking(self._client)


def protect(
    client: Client | AsyncClient,
    *,
    tool: str,
    action: str,
    resource: Resource = None,
    mutates_state: bool = True,
    risk: Risk = "high",
    contains_sensitive_data: bool = False,
    channel: str | None = None,
    accept_edits: bool = False,
    fail_open_reads: bool = False,
    approval_timeout_s: float | None = None,
    unreachable_s: float = 30.0,
    on_pending: Callable[[ApprovalRef], object] | None = None,
    report_output: bool = False,
    passed_on: Collection[str] = (),
) -> _Protector:
    """Protects a function as the registered action `tool`/`action`.

    - `resource`: what it acts on; a text, or a function of the parameters.
    - `mutates_state`, `risk`: what its author says; the server's registry can only make it stricter.
    - `accept_edits`: run the action as its approver edited it. Otherwise an edit is a denial.
    - `fail_open_reads`: run while no server can be asked. Only for a read of low risk without sensitive data.
    - `approval_timeout_s`: how long to wait for an approval, at most until it expires; 0 looks once.
    - `unreachable_s`: how long the server may be away while an approval is waited for.
    - `on_pending`: called with the approval that is waited for, to tell somebody of it.
    - `report_output`: report what the function returned, where it is plain JSON; the server keeps a keyed hash of it alone.
    - `passed_on`: parameters that are neither hashed nor frozen, such as `self`.
    """
    if type(mutates_state) is not bool or risk not in ("low", "medium", "high", "critical"):
        raise ConfigError("mutates_state is True or False, risk one of low, medium, high, critical")
    if fail_open_reads and (mutates_state or risk != "low" or contains_sensitive_data):
        raise ConfigError("only a read fails open: mutates_state=False, risk='low' and no sensitive data")
    for name, value in (("tool", tool), ("action", action)):
        if type(value) is not str or not value:
            raise ConfigError(f"{name} must be a text")
    options = Options(
        resource=resource, contains_sensitive_data=contains_sensitive_data, channel=channel, accept_edits=accept_edits,
        fail_open_reads=fail_open_reads, approval_timeout_s=approval_timeout_s, unreachable_s=unreachable_s, on_pending=on_pending,
        report_output=report_output,
    )  # fmt: skip
    settings = {"tool": tool, "action": action, "mutates_state": mutates_state, "options": options, "passed_on": passed_on}
    return _Protector(client, settings)


class Guard:
    """One protected function."""

    def __init__(
        self, function: Callable[..., Any], *, tool: str, action: str, mutates_state: bool, options: Options, passed_on: Collection[str]
    ) -> None:
        self._function = function
        self._binding = Binding(function, passed_on)
        self._action = (tool, action, options.resource, mutates_state)
        self._options = replace(options, fits=self._binding.fits)

    def blocking(self, client: Client) -> Callable[..., Any]:
        """The function behind a blocking client."""

        def protected(*args: Any, **kwargs: Any) -> Any:
            bound = self._binding.bind(args, kwargs)
            return _execute.blocking(client, freeze(*self._action, bound.parameters), self._options, self._run(bound))

        return self._dressed(protected)

    def asynchronous(self, client: AsyncClient) -> Callable[..., Awaitable[Any]]:
        """The function behind an asynchronous client."""

        async def protected(*args: Any, **kwargs: Any) -> Any:
            bound = self._binding.bind(args, kwargs)
            return await _execute.asynchronous(client, freeze(*self._action, bound.parameters), self._options, self._run(bound))

        return self._dressed(protected)

    def _run(self, bound: Bound) -> Callable[[Parameters], Any]:
        def run(parameters: Parameters) -> Any:
            args, kwargs = self._binding.arguments(parameters, bound.passed_on)
            return self._function(*args, **kwargs)

        return run

    def _dressed(self, protected: Callable[..., Any]) -> Callable[..., Any]:
        return dressed(protected, self._function, self._binding.signature)


def dressed(protected: Callable[..., Any], function: Callable[..., Any], signature: inspect.Signature) -> Callable[..., Any]:
    """`protected` with the looks of the function, and no way to it."""
    for name in _COPIED:
        if hasattr(function, name):
            setattr(protected, name, getattr(function, name))
    protected.__annotations__ = _annotations(function)
    protected.__signature__ = signature  # type: ignore[attr-defined]
    return protected


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    """Resolved where the function stands: elsewhere its texts mean nothing."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return dict(getattr(function, "__annotations__", {}))


def is_coroutine_function(function: Callable[..., Any]) -> bool:
    """True for what is awaited, callable objects included."""
    while isinstance(function, functools.partial):
        function = function.func
    called = getattr(type(function), "__call__", None)  # noqa: B004  # the method, not whether there is one
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


__all__ = ["Guard", "Risk", "protect"]
