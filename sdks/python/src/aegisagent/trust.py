"""How far the origin of the work at hand may be trusted: a label that follows the work, and that only tightens.

It is kept in a context variable, so it follows `await` and tasks by itself, and threads where they are started through the helpers here.
"""

from __future__ import annotations

import contextvars
import enum
import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Generic, ParamSpec, TypeVar, cast

from .errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

# Longest id or name that the server takes, characters.
_LONGEST_NAME = 256
# Runs whose token is remembered; each is a few hundred bytes.
_REMEMBERED_RUNS = 10_000


class SourceTrust(str, enum.Enum):
    """The six labels, from the least to the most strict."""

    TRUSTED_INTERNAL_SIGNED = "trusted_internal_signed"
    TRUSTED_INTERNAL_UNSIGNED = "trusted_internal_unsigned"
    SEMI_TRUSTED_CUSTOMER = "semi_trusted_customer"
    UNKNOWN = "unknown"
    UNTRUSTED_EXTERNAL = "untrusted_external"
    MALICIOUS_SUSPECTED = "malicious_suspected"

    @property
    def strictness(self) -> int:
        """0 for the least strict."""
        return _ORDER[self]

    def combine(self, other: SourceTrust) -> SourceTrust:
        """The stricter of two labels."""
        return max(self, other, key=lambda label: label.strictness)

    @classmethod
    def _of(cls, word: object) -> SourceTrust | None:
        # Of these types alone: another could say that it is equal to the least strict.
        return next((label for label in cls if type(word) in (str, cls) and label.value == word), None)

    @classmethod
    def read(cls, word: object) -> SourceTrust:
        """A label that somebody else wrote; whatever is none of the six is `unknown`."""
        return cls._of(word) or cls.UNKNOWN

    @classmethod
    def named(cls, word: str | SourceTrust) -> SourceTrust:
        """A label that this program's author wrote: a misspelt one would be looser than what was meant, so it is an error."""
        if label := cls._of(word):
            return label
        raise ConfigError(f"no such trust label; the labels are {', '.join(label.value for label in cls)}")


_ORDER = {label: place for place, label in enumerate(SourceTrust)}

_label: contextvars.ContextVar[SourceTrust | None] = contextvars.ContextVar("aegisagent_source_trust", default=None)
_user: contextvars.ContextVar[dict[str, str] | None] = contextvars.ContextVar("aegisagent_user", default=None)
_run_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("aegisagent_run_id", default=None)


def current_trust() -> SourceTrust:
    """The label of the work at hand; `unknown` where nobody set one."""
    label = _label.get()
    return SourceTrust.UNKNOWN if label is None else label


def current_run() -> str | None:
    """The run that the work at hand belongs to."""
    return _run_id.get()


def current_user() -> dict[str, str] | None:
    """The user on whose behalf the work at hand is done."""
    user = _user.get()
    return None if user is None else dict(user)


class Block(Generic[T]):
    """A `with` block, and no decorator: around an `async def` a decorator would be over before the function runs.

    What was before stands in the context, not in the block: several tasks or threads may be within one block at once.
    """

    def __init__(self, variable: contextvars.ContextVar[T], make: Callable[[T], T]) -> None:
        self._variable = variable
        self._make = make

    def __enter__(self) -> T:
        outer = self._variable.get()
        value = self._make(outer)
        _entered.set((*_entered.get(), (self, outer)))
        self._variable.set(value)
        return value

    def __exit__(self, *_exception: object) -> None:
        entered = list(_entered.get())
        place = next((place for place in reversed(range(len(entered))) if entered[place][0] is self), None)
        if place is None:
            # It was entered in another context, which has ended or will restore itself.
            return
        _, outer = entered.pop(place)
        within = next((place for place in range(place, len(entered)) if entered[place][0]._variable is self._variable), None)
        if within is None:
            self._variable.set(outer)
        else:
            # One that was entered later goes on, and then restores what was before this one.
            entered[within] = (entered[within][0], outer)
        _entered.set(tuple(entered))


