//! What other edges made of runs: known before the first answer, over a start without the bus, and for want of both `unknown`.

use std::time::Duration;

use aegis_bus::{Bucket, Bus, EdgeBus, JetStreamOptions, subject};
use aegis_edge::{FeedConfig, FeedFollower};
use aegis_keys::sign_notice;
use aegis_model::RunLabel;

use crate::house::*;

/// A bus on which nobody answers.
async fn nobody() -> Arc<dyn Bus> {
    let options = JetStreamOptions { timeout: Duration::from_millis(100), ..JetStreamOptions::new("nats://127.0.0.1:1") };
    EdgeBus::connect(&options, "edge-1").await.unwrap()
}

/// Follows the feed as an edge beside others does.
async fn follow(house: &House, bus: Arc<dyn Bus>) -> FeedFollower {
    let metrics = EdgeMetrics::register(&mut Registry::default());
    let config = FeedConfig {
        tenants: Some(vec![house.tenant.clone()]),
        snapshot: Some(house.folder.path().to_owned()),
        has_others: true,
        ..FeedConfig::default()
    };
    FeedFollower::start(bus, house.view.clone(), metrics, house.clock.clone(), config).await.unwrap()
}

/// As control tells it.
async fn tell(house: &House, bus: &dyn Bus, run: &str, source_trust: SourceTrust) {
    let (tenant_id, at) = (house.tenant.clone(), house.clock.now());
    let label = RunLabel { tenant_id, run: format!("run:{run}"), source_trust, at };
    let signed = sign_notice(&house.control, &label).unwrap();
    bus.kv_put(Bucket::Trust, &subject::kv_trust(&house.tenant, &label.run), signed.into()).await.unwrap();
}

/// What a change would be answered under this trace, which leaves none.
async fn asked(house: &House, trace: Value) -> String {
    let answer = house
        .ask(|b| {
            b["trace"] = trace;
            b["dry_run"] = json!(true);
        })
        .await;
    answer["decision"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn what_other_edges_made_of_a_run_is_known_before_the_first_answer_and_at_a_start_without_the_bus() {
    let house = House::new().await;
    let bus = bus_of(&house).await;
    tell(&house, &*bus, "tainted", SourceTrust::UntrustedExternal).await;
    let follower = follow(&house, bus.clone()).await;
    assert_eq!(asked(&house, json!({"run_id": "tainted"})).await, "deny");
    assert_eq!(asked(&house, json!({"run_id": "other"})).await, "allow");
    follower.stop();

    let house = house.restarted().await;
    let follower = follow(&house, nobody().await).await;
    assert_eq!(asked(&house, json!({"run_id": "tainted"})).await, "deny");
    assert_eq!(asked(&house, json!({"run_id": "child", "parent_run_id": "tainted"})).await, "deny");
    assert_eq!(asked(&house, json!({"run_id": "other"})).await, "allow", "as before the stop");
    // For as long as it may go by its copy of the feed.
    house.clock.advance_seconds(3601);
    let read = house
        .ask(|b| {
            b["tool_call"] = json!({"tool": "crm", "action": "read_note", "mutates_state": false, "parameters": {}});
            b["trace"]["run_id"] = json!("other");
            b["dry_run"] = json!(true);
        })
        .await;
    assert_eq!((&read["decision"], &read["root_trust_level"]), (&json!("allow"), &json!("unknown")));
    follower.stop();
}

#[tokio::test]
async fn without_a_copy_a_run_counts_as_unknown_until_it_was_read_what_others_made_of_it() {
    let house = House::new().await;
    let bus = bus_of(&house).await;
    let follower = follow(&house, bus.clone()).await;
    let token = house.ask(|b| b["trace"]["run_id"] = json!("known")).await["trust_token"].clone();
    tell(&house, &*bus, "tainted", SourceTrust::UntrustedExternal).await;
    follower.stop();

    let house = house.restarted().await;
    std::fs::remove_file(house.folder.path().join("trust.jsonl")).unwrap();
    let follower = follow(&house, nobody().await).await;
    for trace in [
        json!({"run_id": "tainted"}),
        json!({"run_id": "new"}),
        // It was here, and may have been elsewhere since.
        json!({"run_id": "known"}),
        json!({"run_id": "known", "trust_token": token, "parent_run_id": "tainted"}),
        json!({"run_id": "new", "trust_token": token}),
        // What its token says may be old: another edge may have tainted it since.
        json!({"run_id": "known", "trust_token": token}),
        Value::Null,
    ] {
        assert_eq!(asked(&house, trace.clone()).await, "require_approval", "{trace}");
    }
    follower.stop();

    let follower = follow(&house, bus.clone()).await;
    assert_eq!(asked(&house, json!({"run_id": "new"})).await, "allow");
    assert_eq!(asked(&house, json!({"run_id": "known", "trust_token": token})).await, "allow");
    assert_eq!(asked(&house, json!({"run_id": "tainted"})).await, "deny");
    follower.stop();
}

#[tokio::test]
async fn a_copy_of_the_feed_from_a_time_to_come_is_as_old_as_it_is_ahead() {
    let house = House::new().await;
    let now = house.clock.now();
    for (ahead_s, decision) in [(365 * 86_400, "deny"), (3601, "deny"), (3, "allow"), (-3599, "allow"), (-3601, "deny")] {
        house.view.restored(now.plus_seconds(ahead_s), now);
        assert_eq!(asked(&house, json!({"run_id": "new"})).await, decision, "{ahead_s} seconds ahead");
    }
}

#[tokio::test]
async fn one_edge_without_others_knows_its_runs_from_its_ledger_alone() {
    let house = House::new().await;
    let metrics = EdgeMetrics::register(&mut Registry::default());
    let bus = bus_of(&house).await;
    let follower =
        FeedFollower::start(bus, house.view.clone(), metrics, house.clock.clone(), FeedConfig::default()).await.unwrap();
    assert_eq!(asked(&house, json!({"run_id": "new"})).await, "allow");
    assert!(!house.folder.path().join("trust.jsonl").exists());
    follower.stop();
}
