//! What came of an allowed action, as the deciding agent reports it.
//! Promises that an output is represented by its commitment alone, and that an execution which was not authorized shows.

use crate::reply::Json;
use aegis_ledger::Draft;
use aegis_model::{ApprovalStatus, Decision, EventId, EventKind, Phase, SecurityEvent};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::auth::Caller;
use crate::consume::is_hash;
use crate::control::Control;
use crate::evidence::read_wire;
use crate::input::parse;
use crate::problem::Problem;
use crate::routes::Call;

/// How an execution ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OutcomeStatus {
    Ok,
    Error,
    /// The agent cannot tell whether it took effect.
    Ambiguous,
}

impl OutcomeStatus {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Error => "error",
            Self::Ambiguous => "ambiguous",
        }
    }
}

/// `POST /v1/decisions/{id}/outcome`.
#[derive(Debug, Deserialize)]
struct OutcomeBody {
    status: OutcomeStatus,
    #[serde(default)]
    executed_hash: Option<String>,
    #[serde(default)]
    output: Option<Value>,
}

pub(crate) async fn report(control: &Control, call: &Call) -> Result<Response, Problem> {
    let body: OutcomeBody = parse(&call.body, control.config.max_body_bytes)?;
    if body.executed_hash.as_deref().is_some_and(|hash| !is_hash(hash)) {
        return Err(Problem::bad_request("invalid_field", "`executed_hash` must be 64 lower-case hex digits"));
    }
    let Caller::Agent(claims) = &call.caller else {
        return Err(Problem::forbidden("wrong_role", "only the deciding agent reports an outcome"));
    };
    control.refuse_revoked(&call.caller).await?;
    let decision_id: EventId =
        call.param("id").parse().map_err(|_| Problem::bad_request("invalid_path", "a decision id is a UUID"))?;
    let decided = decision(control, call, decision_id).await?;
    if decided.agent_id.as_deref() != Some(claims.agent_id.as_str()) {
        return Err(Problem::forbidden("not_deciding_agent", "only the agent that was answered reports this outcome"));
    }
    let violation = violation(control, &decided, &body).await?;
    let mut draft = outcome_draft(control, &decided, &body)?;
    draft.event.token_id = Some(claims.token_id.clone());
    let sealed = control.record(draft).await?;
    if let Some(code) = violation {
        let mut tamper = outcome_draft(control, &decided, &body)?;
        tamper.event = SecurityEvent { kind: EventKind::TamperAttempt, ..tamper.event };
        tamper.phase = Phase::Attempt;
        tamper.output = None;
        tamper.event.reason = Some(code.to_owned());
        tamper.detail =
            Some(json!({"attempt": "outcome", "code": code, "by": call.caller.as_detail(), "outcome": sealed.event_id}));
        control.metrics.hash_mismatches.inc();
        control.record(tamper).await?;
    }
    let reply = json!({
        "decision_id": decision_id,
        "outcome_id": sealed.event_id,
        "status": body.status.as_str(),
        "violation": violation,
        "receipt_hash": sealed.receipt_hash,
    });
    Ok((StatusCode::CREATED, Json(reply)).into_response())
}

/// The decision this is about; waits a moment for one that was answered just now.
async fn decision(control: &Control, call: &Call, id: EventId) -> Result<SecurityEvent, Problem> {
    let row = control.history_soon(call.tenant(), id).await?.ok_or_else(|| Problem::not_found("decision"))?;
    if row.kind != EventKind::AuthorizeDecision {
        return Err(Problem::not_found("decision"));
    }
    serde_json::from_value(read_wire(&control.wire(&row).await?)?).map_err(Problem::internal)
}

/// What is wrong with this execution, if anything: another action than the decided one, or one that was never authorized.
async fn violation(control: &Control, decided: &SecurityEvent, body: &OutcomeBody) -> Result<Option<&'static str>, Problem> {
    let executed = body.executed_hash.is_some() || body.status == OutcomeStatus::Ok;
    let mut expected = decided.action_hash.clone();
    match decided.decision {
        Some(Decision::Allow) => {}
        Some(Decision::RequireApproval) => {
            let row = match &decided.approval_id {
                Some(id) => control.store.approval(&decided.tenant_id, id).await?,
                None => None,
            };
            let consumed = row.as_ref().is_some_and(|row| row.status == ApprovalStatus::Consumed);
            if executed && !consumed {
                return Ok(Some("executed_without_approval"));
            }
            expected = row.map(|row| row.current_hash).or(expected);
        }
        Some(Decision::Deny) | None if executed => return Ok(Some("executed_despite_deny")),
        Some(Decision::Deny) | None => {}
    }
    let differs = body.executed_hash.is_some() && body.executed_hash != expected;
    Ok(differs.then_some("executed_hash_mismatch"))
}

/// An event with the columns of the decision.
fn outcome_draft(control: &Control, decided: &SecurityEvent, body: &OutcomeBody) -> Result<Draft, Problem> {
    let mut event = control.event(&decided.tenant_id, EventKind::ToolOutcome);
    event.ref_event_id = Some(decided.event_id);
    event.agent_id = decided.agent_id.clone();
    event.user_id = decided.user_id.clone();
    event.run_id = decided.run_id.clone();
    event.trace_id = decided.trace_id.clone();
    event.environment = decided.environment.clone();
    event.tool = decided.tool.clone();
    event.action = decided.action.clone();
    event.resource = decided.resource.clone();
    event.target = decided.target.clone();
    event.destination = decided.destination;
    event.data_access = decided.data_access;
    event.mutates_state = decided.mutates_state;
    event.contains_sensitive_data = decided.contains_sensitive_data;
    event.source_trust = decided.source_trust;
    event.root_trust = decided.root_trust;
    event.decision = decided.decision;
    event.risk_level = decided.risk_level;
    event.policy_digest = decided.policy_digest.clone();
    event.action_hash = decided.action_hash.clone();
    event.approval_id = decided.approval_id.clone();
    event.status = Some(body.status.as_str().to_owned());
    let mut draft = Draft::new(event, Phase::Outcome);
    draft.executed_hash = body.executed_hash.clone();
    if let Some(output) = &body.output {
        let canonical = aegis_canon::canonicalize_value(output);
        draft.output = Some(canonical.map_err(|error| Problem::bad_request(error.code(), error.to_string()))?);
    }
    Ok(draft)
}
