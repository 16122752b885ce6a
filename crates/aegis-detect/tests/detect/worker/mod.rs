//! The worker on the real embedded bus, over events that a real ledger sealed.

mod bounds;
mod common_rules;
mod evidence;
mod far;
mod lanes;
mod late;
mod own_rules;
mod refused_records;
mod restart;
mod warm;
mod warm_every;
mod warm_lanes;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{AskForMissing, Bus, EmbeddedBus, EmbeddedLimits, Message, Stream, subject};
use aegis_detect::{RuleSet, RuleTexts, Worker, WorkerConfig, WorkerStats};
use aegis_keys::{KeyRing, SigningKey};
use aegis_ledger::{Draft, Ledger, LedgerConfig};
use aegis_model::{Alert, Clock, Decision, EventKind, Phase, SecurityEvent, SystemClock, TenantId};
use serde_json::Value;
use tokio::time::Instant;

use crate::ground::control_key;

const DEADLINE: Duration = Duration::from_secs(60);

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
        let mut config = WorkerConfig::new(Arc::clone(&self.clock));
        config.checkpoint_ms = 50;
        config.hold_ms = hold_ms;
        config.missing = missing;
        config.texts = texts;
        self.worker_over(&self.bus, rules, config)
    }

    /// Over this bus or another one; control's records are taken.
    fn worker_over(&self, bus: &Arc<EmbeddedBus>, rules: RuleSet, mut config: WorkerConfig) -> Worker {
        config.control = KeyRing::new([control_key().verifying_key()]);
        let ring = KeyRing::new([self.key.verifying_key()]);
        let bus: Arc<dyn Bus> = Arc::clone(bus) as Arc<dyn Bus>;
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

/// An observation of the outside, at this time.
fn observation(line: &Line, agent: &str, reason: &str) -> Value {
    let tenant = TenantId::new("acme").unwrap();
    let mut event = SecurityEvent::new(tenant, "github", "github", EventKind::ExternalGithubWebhook, line.clock.now());
    event.agent_id = Some(agent.into());
    event.reason = Some(reason.into());
    serde_json::to_value(event).unwrap()
}
