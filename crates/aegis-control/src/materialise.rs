//! The approvals consumer: frozen actions from the bus become approvals that people can see.
//! Promises that an action is shown only after its hash was computed anew and its decision's receipt was proven; never shows the rest.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Delivered, Stream, subject};
use aegis_ledger::verify::verify_wire;
use aegis_model::limits::{MAX_ID, check_label};
use aegis_model::{ApprovalStatus, EventKind, FrozenAction, Phase};
use aegis_store::HistoryRow;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::control::{Control, ControlError};
use crate::decide::hash_of;
use crate::evidence::read_wire;
use crate::follow::Follower;
use crate::prune::KEPT_S;
use crate::record::derived_event_id;
use crate::room::{Room, Waiting};
use crate::wires::EVIDENCE_MISSING;

/// Name of this consumer on the bus.
pub(crate) const CONSUMER: &str = "control-approvals";
/// How long one read waits when nothing is outstanding, and when something is.
const WAIT: Duration = Duration::from_millis(500);
const SHORT_WAIT: Duration = Duration::from_millis(20);
/// How long after its end a frozen action still waits for its receipt, seconds.
const GRACE_S: i64 = 300;

/// How long it waits at most, by when the bus stored it, seconds: how long it lasts is its edge's word. Its decision was sent with it.
const LONGEST_WAIT_S: i64 = 3600;

/// What became of a frozen action.
enum Step {
    Done,
    /// Its decision has not arrived in the history.
    Waits,
}

