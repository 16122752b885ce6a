//! L-TENANT: every method, walked with one tenant while another holds the same ids, shows and changes nothing of the other.

use std::collections::BTreeSet;
use std::path::Path;

use aegis_model::{
    ApprovalStatus, ContainmentKind, EventId, EventKind, IncidentStatus, LaneReach, Retraction, TargetType, TenantId,
    TenantSettings,
};
use aegis_store::{CallbackState, HistoryFilter, NewKey, Role, Secret, Store, StoreError};
use serde_json::json;

use crate::fixtures::*;

/// Methods that serve the process rather than a tenant; none takes a tenant.
const SYSTEM_WIDE: [&str; 32] = [
    "invite_edge",
    "enroll_edge",
    "edge_keys",
    "edge_lives",
    "change_edge_life",
    "open",
    "connect",
    "next_start",
    "close",
    "ping",
    "revision",
    "list_tenants",
    "pending_outbox",
    "delete_outbox",
    "feed_entries",
    "due_approvals",
    "due_callback_tenants",
    "callbacks_waiting",
    "pending_incident_actions",
    "open_incidents_total",
    "history_is_empty",
    "lanes_with_gaps",
    // What operators make of every tenant's rules.
    "may_change_common_rule",
    "put_common_rule_version",
    "list_common_rule_versions",
    "common_rule_text",
    "standing_common_rules",
    "tenants_with_own_rule",
    // What programs ran for every tenant.
    "put_rule_set",
    "list_rule_sets",
    "list_rule_set_changes",
    "tenants_untold_of_rule_set",
];

/// An event id that all tenants use.
const EVENT: EventId = EventId::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001);

/// How far a tenant's history has the lane that all tenants have.
fn history_lane(t: &TenantId, head: i64) -> LaneReach {
    LaneReach { tenant_id: t.clone(), lane: "lane-1".into(), head, missing: Vec::new() }
}

/// Everything a tenant can have, under ids that are the same in every tenant.
async fn fill(place: &Place, t: &TenantId) {
    let store = &place.store;
    let mark = format!("marker of {t}");
    store.create_tenant(t, &mark).await.unwrap();
    store.put_settings(t, &TenantSettings { approver_group: mark.clone(), ..Default::default() }, &[fact(t)]).await.unwrap();
    store.put_webhook_secret(t, "github", &mark).await.unwrap();
    store.put_callback_secret(t, &Secret::new(mark.clone()), START, &[fact(t)]).await.unwrap();
    store.create_key(t, Role::Admin, &mark, std::slice::from_ref(&mark), None).await.unwrap();
    store.upsert_agent(t, &agent("agent-1", "key-1", &mark), registered_by(&mark), &[fact(t)]).await.unwrap();
    store.put_tool(t, &tool(&mark), &[]).await.unwrap();
    store.put_mcp_server(t, &mcp_server(&mark), &[]).await.unwrap();
    store.put_channel(t, &channel(&mark), &[]).await.unwrap();
    store.put_resource(t, &resource(&mark), &[]).await.unwrap();
    store.put_policies(t, &mark, &[]).await.unwrap();
    store.put_rule_version(t, &rule_version(1, &mark), &mark, &[fact(t)]).await.unwrap();
    store.tell_rule_set(t, 1, &[fact(t)]).await.unwrap();
    let ending = hold("h0", ContainmentKind::Quarantine, &mark, Some(START.plus_seconds(5)));
    store.add_hold(t, TargetType::Agent, "agent-1", &ending, &[]).await.unwrap();
    store.add_hold(t, TargetType::Agent, "agent-1", &hold("h1", ContainmentKind::Freeze, &mark, None), &[]).await.unwrap();
    let by_rule = hold("h2", ContainmentKind::Quarantine, &format!("rule:{mark}"), None);
    store.add_automatic_hold(t, "command-1", TargetType::Agent, "agent-1", &by_rule, 10, &[]).await.unwrap();
    for (id, needed) in [("pending", 2), ("approved", 1), ("edited", 1), ("refused", 1)] {
        store.insert_approval(&frozen(t, id, needed)).await.unwrap();
    }
    store.record_approval_vote(t, "pending", &mark, "hash-0", START, &[]).await.unwrap();
    store.record_approval_vote(t, "approved", &mark, "hash-0", START, &[]).await.unwrap();
    store.edit_approval(t, "edited", &mark, &call(7), "hash-1", "digest-1", &[]).await.unwrap();
    let (incident, _) = store.open_or_join_incident(&alert(t, "alert-1", "R1", "agent-1"), START).await.unwrap();
    store.put_incident_action(t, &incident.incident_id, "command-1", &json!({"note": mark}), true, None).await.unwrap();
    let mut row = event(t, EventKind::AuthorizeDecision, 1);
    row.event_id = EVENT;
    row.lane = Some("lane-1".into());
    store.insert_history(&[row], &[history_lane(t, 1)]).await.unwrap();

    // The ids that the store makes itself are made the same too.
    for (table, column, id) in [
        ("incidents", "incident_id", INCIDENT),
        ("incident_actions", "incident_id", INCIDENT),
        ("alerts", "incident_id", INCIDENT),
        ("api_keys", "key_id", KEY),
    ] {
        place.change_row(format!("UPDATE {table} SET {column} = '{id}' WHERE tenant_id = '{t}'")).await;
    }
    let first = format!("tenant_id = '{t}' AND approval_id = 'approved'");
    place.change_row(format!("UPDATE callbacks SET callback_id = '{EVENT}' WHERE {first}")).await;
}

