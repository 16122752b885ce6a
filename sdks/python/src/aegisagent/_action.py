"""A frozen action: one immutable text, from which the hash, what is sent and what runs are all made. So they cannot differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from . import _json, canon
from .errors import CanonError, ConfigError, DeniedUnfreezable
from .models import ToolCall

Parameters = dict[str, Any]
# The resource an action is on: none, one, or one that follows from the parameters.
Resource = str | None | Callable[[Parameters], str | None]


@dataclass(frozen=True, slots=True)
class FrozenAction:
    """`text` is the JSON of the five values, as it is sent."""

    tool: str
    action: str
    mutates_state: bool
    text: str = field(repr=False)
    action_hash: str

    @property
    def parameters(self) -> Parameters:
        """A copy of the parameters that is nobody else's."""
        parameters: Parameters = _json.read(self.text)["parameters"]
        return parameters


def freeze(tool: str, action: str, resource: Resource, mutates_state: bool, parameters: Parameters) -> FrozenAction:
    """Freezes an action; DeniedUnfreezable where it has no canonical form. Looks at each value once, and keeps a copy of what it saw."""
    copy = plain_parameters(parameters)
    named = _named(resource, copy)
    try:
        call = ToolCall(tool, action, named, mutates_state, copy)
        action_hash = call.action_hash()
    except CanonError as error:
        raise DeniedUnfreezable(error.reason, str(error)) from None
    return FrozenAction(tool, action, mutates_state, _json.written(call.as_json()), action_hash)


def _named(resource: Resource, parameters: Parameters) -> str | None:
    try:
        return resource_of(resource, parameters)
    except CanonError as error:
        denied = DeniedUnfreezable(error.reason, str(error))
    except Exception:  # its author's, and its text may hold an argument
        denied = DeniedUnfreezable("unsupported_type", "the resource cannot be told from the parameters")
    raise denied


def plain_parameters(parameters: Parameters) -> Parameters:
    """A copy of parameters that is nobody else's; DeniedUnfreezable where they are not plain JSON."""
    copier = canon.Copier()
    try:
        # One by one, so that an error names the parameter. Depth 2: within `parameters`, within the action.
        return {copier.key(name): copier.copy(value, f"parameter `{name}`", 2) for name, value in parameters.items()}
    except CanonError as error:
        raise DeniedUnfreezable(error.reason, str(error)) from None
    except RuntimeError:
        raise DeniedUnfreezable("changed_while_frozen", "an argument was changed by another thread meanwhile") from None


def refreeze(original: FrozenAction, edited: ToolCall, resource: Resource) -> FrozenAction:
    """The action as an approver edited it, if the same function can run it; ConfigError says why not."""
    if (edited.tool, edited.action, edited.mutates_state) != (original.tool, original.action, original.mutates_state):
        raise ConfigError("the edit makes it another tool's action")
    if edited.parameters.keys() != original.parameters.keys():
        raise ConfigError("the edit has other parameters than the function")
    frozen = freeze(edited.tool, edited.action, edited.resource, edited.mutates_state, edited.parameters)
    try:
        named = resource_of(resource, frozen.parameters)
    except Exception:  # the function was not written for what an approver may write, and its text may hold an argument
        raise ConfigError("the resource cannot be told from the edited parameters") from None
    if named != edited.resource:
        raise ConfigError("the edit names another resource than its parameters do")
    return frozen


def resource_of(resource: Resource, parameters: Parameters) -> str | None:
    """The resource for these parameters."""
    if not callable(resource):
        return resource
    named = resource(canon.exact_copy(parameters))
    if named is not None and type(named) is not str:
        raise CanonError("unsupported_type", "the resource; it is a text or None")
    return named
