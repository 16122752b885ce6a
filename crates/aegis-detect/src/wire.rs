//! The shapes of the detector's messages: events as they come in, alerts, retractions, episodes and dead letters as they go out.
//! Promises that an event is read through the strict door, and stands under its own tenant's subject.

use std::sync::Arc;

use aegis_bus::{Delivered, Message, Stream, subject};
use aegis_model::{Alert, ReadEvent, TenantId, partition_of};
use serde_json::{Map, Value, json};

use crate::engine::TickOutput;

/// The field that says what of an alert was left out.
const LEFT_OUT: &str = "left_out";
/// Longest text of what is said there, in characters.
const MAX_LEFT_OUT: usize = 1024;
/// What is left of a key's column in an alert that is too large without its fields too, in characters: no name is as long.
const MAX_KEY_TEXT: usize = 300;

/// A message as an event, or why it is none. An event stands under its own subject, so that no producer speaks for another tenant.
pub(crate) fn read(delivered: &Delivered) -> Result<Arc<ReadEvent>, String> {
    let read = delivered.event().map_err(|error| error.to_string())?;
    let event = read.unmarked();
    if !subject::is_ase(&delivered.subject, event.tenant_id(), event.kind()) {
        return Err(format!("its tenant and kind do not belong under the subject {}", delivered.subject));
    }
    if !event.names_a_lane_or_none() {
        return Err("its lane has no name that a lane can have".to_owned());
    }
    Ok(read)
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

/// The alert in a message that is over the bus's bound, without what makes it large: its fields; and where it is without those already, the rest of
/// long texts in its key. None if there is no more to leave out.
pub(crate) fn smaller(message: &Message, bound: usize) -> Option<Message> {
    let mut alert: Alert = serde_json::from_slice(&message.payload).ok()?;
    let others: Vec<&str> = alert.fields.keys().map(String::as_str).filter(|name| *name != LEFT_OUT).collect();
    let left_out = if others.is_empty() {
        let mut columns = Vec::new();
        for (column, value) in &mut alert.key {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            if text.chars().count() > MAX_KEY_TEXT {
                *value = Value::String(text.chars().take(MAX_KEY_TEXT).collect());
                columns.push(column.clone());
            }
        }
        if columns.is_empty() {
            return None;
        }
        format!("all fields, and the ends of the key's {}", columns.join(", "))
    } else {
        format!("the fields {}", others.join(", "))
    };
    let said: String = format!("over the bound of {bound} bytes, so left out: {left_out}").chars().take(MAX_LEFT_OUT).collect();
    alert.fields = Map::from_iter([(LEFT_OUT.to_owned(), Value::String(said))]);
    let payload = serde_json::to_vec(&alert).ok()?;
    Some(Message { payload: payload.into(), ..message.clone() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use aegis_model::{RuleMode, Severity, Timestamp};

    #[test]
    fn an_alert_gets_smaller_until_nothing_is_left_to_leave_out() {
        let object = |value: Value| value.as_object().unwrap().clone();
        let alert = Alert {
            alert_id: "ab".repeat(32),
            tenant_id: TenantId::new("acme").unwrap(),
            rule_id: "T-1".into(),
            rule_name: "t".into(),
            rule_version: 1,
            rule_hash: "cd".repeat(32),
            severity: Severity::Low,
            mode: RuleMode::Active,
            key: object(json!({"agent_id": "a", "resource": "r".repeat(5000)})),
            first_ts: Timestamp::from_micros(1),
            last_ts: Timestamp::from_micros(2),
            event_ids: vec![uuid::Uuid::from_u128(1)],
            receipt_hashes: vec![],
            fields: object(json!({"reasons": ["x".repeat(5000)], "n": 1})),
            respond: vec![],
            atlas: vec![],
            owasp: vec![],
            runbook: None,
            detected_at: Timestamp::from_micros(3),
            found_late: false,
        };
        let message = Message::new("alert.acme.1", serde_json::to_vec(&alert).unwrap()).expecting(0);
        let read = |message: &Message| serde_json::from_slice::<Alert>(&message.payload).unwrap();

        let once = smaller(&message, 1000).unwrap();
        assert_eq!((once.subject.as_str(), once.expected_last_subject_seq), ("alert.acme.1", Some(0)));
        let said = "over the bound of 1000 bytes, so left out: the fields reasons, n";
        assert_eq!(read(&once), Alert { fields: object(json!({"left_out": said})), ..alert.clone() });

        let twice = smaller(&once, 1000).unwrap();
        let said = "over the bound of 1000 bytes, so left out: all fields, and the ends of the key's resource";
        let key = object(json!({"agent_id": "a", "resource": "r".repeat(MAX_KEY_TEXT)}));
        assert_eq!(read(&twice), Alert { key, fields: object(json!({"left_out": said})), ..alert });
        assert_eq!(smaller(&twice, 1000), None);
        assert_eq!(smaller(&Message::new("episode.acme.1", "{}"), 1000), None);
    }
}
