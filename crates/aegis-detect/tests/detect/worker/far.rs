//! A rule whose window is longer than the stream is held for it: what lies before is in the checkpoint, or is read from where all events are written down.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Bus, EmbeddedLimits, Stream};
use aegis_detect::{CONSUMER, PastEvents, RuleSet, RuleStats, Worker, WorkerConfig};
use aegis_model::{Alert, ManualClock, Timestamp};
use tokio::time::Instant;

use super::own_rules::own_rule;
use super::warm::Kept;
use super::{DEADLINE, Line};

const HOUR: i64 = 3600;
/// Room for all that these tests make; and for nothing of before what is read again.
const ROOM: usize = 64 << 20;
const NO_ROOM: usize = 80;

/// What every tenant has: three denies of an agent within ten hours.
fn of_ten_hours() -> RuleSet {
    let text = own_rule(3, "active").replace("window: 60s", "window: 10h").replace("INTERVAL '60' SECOND", "INTERVAL '10' HOUR");
    RuleSet::from_texts([("three/rule.sql".into(), text)]).unwrap()
}

struct House {
    line: Line,
    clock: Arc<ManualClock>,
    past: Arc<Kept>,
    room: usize,
}

impl House {
    async fn open(folder: &Path, room: usize) -> Self {
        let clock = Arc::new(ManualClock::new(Timestamp::from_micros(1_767_225_600_000_000)));
        let line = Line::open_with(folder, EmbeddedLimits::default(), clock.clone()).await;
        Self { line, clock, past: Arc::default(), room }
    }

    /// One whose worker took two denies, five hours apart, and was stopped.
    async fn after_two_denies(folder: &Path, room: usize) -> Self {
        let mut house = Self::open(folder, room).await;
        let worker = house.worker().await;
        house.deny(&worker, 0).await;
        house.deny(&worker, 5 * HOUR).await;
        worker.stop().await;
        house
    }

    async fn worker(&self) -> Worker {
        let mut config = WorkerConfig::new(Arc::clone(&self.line.clock));
        config.checkpoint_ms = 50;
        config.checkpoint_bytes = self.room;
        config.past = Some(self.past.clone());
        let worker = self.line.worker_over(&self.line.bus, of_ten_hours(), config);
        self.line.caught_up(&worker).await;
        worker
    }

    /// A deny of the agent so much later, which the worker has taken. Answers how many messages that made.
    async fn deny(&mut self, worker: &Worker, seconds: i64) -> u64 {
        self.deny_of(worker, "acme", seconds).await
    }

    async fn deny_of(&mut self, worker: &Worker, tenant: &str, seconds: i64) -> u64 {
        self.clock.advance_seconds(seconds);
        let wires = self.line.seal_denies(tenant, "prober", 1).await;
        self.past.keep(&wires);
        self.line.publish(&wires).await;
        self.line.caught_up(worker).await;
        wires.len() as u64
    }

    /// All that there is has been written down elsewhere.
    async fn pass(&self) {
        let last = self.line.bus.last_seq(Stream::Ase).await.unwrap();
        self.line.bus.set_consumer_position(Stream::Ase, self.past.consumer(), last).await.unwrap();
    }

    /// The alert of the rule, and of detection itself if there is one.
    async fn told(&self, count: usize) -> (Alert, Option<Alert>) {
        let (of_rule, of_itself): (Vec<Alert>, Vec<Alert>) =
            self.line.alerts(count).await.into_iter().partition(|alert| alert.rule_id == "OWN-1");
        (of_rule.into_iter().next().expect("an alert of the rule"), of_itself.into_iter().next())
    }
}

