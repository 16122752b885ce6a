//! Consuming an approval: the one moment at which an approved action may run.
//! Promises that of any number of concurrent consumes exactly one wins, that a wrong hash never burns an approval, and that every
//! refusal is an event and a receipt. Who lost the answer asks again under the same `request_id`, and is told what it was, unless something speaks
//! against the action by now.

use crate::reply::Json;
use aegis_model::{ApprovalStatus, Decision, EventId, EventKind, Phase, TenantId, ToolCall, Verdict};
use aegis_store::{ApprovalRow, ConsumeResult, same_person};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use crate::approvals::known;
use crate::auth::{Caller, person};
use crate::control::Control;
use crate::decide::describe_call;
use crate::input::{MAX_ID, check_optional, check_text, parse};
use crate::problem::Problem;
use crate::routes::Call;

/// `POST /v1/approvals/{id}/consume`.
#[derive(Debug, Deserialize)]
struct ConsumeBody {
    #[serde(alias = "action_hash")]
    claimed_action_hash: String,
    /// Made by the caller for this one consume.
    #[serde(default)]
    request_id: Option<String>,
}

/// Why a consume is refused, and what kind of attempt that was.
#[derive(Debug)]
struct Refusal {
    kind: EventKind,
    code: &'static str,
    message: String,
    /// Whose attempt it was, where it must not count against the agent.
    approver: Option<String>,
}

impl Refusal {
    fn new(kind: EventKind, code: &'static str, message: impl Into<String>) -> Self {
        Self { kind, code, message: message.into(), approver: None }
    }
}

pub(crate) async fn consume(control: &Control, call: &Call) -> Result<Response, Problem> {
    let body: ConsumeBody = parse(&call.body, control.config.max_body_bytes)?;
    check_text("claimed_action_hash", &body.claimed_action_hash, MAX_ID)?;
    check_optional("request_id", body.request_id.as_deref(), MAX_ID)?;
    let row = known(control, call.tenant(), call.param("id")).await?;
    let claimed = body.claimed_action_hash.as_str();
    let request = body.request_id.as_deref().map(|request_id| request_digest(&call.caller, request_id));
    if let Some(refusal) = objection(control, call, &row, claimed, request.as_deref()).await? {
        return Err(refuse(control, call, &row, claimed, refusal).await);
    }
    let mut draft = control.approval_draft(&row.frozen, EventKind::ApprovalConsumed, Phase::Consume);
    if let Some(edited) = &row.edited {
        describe_call(&mut draft, edited, &row.current_hash);
    }
    draft.event.status = Some(ApprovalStatus::Consumed.to_string());
    draft.event.approver = Some(row.approved_by.join(","));
    draft.detail = Some(json!({"by": call.caller.as_detail(), "approved_by": row.approved_by, "edited_by": row.edited_by}));
    let pending = control.prepare(draft)?;
    let id = call.param("id");
    let (store, now) = (&control.store, control.clock.now());
    let consumed = store.consume_approval(call.tenant(), id, claimed, request.as_deref(), now, pending.rows()).await?;
    if consumed == ConsumeResult::Consumed {
        control.seal(pending).await?;
        return Ok(answer(id, claimed));
    }
    drop(pending);
    let refusal = match consumed {
        ConsumeResult::Repeated(event) => return repeat(control, call.tenant(), event).await.map(|()| answer(id, claimed)),
        ConsumeResult::RequestMismatch => other_body(),
        ConsumeResult::AlreadyConsumed | ConsumeResult::Consumed => by_status(ApprovalStatus::Consumed),
        ConsumeResult::NotApproved(status) => by_status(status),
        ConsumeResult::Expired => by_status(ApprovalStatus::Expired),
        ConsumeResult::HashMismatch => wrong_hash(),
        // Contained since it was looked at: what holds it now says which way.
        ConsumeResult::Contained => contained(control, call, &row).await?.unwrap_or_else(|| by_verdict("agent_frozen")),
        ConsumeResult::ServerQuarantined => {
            Refusal::new(EventKind::ToolAttempt, "mcp_server_quarantined", "the MCP server is quarantined")
        }
        ConsumeResult::ManifestDrifted => {
            Refusal::new(EventKind::ToolAttempt, "mcp_manifest_drift", "the MCP server's manifest is not the registered one")
        }
        ConsumeResult::NotFound => return Err(Problem::not_found("approval")),
    };
    Err(refuse(control, call, &row, claimed, refusal).await)
}

fn answer(approval_id: &str, action_hash: &str) -> Response {
    Json(json!({"status": "consumed", "approval_id": approval_id, "action_hash": action_hash})).into_response()
}

/// Which request this is: a caller's, with this very credential. A request id of somebody else's, or of a token that was replaced since, is another.
fn request_digest(caller: &Caller, request_id: &str) -> String {
    let of = match caller {
        Caller::Agent(claims) => format!("agent\0{}\0{}", claims.agent_id, claims.token_id),
        Caller::Key(principal) => format!("key\0{}", principal.key_id),
    };
    // A request id has no control characters.
    aegis_canon::sha256_hex(format!("consume\0{of}\0{request_id}").as_bytes())
}

/// Lets an answer be given again once the consume has its receipt: before, there was no such answer.
async fn repeat(control: &Control, tenant: &TenantId, event: Option<EventId>) -> Result<(), Problem> {
    let is_sealed = match event {
        Some(event) => control.is_sealed(tenant, event).await?,
        None => false,
    };
    if is_sealed { Ok(()) } else { Err(Problem::receipt_pending()) }
}

