"""What stands between a call and its execution: authorize, wait for the approval, consume.

Promises that it ends in a `Clearance` for exactly the frozen action, or in `Denied`; nothing else that it raises comes from a server.
"""

from __future__ import annotations

import inspect
import logging
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from . import _endpoints, _json, canon, trust
from ._action import FrozenAction, Parameters, Resource, refreeze
from ._exchange import LONGEST_CODE, Request, Sleep, Steps, exchange, shown_text
from ._rfc3339 import microseconds
from .errors import (
    ApiError,
    CanonError,
    ConfigError,
    Denied,
    DeniedByApprover,
    DeniedByPolicy,
    DeniedUnavailable,
    DeniedUnfreezable,
    DeniedUnverified,
    RequestFailed,
    Unreachable,
)
from .models import Approval, ApprovalRef, Decision
from .secret import Secret
from .trust import SourceTrust

T = TypeVar("T")

log = logging.getLogger("aegisagent")

# Pauses between two looks at an approval, seconds: the first, how they grow, the longest, and how far they are spread.
FIRST_POLL_S, POLL_GROWTH, LONGEST_POLL_S, POLL_SPREAD = 0.25, 1.5, 5.0, 0.2
# How much later than it seems an approval may end, seconds: a server counts whole ones, or none, and then its clock may be behind ours.
CLOCK_GRACE_S = 5.0
# Largest body of a request, bytes: what the server takes.
MAX_BODY_BYTES = 1 << 20
# Labels under which nothing ever fails open.
_TAINTED = (SourceTrust.UNTRUSTED_EXTERNAL, SourceTrust.MALICIOUS_SUSPECTED)
_CONTAINED = frozenset({"agent_frozen", "agent_revoked", "agent_quarantined"})


@dataclass(frozen=True)
class Options:
    """How one function is protected."""

    resource: Resource = None
    contains_sensitive_data: bool = False
    channel: str | None = None
    accept_edits: bool = False
    fail_open_reads: bool = False
    approval_timeout_s: float | None = None
    unreachable_s: float = 30.0
    on_pending: Callable[[ApprovalRef], object] | None = None
    fits: Callable[[Parameters], bool] | None = None
    report_output: bool = False

    def __post_init__(self) -> None:
        for name in ("contains_sensitive_data", "accept_edits", "fail_open_reads", "report_output"):
            if type(getattr(self, name)) is not bool:
                raise ConfigError(f"{name} is True or False: another value could mean what was not meant")
        for name in ("approval_timeout_s", "unreachable_s"):
            value = getattr(self, name)
            if value is not None and not (type(value) in (int, float) and 0 <= value < math.inf):
                raise ConfigError(f"{name} is a number of seconds")
        if self.channel is not None:
            trust.checked_name(self.channel, "channel")
        if inspect.iscoroutinefunction(self.on_pending):
            raise ConfigError("on_pending is called and not awaited; give a function that is not async")


@dataclass(frozen=True)
class Clearance:
    """Leave to run `action`, once. `decision_id` is None where a read failed open."""

    action: FrozenAction
    decision_id: str | None


@dataclass
class Caller:
    """Whose calls these are: what a client keeps between them."""

    secret: Callable[[], Secret]
    agent: dict[str, str]
    timeout_s: float
    tokens: trust.RunTokens
    is_contained: bool = False


def clear(caller: Caller, action: FrozenAction, options: Options) -> Steps[Clearance]:
    """Asks for leave to run `action`."""
    label, run_id = trust.current_trust(), trust.current_run()
    body = _authorize_body(caller, action, options, label, run_id)
    try:
        decision = yield from _asked(caller, _endpoints.authorize(body, is_idempotent=True))
    except RequestFailed as failure:
        if _may_fail_open(caller, action, options, label, failure):
            return Clearance(action, None)
        raise _denied(failure) from failure
    _check_decision(action, label, decision)
    _note(caller, run_id, decision)
    if decision.decision == "deny":
        code = decision.reason if _is_code(decision.reason) else "policy_denied"
        raise DeniedByPolicy(code, shown_text(decision.reason), decision_id=decision.decision_id)
    if decision.decision == "allow":
        return Clearance(action, decision.decision_id)
    try:
        approved = yield from _approved(caller, action, options, decision)
    except Denied as denied:
        _name(denied, decision)
        raise
    return Clearance(approved, decision.decision_id)


def _asked(caller: Caller, request: Request[T]) -> Steps[T]:
    """One exchange. Where there is no credential there is no answer either; and that is never a server that cannot be reached."""
    try:
        return (yield from exchange(request, caller.secret, caller.timeout_s))
    except ConfigError as error:
        raise DeniedUnavailable("unreachable", str(error)) from error


