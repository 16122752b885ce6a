//! The shapes of the detector's messages: events as they come in, alerts, retractions, episodes and dead letters as they go out.
//! Promises that an event is read through the strict door, and stands under its own tenant's subject.

use aegis_bus::{Delivered, Message, Stream, subject};
use aegis_model::{SecurityEvent, TenantId, WireEvent, partition_of};
use serde_json::json;

use crate::engine::TickOutput;

/// A message as an event, or why it is none. An event stands under its own subject, so that no producer speaks for another tenant.
pub(crate) fn read(delivered: &Delivered) -> Result<(WireEvent<'_>, SecurityEvent), String> {
    let wire = WireEvent::read(&delivered.payload).map_err(|error| error.to_string())?;
    let mut event = wire.event().map_err(|error| error.to_string())?;
    if subject::ase(&event.tenant_id, event.kind) != delivered.subject {
        return Err(format!("its tenant and kind do not belong under the subject {}", delivered.subject));
    }
    event.verified = false;
    event.late = false;
    event.bus_ts = Some(delivered.bus_ts);
    Ok((wire, event))
}

pub(crate) fn dead_letter(delivered: &Delivered, reason: &str) -> Message {
    // The partition of the subject it came under; a subject that names no tenant goes to the first.
    let tenant = delivered.subject.split('.').nth(2).and_then(|t| TenantId::new(t).ok());
    let pp = tenant.as_ref().map_or(0, partition_of);
    let text = String::from_utf8_lossy(&delivered.payload);
    let body = json!({
        "stream": Stream::Ase.as_str(),
        "seq": delivered.seq,
        "subject": delivered.subject,
        "reason": reason,
        "payload": text.chars().take(64 * 1024).collect::<String>(),
    });
    Message::new(subject::dlq(pp), body.to_string()).with_id(format!("ase-{}-{}", delivered.seq, delivered.bus_ts.as_micros()))
}

/// Alerts with retractions, and episodes.
pub(crate) fn messages(output: &TickOutput) -> (Vec<Message>, Vec<Message>) {
    let mut alerts = Vec::new();
    for alert in &output.alerts {
        if let Ok(payload) = serde_json::to_vec(alert) {
            alerts.push(Message::new(subject::alert(&alert.tenant_id, &alert.alert_id), payload).expecting(0));
        }
    }
    for retraction in &output.retractions {
        if let Ok(payload) = serde_json::to_vec(retraction) {
            alerts.push(Message::new(subject::retract(&retraction.tenant_id, &retraction.alert_id), payload).expecting(0));
        }
    }
    let episodes = output.episodes.iter().filter_map(|episode| {
        let payload = serde_json::to_vec(episode).ok()?;
        Some(Message::new(subject::episode(&episode.tenant_id, &episode.alert_id), payload))
    });
    (alerts, episodes.collect())
}
