//! A real ledger, shipped to a real bus, with faults in between.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod ground;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use aegis_bus::{
    AskForMissing, Bucket, Bus, BusError, Delivered, EmbeddedBus, EmbeddedLimits, Hearing, KvWatch, Message, PubAck, Stream,
    StreamLimits, StreamState, Subscription,
};
use aegis_ledger::Durability;
use aegis_model::{EventId, EventKind, FrozenAction, Reading, SystemClock, TenantId};
use aegis_shipper::{LedgerKeeper, Shipper, ShipperConfig};
use async_trait::async_trait;
use bytes::Bytes;
use ground::{decisions_of, draft, draft_of, freeze, ledger, ledger_of, quick, seal, tenant, until};
use serde_json::Value;

/// A bus in front of another, with faults.
#[derive(Debug)]
struct Faulty {
    inner: Arc<EmbeddedBus>,
    down: AtomicBool,
    /// APPROVALS alone is down.
    approvals_down: AtomicBool,
    /// Publishes that were tried while it was down.
    tried: AtomicUsize,
    /// Messages of the event with this id are refused for good.
    poisoned: parking_lot::Mutex<Option<String>>,
    /// How long frozen actions were to live.
    approvals_live: parking_lot::Mutex<Vec<Option<Duration>>>,
}

#[async_trait]
impl Bus for Faulty {
    async fn publish(&self, stream: Stream, messages: Vec<Message>) -> Vec<Result<PubAck, BusError>> {
        if self.down.load(Ordering::SeqCst) || (stream == Stream::Approvals && self.approvals_down.load(Ordering::SeqCst)) {
            self.tried.fetch_add(1, Ordering::SeqCst);
            return vec![Err(BusError::Unavailable { reason: "down".to_owned() }); messages.len()];
        }
        if stream == Stream::Approvals {
            self.approvals_live.lock().extend(messages.iter().map(|message| message.ttl));
        }
        let Some(poisoned) = self.poisoned.lock().clone() else { return self.inner.publish(stream, messages).await };
        let mut results = Vec::new();
        for message in messages {
            if stream == Stream::Ase && message.msg_id.as_ref().is_some_and(|id| id.starts_with(&poisoned)) {
                results.push(Err(BusError::TooLarge { bytes: message.payload.len(), max: 1 }));
            } else {
                results.extend(self.inner.publish(stream, vec![message]).await);
            }
        }
        results
    }
    async fn subscribe(&self, stream: Stream, filter: &str, start_seq: u64) -> Result<Box<dyn Subscription>, BusError> {
        self.inner.subscribe(stream, filter, start_seq).await
    }
    async fn last_seq(&self, stream: Stream) -> Result<u64, BusError> {
        self.inner.last_seq(stream).await
    }
    async fn stream_state(&self, stream: Stream) -> Result<StreamState, BusError> {
        self.inner.stream_state(stream).await
    }
    async fn stream_identity(&self, stream: Stream) -> Result<String, BusError> {
        self.inner.stream_identity(stream).await
    }
    async fn consumer_position(&self, stream: Stream, name: &str) -> Result<u64, BusError> {
        self.inner.consumer_position(stream, name).await
    }
    async fn set_consumer_position(&self, stream: Stream, name: &str, seq: u64) -> Result<(), BusError> {
        self.inner.set_consumer_position(stream, name, seq).await
    }
    async fn forget_consumer(&self, stream: Stream, name: &str) -> Result<(), BusError> {
        self.inner.forget_consumer(stream, name).await
    }
    async fn kv_put(&self, bucket: Bucket, key: &str, value: Bytes) -> Result<u64, BusError> {
        self.inner.kv_put(bucket, key, value).await
    }
    async fn kv_update(&self, bucket: Bucket, key: &str, value: Bytes, expected: u64) -> Result<u64, BusError> {
        self.inner.kv_update(bucket, key, value, expected).await
    }
    async fn kv_get(&self, bucket: Bucket, key: &str) -> Result<Option<(Bytes, u64)>, BusError> {
        self.inner.kv_get(bucket, key).await
    }
    async fn kv_all(&self, bucket: Bucket, filter: &str) -> Result<Vec<(String, Bytes, u64)>, BusError> {
        self.inner.kv_all(bucket, filter).await
    }
    async fn tell(&self, subject: &str, payload: Bytes) -> Result<(), BusError> {
        self.inner.tell(subject, payload).await
    }
    async fn hear(&self, filter: &str) -> Result<Box<dyn Hearing>, BusError> {
        self.inner.hear(filter).await
    }
    async fn kv_watch(&self, bucket: Bucket, filter: &str) -> Result<Box<dyn KvWatch>, BusError> {
        self.inner.kv_watch(bucket, filter).await
    }
}

