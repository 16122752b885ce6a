//! What people do with an approval: approve, reject, edit.
//! Promises that nobody approves their own request, that who edited is never the sole approver, and that an edit is judged anew.

use crate::reply::Json;
use aegis_ledger::Draft;
use aegis_model::{ApprovalStatus, Decision, EventKind, Phase, ToolCall};
use aegis_store::{ApprovalRow, DecideResult, Principal, VoteResult, same_person};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::approvals::{known, view};
use crate::auth::person;
use crate::control::Control;
use crate::input::{MAX_ID, MAX_TEXT, check_optional, check_resource_name, check_text, parse, parse_or_empty};
use crate::problem::Problem;
use crate::routes::Call;
use crate::side::Side;

/// The group whose members may decide every approval of their tenant.
const EVERY_GROUP: &str = "*";

/// Body of approve and reject; may be left out.
#[derive(Debug, Default, Deserialize)]
struct DecisionBody {
    #[serde(default)]
    reason: Option<String>,
    /// The hash of the action the approver was shown. An action that was edited is approved only with it.
    #[serde(default, alias = "expected_action_hash")]
    action_hash: Option<String>,
}

impl DecisionBody {
    fn read(control: &Control, call: &Call) -> Result<Self, Problem> {
        let body: Self = parse_or_empty(&call.body, control.config.max_body_bytes)?;
        check_optional("reason", body.reason.as_deref(), MAX_TEXT)?;
        check_optional("action_hash", body.action_hash.as_deref(), MAX_ID)?;
        Ok(body)
    }
}

/// Body of edit.
#[derive(Debug, Deserialize)]
struct EditBody {
    tool_call: ToolCall,
    #[serde(default)]
    reason: Option<String>,
}

pub(crate) async fn approve(control: &Control, call: &Call) -> Result<Response, Problem> {
    let body = DecisionBody::read(control, call)?;
    let principal = call.caller.key()?;
    let _turn = control.approval_turn.lock().await;
    let row = entitled(control, call, principal).await?;
    let who = person(principal);
    if row.approved_by.iter().any(|voter| same_person(voter, who)) {
        return Err(Problem::conflict("already_voted", "this person has approved this action already; somebody else must"));
    }
    let shown = match body.action_hash.as_deref() {
        Some(shown) => shown,
        None if row.edited.is_none() => &row.current_hash,
        None => {
            return Err(Problem::conflict(
                "action_hash_required",
                "the action was edited: send the `action_hash` of the action you were shown",
            ));
        }
    };
    let have = u32::try_from(row.approved_by.len()).unwrap_or(u32::MAX).saturating_add(1);
    let need = row.frozen.approvals_needed.max(1);
    let status = if have >= need { ApprovalStatus::Approved } else { ApprovalStatus::Pending };
    let detail = json!({"change": "approved", "have": have, "need": need, "reason": body.reason});
    let draft = decided_draft(control, call, &row, status, detail);
    let pending = control.prepare(draft)?;
    let id = call.param("id");
    let voted = control.store.record_approval_vote(call.tenant(), id, who, shown, control.clock.now(), pending.rows()).await?;
    match voted {
        VoteResult::Approved | VoteResult::NeedsMore { .. } => control.seal(pending).await?,
        VoteResult::Conflict(status) => return Err(not_pending(status)),
        VoteResult::SelfEdited => {
            return Err(Problem::forbidden(
                "self_edited",
                "who edited an action is not its sole approver; somebody else must approve it",
            ));
        }
        VoteResult::HashChanged => {
            return Err(Problem::conflict("action_changed", "the action is no longer the one that was shown; read it again"));
        }
        VoteResult::Expired => return Err(not_pending(ApprovalStatus::Expired)),
        VoteResult::NotFound => return Err(Problem::not_found("approval")),
    };
    reply(control, call).await
}

