"""Runs a frozen action, if it is cleared, and reports what came of it. Between the clearance and the run nothing is awaited."""

from __future__ import annotations

import inspect
import io
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Protocol, TypeVar

from . import canon
from ._action import FrozenAction, Parameters
from ._endpoints import OutcomeStatus
from ._flow import Clearance, Options
from .client import Client
from .errors import CanonError, LazyResult

R = TypeVar("R")

log = logging.getLogger("aegisagent")


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
    """A result that does its work later would do it when nobody looks any more."""
    if isinstance(result, (Awaitable, AsyncIterator, Iterator)) and not isinstance(result, io.IOBase):
        if inspect.iscoroutine(result) or inspect.isgenerator(result):
            result.close()
        raise LazyResult(
            "the function returned an iterator or an awaitable, which would run after it was reported; return a list or a value"
        )


def _status_of(error: BaseException) -> OutcomeStatus:
    """An exception of the function's own is an error; what broke it off, or is still to come, leaves open what takes effect."""
    return "error" if isinstance(error, Exception) and not isinstance(error, LazyResult) else "ambiguous"