async fn bus(folder: &Path, limits: EmbeddedLimits) -> Arc<Faulty> {
    let inner = EmbeddedBus::open(&folder.join("bus.db"), limits, Arc::new(SystemClock)).await.unwrap();
    Arc::new(Faulty {
        inner,
        down: AtomicBool::new(false),
        approvals_down: AtomicBool::new(false),
        tried: AtomicUsize::new(0),
        poisoned: parking_lot::Mutex::new(None),
        approvals_live: parking_lot::Mutex::default(),
    })
}

async fn read(bus: &Faulty, stream: Stream) -> Vec<Delivered> {
    let mut subscription = bus.subscribe(stream, ">", 1).await.unwrap();
    let mut all = Vec::new();
    loop {
        let batch = subscription.next_batch(1000, Duration::ZERO).await.unwrap();
        if batch.is_empty() {
            return all;
        }
        all.extend(batch);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_says_little_does_not_wait_behind_one_that_says_a_lot() {
    let folder = tempfile::tempdir().unwrap();
    let (bus, ledger) = (bus(folder.path(), EmbeddedLimits::default()).await, ledger(folder.path(), 4).await);
    let mut sealed = seal(&ledger, 3000).await;
    let quiet = TenantId::new("quiet").unwrap();
    let mut said = Vec::new();
    for _ in 0..3 {
        said.push(ledger.try_submit(draft_of(quiet.clone()), Durability::Required).unwrap().await.unwrap().event_id);
        sealed.extend(seal(&ledger, 1000).await);
    }
    let config = ShipperConfig { batch: 100, ..quick() };
    let shipper = Shipper::spawn(ledger.clone(), bus.clone(), config).unwrap();
    until("everything shipped", async || shipper.backlog() == 0).await;
    let arrived = decisions(&bus).await;
    let places: Vec<_> = said.iter().map(|id| arrived.iter().position(|other| other == id).unwrap()).collect();
    assert!(places.is_sorted() && places[2] < 200, "at {places:?} of {}", arrived.len());
    let others: Vec<_> = arrived.iter().filter(|id| !said.contains(id)).copied().collect();
    assert_eq!(others, sealed, "each once, and every lane in its order");
    assert_eq!(arrived.len(), sealed.len() + said.len());
    // What comes afterwards is shipped as ever.
    let last = ledger.try_submit(draft_of(quiet), Durability::Required).unwrap().await.unwrap().event_id;
    until("the last one too", async || shipper.backlog() == 0).await;
    assert_eq!(decisions(&bus).await.last(), Some(&last));
    shipper.stop().await;
}

/// The decisions on the bus, in its order.
async fn decisions(bus: &Faulty) -> Vec<EventId> {
    decisions_of(read(bus, Stream::Ase).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_arrives_once_and_in_order_through_ring_and_outbox() {
    for ring_capacity in [4096, 3] {
        let folder = tempfile::tempdir().unwrap();
        let (bus, ledger) = (bus(folder.path(), EmbeddedLimits::default()).await, ledger(folder.path(), ring_capacity).await);
        let mut sealed = seal(&ledger, 100).await;
        let shipper = Shipper::spawn(ledger.clone(), bus.clone(), quick()).unwrap();
        for _ in 0..10 {
            sealed.extend(seal(&ledger, 200).await);
        }
        until("everything shipped", async || shipper.backlog() == 0).await;
        assert_eq!(decisions(&bus).await, sealed, "ring of {ring_capacity}");
        assert!(shipper.emitted_total() >= sealed.len() as u64);
        let subject = read(&bus, Stream::Ase).await.pop().unwrap().subject;
        assert_eq!(subject, aegis_bus::subject::ase(&tenant(), EventKind::AuthorizeDecision));
        shipper.stop().await;
    }
}

/// The lanes of the bus's events with an id, in its order, and their receipts' places.
async fn places_of(bus: &Faulty, event_id: EventId) -> Vec<(String, i64)> {
    let parsed = read(bus, Stream::Ase).await.into_iter().map(|d| serde_json::from_slice::<Value>(&d.payload).unwrap());
    let named = parsed.filter(|event| event["event_id"] == event_id.to_string());
    named.map(|event| (event["lane"].as_str().unwrap().to_owned(), event["seq"].as_i64().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_that_uses_the_id_of_another_s_event_displaces_nothing() {
    let (folder, control_s) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bus = bus(folder.path(), EmbeddedLimits::default()).await;
    let (edge, control) = (ledger(folder.path(), 64).await, ledger_of("control", control_s.path(), 64).await);
    let draft = draft();
    let event_id = draft.event.event_id;
    let mut own = draft.clone();
    own.event.edge_id = "control".to_owned();
    // The edge is first: with an event of its own, and with all that it could know ahead of control's message.
    edge.try_submit(draft, Durability::Required).unwrap().await.unwrap();
    let shipper = Shipper::spawn(edge.clone(), bus.clone(), quick()).unwrap();
    until("the edge's is there", async || shipper.backlog() == 0).await;
    shipper.stop().await;
    control.try_submit(own, Durability::Required).unwrap().await.unwrap();
    let lane = control.read_outbox(0, 1).await.unwrap().pop().unwrap().sealed.lane;
    let subject = aegis_bus::subject::ase(&tenant(), EventKind::AuthorizeDecision);
    for id in [event_id.to_string(), format!("{event_id}.{lane}")] {
        bus.publish(Stream::Ase, vec![Message::new(subject.clone(), "{}").with_id(id)]).await.pop().unwrap().unwrap();
    }

    let shipper = Shipper::spawn(control.clone(), bus.clone(), quick()).unwrap();
    until("control's is there", async || shipper.backlog() == 0).await;
    let places = places_of(&bus, event_id).await;
    assert!(places[0].0.starts_with("acme.edge-1."), "{places:?}");
    assert_eq!(places[1..], [(lane.clone(), 2)], "behind the receipt that opens the lane, and in its place");
    // Sent again within the window it is a duplicate as ever.
    shipper.again().ask(&lane, 2, 2);
    until("shipped again", async || shipper.meter().again_total() == 1).await;
    shipper.stop().await;
    assert_eq!(places_of(&bus, event_id).await, places);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_for_is_shipped_again_and_nothing_else_is() {
    let folder = tempfile::tempdir().unwrap();
    let (first, ledger) = (bus(folder.path(), EmbeddedLimits::default()).await, ledger(folder.path(), 4096).await);
    let shipper = Shipper::spawn(ledger.clone(), first, quick()).unwrap();
    let sealed = seal(&ledger, 20).await;
    until("everything shipped", async || shipper.backlog() == 0).await;
    shipper.stop().await;
    // A stream that was made anew: nothing of it is there.
    let other = tempfile::tempdir().unwrap();
    let anew = bus(other.path(), EmbeddedLimits::default()).await;
    let lane = ledger.read_outbox(0, 1).await.unwrap().pop().unwrap().sealed.lane;
    let kept = ledger.clone();
    let shipper = Shipper::spawn(kept, anew.clone(), quick()).unwrap();
    shipper.again().ask("acme.edge-1.of-nobody", 1, 5);
    shipper.again().ask(&lane, 4, 6);
    shipper.again().ask(&lane, 6, 5);
    shipper.again().ask(&lane, 21, i64::MAX);
    until("what was asked for is there", async || decisions(&anew).await.len() >= 4).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    // The lane's first receipt opens it.
    let wanted: Vec<EventId> = [4, 5, 6, 21].iter().map(|seq| sealed[seq - 2]).collect();
    assert_eq!(decisions(&anew).await, wanted);
    assert_eq!(shipper.meter().again_total(), 4);
    shipper.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_shipper_finds_what_the_ring_had_no_room_for() {
    let folder = tempfile::tempdir().unwrap();
    let (bus, ledger) = (bus(folder.path(), EmbeddedLimits::default()).await, ledger(folder.path(), 1).await);
    let shipper = Shipper::spawn(ledger.clone(), bus.clone(), quick()).unwrap();
    // One commit of many: only one of them fits into the ring, and none follows.
    let sealed = seal(&ledger, 300).await;
    until("the rest without a further event", async || decisions(&bus).await.len() == sealed.len()).await;
    shipper.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_that_is_down_delays_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (bus, ledger) = (bus(folder.path(), EmbeddedLimits::default()).await, ledger(folder.path(), 64).await);
    bus.down.store(true, Ordering::SeqCst);
    let shipper = Shipper::spawn(ledger.clone(), bus.clone(), quick()).unwrap();
    let mut sealed = seal(&ledger, 500).await;
    until("some tries", async || bus.tried.load(Ordering::SeqCst) > 3).await;
    assert!(shipper.backlog() >= 500 && shipper.emitted_total() == 0);
    bus.down.store(false, Ordering::SeqCst);
    sealed.extend(seal(&ledger, 500).await);
    until("everything shipped", async || shipper.backlog() == 0).await;
    assert_eq!(decisions(&bus).await, sealed);
    assert!(shipper.meter().retries_total() > 3);
    shipper.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_bus_leaves_the_rest_in_the_ledger_until_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let limits = EmbeddedLimits::default().with_stream(Stream::Ase, StreamLimits { max_messages: 50, max_bytes: 1 << 24 });
    let (bus, ledger) = (bus(folder.path(), limits).await, ledger(folder.path(), 64).await);
    let shipper = Shipper::spawn(ledger.clone(), bus.clone(), quick()).unwrap();
    let sealed = seal(&ledger, 200).await;
    until("the bus is full", async || bus.last_seq(Stream::Ase).await.unwrap() == 50).await;
    assert!(shipper.backlog() > 0);
    // A consumer that follows makes room again and again, and sees every event.
    let mut subscription = bus.subscribe(Stream::Ase, ">", 1).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < sealed.len() {
        let batch = subscription.next_batch(1000, Duration::from_secs(20)).await.unwrap();
        let last = batch.last().expect("the shipper goes on when there is room").seq;
        seen.extend(decisions_of(batch));
        bus.set_consumer_position(Stream::Ase, "consumer", last).await.unwrap();
    }
    assert_eq!(seen, sealed);
    until("everything shipped", async || shipper.backlog() == 0).await;
    shipper.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_start_left_the_next_one_ships() {
    let folder = tempfile::tempdir().unwrap();
    let bus = bus(folder.path(), EmbeddedLimits::default()).await;
    let first = ledger(folder.path(), 64).await;
    bus.down.store(true, Ordering::SeqCst);
    let shipper =
        Shipper::spawn(first.clone(), bus.clone(), ShipperConfig { drain: Duration::from_millis(50), ..quick() }).unwrap();
    let sealed = seal(&first, 30).await;
    shipper.stop().await;
    first.close().await.unwrap();
    drop(first);
    assert!(decisions(&bus).await.is_empty());

    bus.down.store(false, Ordering::SeqCst);
    let second = ledger(folder.path(), 64).await;
    let shipper = Shipper::spawn(second.clone(), bus.clone(), quick()).unwrap();
    until("everything shipped", async || shipper.backlog() == 0).await;
    assert_eq!(decisions(&bus).await, sealed);
    shipper.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ships_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let (bus, ledger) = (bus(folder.path(), EmbeddedLimits::default()).await, ledger(folder.path(), 64).await);
    let shipper = Shipper::spawn(ledger.clone(), bus.clone(), quick()).unwrap();
    let sealed = seal(&ledger, 1000).await;
    ledger.close().await.unwrap();
    shipper.stop().await;
    assert_eq!(decisions(&bus).await, sealed);
    let last: Value = serde_json::from_slice(&read(&bus, Stream::Ase).await.pop().unwrap().payload).unwrap();
    assert_eq!(last["kind"], "lane_close");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_is_never_taken_goes_to_the_dead_letters_and_the_rest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (bus, ledger) = (bus(folder.path(), EmbeddedLimits::default()).await, ledger(folder.path(), 64).await);
    let poisoned = draft();
    *bus.poisoned.lock() = Some(poisoned.event.event_id.to_string());
    let mut sealed = seal(&ledger, 3).await;
    ledger.try_submit(poisoned.clone(), Durability::Required).unwrap().await.unwrap();
    sealed.extend(seal(&ledger, 3).await);
    let shipper = Shipper::spawn(ledger.clone(), bus.clone(), quick()).unwrap();
    until("everything shipped", async || shipper.backlog() == 0).await;
    assert_eq!(decisions(&bus).await, sealed);
    assert_eq!(shipper.meter().dead_lettered_total(), 1);
    let letters = read(&bus, Stream::Dlq).await;
    let letter: Value = serde_json::from_slice(&letters[0].payload).unwrap();
    assert_eq!((letters.len(), letter["event_id"].as_str()), (1, Some(poisoned.event.event_id.to_string().as_str())));
    assert!(letter["reason"].as_str().unwrap().contains("over the bound"), "{letter}");
    shipper.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_action_arrives_before_its_event() {
    let folder = tempfile::tempdir().unwrap();
    let (bus, ledger) = (bus(folder.path(), EmbeddedLimits::default()).await, ledger(folder.path(), 64).await);
    let mut draft = draft();
    let frozen = freeze(&mut draft);

    // The approvals stream is down: then the event must not be on the bus either.
    bus.approvals_down.store(true, Ordering::SeqCst);
    let shipper = Shipper::spawn(ledger.clone(), bus.clone(), quick()).unwrap();
    ledger.try_submit(draft, Durability::Required).unwrap().await.unwrap();
    until("some tries", async || bus.tried.load(Ordering::SeqCst) > 2).await;
    assert!(read(&bus, Stream::Ase).await.iter().all(|sent| sent.subject.ends_with("lane_open")));
    bus.approvals_down.store(false, Ordering::SeqCst);
    until("the event", async || !decisions(&bus).await.is_empty()).await;
    let approvals = read(&bus, Stream::Approvals).await;
    assert_eq!(approvals.len(), 1);
    assert_eq!(approvals[0].subject, "approval.acme.approval-1");
    let a_day_behind_its_end = Duration::from_secs(900 + 24 * 3600);
    assert_eq!(
        *bus.approvals_live.lock(),
        [Some(a_day_behind_its_end)],
        "raw parameters are not kept for longer than they are of use"
    );
    assert_eq!(serde_json::from_slice::<FrozenAction>(&approvals[0].payload).unwrap(), frozen);
    let decision = read(&bus, Stream::Ase).await.into_iter().find(|d| d.subject.ends_with("authorize_decision")).unwrap();
    assert!(approvals[0].bus_ts <= decision.bus_ts);
    shipper.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bus_that_reads_the_ledger_gives_back_what_was_shipped_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = ledger(folder.path(), 4).await;
    let small_tail = || EmbeddedLimits { tail_messages: 1, unread_messages: 1, ..EmbeddedLimits::default() };
    let bus = bus(folder.path(), small_tail()).await;
    let keeper = || Arc::new(LedgerKeeper::new(ledger.clone()));
    bus.inner.keep_with("edge", keeper()).await.unwrap();
    let kept = ShipperConfig { kept_as: Some("edge".into()), ..quick() };
    for _ in 0..3 {
        // Each starts where the one before it was noted to be, or a little earlier.
        let shipper = Shipper::spawn(ledger.clone(), bus.inner.clone(), kept.clone()).unwrap();
        seal(&ledger, 50).await;
        shipper.stop().await;
    }
    let sealed = ledger.export(&tenant(), 0, 1000).await.unwrap();
    let wires = |messages: Vec<Delivered>| -> Vec<String> {
        messages.into_iter().map(|message| String::from_utf8(message.payload.to_vec()).unwrap()).collect()
    };
    let expected: Vec<String> = sealed.into_iter().map(|line| line.text).collect();
    assert_eq!(expected.len(), 151);
    assert_eq!(wires(read(&bus, Stream::Ase).await), expected);
    bus.inner.close().await;

    let reopened = self::bus(folder.path(), small_tail()).await;
    reopened.inner.keep_with("edge", keeper()).await.unwrap();
    assert_eq!(wires(read(&reopened, Stream::Ase).await), expected);
}

/// L-READ-ONCE, where an event is handed on beside its text, and where it was refused with it once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_is_shipped_within_a_process_is_what_its_text_says() {
    let folder = tempfile::tempdir().unwrap();
    let (bus, ledger) = (bus(folder.path(), EmbeddedLimits::default()).await, ledger(folder.path(), 64).await);
    bus.inner.keep_with("edge", Arc::new(LedgerKeeper::new(ledger.clone()))).await.unwrap();
    bus.down.store(true, Ordering::SeqCst);
    let kept = ShipperConfig { kept_as: Some("edge".into()), ..quick() };
    let shipper = Shipper::spawn(ledger.clone(), bus.clone(), kept).unwrap();
    let mut sealed = seal(&ledger, 20).await;
    until("refused", async || bus.tried.load(Ordering::SeqCst) > 0).await;
    bus.down.store(false, Ordering::SeqCst);
    until("taken", async || shipper.backlog() == 0).await;
    sealed.extend(seal(&ledger, 30).await);
    until("everything shipped", async || shipper.backlog() == 0).await;
    shipper.stop().await;
    let messages = read(&bus, Stream::Ase).await;
    let mut with_parts = 0;
    for message in &messages {
        let apart = Bytes::copy_from_slice(&message.payload);
        let (shared, fresh) = (message.event().unwrap(), Reading::default().event(&apart, message.bus_ts).unwrap());
        assert_eq!(shared.event(), fresh.event());
        with_parts += usize::from(shared.wire().sealed_parts().is_some());
        assert_eq!(format!("{:?}", shared.wire().sealed_parts()), format!("{:?}", fresh.wire().sealed_parts()));
    }
    assert!(with_parts >= sealed.len());
    assert_eq!(decisions_of(messages), sealed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_bus_lost_with_the_power_is_shipped_again_though_it_was_acknowledged() {
    let (folder, disk) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let ledger = ledger(folder.path(), 64).await;
    let keeper = || Arc::new(LedgerKeeper::new(ledger.clone()));
    let first = bus(folder.path(), EmbeddedLimits::default()).await;
    let kept_to = first.inner.keep_with("edge", keeper()).await.unwrap();
    let kept = ShipperConfig { kept_as: Some("edge".into()), kept_to, ..quick() };
    let shipper = Shipper::spawn(ledger.clone(), first.inner.clone(), kept.clone()).unwrap();
    let mut sealed = seal(&ledger, 20).await;
    until("everything shipped", async || shipper.backlog() == 0).await;
    first.inner.settle().await.unwrap();
    for file in ["bus.db", "bus.db-wal"] {
        std::fs::copy(folder.path().join(file), disk.path().join(file)).unwrap();
    }
    sealed.extend(seal(&ledger, 30).await);
    until("the rest too", async || shipper.backlog() == 0).await;
    shipper.stop().await;
    assert_eq!(decisions(&first).await, sealed);
    first.inner.close().await;

    let after = bus(disk.path(), EmbeddedLimits::default()).await;
    let kept_to = after.inner.keep_with("edge", keeper()).await.unwrap();
    assert_eq!(kept_to, Some(21), "behind the receipt that opens the lane");
    assert_eq!(ledger.backlog(), 0, "all of it was acknowledged");
    let shipper = Shipper::spawn(ledger.clone(), after.inner.clone(), ShipperConfig { kept_to, ..kept }).unwrap();
    until("what is missing is there", async || decisions(&after).await.len() >= sealed.len()).await;
    sealed.extend(seal(&ledger, 5).await);
    until("and what is new", async || decisions(&after).await.len() >= sealed.len()).await;
    assert_eq!(decisions(&after).await, sealed);
    shipper.stop().await;
}
