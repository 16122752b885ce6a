"""Runs a frozen action, if it is cleared, and reports what came of it. Between the clearance and the run nothing is awaited."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import inspect
import io
import logging
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator
from typing import Any, Protocol, TypeVar

from . import canon
from ._action import FrozenAction, Parameters
from ._endpoints import OutcomeStatus
from ._flow import Clearance, Options
from .client import Client
from .errors import CanonError, LazyResult

R = TypeVar("R")

log = logging.getLogger("aegisagent")

# What does its work when it is read, awaited or has had its turn; and what has none to do.
_LATER = (Awaitable, AsyncIterable, Iterator, concurrent.futures.Future)
_PLAIN = frozenset({str, int, float, bool, bytes, type(None)})


class AsyncClearing(Protocol):
    """What is asked for a clearance, and told of an outcome."""

    async def clear(self, action: FrozenAction, options: Options) -> Clearance:
        """Leave to run a frozen action, or Denied."""
        ...

    async def report(self, clearance: Clearance, status: OutcomeStatus, output: Any) -> None:
        """Reports an outcome; never fails."""
        ...


def returned(_result: object) -> OutcomeStatus:
    """The status of a function that came back."""
    return "ok"


def blocking(
    client: Client, action: FrozenAction, options: Options, run: Callable[[Parameters], R], status: Callable[[R], OutcomeStatus] = returned
) -> R:
    """Runs `run` with the cleared parameters, or raises Denied."""
    clearance = client.clear(action, options)
    parameters = _released(clearance)
    try:
        result = run(parameters)
        _refuse_lazy(result)
    except BaseException as error:
        client.report(clearance, _status_of(error), None)
        raise
    client.report(clearance, status(result), _output(action, options, result))
    return result


async def asynchronous(
    client: AsyncClearing,
    action: FrozenAction,
    options: Options,
    run: Callable[[Parameters], Awaitable[R]],
    status: Callable[[R], OutcomeStatus] = returned,
) -> R:
    """The same with what is awaited."""
    clearance = await client.clear(action, options)
    parameters = _released(clearance)
    try:
        result = await run(parameters)
        _refuse_lazy(result)
    except BaseException as error:
        await client.report(clearance, _status_of(error), None)
        raise
    await client.report(clearance, status(result), _output(action, options, result))
    return result


def _released(clearance: Clearance) -> Parameters:
    action = clearance.action
    if clearance.decision_id is None:
        log.warning("no server can be asked; a read of %s/%s runs without a decision", action.tool, action.action)
    return action.parameters


def _output(action: FrozenAction, options: Options, result: Any) -> Any:
    if not options.report_output:
        return None
    try:
        return canon.exact_copy(result, where="the output")
    except (CanonError, RuntimeError) as error:
        log.warning("the output of %s/%s is not reported: %s", action.tool, action.action, error)
        return None


def _refuse_lazy(result: Any) -> None:
    """A result that does its work later, or holds what does, would do it when nobody looks any more."""
    kinds: dict[type, bool] = {}
    lazy = [value for value in _parts(result) if _works_later(value, kinds)]
    for value in lazy:
        if inspect.iscoroutine(value) or inspect.isgenerator(value):
            value.close()
    if lazy:
        raise LazyResult(
            "the function returned an iterator, an awaitable or a future, which would run after it was reported; return a list or a value"
        )


def _works_later(value: Any, kinds: dict[type, bool]) -> bool:
    # Asked once for each type, for a result may hold millions of one.
    kind = type(value)
    if kind not in kinds:
        kinds[kind] = isinstance(value, _LATER) and not isinstance(value, io.IOBase)
    return kinds[kind]


def _parts(result: Any) -> Iterator[Any]:
    """A result, and what its lists, tuples, sets, dicts and dataclasses hold, less what has no work to do: each container once, for one
    may stand in itself."""
    todo, seen = [result], set[int]()
    while todo:
        value = todo.pop()
        if type(value) not in (list, dict):
            yield value
        held = _held(value)
        if held and id(value) not in seen:
            seen.add(id(value))
            todo += [one for one in held if type(one) not in _PLAIN]


def _held(value: Any) -> list[Any]:
    if type(value) is list:
        return value
    # By the methods of the plain types: those of a subclass could show something else.
    if isinstance(value, dict):
        try:
            return [*dict.keys(value), *dict.values(value)]
        except RuntimeError:
            # Another thread writes to it, so it is no result that was made here. What has run has run.
            return []
    kind: Any = next((kind for kind in (list, tuple, set, frozenset) if isinstance(value, kind)), None)
    if kind is not None:
        return [*kind.__iter__(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    return []


def _status_of(error: BaseException) -> OutcomeStatus:
    """An exception of the function's own is an error; what broke it off, or is still to come, leaves open what takes effect."""
    return "error" if isinstance(error, Exception) and not isinstance(error, LazyResult) else "ambiguous"
