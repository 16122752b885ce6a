"""The calls of the API as requests: paths, bodies, answers, and whether one may be sent twice."""

from __future__ import annotations

import uuid
from typing import Any, Literal

from . import models
from ._exchange import Request, Retry, json_body, path_of

Json = dict[str, Any]
OutcomeStatus = Literal["ok", "error", "ambiguous"]


def register(fields: Json) -> Request[models.Registration]:
    """Registers an agent, or takes a fresh token for a known one: the same again changes nothing but the token."""
    body = json_body(fields)
    return Request("POST", "/v1/agents/register", models.Registration.read, body, Retry.SAFE, (200, 201))


def authorize(body: bytes, *, is_idempotent: bool) -> Request[models.Decision]:
    """Asks for a decision. With a `request_id` the server evaluates a repeated call as the same one."""
    retry = Retry.SAFE if is_idempotent else Retry.UNCHANGED
    return Request("POST", "/v1/authorize", models.Decision.read, body, retry)


def approval(approval_id: str) -> Request[models.Approval]:
    """One approval; 404 `approval_not_found` while control has not seen it yet."""
    return Request("GET", path_of("v1", "approvals", approval_id), models.Approval.read)


def approvals(status: str | None, limit: int, offset: int) -> Request[list[models.Approval]]:
    """The tenant's approvals, newest first."""
    path = path_of("v1", "approvals", status=status, limit=limit, offset=offset)
    return Request("GET", path, lambda value: [models.Approval.read(item) for item in models.read_objects(value)])


def decide(approval_id: str, verb: Literal["approve", "reject", "edit"], body: Json) -> Request[models.Approval]:
    """What an approver says."""
    path = path_of("v1", "approvals", approval_id, verb)
    return Request("POST", path, models.Approval.read, json_body(body), Retry.UNCHANGED)


def fresh_request_id() -> str:
    """The key of one request and its repetitions. It is kept nowhere else: who has it may be told again what only one may be told."""
    return str(uuid.uuid4())


def consume(approval_id: str, action_hash: str) -> Request[models.Consumed]:
    """The one moment at which an approved action may run. Where the answer is lost, the same request is told it again, and no other is."""
    path = path_of("v1", "approvals", approval_id, "consume")
    body = json_body({"claimed_action_hash": action_hash, "request_id": fresh_request_id()})
    return Request("POST", path, models.Consumed.read, body, Retry.SAFE)


def outcome(decision_id: str, status: OutcomeStatus, executed_hash: str | None, output: Any) -> Request[models.Outcome]:
    """What came of a decision. Every report is a receipt; one that is sent again is the same."""
    body = {"status": status, "executed_hash": executed_hash, "request_id": fresh_request_id()} | (
        {} if output is None else {"output": output}
    )
    path = path_of("v1", "decisions", decision_id, "outcome")
    return Request("POST", path, models.Outcome.read, json_body(body), Retry.SAFE, (201,))


def contain(kind: Literal["agents", "mcp_servers"], target: str, verb: str, body: Json) -> Request[models.Containment]:
    """Freeze, unfreeze, revoke; quarantine, restore."""
    parts = ("agents",) if kind == "agents" else ("mcp", "servers")
    path = path_of("v1", *parts, target, verb)
    return Request("POST", path, models.Containment.read, json_body(body), Retry.UNCHANGED)


def containment(limit: int, offset: int) -> Request[list[models.Containment]]:
    """What is held or revoked now."""
    path = path_of("v1", "containment", limit=limit, offset=offset)
    return Request("GET", path, lambda value: [models.Containment.read(item) for item in models.read_objects(value)])


def receipts(agent_id: str | None, run_id: str | None, limit: int, offset: int) -> Request[list[Json]]:
    """Receipt bodies, newest first."""
    path = path_of("v1", "receipts", agent_id=agent_id, run_id=run_id, limit=limit, offset=offset)
    return Request("GET", path, models.read_objects)


def receipt(receipt_id: str) -> Request[Json]:
    """An event in its wire form, with receipt and proof: what `receipts.verify_event` takes."""
    return Request("GET", path_of("v1", "receipts", receipt_id), models.read_object)


def verify_receipt(receipt_id: str) -> Request[models.ReceiptVerdict]:
    """The server's own verdict on a receipt."""
    return Request("GET", path_of("v1", "receipts", receipt_id, "verify"), models.ReceiptVerdict.read)


def objects(*parts: str, **query: str | int | None) -> Request[list[Json]]:
    """A list of objects as they are, newest first."""
    return Request("GET", path_of("v1", *parts, **query), models.read_objects)


def one(*parts: str) -> Request[Json]:
    """One object as it is."""
    return Request("GET", path_of("v1", *parts), models.read_object)


def close_incident(incident_id: str, body: Json) -> Request[Json]:
    """Closes an incident."""
    path = path_of("v1", "incidents", incident_id, "close")
    return Request("POST", path, models.read_object, json_body(body), Retry.UNCHANGED)


def put_tool(fields: Json) -> Request[Json]:
    """Registers a tool; the same again changes nothing."""
    return Request("POST", "/v1/tools", models.read_object, json_body(fields), Retry.SAFE, (201,))


def summary() -> Request[Json]:
    """Counts of incidents, alerts, pending approvals and contained targets."""
    return Request("GET", "/v1/soc/summary", models.read_object)


def ready() -> Request[Json]:
    """Whether the server can do its work; 503 with the same form where it cannot."""
    return Request("GET", "/readyz", models.read_object, expect=(200, 503))


def export() -> Request[None]:
    """The tenant's receipts as JSON lines, which are written as they come."""
    return Request("GET", "/v1/receipts/export", lambda _nothing: None, is_written=True)