const INCIDENT: &str = "incident-1";
const KEY: &str = "key-1";

/// Puts a dash for every id that is made at random, so that two runs can be compared.
fn mask(text: &str) -> String {
    let is_random = |word: &&str| word.parse::<EventId>().is_ok() || word.starts_with("key_");
    let words = text.split_inclusive(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'));
    words.map(|word| if is_random(&word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric())) { "-" } else { word }).collect()
}

/// Places of the history are counted over all tenants, and nobody is shown them.
fn without_places(name: &str, text: String) -> String {
    if !["history_in_order", "export_lanes"].contains(&name) {
        return text;
    }
    // Behind each row but the last stands the place of the next.
    let row_of = |text| match str::rsplit_once(text, "), (") {
        Some((row, place)) if place.trim_end_matches(", ").parse::<i64>().is_ok() => row,
        _ => text,
    };
    text.split("HistoryRow").skip(1).map(row_of).collect()
}

/// Calls every reading method that takes a tenant. Returns (method, what it showed).
async fn read_all(store: &Store, t: &TenantId) -> Vec<(&'static str, String)> {
    let mut seen = Vec::new();
    macro_rules! see {
        ($($method:ident($($argument:expr),*)),+ $(,)?) => {
            $(seen.push((stringify!($method), format!("{:?}", store.$method($($argument),*).await.unwrap())));)+
        };
    }
    see!(
        tenant_exists(t),
        settings(t),
        list_keys(t),
        key_name(t, KEY),
        agent(t, "agent-1"),
        agent_by_key(t, "key-1"),
        agent_registrar(t, "agent-1"),
        agent_keys(t, "agent-1"),
        list_agents(t, 100, 0),
        tool(t, "github"),
        list_tools(t),
        mcp_server(t, "files"),
        list_mcp_servers(t, 100, 0),
        list_channels(t, 100, 0),
        resource(t, "payments-service"),
        list_resources(t, 100, 0),
        policies(t),
        may_change_rule(t, &rule_version(1, "again")),
        list_rule_versions(t, Some("T-1"), 100, 0),
        standing_rules(t),
        rule_text(t, "T-1", &rule_version(1, "").hash),
        containment(t, TargetType::Agent, "agent-1"),
        contained(t, START),
        automatic_holds_since(t, START.plus_seconds(-10)),
        approval(t, "approved"),
        approval_callback(t, "approved"),
        due_callbacks(t, START.plus_seconds(3600), 100),
        list_approvals(t, None, 100, 0),
        alert(t, "alert-1"),
        list_alerts(t, 100, 0),
        incident(t, INCIDENT),
        incident_action(t, INCIDENT, "command-1"),
        list_incidents(t, 100, 0),
        history_event(t, EVENT),
        history_events(t, EVENT, None),
        history_events(t, EVENT, Some("lane-1")),
        list_history(t, HistoryFilter::default(), 100, 0),
        history_in_order(t, 0, (START.plus_seconds(-10), START.plus_seconds(3600)), 100),
        history_lane(t, "lane-1"),
        export_lanes(t, None, 100),
        lanes_since(t, START.plus_seconds(-10)),
        proved_of_lane(t, "lane-1", 0, 100),
    );
    let secret = store.webhook_secret(t, "github").await.unwrap();
    seen.push(("webhook_secret", secret.map_or_else(String::new, |s| s.expose().to_owned())));
    let secrets = store.callback_secrets(t).await.unwrap();
    seen.push(("callback_secrets", secrets.iter().map(Secret::expose).collect()));
    seen
}

