//! Works on one message of the stream ALERTS. Every step is idempotent, so a message may come any number of times.
//! What cannot be read goes to the dead letters with the reason, and the stream goes on.

use std::sync::Arc;

use aegis_bus::{Delivered, Message, Stream, subject};
use aegis_model::{Alert, IncidentStatus, PARTITIONS, Retraction, RuleMode, TenantId, partition_of};
use aegis_store::StoreError;
use serde_json::json;

use crate::RespondError;
use crate::core::{Core, count};
use crate::dispatch::{Pending, Sent};
use crate::record::{ResponseRecord, ResponseStatus};
use crate::request::{Planned, command_id, plan};

/// Responses one alert may ask for; a rule with more is a mistake.
const MAX_RESPONSES: usize = 16;
/// How much of an unreadable payload is kept, in characters.
const MAX_KEPT: usize = 64 * 1024;

/// Why a message cannot be worked on, now or later.
struct Unreadable(String);

enum Content {
    Alert(Box<Alert>),
    Retraction(Retraction),
}

/// Reads a message and checks that its body is what its subject says: a producer may publish its own tenants' subjects only, so the
/// subject is the part that is enforced.
fn read(message: &Delivered) -> Result<Content, Unreadable> {
    let (content, expected) = if message.subject.starts_with("retract.") {
        let retraction: Retraction = serde_json::from_slice(&message.payload).map_err(|e| Unreadable(e.to_string()))?;
        let expected = subject::retract(&retraction.tenant_id, &retraction.alert_id);
        (Content::Retraction(retraction), expected)
    } else {
        let alert: Alert = serde_json::from_slice(&message.payload).map_err(|e| Unreadable(e.to_string()))?;
        let expected = subject::alert(&alert.tenant_id, &alert.alert_id);
        (Content::Alert(Box::new(alert)), expected)
    };
    if expected == message.subject { Ok(content) } else { Err(Unreadable(format!("the body belongs on {expected}"))) }
}

/// True if the store will never take this, however often it is tried.
const fn is_hopeless(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Invalid { .. }
            | StoreError::Unreadable { .. }
            | StoreError::UnknownTenant(_)
            | StoreError::WrongTenant { .. }
            | StoreError::Taken(_)
            | StoreError::LimitReached { .. }
    )
}

impl Core {
    /// Works on one message. An error means: try again from this message on.
    pub(crate) async fn deliver(self: &Arc<Self>, message: &Delivered) -> Result<(), RespondError> {
        let outcome = match read(message) {
            Ok(Content::Alert(alert)) => self.alert(&alert).await,
            Ok(Content::Retraction(retraction)) => self.retraction(&retraction).await,
            Err(Unreadable(reason)) => return self.dead_letter(message, &reason).await,
        };
        match outcome {
            Err(RespondError::Store(error)) if is_hopeless(&error) => self.dead_letter(message, &error.to_string()).await,
            other => other,
        }
    }

    async fn alert(self: &Arc<Self>, alert: &Alert) -> Result<(), RespondError> {
        if alert.mode != RuleMode::Active {
            if self.store.insert_alert(alert).await? {
                count(&self.counters.alerts);
            }
            return Ok(());
        }
        let known = self.store.alert(&alert.tenant_id, &alert.alert_id).await?.is_some();
        let (incident, opened) = self.store.open_or_join_incident(alert, self.clock.now()).await?;
        if !known {
            count(&self.counters.alerts);
        }
        if opened {
            count(&self.counters.incidents);
            tracing::info!(tenant = %alert.tenant_id, rule = alert.rule_id, incident = incident.incident_id, "incident opened");
        }
        for action in alert.respond.iter().take(MAX_RESPONSES) {
            self.respond(alert, &incident.incident_id, action).await?;
        }
        Ok(())
    }

