//! The worker on the real embedded bus, over events that a real ledger sealed.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{AskForMissing, Bus, EmbeddedBus, EmbeddedLimits, Message, Stream, StreamLimits, subject};
use aegis_detect::{CONSUMER, RuleSet, RuleTexts, Worker, WorkerConfig, WorkerStats};
use aegis_keys::{KeyRing, SigningKey};
use aegis_ledger::{Draft, Ledger, LedgerConfig};
use aegis_model::{
    Alert, Clock, Decision, EventKind, ManualClock, Phase, RuleMode, RuleRecord, SecurityEvent, SystemClock, TenantId, Timestamp,
    partition_of,
};
use serde_json::Value;
use tokio::time::Instant;

const DEADLINE: Duration = Duration::from_secs(20);

/// A ledger, a bus, and what stands between them.
struct Line {
    ledger: Ledger,
    bus: Arc<EmbeddedBus>,
    key: SigningKey,
    clock: Arc<dyn Clock>,
    read: i64,
}

impl Line {
    async fn open(folder: &Path) -> Self {
        Self::open_with(folder, EmbeddedLimits::default(), Arc::new(SystemClock)).await
    }

    async fn open_with(folder: &Path, limits: EmbeddedLimits, clock: Arc<dyn Clock>) -> Self {
        Self::open_apart(folder, limits, Arc::clone(&clock), clock).await
    }

    /// The bus by another clock than the ledger.
    async fn open_apart(folder: &Path, limits: EmbeddedLimits, clock: Arc<dyn Clock>, of_bus: Arc<dyn Clock>) -> Self {
        let key = SigningKey::from_seed(&[7; 32]);
        let config = LedgerConfig::new(folder.join("ledger.db"), "edge-1", "edge");
        let ledger = Ledger::open(config, key.clone(), Arc::clone(&clock)).await.unwrap();
        let bus = EmbeddedBus::open(&folder.join("bus.db"), limits, of_bus).await.unwrap();
        Self { ledger, bus, key, clock, read: 0 }
    }

    fn worker(&self) -> Worker {
        self.worker_that_holds(0)
    }

    fn worker_that_holds(&self, hold_ms: i64) -> Worker {
        self.worker_that_asks(hold_ms, None)
    }

    fn worker_that_asks(&self, hold_ms: i64, missing: Option<Arc<dyn AskForMissing>>) -> Worker {
        self.worker_of(RuleSet::shipped().unwrap(), hold_ms, missing)
    }

    fn worker_of(&self, rules: RuleSet, hold_ms: i64, missing: Option<Arc<dyn AskForMissing>>) -> Worker {
        self.worker_with(rules, hold_ms, missing, None)
    }

    fn worker_with(
        &self,
        rules: RuleSet,
        hold_ms: i64,
        missing: Option<Arc<dyn AskForMissing>>,
        texts: Option<Arc<dyn RuleTexts>>,
    ) -> Worker {
        let ring = KeyRing::new([self.key.verifying_key()]);
        let mut config = WorkerConfig::new(Arc::clone(&self.clock));
        config.checkpoint_ms = 50;
        config.hold_ms = hold_ms;
        config.missing = missing;
        config.texts = texts;
        let bus: Arc<dyn Bus> = Arc::clone(&self.bus) as Arc<dyn Bus>;
        Worker::spawn(bus, ring, rules, Arc::clone(&self.clock), config).unwrap()
    }

    /// Seals denied calls of an agent, and answers what the ledger wants shipped.
    async fn seal_denies(&mut self, tenant: &str, agent: &str, count: usize) -> Vec<Value> {
        for _ in 0..count {
            let tenant = TenantId::new(tenant).unwrap();
            let mut event = SecurityEvent::new(tenant, "edge-1", "edge", EventKind::AuthorizeDecision, self.clock.now());
            event.agent_id = Some(agent.into());
            event.decision = Some(Decision::Deny);
            event.mutates_state = Some(false);
            event.reason = Some("denied".into());
            self.ledger.submit(Draft::new(event, Phase::Decision)).await.unwrap();
        }
        self.what_to_ship().await
    }

