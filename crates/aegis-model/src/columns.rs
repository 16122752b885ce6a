//! An event read from the members of its text, each value where it stands. For readers of much text that a ledger wrote.
//! Promises the event that serde reads from the same text, or none; what is not plainly a column of it is left to serde, which says why.

use aegis_canon::RawMember;
use serde::Deserialize;
use serde::de::value::{BorrowedStrDeserializer, Error};

use crate::{EventId, EventKind, SecurityEvent, TenantId, Timestamp};

/// The event whose columns these are; no key twice, none null.
pub(crate) fn event_of(columns: &[RawMember<'_>]) -> Option<SecurityEvent> {
    let find = |key: &str| columns.iter().find(|column| column.key == key);
    let mut event = SecurityEvent::with_id(
        EventId::try_parse(find("event_id")?.as_plain_str()?).ok()?,
        TenantId::new(find("tenant_id")?.as_plain_str()?).ok()?,
        &text(find("edge_id")?)?,
        &text(find("source")?)?,
        word::<EventKind>(find("kind")?)?,
        Timestamp::parse_rfc3339(find("ts")?.as_plain_str()?).ok()?,
    );
    for column in columns {
        take(&mut event, column)?;
    }
    Some(event)
}

/// Sets one column. None: its value is of another type.
fn take(event: &mut SecurityEvent, column: &RawMember<'_>) -> Option<()> {
    match column.key {
        "event_id" | "tenant_id" | "edge_id" | "source" | "kind" | "ts" => {}
        "ref_event_id" => event.ref_event_id = Some(EventId::try_parse(column.as_plain_str()?).ok()?),
        "lane" => event.lane = Some(text(column)?),
        "seq" => event.seq = Some(column.as_i64()?),
        "verified" => event.verified = flag(column)?,
        "clock_suspect" => event.clock_suspect = flag(column)?,
        "agent_id" => event.agent_id = Some(text(column)?),
        "token_id" => event.token_id = Some(text(column)?),
        "user_id" => event.user_id = Some(text(column)?),
        "run_id" => event.run_id = Some(text(column)?),
        "trace_id" => event.trace_id = Some(text(column)?),
        "environment" => event.environment = Some(text(column)?),
        "tool" => event.tool = Some(text(column)?),
        "action" => event.action = Some(text(column)?),
        "resource" => event.resource = Some(text(column)?),
        "target" => event.target = Some(text(column)?),
        "destination" => event.destination = Some(word(column)?),
        "data_access" => event.data_access = Some(word(column)?),
        "mutates_state" => event.mutates_state = Some(flag(column)?),
        "contains_sensitive_data" => event.contains_sensitive_data = Some(flag(column)?),
        "source_trust" => event.source_trust = Some(word(column)?),
        "root_trust" => event.root_trust = Some(word(column)?),
        "decision" => event.decision = Some(word(column)?),
        "risk_level" => event.risk_level = Some(word(column)?),
        "reason" => event.reason = Some(text(column)?),
        "status" => event.status = Some(text(column)?),
        "risk_score" => event.risk_score = Some(i32::try_from(column.as_i64()?).ok()?),
        "matched_policies" => event.matched_policies = serde_json::from_str(column.value).ok()?,
        "policy_digest" => event.policy_digest = Some(text(column)?),
        "action_hash" => event.action_hash = Some(text(column)?),
        "receipt_hash" => event.receipt_hash = Some(text(column)?),
        "approval_id" => event.approval_id = Some(text(column)?),
        "approver" => event.approver = Some(text(column)?),
        "nonce_hash" => event.nonce_hash = Some(text(column)?),
        "attributes" => event.attributes = Some(text(column)?),
        "bus_ts" => event.bus_ts = Some(Timestamp::parse_rfc3339(column.as_plain_str()?).ok()?),
        "late" => event.late = flag(column)?,
        // A column of a newer version, which is no concern of this one.
        _ => {}
    }
    Some(())
}

/// A text, with its escapes resolved if it has any.
fn text(column: &RawMember<'_>) -> Option<String> {
    match column.as_plain_str() {
        Some(plain) => Some(plain.to_owned()),
        None => serde_json::from_str(column.value).ok(),
    }
}

fn flag(column: &RawMember<'_>) -> Option<bool> {
    match column.value {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

/// One of an enum's words, as its own `Deserialize` takes it.
fn word<'de, T: Deserialize<'de>>(column: &RawMember<'de>) -> Option<T> {
    T::deserialize(BorrowedStrDeserializer::<Error>::new(column.as_plain_str()?)).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{DataAccess, Decision, Destination, RiskLevel, SourceTrust};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    /// Every column set, so that none is forgotten.
    fn full_event(text: &str, flag: bool, score: i32) -> SecurityEvent {
        let some = |name: &str| Some(format!("{name} {text}"));
        let tenant = TenantId::new("acme").unwrap();
        SecurityEvent {
            ref_event_id: Some(crate::new_event_id()),
            lane: some("lane"),
            seq: Some(i64::from(score)),
            verified: flag,
            clock_suspect: flag,
            agent_id: some("agent"),
            token_id: some("token"),
            user_id: some("user"),
            run_id: some("run"),
            trace_id: some("trace"),
            environment: some("environment"),
            tool: some("tool"),
            action: some("action"),
            resource: some("resource"),
            target: some("target"),
            destination: Some(Destination::External),
            data_access: Some(DataAccess::Sensitive),
            mutates_state: Some(flag),
            contains_sensitive_data: Some(!flag),
            source_trust: Some(SourceTrust::UntrustedExternal),
            root_trust: Some(SourceTrust::Unknown),
            decision: Some(Decision::RequireApproval),
            risk_level: Some(RiskLevel::High),
            reason: some("reason"),
            status: some("status"),
            risk_score: Some(score),
            matched_policies: vec![text.to_owned(), "p".to_owned()],
            policy_digest: some("digest"),
            action_hash: some("hash"),
            receipt_hash: some("receipt"),
            approval_id: some("approval"),
            approver: some("approver"),
            nonce_hash: some("nonce"),
            attributes: some("attributes"),
            bus_ts: Some(Timestamp::from_micros(5)),
            late: flag,
            ..SecurityEvent::new(tenant, "edge \"1\"", "edge", EventKind::AuthorizeDecision, Timestamp::from_micros(1_000_000))
        }
    }

    fn both_ways(event: &Value) -> (Option<SecurityEvent>, Option<SecurityEvent>) {
        let text = String::from_utf8(aegis_canon::canonicalize_value(event).unwrap()).unwrap();
        let short = aegis_canon::outline(&text, &[]).and_then(|outline| {
            let columns: Vec<RawMember<'_>> = aegis_canon::Members::new(&text, &outline.places).iter().collect();
            event_of(&columns)
        });
        (short, serde_json::from_str(&text).ok())
    }

    proptest! {
        #[test]
        fn it_reads_what_serde_reads(text in any::<String>(), flag in any::<bool>(), score in any::<i32>()) {
            let event = full_event(&text, flag, score);
            let (short, long) = both_ways(&serde_json::to_value(&event).unwrap());
            prop_assert_eq!(short.as_ref(), Some(&event));
            prop_assert_eq!(short, long);
        }
    }

    #[test]
    fn whatever_a_column_holds_it_reads_what_serde_reads_or_nothing() {
        let event = serde_json::to_value(full_event("é\n", true, 7)).unwrap();
        let others = [
            json!(true),
            json!(-1),
            json!(5_000_000_000_i64),
            json!(""),
            json!("allow"),
            json!("2026-11-22T10:00:00Z"),
            json!("01a20373-e32e-7670-88c7-11fb33861258"),
            json!("tool_outcome"),
            json!("a\\\"b"),
            json!(["x"]),
            json!([1]),
            json!({"a": 1}),
        ];
        let mut read = 0;
        for key in event.as_object().unwrap().keys() {
            for other in &others {
                let mut changed = event.clone();
                changed[key] = other.clone();
                let (short, long) = both_ways(&changed);
                if short.is_some() {
                    assert_eq!(short, long, "{key}: {other}");
                    read += 1;
                }
            }
            let mut without = event.clone();
            without.as_object_mut().unwrap().remove(key);
            let (short, long) = both_ways(&without);
            assert!(short.is_none() || short == long, "without {key}");
        }
        assert!(read > 100, "{read}");
        let mut newer = event;
        newer["zone"] = json!({"of": "a newer version"});
        let (short, long) = both_ways(&newer);
        assert!(short.is_some() && short == long);
    }
}
