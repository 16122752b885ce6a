"""The blocking client. One credential: an agent's token to act, or an API key to administer. Safe to share between threads.

Every call ends within `timeout_s`, its repetitions included. Nothing is repeated that could take effect twice.
"""

from __future__ import annotations

import logging
import time
from typing import Any, BinaryIO, TypeVar

from . import _endpoints, models
from ._action import FrozenAction
from ._endpoints import Json, OutcomeStatus
from ._exchange import Ended, Reply, Request, Send, Sleep, Steps, advanced, exchange
from ._flow import Clearance, Options, clear, report
from ._settings import DEFAULT_TIMEOUT_S, EXPORT_S, REPORT_S, Base, Settings, Token, authorize_request, given
from ._transport import Transport, ssl_context
from .errors import AegisError, RequestFailed

T = TypeVar("T")

log = logging.getLogger("aegisagent")


class Client(Base):
    """The API. Method names and fields are those of docs/openapi.yaml; every method may raise RequestFailed."""

    def __init__(
        self, base_url: str | None = None, token: Token | None = None, *, agent: str = "agent", environment: str | None = None,
        tenant: str | None = None, timeout_s: float = DEFAULT_TIMEOUT_S, ca_file: str | None = None, allow_plain_http: bool = False,
    ) -> None:  # fmt: skip
        """Where nothing is given: AEGISAGENT_URL (http://127.0.0.1:8484), and AEGISAGENT_TOKEN or AEGISAGENT_TOKEN_FILE.

        `agent` and `environment` are labels; the agent is the token's.
        """
        self._settings = Settings(base_url, token, agent, environment, tenant, timeout_s, allow_plain_http)
        self._transport = Transport(self._settings.base_url, tenant, ssl_context(ca_file))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all connections."""
        self._transport.close()

    # Acting

    def authorize(self, call: models.ToolCall, *, request_id: str | None = None, **fields: Any) -> models.Decision:
        """A decision, by itself: it gives no leave to run anything, that is what `protect` is for. `fields`: more of the request."""
        return self._call(authorize_request(self._settings, call, request_id, fields))

    def approval(self, approval_id: str) -> models.Approval:
        """One approval; 404 `approval_not_found` means that it is pending."""
        return self._call(_endpoints.approval(approval_id))

    def approvals(self, status: str | None = None, *, limit: int = 50, offset: int = 0) -> list[models.Approval]:
        """The tenant's approvals, newest first."""
        return self._call(_endpoints.approvals(status, limit, offset))

    def consume(self, approval_id: str, action_hash: str) -> models.Consumed:
        """Consumes an approval. A lost answer is asked for again; where this fails otherwise than with a refusal, it may have been consumed
        all the same."""
        return self._call(_endpoints.consume(approval_id, action_hash))

    def outcome(self, decision_id: str, status: OutcomeStatus, *, executed_hash: str | None = None, output: Any = None) -> models.Outcome:
        """Reports what came of a decision."""
        return self._call(_endpoints.outcome(decision_id, status, executed_hash, output))

    # Deciding

    def approve(self, approval_id: str, *, action_hash: str | None = None, reason: str | None = None) -> models.Approval:
        """Approves. `action_hash`: that of the action you were shown; required once it was edited."""
        return self._call(_endpoints.decide(approval_id, "approve", given(action_hash=action_hash, reason=reason)))

    def reject(self, approval_id: str, *, reason: str | None = None) -> models.Approval:
        """Rejects."""
        return self._call(_endpoints.decide(approval_id, "reject", given(reason=reason)))

    def edit(self, approval_id: str, call: models.ToolCall, *, reason: str | None = None) -> models.Approval:
        """Puts another action in the place of the one that was asked for; it must be approved again."""
        return self._call(_endpoints.decide(approval_id, "edit", {"tool_call": call.as_json()} | given(reason=reason)))

    # Registering

    def register(
        self, agent_key: str, name: str, *, environment: str, risk_tier: str, owner_team: str | None = None,
        trust_ceiling: str | None = None,
    ) -> models.Registration:  # fmt: skip
        """Registers an agent, or gets a fresh token for a known one."""
        fields = {"agent_key": agent_key, "name": name, "environment": environment, "risk_tier": risk_tier}
        return self._call(_endpoints.register(fields | given(owner_team=owner_team, trust_ceiling=trust_ceiling)))

    def put_tool(self, tool: Json) -> Json:
        """Registers a tool with its actions; it replaces an earlier one."""
        return self._call(_endpoints.put_tool(tool))

    # Containing

    def freeze_agent(self, agent_id: str, reason: str, *, ttl_s: int | None = None) -> models.Containment:
        """Denies the agent everything, until it is unfrozen or `ttl_s` has passed."""
        return self._call(_endpoints.contain("agents", agent_id, "freeze", given(reason=reason, ttl_s=ttl_s)))

    def unfreeze_agent(self, agent_id: str, reason: str) -> models.Containment:
        """Ends the agent's freezes."""
        return self._call(_endpoints.contain("agents", agent_id, "unfreeze", {"reason": reason}))

    def revoke_agent(self, agent_id: str, reason: str) -> models.Containment:
        """Denies the agent everything, for good."""
        return self._call(_endpoints.contain("agents", agent_id, "revoke", {"reason": reason}))

    def quarantine_mcp_server(self, key: str, reason: str, *, ttl_s: int | None = None) -> models.Containment:
        """Denies every call to an MCP server's tools."""
        return self._call(_endpoints.contain("mcp_servers", key, "quarantine", given(reason=reason, ttl_s=ttl_s)))

    def restore_mcp_server(self, key: str, reason: str) -> models.Containment:
        """Ends the server's quarantines."""
        return self._call(_endpoints.contain("mcp_servers", key, "restore", {"reason": reason}))

    def containment(self, *, limit: int = 50, offset: int = 0) -> list[models.Containment]:
        """What is held or revoked now."""
        return self._call(_endpoints.containment(limit, offset))

    # Looking

    def receipts(self, *, agent_id: str | None = None, run_id: str | None = None, limit: int = 50, offset: int = 0) -> list[Json]:
        """Receipt bodies, newest first."""
        return self._call(_endpoints.receipts(agent_id, run_id, limit, offset))

    def receipt(self, receipt_id: str) -> Json:
        """An event with its receipt and proof: what `receipts.verify_event` takes."""
        return self._call(_endpoints.receipt(receipt_id))

    def verify_receipt(self, receipt_id: str) -> models.ReceiptVerdict:
        """The server's own verdict on a receipt."""
        return self._call(_endpoints.verify_receipt(receipt_id))

    def export_receipts(self, out: BinaryIO) -> None:
        """Writes the tenant's receipts as JSON lines: what `receipts.verify_export` reads. Of a failed export, what came is written."""
        self._run(exchange(_endpoints.export(), self._settings.secret, EXPORT_S), out)

    def decisions(self, *, agent_id: str | None = None, run_id: str | None = None, limit: int = 50, offset: int = 0) -> list[Json]:
        """Decisions, newest first, as events."""
        return self._call(_endpoints.objects("decisions", agent_id=agent_id, run_id=run_id, limit=limit, offset=offset))

    def decision(self, decision_id: str) -> Json:
        """One decision."""
        return self._call(_endpoints.one("decisions", decision_id))

    def events(
        self, *, kind: str | None = None, agent_id: str | None = None, run_id: str | None = None, limit: int = 50, offset: int = 0
    ) -> list[Json]:
        """Events of every kind, newest first."""
        return self._call(_endpoints.objects("audit", "events", kind=kind, agent_id=agent_id, run_id=run_id, limit=limit, offset=offset))

    def alerts(self, *, limit: int = 50, offset: int = 0) -> list[Json]:
        """Alerts, newest first."""
        return self._call(_endpoints.objects("alerts", limit=limit, offset=offset))

    def alert(self, alert_id: str) -> Json:
        """One alert."""
        return self._call(_endpoints.one("alerts", alert_id))

    def incidents(self, *, limit: int = 50, offset: int = 0) -> list[Json]:
        """Incidents, newest first."""
        return self._call(_endpoints.objects("incidents", limit=limit, offset=offset))

    def incident(self, incident_id: str) -> Json:
        """One incident."""
        return self._call(_endpoints.one("incidents", incident_id))

    def close_incident(self, incident_id: str, *, reason: str | None = None) -> Json:
        """Closes an incident."""
        return self._call(_endpoints.close_incident(incident_id, given(reason=reason)))

    def summary(self) -> Json:
        """Counts of incidents, alerts, pending approvals and contained targets."""
        return self._call(_endpoints.summary())

    def ready(self) -> Json:
        """`{ready, checks}`, also of a server that is not."""
        return self._call(_endpoints.ready())

    # Protected functions

    def clear(self, action: FrozenAction, options: Options) -> Clearance:
        """Leave to run a frozen action, or Denied."""
        return self._run(self.clearing(action, options))

    def clearing(self, action: FrozenAction, options: Options) -> Steps[Clearance]:
        """The same, for whoever does what it yields."""
        return clear(self._settings.caller, action, options)

    def send(self, step: Send) -> Reply:
        """One attempt of one of its requests."""
        return self._transport.send(step)

    def report(self, clearance: Clearance, status: OutcomeStatus, output: Any) -> None:
        """Reports an outcome. The run cannot be undone, so a failure is logged and not raised."""
        try:
            self._run(report(self._settings.caller, clearance, status, output, REPORT_S))
        except AegisError as error:
            log.warning("the outcome of decision %s is not reported: %s", clearance.decision_id, error)

    def _call(self, request: Request[T]) -> T:
        return self._run(exchange(request, self._settings.secret, self._settings.caller.timeout_s))

    def _run(self, steps: Steps[T], out: BinaryIO | None = None) -> T:
        answer, failure = None, None
        while True:
            step = advanced(steps, answer, failure)
            if isinstance(step, Ended):
                return step.value
            answer, failure = None, None
            if isinstance(step, Sleep):
                time.sleep(step.seconds)
                continue
            try:
                answer = self._transport.send(step, out)
            except RequestFailed as error:
                failure = error