/// Calls every changing method that takes a tenant, or a record with one. Returns (method, what came of it).
async fn change_all(store: &Store, t: &TenantId) -> Vec<(&'static str, String)> {
    let mut walked = Vec::new();
    macro_rules! change {
        ($($method:ident($($argument:expr),*)),+ $(,)?) => {
            $(
                let outcome = store.$method($($argument),*).await;
                assert!(outcome.is_ok(), "{}: {:?}", stringify!($method), outcome.err());
                walked.push((stringify!($method), mask(&format!("{outcome:?}"))));
            )+
        };
    }
    let retraction = Retraction {
        alert_id: "alert-1".into(),
        tenant_id: t.clone(),
        rule_id: "R1".into(),
        detected_at: START.plus_seconds(60),
    };
    let mut worse = alert(t, "alert-2", "R1", "agent-1");
    worse.severity = aegis_model::Severity::Critical;
    let by_rule = hold("h4", ContainmentKind::Freeze, "rule:R2", None);
    let another = Secret::new("another secret".into());
    let mut seen_again = event(t, EventKind::ToolOutcome, 9);
    seen_again.event_id = EVENT;
    change!(
        create_tenant(t, "again"),
        put_settings(t, &TenantSettings::default(), &[]),
        put_webhook_secret(t, "github", "another secret"),
        put_callback_secret(t, &another, START.plus_seconds(60), &[]),
        note_callback(t, EVENT, CallbackState::GivenUp, Some("timed_out"), START.plus_seconds(5)),
        create_key(t, Role::Auditor, "auditor", &[], None),
        put_key(NewKey::make(t, Role::Auditor, "auditor", &[], None).unwrap(), &[fact(t)]),
        revoke_key(t, KEY, &[fact(t)]),
        upsert_agent(t, &agent("agent-1", "key-1", "renamed"), registered_by("someone"), &[fact(t)]),
        put_tool(t, &tool("renamed"), &[]),
        put_mcp_server(t, &mcp_server("renamed"), &[]),
        put_mcp_tools(t, &mcp_server("renamed again"), &tool("renamed again"), &[fact(t)]),
        put_channel(t, &channel("another key"), &[]),
        put_resource(t, &resource("another owner"), &[]),
        put_policies(t, "// none", &[]),
        put_rule_version(t, &rule_version(2, "changed"), "someone", &[fact(t)]),
        tell_rule_set(t, 2, &[]),
        raise_observed_at(t, "payments-service", START.plus_seconds(5)),
        add_hold(t, TargetType::Agent, "agent-1", &hold("h3", ContainmentKind::Freeze, "admin", None), &[]),
        apply_command(t, "command-1"),
        add_automatic_hold(t, "command-2", TargetType::Agent, "agent-1", &by_rule, 100, &[]),
        release_holds(t, TargetType::Agent, "agent-1", ContainmentKind::Freeze, &[]),
        revoke(t, TargetType::Agent, "agent-1", &[]),
        insert_approval(&frozen(t, "pending", 1)),
        record_approval_vote(t, "pending", "someone", "hash-0", START, &[]),
        record_approval_vote(t, "edited", "marker of alpha", "hash-1", START, &[]),
        reject_approval(t, "refused", "someone", START, &[]),
        edit_approval(t, "pending", "someone", &call(8), "hash-2", "digest-2", &[]),
        consume_approval(t, "approved", "hash-0", None, START, &[]),
        expire_approval(t, "pending", START.plus_seconds(901), &[]),
        prune_approvals(t, START.plus_seconds(901), 100),
        insert_alert(&alert(t, "alert-1", "R1", "agent-1")),
        retract_alert(&retraction),
        open_or_join_incident(&worse, START),
        add_incident_action(t, INCIDENT, &json!({"by": "someone"}), Some(IncidentStatus::Contained)),
        put_incident_action(t, INCIDENT, "command-1", &json!({"by": "someone"}), false, None),
        close_incident(t, INCIDENT, "someone"),
        insert_history(&[seen_again.clone()], &[history_lane(t, 9)]),
    );
    walked
}