/// What the history has under the id of a frozen action's decision.
enum Found {
    Decision,
    /// Something, and none of it the decision: why the first is not.
    Others(&'static str),
    Nothing,
}

/// Follows the stream until stopped.
pub(crate) async fn run(control: Arc<Control>, mut stop: watch::Receiver<bool>) {
    let mut follower = Follower::new(Arc::clone(&control.bus), Stream::Approvals, CONSUMER, "approval.>");
    let mut room = Room::default();
    loop {
        tokio::select! {
            outcome = step(&control, &mut follower, &mut room) => match outcome {
                Ok(()) => {
                    follower.recovered();
                    Control::set_healthy(&control.approvals_ok, true);
                }
                Err(error) => {
                    tracing::warn!(%error, "approvals consumer stands still");
                    Control::set_healthy(&control.approvals_ok, false);
                    // Everything that was not dealt with is read again from the saved position.
                    room.clear();
                    tokio::select! {
                        () = follower.back_off() => {}
                        _ = stop.changed() => return,
                    }
                }
            },
            _ = stop.changed() => return,
        }
    }
}

fn failed(error: impl std::fmt::Display) -> ControlError {
    ControlError::Failed(error.to_string())
}

async fn step(control: &Control, follower: &mut Follower, room: &mut Room) -> Result<(), ControlError> {
    let arrived = control.arrived.notified();
    if room.has_place() {
        let wait = if room.is_empty() { WAIT } else { SHORT_WAIT };
        for delivered in follower.next(control.config.consumer_batch, wait).await.map_err(failed)? {
            match read(&delivered) {
                Ok(frozen) => {
                    if control.may_enter(&delivered, &frozen).await? {
                        room.enter(delivered, frozen, Instant::now());
                    }
                }
                Err(reason) => control.dead_letter(Stream::Approvals, &delivered, &reason).await.map_err(failed)?,
            }
        }
    }
    let before = room.len();
    for _ in 0..before {
        let Some(mut waiting) = room.take_first() else { break };
        if let Step::Waits = control.materialise(&mut waiting).await? {
            room.put_back(waiting);
        }
    }
    give_up(control, room).await?;
    let done = room.first_seq().map_or_else(|| follower.read_up_to(), |first| first - 1);
    follower.save(done).await.map_err(failed)?;
    if before > 0 && room.len() == before {
        // Nothing moved: wait until something arrives, or look again soon.
        let _ = tokio::time::timeout(WAIT, arrived).await;
    }
    Ok(())
}

/// Sets aside what takes the room of others, and says so.
async fn give_up(control: &Control, room: &mut Room) -> Result<(), ControlError> {
    let up_to_date = *control.caught_up.lock();
    let given_up = room.give_up(up_to_date, Instant::now());
    if given_up.is_empty() {
        return Ok(());
    }
    let tenants: BTreeSet<&str> = given_up.iter().map(|one| one.frozen.tenant_id.as_str()).collect();
    tracing::error!(
        actions = given_up.len(),
        ?tenants,
        "frozen actions whose decisions have not arrived take more than their share of the room; the newest of the fullest are set aside"
    );
    control.metrics.approvals_given_up.inc_by(given_up.len() as u64);
    let reason = "its decision has not arrived, and too many of its tenant's wait";
    let letters: Vec<&Delivered> = given_up.iter().map(|one| &one.delivered).collect();
    control.dead_letters(Stream::Approvals, &letters, reason).await.map_err(failed)
}

/// A frozen action that is about the subject it came under.
fn read(delivered: &Delivered) -> Result<FrozenAction, String> {
    let value = aegis_canon::parse_strict(&delivered.payload).map_err(|error| format!("not canonicalisable: {error}"))?;
    let frozen: FrozenAction = serde_json::from_value(value).map_err(|error| format!("not a frozen action: {error}"))?;
    if delivered.subject != subject::approval(&frozen.tenant_id, &frozen.approval_id) {
        return Err("subject and frozen action disagree about tenant or approval".to_owned());
    }
    let is_name = |text: &String| check_label(text, MAX_ID).is_ok();
    if ![&frozen.approval_id, &frozen.agent_id, &frozen.action_hash, &frozen.policy_digest].into_iter().all(is_name) {
        return Err("an id in it is none".to_owned());
    }
    Ok(frozen)
}

impl Control {
    /// What needs no decision to be refused does not wait for one.
    async fn may_enter(&self, delivered: &Delivered, frozen: &FrozenAction) -> Result<bool, ControlError> {
        if !self.store.tenant_exists(&frozen.tenant_id).await? {
            self.dead_letter(Stream::Approvals, delivered, "unknown tenant").await.map_err(failed)?;
            return Ok(false);
        }
        if frozen.expires_at < self.clock.now().plus_seconds(-KEPT_S) {
            // It was forgotten, or would be at once.
            self.dead_letter(Stream::Approvals, delivered, "it ended long ago").await.map_err(failed)?;
            return Ok(false);
        }
        if hash_of(&frozen.tool_call).ok().as_deref() != Some(frozen.action_hash.as_str()) {
            self.refuse_frozen(delivered, frozen, "frozen_action_mismatch").await?;
            return Ok(false);
        }
        Ok(true)
    }

    async fn materialise(&self, waiting: &mut Waiting) -> Result<Step, ControlError> {
        let up_to_date = *self.caught_up.lock();
        let is_settled = waiting.is_settled(up_to_date);
        let (delivered, frozen, looked_at) = (&waiting.delivered, &waiting.frozen, &mut waiting.looked_at);
        let ends = frozen.expires_at.plus_seconds(GRACE_S).min(delivered.bus_ts.plus_seconds(LONGEST_WAIT_S));
        let is_over = ends < self.clock.now();
        let events = self.store.history_events(&frozen.tenant_id, frozen.event_id, None).await?;
        // What is none of its decision stays none: only what came since is news.
        if *looked_at > 0 && events.len() == *looked_at && !is_over && !is_settled {
            return Ok(Step::Waits);
        }
        *looked_at = events.len();
        match self.decision_among(&events, frozen).await? {
            Found::Decision => {}
            Found::Others(reason) if is_over || is_settled => {
                self.refuse_frozen(delivered, frozen, reason).await?;
                return Ok(Step::Done);
            }
            Found::Nothing if is_over => {
                self.dead_letter(Stream::Approvals, delivered, "its decision never arrived").await.map_err(failed)?;
                return Ok(Step::Done);
            }
            Found::Others(_) | Found::Nothing => return Ok(Step::Waits),
        }
        // The receipt first: it has the same id however often this is done, so a crash in between leaves nothing undone.
        let mut draft = self.approval_draft(frozen, EventKind::ApprovalRequested, Phase::Approval);
        draft.event.event_id = derived_event_id(EventKind::ApprovalRequested, &frozen.tenant_id, &frozen.approval_id);
        draft.event.status = Some(ApprovalStatus::Pending.to_string());
        draft.event.matched_policies = frozen.matched_policies.clone();
        draft.detail = Some(json!({
            "approver_group": frozen.approver_group,
            "approvals_needed": frozen.approvals_needed,
            "expires_at": frozen.expires_at,
        }));
        self.record_once(draft).await?;
        self.store.insert_approval(frozen).await?;
        Ok(Step::Done)
    }

