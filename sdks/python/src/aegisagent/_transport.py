"""Moves one request and its answer, within a deadline for all of it. Bounded in size, follows no redirect, keeps no cookie, and asks the
environment for nothing: no proxy, no .netrc, no certificates of its own.

Errors are raised outside of `except`, so that none carries the HTTP library's error, which holds the request and its headers.
"""

from __future__ import annotations

import contextlib
import http.cookiejar
import io
import ipaddress
import logging
import ssl
import sys
import threading
import time
from collections.abc import Generator, Iterable
from typing import Any, BinaryIO

import anyio
import certifi
import httpcore
import httpx

from ._exchange import MAX_REPLY_BYTES, Reply, Request, Send
from ._names import Names
from ._version import VERSION
from .errors import BadReply, ConfigError, RequestFailed, Unreachable
from .secret import Secret

USER_AGENT = f"aegisagent-python/{VERSION}"
log = logging.getLogger("aegisagent")

_CONNECT_S = 5.0
# Below the server's own 15 s, so that an idle connection is not reused in the moment in which it is closed there.
_KEEP_ALIVE_S = 5.0
# The pool looks at every idle connection for every request: more of them cost more than they carry. Further calls wait for their turn.
_LIMITS = httpx.Limits(max_connections=16, max_keepalive_connections=16, keepalive_expiry=_KEEP_ALIVE_S)
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


def checked_base_url(base_url: str, *, allow_plain_http: bool) -> str:
    """The base URL without a slash at its end. Plain HTTP beyond this machine would show the token to everybody between."""
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, TypeError):
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError("the base URL must be http(s)://host[:port]")
    if url.userinfo or url.query or url.fragment or url.path not in ("", "/"):
        raise ConfigError("the base URL must be http(s)://host[:port], without user, path, query and fragment")
    if url.scheme == "http" and not allow_plain_http and not _is_loopback(url.host):
        raise ConfigError("plain http beyond this machine shows the token to whoever listens: use https, or say allow_plain_http=True")
    return str(url).rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Bearer(httpx.Auth):
    """Puts the credential into the request when it is made, so that no local variable on the way holds it."""

    def __init__(self, secret: Secret) -> None:
        self._secret = secret

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {self._secret.reveal()}"
        yield request


def _options(base_url: str, tenant: str | None) -> dict[str, Any]:
    headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": USER_AGENT}
    if tenant is not None:
        headers["X-Aegis-Tenant-ID"] = tenant
    jar = http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=[]))
    return {
        "base_url": base_url, "headers": headers, "cookies": jar, "trust_env": False,
        "follow_redirects": False,
    }  # fmt: skip


def ssl_context(ca_file: str | None) -> ssl.SSLContext:
    """The certificates that are believed: a file of one's own, or those of the package certifi.

    Not `ssl.create_default_context`: that writes the connections' keys to the file that the environment names in SSLKEYLOGFILE.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if sys.version_info >= (3, 13):
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(ca_file or certifi.where())
    except OSError:
        raise ConfigError("ca_file cannot be read, or holds no certificate") from None
    return context


def _sending(request: Request[Any], secret: Secret, remaining_s: float) -> dict[str, Any]:
    headers = {} if request.body is None else {"Content-Type": "application/json"}
    timeout = httpx.Timeout(remaining_s, connect=min(_CONNECT_S, remaining_s))
    return {"content": request.body, "headers": headers, "auth": _Bearer(secret), "timeout": timeout}


def _no_answer(*, is_outage: bool = True) -> Unreachable:
    return Unreachable("no_answer", "the server did not answer in time, or broke off", is_outage=is_outage)


def _failure_of(error: Exception, collector: Collector) -> RequestFailed:
    if collector.unwritten is not None:
        raise collector.unwritten
    if isinstance(error, RequestFailed):
        return error
    if isinstance(error, _NOT_SENT):
        return Unreachable("unreachable", "there is no connection to the server", sent=False)
    if not isinstance(error, (httpx.HTTPError, TimeoutError)):
        # A closed client, one used in a second event loop, a bug: its kind alone, for its text may hold anything.
        log.warning("a request failed in the HTTP library: %s", type(error).__name__)
        return _no_answer(is_outage=False)
    return _no_answer()


class Collector:
    """Gathers an answer's body, up to the limit and the deadline; or writes it to `out`, if it is the one that was asked for."""

    def __init__(self, deadline: float, out: BinaryIO | None) -> None:
        self._deadline = deadline
        self._out = out
        self._parts: list[bytes] = []
        self._size = 0
        self.unwritten: OSError | None = None

    def begin(self, response: httpx.Response) -> None:
        """Looks at the head of the answer."""
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise BadReply("an encoded answer, although none was asked for")
        if response.status_code != httpx.codes.OK:
            self._out = None

    def add(self, part: bytes) -> None:
        """Takes the next part of the body."""
        if time.monotonic() > self._deadline:
            raise _no_answer()
        if self._out is not None:
            self._write(self._out, part)
            return
        self._size += len(part)
        if self._size > MAX_REPLY_BYTES:
            raise BadReply(f"an answer of more than {MAX_REPLY_BYTES} bytes")
        self._parts.append(part)

    def _write(self, out: BinaryIO, part: bytes) -> None:
        try:
            while part:
                count = out.write(part)
                if isinstance(out, io.RawIOBase) and not count:
                    raise OSError("the output takes no more")
                # A raw file may take less than it was given. What has no count to give took all.
                part = part[count:] if type(count) is int else b""
        except OSError as error:
            # The file's failure, not the server's.
            self.unwritten = error
            raise

    def reply(self, response: httpx.Response) -> Reply:
        """The whole of it."""
        return Reply(
            response.status_code,
            {name.lower(): value for name, value in response.headers.items()},
            b"".join(self._parts),
        )