/// The methods of `Store` as its source declares them: (name, takes a tenant).
fn declared_methods() -> Vec<(String, bool)> {
    let mut methods = Vec::new();
    for file in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap() {
        let source = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for part in source.split("    pub async fn ").skip(1) {
            let name = part.split(['(', '<']).next().unwrap();
            let arguments = part.split("->").next().unwrap();
            methods.push((name.to_owned(), arguments.contains("tenant: &TenantId")));
        }
    }
    methods
}

#[tokio::test]
async fn no_method_shows_or_changes_anything_of_another_tenant() {
    let place = Place::new().await;
    let store = &place.store;
    let (alpha, beta, empty) = (tenant("alpha"), tenant("beta"), tenant("empty"));
    fill(&place, &alpha).await;
    store.create_tenant(&empty, "nothing in it").await.unwrap();
    for (name, shown) in read_all(store, &alpha).await {
        assert!(
            shown.contains("alpha")
                || ["tenant_exists", "automatic_holds_since", "may_change_rule", "lanes_since"].contains(&name),
            "{name} hides alpha's own: {shown}"
        );
    }
    let before = place.rows_of(&alpha).await;
    // One of alpha's holds is past its end now: the next change of that target, and no other, may end it.
    place.clock.advance_seconds(10);

    // A tenant that has nothing of its own: whatever it hits is alpha's.
    for (name, shown) in read_all(store, &empty).await {
        let nothing = ["None", "[]", "0", "", "true"].contains(&shown.as_str()) || name == "settings";
        assert!(nothing, "{name} shows something to a tenant without anything: {shown}");
    }
    change_all(store, &empty).await;
    assert_eq!(place.rows_of(&alpha).await, before);

    // A tenant that has the same ids: what it hits must be its own.
    fill(&place, &beta).await;
    let shown = read_all(store, &beta).await;
    for (name, shown) in &shown {
        assert!(!shown.contains("alpha"), "{name} shows alpha's to beta: {shown}");
    }
    let changed = change_all(store, &beta).await;
    assert_eq!(place.rows_of(&alpha).await, before);

    let walked: BTreeSet<&str> = shown.iter().chain(&changed).map(|(name, _)| *name).collect();
    for (name, takes_tenant) in declared_methods() {
        if SYSTEM_WIDE.contains(&name.as_str()) {
            assert!(!takes_tenant, "{name} takes a tenant: walk it here");
        } else if name != "verify_key" {
            assert!(walked.contains(name.as_str()), "{name} is not walked here");
        }
    }
}

