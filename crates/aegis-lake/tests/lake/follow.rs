//! The thread on the real embedded bus, over events that a real ledger sealed.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Bus, EmbeddedBus, EmbeddedLimits, Message, Stream, Subscription, subject};
use aegis_keys::{KeyRing, SigningKey};
use aegis_lake::{CONSUMER, Folder, LakeConfig, LakeStats, LakeWorker, Replay, Span, stored_to};
use aegis_ledger::{Draft, Ledger, LedgerConfig};
use aegis_model::{Clock, Decision, EventKind, Phase, ReadEvent, SecurityEvent, SystemClock, WireEvent};
use datafusion::arrow::array::{Array, AsArray};
use datafusion::arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use object_store::ObjectStore;
use sqlx::{Connection, SqliteConnection};
use tokio::time::Instant;

use crate::house::{all_of, ask, tenant};
use crate::server::S3Server;

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A ledger, a bus and a lake in one folder.
pub(crate) struct Line {
    pub(crate) ledger: Ledger,
    pub(crate) bus: Arc<EmbeddedBus>,
    key: SigningKey,
    clock: Arc<dyn Clock>,
    pub(crate) lake: Arc<dyn ObjectStore>,
    read: i64,
}

impl Line {
    pub(crate) async fn open(folder: &Path) -> Self {
        let lake = folder.join("lake");
        std::fs::create_dir_all(&lake).unwrap();
        Self::open_on(folder, Folder::open(&lake).unwrap()).await
    }

