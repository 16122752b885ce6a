//! The canonical text of an event and of a receipt body, written directly: keys in canonical order, no intermediate value.
//! Promises the bytes that `aegis_canon` gives for the same object; the tests below hold the two against each other.

use std::sync::Arc;

use aegis_canon::ObjectText;
use aegis_model::{DataAccess, Decision, Destination, EventId, RECEIPT_SCHEMA, RiskLevel, SecurityEvent, SourceTrust};

use crate::draft::Draft;

/// The place that the writer gives to an event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) lane: &'a str,
    pub(crate) seq: i64,
    /// RFC 3339.
    pub(crate) ts: &'a str,
}

/// The canonical columns of `event` at its place, as they are digested and as they go on the wire. Written in `room`.
pub(crate) fn event_text(event: &SecurityEvent, place: Place<'_>, room: &mut Vec<u8>) -> Arc<str> {
    // Taken apart without `..`, so that a new column cannot be forgotten here.
    let SecurityEvent {
        event_id,
        ref_event_id,
        tenant_id,
        edge_id,
        ts: _,
        lane: _,
        seq: _,
        kind,
        source,
        verified: _,
        clock_suspect,
        agent_id,
        token_id,
        user_id,
        run_id,
        trace_id,
        environment,
        tool,
        action,
        resource,
        target,
        destination,
        data_access,
        mutates_state,
        contains_sensitive_data,
        source_trust,
        root_trust,
        decision,
        risk_level,
        reason,
        status,
        risk_score,
        matched_policies,
        policy_digest,
        action_hash,
        receipt_hash: _,
        approval_id,
        approver,
        nonce_hash,
        attributes,
        bus_ts: _,
        late: _,
    } = event;
    let mut columns = Columns(ObjectText::in_room(room));
    columns.text("action", action.as_deref());
    columns.text("action_hash", action_hash.as_deref());
    columns.text("agent_id", agent_id.as_deref());
    columns.text("approval_id", approval_id.as_deref());
    columns.text("approver", approver.as_deref());
    columns.text("attributes", attributes.as_deref());
    columns.flag("clock_suspect", Some(*clock_suspect));
    columns.flag("contains_sensitive_data", *contains_sensitive_data);
    columns.text("data_access", data_access.map(DataAccess::as_str));
    columns.text("decision", decision.map(Decision::as_str));
    columns.text("destination", destination.map(Destination::as_str));
    columns.text("edge_id", Some(edge_id));
    columns.text("environment", environment.as_deref());
    columns.id("event_id", Some(*event_id));
    columns.text("kind", Some(kind.as_str()));
    columns.text("lane", Some(place.lane));
    columns.0.texts("matched_policies", matched_policies.iter().map(String::as_str));
    columns.flag("mutates_state", *mutates_state);
    columns.text("nonce_hash", nonce_hash.as_deref());
    columns.text("policy_digest", policy_digest.as_deref());
    columns.text("reason", reason.as_deref());
    columns.id("ref_event_id", *ref_event_id);
    columns.text("resource", resource.as_deref());
    columns.text("risk_level", risk_level.map(RiskLevel::as_str));
    if let Some(score) = risk_score {
        columns.0.integer("risk_score", i64::from(*score));
    }
    columns.text("root_trust", root_trust.map(SourceTrust::as_str));
    columns.text("run_id", run_id.as_deref());
    columns.0.integer("seq", place.seq);
    columns.text("source", Some(source));
    columns.text("source_trust", source_trust.map(SourceTrust::as_str));
    columns.text("status", status.as_deref());
    columns.text("target", target.as_deref());
    columns.text("tenant_id", Some(tenant_id.as_str()));
    columns.text("token_id", token_id.as_deref());
    columns.text("tool", tool.as_deref());
    columns.text("trace_id", trace_id.as_deref());
    columns.text("ts", Some(place.ts));
    columns.text("user_id", user_id.as_deref());
    columns.0.finish_in(room)
}

