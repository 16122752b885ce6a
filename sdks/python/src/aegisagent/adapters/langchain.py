"""LangChain and LangGraph: tools whose every way of being run (`invoke`, `ainvoke`, `batch`, a `ToolNode`) is protected. Needs the extra
`langchain`.
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

from .. import canon
from .._action import Parameters
from ..aclient import AsyncClient
from ..client import Client
from ..errors import ConfigError, Denied
from ..protect import dressed, is_coroutine_function
from ._tools import Once, Tools, told

_GUARDED = "_aegisagent_guarded"
# The parameter that stands for the one text of a tool that takes a text.
_TEXT = "input"
# The ways to run a tool that end in its `run` or `arun`, as the package has them.
_WAYS = (
    "invoke", "ainvoke", "batch", "abatch", "batch_as_completed", "abatch_as_completed", "stream", "astream", "transform", "atransform",
    "__call__",
)  # fmt: skip
# What `run` and `arun` call in the end. Adapters of other frameworks take these out of a tool.
_INNER = ("_run", "_arun", "func", "coroutine")


class _Passage:
    """A guarded run at work: what of `_INNER` may still be called, each once, and what the tool is called with."""

    def __init__(self, tool_input: Callable[[], Any]) -> None:
        self.ways = set(_INNER)
        self.tool_input = tool_input


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
    for one in made:
        if not getattr(one, _GUARDED, False):
            _protect(one, shared, frozenset(passed_on))
    return made


def _is_usual(kind: type[BaseTool], way: str) -> bool:
    defined = next((one for one in kind.__mro__ if way in vars(one)), None)
    return defined is None or defined.__module__.startswith("langchain_core.")


def _protect(tool: BaseTool, tools: Tools, passed_on: frozenset[str]) -> None:
    name, run, arun = tool.name, tool.run, tool.arun

    def guarded_run(tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        parameters, rebuild = _split(tool_input, passed_on)

        def opened(frozen: Parameters) -> Any:
            with _opened(tool, _remaking(frozen, rebuild)) as tool_input:
                return run(tool_input(), *args, **kwargs)

        once = Once(opened)
        try:
            return tools.run(name, parameters, once)
        except Denied as denied:
            if once.has_run:
                raise
            return _answer(denied, tools, name, kwargs)

    async def guarded_arun(tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        parameters, rebuild = _split(tool_input, passed_on)

        async def awaited(frozen: Parameters) -> Any:
            with _opened(tool, _remaking(frozen, rebuild)) as tool_input:
                return await arun(tool_input(), *args, **kwargs)

        once = Once(awaited)
        try:
            return await tools.arun(name, parameters, once)
        except Denied as denied:
            if once.has_run:
                raise
            return _answer(denied, tools, name, kwargs)

    to_arguments = tool._to_args_and_kwargs

    def remade(tool_input: Any, *rest: Any, **more: Any) -> Any:
        # Anew, for the input was shown to callbacks meanwhile, and theirs to change.
        passage = _open.get().get(id(tool))
        return to_arguments(tool_input if passage is None else passage.tool_input(), *rest, **more)

    closed = [(attribute, _closed(tool, attribute)) for attribute in _INNER if callable(getattr(tool, attribute, None))]
    # A tool is a pydantic model, which takes no new attributes; what stands in the instance comes before its class's methods.
    for attribute, value in (
        *closed, ("run", guarded_run), ("arun", guarded_arun), ("_to_args_and_kwargs", remade), (_GUARDED, True),
    ):  # fmt: skip
        object.__setattr__(tool, attribute, value)


def _remaking(frozen: Parameters, rebuild: Callable[[Parameters], Any]) -> Callable[[], Any]:
    """What makes the input of the frozen parameters, each time anew."""
    return lambda: rebuild(canon.exact_copy(frozen))


@contextlib.contextmanager
def _opened(tool: BaseTool, tool_input: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
    token = _open.set({**_open.get(), id(tool): _Passage(tool_input)})
    try:
        yield tool_input
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


def _split(tool_input: Any, passed_on: frozenset[str]) -> tuple[Parameters, Callable[[Parameters], Any]]:
    """The parameters of an input, and how an input is made of parameters again."""
    if not isinstance(tool_input, dict):
        return {_TEXT: tool_input}, lambda frozen: frozen[_TEXT]
    beside = {name: value for name, value in tool_input.items() if name in passed_on}
    return {name: value for name, value in tool_input.items() if name not in passed_on}, lambda frozen: frozen | beside


def _answer(denied: Denied, tools: Tools, name: str, kwargs: dict[str, Any]) -> Any:
    if not tools.tell_model:
        raise denied
    call_id = kwargs.get("tool_call_id")
    return told(denied) if call_id is None else ToolMessage(told(denied), tool_call_id=call_id, name=name, status="error")
