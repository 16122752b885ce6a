//! Sends a pending response to control and writes down what came of it. A request runs in a task of its own, which nobody cancels:
//! cutting control off half-way could leave a hold stored but not published.

use std::sync::Arc;
use std::time::Duration;

use aegis_model::{Alert, IncidentStatus, TenantId};
use aegis_store::PendingAction;

use crate::core::{Core, count};
use crate::record::{ResponseRecord, ResponseStatus};
use crate::request::{Planned, plan};
use crate::{ContainmentRequest, RequestOutcome, RespondError};

/// How long the stream waits for one answer; past it the response stays pending and the stream goes on.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// Pending responses looked at in one pass.
const RETRY_PAGE: u32 = 1000;
/// How much of an error's text is kept, in characters.
const MAX_REASON: usize = 500;

/// A response that stands as pending on its incident.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) tenant_id: TenantId,
    pub(crate) incident_id: String,
    pub(crate) record: ResponseRecord,
}

/// Whether a response has its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Settled,
    StillPending,
}

impl Core {
    /// Asks control, unless somebody is asking already, and waits a bounded time for the outcome to be written down.
    pub(crate) async fn send(self: &Arc<Self>, pending: Pending) -> Result<Sent, RespondError> {
        let command_id = pending.record.command_id.clone();
        let Some(place) = self.in_flight.enter(&command_id) else { return Ok(Sent::StillPending) };
        let core = Arc::clone(self);
        let task = tokio::spawn(async move {
            let sent = core.ask_and_record(pending).await;
            drop(place);
            sent
        });
        match tokio::time::timeout(ANSWER_WAIT, task).await {
            Ok(Ok(sent)) => sent,
            Ok(Err(error)) => {
                tracing::error!(command_id, %error, "a containment request broke off; it stays pending");
                Ok(Sent::StillPending)
            }
            Err(_) => {
                tracing::warn!(command_id, "control has not answered a containment request yet; it stays pending");
                Ok(Sent::StillPending)
            }
        }
    }

    async fn ask_and_record(&self, pending: Pending) -> Result<Sent, RespondError> {
        let Pending { tenant_id, incident_id, .. } = &pending;
        // Somebody may have settled it between the moment it was seen pending and now.
        let standing = self.store.incident_action(tenant_id, incident_id, &pending.record.command_id).await?;
        let Some((body, true)) = standing else { return Ok(Sent::Settled) };
        let mut record: ResponseRecord = serde_json::from_value(body).unwrap_or_else(|_| pending.record.clone());

        let incident = self.store.incident(tenant_id, incident_id).await?;
        let alert = self.store.alert(tenant_id, &record.alert_id).await?;
        let Some(alert) = alert.filter(|_| incident.is_some()) else {
            return self.settle(&pending, record, ResponseStatus::Cancelled, Some("its alert is gone".to_owned())).await;
        };
        if incident.is_some_and(|incident| incident.status == IncidentStatus::Closed) {
            let why = "the incident was closed before control could be reached".to_owned();
            return self.settle(&pending, record, ResponseStatus::Cancelled, Some(why)).await;
        }
        if alert.retracted_at.is_some() {
            let why = "the alert was retracted before control could be reached".to_owned();
            return self.settle(&pending, record, ResponseStatus::Cancelled, Some(why)).await;
        }
        let request = match request(&alert.alert, incident_id, &record) {
            Ok(request) => request,
            Err(reason) => return self.settle(&pending, record, ResponseStatus::Unsupported, Some(reason)).await,
        };

        count(&self.counters.requests);
        record.attempts = record.attempts.saturating_add(1);
        match self.requests.request(request).await {
            Ok(RequestOutcome::Applied { revision }) => {
                record.revision = Some(revision);
                self.settle(&pending, record, ResponseStatus::Applied, None).await
            }
            Ok(RequestOutcome::AlreadyApplied) => self.settle(&pending, record, ResponseStatus::AlreadyApplied, None).await,
            Ok(RequestOutcome::CapReached) => {
                tracing::warn!(tenant = %tenant_id, incident_id, "automatic containment has reached the tenant's hourly cap; a person must decide");
                let why = "the tenant's automatic freezes of this hour are used up; decide by hand".to_owned();
                self.settle(&pending, record, ResponseStatus::CapReached, Some(why)).await
            }
            Ok(RequestOutcome::Refused(why)) => self.settle(&pending, record, ResponseStatus::Refused, Some(why)).await,
            Err(error) => {
                count(&self.counters.failed_requests);
                tracing::warn!(tenant = %tenant_id, incident_id, attempts = record.attempts, %error, "containment request failed; it stays pending");
                self.write(&pending, record, ResponseStatus::Pending, Some(error.to_string())).await?;
                Ok(Sent::StillPending)
            }
        }
    }

