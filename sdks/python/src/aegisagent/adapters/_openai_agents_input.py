"""The arguments of a tool of the OpenAI Agents SDK, read with the schema that the SDK made of the tool's function.

The SDK keeps the schema within the tool's invoker, and takes read arguments from the call's context, where its own approvals leave them.
Both are looked for when a tool is protected: where they are not as they were, the tool is refused.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, is_dataclass, replace
from types import SimpleNamespace
from typing import Any

from agents import FunctionTool
from agents.function_schema import FuncSchema

from .. import _json
from .._action import Parameters, plain_parameters
from ..errors import ConfigError
from ._reading import Misfit, Reading, read_arguments

Invoke = Callable[[Any, str], Awaitable[Any]]

# Where an invoker has what reads and runs; around it the SDK answers to errors.
_IMPLEMENTATION = "_invoke_tool_impl"


@dataclass(frozen=True)
class Input:
    """One call's arguments, read."""

    parameters: Parameters
    fits: Callable[[Parameters], bool] | None
    # Runs the tool with parameters that were cleared.
    invoke: Callable[[Any, Parameters], Awaitable[Any]]


@dataclass(frozen=True)
class TextSchema:
    """Of a tool whose function takes the text itself: an invoker that somebody wrote, or an agent."""

    _invoke: Invoke

    def read(self, _tool_name: str, given: Parameters) -> Input | Misfit:
        """The arguments as they are."""
        return Input(plain_parameters(given), None, lambda context, cleared: self._invoke(context, _text_of(cleared)))

    async def refuse(self, _context: Any, _text: str, misfit: Misfit) -> Any:
        """Never: every text fits."""
        raise misfit.error


@dataclass(frozen=True)
class FunctionSchema:
    """Of a tool that `function_tool` made."""

    _invoke: Invoke
    _schema: FuncSchema
    # Read arguments, as the SDK keeps them: these are of no call.
    _kept: Any

    def read(self, tool_name: str, given: Parameters) -> Input | Misfit:
        """DeniedUnfreezable where they could not be run as they would be hashed."""
        keys = self._keys(given)

        def values(parameters: Parameters) -> dict[str, Any]:
            # Of its storage: a property of the model could have the name of a parameter.
            stored = vars(self._schema.params_pydantic_model(**parameters))
            self._called_with(stored)
            return {key: stored[name] for name, key in keys.items()}

        reading = read_arguments(given, values)
        if isinstance(reading, Misfit):
            return Misfit(self._own_error(tool_name, given) or reading.error)
        return Input(reading.parameters, reading.fits, lambda context, cleared: self._run(context, reading, keys, cleared))

    def _own_error(self, tool_name: str, given: Parameters) -> Exception | None:
        """The SDK's own, which says of the arguments as much as it may."""
        try:
            self._kept.owner(_text_of(given), tool_name)
        except Exception as error:
            return error
        return None

    async def refuse(self, context: Any, text: str, misfit: Misfit) -> Any:
        """Lets the SDK answer to arguments that do not fit, as it does. The function is not called."""

        async def failed(_context: Any, _text: str) -> Any:
            raise misfit.error

        invoke: Any = copy.copy(self._invoke)
        setattr(invoke, _IMPLEMENTATION, failed)
        return await invoke(context, text)

    async def _run(self, context: Any, reading: Reading, keys: dict[str, str], cleared: Parameters) -> Any:
        values, text = reading.values(cleared), _text_of(cleared)
        args, kwargs = self._called_with({name: values[key] for name, key in keys.items()})
        # Of our own: others hold the SDK's, on which other arguments may lie.
        own: Any = copy.copy(context)
        if not hasattr(own, "_function_tool_arguments"):
            raise ConfigError("a tool is run with the ToolContext of its call")
        if getattr(own, "tool_call", None) is not None:
            own.tool_call = own.tool_call.model_copy(update={"arguments": text})
        own.tool_arguments = text
        own._function_tool_arguments = replace(self._kept, arguments=text, args=args, kwargs=kwargs)
        return await self._invoke(own, text)

    def _called_with(self, values: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        stored: Any = SimpleNamespace(**values)
        return self._schema.to_call_args(stored)

    def _keys(self, given: Parameters) -> dict[str, str]:
        """Under which names a text has the parameters."""
        keys = {}
        for name, field in self._schema.params_pydantic_model.model_fields.items():
            alias = field.validation_alias or field.alias
            keys[name] = alias if isinstance(alias, str) and name not in given else name
        return keys


def schema_of(tool: FunctionTool) -> FunctionSchema | TextSchema:
    """How a tool reads its arguments; ConfigError where that cannot be seen."""
    invoke: Any = tool.on_invoke_tool
    if not hasattr(tool, "__wrapped__"):
        held = inspect.getclosurevars(invoke).nonlocals if inspect.isfunction(invoke) else {}
        if any(hasattr(one, _IMPLEMENTATION) for one in held.values()):
            raise _unseen(tool, "its on_invoke_tool was replaced by one that calls it; protect the tool first")
        return TextSchema(invoke)
    # Of no arguments, and so without the tool's own code.
    kept = invoke.prepare_arguments("", tool.name) if hasattr(invoke, "prepare_arguments") else None
    owner = getattr(kept, "owner", None)
    schema = inspect.getclosurevars(owner).nonlocals.get("schema") if inspect.isfunction(owner) else None
    is_known = is_dataclass(kept) and hasattr(invoke, _IMPLEMENTATION)
    if not is_known or not isinstance(schema, FuncSchema):
        raise _unseen(tool, "this version of openai-agents is not known")
    return FunctionSchema(invoke, schema, kept)


def _unseen(tool: FunctionTool, why: str) -> ConfigError:
    return ConfigError(f"`{tool.name}` cannot be protected: how it reads its arguments cannot be seen, for {why}")


def _text_of(parameters: Parameters) -> str:
    return _json.written(parameters)
