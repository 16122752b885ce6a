//! What tests of whole lives of the worker stand on: edges that seal, a bus, and a worker over it, each by the clock that it is given.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Bus, EmbeddedBus, EmbeddedLimits, Message, Stream, subject};
use aegis_detect::{RuleSet, RuleTexts, Worker, WorkerConfig, WorkerStats};
use aegis_keys::{KeyRing, SigningKey};
use aegis_ledger::{Draft, Ledger, LedgerConfig};
use aegis_model::{Clock, Decision, EventKind, Phase, SecurityEvent, TenantId};
use serde_json::Value;
use tokio::time::Instant;

const DEADLINE: Duration = Duration::from_secs(60);

fn key() -> SigningKey {
    SigningKey::from_seed(&[7; 32])
}

/// Signs the records of tenants' own rules.
pub(crate) fn control_key() -> SigningKey {
    SigningKey::from_seed(&[8; 32])
}

/// An edge with its ledger.
pub(crate) struct Edge {
    ledger: Ledger,
    name: String,
    clock: Arc<dyn Clock>,
    read: i64,
}

impl Edge {
    pub(crate) async fn open(folder: &Path, name: &str, clock: Arc<dyn Clock>) -> Self {
        let config = LedgerConfig::new(folder.join(format!("{name}.db")), name, "edge");
        let ledger = Ledger::open(config, key(), Arc::clone(&clock)).await.unwrap();
        Self { ledger, name: name.to_owned(), clock, read: 0 }
    }

    /// Seals a call of an agent now, or one that names none, and answers what the ledger wants shipped: it, and what its lane begins with.
    pub(crate) async fn seal(&mut self, tenant: &str, agent: Option<&str>, decision: Decision) -> Vec<Value> {
        let tenant = TenantId::new(tenant).unwrap();
        let mut event = SecurityEvent::new(tenant, &self.name, "edge", EventKind::AuthorizeDecision, self.clock.now());
        event.agent_id = agent.map(str::to_owned);
        event.decision = Some(decision);
        event.mutates_state = Some(false);
        self.ledger.submit(Draft::new(event, Phase::Decision)).await.unwrap();
        let items = self.ledger.read_outbox(self.read, 1000).await.unwrap();
        self.read = items.last().map_or(self.read, |item| item.row);
        items.iter().map(|item| serde_json::from_str(&item.sealed.wire).unwrap()).collect()
    }
}

/// An event as a message of the bus.
pub(crate) fn message(wire: &Value) -> Message {
    let event: SecurityEvent = serde_json::from_value(wire.clone()).unwrap();
    Message::new(subject::ase(&event.tenant_id, event.kind), wire.to_string())
}

pub(crate) async fn open_bus(folder: &Path, limits: EmbeddedLimits, clock: Arc<dyn Clock>) -> Arc<EmbeddedBus> {
    EmbeddedBus::open(&folder.join("bus.db"), limits, clock).await.unwrap()
}

pub(crate) async fn publish(bus: &EmbeddedBus, stream: Stream, messages: Vec<Message>) {
    for result in bus.publish(stream, messages).await {
        result.unwrap();
    }
}

/// A worker that writes a checkpoint where it ends, and by its clock.
pub(crate) fn start(bus: &Arc<EmbeddedBus>, rules: RuleSet, clock: &Arc<dyn Clock>, texts: Option<Arc<dyn RuleTexts>>) -> Worker {
    start_with(bus, rules, clock, |config| config.texts = texts)
}

/// The same with other settings.
pub(crate) fn start_with(
    bus: &Arc<EmbeddedBus>,
    rules: RuleSet,
    clock: &Arc<dyn Clock>,
    change: impl FnOnce(&mut WorkerConfig),
) -> Worker {
    let mut config = WorkerConfig::new(Arc::clone(clock));
    config.engine.lateness_s = 6;
    change(&mut config);
    config.control = KeyRing::new([control_key().verifying_key()]);
    let ring = KeyRing::new([key().verifying_key()]);
    let bus: Arc<dyn Bus> = Arc::clone(bus) as Arc<dyn Bus>;
    Worker::spawn(bus, ring, rules, Arc::clone(clock), config).unwrap()
}

/// Waits until the worker has taken everything that is in the stream now.
pub(crate) async fn caught_up(bus: &EmbeddedBus, worker: &Worker) -> WorkerStats {
    let last = bus.last_seq(Stream::Ase).await.unwrap();
    let begun = Instant::now();
    loop {
        let stats = worker.stats();
        if stats.position >= last && stats.ready {
            return stats;
        }
        assert!(begun.elapsed() < DEADLINE, "the worker stands at {} of {last}: {:?}", stats.position, stats.trouble);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// All that a stream has under a filter.
pub(crate) async fn read_all(bus: &EmbeddedBus, stream: Stream, filter: &str) -> Vec<Value> {
    let mut subscription = bus.subscribe(stream, filter, 0).await.unwrap();
    let mut all = Vec::new();
    loop {
        let delivered = subscription.next_batch(1000, Duration::from_millis(20)).await.unwrap();
        if delivered.is_empty() {
            return all;
        }
        all.extend(delivered.iter().map(|message| serde_json::from_slice::<Value>(&message.payload).unwrap()));
    }
}

/// The last checkpoint, which is a small one.
pub(crate) async fn checkpoint(bus: &EmbeddedBus) -> Option<Value> {
    read_all(bus, Stream::Ckpt, &subject::ckpt(0)).await.pop()
}

/// Puts a checkpoint into the place of the last one.
pub(crate) async fn put_checkpoint(bus: &EmbeddedBus, text: &Value) {
    publish(bus, Stream::Ckpt, vec![Message::new(subject::ckpt(0), text.to_string())]).await;
}
