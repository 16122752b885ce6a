//! What an edge that was cut off ships too late for the windows: caught up over what another consumer of the stream has written down.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Bus, EmbeddedBus, EmbeddedLimits, Message, Stream};
use aegis_detect::{
    IMPAIRED_RULE, Past, PastAsked, PastEvents, RuleSet, Watermarks, Worker, WorkerConfig, WorkerStats, alert_id,
};
use aegis_model::{Alert, Clock, Decision, ManualClock, SecurityEvent, Timestamp, WireEvent};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::own_rules::own_rule;
use super::{DEADLINE, Line};
use crate::ground::{Edge, caught_up, read_all};

const START: Timestamp = Timestamp::from_micros(1_767_225_600_000_000);
const LAKE: &str = "lake-of-tests";
const LATENESS: i64 = 120_000_000;

/// What the lake's worker makes of the stream, in memory.
#[derive(Debug, Default)]
struct Written {
    events: Mutex<Vec<SecurityEvent>>,
    asked: Mutex<Vec<PastAsked>>,
}

impl Written {
    /// Writes down all that the stream has, and says so.
    async fn pass(&self, bus: &EmbeddedBus) {
        let mut subscription = bus.subscribe(Stream::Ase, "ase.>", 0).await.unwrap();
        let (mut events, mut watermarks) = (Vec::new(), Watermarks::default());
        for delivered in subscription.next_batch(1000, Duration::from_millis(50)).await.unwrap() {
            let event = WireEvent::read(&delivered.payload).unwrap().event().unwrap();
            let mut event = SecurityEvent { verified: event.lane.is_some(), bus_ts: Some(delivered.bus_ts), ..event };
            event.late = !watermarks.admit(&event, LATENESS);
            events.push(event);
        }
        events.sort_by(|a, b| a.order_key().cmp(&b.order_key()));
        *self.events.lock() = events;
        let last = bus.last_seq(Stream::Ase).await.unwrap();
        bus.set_consumer_position(Stream::Ase, LAKE, last).await.unwrap();
    }
}

impl PastEvents for Written {
    fn consumer(&self) -> &'static str {
        LAKE
    }

    fn ask(&self, asked: PastAsked) -> oneshot::Receiver<Past> {
        let (answers, answer) = oneshot::channel();
        let is_asked = |event: &&SecurityEvent| {
            event.tenant_id == asked.tenant && asked.from <= event.ts && event.ts < asked.to && (asked.with_late || !event.late)
        };
        let events: Vec<SecurityEvent> = self.events.lock().iter().filter(is_asked).cloned().collect();
        answers.send(Ok((events.len() <= asked.most).then_some(events))).unwrap();
        self.asked.lock().push(asked);
        answer
    }
}

struct House {
    line: Line,
    clock: Arc<ManualClock>,
    lake: Arc<Written>,
    cut_off: Edge,
}

/// Three denies of an agent within a minute; and the same for a rule that contains.
fn rules() -> RuleSet {
    let tells = own_rule(3, "active");
    let contains = tells.replace("OWN-1", "OWN-2").replace("own-denies", "own-freeze");
    let contains = contains.replace("suppress: 1h\n", "suppress: 1h\nrespond: [freeze_agent]\n");
    RuleSet::from_texts([("tells/rule.sql".into(), tells), ("contains/rule.sql".into(), contains)]).unwrap()
}

impl House {
    /// Another edge, of which nothing comes, denies an agent three times; the line goes on for ten minutes; and then the other one's receipts come.
    async fn open(folder: &Path) -> Self {
        let clock = Arc::new(ManualClock::new(START));
        let line = Line::open_with(folder, EmbeddedLimits::default(), clock.clone()).await;
        let cut_off = Edge::open(folder, "edge-2", clock.clone()).await;
        Self { line, clock, lake: Arc::default(), cut_off }
    }

    fn worker_over(&self, bus: &Arc<EmbeddedBus>, lake: Option<Arc<Written>>) -> Worker {
        let clock: Arc<dyn Clock> = self.clock.clone();
        let mut config = WorkerConfig::new(clock);
        config.checkpoint_ms = 50;
        config.past = lake.map(|lake| lake as Arc<dyn PastEvents>);
        self.line.worker_over(bus, rules(), config)
    }

    fn worker(&self) -> Worker {
        self.worker_over(&self.line.bus, Some(self.lake.clone()))
    }

    async fn go_on(&mut self, worker: &Worker, seconds: i64) {
        self.clock.advance_seconds(seconds);
        let denies = self.line.seal_denies("acme", "other", 1).await;
        self.line.publish(&denies).await;
        self.line.caught_up(worker).await;
    }

    /// Denies of the agent at the edge that is cut off, a second apart, which are not shipped.
    async fn deny_unseen(&mut self, count: usize) -> Vec<serde_json::Value> {
        let mut wires = Vec::new();
        for _ in 0..count {
            self.clock.advance_seconds(1);
            wires.extend(self.cut_off.seal("acme", Some("slow"), Decision::Deny).await);
        }
        wires
    }

    async fn cut_off_and_ship(&mut self, worker: &Worker) -> WorkerStats {
        self.go_on(worker, 1).await;
        let wires = self.deny_unseen(3).await;
        self.go_on(worker, 600).await;
        self.line.publish(&wires).await;
        self.line.caught_up(worker).await
    }
}

