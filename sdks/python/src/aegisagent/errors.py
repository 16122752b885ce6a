"""What goes wrong, as types. Messages say what happened and what to do; none holds an argument, a credential or a reply's raw text.

Whoever calls a protected function needs one of them: `Denied`, which means that the function did not run.
"""

from __future__ import annotations

from typing import Any


class AegisError(Exception):
    """The base of all errors of this package."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls the class with the message alone: a worker process that raised it would break its pool.
        return _rebuilt, (type(self), self.args, vars(self))


def _rebuilt(kind: type[AegisError], args: tuple[Any, ...], state: dict[str, Any]) -> AegisError:
    error = kind.__new__(kind, *args)
    vars(error).update(state)
    return error


class ConfigError(AegisError, ValueError):
    """The package was set up in a way that cannot be safe, or that means nothing. Raised before anything is called."""


class CanonError(AegisError, ValueError):
    """A JSON text or a value has no canonical form.

    `reason` is stable and the same in every language: `size_exceeded`, `invalid_utf8`, `syntax`, `trailing_data`, `depth_exceeded`,
    `duplicate_key`, `lone_surrogate`, `integer_out_of_range`, `number_out_of_range`, `non_finite_number`; and for values that are
    not JSON at all, `unsupported_type`.
    """

    def __init__(self, reason: str, where: str = "") -> None:
        super().__init__(f"{reason} in {where}" if where else reason)
        self.reason = reason
        self.where = where


class RequestFailed(AegisError):
    """A request got no usable answer. `code` is stable; `sent` says whether the server may have received the request."""

    def __init__(self, code: str, message: str, *, sent: bool = True) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.sent = sent


class Unreachable(RequestFailed):
    """No connection, or no answer in time. `code`: `unreachable` (nothing was sent) or `no_answer` (something may have been).

    `is_outage` is False where it was not the server's or the network's doing: a client that was closed, or one used in a second event loop.
    """

    def __init__(self, code: str, message: str, *, sent: bool = True, is_outage: bool = True) -> None:
        super().__init__(code, message, sent=sent)
        self.is_outage = is_outage


class BadReply(RequestFailed):
    """An answer that no server of ours gives: no JSON, wrong types, too large, a redirect, encoded. `code`: `bad_reply`."""

    def __init__(self, message: str) -> None:
        super().__init__("bad_reply", message)


class ApiError(RequestFailed):
    """The server refused: `status` is the HTTP status, `code` the server's own code (docs/openapi.yaml lists them)."""

    def __init__(self, status: int, code: str, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(code, f"{message} (HTTP {status})")
        self.status = status
        self.reason = message
        self.retry_after_s = retry_after_s


class Denied(AegisError):
    """The protected function did not run.

    `code` is stable: the server's where it gave one (`agent_frozen`, `approval_rejected`, …), otherwise one of this package's.
    `reason` is for people. `decision_id` and `approval_id` name what there is to look up.
    """

    def __init__(self, code: str, reason: str, *, decision_id: str | None = None, approval_id: str | None = None) -> None:
        super().__init__(f"denied ({code}): {reason}")
        self.code = code
        self.reason = reason
        self.decision_id = decision_id
        self.approval_id = approval_id


class DeniedByPolicy(Denied):
    """The server decided: deny."""


class DeniedByApprover(Denied):
    """The approval was rejected, expired, was edited without leave to run edits, or did not come in time."""


class DeniedUnavailable(Denied):
    """There is no decision: the server could not be reached, did not answer in time, or refused the request itself."""


class DeniedUnverified(Denied):
    """An answer is not what it must be: another action's hash, an unknown word, garbage. Treat it as an attack."""


class DeniedUnfreezable(Denied):
    """An argument is not plain JSON, or a tool's schema does not take its own result as it is (`schema_not_stable`), so that what would run
    could not be what was hashed."""


class LazyResult(AegisError):
    """The protected function ran and returned something that does its work later; it is not handed out."""