/// Waits until so many events are in the rule's window: what is told of it comes a moment after what it tells.
async fn until_kept(worker: &Worker, kept: u64) -> RuleStats {
    let start = Instant::now();
    loop {
        let stats = rule(worker);
        if stats.kept == kept {
            return stats;
        }
        assert!(start.elapsed() < DEADLINE, "{stats:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn rule(worker: &Worker) -> RuleStats {
    worker.stats().rules.into_iter().find(|rule| rule.rule_id == "OWN-1").unwrap()
}

#[tokio::test]
async fn the_stream_is_held_two_hours_for_a_longer_window_and_a_restart_knows_all_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut house = House::open(folder.path(), ROOM).await;
    let worker = house.worker().await;
    let first = house.deny(&worker, 0).await;
    house.deny(&worker, 5 * HOUR).await;
    worker.stop().await;
    let held = house.line.bus.consumer_position(Stream::Ase, CONSUMER).await.unwrap();
    assert_eq!(held, first, "nobody needs the first deny's message any more");

    let worker = house.worker().await;
    house.deny(&worker, HOUR).await;
    let (alert, of_itself) = house.told(1).await;
    assert_eq!((alert.event_ids.len(), alert.receipt_hashes.len()), (3, 3));
    assert!(of_itself.is_none() && !alert.fields.contains_key("events_gone"));
    let stats = until_kept(&worker, 3).await;
    assert_eq!((stats.window_lost, stats.window_unsaved), (0, 0));
    assert!(house.past.asked_of().is_empty());
    worker.stop().await;
}

#[tokio::test]
async fn what_a_checkpoint_has_no_room_for_is_read_from_where_it_is_written_down() {
    let folder = tempfile::tempdir().unwrap();
    let mut house = House::after_two_denies(folder.path(), NO_ROOM).await;
    // Not all of it is there yet: the rule goes on without, and the next start asks again.
    let worker = house.worker().await;
    assert_eq!((rule(&worker).window_lost, rule(&worker).kept), (1, 1));
    assert!(house.past.asked_of().is_empty());
    worker.stop().await;
    house.pass().await;
    let worker = house.worker().await;
    assert_eq!((rule(&worker).window_lost, rule(&worker).kept), (0, 2));
    assert_eq!(house.past.asked_of(), ["acme"]);
    house.deny(&worker, HOUR).await;
    let (alert, of_itself) = house.told(1).await;
    assert_eq!(alert.event_ids.len(), 3);
    assert!(of_itself.is_none());
    worker.stop().await;
}

/// The attack: a tenant has so much before that it cannot be read in time, and comes first.
#[tokio::test]
async fn a_tenant_whose_past_does_not_come_keeps_no_other_from_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let mut house = House::open(folder.path(), NO_ROOM).await;
    let worker = house.worker().await;
    for (tenant, later) in [("acme", 0), ("beta", 0), ("acme", 5 * HOUR), ("beta", 0)] {
        house.deny_of(&worker, tenant, later).await;
    }
    worker.stop().await;
    house.pass().await;
    *house.past.hangs_of.lock() = Some("acme".to_owned());
    let worker = house.worker().await;
    assert_eq!(house.past.asked_of(), ["acme", "beta"]);
    assert_eq!((rule(&worker).window_lost, rule(&worker).kept), (1, 3), "both of beta's, and the last of acme's");
    worker.stop().await;
}

#[tokio::test]
async fn where_nothing_can_be_read_the_rule_goes_on_with_what_there_is_and_that_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut house = House::after_two_denies(folder.path(), NO_ROOM).await;
    *house.past.fails.lock() = true;
    house.pass().await;
    let worker = house.worker().await;
    assert_eq!(house.past.asked_of(), ["acme"]);
    house.deny(&worker, HOUR).await;
    house.deny(&worker, 1).await;
    let (alert, of_itself) = house.told(2).await;
    assert_eq!(alert.event_ids.len(), 3, "the second and what came since");
    assert!(alert.fields.contains_key("events_gone"));
    assert_eq!(of_itself.unwrap().key["what"], "window_lost");
    assert_eq!(until_kept(&worker, 3).await.window_lost, 1);
    worker.stop().await;
}
