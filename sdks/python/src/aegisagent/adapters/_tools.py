"""What the adapters share: which actions a set of tools has, and how one of them is run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import anyio

from .. import _execute
from .._action import FrozenAction, Parameters, freeze
from .._endpoints import OutcomeStatus
from .._exchange import Ended, Sleep, advanced
from .._flow import Clearance, Options
from ..aclient import AsyncClient
from ..client import Client
from ..errors import ConfigError, Denied, RequestFailed
from ..models import ApprovalRef

R = TypeVar("R")
ResourceOf = Callable[[str, Parameters], str | None]
Fits = Callable[[Parameters], bool]


@dataclass(frozen=True)
class Tools:
    """Settings of a set of tools, registered as the actions of `tool`.

    - `reads`: the names of those that change nothing; every other one may.
    - `resource`: what an action is on, as a function of its name and parameters.
    - `tell_model`: a denial is the tool's answer, for the model to read; otherwise it is raised.
    - The rest as in `protect`.
    """

    client: Client | AsyncClient
    tool: str
    reads: Collection[str] = ()
    resource: ResourceOf | None = None
    tell_model: bool = False
    contains_sensitive_data: bool = False
    channel: str | None = None
    accept_edits: bool = False
    approval_timeout_s: float | None = None
    unreachable_s: float = 30.0
    on_pending: Callable[[ApprovalRef], object] | None = None
    options: Options = field(init=False)

    def __post_init__(self) -> None:
        if not self.tool:
            raise ConfigError("name the tool that these are actions of")
        if isinstance(self.reads, str):
            raise ConfigError("reads is a collection of names")
        # Of our own: what is a read is settled now.
        object.__setattr__(self, "reads", frozenset(self.reads))
        options = Options(
            contains_sensitive_data=self.contains_sensitive_data, channel=self.channel, accept_edits=self.accept_edits,
            approval_timeout_s=self.approval_timeout_s, unreachable_s=self.unreachable_s, on_pending=self.on_pending,
        )  # fmt: skip
        object.__setattr__(self, "options", options)

    def prepared(self, action: str, parameters: Parameters, fits: Fits | None = None) -> tuple[FrozenAction, Options]:
        """The frozen action of a call, and how it is to be run. `fits`: whether what an approver made of the parameters can be run."""
        of = self.resource
        resource = None if of is None else lambda frozen: of(action, frozen)
        frozen = freeze(self.tool, action, resource, action not in self.reads, parameters)
        return frozen, replace(self.options, resource=resource, fits=fits)

    def run(self, action: str, parameters: Parameters, run: Callable[[Parameters], R], fits: Fits | None = None) -> R:
        """Runs a call, or raises Denied."""
        if isinstance(self.client, AsyncClient):
            raise ConfigError("this call blocks, and its tools were protected with an AsyncClient: it does not run")
        return _execute.blocking(self.client, *self.prepared(action, parameters, fits), run)

    async def arun(
        self,
        action: str,
        parameters: Parameters,
        run: Callable[[Parameters], Awaitable[R]],
        status: Callable[[R], OutcomeStatus] = _execute.returned,
        fits: Fits | None = None,
    ) -> R:
        """The same with what is awaited. A blocking client is asked on a thread."""
        frozen, options = self.prepared(action, parameters, fits)
        client = _Threaded(self.client) if isinstance(self.client, Client) else self.client
        return await _execute.asynchronous(client, frozen, options, run, status)


class _Threaded:
    """A blocking client, asked on a thread, one step at a time: between two, and while it pauses, it can be cancelled."""

    def __init__(self, client: Client) -> None:
        self._blocking = client
        # Of this call alone: one that waits for its approval must not take a turn from the program's other work.
        self._turn = anyio.CapacityLimiter(1)

    async def clear(self, action: FrozenAction, options: Options) -> Clearance:
        steps = self._blocking.clearing(action, options)
        answer, failure = None, None
        while True:
            step = await self._on_thread(advanced, steps, answer, failure)
            if isinstance(step, Ended):
                clearance: Clearance = step.value
                return clearance
            answer, failure = None, None
            if isinstance(step, Sleep):
                await anyio.sleep(step.seconds)
                continue
            try:
                answer = await self._on_thread(self._blocking.send, step)
            except RequestFailed as error:
                failure = error

    async def _on_thread(self, do: Callable[..., R], *given: Any) -> R:
        # A step that nobody waits for any more ends by itself, within the client's timeout, and no other follows it.
        return await anyio.to_thread.run_sync(do, *given, abandon_on_cancel=True, limiter=self._turn)

    async def report(self, clearance: Clearance, status: OutcomeStatus, output: Any) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._blocking.report, clearance, status, output, limiter=self._turn)


class Once:
    """Whether what it wraps was called: a denial from within is no word about whoever called it."""

    def __init__(self, run: Callable[[Parameters], R]) -> None:
        self._run = run
        self.has_run = False

    def __call__(self, parameters: Parameters) -> Any:
        self.has_run = True
        return self._run(parameters)


def told(denied: Denied) -> str:
    """A denial as a model may read it."""
    named = f" (decision {denied.decision_id})" if denied.decision_id else ""
    return f"The call was denied: {denied.code}: {denied.reason}{named}"