    /// Seals allowed calls of an agent, one of each action, and answers what the ledger wants shipped.
    async fn seal_calls(&mut self, tenant: &str, agent: &str, actions: &[&str]) -> Vec<Value> {
        for action in actions {
            let tenant = TenantId::new(tenant).unwrap();
            let mut event = SecurityEvent::new(tenant, "edge-1", "edge", EventKind::AuthorizeDecision, self.clock.now());
            (event.agent_id, event.tool, event.action) = (Some(agent.into()), Some("crm".into()), Some((*action).into()));
            (event.decision, event.mutates_state) = (Some(Decision::Allow), Some(true));
            self.ledger.submit(Draft::new(event, Phase::Decision)).await.unwrap();
        }
        self.what_to_ship().await
    }

    async fn what_to_ship(&mut self) -> Vec<Value> {
        let items = self.ledger.read_outbox(self.read, 1000).await.unwrap();
        self.read = items.last().map_or(self.read, |i| i.row);
        items.iter().map(|i| serde_json::from_str(&i.sealed.wire).unwrap()).collect()
    }

    async fn publish(&self, wires: &[Value]) {
        let messages = wires.iter().map(|wire| {
            let event: SecurityEvent = serde_json::from_value(wire.clone()).unwrap();
            Message::new(subject::ase(&event.tenant_id, event.kind), wire.to_string())
        });
        for result in self.bus.publish(Stream::Ase, messages.collect()).await {
            result.unwrap();
        }
    }

