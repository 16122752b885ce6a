//! L-INCIDENT: one incident per tenant, entity and rule while not closed; alerts and actions are idempotent.

use std::collections::BTreeSet;

use aegis_model::{IncidentStatus, Retraction, Severity};
use aegis_store::entity_of;
use serde_json::json;

use crate::fixtures::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_alerts_of_one_entity_and_rule_share_one_incident() {
    let place = Place::new().await;
    let mut tasks = Vec::new();
    for i in 0..64 {
        let store = place.store.clone();
        tasks.push(tokio::spawn(async move {
            let alert = alert(&acme(), &format!("alert-{i}"), "R1", "agent-1");
            store.open_or_join_incident(&alert, START).await.unwrap()
        }));
    }
    let (mut ids, mut opened) = (BTreeSet::new(), 0);
    for task in tasks {
        let (incident, is_new) = task.await.unwrap();
        ids.insert(incident.incident_id);
        opened += usize::from(is_new);
    }
    assert_eq!((ids.len(), opened), (1, 1));
    let id = ids.pop_first().unwrap();
    assert_eq!(place.store.incident(&acme(), &id).await.unwrap().unwrap().alert_ids.len(), 64);
    for (rule, agent) in [("R2", "agent-1"), ("R1", "agent-2")] {
        let other = alert(&acme(), &format!("{rule}-{agent}"), rule, agent);
        assert!(place.store.open_or_join_incident(&other, START).await.unwrap().1);
    }
    assert_eq!(place.store.open_incidents_total().await.unwrap(), 3);
}

#[tokio::test]
async fn an_alert_that_comes_again_keeps_its_incident_even_a_closed_one() {
    let place = Place::new().await;
    let first = alert(&acme(), "alert-1", "R1", "agent-1");
    let (incident, opened) = place.store.open_or_join_incident(&first, START).await.unwrap();
    assert!(opened);
    assert!(place.store.close_incident(&acme(), &incident.incident_id, "ann").await.unwrap());
    assert!(!place.store.close_incident(&acme(), &incident.incident_id, "ann").await.unwrap());
    let (again, opened) = place.store.open_or_join_incident(&first, START).await.unwrap();
    assert_eq!(
        (again.incident_id.as_str(), again.status, opened),
        (incident.incident_id.as_str(), IncidentStatus::Closed, false)
    );
    let (next, opened) = place.store.open_or_join_incident(&alert(&acme(), "alert-2", "R1", "agent-1"), START).await.unwrap();
    assert!(opened && next.incident_id != incident.incident_id, "a later alert opens another");
}

#[tokio::test]
async fn an_incident_is_as_severe_as_its_worst_alert() {
    let place = Place::new().await;
    for (id, severity) in [("1", Severity::Medium), ("2", Severity::Critical), ("3", Severity::Low)] {
        let mut alert = alert(&acme(), id, "R1", "agent-1");
        alert.severity = severity;
        place.store.open_or_join_incident(&alert, START).await.unwrap();
    }
    assert_eq!(place.store.list_incidents(&acme(), 10, 0).await.unwrap()[0].severity, Severity::Critical);
}

#[tokio::test]
async fn an_action_is_one_per_command_and_a_closed_incident_stays_closed() {
    let place = Place::new().await;
    let store = &place.store;
    let (incident, _) = store.open_or_join_incident(&alert(&acme(), "1", "R1", "a"), START).await.unwrap();
    let id = incident.incident_id.as_str();
    assert!(store.put_incident_action(&acme(), id, "c1", &json!({"status": "pending"}), true, None).await.unwrap());
    assert!(store.add_incident_action(&acme(), id, &json!({"note": "looked at"}), None).await.unwrap());
    assert_eq!(store.pending_incident_actions(10).await.unwrap()[0].command_id, "c1");
    let contained = Some(IncidentStatus::Contained);
    store.put_incident_action(&acme(), id, "c1", &json!({"status": "applied"}), false, contained).await.unwrap();
    assert!(store.pending_incident_actions(10).await.unwrap().is_empty());
    let now = store.incident(&acme(), id).await.unwrap().unwrap();
    assert_eq!(now.actions, [json!({"status": "applied"}), json!({"note": "looked at"})]);
    assert_eq!(now.status, IncidentStatus::Contained);
    store.close_incident(&acme(), id, "ann").await.unwrap();
    store.add_incident_action(&acme(), id, &json!({}), contained).await.unwrap();
    assert_eq!(store.incident(&acme(), id).await.unwrap().unwrap().status, IncidentStatus::Closed);
    assert!(!store.add_incident_action(&acme(), "none", &json!({}), None).await.unwrap());
}

#[tokio::test]
async fn alerts_are_kept_once_and_retraction_marks_them() {
    let place = Place::new().await;
    let first = alert(&acme(), "1", "R1", "a");
    assert!(place.store.insert_alert(&first).await.unwrap());
    assert!(!place.store.insert_alert(&first).await.unwrap());
    let retraction =
        Retraction { alert_id: "1".into(), tenant_id: acme(), rule_id: "R1".into(), detected_at: START.plus_seconds(99) };
    assert!(place.store.retract_alert(&retraction).await.unwrap());
    assert!(!place.store.retract_alert(&retraction).await.unwrap());
    let kept = place.store.alert(&acme(), "1").await.unwrap().unwrap();
    assert_eq!((kept.alert, kept.retracted_at), (first, Some(START.plus_seconds(99))));
}

#[test]
fn two_entities_never_share_a_text() {
    let of = |a: &str, b: &str| {
        let mut alert = alert(&acme(), "1", "R1", "x");
        alert.key = json!({"a": a, "b": b}).as_object().unwrap().clone();
        entity_of(&alert)
    };
    assert_eq!(of("x", "y"), "a=x,b=y");
    assert_ne!(of("x,b=y", "z"), of("x", "y,b=z"));
    assert_ne!(of("x\\,b=y", "z"), of("x\\", "y,b=z"));
}
