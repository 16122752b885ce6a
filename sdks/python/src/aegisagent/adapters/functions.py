"""Plain functions: each becomes the action of its name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from ..aclient import AsyncClient
from ..client import Client
from ..errors import ConfigError
from ..protect import protect
from ._tools import ResourceOf


def protect_functions(
    client: Client | AsyncClient,
    functions: Iterable[Callable[..., Any]] | Mapping[str, Callable[..., Any]],
    *,
    tool: str,
    reads: Collection[str] = (),
    resource: ResourceOf | None = None,
    **options: Any,
) -> dict[str, Callable[..., Any]]:
    """The functions by name, protected. `reads`: the names of those that change nothing. `options`: more of `protect`."""
    named: dict[str, Callable[..., Any]] = {}
    for name, function in functions.items() if isinstance(functions, Mapping) else ((one.__name__, one) for one in functions):
        if name in named:
            raise ConfigError(f"there are two functions {name}; give them by name")
        named[name] = function
    reads = frozenset(reads)
    if unknown := reads.difference(named):
        raise ConfigError(f"there is no function {', '.join(sorted(unknown))}")
    return {
        name: protect(client, tool=tool, action=name, mutates_state=name not in reads, resource=_resource(resource, name), **options)(
            function
        )
        for name, function in named.items()
    }


def _resource(resource: ResourceOf | None, action: str) -> Any:
    return None if resource is None else lambda parameters: resource(action, parameters)


__all__ = ["protect_functions"]
