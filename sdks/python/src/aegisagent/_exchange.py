"""One call of the API, apart from how bytes move: what is sent, how often, and what an answer must be.

Everything here is a generator that yields what it wants done (`Send`, `Sleep`) and is sent what came of it, so that the blocking and the
asynchronous client are the same program.
"""

from __future__ import annotations

import enum
import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar
from urllib.parse import quote, urlencode

from . import _json, canon
from .errors import ApiError, BadReply, CanonError, ConfigError, RequestFailed, Unreachable
from .secret import Secret

T = TypeVar("T")

# Largest answer that is read, bytes: an approval holds two actions of at most 1 MiB each, escaped.
MAX_REPLY_BYTES = 8 << 20
# Attempts of one call, and the pauses between them, seconds.
ATTEMPTS = 3
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
PAUSE_SPREAD = 0.2
# A message of the server's goes into errors and logs no longer than this, characters.
_SHOWN = 300
# A longer word of the server's is no code, characters.
LONGEST_CODE = 64
# 503 with one of these: the server has changed nothing.
_UNCHANGED = frozenset({"control_busy", "receipt_unavailable"})


class Retry(enum.Enum):
    """When the same request may be sent again."""

    SAFE = "safe"
    """Whatever became of it: a read, or a call with an idempotency key."""
    UNCHANGED = "unchanged"
    """Only where it is certain that nothing was changed: it was not sent, or the server says so."""


@dataclass(frozen=True)
class Reply:
    """What came back. Header names are in lower case."""

    status: int
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True)
class Request(Generic[T]):
    """One call: the path is encoded already; `read` makes its answer of the JSON that came. `is_written`: a good
    answer is no JSON document, and goes to a file as it comes; then it is asked for once."""

    method: str
    path: str
    read: Callable[[Any], T]
    body: bytes | None = field(default=None, repr=False)
    retry: Retry = Retry.SAFE
    expect: tuple[int, ...] = (200,)
    is_written: bool = False


@dataclass(frozen=True)
class Send:
    """Send this once and give back the Reply, or throw Unreachable or BadReply. `deadline`: monotonic seconds."""

    request: Request[Any]
    secret: Secret
    deadline: float


@dataclass(frozen=True)
class Sleep:
    """Wait this long."""

    seconds: float


Steps: TypeAlias = Generator[Send | Sleep, Reply | None, T]


@dataclass(frozen=True)
class Ended(Generic[T]):
    """There is nothing more to do."""

    value: T


def advanced(steps: Steps[T], answer: Reply | None, failure: RequestFailed | None) -> Send | Sleep | Ended[T]:
    """What is to be done next, after this came of what was to be done before."""
    try:
        return steps.send(answer) if failure is None else steps.throw(failure)
    except StopIteration as end:
        return Ended(end.value)


def path_of(*parts: str, **query: str | int | None) -> str:
    """A path of parts that are encoded here, so that no id can lead elsewhere."""
    if any(part in ("", ".", "..") for part in parts):
        raise ConfigError("an id in a path is empty or leads elsewhere")
    given = {name: value for name, value in query.items() if value is not None}
    try:
        path = "/" + "/".join(quote(part, safe="") for part in parts)
        return f"{path}?{urlencode(given)}" if given else path
    except (UnicodeEncodeError, TypeError):
        raise ConfigError("an id is no Unicode text") from None


def json_body(value: Any) -> bytes:
    """A request body: plain JSON only, so that what is sent is what was meant."""
    return _json.written(canon.exact_copy(value)).encode()


def exchange(request: Request[T], credential: Callable[[], Secret], timeout_s: float) -> Steps[T]:
    """Sends a request, again where that is safe, within `timeout_s` for all of it; RequestFailed where it gets no usable answer.

    The credential is asked for once for each attempt: the one that is sent is the one that no answer may repeat.
    """
    deadline = time.monotonic() + timeout_s
    pause = FIRST_PAUSE_S
    for attempt in range(1, ATTEMPTS + 1):
        secret = credential()
        try:
            reply = yield Send(request, secret, deadline)
            if reply is None:
                raise BadReply("there is no reply")
            return _read(request, reply, secret)
        except RequestFailed as error:
            # Without the frames that it came through: their variables hold the answer.
            failure = error.with_traceback(None)
        spread = random.uniform(1 - PAUSE_SPREAD, 1 + PAUSE_SPREAD)  # noqa: S311  # spreads retries; nothing to guess
        wait = max(pause * spread, _asked_pause(failure))
        last = attempt == ATTEMPTS or not _may_send_again(request, failure)
        if last or time.monotonic() + wait >= deadline:
            raise failure
        yield Sleep(wait)
        pause = min(pause * 2, LONGEST_PAUSE_S)
    raise AssertionError("the last attempt returns or raises")


def _may_send_again(request: Request[Any], failure: RequestFailed) -> bool:
    if request.is_written:
        return False
    if isinstance(failure, Unreachable):
        return request.retry is Retry.SAFE or not failure.sent
    if not isinstance(failure, ApiError):
        return False
    if failure.status == 429:
        return True
    return failure.status == 503 and (request.retry is Retry.SAFE or failure.code in _UNCHANGED)


def _asked_pause(failure: RequestFailed) -> float:
    return min(failure.retry_after_s, LONGEST_PAUSE_S) if isinstance(failure, ApiError) else 0.0


def _read(request: Request[T], reply: Reply, secret: Secret) -> T:
    if request.is_written and reply.status in request.expect:
        return request.read(None)
    value = _parsed(reply, secret)
    if value is _ECHO:
        raise BadReply("an answer that repeats the credential")
    if 300 <= reply.status < 400:
        raise BadReply("a redirect; give the address that it leads to as the base URL, if you trust it")
    if reply.status not in request.expect:
        raise _api_error(reply, value, secret)
    if value is _NO_JSON:
        raise BadReply("an answer that is not strict JSON")
    return request.read(value)


_NO_JSON, _ECHO = object(), object()


def _parsed(reply: Reply, secret: Secret) -> Any:
    """The value of an answer. One that repeats the credential, as it is or in escapes, is not let out of here."""
    if secret.reveal().encode() in reply.body:
        return _ECHO
    try:
        value = canon.parse_strict(reply.body, max_bytes=MAX_REPLY_BYTES)
    except CanonError:
        return _NO_JSON
    return _ECHO if secret.reveal() in _json.written(value) else value


def _api_error(reply: Reply, value: Any, secret: Secret) -> ApiError:
    error = value.get("error") if type(value) is dict else None
    code, message = (error.get("code"), error.get("message")) if type(error) is dict else (None, None)
    # A proxy's page has no code; a code is a word.
    if type(code) is not str or not code.isascii() or not code.replace("_", "").isalnum() or len(code) > LONGEST_CODE:
        code, message = f"http_{reply.status}", None
    shown = shown_text(message, secret) if type(message) is str else "the answer says no more"
    after = reply.headers.get("retry-after", "")
    return ApiError(
        reply.status,
        secret.redact(code),
        shown,
        retry_after_s=float(after) if after.isdecimal() and len(after) < 9 else 0.0,
    )


def shown_text(text: str, secret: Secret | None = None) -> str:
    """A text of the server's as errors and logs may show it: one line, bounded, without the credential that it was sent."""
    text = text if secret is None else secret.redact(text)
    if len(text) > _SHOWN:
        text = text[: _SHOWN - 1] + "…"
    return "".join(character if character.isprintable() else " " for character in text)
