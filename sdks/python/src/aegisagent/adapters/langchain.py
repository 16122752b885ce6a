"""LangChain and LangGraph: tools whose every way of being run (`invoke`, `ainvoke`, `batch`, a `ToolNode`) is protected. Needs the extra
`langchain`.

The input is read with the tool's own schema before it is frozen, and what the tool's function gets is made of what was cleared.
"""

from __future__ import annotations

import contextlib
import contextvars
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool

from .._action import Parameters
from ..aclient import AsyncClient
from ..client import Client
from ..errors import ConfigError, Denied
from ..protect import dressed, is_coroutine_function
from ._langchain_input import read_input
from ._reading import Misfit
from ._tools import Once, Tools, told

_GUARDED = "_aegisagent_guarded"
# The ways to run a tool that end in its `run` or `arun`, as the package has them.
_WAYS = (
    "invoke", "ainvoke", "batch", "abatch", "batch_as_completed", "abatch_as_completed", "stream", "astream", "transform", "atransform",
    "__call__",
)  # fmt: skip
# How the package reads a tool's input.
_READING = ("_parse_input", "_to_args_and_kwargs")
# What `run` and `arun` call in the end. Adapters of other frameworks take these out of a tool.
_INNER = ("_run", "_arun", "func", "coroutine")


class _Passage:
    """A guarded run at work: what of `_INNER` may still be called, each once, and what the tool is called with."""

    def __init__(self, parsed: Callable[[], Any], ways: Collection[str] = _INNER) -> None:
        self.ways = set(ways)
        self._parsed = parsed

    def parsed(self) -> Any:
        """What the framework is to take for what the tool's schema makes of the input, once; then nothing may be called."""
        parsed, self._parsed = self._parsed, self._used
        return parsed()

    def _used(self) -> Any:
        self.ways.clear()
        raise ConfigError("a tool's input is read once")


# By the identity of the tool.
_open: contextvars.ContextVar[Mapping[int, _Passage]] = contextvars.ContextVar("aegisagent_langchain_open", default=MappingProxyType({}))


def protect_tools(
    client: AsyncClient | Client, tools: Iterable[BaseTool], *, tool: str, passed_on: Collection[str] = (), **settings: Any
) -> list[BaseTool]:
    """Protects tools, in place, and returns them. `tool`: the name under which they are registered, as actions by their names.
    `passed_on`: arguments that LangGraph injects (a state, a store), which are neither hashed nor sent: name none that a model can give.
    `settings`: those of `Tools`, such as `reads`.
    """
    shared, made = Tools(client, tool, **settings), list(tools)
    for one in made:
        if not isinstance(one, BaseTool):
            raise ConfigError("a tool is a BaseTool; make one of a function with langchain_core.tools.tool")
        if own := [way for way in _WAYS if not _is_usual(type(one), way)]:
            raise ConfigError(f"`{one.name}` cannot be protected: it has a way of its own to be run ({', '.join(own)})")
        if own := [way for way in _READING if not _is_usual(type(one), way)]:
            raise ConfigError(f"`{one.name}` cannot be protected: it reads its input in a way of its own ({', '.join(own)})")
    for one in made:
        if not getattr(one, _GUARDED, False):
            _protect(one, shared, frozenset(passed_on))
    return made


def _is_usual(kind: type[BaseTool], way: str) -> bool:
    defined = next((one for one in kind.__mro__ if way in vars(one)), None)
    return defined is None or defined.__module__.startswith("langchain_core.")


def _protect(tool: BaseTool, tools: Tools, passed_on: frozenset[str]) -> None:
    name, run, arun, parse = tool.name, tool.run, tool.arun, tool._parse_input

    def guarded_run(tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            read = read_input(tool, parse, tool_input, passed_on, kwargs.get("tool_call_id"))
        except Denied as denied:
            return _answer(denied, tools, name, kwargs)
        if isinstance(read, Misfit):
            with _opened(tool, _misfitting(read.error)):
                return run(tool_input, *args, **kwargs)

        def opened(frozen: Parameters) -> Any:
            with _opened(tool, _Passage(_always(read.parsed(frozen)))):
                return run(read.shown(frozen), *args, **kwargs)

        once = Once(opened)
        try:
            return tools.run(name, read.parameters, once, read.fits)
        except Denied as denied:
            if once.has_run:
                raise
            return _answer(denied, tools, name, kwargs)

    async def guarded_arun(tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            read = read_input(tool, parse, tool_input, passed_on, kwargs.get("tool_call_id"))
        except Denied as denied:
            return _answer(denied, tools, name, kwargs)
        if isinstance(read, Misfit):
            with _opened(tool, _misfitting(read.error)):
                return await arun(tool_input, *args, **kwargs)

        async def awaited(frozen: Parameters) -> Any:
            with _opened(tool, _Passage(_always(read.parsed(frozen)))):
                return await arun(read.shown(frozen), *args, **kwargs)

        once = Once(awaited)
        try:
            return await tools.arun(name, read.parameters, once, fits=read.fits)
        except Denied as denied:
            if once.has_run:
                raise
            return _answer(denied, tools, name, kwargs)

    def parsed(tool_input: Any, *rest: Any, **more: Any) -> Any:
        # Not of the input: that was shown to callbacks meanwhile, and theirs to change.
        passage = _open.get().get(id(tool))
        return parse(tool_input, *rest, **more) if passage is None else passage.parsed()

    closed = [(attribute, _closed(tool, attribute)) for attribute in _INNER if callable(getattr(tool, attribute, None))]
    # A tool is a pydantic model, which takes no new attributes; what stands in the instance comes before its class's methods.
    for attribute, value in (
        *closed, ("run", guarded_run), ("arun", guarded_arun), ("_parse_input", parsed), (_GUARDED, True),
    ):  # fmt: skip
        object.__setattr__(tool, attribute, value)


def _always(value: Any) -> Callable[[], Any]:
    return lambda: value


def _misfitting(error: Exception) -> _Passage:
    """In which the framework meets the error again, and answers as it does; nothing of the tool may be called."""

    def failed() -> Any:
        raise error

    return _Passage(failed, ())


@contextlib.contextmanager
def _opened(tool: BaseTool, passage: _Passage) -> Iterator[None]:
    token = _open.set({**_open.get(), id(tool): passage})
    try:
        yield
    finally:
        _open.reset(token)


def _closed(tool: BaseTool, attribute: str) -> Callable[..., Any]:
    """What a guarded run calls, once, and nobody else. It looks like the original, whose signature the framework asks for."""
    original: Callable[..., Any] = getattr(tool, attribute)

    def pass_through() -> None:
        passage = _open.get().get(id(tool))
        if passage is None or attribute not in passage.ways:
            raise ConfigError(f"`{tool.name}` is protected: run it by invoke, not by {attribute}")
        passage.ways.remove(attribute)

    def blocking(*args: Any, **kwargs: Any) -> Any:
        pass_through()
        return original(*args, **kwargs)

    async def asynchronous(*args: Any, **kwargs: Any) -> Any:
        pass_through()
        return await original(*args, **kwargs)

    return dressed(asynchronous if is_coroutine_function(original) else blocking, original, inspect.signature(original))


def _answer(denied: Denied, tools: Tools, name: str, kwargs: dict[str, Any]) -> Any:
    if not tools.tell_model:
        raise denied
    call_id = kwargs.get("tool_call_id")
    return told(denied) if call_id is None else ToolMessage(told(denied), tool_call_id=call_id, name=name, status="error")
