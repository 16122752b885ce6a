//! What came of an allowed action, as the deciding agent reports it.
//! Promises that an output is represented by its commitment alone, that an execution which was not authorized shows, and that a report which is sent
//! again under its `request_id` is one receipt: what the first one was answered is read back from it.

use std::collections::BTreeSet;

use crate::reply::Json;
use aegis_keys::AgentClaims;
use aegis_ledger::Draft;
use aegis_model::{ApprovalStatus, Decision, EventId, EventKind, Phase, ReceiptBody, SecurityEvent};
use aegis_store::HistoryRow;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::auth::Caller;
use crate::consume::is_hash;
use crate::control::Control;
use crate::evidence::read_wire;
use crate::fleet::edge_of;
use crate::input::{MAX_ID, check_optional, parse};
use crate::problem::Problem;
use crate::record::derived_event_id;
use crate::routes::Call;

/// Most edges and lanes that an event names of those that have sealed a decision under one id.
const MOST_NAMED: usize = 8;

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
    /// Made by the caller for this one report.
    #[serde(default)]
    request_id: Option<String>,
}

impl OutcomeBody {
    /// The output as what a commitment is made over.
    fn canonical_output(&self) -> Result<Option<Vec<u8>>, Problem> {
        let canonical = self.output.as_ref().map(aegis_canon::canonicalize_value).transpose();
        canonical.map_err(|error| Problem::bad_request(error.code(), error.to_string()))
    }
}

/// What a report is answered.
#[derive(Debug)]
struct Answer {
    outcome_id: EventId,
    violation: Option<String>,
    receipt_hash: String,
}

pub(crate) async fn report(control: &Control, call: &Call) -> Result<Response, Problem> {
    let body: OutcomeBody = parse(&call.body, control.config.max_body_bytes)?;
    if body.executed_hash.as_deref().is_some_and(|hash| !is_hash(hash)) {
        return Err(Problem::bad_request("invalid_field", "`executed_hash` must be 64 lower-case hex digits"));
    }
    check_optional("request_id", body.request_id.as_deref(), MAX_ID)?;
    let Caller::Agent(claims) = &call.caller else {
        return Err(Problem::forbidden("wrong_role", "only the deciding agent reports an outcome"));
    };
    control.refuse_revoked(&call.caller).await?;
    let decision_id: EventId =
        call.param("id").parse().map_err(|_| Problem::bad_request("invalid_path", "a decision id is a UUID"))?;
    let decided = decision(control, call, claims, decision_id).await?;
    let answer = match body.request_id.as_deref() {
        Some(request_id) => {
            let id = outcome_id(claims, decision_id, request_id);
            if let Some(earlier) = answered(control, call, &decided, &body, id).await? {
                earlier
            } else if let Some(first) = record(control, claims, &decided, &body, Some(id)).await? {
                first
            } else {
                // The same report came twice at once, and the other was first.
                answered(control, call, &decided, &body, id)
                    .await?
                    .ok_or_else(|| Problem::internal("an outcome's receipt is gone"))?
            }
        }
        None => {
            let made = record(control, claims, &decided, &body, None).await?;
            made.ok_or_else(|| Problem::internal("a new outcome had a receipt already"))?
        }
    };
    if let Some(code) = &answer.violation {
        record_violation(control, call, &decided, &body, &answer, code).await?;
    }
    let reply = json!({
        "decision_id": decision_id,
        "outcome_id": answer.outcome_id,
        "status": body.status.as_str(),
        "violation": answer.violation,
        "receipt_hash": answer.receipt_hash,
    });
    Ok((StatusCode::CREATED, Json(reply)).into_response())
}

/// The id of the one outcome that this credential reports of a decision under a request id.
fn outcome_id(claims: &AgentClaims, decision_id: EventId, request_id: &str) -> EventId {
    // A request id has no control characters.
    let about = format!("{}\0{}\0{decision_id}\0{request_id}", claims.agent_id, claims.token_id);
    derived_event_id(EventKind::ToolOutcome, &claims.tenant_id, &about)
}

/// Seals the outcome; None if `id` has its receipt already.
async fn record(
    control: &Control,
    claims: &AgentClaims,
    decided: &SecurityEvent,
    body: &OutcomeBody,
    id: Option<EventId>,
) -> Result<Option<Answer>, Problem> {
    let violation = violation(control, decided, body).await?;
    let mut draft = outcome_draft(control, decided, body)?;
    draft.event.token_id = Some(claims.token_id.clone());
    if let Some(id) = id {
        draft.event.event_id = id;
    }
    // What the answer says stands in the receipt: it is answered from there when it is asked for again.
    draft.detail = violation.map(|code| json!({"violation": code}));
    let sealed = match id {
        Some(_) => control.record_once(draft).await?,
        None => Some(control.record(draft).await?),
    };
    Ok(sealed.map(|sealed| Answer {
        outcome_id: sealed.event_id,
        violation: violation.map(str::to_owned),
        receipt_hash: sealed.receipt_hash,
    }))
}

