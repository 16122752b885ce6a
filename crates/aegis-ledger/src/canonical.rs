//! The canonical text of an event and of a receipt body, written directly: keys in canonical order, no intermediate value.
//! Promises the bytes that `aegis_canon` gives for the same object; the tests below hold the two against each other.

use aegis_model::{
    DataAccess, Decision, Destination, EventId, EventKind, Phase, RECEIPT_SCHEMA, RiskLevel, SecurityEvent, SourceTrust, TenantId,
};
use serde::Serialize;

use crate::draft::Draft;

/// The place that the writer gives to an event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) lane: &'a str,
    pub(crate) seq: i64,
    /// RFC 3339.
    pub(crate) ts: &'a str,
}

/// An event's digest form (`SecurityEvent::digest_form`). Fields stand in the order of RFC 8785; strings, booleans and safe
/// integers are all it holds, which serde_json writes as RFC 8785 does.
#[derive(Serialize)]
struct EventColumns<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    action_hash: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    agent_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    approval_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    approver: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attributes: Option<&'a str>,
    clock_suspect: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    contains_sensitive_data: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_access: Option<DataAccess>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision: Option<Decision>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<Destination>,
    edge_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    environment: Option<&'a str>,
    event_id: EventId,
    kind: EventKind,
    lane: &'a str,
    matched_policies: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    mutates_state: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nonce_hash: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy_digest: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ref_event_id: Option<EventId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resource: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    risk_level: Option<RiskLevel>,
    #[serde(skip_serializing_if = "Option::is_none")]
    risk_score: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    root_trust: Option<SourceTrust>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_id: Option<&'a str>,
    seq: i64,
    source: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_trust: Option<SourceTrust>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<&'a str>,
    tenant_id: &'a TenantId,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<&'a str>,
    ts: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<&'a str>,
}

/// The canonical columns of `event` at its place, as they are digested and as they go on the wire.
pub(crate) fn event_text(event: &SecurityEvent, place: Place<'_>) -> Result<String, serde_json::Error> {
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
    serde_json::to_string(&EventColumns {
        action: action.as_deref(),
        action_hash: action_hash.as_deref(),
        agent_id: agent_id.as_deref(),
        approval_id: approval_id.as_deref(),
        approver: approver.as_deref(),
        attributes: attributes.as_deref(),
        clock_suspect: *clock_suspect,
        contains_sensitive_data: *contains_sensitive_data,
        data_access: *data_access,
        decision: *decision,
        destination: *destination,
        edge_id,
        environment: environment.as_deref(),
        event_id: *event_id,
        kind: *kind,
        lane: place.lane,
        matched_policies,
        mutates_state: *mutates_state,
        nonce_hash: nonce_hash.as_deref(),
        policy_digest: policy_digest.as_deref(),
        reason: reason.as_deref(),
        ref_event_id: *ref_event_id,
        resource: resource.as_deref(),
        risk_level: *risk_level,
        risk_score: *risk_score,
        root_trust: *root_trust,
        run_id: run_id.as_deref(),
        seq: place.seq,
        source,
        source_trust: *source_trust,
        status: status.as_deref(),
        target: target.as_deref(),
        tenant_id,
        token_id: token_id.as_deref(),
        tool: tool.as_deref(),
        trace_id: trace_id.as_deref(),
        ts: place.ts,
        user_id: user_id.as_deref(),
    })
}

/// A receipt body (`aegis_model::ReceiptBody`), all keys present, in the order of RFC 8785: the keys before `detail`.
#[derive(Serialize)]
struct BodyHead<'a> {
    action: Option<&'a str>,
    action_hash: Option<&'a str>,
    agent_id: Option<&'a str>,
    approval_id: Option<&'a str>,
    approver: Option<&'a str>,
    decision: Option<Decision>,
}

/// The keys after `detail`.
#[derive(Serialize)]
struct BodyTail<'a> {
    event_digest: &'a str,
    event_id: EventId,
    executed_hash: Option<&'a str>,
    input_hash: Option<&'a str>,
    key_id: &'a str,
    lane: &'a str,
    matched_policies: &'a [String],
    mutates_state: Option<bool>,
    output_hash: Option<&'a str>,
    phase: Phase,
    policy_digest: Option<&'a str>,
    prev_receipt_hash: &'a str,
    ref_event_id: Option<EventId>,
    resource: Option<&'a str>,
    run_id: Option<&'a str>,
    schema: &'a str,
    seq: i64,
    source_trust: Option<SourceTrust>,
    tenant_id: &'a TenantId,
    tool: Option<&'a str>,
    trace_id: Option<&'a str>,
    ts: &'a str,
    user_id: Option<&'a str>,
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

/// The canonical body of the receipt for `draft`: the bytes that `receipt_hash` is the hash of.
pub(crate) fn body_text(draft: &Draft, place: Place<'_>, seal: Seal<'_>) -> Result<String, serde_json::Error> {
    let event = &draft.event;
    let mut text = serde_json::to_string(&BodyHead {
        action: event.action.as_deref(),
        action_hash: event.action_hash.as_deref(),
        agent_id: event.agent_id.as_deref(),
        approval_id: event.approval_id.as_deref(),
        approver: event.approver.as_deref(),
        decision: event.decision,
    })?;
    let tail = serde_json::to_string(&BodyTail {
        event_digest: seal.event_digest,
        event_id: event.event_id,
        executed_hash: draft.executed_hash.as_deref(),
        input_hash: seal.input_hash,
        key_id: seal.key_id,
        lane: place.lane,
        matched_policies: &event.matched_policies,
        mutates_state: event.mutates_state,
        output_hash: seal.output_hash,
        phase: draft.phase,
        policy_digest: event.policy_digest.as_deref(),
        prev_receipt_hash: seal.prev_receipt_hash,
        ref_event_id: event.ref_event_id,
        resource: event.resource.as_deref(),
        run_id: event.run_id.as_deref(),
        schema: RECEIPT_SCHEMA,
        seq: place.seq,
        source_trust: event.source_trust,
        tenant_id: &event.tenant_id,
        tool: event.tool.as_deref(),
        trace_id: event.trace_id.as_deref(),
        ts: place.ts,
        user_id: event.user_id.as_deref(),
    })?;
    // Both parts are objects with keys, so their braces give way to the commas around `detail`.
    text.pop();
    text.push_str(",\"detail\":");
    text.push_str(seal.detail.unwrap_or("null"));
    text.push(',');
    text.push_str(tail.get(1..).unwrap_or_default());
    Ok(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use aegis_model::{ReceiptBody, Timestamp};
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
        assert_eq!(event_text(event, place).unwrap(), canonical);

        let draft = Draft { executed_hash: Some("x".into()), ..Draft::new(event.clone(), Phase::Decision) };
        let seal = Seal {
            event_digest: "d",
            detail: Some(r#"{"a":1}"#),
            input_hash: Some("i"),
            output_hash: None,
            key_id: "k",
            prev_receipt_hash: "p",
        };
        let body = body_text(&draft, place, seal).unwrap();
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
    fn absent_columns_are_left_out_of_the_digest() {
        let tenant = TenantId::new("acme").unwrap();
        both_ways_agree(&SecurityEvent::new(tenant, "e", "edge", EventKind::LaneGap, Timestamp::from_micros(0)));
    }
}