    /// Waits until the worker has taken everything that is in the stream.
    async fn caught_up(&self, worker: &Worker) -> WorkerStats {
        let last = self.bus.last_seq(Stream::Ase).await.unwrap();
        let start = Instant::now();
        loop {
            let stats = worker.stats();
            if stats.position >= last && stats.ready {
                return stats;
            }
            assert!(start.elapsed() < DEADLINE, "the worker stands at {} of {last}: {:?}", stats.position, stats.trouble);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until so many messages are in the stream of alerts.
    async fn alerts_within(&self, expected: u64) {
        let start = Instant::now();
        while self.bus.last_seq(Stream::Alerts).await.unwrap() < expected {
            assert!(start.elapsed() < DEADLINE, "there are {:?}", self.bus.stream_state(Stream::Alerts).await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn read_stream(&self, stream: Stream, filter: &str) -> Vec<Value> {
        let mut subscription = self.bus.subscribe(stream, filter, 0).await.unwrap();
        let delivered = subscription.next_batch(1000, Duration::from_millis(50)).await.unwrap();
        delivered.iter().map(|d| serde_json::from_slice(&d.payload).unwrap()).collect()
    }

    /// The same of messages that are too many, or too large, to be read at once.
    async fn read_whole(&self, stream: Stream, filter: &str) -> Vec<Value> {
        let mut subscription = self.bus.subscribe(stream, filter, 0).await.unwrap();
        let mut whole = Vec::new();
        loop {
            let delivered = subscription.next_batch(1000, Duration::from_millis(50)).await.unwrap();
            if delivered.is_empty() {
                return whole;
            }
            whole.extend(delivered.iter().map(|d| serde_json::from_slice::<Value>(&d.payload).unwrap()));
        }
    }

    /// The alerts on the bus, once as many as expected are there.
    async fn alerts(&self, expected: usize) -> Vec<Alert> {
        let start = Instant::now();
        loop {
            let alerts = self.read_stream(Stream::Alerts, "alert.>").await;
            if alerts.len() >= expected || start.elapsed() > DEADLINE {
                assert_eq!(alerts.len(), expected, "{alerts:#?}");
                return alerts.into_iter().map(|a| serde_json::from_value(a).unwrap()).collect();
            }
            // What is there is read without a wait, and the bus's writer runs on this very thread.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// One rule: every event that names an agent is a match, and the agent's matches of an hour are one alert.
fn each_agent() -> RuleSet {
    let text = "/* rule\nid: T-1\nname: each-agent\nversion: 1\nseverity: low\nwindow: 10m\nkey: [agent_id]\nmode: active\nrequires: any\n\
                suppress: 1h\nowner: soc\ndescription: d\nfalse_positives: none\nchangelog:\n  - {version: 1, date: 2026-11-22, note: first}\n*/\n\
                SELECT agent_id, event_id, reason FROM events\n";
    RuleSet::from_texts([("each-agent/rule.sql".into(), text.to_owned())]).unwrap()
}

/// One rule: an agent that was denied, and of which nothing follows for ten seconds.
fn fell_silent() -> RuleSet {
    let text = "/* rule\nid: T-2\nname: fell-silent\nversion: 1\nseverity: low\nwindow: 10s\nkey: [agent_id]\nmode: active\n\
                requires: verified\nowner: soc\ndescription: d\nfalse_positives: none\nchangelog:\n  - {version: 1, date: 2026-11-26, note: first}\n*/\n\
                SELECT agent_id, event_id FROM events WHERE decision = 'deny' QUALIFY count(*) OVER (PARTITION BY agent_id ORDER BY ts \
                RANGE BETWEEN INTERVAL '1 microsecond' FOLLOWING AND INTERVAL '10' SECOND FOLLOWING) = 0\n";
    RuleSet::from_texts([("fell-silent/rule.sql".into(), text.to_owned())]).unwrap()
}

#[tokio::test]
async fn what_did_not_follow_is_told_though_nothing_else_comes() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(Timestamp::from_micros(1_767_225_600_000_000)));
    let mut line = Line::open_with(folder.path(), EmbeddedLimits::default(), clock.clone()).await;
    let worker = line.worker_of(fell_silent(), 0, None);
    let wires = line.seal_denies("acme", "prober", 1).await;
    line.publish(&wires).await;
    line.caught_up(&worker).await;
    // The row waits in what the next life reads again.
    worker.stop().await;
    let worker = line.worker_of(fell_silent(), 0, None);
    let (start, events) = (Instant::now(), line.bus.last_seq(Stream::Ase).await.unwrap());
    while line.bus.last_seq(Stream::Alerts).await.unwrap() == 0 {
        assert!(start.elapsed() < DEADLINE, "nothing is told: {:?}", worker.stats());
        // As much as one pause of the bus counts, about as often as the worker looks.
        clock.advance_seconds(5);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let alerts = line.alerts(1).await;
    assert_eq!((alerts[0].rule_name.as_str(), &alerts[0].key["agent_id"]), ("fell-silent", &Value::from("prober")));
    // Once all is decided, nobody needs the time.
    line.caught_up(&worker).await;
    let told = line.read_stream(Stream::Ase, "tick.>").await.len() as u64;
    assert!(told > 0 && line.bus.last_seq(Stream::Ase).await.unwrap() == events + told);
    assert_eq!(worker.stats().malformed, 0);
    worker.stop().await;
}

/// The shipped rule for the first use of an action, alone.
fn first_use() -> RuleSet {
    let text = include_str!("../../../../rules/first-use-of-a-tool/rule.sql");
    RuleSet::from_texts([("first-use-of-a-tool/rule.sql".into(), text.to_owned())]).unwrap()
}

#[tokio::test]
async fn what_was_used_before_is_known_after_a_restart_however_long_ago() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(Timestamp::from_micros(1_767_225_600_000_000)));
    let mut line = Line::open_with(folder.path(), EmbeddedLimits::default(), clock.clone()).await;
    let worker = line.worker_of(first_use(), 0, None);
    let wires = line.seal_calls("acme", "clerk", &["read", "pay"]).await;
    line.publish(&wires).await;
    line.caught_up(&worker).await;
    worker.stop().await;
    // A day later those calls are in no window any more: what is known of them is in the checkpoint.
    clock.advance_seconds(25 * 3600);
    let worker = line.worker_of(first_use(), 0, None);
    let wires = line.seal_calls("acme", "clerk", &["pay", "refund"]).await;
    line.publish(&wires).await;
    line.caught_up(&worker).await;
    worker.stop().await;
    let alerts = line.alerts(1).await;
    assert_eq!((alerts[0].rule_name.as_str(), &alerts[0].key["action"]), ("first-use-of-a-tool", &Value::from("refund")));
}

/// An observation of the outside, at this time.
fn observation(line: &Line, agent: &str, reason: &str) -> Value {
    let tenant = TenantId::new("acme").unwrap();
    let mut event = SecurityEvent::new(tenant, "github", "github", EventKind::ExternalGithubWebhook, line.clock.now());
    event.agent_id = Some(agent.into());
    event.reason = Some(reason.into());
    serde_json::to_value(event).unwrap()
}

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

#[tokio::test]
async fn sealed_denies_become_one_alert_with_their_receipts() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let worker = line.worker();
    let wires = line.seal_denies("acme", "prober", 6).await;
    line.publish(&wires).await;
    // The shipper may send again what it is not sure of: a lane's place counts once.
    line.publish(&wires).await;
    let stats = line.caught_up(&worker).await;
    let alerts = line.alerts(1).await;
    assert_eq!(alerts[0].rule_name, "deny-storm");
    assert_eq!(alerts[0].key["agent_id"], "prober");
    assert_eq!(alerts[0].respond, ["freeze_agent"]);
    assert_eq!((alerts[0].event_ids.len(), alerts[0].receipt_hashes.len()), (5, 5));
    assert_eq!((stats.broken, stats.malformed), (0, 0));
    assert_eq!(stats.repeated, wires.len() as u64);
    assert_eq!(stats.verified, wires.len() as u64);
    worker.stop().await;
}

#[tokio::test]
async fn what_is_ahead_of_the_bus_by_more_than_five_minutes_proves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let start = Timestamp::from_micros(1_767_225_600_000_000);
    let (of_edge, of_bus) = (Arc::new(ManualClock::new(start.plus_seconds(300))), Arc::new(ManualClock::new(start)));
    let mut line = Line::open_apart(folder.path(), EmbeddedLimits::default(), of_edge.clone(), of_bus.clone()).await;
    let worker = line.worker();
    // Five minutes are a clock that is off; these are a storm.
    let wires = line.seal_denies("acme", "prober", 5).await;
    line.publish(&wires).await;
    assert_eq!(line.alerts(1).await[0].rule_name, "deny-storm");
    assert_eq!(line.caught_up(&worker).await.broken, 0);
    of_edge.advance_micros(1);
    let ahead = line.seal_denies("acme", "victim", 5).await;
    line.publish(&ahead).await;
    let alerts = line.alerts(2).await;
    let broken = alerts.iter().find(|alert| alert.rule_name == "receipt-chain-broken").unwrap();
    assert_eq!(broken.fields["failure"], "ahead_of_time");
    let stats = line.caught_up(&worker).await;
    assert_eq!((stats.broken, stats.verified), (5, wires.len() as u64));
    // Nor did they move the tenant's time, and the lane goes on: a minute later the same time is one that may be.
    of_bus.advance_seconds(60);
    let right = line.seal_denies("acme", "prober-2", 5).await;
    line.publish(&right).await;
    let stats = line.caught_up(&worker).await;
    assert_eq!((stats.broken, stats.late), (5, 0));
    let alerts = line.alerts(3).await;
    assert!(alerts.iter().any(|alert| alert.key.get("agent_id").is_some_and(|agent| agent == "prober-2")), "{alerts:#?}");
    assert!(alerts.iter().all(|alert| alert.key.get("agent_id").is_none_or(|agent| agent != "victim")), "{alerts:#?}");
    worker.stop().await;
}

#[tokio::test]
async fn a_lane_is_seen_again_as_soon_as_a_clock_that_was_ahead_is_set_back() {
    let folder = tempfile::tempdir().unwrap();
    let start = Timestamp::from_micros(1_767_225_600_000_000);
    let (of_edge, of_bus) = (Arc::new(ManualClock::new(start.plus_seconds(3600))), Arc::new(ManualClock::new(start)));
    let mut line = Line::open_apart(folder.path(), EmbeddedLimits::default(), of_edge.clone(), of_bus.clone()).await;
    let worker = line.worker();
    let ahead = line.seal_denies("acme", "unseen", 5).await;
    let of_beta = line.seal_denies("beta", "unseen", 5).await;
    line.publish(&ahead).await;
    line.publish(&of_beta).await;
    assert!(line.alerts(2).await.iter().all(|alert| alert.rule_name == "receipt-chain-broken"));
    of_edge.advance_seconds(-3600);
    // Both tenants' lanes.
    for tenant in ["acme", "beta"] {
        let right = line.seal_denies(tenant, "prober", 5).await;
        assert_eq!(right.iter().filter(|wire| wire["clock_suspect"] == true).count(), 2, "the close, and the open behind it");
        line.publish(&right).await;
    }
    let alerts = line.alerts(6).await;
    for tenant in ["acme", "beta"] {
        let of_tenant = alerts.iter().filter(|alert| alert.tenant_id.as_str() == tenant);
        let mut names: Vec<&str> = of_tenant.map(|alert| alert.rule_name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["clock-suspect", "deny-storm", "receipt-chain-broken"]);
    }
    assert!(alerts.iter().all(|alert| alert.key.get("agent_id").is_none_or(|agent| agent == "prober")), "{alerts:#?}");
    let stats = line.caught_up(&worker).await;
    // Of each lane ahead the open, the denies and the close; of each that follows the open and the denies.
    assert_eq!((stats.broken, stats.verified, stats.late), (14, 12, 0));
    // Its own clock is the same: it stood still, was set back, and what it does from time to time does not wait for it.
    let begun = Instant::now();
    while worker.stats().checkpoints == 0 {
        assert!(begun.elapsed() < DEADLINE, "nothing is written down: {:?}", worker.stats());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    worker.stop().await;
}

#[tokio::test]
async fn an_altered_event_breaks_the_chain_and_freezes_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let worker = line.worker();
    let mut wires = line.seal_denies("acme", "victim", 5).await;
    let altered = wires.last_mut().unwrap();
    altered["agent_id"] = "somebody-else".into();
    line.publish(&wires).await;
    line.caught_up(&worker).await;
    let alerts = line.alerts(1).await;
    assert_eq!(alerts[0].rule_name, "receipt-chain-broken");
    assert_eq!(alerts[0].key["chain"], wires[1]["lane"]);
    assert!(alerts[0].respond.is_empty());
    worker.stop().await;
}

#[tokio::test]
async fn forged_denies_without_a_receipt_freeze_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let line = Line::open(folder.path()).await;
    let worker = line.worker();
    let forged: Vec<Value> = (0..6)
        .map(|_| {
            let tenant = TenantId::new("acme").unwrap();
            let mut event = SecurityEvent::new(tenant, "edge-9", "edge", EventKind::AuthorizeDecision, line.clock.now());
            event.agent_id = Some("victim".into());
            event.decision = Some(Decision::Deny);
            event.verified = true;
            serde_json::to_value(event).unwrap()
        })
        .collect();
    line.publish(&forged).await;
    line.caught_up(&worker).await;
    let alerts = line.alerts(1).await;
    assert_eq!(
        (alerts[0].rule_name.as_str(), &alerts[0].fields["failure"]),
        ("receipt-chain-broken", &Value::from("missing_receipt"))
    );
    worker.stop().await;
}

#[tokio::test]
async fn a_restart_goes_on_with_its_windows_and_repeats_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let first_part = line.seal_denies("acme", "prober", 3).await;
    let worker = line.worker();
    line.publish(&first_part).await;
    let stats = line.caught_up(&worker).await;
    assert_eq!(stats.alerts, 0);
    worker.stop().await;
    assert!(line.bus.consumer_position(Stream::Ase, CONSUMER).await.unwrap() < 3, "the window still needs its events");

    // Two more while nobody listens: only together with the three from before are they a storm.
    let second_part = line.seal_denies("acme", "prober", 2).await;
    line.publish(&second_part).await;
    let worker = line.worker();
    let stats = line.caught_up(&worker).await;
    assert_eq!(stats.events, 2, "what the checkpoint counts is not taken again");
    assert_eq!(stats.broken, 0, "the lane heads came back with the checkpoint");
    let alerts = line.alerts(1).await;
    let first_deny = first_part.iter().find(|w| w["kind"] == "authorize_decision").unwrap();
    assert_eq!(alerts[0].event_ids[0].to_string(), first_deny["event_id"].as_str().unwrap());
    worker.stop().await;

    // Started without its checkpoint's help it would find the same: the alert's id is there already.
    let worker = line.worker();
    line.caught_up(&worker).await;
    line.alerts(1).await;
    worker.stop().await;
}

/// A rule of acme's own: as many denies of an agent within a minute.
fn own_rule(denies: usize, mode: &str) -> String {
    format!(
        "/* rule\nid: OWN-1\nname: own-denies\nversion: 1\nseverity: low\nwindow: 60s\nkey: [agent_id]\nmode: {mode}\nrequires: verified\n\
         suppress: 1h\nowner: soc\ndescription: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-26, note: first}}\n*/\n\
         SELECT agent_id, count(*) OVER w AS n, array_agg(event_id) OVER w AS event_ids FROM events WHERE decision = 'deny' WINDOW w AS \
         (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND CURRENT ROW) QUALIFY n >= {denies}\n"
    )
}

/// The versions that were made, as the control plane keeps them.
#[derive(Debug)]
struct Texts(Vec<String>);

#[async_trait::async_trait]
impl RuleTexts for Texts {
    async fn text(&self, _tenant: &TenantId, _rule_id: &str, hash: &str) -> Result<Option<String>, String> {
        Ok(self.0.iter().find(|text| aegis_canon::sha256_hex(text.as_bytes()) == hash).cloned())
    }
}

/// Puts a change of acme's own rule into the log.
async fn record(line: &Line, text: &str, revision: i64) {
    let tenant_id = TenantId::new("acme").unwrap();
    let place = subject::ruleset(partition_of(&tenant_id));
    let hash = aegis_canon::sha256_hex(text.as_bytes());
    let record = RuleRecord { tenant_id, rule_id: "OWN-1".into(), revision, hash, text: text.into() };
    for result in line.bus.publish(Stream::Ase, vec![Message::new(place, serde_json::to_string(&record).unwrap())]).await {
        result.unwrap();
    }
}

/// Waits until the worker runs acme's own rule, or does not.
async fn until_it_runs(worker: &Worker, runs: bool) {
    let start = Instant::now();
    while worker.stats().rules.iter().any(|rule| rule.rule_id == "OWN-1" && rule.quarantined.is_none()) != runs {
        assert!(start.elapsed() < DEADLINE, "{:?}", worker.stats().rules);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_record_in_the_log_makes_a_rule_that_knows_its_window_and_stands_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let (of_four, off) = (own_rule(4, "log_only"), own_rule(4, "disabled"));
    let texts = Arc::new(Texts(vec![of_four.clone(), off.clone()]));
    let never = own_rule(1000, "active").replace("OWN-1", "T-9").replace("own-denies", "never");
    let rules = || RuleSet::from_texts([("never/rule.sql".into(), never.clone())]).unwrap();
    let start = |line: &Line| line.worker_with(rules(), 0, None, Some(texts.clone()));
    let worker = start(&line);
    for (agent, count) in [("before", 4), ("over", 3)] {
        let denies = line.seal_denies("acme", agent, count).await;
        line.publish(&denies).await;
    }
    record(&line, &of_four, 7).await;
    // An older record, and one that is none, change nothing.
    record(&line, &off, 6).await;
    let none = Message::new(subject::ruleset(partition_of(&TenantId::new("acme").unwrap())), "{}");
    line.bus.publish(Stream::Ase, vec![none]).await.remove(0).unwrap();
    line.caught_up(&worker).await;
    until_it_runs(&worker, true).await;
    worker.stop().await;
    assert!(line.read_stream(Stream::Alerts, "alert.>").await.is_empty(), "what lies before the record raises nothing");

    // After a restart it still knows the three of before, and nothing is told of the four that lie before it.
    let worker = start(&line);
    let fourth = line.seal_denies("acme", "over", 1).await;
    line.publish(&fourth).await;
    line.caught_up(&worker).await;
    let alert = line.alerts(1).await.remove(0);
    assert_eq!((alert.rule_name.as_str(), alert.mode, alert.event_ids.len()), ("own-denies", RuleMode::LogOnly, 4));
    assert_eq!(alert.key["agent_id"], "over");

    record(&line, &off, 8).await;
    let others = line.seal_denies("acme", "later", 5).await;
    line.publish(&others).await;
    line.caught_up(&worker).await;
    until_it_runs(&worker, false).await;
    worker.stop().await;
    line.alerts(1).await;
}

#[tokio::test]
async fn a_rule_whose_window_is_longer_than_what_is_kept_waits_until_it_knows_all_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    // Ten seconds are kept, and sixty asked for.
    let worker = line.worker_of(fell_silent(), 0, None);
    record(&line, &own_rule(4, "active"), 1).await;
    let denies = line.seal_denies("acme", "prober", 6).await;
    line.publish(&denies).await;
    line.caught_up(&worker).await;
    until_it_runs(&worker, true).await;
    worker.stop().await;
    assert!(line.read_stream(Stream::Alerts, "alert.>").await.is_empty());
}

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
async fn what_is_told_of_a_late_forged_event_stands_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(Timestamp::from_micros(1_767_225_600_000_000)));
    let mut line = Line::open_with(folder.path(), EmbeddedLimits::default(), clock.clone()).await;
    let worker = line.worker();
    let wires = line.seal_denies("acme", "prober", 2).await;
    line.publish(&wires).await;
    line.caught_up(&worker).await;
    let an_hour_ago = clock.now().plus_seconds(-3600);
    let tenant = TenantId::new("acme").unwrap();
    let forged = SecurityEvent::new(tenant, "edge-9", "edge", EventKind::AuthorizeDecision, an_hour_ago);
    line.publish(&[serde_json::to_value(forged).unwrap()]).await;
    assert_eq!(line.alerts(1).await[0].rule_name, "receipt-chain-broken");
    assert_eq!(line.caught_up(&worker).await.late, 1);
    worker.stop().await;

    let worker = line.worker();
    line.caught_up(&worker).await;
    clock.advance_seconds(2 * 24 * 3600);
    let wires = line.seal_denies("acme", "prober", 1).await;
    line.publish(&wires).await;
    let stats = line.caught_up(&worker).await;
    assert_eq!((stats.events, stats.retractions), (1, 0), "nothing contradicts it");
    assert!(line.read_stream(Stream::Alerts, "retract.>").await.is_empty());
    worker.stop().await;
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

