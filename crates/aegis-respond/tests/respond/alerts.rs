//! What an alert leads to.

use crate::life::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_active_alert_opens_an_incident_and_freezes_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let life = Life::begin(folder.path()).await;
    let first = alert(1, "agent-1");
    life.publish(&first).await;
    life.passed().await;
    let (incident, record) = life.only_record().await;
    assert_eq!((incident.status, incident.entity.as_str()), (IncidentStatus::Contained, "agent_id=agent-1"));
    assert_eq!((record.status, record.attempts), (ResponseStatus::Applied, 1));
    assert!(record.revision.is_some());
    assert_eq!(life.verdict("agent-1").await, Verdict::Frozen);
    let asked = life.control.asked.lock().clone();
    let expected = ContainmentRequest {
        tenant_id: acme(),
        command_id: command_id(&first.alert_id, "freeze_agent", "agent-1"),
        target_type: TargetType::Agent,
        target_id: "agent-1".into(),
        kind: ContainmentKind::Freeze,
        reason: format!("deny-storm (AEG-3001), alert {}", first.alert_id),
        by: "rule:AEG-3001".into(),
        alert_id: first.alert_id.clone(),
        incident_id: incident.incident_id.clone(),
        event_ids: first.event_ids.clone(),
    };
    assert_eq!(asked, [expected]);

    // A second alert of the same agent and rule joins; another agent's opens its own.
    life.publish(&alert(2, "agent-1")).await;
    life.publish(&alert(3, "agent-2")).await;
    life.passed().await;
    let incidents = life.incidents().await;
    assert_eq!(incidents.len(), 2);
    assert_eq!(incidents.iter().map(|i| i.alert_ids.len()).sum::<usize>(), 3);
    let counts = life.responder.as_ref().unwrap().counts();
    assert_eq!((counts.alerts, counts.incidents, counts.requests, counts.failed_requests), (3, 2, 3, 0));
    life.end().await;
}