    /// Looks for the decision among all that has its id: another producer of the tenant can have sealed something under it.
    async fn decision_among(&self, events: &[HistoryRow], frozen: &FrozenAction) -> Result<Found, ControlError> {
        let mut found = Found::Nothing;
        for row in events {
            let checked = match self.wire(row).await {
                Ok(wire) => self.check_against_receipt(frozen, row, &wire),
                // What is not there any more proves nothing, and will not come back by waiting.
                Err(problem) if problem.code == EVIDENCE_MISSING => Err("frozen_receipt_unproven"),
                Err(problem) => return Err(problem.into()),
            };
            match checked {
                Ok(()) => return Ok(Found::Decision),
                Err(reason) if matches!(found, Found::Nothing) => found = Found::Others(reason),
                Err(_) => {}
            }
        }
        Ok(found)
    }

    /// The frozen action must be the one whose decision was sealed, to the last value: its digest is in that receipt.
    fn check_against_receipt(&self, frozen: &FrozenAction, decision: &HistoryRow, wire: &str) -> Result<(), &'static str> {
        let wire = read_wire(wire).map_err(|_| "frozen_receipt_unproven")?;
        if verify_wire(&wire, Some(&self.ring)).is_err() {
            self.metrics.verify_failures.inc();
            return Err("frozen_receipt_unproven");
        }
        let digest = frozen.digest().map_err(|_| "frozen_receipt_mismatch")?;
        let is = |column: &str, expected: Value| wire[column] == expected;
        let same = decision.kind == EventKind::AuthorizeDecision
            && is("decision", json!("require_approval"))
            && is("approval_id", json!(frozen.approval_id))
            && is("agent_id", json!(frozen.agent_id))
            && is("action_hash", json!(frozen.action_hash))
            && wire["receipt"]["action_hash"] == json!(frozen.action_hash)
            && wire["receipt"]["detail"]["frozen_digest"] == json!(digest);
        if same { Ok(()) } else { Err("frozen_receipt_mismatch") }
    }

    /// Something between the edge and control changed the action. Nobody is blamed: what it says of its agent proves nothing.
    async fn refuse_frozen(
        &self,
        delivered: &Delivered,
        frozen: &FrozenAction,
        reason: &'static str,
    ) -> Result<(), ControlError> {
        self.metrics.hash_mismatches.inc();
        let about = format!("{}\0{}", frozen.approval_id, delivered.seq);
        let mut event = self.event(&frozen.tenant_id, EventKind::TamperAttempt);
        event.event_id = derived_event_id(EventKind::TamperAttempt, &frozen.tenant_id, &about);
        event.ref_event_id = Some(frozen.event_id);
        event.reason = Some(reason.to_owned());
        event.approval_id = Some(frozen.approval_id.clone());
        let mut draft = aegis_ledger::Draft::new(event, Phase::Attempt);
        draft.detail = Some(json!({"attempt": "approval_request", "code": reason, "claimed_agent_id": frozen.agent_id}));
        self.record_once(draft).await?;
        tracing::error!(tenant = %frozen.tenant_id, approval_id = frozen.approval_id, reason, "frozen action refused; it is shown to nobody");
        Ok(())
    }
}