    /// Brings one response to its outcome, or leaves it pending on the incident: durable before control hears of it.
    async fn respond(self: &Arc<Self>, alert: &Alert, incident_id: &str, action: &str) -> Result<(), RespondError> {
        let planned = plan(alert, action);
        let (target_type, target_id, kind, reason) = match planned {
            Planned::Contain { target_type, target_id, kind } => (Some(target_type), Some(target_id), Some(kind), None),
            Planned::Unsupported { reason } => (None, None, None, Some(reason)),
        };
        let is_pending = reason.is_none();
        let now = self.clock.now();
        let record = ResponseRecord {
            action: action.to_owned(),
            status: if is_pending { ResponseStatus::Pending } else { ResponseStatus::Unsupported },
            command_id: command_id(&alert.alert_id, action, target_id.as_deref().unwrap_or_default()),
            alert_id: alert.alert_id.clone(),
            target_type,
            target_id,
            kind,
            requested_at: now,
            updated_at: now,
            attempts: 0,
            revision: None,
            reason,
        };
        let tenant = &alert.tenant_id;
        // What an earlier delivery of this alert wrote down stands.
        let pending = match self.store.incident_action(tenant, incident_id, &record.command_id).await? {
            Some((_, pending)) => pending,
            None => {
                self.store.put_incident_action(tenant, incident_id, &record.command_id, &json!(record), is_pending, None).await?;
                is_pending
            }
        };
        if !pending {
            return Ok(());
        }
        let response = Pending { tenant_id: tenant.clone(), incident_id: incident_id.to_owned(), record };
        if self.send(response).await? == Sent::StillPending {
            self.left_pending.notify_one();
        }
        Ok(())
    }

    /// Marks the alert, and notes it on its incident. Containment stays until a person lifts it.
    async fn retraction(&self, retraction: &Retraction) -> Result<(), RespondError> {
        let tenant = &retraction.tenant_id;
        if self.store.retract_alert(retraction).await? {
            count(&self.counters.retractions);
        }
        let Some(alert) = self.store.alert(tenant, &retraction.alert_id).await? else {
            tracing::warn!(%tenant, alert = retraction.alert_id, "a retraction names an alert that is not known");
            return Ok(());
        };
        let Some(incident_id) = alert.incident_id else { return Ok(()) };
        let command_id = command_id(&retraction.alert_id, "alert_retracted", "");
        if self.store.incident_action(tenant, &incident_id, &command_id).await?.is_some() {
            return Ok(());
        }
        let note = ResponseRecord {
            action: "note".to_owned(),
            status: ResponseStatus::AlertRetracted,
            command_id,
            alert_id: retraction.alert_id.clone(),
            target_type: None,
            target_id: None,
            kind: None,
            requested_at: retraction.detected_at,
            updated_at: self.clock.now(),
            attempts: 0,
            revision: None,
            reason: Some(
                "a late event contradicted the alert; what was contained stays contained until somebody lifts it".to_owned(),
            ),
        };
        let unchanged: Option<IncidentStatus> = None;
        self.store.put_incident_action(tenant, &incident_id, &note.command_id, &json!(note), false, unchanged).await?;
        Ok(())
    }

    async fn dead_letter(&self, message: &Delivered, reason: &str) -> Result<(), RespondError> {
        tracing::error!(
            seq = message.seq,
            subject = message.subject,
            reason,
            "an alert cannot be worked on; kept among the dead letters"
        );
        let tenant = message.subject.split('.').nth(1).and_then(|token| TenantId::new(token).ok());
        let partition = tenant.as_ref().map_or(0, partition_of) % PARTITIONS;
        let kept: String = String::from_utf8_lossy(&message.payload).chars().take(MAX_KEPT).collect();
        let letter = json!({
            "stream": Stream::Alerts.as_str(),
            "seq": message.seq,
            "subject": message.subject,
            "consumer": crate::CONSUMER,
            "reason": reason,
            "payload": kept,
        });
        let id = format!("{}-{}-{}", crate::CONSUMER, Stream::Alerts, message.seq);
        let letter = Message::new(subject::dlq(partition), letter.to_string()).with_id(id);
        for outcome in self.bus.publish(Stream::Dlq, vec![letter]).await {
            outcome?;
        }
        count(&self.counters.dead_letters);
        Ok(())
    }
}
