"""What the server answers, as docs/openapi.yaml has it. Read strictly; what may hold a secret or an argument is not in a repr.

Words (decisions, statuses) stay texts here: whoever acts on one compares it with those it knows, and denies for any other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from . import canon
from ._fields import Fields
from .errors import BadReply, CanonError, ConfigError
from .secret import Secret


@dataclass(frozen=True, slots=True)
class ToolCall:
    """An action: exactly what the action hash covers."""

    tool: str
    action: str
    resource: str | None
    mutates_state: bool
    parameters: dict[str, Any] = field(repr=False)

    def action_hash(self) -> str:
        """Its hash; CanonError where it has no canonical form."""
        return canon.action_hash(self.tool, self.action, self.resource, self.mutates_state, self.parameters)

    def as_json(self) -> dict[str, Any]:
        """As requests carry it."""
        five = ("tool", "action", "resource", "mutates_state", "parameters")
        return {name: getattr(self, name) for name in five}

    @classmethod
    def read(cls, f: Fields) -> ToolCall:
        """From a reply."""
        resource = None if f.is_absent("resource") else f.text("resource")
        return cls(f.text("tool"), f.text("action"), resource, f.flag("mutates_state"), f.object("parameters"))


@dataclass(frozen=True, slots=True)
class ReceiptRef:
    """The receipt of a decision. The hashes are null only for an allowed, low-risk, non-sensitive read, and for a dry run."""

    receipt_id: str
    receipt_hash: str | None
    prev_receipt_hash: str | None
    canon_version: str

    @classmethod
    def read(cls, f: Fields) -> ReceiptRef:
        """From a reply."""
        previous = f.maybe_text("prev_receipt_hash")
        return cls(f.id("receipt_id"), f.maybe_hash("receipt_hash"), previous, f.text("canon_version"))


@dataclass(frozen=True, slots=True)
class ApprovalRef:
    """The approval that a decision asks for. `expires_at` is RFC 3339; `expires_in` the seconds until then by the server's clock, None from
    a server that does not count them."""

    approval_id: str
    status: str
    approver_group: str
    expires_at: str
    expires_in: int | None
    action_hash: str

    @classmethod
    def read(cls, f: Fields) -> ApprovalRef:
        """From a reply."""
        group, expires_at, expires_in = f.text("approver_group"), f.text("expires_at"), f.maybe_seconds("expires_in")
        return cls(f.id("approval_id"), f.text("status"), group, expires_at, expires_in, f.hash("action_hash"))


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to an authorize call."""

    decision_id: str
    decision: str
    reason: str
    matched_policies: tuple[str, ...]
    risk_score: int
    risk_level: str
    root_trust_level: str
    trust_token: str = field(repr=False)
    action_hash: str
    dry_run: bool
    approval: ApprovalRef | None
    receipt: ReceiptRef

    @classmethod
    def read(cls, value: Any) -> Decision:
        """From a reply."""
        f = Fields(value, "the decision")
        return cls(
            decision_id=f.id("decision_id"),
            decision=f.text("decision"),
            reason=f.text("reason"),
            matched_policies=f.texts("matched_policies"),
            risk_score=f.integer("risk_score"),
            risk_level=f.text("risk_level"),
            root_trust_level=f.text("root_trust_level"),
            trust_token=f.trust_token("trust_token"),
            action_hash=f.hash("action_hash"),
            dry_run=f.flag("dry_run"),
            approval=None if f.is_null("approval") else ApprovalRef.read(f.fields("approval")),
            receipt=ReceiptRef.read(f.fields("receipt")),
        )


@dataclass(frozen=True, slots=True)
class Approval:
    """An approval as people and agents see it. `action_hash` is what a consume must present now."""

    approval_id: str
    status: str
    agent_id: str
    decision_id: str
    action_hash: str
    original_action_hash: str
    is_edited: bool
    tool_call: ToolCall
    edited_tool_call: ToolCall | None
    approver_group: str
    approvals_needed: int
    approved_by: tuple[str, ...]
    source_trust: str
    reason: str
    requested_at: str
    expires_at: str
    expires_in: int | None
    edited_by: str | None
    policy_digest: str
    risk_level: str
    matched_policies: tuple[str, ...]
    user_id: str | None

    @property
    def current(self) -> ToolCall:
        """The action that is up for approval: the edited one, if it was edited."""
        return self.edited_tool_call or self.tool_call

    @classmethod
    def read(cls, value: Any) -> Approval:
        """From a reply. The hashes must be those of the actions that stand beside them."""
        f = Fields(value, "the approval")
        approval = cls(
            approval_id=f.id("approval_id"),
            status=f.text("status"),
            agent_id=f.text("agent_id"),
            decision_id=f.id("decision_id"),
            action_hash=f.hash("action_hash"),
            original_action_hash=f.hash("original_action_hash"),
            is_edited=f.flag("is_edited"),
            tool_call=ToolCall.read(f.fields("tool_call")),
            edited_tool_call=None if f.is_null("edited_tool_call") else ToolCall.read(f.fields("edited_tool_call")),
            approver_group=f.text("approver_group"),
            approvals_needed=f.integer("approvals_needed"),
            approved_by=f.texts("approved_by"),
            source_trust=f.text("source_trust"),
            reason=f.text("reason"),
            requested_at=f.text("requested_at"),
            expires_at=f.text("expires_at"),
            expires_in=f.maybe_seconds("expires_in"),
            edited_by=f.maybe_text("edited_by"),
            policy_digest=f.hash("policy_digest"),
            risk_level=f.text("risk_level"),
            matched_policies=f.texts("matched_policies"),
            user_id=f.maybe_text("user_id"),
        )
        approval._check()
        return approval

    def _check(self) -> None:
        try:
            original, current = self.tool_call.action_hash(), self.current.action_hash()
        except CanonError as error:
            raise BadReply(f"an action of the approval has no canonical form: {error.reason}") from None
        if self.is_edited != (self.edited_tool_call is not None):
            raise BadReply("`is_edited` of the approval contradicts `edited_tool_call`")
        if (original, current) != (self.original_action_hash, self.action_hash):
            raise BadReply("a hash of the approval is not that of the action beside it")