/// What the writer adds to a draft to make it a receipt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seal<'a> {
    pub(crate) event_digest: &'a str,
    /// Canonical already.
    pub(crate) detail: Option<&'a str>,
    pub(crate) input_hash: Option<&'a str>,
    pub(crate) output_hash: Option<&'a str>,
    pub(crate) key_id: &'a str,
    pub(crate) prev_receipt_hash: &'a str,
}

/// The canonical body of the receipt for `draft` (`aegis_model::ReceiptBody`, every key of it present): the bytes that `receipt_hash`
/// is the hash of. Written in `room`.
pub(crate) fn body_text(draft: &Draft, place: Place<'_>, seal: Seal<'_>, room: &mut Vec<u8>) -> Arc<str> {
    let event = &draft.event;
    let mut body = Body(ObjectText::in_room(room));
    body.text("action", event.action.as_deref());
    body.text("action_hash", event.action_hash.as_deref());
    body.text("agent_id", event.agent_id.as_deref());
    body.text("approval_id", event.approval_id.as_deref());
    body.text("approver", event.approver.as_deref());
    body.text("decision", event.decision.map(Decision::as_str));
    body.0.raw("detail", seal.detail.unwrap_or("null"));
    body.text("event_digest", Some(seal.event_digest));
    body.id("event_id", Some(event.event_id));
    body.text("executed_hash", draft.executed_hash.as_deref());
    body.text("input_hash", seal.input_hash);
    body.text("key_id", Some(seal.key_id));
    body.text("lane", Some(place.lane));
    body.0.texts("matched_policies", event.matched_policies.iter().map(String::as_str));
    match event.mutates_state {
        Some(mutates) => body.0.flag("mutates_state", mutates),
        None => body.0.raw("mutates_state", "null"),
    }
    body.text("output_hash", seal.output_hash);
    body.text("phase", Some(draft.phase.as_str()));
    body.text("policy_digest", event.policy_digest.as_deref());
    body.text("prev_receipt_hash", Some(seal.prev_receipt_hash));
    body.id("ref_event_id", event.ref_event_id);
    body.text("resource", event.resource.as_deref());
    body.text("run_id", event.run_id.as_deref());
    body.text("schema", Some(RECEIPT_SCHEMA));
    body.0.integer("seq", place.seq);
    body.text("source_trust", event.source_trust.map(SourceTrust::as_str));
    body.text("tenant_id", Some(event.tenant_id.as_str()));
    body.text("tool", event.tool.as_deref());
    body.text("trace_id", event.trace_id.as_deref());
    body.text("ts", Some(place.ts));
    body.text("user_id", event.user_id.as_deref());
    body.0.finish_in(room)
}

/// Members of an event: what is absent has no key.
struct Columns(ObjectText);

impl Columns {
    fn text(&mut self, key: &'static str, value: Option<&str>) {
        if let Some(value) = value {
            self.0.text(key, value);
        }
    }

    fn flag(&mut self, key: &'static str, value: Option<bool>) {
        if let Some(value) = value {
            self.0.flag(key, value);
        }
    }

    fn id(&mut self, key: &'static str, id: Option<EventId>) {
        if let Some(id) = id {
            self.0.text(key, id.as_hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()));
        }
    }
}

/// Members of a receipt body: what is absent is null.
struct Body(ObjectText);

impl Body {
    fn text(&mut self, key: &'static str, value: Option<&str>) {
        match value {
            Some(value) => self.0.text(key, value),
            None => self.0.raw(key, "null"),
        }
    }