#[test]
fn a_command_id_is_the_hash_of_alert_action_and_target() {
    // printf 'a\0freeze_agent\0b' | sha256sum
    assert_eq!(command_id("a", "freeze_agent", "b"), "e30b42a78f62e33c101cc2b5caea7c6460c626dc977b67eb45d43a94a4431fe5");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_only_alert_is_recorded_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let life = Life::begin(folder.path()).await;
    let mut quiet = alert(1, "agent-1");
    quiet.mode = RuleMode::LogOnly;
    life.publish(&quiet).await;
    life.passed().await;
    assert_eq!(life.store.alert(&acme(), &quiet.alert_id).await.unwrap().unwrap().alert, quiet);
    assert!(life.incidents().await.is_empty());
    assert!(life.control.asked.lock().is_empty());
    life.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_nobody_knows_is_visible_and_does_not_stop_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let life = Life::begin(folder.path()).await;
    let mut mixed = alert(1, "agent-1");
    mixed.respond = vec!["page_the_moon".into(), "freeze_agent".into()];
    let mut nameless = alert(2, "unused");
    nameless.key = json!({"tool": "github"}).as_object().unwrap().clone();
    life.publish(&mixed).await;
    life.publish(&nameless).await;
    life.passed().await;
    let records: Vec<ResponseRecord> = life
        .incidents()
        .await
        .into_iter()
        .flat_map(|incident| incident.actions)
        .map(|action| serde_json::from_value(action).unwrap())
        .collect();
    let mut found: Vec<_> = records.iter().map(|r| (r.action.as_str(), r.status, r.reason.clone().unwrap_or_default())).collect();
    found.sort_by_key(|(action, _, reason)| (action.to_string(), reason.clone()));
    assert_eq!(found[0], ("freeze_agent", ResponseStatus::Applied, String::new()));
    assert_eq!(found[1], ("freeze_agent", ResponseStatus::Unsupported, "the alert names no agent_id".to_owned()));
    assert_eq!((found[2].0, found[2].1), ("page_the_moon", ResponseStatus::Unsupported));
    assert_eq!(life.verdict("agent-1").await, Verdict::Frozen);
    life.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alert_quarantines_an_agent_or_an_mcp_server() {
    let folder = tempfile::tempdir().unwrap();
    let life = Life::begin(folder.path()).await;
    let mut of_agent = alert(1, "agent-1");
    of_agent.respond = vec!["quarantine_agent".into()];
    let about = |n: usize, tool: &str| {
        let mut alert = alert(n, "unused");
        alert.key = json!({"tool": tool}).as_object().unwrap().clone();
        alert.respond = vec!["quarantine_mcp_server".into()];
        alert
    };
    for alert in [&of_agent, &about(2, "mcp:wiki"), &about(3, "github"), &about(4, "mcp:")] {
        life.publish(alert).await;
    }
    life.passed().await;
    assert_eq!(life.verdict("agent-1").await, Verdict::Quarantined);
    let server = life.store.containment(&acme(), TargetType::McpServer, "wiki").await.unwrap().unwrap();
    assert_eq!(server.verdict_at(life.clock.now()), Verdict::Quarantined);
    let records = life.incidents().await.into_iter().flat_map(|incident| incident.actions);
    let mut found: Vec<(String, ResponseStatus, String)> = records
        .map(|action| serde_json::from_value::<ResponseRecord>(action).unwrap())
        .map(|record| (record.action, record.status, record.reason.unwrap_or_default()))
        .collect();
    found.sort_by_key(|(action, _, reason)| (action.clone(), reason.clone()));
    let expected = [
        ("quarantine_agent", ResponseStatus::Applied, ""),
        ("quarantine_mcp_server", ResponseStatus::Applied, ""),
        ("quarantine_mcp_server", ResponseStatus::Unsupported, "`github` is not an MCP server's tool"),
        ("quarantine_mcp_server", ResponseStatus::Unsupported, "`mcp:` is not an MCP server's tool"),
    ];
    assert_eq!(found, expected.map(|(action, status, reason)| (action.to_owned(), status, reason.to_owned())));
    life.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retraction_marks_the_alert_and_leaves_the_agent_frozen() {
    let folder = tempfile::tempdir().unwrap();
    let life = Life::begin(folder.path()).await;
    let first = alert(1, "agent-1");
    life.publish(&first).await;
    life.passed().await;
    let retraction = Retraction {
        alert_id: first.alert_id.clone(),
        tenant_id: acme(),
        rule_id: first.rule_id.clone(),
        detected_at: START.plus_seconds(9),
    };
    life.publish_raw(&subject::retract(&acme(), &first.alert_id), serde_json::to_string(&retraction).unwrap()).await;
    life.passed().await;
    let kept = life.store.alert(&acme(), &first.alert_id).await.unwrap().unwrap();
    assert_eq!(kept.retracted_at, Some(START.plus_seconds(9)));
    assert_eq!(life.verdict("agent-1").await, Verdict::Frozen);
    let incident = life.incidents().await.remove(0);
    assert_eq!(incident.status, IncidentStatus::Contained);
    let note: ResponseRecord = serde_json::from_value(incident.actions[1].clone()).unwrap();
    assert_eq!(note.status, ResponseStatus::AlertRetracted);
    life.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_or_lies_about_its_tenant_goes_to_the_dead_letters() {
    let folder = tempfile::tempdir().unwrap();
    let life = Life::begin(folder.path()).await;
    let other = TenantId::new("other").unwrap();
    life.store.create_tenant(&other, "Other").await.unwrap();
    life.publish_raw("alert.acme.torn", "{\"alert_id\": ".into()).await;
    // Published on acme's subject, but about another tenant.
    let mut forged = alert(1, "agent-1");
    forged.tenant_id = other.clone();
    life.publish_raw(&subject::alert(&acme(), &forged.alert_id), serde_json::to_string(&forged).unwrap()).await;
    life.publish(&alert(2, "agent-2")).await;
    life.passed().await;
    assert_eq!(life.verdict("agent-2").await, Verdict::Frozen, "the stream goes on");
    assert!(life.store.list_alerts(&other, 10, 0).await.unwrap().is_empty());
    assert_eq!(life.responder.as_ref().unwrap().counts().dead_letters, 2);
    let mut letters = life.bus.subscribe(Stream::Dlq, ">", 1).await.unwrap();
    let letters = letters.next_batch(10, Duration::from_secs(5)).await.unwrap();
    let bodies: Vec<serde_json::Value> = letters.iter().map(|l| serde_json::from_slice(&l.payload).unwrap()).collect();
    assert_eq!(bodies.len(), 2);
    assert_eq!(bodies[0]["payload"], "{\"alert_id\": ");
    assert!(bodies[1]["reason"].as_str().unwrap().contains("alert.other."));
    life.end().await;
}
