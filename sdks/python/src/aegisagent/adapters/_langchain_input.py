"""The input of a LangChain tool, read by LangChain's own reading of it: that of the tool's `args_schema`, of pydantic or JSON Schema."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.utils.pydantic import get_fields, is_basemodel_subclass

from .. import canon
from .._action import Parameters
from ._reading import Misfit, Reading, read_arguments

# The parameter that stands for the one text of a tool that takes a text.
_TEXT = "input"
# LangChain's `_parse_input`.
Parse = Callable[[Any, "str | None"], Any]


@dataclass(frozen=True)
class Input:
    """One call's input, read."""

    _reading: Reading
    _names: dict[str, str]
    _is_text: bool
    _beside: dict[str, Any]

    @property
    def parameters(self) -> Parameters:
        """To be frozen."""
        return self._reading.parameters

    def fits(self, edited: Parameters) -> bool:
        """True where the tool can be run with parameters that somebody else wrote."""
        return self._reading.fits(edited)

    def parsed(self, cleared: Parameters) -> Any:
        """What the schema makes of parameters that were cleared."""
        values = self._reading.values(cleared)
        return values.get(_TEXT) if self._is_text else {self._names.get(key, key): value for key, value in values.items()}

    def shown(self, cleared: Parameters) -> Any:
        """The input that such parameters are, for callbacks to look at."""
        return cleared.get(_TEXT, "") if self._is_text else canon.exact_copy(cleared) | self._beside


def read_input(tool: BaseTool, parse: Parse, tool_input: Any, passed_on: frozenset[str], call_id: str | None) -> Input | Misfit:
    """Reads an input. DeniedUnfreezable where it could not be run as it would be hashed."""
    is_text = not isinstance(tool_input, dict)
    given = {_TEXT: tool_input} if is_text else {name: value for name, value in tool_input.items() if name not in passed_on}
    beside = {} if is_text else {name: value for name, value in tool_input.items() if name in passed_on}
    keys = {} if is_text else _keys(tool, given)

    def read(parameters: Parameters) -> dict[str, Any]:
        if _takes_nothing(tool):
            return {}
        if is_text:
            return {_TEXT: parse(parameters[_TEXT], call_id)}
        return {keys.get(name, name): value for name, value in parse(parameters | beside, call_id).items()}

    reading = read_arguments(given, read, passed_on)
    return reading if isinstance(reading, Misfit) else Input(reading, {key: name for name, key in keys.items()}, is_text, beside)


def _takes_nothing(tool: BaseTool) -> bool:
    """True for a schema without fields: LangChain leaves the input out."""
    schema = tool.args_schema
    return isinstance(schema, type) and is_basemodel_subclass(schema) and not get_fields(schema)


def _keys(tool: BaseTool, given: Parameters) -> dict[str, str]:
    """Under which names an input has a schema's fields, where those have other names of their own."""
    schema = tool.args_schema
    if not isinstance(schema, type) or not is_basemodel_subclass(schema):
        return {}
    keys = {}
    for name, field in get_fields(schema).items():
        alias = getattr(field, "validation_alias", None) or field.alias
        if isinstance(alias, str) and alias != name and name not in given:
            keys[name] = alias
    return keys