/// What rules told.
async fn told(bus: &EmbeddedBus) -> Vec<Alert> {
    let all = read_all(bus, Stream::Alerts, "alert.>").await;
    let alerts = all.into_iter().map(|alert| serde_json::from_value::<Alert>(alert).unwrap());
    alerts.filter(|alert| alert.rule_id != IMPAIRED_RULE).collect()
}

fn ids(alerts: &[Alert]) -> BTreeSet<String> {
    alerts.iter().map(|alert| alert.alert_id.clone()).collect()
}

async fn until(worker: &Worker, what: &str, holds: impl Fn(&WorkerStats) -> bool) {
    let begun = Instant::now();
    while !holds(&worker.stats()) {
        assert!(begun.elapsed() < DEADLINE, "{what}: {:?}", worker.stats());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn what_a_cut_off_edge_ships_too_late_is_told_once_and_contains_nobody_in_every_life_and_replay() {
    let (folder, again) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut house = House::open(folder.path()).await;
    let worker = house.worker();
    let stats = house.cut_off_and_ship(&worker).await;
    assert!(stats.late_verified >= 3, "{stats:?}");
    until(&worker, "it waits for the lake", |stats| stats.late_waiting == 1).await;
    assert!(told(&house.line.bus).await.is_empty() && house.lake.asked.lock().is_empty());
    // What is to be caught up is so for the next life too.
    worker.stop().await;
    let worker = house.worker();
    house.go_on(&worker, 1).await;
    house.lake.pass(&house.line.bus).await;
    until(&worker, "both rules tell", |stats| stats.late_alerts == 2).await;
    let alerts = told(&house.line.bus).await;
    assert_eq!(alerts.len(), 2, "{alerts:#?}");
    for alert in &alerts {
        assert_eq!((alert.key["agent_id"].as_str(), alert.event_ids.len()), (Some("slow"), 3));
        assert!(alert.found_late && alert.respond.is_empty() && alert.receipt_hashes.len() == 3, "{alert:?}");
        let of_live = alert_id(&alert.tenant_id, &alert.rule_id, &alert.key, alert.event_ids[0]).unwrap();
        let contains = alert.rule_id == "OWN-2";
        assert_eq!((alert.alert_id == of_live, alert.fields.contains_key("not_contained")), (!contains, contains), "{alert:?}");
    }
    // Nothing of it is left to do once the time of the windows is over, and a restart takes nothing of it back.
    until(&worker, "it is caught up", |stats| stats.late_waiting == 0).await;
    worker.stop().await;
    let worker = house.worker();
    house.go_on(&worker, 600).await;
    worker.stop().await;
    assert_eq!(ids(&told(&house.line.bus).await), ids(&alerts));
    assert!(read_all(&house.line.bus, Stream::Alerts, "retract.>").await.is_empty());

    // The same log from its beginning, all at once.
    let bus = EmbeddedBus::open(&again.path().join("bus.db"), EmbeddedLimits::default(), house.clock.clone()).await.unwrap();
    let mut subscription = house.line.bus.subscribe(Stream::Ase, ">", 0).await.unwrap();
    for delivered in subscription.next_batch(1000, Duration::from_millis(50)).await.unwrap() {
        house.clock.advance_micros(delivered.bus_ts.as_micros() - house.clock.now().as_micros());
        bus.publish(Stream::Ase, vec![Message::new(delivered.subject, delivered.payload)]).await.remove(0).unwrap();
    }
    let lake = Arc::new(Written::default());
    lake.pass(&bus).await;
    let worker = house.worker_over(&bus, Some(lake));
    caught_up(&bus, &worker).await;
    until(&worker, "both rules tell", |stats| stats.late_alerts == 2).await;
    worker.stop().await;
    assert_eq!(ids(&told(&bus).await), ids(&alerts));
}

#[tokio::test]
async fn what_live_told_is_not_told_again_beside_what_came_late() {
    let folder = tempfile::tempdir().unwrap();
    let mut house = House::open(folder.path()).await;
    let worker = house.worker();
    // Live tells of the agent, and later more of the same minute comes.
    let in_time = house.deny_unseen(3).await;
    house.line.publish(&in_time).await;
    let live = house.line.alerts(2).await;
    assert_eq!((live.len(), live.iter().filter(|alert| alert.respond.is_empty()).count()), (2, 1));
    let late = house.deny_unseen(1).await;
    // Until nothing is expected of its edge any more.
    for _ in 0..15 {
        house.go_on(&worker, 40).await;
    }
    house.line.publish(&late).await;
    assert_eq!(house.line.caught_up(&worker).await.late_verified, 1);
    until(&worker, "it waits for the lake", |stats| stats.late_waiting == 1).await;
    house.lake.pass(&house.line.bus).await;
    until(&worker, "it is caught up", |stats| stats.late_waiting == 0).await;
    assert!(!house.lake.asked.lock().is_empty());
    assert_eq!(told(&house.line.bus).await, live);
    worker.stop().await;
}

#[tokio::test]
async fn without_a_lake_what_came_late_is_told_of_and_nothing_waits() {
    let folder = tempfile::tempdir().unwrap();
    let mut house = House::open(folder.path()).await;
    let worker = house.worker_over(&house.line.bus, None);
    let stats = house.cut_off_and_ship(&worker).await;
    assert!(stats.late_verified >= 3 && stats.late_waiting == 0, "{stats:?}");
    let alerts = house.line.alerts(1).await;
    assert_eq!((alerts[0].rule_id.as_str(), alerts[0].key["what"].as_str()), (IMPAIRED_RULE, Some("late")));
    worker.stop().await;
}