pub(crate) async fn reject(control: &Control, call: &Call) -> Result<Response, Problem> {
    let body = DecisionBody::read(control, call)?;
    let principal = call.caller.key()?;
    let _turn = control.approval_turn.lock().await;
    let row = entitled(control, call, principal).await?;
    let detail = json!({"change": "rejected", "reason": body.reason});
    let pending = control.prepare(decided_draft(control, call, &row, ApprovalStatus::Rejected, detail))?;
    let id = call.param("id");
    let done = control.store.reject_approval(call.tenant(), id, person(principal), control.clock.now(), pending.rows()).await?;
    done_or_problem(done)?;
    control.seal(pending).await?;
    reply(control, call).await
}

pub(crate) async fn edit(control: &Control, call: &Call) -> Result<Response, Problem> {
    let body: EditBody = parse(&call.body, control.config.max_body_bytes)?;
    check_optional("reason", body.reason.as_deref(), MAX_TEXT)?;
    check_tool_call(&body.tool_call)?;
    let new_hash = hash_of(&body.tool_call)?;
    let principal = call.caller.key()?;
    let _turn = control.approval_turn.lock().await;
    let row = entitled(control, call, principal).await?;
    if !matches!(row.status, ApprovalStatus::Pending | ApprovalStatus::Approved) {
        return Err(not_pending(row.status));
    }
    let judged = control.judge(&row.frozen, &body.tool_call).await?;
    if judged.decision == Decision::Deny {
        return Err(Problem::conflict(judged.code, format!("policy denies the edited action: {}", judged.reason)));
    }
    // The approval keeps its approvers: an action that needs others, or more of them, is another request.
    let default_group = control.store.settings(call.tenant()).await?.approver_group;
    let original = &row.frozen.tool_call;
    let other_action = (&body.tool_call.tool, &body.tool_call.action) != (&original.tool, &original.action);
    let other_group = match &judged.approver_group {
        Some(group) => *group != row.frozen.approver_group,
        // No policy names a group: another action than the one asked for would have gone to the tenant's default group.
        None => other_action && row.frozen.approver_group != default_group,
    };
    if other_group || judged.approvals > row.frozen.approvals_needed.max(1) {
        return Err(Problem::conflict(
            "needs_other_approvers",
            "the edited action needs other or more approvers; ask for it anew",
        ));
    }
    let digest = judged.policy_digest.unwrap_or_default();
    let detail = json!({
        "change": "edited", "original_action_hash": row.frozen.action_hash, "previous_action_hash": row.current_hash, "reason": body.reason,
    });
    let mut draft = decided_draft(control, call, &row, ApprovalStatus::Pending, detail);
    describe_call(&mut draft, &body.tool_call, &new_hash);
    draft.event.policy_digest = Some(digest.clone());
    draft.event.matched_policies = judged.matched_policies;
    let pending = control.prepare(draft)?;
    let (id, who) = (call.param("id"), person(principal));
    let done = control.store.edit_approval(call.tenant(), id, who, &body.tool_call, &new_hash, &digest, pending.rows()).await?;
    done_or_problem(done)?;
    control.seal(pending).await?;
    reply(control, call).await
}

/// The approval, if this person may decide it: of its group, and neither the agent's side nor the requesting user.
async fn entitled(control: &Control, call: &Call, principal: &Principal) -> Result<ApprovalRow, Problem> {
    let row = known(control, call.tenant(), call.param("id")).await?;
    let in_group = principal.groups.iter().any(|group| *group == row.frozen.approver_group || group == EVERY_GROUP);
    if !in_group {
        return Err(Problem::forbidden(
            "wrong_group",
            format!("only the group `{}` decides this approval", row.frozen.approver_group),
        ));
    }
    match control.side_of(principal, &row.frozen).await? {
        Side::Apart => Ok(row),
        Side::Own => {
            record_self_approval(control, call, &row, "self_approval", Some(person(principal))).await?;
            Err(Problem::forbidden(
                "self_approval",
                "nobody decides an action they asked for, or of an agent that they registered or gave a token",
            ))
        }
        // Any agent can claim any user: whoever is named so may not decide, and is accused of nothing.
        Side::Claimed => {
            record_self_approval(control, call, &row, "self_approval_claimed", None).await?;
            Err(Problem::forbidden(
                "self_approval",
                "the agent names you as the user who asked for this action, and nobody decides what they asked for; if you did not, tell \
                 whoever looks after the agent, and let somebody else of the group decide",
            ))
        }
        Side::Unknown => Err(Problem::forbidden(
            "agent_side_unknown",
            "nobody knows whose key gave this agent the token it asked with; register the agent again and ask anew",
        )),
    }
}

