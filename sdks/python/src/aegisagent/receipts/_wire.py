"""One receipt alone: its hash, the digest of its event, the facts that both name, and its proof. No link: that needs the lane."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import rfc8785

from .._rfc3339 import microseconds
from ._failure import VerifyError
from ._keys import Roots
from ._proof import Commits, hash_from_hex

SCHEMA = "aegis-receipt-1"
# What is added to an event after sealing.
_ADDED = frozenset({"receipt", "proof", "receipt_hash", "verified", "bus_ts", "late"})
# The facts that stand both in the event and in the body: consumers read the event, evidence is the body.
_SHARED = (
    "action", "action_hash", "agent_id", "approval_id", "approver", "decision", "event_id", "lane", "matched_policies",
    "mutates_state", "policy_digest", "ref_event_id", "resource", "run_id", "seq", "source_trust", "tenant_id", "tool",
    "trace_id", "ts", "user_id",
)  # fmt: skip


@dataclass(frozen=True)
class VerifiedReceipt:
    """A receipt whose own parts agree, as far as they were there to check. `ts` in microseconds since the epoch."""

    tenant_id: str
    event_id: str
    lane: str
    seq: int
    phase: str
    ts: int
    receipt_hash: str
    prev_receipt_hash: str
    key_id: str
    signed: bool


def verify_event(event: Any, roots: Roots | None = None) -> VerifiedReceipt:
    """Verifies a published event, as `GET /v1/receipts/{id}` or a line of an export has it; VerifyError if it does not hold.

    Read the text with `canon.parse_strict`: a lenient reader can be shown another event than the one that was sealed.
    """
    if not isinstance(event, dict):
        raise VerifyError.of("malformed", "it is not a JSON object")
    return check_event(event, Commits(roots), must_be_signed=roots is not None)


def check_event(event: dict[str, Any], commits: Commits, *, must_be_signed: bool) -> VerifiedReceipt:
    """The same with a memory of commits."""
    body = event.get("receipt")
    if not isinstance(body, dict):
        raise VerifyError(VerifyError.of("missing_receipt", "it has no receipt").failure.about(event))
    try:
        receipt = _read_body(body, {"receipt_hash"}, signed=must_be_signed)
        _check_columns(event, body, receipt)
        proof = event.get("proof")
        if not isinstance(proof, dict):
            raise VerifyError.of("missing_proof", "it has no proof")
        commits.check(proof, bytes.fromhex(receipt.receipt_hash), receipt.key_id)
    except VerifyError as error:
        raise VerifyError(error.failure.about(body)) from None
    return receipt


def check_bare(line: dict[str, Any], commits: Commits, *, must_be_signed: bool) -> VerifiedReceipt:
    """Verifies a bare body with its `receipt_hash`, and its `proof` if it has one. There is no event to digest."""
    try:
        receipt = _read_body(line, {"receipt_hash", "proof"}, signed=must_be_signed)
        if "proof" not in line:
            if must_be_signed:
                raise VerifyError.of("missing_proof", "it has no proof, and a key is pinned")
        elif isinstance(line["proof"], dict):
            commits.check(line["proof"], bytes.fromhex(receipt.receipt_hash), receipt.key_id)
        else:
            raise VerifyError.of("malformed", "its proof is not an object")
    except VerifyError as error:
        raise VerifyError(error.failure.about(line)) from None
    return receipt


def hash_of(members: dict[str, Any], beside: Collection[str]) -> bytes:
    """SHA-256 of the canonical form of `members` less those named in `beside`."""
    try:
        return sha256(rfc8785.dumps({key: value for key, value in members.items() if key not in beside})).digest()
    except (rfc8785.CanonicalizationError, RecursionError):
        raise VerifyError.of("malformed", "it has no canonical form") from None


def _check_columns(event: dict[str, Any], body: dict[str, Any], receipt: VerifiedReceipt) -> None:
    if event.get("receipt_hash") != receipt.receipt_hash:
        raise VerifyError.of("hash_mismatch", "the event's receipt_hash is not its receipt's")
    digest_form = {key: value for key, value in event.items() if value is not None}
    if hash_of(digest_form, _ADDED) != hash_from_hex(body.get("event_digest")):
        raise VerifyError.of("digest_mismatch", "event_digest is not the digest of the event's columns")
    for key in _SHARED:
        if not _same(event.get(key), body.get(key)):
            raise VerifyError.of("column_mismatch", f"event and receipt name different values of {key}")


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON: to Python, 1 is True and 1.0 as well."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    return bool(one == other)


def _read_body(body: dict[str, Any], beside: set[str], *, signed: bool) -> VerifiedReceipt:
    if _text(body, "schema") != SCHEMA:
        raise VerifyError.of("unknown_schema", f"its schema is not {SCHEMA}")
    receipt_hash = hash_of(body, beside)
    if hash_from_hex(_text(body, "receipt_hash")) != receipt_hash:
        raise VerifyError.of("hash_mismatch", "receipt_hash is not the hash of the body")
    seq = body.get("seq")
    if type(seq) is not int or seq < 1:
        raise VerifyError.of("malformed", "its seq is not a number from 1")
    ts = microseconds(_text(body, "ts"))
    if ts is None:
        raise VerifyError.of("malformed", "its ts is not an RFC 3339 time")
    tenant_id, lane = _text(body, "tenant_id"), _text(body, "lane")
    tenant_of_lane, dot, _rest = lane.partition(".")
    if not dot or tenant_of_lane != tenant_id:
        raise VerifyError.of("column_mismatch", "its lane belongs to another tenant")
    _text(body, "event_digest")
    return VerifiedReceipt(
        tenant_id=tenant_id,
        event_id=_text(body, "event_id"),
        lane=lane,
        seq=seq,
        phase=_text(body, "phase"),
        ts=ts,
        receipt_hash=receipt_hash.hex(),
        prev_receipt_hash=_text(body, "prev_receipt_hash"),
        key_id=_text(body, "key_id"),
        signed=signed,
    )


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str):
        raise VerifyError.of("malformed", f"its {key} is not a string")
    return value