@dataclass(frozen=True, slots=True)
class Consumed:
    """The answer to a consume that won."""

    status: str
    approval_id: str
    action_hash: str

    @classmethod
    def read(cls, value: Any) -> Consumed:
        """From a reply."""
        f = Fields(value, "the consume")
        return cls(f.text("status"), f.id("approval_id"), f.hash("action_hash"))


@dataclass(frozen=True, slots=True)
class Outcome:
    """The receipt of an outcome. `violation` says what was wrong with the execution, if anything."""

    decision_id: str
    outcome_id: str
    status: str
    violation: str | None
    receipt_hash: str

    @classmethod
    def read(cls, value: Any) -> Outcome:
        """From a reply."""
        f = Fields(value, "the outcome")
        ids = f.id("decision_id"), f.id("outcome_id")
        return cls(*ids, f.text("status"), f.maybe_text("violation"), f.hash("receipt_hash"))


@dataclass(frozen=True, slots=True)
class Registration:
    """A registered agent with a fresh token, valid until `expires_at` (RFC 3339)."""

    id: str
    agent_key: str
    agent_token: Secret
    expires_at: str

    @classmethod
    def read(cls, value: Any) -> Registration:
        """From a reply."""
        f = Fields(value, "the registration")
        try:
            token = Secret(f.text("agent_token"))
        except ConfigError:
            token = None
        if token is None:
            raise BadReply("`agent_token` of the registration is no credential")
        return cls(f.text("id"), f.text("agent_key"), token, f.text("expires_at"))


@dataclass(frozen=True, slots=True)
class Hold:
    """One reason why a target is held. `until` null: until it is released."""

    hold_id: str
    kind: str
    reason: str
    by: str
    since: str
    until: str | None

    @classmethod
    def read(cls, value: Any) -> Hold:
        """From a reply."""
        f = Fields(value, "a hold")
        who = f.id("hold_id"), f.text("kind"), f.text("reason"), f.text("by")
        return cls(*who, f.text("since"), f.maybe_text("until"))


@dataclass(frozen=True, slots=True)
class Edges:
    """How far the edges of their own that serve the tenant are. `silent`: those that lived and are not heard."""

    live: int
    enforcing: int
    silent: tuple[str, ...]
    since: str | None

    @classmethod
    def read(cls, f: Fields) -> Edges:
        """From a reply."""
        since = None if f.is_absent("since") else f.text("since")
        return cls(f.integer("live"), f.integer("enforcing"), f.texts("silent"), since)


@dataclass(frozen=True, slots=True)
class Containment:
    """What holds for an agent or an MCP server. `enforced`: every edge that lives has confirmed it; null in lists, as `edges` is."""

    tenant_id: str
    target_type: str
    target_id: str
    holds: tuple[Hold, ...]
    revoked: bool
    revision: int
    issued_at: str
    verdict: str
    enforced: bool | None
    edges: Edges | None

    @classmethod
    def read(cls, value: Any) -> Containment:
        """From a reply."""
        f = Fields(value, "the containment")
        return cls(
            tenant_id=f.text("tenant_id"),
            target_type=f.text("target_type"),
            target_id=f.text("target_id"),
            holds=tuple(Hold.read(hold) for hold in f.items("holds")),
            revoked=f.flag("revoked"),
            revision=f.integer("revision"),
            issued_at=f.text("issued_at"),
            verdict=f.text("verdict"),
            enforced=None if f.is_absent("enforced") else f.flag("enforced"),
            edges=None if f.is_absent("edges") else Edges.read(f.fields("edges")),
        )


@dataclass(frozen=True, slots=True)
class ReceiptVerdict:
    """What the server finds when it verifies one of its receipts now. `aegisagent.receipts` does it without the server."""

    receipt_id: str
    receipt_hash: str | None
    lane: str | None
    seq: int | None
    verdict: str
    checks: dict[str, Any]
    failure: str | None
    same_id: tuple[dict[str, Any], ...] | None
    """Other events that have its id, as they are; None where there is none."""

    @classmethod
    def read(cls, value: Any) -> ReceiptVerdict:
        """From a reply."""
        f = Fields(value, "the verdict")
        seq = None if f.is_null("seq") else f.integer("seq")
        place = f.maybe_hash("receipt_hash"), f.maybe_text("lane"), seq
        same_id = None if f.is_absent("same_id") else tuple(read_objects(f.items("same_id")))
        return cls(f.id("receipt_id"), *place, f.text("verdict"), f.object("checks"), f.maybe_text("failure"), same_id)


def read_objects(value: Any) -> list[dict[str, Any]]:
    """A list of objects as they are: receipts, events, decisions."""
    if type(value) is not list or any(type(item) is not dict for item in value):
        raise BadReply("the reply is not a list of objects")
    return value


def read_object(value: Any) -> dict[str, Any]:
    """One object as it is."""
    if type(value) is not dict:
        raise BadReply("the reply is not an object")
    return value
