//! Streams that are full, and what is too large for them.

use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Bus, EmbeddedLimits, Stream, StreamLimits};
use aegis_detect::{CONSUMER, Worker, WorkerConfig};
use aegis_keys::KeyRing;
use aegis_model::SystemClock;
use serde_json::Value;
use tokio::time::Instant;

use super::{DEADLINE, Line, each_agent, observation};

#[tokio::test]
async fn a_full_stream_of_episodes_stops_no_detection() {
    let folder = tempfile::tempdir().unwrap();
    let bound = StreamLimits { max_messages: 2, max_bytes: 1 << 20 };
    let limits = EmbeddedLimits::default().with_stream(Stream::Episodes, bound);
    let mut line = Line::open_with(folder.path(), limits, Arc::new(SystemClock)).await;
    let worker = line.worker_of(each_agent(), 0, None);
    // The second deny joins the alert of the first: its episode gets a record.
    for tenant in ["t1", "t2", "t3", "t4"] {
        let wires = line.seal_denies(tenant, "prober", 2).await;
        line.publish(&wires).await;
    }
    line.alerts(4).await;
    let wires = line.seal_denies("t5", "prober", 1).await;
    line.publish(&wires).await;
    let alerts = line.alerts(5).await;
    assert!(alerts.iter().any(|alert| alert.tenant_id.as_str() == "t5"));
    let stats = line.caught_up(&worker).await;
    assert_eq!((stats.episodes_dropped, line.read_stream(Stream::Episodes, "episode.>").await.len()), (2, 2));
    worker.stop().await;
}

#[tokio::test]
async fn a_full_stream_into_which_no_time_goes_is_released_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let bound = StreamLimits { max_messages: 3, max_bytes: 1 << 20 };
    let limits = EmbeddedLimits::default().with_stream(Stream::Ase, bound);
    let mut line = Line::open_with(folder.path(), limits, Arc::new(SystemClock)).await;
    let mut config = WorkerConfig::new(Arc::clone(&line.clock));
    config.hold_ms = 60_000;
    // Longer than the time from one record of time to the next.
    config.checkpoint_ms = 1_500;
    let bus: Arc<dyn Bus> = Arc::clone(&line.bus) as Arc<dyn Bus>;
    let ring = KeyRing::new([line.key.verifying_key()]);
    let worker = Worker::spawn(bus, ring, each_agent(), Arc::clone(&line.clock), config).unwrap();
    let wires = line.seal_denies("acme", "prober", 3).await;
    // A lane waits, the stream has room for nothing more, and only a checkpoint makes some.
    let sent: Vec<Value> = wires.iter().filter(|wire| wire["seq"] != 2).cloned().collect();
    assert_eq!(sent.len(), 3);
    line.publish(&sent).await;
    let start = Instant::now();
    while worker.stats().checkpoints == 0 {
        assert!(start.elapsed() < DEADLINE, "nothing is written down, and nothing released: {:?}", worker.stats());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    worker.stop().await;
}

#[tokio::test]
async fn a_checkpoint_larger_than_a_message_is_written_and_gone_on_from() {
    let folder = tempfile::tempdir().unwrap();
    let line = Line::open(folder.path()).await;
    let observed: Vec<Value> = (0..3000).map(|n| observation(&line, &format!("agent-{n}"), "seen")).collect();
    let worker = line.worker_of(each_agent(), 0, None);
    for some in observed.chunks(500) {
        line.publish(some).await;
    }
    line.caught_up(&worker).await;
    line.alerts_within(3000).await;
    assert_eq!(worker.stats().trouble, None);
    worker.stop().await;
    let state = line.bus.stream_state(Stream::Ckpt).await.unwrap();
    assert!(state.messages >= 2, "it stands as a head and parts: {state:?}");

    line.publish(&observed[..1]).await;
    let again = observation(&line, "agent-7", "seen again");
    line.publish(&[again]).await;
    let worker = line.worker_of(each_agent(), 0, None);
    let stats = line.caught_up(&worker).await;
    assert_eq!((stats.events, stats.alerts, stats.retractions), (2, 0, 0), "all is known of what was told before");
    worker.stop().await;
}