/// Records that somebody was kept from deciding their own action. `blamed`: who is known to have tried it.
async fn record_self_approval(
    control: &Control,
    call: &Call,
    row: &ApprovalRow,
    reason: &str,
    blamed: Option<&str>,
) -> Result<(), Problem> {
    let mut draft = control.approval_draft(&row.frozen, EventKind::TamperAttempt, Phase::Attempt);
    // The attempt is not the agent's: it must not count against it.
    draft.event.agent_id = None;
    draft.event.token_id = None;
    draft.event.approver = blamed.map(str::to_owned);
    draft.event.reason = Some(reason.to_owned());
    draft.detail = Some(json!({"attempt": reason, "by": call.caller.as_detail(), "agent_id": row.frozen.agent_id}));
    control.record(draft).await?;
    Ok(())
}

/// An `approval_decided` event about the action as it is up for approval now.
fn decided_draft(control: &Control, call: &Call, row: &ApprovalRow, status: ApprovalStatus, mut detail: Value) -> Draft {
    let mut draft = control.approval_draft(&row.frozen, EventKind::ApprovalDecided, Phase::Approval);
    if let Some(edited) = &row.edited {
        describe_call(&mut draft, edited, &row.current_hash);
    }
    draft.event.status = Some(status.to_string());
    draft.event.approver = Some(call.caller.name().to_owned());
    draft.event.policy_digest = Some(row.policy_digest.clone());
    if let Some(object) = detail.as_object_mut() {
        object.insert("by".to_owned(), call.caller.as_detail());
    }
    draft.detail = Some(detail);
    draft
}

/// Puts an edited call's columns in the place of the frozen one's.
pub(crate) fn describe_call(draft: &mut Draft, call: &ToolCall, action_hash: &str) {
    draft.event.tool = Some(call.tool.clone());
    draft.event.action = Some(call.action.clone());
    draft.event.resource = call.resource.clone();
    draft.event.mutates_state = Some(call.mutates_state);
    draft.event.action_hash = Some(action_hash.to_owned());
}

fn done_or_problem(done: DecideResult) -> Result<(), Problem> {
    match done {
        DecideResult::Done => Ok(()),
        DecideResult::Conflict(status) => Err(not_pending(status)),
        DecideResult::Expired => Err(not_pending(ApprovalStatus::Expired)),
        DecideResult::NotFound => Err(Problem::not_found("approval")),
    }
}

fn not_pending(status: ApprovalStatus) -> Problem {
    let code = if status == ApprovalStatus::Expired { "approval_expired" } else { "approval_not_pending" };
    Problem::conflict(code, format!("the approval is {status}"))
}

/// As an edge takes it: what was asked can be edited, whatever its resource.
fn check_tool_call(call: &ToolCall) -> Result<(), Problem> {
    check_text("tool", &call.tool, MAX_ID)?;
    check_text("action", &call.action, MAX_ID)?;
    call.resource.as_deref().map_or(Ok(()), |resource| check_resource_name("resource", resource))
}

/// The action hash of a call.
pub(crate) fn hash_of(call: &ToolCall) -> Result<String, Problem> {
    let parameters = Value::Object(call.parameters.clone());
    aegis_canon::action_hash(&call.tool, &call.action, call.resource.as_deref(), call.mutates_state, &parameters)
        .map_err(|error| Problem::bad_request(error.code(), error.to_string()))
}

async fn reply(control: &Control, call: &Call) -> Result<Response, Problem> {
    control.callback_queued.notify_one();
    let row = known(control, call.tenant(), call.param("id")).await?;
    Ok(Json(view(&row, control.clock.now())?).into_response())
}
