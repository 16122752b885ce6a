//! What the follower of the control feed tells of what it does not believe: by events that the edge's own ledger seals.

use std::time::Duration;

use aegis_bus::{Bucket, Bus, subject};
use aegis_edge::{FeedConfig, FeedFollower};
use aegis_ledger::OutboxItem;
use aegis_ledger::verify::StreamVerifier;
use aegis_model::{SecurityEvent, SignedEntry};

use crate::house::*;

/// How long a test waits for what must come.
const DEADLINE: Duration = Duration::from_secs(30);
const REFUSED: [EventKind; 1] = [EventKind::ControlFeedRefused];

async fn sealed(house: &House, kinds: &[EventKind]) -> Vec<OutboxItem> {
    house.ledger.recent(Timestamp::from_micros(0), kinds, 0, 10_000).await.unwrap()
}

fn event(item: &OutboxItem) -> SecurityEvent {
    serde_json::from_str(&item.sealed.wire).unwrap()
}

/// Waits until an entry was refused for this reason, and that was told. Nothing of it is believed.
async fn until_told(house: &House, reason: &str) {
    let told = async {
        while !sealed(house, &REFUSED).await.iter().any(|item| event(item).reason.as_deref() == Some(reason)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, told).await.unwrap();
    assert_eq!(decided(&house.ask(|b| b["dry_run"] = json!(true)).await).0, "allow");
}

/// Puts an update of the tool `crm` where control's stands.
async fn put(bus: &dyn Bus, entry: &SignedEntry) {
    let key = subject::kv_control(&entry.tenant_id, EntryKind::Tool, "crm");
    bus.kv_put(Bucket::Control, &key, serde_json::to_vec(entry).unwrap().into()).await.unwrap();
}

/// The attack: whoever can write to the bucket floods the edge with entries of its own, also in the name of tenants that there are not.
#[tokio::test]
async fn a_flood_of_forged_entries_is_one_proved_event_of_the_tenant_s_for_each_thing_that_is_wrong() {
    let house = House::new().await;
    let bus = bus_of(&house).await;
    let metrics = EdgeMetrics::register(&mut Registry::default());
    let mut follower =
        FeedFollower::start(bus.clone(), house.view.clone(), metrics, house.clock.clone(), FeedConfig::default()).await.unwrap();
    let no_actions = json!({"tool": "crm", "name": "CRM", "actions": []});
    let signed = |key: &SigningKey, tenant: &TenantId, revision: i64| {
        sign_entry(key, tenant, EntryKind::Tool, "crm", revision, house.clock.now(), Some(no_actions.clone())).unwrap()
    };
    let stranger = SigningKey::from_seed(&[66; 32]);
    let nobody = TenantId::new("nobody").unwrap();
    for n in 0..100 {
        put(&*bus, &signed(&stranger, &house.tenant, 1000 + n)).await;
        put(&*bus, &signed(&stranger, &nobody, 1000 + n)).await;
    }
    // What was refused before anybody could seal it is told too.
    follower.tell_with(house.ledger.clone(), "edge-1");
    until_told(&house, "unknown_key").await;
    let changed = SignedEntry { revision: 5000, ..signed(&house.control, &house.tenant, 4000) };
    put(&*bus, &changed).await;
    until_told(&house, "bad_signature").await;
    follower.stop();

    let told: Vec<SecurityEvent> = sealed(&house, &REFUSED).await.iter().map(event).collect();
    let reasons: Vec<&str> = told.iter().filter_map(|event| event.reason.as_deref()).collect();
    assert_eq!(reasons, ["unknown_key", "bad_signature"], "each once");
    let facts: Value = serde_json::from_str(told[0].attributes.as_deref().unwrap()).unwrap();
    let key = subject::kv_control(&house.tenant, EntryKind::Tool, "crm");
    assert_eq!((&facts["bucket"], &facts["key"]), (&json!("control"), &json!(key)));
    assert!((1..=100).contains(&facts["count"].as_u64().unwrap()), "{facts}");

    let all = sealed(&house, &[]).await;
    let mut verifier = StreamVerifier::new(KeyRing::new([SigningKey::from_seed(&[2; 32]).verifying_key()]));
    for item in &all {
        let wire: Value = serde_json::from_str(&item.sealed.wire).unwrap();
        assert_eq!(wire["tenant_id"], json!("acme"), "no lane is made for a tenant that there is not");
        assert!(verifier.check(&wire).verified, "{wire}");
        assert!(event(item).is_for_its_lane_to_say(), "{wire}");
    }
}