    fn id(&mut self, key: &'static str, id: Option<EventId>) {
        let mut buffer = uuid::Uuid::encode_buffer();
        self.text(key, id.map(|id| &*id.as_hyphenated().encode_lower(&mut buffer)));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use aegis_model::{EventKind, Phase, ReceiptBody, TenantId, Timestamp};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    /// An event with every column set, so that every key's position is tested.
    fn full_event(text: &str, flag: bool, score: i32) -> SecurityEvent {
        let tenant = TenantId::new("acme").unwrap();
        let some = |name: &str| Some(format!("{name} {text}"));
        SecurityEvent {
            ref_event_id: flag.then(aegis_model::new_event_id),
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
            receipt_hash: some("never digested"),
            approval_id: some("approval"),
            approver: some("approver"),
            nonce_hash: some("nonce"),
            attributes: some("attributes"),
            bus_ts: Some(Timestamp::from_micros(5)),
            late: flag,
            ..SecurityEvent::new(tenant, "edge", "edge", EventKind::AuthorizeDecision, Timestamp::from_micros(1_000_000))
        }
    }

    fn both_ways_agree(event: &SecurityEvent) {
        let place = Place { lane: "acme.edge.0", seq: 7, ts: "2026-11-22T10:00:00.000000Z" };
        let mut placed = event.clone();
        placed.lane = Some(place.lane.to_owned());
        placed.seq = Some(place.seq);
        placed.ts = Timestamp::parse_rfc3339(place.ts).unwrap();
        let digest_form = SecurityEvent::digest_form(&serde_json::to_value(&placed).unwrap());
        let canonical = String::from_utf8(aegis_canon::canonicalize_value(&digest_form).unwrap()).unwrap();
        let mut room = Vec::new();
        assert_eq!(&*event_text(event, place, &mut room), canonical.as_str());
        // L-READ-ONCE: what reads the text has the event that was written, so that it can be handed on instead.
        let written = SecurityEvent { verified: false, bus_ts: None, late: false, receipt_hash: None, ..placed.clone() };
        assert_eq!(serde_json::from_str::<SecurityEvent>(&canonical).unwrap(), written);

        let draft = Draft { executed_hash: Some("x".into()), ..Draft::new(event.clone(), Phase::Decision) };
        let seal = Seal {
            event_digest: "d",
            detail: Some(r#"{"a":1}"#),
            input_hash: Some("i"),
            output_hash: None,
            key_id: "k",
            prev_receipt_hash: "p",
        };
        let body = body_text(&draft, place, seal, &mut room);
        let read: ReceiptBody = serde_json::from_str(&body).unwrap();
        assert!(read.extra.is_empty());
        assert_eq!((read.detail.clone(), read.ts), (Some(json!({"a": 1})), placed.ts));
        let value: Value = serde_json::to_value(&read).unwrap();
        assert_eq!(body.as_bytes(), aegis_canon::canonicalize_value(&value).unwrap());
    }

    proptest! {
        #[test]
        fn the_direct_text_is_the_canonical_text(text in any::<String>(), flag in any::<bool>(), score in any::<i32>()) {
            both_ways_agree(&full_event(&text, flag, score));
        }
    }

    #[test]
    fn every_word_is_the_one_that_serde_writes() {
        let words = |event: SecurityEvent| both_ways_agree(&event);
        let any = || full_event("x", true, 7);
        for trust in SourceTrust::ALL {
            words(SecurityEvent { source_trust: Some(trust), root_trust: Some(trust), ..any() });
        }
        for decision in [Decision::Allow, Decision::RequireApproval, Decision::Deny] {
            words(SecurityEvent { decision: Some(decision), ..any() });
        }
        for risk in [RiskLevel::Low, RiskLevel::Medium, RiskLevel::High, RiskLevel::Critical] {
            words(SecurityEvent { risk_level: Some(risk), ..any() });
        }
        for access in [DataAccess::None, DataAccess::Internal, DataAccess::Sensitive] {
            words(SecurityEvent { data_access: Some(access), ..any() });
        }
        for destination in [Destination::Internal, Destination::External] {
            words(SecurityEvent { destination: Some(destination), ..any() });
        }
        for kind in ["lane_open", "authorize_decision", "tool_outcome", "receipt_chain_broken", "external_event:github_webhook"] {
            words(SecurityEvent { kind: kind.parse().unwrap(), ..any() });
        }
    }

    #[test]
    fn absent_columns_are_left_out_of_the_digest() {
        let tenant = TenantId::new("acme").unwrap();
        both_ways_agree(&SecurityEvent::new(tenant, "e", "edge", EventKind::LaneGap, Timestamp::from_micros(0)));
    }
}