# The blocks that the work at hand is within, each with what was before it.
_entered: contextvars.ContextVar[tuple[tuple[Block[Any], Any], ...]] = contextvars.ContextVar("aegisagent_entered", default=())


def source_trust(label: str | SourceTrust) -> Block[SourceTrust | None]:
    """What is called within counts as coming from a source of this label. Within another such block the stricter of both holds."""
    said = SourceTrust.named(label)
    return Block(_label, lambda outer: said if outer is None else outer.combine(said))


def run(run_id: str) -> Block[str | None]:
    """What is called within belongs to this run: the server keeps the strictest label that a run has seen, whatever is claimed later."""
    named = checked_name(run_id, "a run id")
    return Block(_run_id, lambda _outer: named)


def on_behalf_of(user_id: str, role: str | None = None) -> Block[dict[str, str] | None]:
    """What is called within is done for this user, who may then not approve it."""
    user = {"id": checked_name(user_id, "a user's id")} | ({} if role is None else {"role": checked_name(role, "a role")})
    return Block(_user, lambda _outer: user)


def checked_name(text: str, what: str) -> str:
    """A name as the server takes it."""
    if type(text) is not str or not 1 <= len(text) <= _LONGEST_NAME or not text.isprintable():
        raise ConfigError(f"{what} has 1 to {_LONGEST_NAME} printable characters")
    return text


def in_context(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, to be called elsewhere (another thread, a callback, a task), with the label, run and user of here and now."""
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError("a generator runs after it was returned, where it knows no label; carry what reads it")
    label, run_id, user = _label.get(), _run_id.get(), _user.get()

    def carry() -> None:
        here = _label.get()
        # Where the other thread has a label of its own, the stricter holds.
        _label.set(here if label is None else label if here is None else here.combine(label))
        _run_id.set(_run_id.get() if run_id is None else run_id)
        _user.set(_user.get() if user is None else user)

    def carried(*args: P.args, **kwargs: P.kwargs) -> R:
        context = contextvars.copy_context()
        context.run(carry)
        result = context.run(function, *args, **kwargs)
        # A coroutine runs where it is awaited.
        return cast(R, awaited(result)) if inspect.iscoroutine(result) else result

    async def awaited(result: Coroutine[Any, Any, Any]) -> Any:
        variables: tuple[contextvars.ContextVar[Any], ...] = (_label, _run_id, _user)
        before = [(variable, variable.get()) for variable in variables]
        carry()
        try:
            return await result
        finally:
            for variable, value in before:
                variable.set(value)

    return carried


def submit(executor: Executor, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
    """`executor.submit` with the label, run and user of here and now. For processes it cannot be done: a label does not cross."""
    return executor.submit(in_context(function), *args, **kwargs)


class Thread(threading.Thread):
    """A thread that takes the label and run of where it was made."""

    def __init__(self, target: Callable[..., object], **options: Any) -> None:
        super().__init__(target=in_context(target), **options)


class TrustThreadPoolExecutor(ThreadPoolExecutor):
    """A thread pool whose tasks take the label and run of where they were submitted."""

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """As `ThreadPoolExecutor.submit`."""
        return super().submit(in_context(fn), *args, **kwargs)


class RunTokens:
    """The server's word on each run (`trust_token`), sent back with the run's next call so that every edge knows it.

    Replies may overtake each other: the token of the strictest label is kept, and of two with one label the newer.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens: OrderedDict[str | None, tuple[SourceTrust, str]] = OrderedDict()

    def get(self, run_id: str | None) -> str | None:
        """The token to send with a call of this run; None for the agent's implicit run means that run."""
        with self._lock:
            kept = self._tokens.get(run_id)
            return kept[1] if kept else None

    def keep(self, run_id: str | None, label: SourceTrust, token: str) -> None:
        """Notes what a reply said."""
        with self._lock:
            kept = self._tokens.get(run_id)
            if kept is None or label.strictness >= kept[0].strictness:
                self._tokens[run_id] = (label, token)
            self._tokens.move_to_end(run_id)
            if len(self._tokens) > _REMEMBERED_RUNS:
                self._tokens.popitem(last=False)
