"""From a call's arguments to parameters by name, and back. Deterministic: positional, keyword and default arguments come out alike."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from . import canon
from ._action import Parameters
from .errors import CanonError, ConfigError

# What is gathered where nothing was given.
_EMPTY: dict[Any, Any] = {inspect.Parameter.VAR_POSITIONAL: (), inspect.Parameter.VAR_KEYWORD: {}}
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_LAZY = (inspect.isgeneratorfunction, inspect.isasyncgenfunction)


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except (ValueError, TypeError):
        raise ConfigError("the function does not tell its parameters; protect one that calls it") from None


@dataclass(frozen=True)
class Bound:
    """The parameters of one call, and beside them what is passed on as it is."""

    parameters: Parameters
    passed_on: dict[str, Any]


class Binding:
    """How one function takes its arguments.

    A parameter named in `passed_on` (`self`, a connection, a framework's context) is neither hashed nor frozen nor sent: it must not decide
    what the function does.
    """

    def __init__(self, function: Callable[..., Any], passed_on: Collection[str]) -> None:
        if any(is_lazy(function) for is_lazy in _LAZY):
            raise ConfigError("a generator runs after it was returned, so it cannot be protected; protect what it calls")
        self.signature = _signature(function)
        self._passed_on = frozenset(passed_on)
        names = list(self.signature.parameters)
        if unknown := self._passed_on.difference(names):
            raise ConfigError(f"the function has no parameter {', '.join(sorted(unknown))}")
        if names[:1] in (["self"], ["cls"]) and names[0] not in self._passed_on:
            raise ConfigError(f"this is a method: name its {names[0]} in passed_on, if what it does depends on its arguments alone")
        self._by_name = {name for name, parameter in self.signature.parameters.items() if parameter.kind in _BY_NAME}
        self._defaults = {name: self._frozen_default(name) for name in names if self._has_default(name)}

    def _has_default(self, name: str) -> bool:
        return self.signature.parameters[name].default is not inspect.Parameter.empty and name not in self._passed_on

    def _frozen_default(self, name: str) -> Any:
        try:
            return canon.exact_copy(self.signature.parameters[name].default, where=f"the default of `{name}`")
        except CanonError as error:
            raise ConfigError(f"{error}; or name the parameter in passed_on") from None

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Bound:
        """The parameters of a call; TypeError for arguments that the function does not take."""
        given = self.signature.bind(*args, **kwargs).arguments
        parameters: Parameters = {}
        passed_on: dict[str, Any] = {}
        for name, parameter in self.signature.parameters.items():
            if name in self._passed_on:
                passed_on[name] = given.get(name, _EMPTY.get(parameter.kind, parameter.default))
            elif parameter.kind in _EMPTY:
                gathered = given.get(name, _EMPTY[parameter.kind])
                parameters[name] = list(gathered) if type(gathered) is tuple else dict(gathered)
            else:
                parameters[name] = given[name] if name in given else self._defaults[name]
        return Bound(parameters, passed_on)

    def fits(self, parameters: Parameters) -> bool:
        """True if the function can be called with parameters that somebody else has written."""
        gathered: dict[Any, type] = {inspect.Parameter.VAR_POSITIONAL: list, inspect.Parameter.VAR_KEYWORD: dict}
        for name, value in parameters.items():
            kind = gathered.get(self.signature.parameters[name].kind)
            if kind is not None and type(value) is not kind:
                return False
            # What is gathered by name would take the place of a parameter of that name.
            if kind is dict and not self._by_name.isdisjoint(value):
                return False
        return True

    def arguments(self, parameters: Parameters, passed_on: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments to call the function with."""
        values = {**parameters, **passed_on}
        ordered = OrderedDict((name, values[name]) for name in self.signature.parameters)
        bound = inspect.BoundArguments(self.signature, ordered)
        return bound.args, bound.kwargs
