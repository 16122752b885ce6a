"""What a tool is run with: a model's arguments as the tool's own schema reads them, before they are frozen. So defaults, coercions and
validators are hashed, shown to whoever approves, and run.

What a schema makes that is no plain JSON (a date, a model) is frozen in its JSON form, and what runs is read from that. So a schema must
take its own result as it is: reading it again must give the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import PydanticSerializationError, to_jsonable_python

from .. import canon
from .._action import Parameters, plain_parameters
from ..errors import CanonError, DeniedUnfreezable

# A tool's own reading: what its function is called with, by the names under which its input has them.
Read = Callable[[Parameters], Mapping[str, Any]]

_UNSTABLE = "schema_not_stable"


@dataclass(frozen=True)
class Misfit:
    """What was given does not fit the schema. It is no exception: chained to one, the framework's own error could end up in a ring."""

    error: Exception


@dataclass(frozen=True)
class Reading:
    """One call's arguments, read. `parameters` are to be frozen, and are nobody else's."""

    parameters: Parameters
    _read: Read
    # Those that are plain JSON and stand in the parameters by the schema's default alone: they are not read again, for a schema need not
    # take its own default, such as None for a list.
    _defaults: frozenset[str]
    _passed_on: frozenset[str]

    def values(self, cleared: Parameters) -> dict[str, Any]:
        """What the function is called with for parameters that were cleared, made anew of them; DeniedUnfreezable where the schema makes
        something else of them."""
        kept = {name for name in self._defaults if name in cleared and _is_same(cleared[name], self.parameters[name])}
        again = self._again({name: canon.exact_copy(value) for name, value in cleared.items() if name not in kept})
        values = {name: value for name, value in again.items() if name not in kept}
        values |= {name: canon.exact_copy(cleared[name]) for name in kept}
        shown = {name: _json_form(name, value) for name, value in values.items() if name not in self._passed_on}
        if not _is_same(shown, cleared):
            raise DeniedUnfreezable(_UNSTABLE, "the tool's schema makes something else of what it has read")
        return values

    def _again(self, given: Parameters) -> Mapping[str, Any]:
        with contextlib.suppress(Exception):  # whose text may hold an argument
            return self._read(given)
        raise DeniedUnfreezable(_UNSTABLE, "the tool's schema refuses what it has read")

    def fits(self, edited: Parameters) -> bool:
        """True where the schema takes parameters that somebody else wrote, and makes nothing else of them."""
        try:
            self.values(edited)
        except Exception:  # the schema was not written for what an approver may write
            return False
        return True


def read_arguments(given: Parameters, read: Read, passed_on: Collection[str] = ()) -> Reading | Misfit:
    """Reads plain JSON with a tool's schema; DeniedUnfreezable where it is none, or where what was read could not be run as it would be
    hashed. `passed_on`: names that `read` adds, which are not hashed."""
    given = plain_parameters(given)
    try:
        first = read(canon.exact_copy(given))
    except Exception as error:
        return Misfit(error)
    passed = frozenset(passed_on)
    hashed = {name: value for name, value in first.items() if name not in passed}
    # Copied again, for together they may be too large.
    parameters = plain_parameters({name: _json_form(name, value) for name, value in hashed.items()})
    defaults = frozenset(name for name, value in hashed.items() if name not in given and _is_plain(value))
    reading = Reading(parameters, read, defaults, passed)
    again = reading.values(parameters)
    # Equal JSON may hide what is not in it.
    if not all(_is_equal(again[name], value) for name, value in hashed.items()):
        raise DeniedUnfreezable(_UNSTABLE, "the tool's schema makes something else of what it has read")
    return reading


def _is_equal(one: Any, other: Any) -> bool:
    with contextlib.suppress(Exception):  # a comparison of their own
        return type(one) is type(other) and bool(one == other)
    return False


def _is_same(one: Any, other: Any) -> bool:
    """The same JSON."""
    return canon.canonicalize_value(one) == canon.canonicalize_value(other)


def _is_plain(value: Any) -> bool:
    try:
        canon.exact_copy(value)
    except CanonError:
        return False
    return True


def _json_form(name: str, value: Any) -> Any:
    """The JSON form of what a schema made; a copy."""
    try:
        return canon.exact_copy(value, where=f"parameter `{name}`")
    except CanonError as error:
        if error.reason != "unsupported_type":
            raise DeniedUnfreezable(error.reason, str(error)) from None
    if _has_set(value):
        raise DeniedUnfreezable("unsupported_type", f"parameter `{name}` is or holds a set, whose order is not settled")
    try:
        return canon.exact_copy(to_jsonable_python(value, by_alias=True, round_trip=True), where=f"parameter `{name}`")
    except CanonError as error:
        raise DeniedUnfreezable(error.reason, str(error)) from None
    except (PydanticSerializationError, ValueError, TypeError, RecursionError):
        pass
    raise DeniedUnfreezable("unsupported_type", f"parameter `{name}` ({type(value).__name__}) has no JSON form")


def _has_set(value: Any) -> bool:
    todo, seen = [value], set[int]()
    while todo:
        one = todo.pop()
        if isinstance(one, (set, frozenset)):
            return True
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, dict):
            todo += one.values()
        elif isinstance(one, (list, tuple)):
            todo += one
        elif not isinstance(one, type):
            todo += getattr(one, "__dict__", {}).values()
    return False