#[tokio::test]
async fn what_a_tenant_gets_does_not_depend_on_who_else_is_there() {
    let mut outcomes = Vec::new();
    for neighbour in [true, false] {
        let place = Place::new().await;
        let (alpha, beta, empty) = (tenant("alpha"), tenant("beta"), tenant("empty"));
        if neighbour {
            fill(&place, &alpha).await;
        }
        place.store.create_tenant(&empty, "nothing in it").await.unwrap();
        // Revisions are the one thing that all tenants count together: made equal here.
        while place.store.revision().await.unwrap() < 100 {
            place.store.put_policies(&acme(), "", &[]).await.unwrap();
        }
        let mut seen = change_all(&place.store, &empty).await;
        seen.extend(read_all(&place.store, &empty).await);
        fill(&place, &beta).await;
        seen.extend(read_all(&place.store, &beta).await);
        seen.extend(change_all(&place.store, &beta).await);
        seen.extend(read_all(&place.store, &beta).await);
        outcomes.push(seen.into_iter().map(|(name, text)| (name, mask(&without_places(name, text)))).collect::<Vec<_>>());
    }
    for (with, without) in outcomes[0].iter().zip(&outcomes[1]) {
        assert_eq!(with, without);
    }
}

#[tokio::test]
async fn a_key_is_a_principal_of_its_own_tenant_only() {
    let place = Place::new().await;
    let other = tenant("other");
    place.store.create_tenant(&other, "Other").await.unwrap();
    let (_, secret) = place.store.create_key(&acme(), Role::Admin, "ops", &[], None).await.unwrap();
    let found = place.store.verify_key(secret.expose()).await.unwrap().unwrap();
    assert_eq!(found.tenant_id, acme());
    assert!(!place.store.revoke_key(&other, &found.key_id, &[]).await.unwrap());
    assert!(place.store.verify_key(secret.expose()).await.unwrap().is_some());
}

#[tokio::test]
async fn a_fact_of_one_tenant_is_refused_in_a_change_of_another() {
    let place = Place::new().await;
    let other = tenant("other");
    place.store.create_tenant(&other, "Other").await.unwrap();
    let outcome = place.store.put_policies(&other, "// text", &[fact(&acme())]).await;
    assert!(matches!(outcome, Err(StoreError::WrongTenant { .. })), "{outcome:?}");
    assert_eq!(place.store.policies(&other).await.unwrap(), None);
    assert!(place.store.pending_outbox(10).await.unwrap().is_empty());
}

#[tokio::test]
async fn every_key_of_tenant_data_starts_with_the_tenant() {
    // Each exception says in the migration why it is one.
    let exceptions = [
        "api_keys(key_hash)",
        "outbox(event_id)",
        "edge_invitations(edge_id)",
        "edge_invitations(token_hash)",
        "edge_keys(key_id)",
        "edge_lives(edge_id)",
        "common_rule_versions(rule_id,revision)",
    ];
    let place = Place::new().await;
    let keys = place.unique_keys().await;
    assert!(keys.len() > 20);
    for key in keys {
        assert!(key.contains("(tenant_id") || exceptions.contains(&key.as_str()), "{key}");
    }
}

#[tokio::test]
async fn nothing_is_registered_for_a_tenant_that_does_not_exist() {
    let place = Place::new().await;
    let nobody = tenant("nobody");
    assert!(!place.store.tenant_exists(&nobody).await.unwrap());
    let outcomes = [
        place.store.put_policies(&nobody, "", &[]).await.err(),
        place.store.put_tool(&nobody, &tool("x"), &[]).await.err(),
        place.store.insert_approval(&frozen(&nobody, "a", 1)).await.err(),
        place.store.revoke(&nobody, TargetType::Agent, "a", &[]).await.err(),
        place.store.create_key(&nobody, Role::Admin, "x", &[], None).await.err(),
        place.store.apply_command(&nobody, "c").await.err(),
    ];
    for outcome in outcomes {
        assert!(matches!(&outcome, Some(StoreError::UnknownTenant(t)) if *t == nobody), "{outcome:?}");
    }
    assert_eq!(place.store.list_approvals(&nobody, Some(ApprovalStatus::Pending), 10, 0).await.unwrap(), []);
}
