//! A lane whose receipts come late, or never.

use std::sync::Arc;
use std::time::Duration;

use aegis_bus::AskForMissing;
use serde_json::Value;
use tokio::time::Instant;

use super::{DEADLINE, Line};

#[tokio::test]
async fn a_lane_waits_for_what_comes_behind_its_successors() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let worker = line.worker_that_holds(60_000);
    let wires = line.seal_denies("acme", "prober", 6).await;
    let (late, mut sent): (Vec<Value>, Vec<Value>) =
        wires.iter().cloned().partition(|wire| [3, 5].contains(&wire["seq"].as_i64().unwrap()));
    // Twice, as a publisher does that is not sure.
    sent.extend(sent[2..].to_vec());
    line.publish(&sent).await;
    // Another tenant's lane does not wait for it.
    let others = line.seal_denies("beta", "other", 5).await;
    line.publish(&others).await;
    assert_eq!(line.alerts(1).await[0].tenant_id.as_str(), "beta");
    assert_eq!(line.caught_up(&worker).await.broken, 0);
    // Nor does what it wrote down wait: the next start goes on from there, and loses nothing of what was held.
    let start = Instant::now();
    while worker.stats().checkpoints == 0 {
        assert!(start.elapsed() < DEADLINE, "nothing is written down while a lane waits: {:?}", worker.stats());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    worker.stop().await;
    let worker = line.worker_that_holds(60_000);
    line.publish(&late).await;
    let alerts = line.alerts(2).await;
    assert!(alerts.iter().all(|alert| alert.rule_name == "deny-storm"), "{alerts:#?}");
    let stats = line.caught_up(&worker).await;
    assert_eq!((stats.broken, stats.malformed), (0, 0));
    assert_eq!(stats.events, late.len() as u64, "what was held is not read as something new");
}

#[derive(Debug, Default)]
struct Asked(parking_lot::Mutex<Vec<(String, i64, i64)>>);

impl AskForMissing for Asked {
    fn ask(&self, lane: &str, from_seq: i64, to_seq: i64) {
        self.0.lock().push((lane.to_owned(), from_seq, to_seq));
    }
}

#[tokio::test]
async fn while_a_lane_waits_its_edge_is_asked_for_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let asked = Arc::new(Asked::default());
    let worker = line.worker_that_asks(60_000, Some(asked.clone()));
    let wires = line.seal_denies("acme", "prober", 6).await;
    let (late, sent): (Vec<Value>, Vec<Value>) =
        wires.iter().cloned().partition(|wire| [3, 4].contains(&wire["seq"].as_i64().unwrap()));
    line.publish(&sent).await;
    let start = Instant::now();
    while asked.0.lock().is_empty() {
        assert!(start.elapsed() < DEADLINE, "nobody was asked");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(asked.0.lock()[0], (wires[0]["lane"].as_str().unwrap().to_owned(), 3, 4));
    line.publish(&late).await;
    assert_eq!(line.alerts(1).await[0].rule_name, "deny-storm");
    assert_eq!(line.caught_up(&worker).await.broken, 0);
}

#[tokio::test]
async fn a_lane_goes_on_without_what_never_comes_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let worker = line.worker_that_holds(300);
    let wires = line.seal_denies("acme", "prober", 7).await;
    let sent: Vec<Value> = wires.iter().filter(|wire| wire["seq"] != 3).cloned().collect();
    line.publish(&sent).await;
    // The log is quiet then: the worker itself puts the time into it.
    let alerts = line.alerts(2).await;
    let mut names: Vec<&str> = alerts.iter().map(|alert| alert.rule_name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["deny-storm", "receipt-chain-broken"]);
    let stats = line.caught_up(&worker).await;
    assert_eq!((stats.broken, stats.verified), (1, 6), "one break, and the lane goes on");
    worker.stop().await;
    // Replayed from the start, the log says the same.
    let worker = line.worker_that_holds(300);
    let stats = line.caught_up(&worker).await;
    assert_eq!(line.alerts(2).await.len(), 2);
    assert_eq!(stats.malformed, 0);
}