def report(caller: Caller, clearance: Clearance, status: _endpoints.OutcomeStatus, output: Any, timeout_s: float) -> Steps[None]:
    """Reports what came of a run. The run cannot be undone, so the caller of the function never learns of a failure here."""
    if clearance.decision_id is None:
        return
    request = _endpoints.outcome(clearance.decision_id, status, clearance.action.action_hash, output)
    yield from exchange(request, caller.secret, timeout_s)


def _authorize_body(caller: Caller, action: FrozenAction, options: Options, label: SourceTrust, run_id: str | None) -> bytes:
    trace = {"run_id": run_id, "trust_token": caller.tokens.get(run_id)}
    context = {
        "source_trust": label.value,
        "contains_sensitive_data": options.contains_sensitive_data,
        "channel": options.channel,
    }
    rest = {
        "request_id": _endpoints.fresh_request_id(),
        "agent": caller.agent,
        "user": trust.current_user(),
        "context": _present(context),
        "trace": _present(trace),
        "canon_version": canon.CANON_VERSION,
    }
    # The action's own text, not one made anew: what was hashed is what is sent.
    head = _json.written(_present(rest))
    body = f'{head[:-1]},"tool_call":{action.text}}}'.encode()
    if len(body) > MAX_BODY_BYTES:
        raise DeniedUnfreezable("size_exceeded", f"the call is larger than the {MAX_BODY_BYTES} bytes that a server takes")
    return body


def _present(members: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in members.items() if value is not None}


def _may_fail_open(caller: Caller, action: FrozenAction, options: Options, label: SourceTrust, failure: RequestFailed) -> bool:
    """Only a read whose author said so, only while no server can be asked, and never for tainted work or a contained agent."""
    is_away = (isinstance(failure, Unreachable) and failure.is_outage) or (
        isinstance(failure, ApiError) and failure.status in (500, 502, 503, 504)
    )
    is_harmless = not action.mutates_state and not options.contains_sensitive_data and label not in _TAINTED
    return options.fail_open_reads and is_away and is_harmless and not caller.is_contained


def _note(caller: Caller, run_id: str | None, decision: Decision) -> None:
    caller.tokens.keep(run_id, SourceTrust.read(decision.root_trust_level), decision.trust_token)
    caller.is_contained = decision.decision == "deny" and decision.reason in _CONTAINED


def _check_decision(action: FrozenAction, label: SourceTrust, decision: Decision) -> None:
    """What every decision must be, before it is obeyed."""
    if decision.decision not in ("allow", "deny", "require_approval"):
        _unverified("unknown_decision", "the server answered with a decision that this version does not know", decision)
    if decision.decision == "deny":
        return
    if decision.action_hash != action.action_hash:
        _unverified("action_hash_mismatch", "the server decided about another action than the one that was asked for", decision)
    if decision.dry_run or decision.receipt.canon_version != canon.CANON_VERSION:
        _unverified("bad_reply", "the decision is a dry run, or made with another canonical form", decision)
    if SourceTrust.read(decision.root_trust_level).strictness < label.strictness:
        _unverified("trust_loosened", "the server took the call for more trusted than it was labelled", decision)
    is_harmless = decision.decision == "allow" and not action.mutates_state and decision.risk_level == "low"
    if decision.receipt.receipt_hash is None and not is_harmless:
        _unverified("receipt_missing", "the decision has no receipt, and only that of a harmless read may have none", decision)
    approval = decision.approval
    if (decision.decision == "require_approval") != (approval is not None):
        _unverified("bad_reply", "decision and approval contradict each other", decision)
    if approval is not None and approval.action_hash != action.action_hash:
        _unverified("action_hash_mismatch", "the approval is for another action than the one that was asked for", decision)


def _unverified(code: str, reason: str, decision: Decision) -> NoReturn:
    raise DeniedUnverified(code, reason, decision_id=decision.decision_id)


def _approved(caller: Caller, action: FrozenAction, options: Options, decision: Decision) -> Steps[FrozenAction]:
    """Waits for the approval and consumes it; the action that may run now."""
    pending = decision.approval
    assert pending is not None  # noqa: S101  # `_check_decision` has seen it
    ends = time.monotonic() + _seconds_left(pending) + CLOCK_GRACE_S
    if options.on_pending is not None:
        _tell(options.on_pending, pending)
    if options.approval_timeout_s is not None:
        ends = min(ends, time.monotonic() + options.approval_timeout_s)
    approval = yield from _decided(caller, action, options, pending, ends)
    approved = action if approval.action_hash == action.action_hash else _edited(action, options, approval)
    request = _endpoints.consume(approval.approval_id, approved.action_hash)
    try:
        consumed = yield from _asked(caller, request)
    except RequestFailed as failure:
        raise _denied(failure, is_consume=True) from failure
    expected = ("consumed", approval.approval_id, approved.action_hash)
    if (consumed.status, consumed.approval_id, consumed.action_hash) != expected:
        raise DeniedUnverified("action_hash_mismatch", "what was consumed is not what was asked for")
    return approved


