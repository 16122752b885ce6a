//! What a match becomes: an alert whose id is decided by tenant, rule, key and first evidence alone.
//! The rule's version and hash stand in the body, so that an edited rule does not raise its old alerts again.

use aegis_canon::CanonError;
use aegis_model::{Alert, EventId, TenantId, Timestamp};
use serde_json::{Map, Value, json};

use crate::output::Match;
use crate::rule::Rule;

/// Hex SHA-256 of the canonical `[tenant, rule id, key, first evidence event id]`.
pub fn alert_id(tenant: &TenantId, rule_id: &str, key: &Map<String, Value>, first: EventId) -> Result<String, CanonError> {
    aegis_canon::hash_value(&json!([tenant.as_str(), rule_id, key, first.to_string()]))
}

/// The same, of a rule that contains, where it was found late: it asks for no response, and must not stand in the place of one that does.
pub(crate) fn late_alert_id(
    tenant: &TenantId,
    rule_id: &str,
    key: &Map<String, Value>,
    first: EventId,
) -> Result<String, CanonError> {
    aegis_canon::hash_value(&json!([tenant.as_str(), rule_id, key, first.to_string(), "late"]))
}

/// The alert of a match.
pub(crate) fn alert_of(rule: &Rule, tenant: &TenantId, alert_id: &str, found: &Match, detected_at: Timestamp) -> Alert {
    let header = &rule.header;
    Alert {
        alert_id: alert_id.to_owned(),
        tenant_id: tenant.clone(),
        rule_id: header.id.clone(),
        rule_name: header.name.clone(),
        rule_version: header.version,
        rule_hash: rule.hash.clone(),
        severity: header.severity,
        mode: header.mode,
        key: found.key.clone(),
        first_ts: found.first().ts,
        last_ts: found.last().ts,
        event_ids: found.evidence.iter().map(|e| e.event_id).collect(),
        receipt_hashes: found.evidence.iter().filter_map(|e| e.receipt_hash.clone()).collect(),
        fields: found.fields.clone(),
        respond: header.respond.iter().map(|r| r.as_str().to_owned()).collect(),
        atlas: header.atlas.clone(),
        owasp: header.owasp.clone(),
        runbook: header.runbook.clone(),
        detected_at,
        found_late: false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_id_is_decided_by_tenant_rule_key_and_first_evidence() {
        let tenant = |t| TenantId::new(t).unwrap();
        let key = |v: &str| json!({"agent_id": v}).as_object().unwrap().clone();
        let event = uuid::Uuid::from_u128(7);
        let id = alert_id(&tenant("acme"), "AEG-1", &key("a"), event).unwrap();
        assert_eq!(id, alert_id(&tenant("acme"), "AEG-1", &key("a"), event).unwrap());
        // The canonical text, spelled out, so that another implementation can compute it.
        let text = r#"["acme","AEG-1",{"agent_id":"a"},"00000000-0000-0000-0000-000000000007"]"#;
        assert_eq!(id, aegis_canon::sha256_hex(text.as_bytes()));
        for other in [
            alert_id(&tenant("acme2"), "AEG-1", &key("a"), event),
            alert_id(&tenant("acme"), "AEG-2", &key("a"), event),
            alert_id(&tenant("acme"), "AEG-1", &key("b"), event),
            alert_id(&tenant("acme"), "AEG-1", &key("a"), uuid::Uuid::from_u128(8)),
        ] {
            assert_ne!(other.unwrap(), id);
        }
        let late = r#"["acme","AEG-1",{"agent_id":"a"},"00000000-0000-0000-0000-000000000007","late"]"#;
        let id = late_alert_id(&tenant("acme"), "AEG-1", &key("a"), event).unwrap();
        assert_eq!(id, aegis_canon::sha256_hex(late.as_bytes()));
    }
}