#[tokio::test]
async fn a_checkpoint_that_finds_no_room_is_told_of_and_detection_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let bound = StreamLimits { max_messages: 4, max_bytes: 200 };
    let limits = EmbeddedLimits::default().with_stream(Stream::Ckpt, bound);
    let mut line = Line::open_with(folder.path(), limits, Arc::new(SystemClock)).await;
    let worker = line.worker();
    let wires = line.seal_denies("acme", "prober", 5).await;
    line.publish(&wires).await;
    line.alerts(1).await;
    let start = Instant::now();
    while !worker.stats().trouble.is_some_and(|trouble| trouble.contains("no checkpoint can be written")) {
        assert!(start.elapsed() < DEADLINE, "nobody was told: {:?}", worker.stats());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let wires = line.seal_denies("beta", "prober", 5).await;
    line.publish(&wires).await;
    line.alerts(2).await;
    assert_eq!(worker.stats().checkpoints, 0);
    assert_eq!(line.bus.consumer_position(Stream::Ase, CONSUMER).await.unwrap(), 0, "nothing is released");
    worker.stop().await;
}

#[tokio::test]
async fn a_tenant_with_too_many_long_keys_loses_its_own_part_of_the_checkpoint_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let line = Line::open(folder.path()).await;
    let ring = KeyRing::new([line.key.verifying_key()]);
    let worker = || {
        let mut config = WorkerConfig::new(Arc::clone(&line.clock));
        config.checkpoint_ms = 50;
        config.checkpoint_bytes = 1 << 20;
        let bus: Arc<dyn Bus> = Arc::clone(&line.bus) as Arc<dyn Bus>;
        Worker::spawn(bus, ring.clone(), each_agent(), Arc::clone(&line.clock), config).unwrap()
    };
    // Names that no compression makes shorter.
    let agent = |n: usize| (0..500).map(|part| aegis_canon::sha256_hex(format!("{n} {part}").as_bytes())).collect::<String>();
    let loud = |n: usize| {
        let mut seen = observation(&line, &agent(n), "seen");
        seen["tenant_id"] = "loud".into();
        seen
    };
    let running = worker();
    line.publish(&[observation(&line, "quiet", "seen")]).await;
    for n in 0..60 {
        line.publish(&[loud(n)]).await;
    }
    let start = Instant::now();
    let impaired = loop {
        // It is told with the tenant's next events.
        line.publish(&[loud(0)]).await;
        let alerts = line.read_whole(Stream::Alerts, "alert.loud.>").await;
        if let Some(told) = alerts.iter().find(|alert| alert["rule_name"] == "detection-impaired") {
            break told.clone();
        }
        assert!(start.elapsed() < DEADLINE, "nobody was told: {:?}", running.stats());
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(impaired["key"], serde_json::json!({"rule": "T-1", "what": "unwritten"}));
    line.caught_up(&running).await;
    assert_eq!(running.stats().trouble, None);
    running.stop().await;

    // It is written down how far detection is, and what the other was told: its next event joins it.
    let running = worker();
    line.publish(&[observation(&line, "quiet", "seen again")]).await;
    let stats = line.caught_up(&running).await;
    assert_eq!((stats.events, stats.alerts), (1, 0));
    assert_eq!(line.read_stream(Stream::Alerts, "alert.acme.>").await.len(), 1);
    running.stop().await;
}

#[tokio::test]
async fn an_alert_over_the_bound_of_the_bus_goes_out_without_its_fields() {
    let folder = tempfile::tempdir().unwrap();
    let bound = StreamLimits { max_messages: 100, max_bytes: 4000 };
    let limits = EmbeddedLimits::default().with_stream(Stream::Alerts, bound);
    let line = Line::open_with(folder.path(), limits, Arc::new(SystemClock)).await;
    let worker = line.worker_of(each_agent(), 0, None);
    line.publish(&[observation(&line, "wordy", &"x".repeat(5000)), observation(&line, "brief", "x")]).await;
    let mut alerts = line.alerts(2).await;
    alerts.sort_by_key(|alert| alert.key["agent_id"].to_string());
    assert_eq!((&alerts[0].key["agent_id"], &alerts[0].fields["reason"]), (&Value::from("brief"), &Value::from("x")));
    assert_eq!(alerts[1].key["agent_id"], "wordy");
    let said = alerts[1].fields["left_out"].as_str().unwrap();
    assert!(alerts[1].fields.len() == 1 && said.contains("4000 bytes") && said.contains("reason"), "{said}");
    assert_eq!(line.caught_up(&worker).await.refused, 0);
    worker.stop().await;
}