    async fn settle(
        &self,
        pending: &Pending,
        record: ResponseRecord,
        status: ResponseStatus,
        reason: Option<String>,
    ) -> Result<Sent, RespondError> {
        self.write(pending, record, status, reason).await?;
        Ok(Sent::Settled)
    }

    async fn write(
        &self,
        pending: &Pending,
        mut record: ResponseRecord,
        status: ResponseStatus,
        reason: Option<String>,
    ) -> Result<(), RespondError> {
        record.status = status;
        record.updated_at = self.clock.now();
        record.reason = reason.map(|text| text.chars().take(MAX_REASON).collect());
        let contained = matches!(status, ResponseStatus::Applied | ResponseStatus::AlreadyApplied);
        let new_status = contained.then_some(IncidentStatus::Contained);
        let is_pending = status == ResponseStatus::Pending;
        let (tenant, incident, command) = (&pending.tenant_id, &pending.incident_id, &record.command_id);
        self.store.put_incident_action(tenant, incident, command, &serde_json::json!(record), is_pending, new_status).await?;
        Ok(())
    }

    /// Sends every pending response again. True if some are pending still.
    pub(crate) async fn send_pending(self: &Arc<Self>, stop: &tokio::sync::watch::Receiver<bool>) -> Result<bool, RespondError> {
        let page = self.store.pending_incident_actions(RETRY_PAGE).await?;
        let mut remain = page.len() >= RETRY_PAGE as usize;
        for action in page {
            if *stop.borrow() {
                return Ok(true);
            }
            let Some(pending) = readable(action) else { continue };
            match self.send(pending).await {
                Ok(Sent::Settled) => {}
                Ok(Sent::StillPending) => remain = true,
                Err(error) => {
                    tracing::warn!(%error, "a pending response could not be worked on");
                    remain = true;
                }
            }
        }
        Ok(remain)
    }
}

/// A pending action that a responder wrote; another writer's is left alone.
fn readable(action: PendingAction) -> Option<Pending> {
    match serde_json::from_value(action.body) {
        Ok(record) => Some(Pending { tenant_id: action.tenant_id, incident_id: action.incident_id, record }),
        Err(error) => {
            tracing::error!(tenant = %action.tenant_id, incident_id = action.incident_id, %error, "a pending action cannot be read");
            None
        }
    }
}

/// The request a pending response stands for, or why there is none. Made from the alert: the same one whenever it is made.
fn request(alert: &Alert, incident_id: &str, record: &ResponseRecord) -> Result<ContainmentRequest, String> {
    match plan(alert, &record.action) {
        Planned::Contain { target_type, target_id, kind } => Ok(ContainmentRequest {
            tenant_id: alert.tenant_id.clone(),
            command_id: record.command_id.clone(),
            target_type,
            target_id,
            kind,
            reason: format!("{} ({}), alert {}", alert.rule_name, alert.rule_id, alert.alert_id),
            by: format!("{}{}", aegis_store::AUTOMATIC_PREFIX, alert.rule_id),
            alert_id: alert.alert_id.clone(),
            incident_id: incident_id.to_owned(),
            event_ids: alert.event_ids.clone(),
        }),
        Planned::Unsupported { reason } => Err(reason),
    }
}