/// Everything that speaks against this consume, the most telling first. The store decides the rest in one conditional update.
async fn objection(
    control: &Control,
    call: &Call,
    row: &ApprovalRow,
    claimed: &str,
    request: Option<&str>,
) -> Result<Option<Refusal>, Problem> {
    if !is_approvals_agent(control, &call.caller, row).await? {
        return Ok(Some(Refusal::new(EventKind::TamperAttempt, "wrong_agent", "this approval is another agent's")));
    }
    let is_repeated = request.is_some() && row.consume_request.as_deref() == request;
    if claimed != row.current_hash {
        return Ok(Some(if is_repeated { other_body() } else { wrong_hash() }));
    }
    let who = holder(control, &call.caller).await?;
    if row.approved_by.iter().any(|voter| same_person(voter, &who)) {
        let message = "who approved an action does not run it with a token or key of their own; ask for it anew";
        let refusal = Refusal::new(EventKind::TamperAttempt, "self_approval", message);
        return Ok(Some(Refusal { approver: Some(who), ..refusal }));
    }
    // What speaks against an action speaks against telling again that it may run.
    if row.status != ApprovalStatus::Approved && !is_repeated {
        return Ok(Some(by_status(row.status)));
    }
    if let Some(refusal) = contained(control, call, row).await? {
        return Ok(Some(refusal));
    }
    let judged = control.judge(&row.frozen, current_call(row)).await?;
    if judged.decision == Decision::Deny {
        let message = format!("policy denies the action now: {}", judged.reason);
        return Ok(Some(Refusal::new(EventKind::ToolAttempt, judged.code, message)));
    }
    Ok(None)
}

async fn contained(control: &Control, call: &Call, row: &ApprovalRow) -> Result<Option<Refusal>, Problem> {
    Ok(match control.agent_verdict(call.tenant(), &row.frozen.agent_id).await? {
        Verdict::Free => None,
        Verdict::Quarantined => Some(by_verdict("agent_quarantined")),
        Verdict::Frozen => Some(by_verdict("agent_frozen")),
        Verdict::Revoked => Some(by_verdict("agent_revoked")),
    })
}

fn by_verdict(code: &'static str) -> Refusal {
    Refusal::new(EventKind::ToolAttempt, code, "the agent is contained")
}

/// The action a consume is about: the edited one, if it was edited.
fn current_call(row: &ApprovalRow) -> &ToolCall {
    row.edited.as_ref().unwrap_or(&row.frozen.tool_call)
}

/// The agent itself, or the key that registered it.
async fn is_approvals_agent(control: &Control, caller: &Caller, row: &ApprovalRow) -> Result<bool, Problem> {
    match caller {
        Caller::Agent(claims) => Ok(claims.agent_id == row.frozen.agent_id),
        Caller::Key(principal) => {
            let registrar = control.store.agent_registrar(&principal.tenant_id, &row.frozen.agent_id).await?;
            Ok(registrar.as_deref() == Some(principal.key_id.as_str()))
        }
    }
}

/// The person behind the credential: whose key it is, or whose key handed out the agent's token.
async fn holder(control: &Control, caller: &Caller) -> Result<String, Problem> {
    match caller {
        Caller::Agent(claims) => control.issuer(&claims.tenant_id, &claims.issued_by).await,
        Caller::Key(principal) => Ok(person(principal).to_owned()),
    }
}

fn wrong_hash() -> Refusal {
    Refusal::new(
        EventKind::TamperAttempt,
        "action_hash_mismatch",
        "the claimed action is not the approved one; the approval stands",
    )
}

fn other_body() -> Refusal {
    let message = "this request_id consumed the approval with another claimed hash";
    Refusal::new(EventKind::ReplayAttempt, "idempotency_payload_mismatch", message)
}

fn by_status(status: ApprovalStatus) -> Refusal {
    match status {
        ApprovalStatus::Consumed => {
            Refusal::new(EventKind::ReplayAttempt, "approval_consumed", "the approval was consumed already")
        }
        ApprovalStatus::Expired => Refusal::new(EventKind::ReplayAttempt, "approval_expired", "the approval is past its time"),
        ApprovalStatus::Rejected => Refusal::new(EventKind::ReplayAttempt, "approval_rejected", "the approval was rejected"),
        ApprovalStatus::Pending | ApprovalStatus::Approved => {
            Refusal::new(EventKind::ToolAttempt, "approval_pending", "nobody has approved the action yet")
        }
    }
}

/// Records the attempt and answers 409.
async fn refuse(control: &Control, call: &Call, row: &ApprovalRow, claimed: &str, refusal: Refusal) -> Problem {
    if refusal.code == "action_hash_mismatch" {
        control.metrics.hash_mismatches.inc();
    }
    let mut draft = control.approval_draft(&row.frozen, refusal.kind, Phase::Attempt);
    if let Some(edited) = &row.edited {
        describe_call(&mut draft, edited, &row.current_hash);
    }
    // The attempt is the caller's, whoever the approval's agent is.
    if let Caller::Agent(claims) = &call.caller {
        draft.event.agent_id = Some(claims.agent_id.clone());
        draft.event.token_id = Some(claims.token_id.clone());
    }
    if let Some(approver) = refusal.approver {
        draft.event.agent_id = None;
        draft.event.token_id = None;
        draft.event.approver = Some(approver);
    }
    draft.event.decision = Some(Decision::Deny);
    draft.event.reason = Some(refusal.code.to_owned());
    draft.event.status = Some(row.status.to_string());
    let claimed = is_hash(claimed).then_some(claimed);
    draft.detail = Some(json!({
        "attempt": "consume", "code": refusal.code, "claimed_action_hash": claimed, "by": call.caller.as_detail(),
    }));
    match control.record(draft).await {
        Ok(_) => Problem::conflict(refusal.code, refusal.message),
        Err(problem) => problem,
    }
}

/// True for 64 lower-case hex digits: nothing else that a caller claims goes into a receipt.
pub(crate) fn is_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