/// What this very report was answered before; None if it is new. 409 where another one was made under its request id.
async fn answered(
    control: &Control,
    call: &Call,
    decided: &SecurityEvent,
    body: &OutcomeBody,
    id: EventId,
) -> Result<Option<Answer>, Problem> {
    let Some((wire, receipt_hash)) = control.receipt_of(call.tenant(), id).await? else { return Ok(None) };
    let mut event = read_wire(&wire)?;
    let receipt: ReceiptBody = serde_json::from_value(event["receipt"].take()).map_err(Problem::internal)?;
    if !is_same(control, call, body, &event, &receipt).await? {
        let mut draft = outcome_draft(control, decided, body)?;
        draft.event.kind = EventKind::ReplayAttempt;
        draft.event.reason = Some("idempotency_payload_mismatch".to_owned());
        draft.phase = Phase::Attempt;
        draft.output = None;
        draft.detail = Some(
            json!({"attempt": "outcome", "code": "idempotency_payload_mismatch", "by": call.caller.as_detail(), "outcome": id}),
        );
        control.record(draft).await?;
        let message = "this request_id reported another outcome";
        return Err(Problem::conflict("idempotency_payload_mismatch", message));
    }
    let violation = receipt.detail.as_ref().and_then(|detail| detail["violation"].as_str()).map(str::to_owned);
    Ok(Some(Answer { outcome_id: id, violation, receipt_hash }))
}

/// True if the sealed outcome says what this report says. Of the output the commitment alone is left, and it is opened.
async fn is_same(
    control: &Control,
    call: &Call,
    body: &OutcomeBody,
    event: &Value,
    receipt: &ReceiptBody,
) -> Result<bool, Problem> {
    if event["status"].as_str() != Some(body.status.as_str()) || receipt.executed_hash != body.executed_hash {
        return Ok(false);
    }
    match (&receipt.output_hash, body.canonical_output()?) {
        (None, None) => Ok(true),
        (Some(commitment), Some(output)) => {
            let opens = control.ledger.opens_commitment(call.tenant(), commitment, &output).await.map_err(Problem::internal)?;
            Ok(opens == Some(true))
        }
        (None, Some(_)) | (Some(_), None) => Ok(false),
    }
}

/// The attempt that a violation is; one for an outcome, however often that is reported.
async fn record_violation(
    control: &Control,
    call: &Call,
    decided: &SecurityEvent,
    body: &OutcomeBody,
    answer: &Answer,
    code: &str,
) -> Result<(), Problem> {
    let mut tamper = outcome_draft(control, decided, body)?;
    tamper.event.kind = EventKind::TamperAttempt;
    tamper.event.event_id = derived_event_id(EventKind::TamperAttempt, call.tenant(), &answer.outcome_id.to_string());
    tamper.event.reason = Some(code.to_owned());
    tamper.phase = Phase::Attempt;
    tamper.output = None;
    tamper.detail =
        Some(json!({"attempt": "outcome", "code": code, "by": call.caller.as_detail(), "outcome": answer.outcome_id}));
    if control.record_once(tamper).await?.is_some() {
        control.metrics.hash_mismatches.inc();
    }
    Ok(())
}

/// The decision this is about, which its agent was answered; waits a moment for one that was answered just now.
async fn decision(control: &Control, call: &Call, claims: &AgentClaims, id: EventId) -> Result<SecurityEvent, Problem> {
    let is_decision = |row: &HistoryRow| row.kind == EventKind::AuthorizeDecision;
    let mut rows = control.history_soon(call.tenant(), id, None, is_decision).await?;
    rows.retain(is_decision);
    if rows.is_empty() {
        return Err(Problem::not_found("decision"));
    }
    // What proves nothing stands for nothing beside what does.
    if rows.iter().any(HistoryRow::is_proved) {
        rows.retain(HistoryRow::is_proved);
    }
    rows.retain(|row| row.agent_id.as_deref() == Some(claims.agent_id.as_str()));
    match rows.as_slice() {
        [row] => serde_json::from_value(read_wire(&control.wire(row).await?)?).map_err(Problem::internal),
        [] => Err(Problem::forbidden("not_deciding_agent", "only the agent that was answered reports this outcome")),
        // Two producers sealed a decision under this id, and one of them is not honest. Nobody is held against the wrong one.
        _ => {
            tracing::error!(tenant = %claims.tenant_id, decision_id = %id, "several decisions have this id; an edge of the tenant seals under others' ids");
            control.record_once(ambiguous_draft(control, call, id, &rows)).await?;
            Err(Problem::conflict("ambiguous_decision", "several decisions have this id; look at them and tell an operator"))
        }
    }
}

/// That a decision's id has several: one event for an id, however often its outcome is reported. It is told of no agent: the one that reports is not
/// what is wrong.
fn ambiguous_draft(control: &Control, call: &Call, id: EventId, rows: &[HistoryRow]) -> Draft {
    let code = "ambiguous_decision";
    // What proves nothing names its lane as it likes, and who reads an alert is to read nothing of its sender's.
    let is_a_name = |lane: &&str| lane.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let all = || rows.iter().filter_map(|row| row.lane.as_deref()).filter(is_a_name);
    let lanes: Vec<&str> = BTreeSet::from_iter(all()).into_iter().take(MOST_NAMED).collect();
    let edges: Vec<&str> = BTreeSet::from_iter(all().map(edge_of)).into_iter().take(MOST_NAMED).collect();
    let mut event = control.event(call.tenant(), EventKind::TamperAttempt);
    event.event_id = derived_event_id(EventKind::TamperAttempt, call.tenant(), &format!("{code}\0{id}"));
    event.ref_event_id = Some(id);
    event.reason = Some(code.to_owned());
    event.resource = Some(if edges.is_empty() { "unnamed".to_owned() } else { edges.join(", ") });
    event.attributes = Some(json!({"decisions": rows.len(), "lanes": lanes}).to_string());
    let mut draft = Draft::new(event, Phase::Attempt);
    draft.detail = Some(json!({"attempt": "outcome", "code": code, "by": call.caller.as_detail(), "lanes": lanes}));
    draft
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
    draft.output = body.canonical_output()?;
    Ok(draft)
}