#[tokio::test]
async fn malformed_messages_are_set_aside_and_the_rest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let wires = line.seal_denies("acme", "prober", 5).await;
    let tenant = TenantId::new("acme").unwrap();
    let own = subject::ase(&tenant, EventKind::AuthorizeDecision);
    let foreign = subject::ase(&TenantId::new("other").unwrap(), EventKind::AuthorizeDecision);
    let bad = vec![
        Message::new(own.clone(), "not json"),
        Message::new(own.clone(), r#"{"event_id": 1, "event_id": 2}"#),
        Message::new(own, r#"{"kind": "authorize_decision"}"#),
        Message::new(foreign, wires.last().unwrap().to_string()),
    ];
    for result in line.bus.publish(Stream::Ase, bad).await {
        result.unwrap();
    }
    let worker = line.worker();
    line.publish(&wires).await;
    let stats = line.caught_up(&worker).await;
    assert_eq!(stats.malformed, 4);
    line.alerts(1).await;
    let dead = line.read_stream(Stream::Dlq, "dlq.>").await;
    assert_eq!(dead.len(), 4);
    assert!(dead.iter().all(|d| !d["reason"].as_str().unwrap().is_empty()), "{dead:#?}");
    assert!(dead[1]["reason"].as_str().unwrap().starts_with("duplicate_key"), "{dead:#?}");
    worker.stop().await;
}
