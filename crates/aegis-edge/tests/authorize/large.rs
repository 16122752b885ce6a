//! A feed that has much to say, through the real follower: a start reads all of it, one freeze costs what one freeze costs, and is acknowledged once it
//! is on the disk.

use std::time::Duration;

use aegis_bus::{Bucket, Bus, subject};
use aegis_edge::{CorrectedClock, FeedConfig, FeedFollower, Pulse};
use futures_util::future::join_all;

use crate::house::*;

/// How long a test waits for what must come.
const DEADLINE: Duration = Duration::from_secs(30);
/// Revisions of the house's own entries are below.
const FIRST: i64 = 1000;
const TOOLS: i64 = 500;
const AGENTS: i64 = 10_000;
/// Entries that are put at a time.
const AT_ONCE: usize = 500;

async fn put(bus: &EmbeddedBus, house: &House, entries: Vec<(EntryKind, String, Value)>) {
    let signed = entries.into_iter().zip(FIRST..).map(|((kind, name, body), revision)| {
        let entry = sign_entry(&house.control, &house.tenant, kind, &name, revision, house.clock.now(), Some(body)).unwrap();
        (subject::kv_control(&house.tenant, kind, &name), Bytes::from(serde_json::to_vec(&entry).unwrap()))
    });
    let signed: Vec<(String, Bytes)> = signed.collect();
    for some in signed.chunks(AT_ONCE) {
        let putting = some.iter().map(|(key, value)| bus.kv_put(Bucket::Control, key, value.clone()));
        join_all(putting).await.into_iter().for_each(|revision| assert!(revision.is_ok()));
    }
}

/// A tool with one action that takes an amount.
fn tool(name: &str) -> Value {
    let parameters = json!({"type": "object", "properties": {"amount": {"type": "integer"}}});
    let pay = json!({"action": "pay", "risk": "medium", "mutates_state": true, "approval_required": false,
        "default_decision": "policy", "parameters": parameters});
    json!({"tool": name, "name": name, "actions": [pay]})
}

async fn pays(house: &House, tool: &str, amount: i64) -> String {
    let answer = house
        .ask(|b| {
            b["dry_run"] = json!(true);
            b["tool_call"]["tool"] = json!(tool);
            b["tool_call"]["action"] = json!("pay");
            b["tool_call"]["parameters"] = json!({"amount": amount});
        })
        .await;
    answer["decision"].as_str().unwrap().to_owned()
}

/// With no patience at all: what comes is waited for, however long it is.
fn impatient(house: &House) -> FeedConfig {
    FeedConfig { tenants: Some(vec![house.tenant.clone()]), start_wait: Duration::ZERO, ..FeedConfig::default() }
}

#[tokio::test]
async fn a_tenant_with_hundreds_of_tools_and_thousands_of_agents_is_known_at_the_first_start() {
    let house = House::new().await;
    let bus = bus_of(&house).await;
    let mut entries = Vec::new();
    // One that names the action of a tool which comes behind it.
    let large = format!(
        "@id(\"large\") forbid (principal, action == Action::\"tool{TOOLS}/pay\", resource) when {{ context.parameters has amount && context.parameters.amount > 10 }};"
    );
    entries.push((EntryKind::Policies, "policies".to_owned(), json!({"policies": large})));
    entries.extend((1..=TOOLS).map(|n| (EntryKind::Tool, format!("tool{n}"), tool(&format!("tool{n}")))));
    entries.extend((1..=AGENTS).map(|n| (EntryKind::Agent, format!("agent-{n}"), json!({"agent_key": format!("agent-{n}")}))));
    put(&bus, &house, entries).await;

    let metrics = EdgeMetrics::register(&mut Registry::default());
    let follower =
        FeedFollower::start(bus.clone(), house.view.clone(), metrics, house.clock.clone(), impatient(&house)).await.unwrap();
    for n in [1, TOOLS / 2, TOOLS] {
        assert_eq!(pays(&house, &format!("tool{n}"), 5).await, "allow", "{n}");
    }
    assert_eq!(pays(&house, &format!("tool{TOOLS}"), 11).await, "deny", "the policy holds from the start");
    assert_eq!(pays(&house, "tool1", 11).await, "allow");
    follower.stop();
}

#[tokio::test]
async fn what_is_registered_while_an_edge_lives_is_heard_there() {
    let house = House::new().await;
    let bus = bus_of(&house).await;
    let metrics = EdgeMetrics::register(&mut Registry::default());
    let follower =
        FeedFollower::start(bus.clone(), house.view.clone(), metrics, house.clock.clone(), impatient(&house)).await.unwrap();
    let entries = (1..=20).map(|n| (EntryKind::Tool, format!("tool{n}"), tool(&format!("tool{n}"))));
    put(&bus, &house, entries.collect()).await;
    for revision in FIRST..FIRST + 20 {
        assert!(house.view.wait_applied(revision, DEADLINE).await, "{revision}");
    }
    for n in 1..=20 {
        assert_eq!(pays(&house, &format!("tool{n}"), 5).await, "allow", "{n}");
    }
    follower.stop();
}

#[tokio::test]
async fn a_freeze_is_enforced_at_once_and_acknowledged_once_it_is_on_the_disk() {
    let house = House::new().await;
    let bus = bus_of(&house).await;
    let copy = house.folder.path().join("copy");
    let pulse =
        Pulse::new("edge-1", SigningKey::from_seed(&[2; 32]), Arc::new(CorrectedClock::new(house.clock.clone(), 0)), None);
    let config = FeedConfig { snapshot: Some(copy.clone()), pulse: Some(pulse.clone()), ..impatient(&house) };
    let metrics = EdgeMetrics::register(&mut Registry::default());
    let mut acknowledged = bus.hear(&subject::ack("edge-1")).await.unwrap();
    let follower = FeedFollower::start(bus.clone(), house.view.clone(), metrics, house.clock.clone(), config).await.unwrap();
    let beating = pulse.spawn(bus.clone(), house.view.clone(), house.ledger.clone());

    // There is no folder to write to.
    let key = subject::kv_containment(&house.tenant, TargetType::Agent, "a");
    bus.kv_put(Bucket::Containment, &key, frozen(&house, FIRST)).await.unwrap();
    assert!(house.view.wait_applied(FIRST, DEADLINE).await);
    assert_eq!(decided(&house.ask(|_| ()).await), ("deny", "agent_frozen"));
    std::fs::create_dir(&copy).unwrap();
    let heard = tokio::time::timeout(DEADLINE, acknowledged.next()).await.unwrap().unwrap();
    assert!(std::fs::read_to_string(copy.join("feed.jsonl")).unwrap().contains("freeze"), "{heard:?}");
    beating.abort();
    follower.stop();
}