def _tell(on_pending: Callable[[ApprovalRef], object], pending: ApprovalRef) -> None:
    """Whoever is told decides nothing, neither by failing."""
    try:
        on_pending(pending)
    except Exception as error:  # its kind alone: its text may hold anything
        log.warning("on_pending failed for approval %s: %s", pending.approval_id, type(error).__name__)


def _decided(caller: Caller, action: FrozenAction, options: Options, pending: ApprovalRef, deadline: float) -> Steps[Approval]:
    """Looks at the approval until it is approved. Until then a 404 means that control has not seen it yet."""
    heard = time.monotonic()
    pause = FIRST_POLL_S
    while True:
        try:
            approval = yield from _asked(caller, _endpoints.approval(pending.approval_id))
            _check_approval(action, pending, options, approval)
            if approval.status == "APPROVED":
                return approval
            heard = time.monotonic()
        except ApiError as failure:
            if (failure.status, failure.code) == (404, "approval_not_found"):
                heard = time.monotonic()
            elif failure.status not in (429, 503) or time.monotonic() - heard > options.unreachable_s:
                raise _denied(failure) from failure
        except Unreachable as failure:
            if time.monotonic() - heard > options.unreachable_s:
                raise _denied(failure) from failure
        except RequestFailed as failure:
            raise _denied(failure) from failure
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise DeniedByApprover("approval_timeout", "nobody decided in time")
        spread = random.uniform(1 - POLL_SPREAD, 1 + POLL_SPREAD)  # noqa: S311  # spreads polls; nothing to guess
        yield Sleep(min(pause * spread, remaining))
        pause = min(pause * POLL_GROWTH, LONGEST_POLL_S)


def _seconds_left(pending: ApprovalRef) -> float:
    """By the server's clock; by ours where the server does not count them."""
    ends = microseconds(pending.expires_at)
    if ends is None:
        raise DeniedUnverified("bad_reply", "the approval's end is no time")
    return ends / 1e6 - time.time() if pending.expires_in is None else float(pending.expires_in)


def _check_approval(action: FrozenAction, pending: ApprovalRef, options: Options, approval: Approval) -> None:
    """What every look at the approval must show. `Approval.read` has held its hashes against its actions."""
    if approval.approval_id != pending.approval_id or approval.original_action_hash != action.action_hash:
        raise DeniedUnverified("action_hash_mismatch", "the approval is about another action than the one that was asked for")
    if approval.status not in ("PENDING", "APPROVED", "REJECTED", "EXPIRED", "CONSUMED"):
        raise DeniedUnverified("unknown_status", "the approval has a status that this version does not know")
    if approval.status in ("REJECTED", "EXPIRED", "CONSUMED"):
        raise DeniedByApprover(f"approval_{approval.status.lower()}", f"the approval is {approval.status}")
    if approval.action_hash != action.action_hash and not options.accept_edits:
        raise DeniedByApprover("approval_edited", "the approver edited the action, and accept_edits is not set")


def _edited(action: FrozenAction, options: Options, approval: Approval) -> FrozenAction:
    try:
        edited = refreeze(action, approval.current, options.resource)
    except (ConfigError, CanonError) as error:
        raise DeniedByApprover("approval_edited", f"this function cannot run what the approver made of the action: {error}") from None
    if options.fits is not None and not options.fits(edited.parameters):
        raise DeniedByApprover("approval_edited", "this function cannot be called with what the approver made of its parameters")
    if edited.action_hash != approval.action_hash:
        raise DeniedUnverified("action_hash_mismatch", "the edited action is not the one that was approved")
    return edited


def _denied(failure: RequestFailed, *, is_consume: bool = False) -> Denied:
    if isinstance(failure, ApiError):
        return _refused(failure, is_consume=is_consume)
    if isinstance(failure, Unreachable):
        if is_consume and failure.sent:
            return DeniedUnavailable("consume_ambiguous", "whether the approval was consumed is not known, so the function does not run")
        return DeniedUnavailable(failure.code, str(failure))
    return DeniedUnverified(failure.code, str(failure))


def _refused(failure: ApiError, *, is_consume: bool) -> Denied:
    if is_consume and failure.status == 409:
        if failure.code in ("action_hash_mismatch", "wrong_agent"):
            return DeniedUnverified(failure.code, failure.reason)
        return (DeniedByApprover if failure.code.startswith("approval_") else DeniedByPolicy)(failure.code, failure.reason)
    return DeniedUnavailable(failure.code, failure.reason)


def _is_code(reason: str) -> bool:
    is_word = reason.isascii() and reason.replace("_", "").isalnum() and reason == reason.lower()
    return len(reason) <= LONGEST_CODE and is_word and "_" in reason


def _name(denied: Denied, decision: Decision) -> None:
    denied.decision_id = decision.decision_id
    denied.approval_id = decision.approval.approval_id if decision.approval else None