class Deadline(threading.local):
    """When the calling thread's request must have ended, monotonic seconds."""

    at: float = float("inf")

    def clip(self, timeout: float | None) -> float:
        """No more than what is left; a timeout for each read alone would let a server drip its answer for hours."""
        remaining = self.at - time.monotonic()
        if remaining <= 0:
            raise httpcore.ReadTimeout("the deadline has passed")
        return remaining if timeout is None else min(timeout, remaining)


class _DeadlineStream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._inner = inner
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._deadline.clip(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._deadline.clip(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _DeadlineStream(self._inner.start_tls(ssl_context, server_hostname, self._deadline.clip(timeout)), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _DeadlineBackend(httpcore.NetworkBackend):
    def __init__(self, deadline: Deadline) -> None:
        self._inner = httpcore.SyncBackend()
        self._deadline = deadline
        self._names = Names()

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:  # fmt: skip
        for address in self._names.addresses(host, port, self._deadline.clip(timeout)):
            with contextlib.suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                stream = self._inner.connect_tcp(address, port, self._deadline.clip(timeout), local_address, socket_options)
                return _DeadlineStream(stream, self._deadline)
        raise httpcore.ConnectError("no address of the server takes a connection")


class _DeadlineTransport(httpx.HTTPTransport):
    def __init__(self, context: ssl.SSLContext, deadline: Deadline) -> None:
        super().__init__(verify=context, trust_env=False)
        self._pool = httpcore.ConnectionPool(
            ssl_context=context,
            max_connections=_LIMITS.max_connections,
            max_keepalive_connections=_LIMITS.max_keepalive_connections,
            keepalive_expiry=_LIMITS.keepalive_expiry,
            network_backend=_DeadlineBackend(deadline),
        )


class Transport:
    """Sends and waits."""

    def __init__(self, base_url: str, tenant: str | None, context: ssl.SSLContext) -> None:
        self._deadline = Deadline()
        transport = _DeadlineTransport(context, self._deadline)
        self._http = httpx.Client(transport=transport, **_options(base_url, tenant))

    def send(self, step: Send, out: BinaryIO | None = None) -> Reply:
        """One attempt; Unreachable or BadReply where it gets no whole answer."""
        self._deadline.at = step.deadline
        try:
            answer = self._attempt(step, Collector(step.deadline, out), max(0.001, step.deadline - time.monotonic()))
        finally:
            self._deadline.at = float("inf")
        if isinstance(answer, RequestFailed):
            raise answer
        return answer

    def _attempt(self, step: Send, collector: Collector, remaining_s: float) -> Reply | RequestFailed:
        try:
            with self._http.stream(step.request.method, step.request.path, **_sending(step.request, step.secret, remaining_s)) as response:
                collector.begin(response)
                for part in response.iter_raw():
                    collector.add(part)
                return collector.reply(response)
        except Exception as error:  # whatever it is, it is no answer
            return _failure_of(error, collector)

    def close(self) -> None:
        """Closes all connections."""
        self._http.close()


class AsyncTransport:
    """Sends, and lets others run meanwhile."""

    def __init__(self, base_url: str, tenant: str | None, context: ssl.SSLContext) -> None:
        self._http = httpx.AsyncClient(verify=context, limits=_LIMITS, **_options(base_url, tenant))

    async def send(self, step: Send, out: BinaryIO | None = None) -> Reply:
        """One attempt; Unreachable or BadReply where it gets no whole answer."""
        answer = await self._attempt(step, Collector(step.deadline, out), max(0.001, step.deadline - time.monotonic()))
        if isinstance(answer, RequestFailed):
            raise answer
        return answer

    async def _attempt(self, step: Send, collector: Collector, remaining_s: float) -> Reply | RequestFailed:
        try:
            with anyio.fail_after(remaining_s):
                async with self._http.stream(
                    step.request.method, step.request.path, **_sending(step.request, step.secret, remaining_s)
                ) as response:
                    collector.begin(response)
                    async for part in response.aiter_raw():
                        collector.add(part)
                    return collector.reply(response)
        except Exception as error:  # whatever it is, it is no answer
            return _failure_of(error, collector)

    async def close(self) -> None:
        """Closes all connections."""
        await self._http.aclose()