    /// The same with its lake elsewhere.
    pub(crate) async fn open_on(folder: &Path, lake: Arc<dyn ObjectStore>) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let key = SigningKey::from_seed(&[7; 32]);
        let config = LedgerConfig::new(folder.join("ledger.db"), "edge-1", "edge");
        let ledger = Ledger::open(config, key.clone(), Arc::clone(&clock)).await.unwrap();
        let bus = EmbeddedBus::open(&folder.join("bus.db"), EmbeddedLimits::default(), Arc::clone(&clock)).await.unwrap();
        Self { ledger, bus, key, clock, lake, read: 0 }
    }

    fn worker(&self) -> LakeWorker {
        self.worker_that_gives_up(LakeConfig::default().give_up_ms)
    }

    /// So many milliseconds behind a stop.
    fn worker_that_gives_up(&self, give_up_ms: u64) -> LakeWorker {
        self.worker_with(LakeConfig { flush_ms: 20, give_up_ms, ..LakeConfig::default() })
    }

    pub(crate) fn worker_with(&self, config: LakeConfig) -> LakeWorker {
        let ring = KeyRing::new([self.key.verifying_key()]);
        let bus: Arc<dyn Bus> = Arc::clone(&self.bus) as Arc<dyn Bus>;
        LakeWorker::spawn(bus, Arc::clone(&self.lake), ring, Arc::clone(&self.clock), config).unwrap()
    }

    /// Seals decisions and answers them as the ledger wants them shipped, the lane's opening among them.
    pub(crate) async fn seal(&mut self, count: usize) -> Vec<String> {
        for _ in 0..count {
            let mut event = SecurityEvent::new(tenant("acme"), "edge-1", "edge", EventKind::AuthorizeDecision, self.clock.now());
            (event.agent_id, event.decision) = (Some("a".into()), Some(Decision::Deny));
            self.ledger.submit(Draft::new(event, Phase::Decision)).await.unwrap();
        }
        let items = self.ledger.read_outbox(self.read, 1000).await.unwrap();
        self.read = items.last().map_or(self.read, |item| item.row);
        items.iter().map(|item| item.sealed.wire.to_string()).collect()
    }

    pub(crate) async fn publish(&self, wires: &[String]) {
        let message = |wire: &String| {
            let event = WireEvent::read(wire.as_bytes()).unwrap().event().unwrap();
            Message::new(subject::ase(&event.tenant_id, event.kind), wire.clone())
        };
        for result in self.bus.publish(Stream::Ase, wires.iter().map(message).collect()).await {
            result.unwrap();
        }
    }

    /// Another reader of the stream.
    async fn reader(&self) -> Box<dyn Subscription> {
        self.bus.subscribe(Stream::Ase, "ase.>", 1).await.unwrap()
    }

    /// Waits until all that is in the stream is in the lake.
    pub(crate) async fn caught_up(&self, worker: &LakeWorker) -> LakeStats {
        let last = self.bus.last_seq(Stream::Ase).await.unwrap();
        let start = Instant::now();
        loop {
            let stats = worker.stats();
            if stats.position >= last {
                return stats;
            }
            assert!(start.elapsed() < DEADLINE, "the lake stands at {} of {last}: {:?}", stats.position, stats.trouble);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the thread says what keeps it.
    pub(crate) async fn in_trouble(&self, worker: &LakeWorker) -> String {
        let start = Instant::now();
        loop {
            if let Some(trouble) = worker.stats().trouble {
                return trouble;
            }
            assert!(start.elapsed() < DEADLINE, "nothing keeps the lake from going on: {:?}", worker.stats());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn number(&self, text: &str) -> i64 {
        let rows = all_of(ask(&self.lake, "acme", text).await.unwrap()).await.unwrap();
        rows.column(0).as_primitive::<Int64Type>().value(0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_edge_seals_of_what_is_control_s_to_say_is_a_row_that_is_not_verified() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let worker = line.worker();
    let event = SecurityEvent::new(tenant("acme"), "control", "control", EventKind::ApprovalDecided, line.clock.now());
    line.ledger.submit(Draft::new(event, Phase::Approval)).await.unwrap();
    // The lane's opening, what is not its to say, and a decision behind it.
    let sealed = line.seal(1).await;
    line.publish(&sealed).await;
    assert_eq!(line.caught_up(&worker).await.rows, 3);
    assert_eq!(line.number("SELECT count(*) FROM events WHERE verified").await, 2);
    assert_eq!(line.number("SELECT count(*) FROM events WHERE kind = 'approval_decided' AND NOT verified").await, 1);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sealed_is_a_proved_row_with_the_bus_time_and_what_was_not_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let sealed = line.seal(5).await;
    let mut forged = SecurityEvent::new(tenant("acme"), "edge-1", "edge", EventKind::AuthorizeDecision, line.clock.now());
    // Says of itself what only a consumer can say.
    (forged.verified, forged.lane, forged.seq) = (true, Some("acme.edge-1.x".into()), Some(1));
    let worker = line.worker();
    line.publish(&sealed).await;
    line.publish(&[serde_json::to_string(&forged).unwrap()]).await;
    let garbage = Message::new(subject::ase(&tenant("acme"), EventKind::AuthorizeDecision), "no event");
    let stolen = Message::new(subject::ase(&tenant("b"), EventKind::AuthorizeDecision), sealed[0].clone());
    for result in line.bus.publish(Stream::Ase, vec![garbage, stolen]).await {
        result.unwrap();
    }
    let stats = line.caught_up(&worker).await;
    assert_eq!((stats.malformed, stats.rows, stats.trouble), (2, sealed.len() as u64 + 1, None));
    assert_eq!(line.number("SELECT count(*) FROM events WHERE verified").await, sealed.len() as i64);
    assert_eq!(line.number("SELECT count(*) FROM events WHERE NOT verified AND lane = 'acme.edge-1.x'").await, 1);
    assert_eq!(line.number("SELECT count(*) FROM events WHERE late OR bus_ts IS NULL").await, 0);
    let rows = all_of(ask(&line.lake, "acme", "SELECT ts, bus_ts FROM events").await.unwrap()).await.unwrap();
    let bus_ts = rows.column(1).as_primitive::<TimestampMicrosecondType>();
    assert_eq!(bus_ts.null_count(), 0);
    // It has all up to then: what was no event came last.
    let newest = bus_ts.values().iter().max().copied().unwrap();
    assert!(stored_to(&line.lake).await.unwrap().is_some_and(|known_to| known_to.as_micros() >= newest));
    assert_eq!(line.bus.consumer_position(Stream::Ase, CONSUMER).await.unwrap(), stats.position);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_make_of_a_message_that_is_read_once_for_all_is_not_what_the_lake_makes_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let (mut first, mut last) = (line.reader().await, line.reader().await);
    let sealed = line.seal(3).await;
    let mut forged = SecurityEvent::new(tenant("acme"), "edge-1", "edge", EventKind::AuthorizeDecision, line.clock.now());
    (forged.lane, forged.seq) = (Some("acme.edge-1.x".into()), Some(1));
    line.publish(&sealed).await;
    line.publish(&[serde_json::to_string(&forged).unwrap()]).await;
    let garbage = Message::new(subject::ase(&tenant("acme"), EventKind::AuthorizeDecision), "no event");
    line.bus.publish(Stream::Ase, vec![garbage]).await.remove(0).unwrap();
    let all = sealed.len() + 1;

    // One who believes all of it.
    let others = first.next_batch(1000, Duration::ZERO).await.unwrap();
    let read: Vec<Arc<ReadEvent>> = others.iter().filter_map(|message| message.event().ok()).collect();
    let believed: Vec<Arc<SecurityEvent>> = read.iter().map(|read| read.marked(true)).collect();
    assert!(believed.len() == all && believed.iter().all(|event| event.verified));
    let worker = line.worker();
    let stats = line.caught_up(&worker).await;
    worker.stop().await;
    assert_eq!((stats.malformed, stats.rows), (1, all as u64));
    assert_eq!(line.number("SELECT count(*) FROM events WHERE verified").await, sealed.len() as i64);
    assert_eq!(line.number("SELECT count(*) FROM events WHERE NOT verified AND lane = 'acme.edge-1.x'").await, 1);

    // Nor is anybody told what the lake found, or has to read what it read.
    for (message, read) in last.next_batch(1000, Duration::ZERO).await.unwrap().iter().zip(&read) {
        assert!(Arc::ptr_eq(&message.event().unwrap(), read) && !read.event().verified && !read.marked(false).verified);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn before_it_writes_a_sequence_down_it_has_the_bus_settle_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let sealed = line.seal(3).await;
    line.publish(&sealed).await;
    let bus_file = format!("sqlite://{}", folder.path().join("bus.db").display());
    let mut bus_file = SqliteConnection::connect(&bus_file).await.unwrap();
    let settled = "SELECT count(*) FROM sources WHERE source < 0 AND last_position > 0";
    let before: i64 = sqlx::query_scalar(settled).fetch_one(&mut bus_file).await.unwrap();
    let worker = line.worker();
    line.caught_up(&worker).await;
    worker.stop().await;
    let after: i64 = sqlx::query_scalar(settled).fetch_one(&mut bus_file).await.unwrap();
    assert_eq!((before, after), (0, 1));
    bus_file.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_on_where_it_stopped_and_a_receipt_that_comes_again_is_one_row() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let (mut sealed, mut known_before) = (Vec::new(), None);
    for round in 1..=3 {
        let fresh = line.seal(10).await;
        // Once before the thread starts, and once while it runs; and what it has already.
        line.publish(&fresh[..5]).await;
        let worker = line.worker();
        line.publish(&fresh[5..]).await;
        line.publish(&sealed).await;
        line.publish(&fresh).await;
        sealed.extend(fresh);
        if round == 2 {
            line.caught_up(&worker).await;
        }
        // A stop writes what the bus has.
        worker.stop().await;
        assert_eq!(line.number("SELECT count(*) FROM events").await, sealed.len() as i64, "round {round}");
        let mut replay = Replay::open(Arc::clone(&line.lake), &tenant("acme"), None, Span::ALL).await.unwrap();
        let replayed = replay.next().await.unwrap().unwrap();
        let in_order = replayed.windows(2).all(|pair| pair[0].order_key() < pair[1].order_key());
        assert!(replayed.len() == sealed.len() && in_order && replayed.iter().all(|event| event.verified), "{replayed:?}");
        let known_to = stored_to(&line.lake).await.unwrap();
        assert!(known_to > known_before, "round {round}: {known_to:?}");
        known_before = known_to;
    }
    assert_eq!(line.number("SELECT count(DISTINCT event_id) FROM events").await, sealed.len() as i64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_was_made_anew_is_read_from_its_start_and_doubles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let sealed = line.seal(10).await;
    line.publish(&sealed).await;
    line.worker().stop().await;
    let other = tempfile::tempdir().unwrap();
    let clock = Arc::clone(&line.clock);
    line.bus = EmbeddedBus::open(&other.path().join("bus.db"), EmbeddedLimits::default(), clock).await.unwrap();
    let fresh = line.seal(3).await;
    // Another order, so that no sequence is what it was.
    line.publish(&fresh).await;
    line.publish(&sealed).await;
    line.worker().stop().await;
    assert_eq!(line.number("SELECT count(*) FROM events").await, (sealed.len() + fresh.len()) as i64);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_far_behind_its_tenants_watermark_is_late_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let now = line.clock.now();
    let observed = |seconds: i64| {
        let ts = now.plus_seconds(seconds);
        let event = SecurityEvent::new(tenant("acme"), "ingest", "github", EventKind::ExternalGithubWebhook, ts);
        serde_json::to_string(&event).unwrap()
    };
    // Before anything is proved nobody knows how late it is.
    line.publish(&[observed(-500)]).await;
    let sealed = line.seal(3).await;
    line.publish(&sealed).await;
    line.worker().stop().await;
    assert_eq!(line.number("SELECT count(*) FROM events WHERE late").await, 0);
    line.publish(&[observed(-10), observed(-501)]).await;
    line.worker().stop().await;
    assert_eq!(line.number("SELECT count(*) FROM events").await, sealed.len() as i64 + 3);
    let late = all_of(ask(&line.lake, "acme", "SELECT ts FROM events WHERE late").await.unwrap()).await.unwrap();
    let ts = late.column(0).as_primitive::<TimestampMicrosecondType>();
    assert_eq!(ts.values().to_vec(), [now.plus_seconds(-501).as_micros()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_gone_holds_back_the_bus_alone_and_has_each_row_once_when_it_is_back() {
    let mut server = S3Server::start();
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open_on(folder.path(), server.store("lake")).await;
    let worker = line.worker();
    let mut sealed = line.seal(5).await;
    line.publish(&sealed).await;
    let before = line.caught_up(&worker).await.position;
    server.kill();
    for _ in 0..3 {
        let more = line.seal(5).await;
        line.publish(&more).await;
        sealed.extend(more);
    }
    let trouble = line.in_trouble(&worker).await;
    assert!(trouble.contains("s3://lakes/lake"), "{trouble}");
    // What is not written is kept.
    assert_eq!(line.bus.consumer_position(Stream::Ase, CONSUMER).await.unwrap(), before);
    server.start_again();
    line.caught_up(&worker).await;
    assert_eq!(worker.stats().trouble, None);
    worker.stop().await;
    assert_eq!(line.number("SELECT count(*) FROM events WHERE verified").await, sealed.len() as i64);
    assert_eq!(line.number("SELECT count(*) FROM events").await, sealed.len() as i64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_does_not_answer_holds_up_no_stop_and_what_it_answers_late_doubles_nothing() {
    let server = S3Server::start();
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open_on(folder.path(), server.store("lake")).await;
    let worker = line.worker_that_gives_up(100);
    let mut sealed = line.seal(5).await;
    line.publish(&sealed).await;
    line.caught_up(&worker).await;
    server.signal("STOP");
    let more = line.seal(5).await;
    line.publish(&more).await;
    sealed.extend(more);
    tokio::time::timeout(DEADLINE, worker.stop()).await.expect("it stops without the store");
    server.signal("CONT");
    // What was under way when it was let go of may be done now, or while the next one works.
    let worker = line.worker();
    line.caught_up(&worker).await;
    worker.stop().await;
    assert_eq!(line.number("SELECT count(*) FROM events").await, sealed.len() as i64);
}
