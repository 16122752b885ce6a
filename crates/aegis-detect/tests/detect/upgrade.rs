//! A start behind a checkpoint of an older version.

use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Bus, EmbeddedLimits, Stream, StreamLimits};
use aegis_detect::{RuleSet, WorkerStats};
use aegis_model::{Clock, Decision, ManualClock, Timestamp};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::ground::{Edge, caught_up, checkpoint, message, open_bus, publish, put_checkpoint, start};

pub(crate) fn rules() -> RuleSet {
    rules_over("10s")
}

fn rules_over(window: &str) -> RuleSet {
    let text = "/* rule\nid: U-1\nname: u-1\nversion: 1\nseverity: low\nwindow: WINDOW\nkey: [agent_id]\nmode: active\nrequires: any\n\
                owner: soc\ndescription: d\nfalse_positives: none\nchangelog:\n  - {version: 1, date: 2026-11-27, note: first}\n*/\n\
                SELECT agent_id, event_id FROM events QUALIFY count(*) OVER (PARTITION BY agent_id ORDER BY ts \
                RANGE BETWEEN INTERVAL '10' SECOND PRECEDING AND CURRENT ROW) >= 9\n";
    RuleSet::from_texts([("u/rule.sql".into(), text.replace("WINDOW", window))]).unwrap()
}

#[tokio::test]
async fn behind_a_checkpoint_of_an_older_version_no_lane_is_broken_though_its_beginning_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let manual = Arc::new(ManualClock::new(Timestamp::from_micros(1_767_225_600_000_000)));
    let clock: Arc<dyn Clock> = manual.clone();
    let bound = StreamLimits { max_messages: 8, max_bytes: 1 << 20 };
    let limits = EmbeddedLimits::default().with_stream(Stream::Ase, bound);
    let bus = open_bus(folder.path(), limits, Arc::clone(&clock)).await;
    let mut edge = Edge::open(folder.path(), "edge-1", Arc::clone(&clock)).await;
    // What no window needs any more is released, and makes room.
    for _ in 0..4 {
        for _ in 0..3 {
            let wires = edge.seal("acme", Some("agent"), Decision::Deny).await;
            publish(&bus, Stream::Ase, wires.iter().map(message).collect()).await;
        }
        let worker = start(&bus, rules(), &clock, None);
        caught_up(&bus, &worker).await;
        worker.stop().await;
        manual.advance_seconds(3600);
    }
    let stream = bus.stream_state(Stream::Ase).await.unwrap();
    assert!(stream.first_seq > 1, "the beginning of the lane is there: {stream:?}");

    let mut older = checkpoint(&bus).await.unwrap();
    older["version"] = 1.into();
    older["engine"] = Value::Null;
    put_checkpoint(&bus, &older).await;
    let seen = |stats: &WorkerStats| (stats.broken, stats.repeated, stats.verified);
    let worker = start(&bus, rules(), &clock, None);
    let stats = caught_up(&bus, &worker).await;
    assert_eq!(seen(&stats), (0, 0, stream.messages), "all that is there is looked at again, and none is broken");
    worker.stop().await;
    let wires = edge.seal("acme", Some("agent"), Decision::Deny).await;
    publish(&bus, Stream::Ase, wires.iter().map(message).collect()).await;
    let worker = start(&bus, rules(), &clock, None);
    assert_eq!(seen(&caught_up(&bus, &worker).await), (0, 0, 1), "and the lane goes on");
    worker.stop().await;

    // A receipt that is held against nothing is told, where nobody knows that the lane was followed.
    older["heads"] = json!({});
    put_checkpoint(&bus, &older).await;
    let worker = start(&bus, rules(), &clock, None);
    assert_eq!(caught_up(&bus, &worker).await.broken, 1);
    worker.stop().await;
}

#[tokio::test]
async fn behind_a_checkpoint_of_an_older_version_a_longer_window_is_lost_and_behind_one_that_is_read_it_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let manual = Arc::new(ManualClock::new(Timestamp::from_micros(1_767_225_600_000_000)));
    let clock: Arc<dyn Clock> = manual.clone();
    let bound = StreamLimits { max_messages: 8, max_bytes: 1 << 20 };
    let limits = EmbeddedLimits::default().with_stream(Stream::Ase, bound);
    let bus = open_bus(folder.path(), limits, Arc::clone(&clock)).await;
    let mut edge = Edge::open(folder.path(), "edge-1", Arc::clone(&clock)).await;
    // Three hours apart: the stream has no room for all of them, and need not.
    for _ in 0..4 {
        manual.advance_seconds(3 * 3600);
        for _ in 0..3 {
            let wires = edge.seal("acme", Some("agent"), Decision::Deny).await;
            publish(&bus, Stream::Ase, wires.iter().map(message).collect()).await;
        }
        let worker = start(&bus, rules_over("10h"), &clock, None);
        caught_up(&bus, &worker).await;
        worker.stop().await;
    }
    assert!(bus.stream_state(Stream::Ase).await.unwrap().first_seq > 1);
    let worker = start(&bus, rules_over("10h"), &clock, None);
    let stats = caught_up(&bus, &worker).await;
    assert_eq!((stats.rules[0].kept, stats.rules[0].window_lost, stats.broken), (12, 0, 0));
    worker.stop().await;

    let mut older = checkpoint(&bus).await.unwrap();
    older["version"] = 1.into();
    put_checkpoint(&bus, &older).await;
    let worker = start(&bus, rules_over("10h"), &clock, None);
    caught_up(&bus, &worker).await;
    let begun = Instant::now();
    // It is counted a moment after the events were taken.
    while worker.stats().rules[0].window_lost != 1 {
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", worker.stats().rules[0]);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    worker.stop().await;
}
