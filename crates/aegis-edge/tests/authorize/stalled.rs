//! A watch on the control feed that hears nothing and does not say so: what control says is enforced all the same, since the feed is read again, and
//! another server is tried. And readings that fail: a start goes on for as long as something comes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aegis_bus::{Bucket, Bus, BusError, Hearing, KvWatch, Message, PubAck, Stream, StreamState, Subscription, subject};
use aegis_edge::{CorrectedClock, EdgeError, FeedConfig, FeedFollower, Pulse};
use aegis_keys::sign_notice;
use aegis_model::Beat;
use async_trait::async_trait;
use parking_lot::Mutex;

use crate::house::*;

/// How long the test waits for what comes with the next reading.
const DEADLINE: Duration = Duration::from_secs(30);

/// How long a slow reading takes.
const READING_S: i64 = 10;

/// A bus whose watches are stalled from their beginning.
#[derive(Debug)]
struct Deaf {
    inner: Arc<EmbeddedBus>,
    /// How often its server was left.
    left: AtomicUsize,
    /// How often a bucket was read, and which of these readings brings something.
    readings: AtomicUsize,
    brings: fn(usize) -> bool,
    /// What is contained once something else was read, and its key.
    contained_meanwhile: Mutex<Option<(String, Bytes)>>,
    /// A clock that each reading takes ten seconds of.
    runs_on: Mutex<Option<Arc<ManualClock>>>,
}

impl Deaf {
    fn over(inner: Arc<EmbeddedBus>) -> Arc<Self> {
        Self::that_brings(inner, |_| true)
    }

    fn that_brings(inner: Arc<EmbeddedBus>, brings: fn(usize) -> bool) -> Arc<Self> {
        let (left, readings) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { inner, left, readings, brings, contained_meanwhile: Mutex::default(), runs_on: Mutex::default() })
    }
}

/// It never ends either, so that nobody watches again.
#[derive(Debug)]
struct Stalled;

#[async_trait]
impl KvWatch for Stalled {
    async fn next(&mut self) -> Result<(String, Bytes, u64), BusError> {
        std::future::pending().await
    }
}

#[async_trait]
impl Bus for Deaf {
    async fn publish(&self, stream: Stream, messages: Vec<Message>) -> Vec<Result<PubAck, BusError>> {
        self.inner.publish(stream, messages).await
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
        if !(self.brings)(self.readings.fetch_add(1, Ordering::Relaxed)) {
            return Err(BusError::Unavailable { reason: "a reading that fails".to_owned() });
        }
        let read = self.inner.kv_all(bucket, filter).await;
        if let Some(clock) = self.runs_on.lock().as_ref() {
            clock.advance_seconds(READING_S);
        }
        let contained = if bucket == Bucket::Control { self.contained_meanwhile.lock().take() } else { None };
        if let Some((key, state)) = contained {
            self.inner.kv_put(Bucket::Containment, &key, state).await?;
        }
        read
    }
    async fn kv_watch(&self, _bucket: Bucket, _filter: &str) -> Result<Box<dyn KvWatch>, BusError> {
        Ok(Box::new(Stalled))
    }
    async fn tell(&self, subject: &str, payload: Bytes) -> Result<(), BusError> {
        self.inner.tell(subject, payload).await
    }
    async fn hear(&self, filter: &str) -> Result<Box<dyn Hearing>, BusError> {
        self.inner.hear(filter).await
    }
    async fn leave_server(&self) {
        self.left.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn a_freeze_that_no_watch_hears_is_enforced_once_the_feed_is_read_again() {
    let house = House::new().await;
    let inner = bus_of(&house).await;
    let bus = Deaf::over(inner.clone());
    let metrics = EdgeMetrics::register(&mut Registry::default());
    let follower =
        FeedFollower::start(bus, house.view.clone(), metrics, house.clock.clone(), FeedConfig::default()).await.unwrap();

    let key = subject::kv_containment(&house.tenant, TargetType::Agent, "a");
    inner.kv_put(Bucket::Containment, &key, frozen(&house, 1000)).await.unwrap();

    let frozen = async {
        while decided(&house.ask(|b| b["dry_run"] = json!(true)).await).1 != "agent_frozen" {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(DEADLINE, frozen).await.unwrap();
    follower.stop();
}

/// Writes control's sign of life, every moment a new one.
fn live(house: &House, bus: Arc<EmbeddedBus>) -> tokio::task::JoinHandle<()> {
    let (key, at) = (house.control.clone(), house.clock.now());
    tokio::spawn(async move {
        for n in 0.. {
            let signed = sign_notice(&key, &Beat { at, start: 1, n }).unwrap();
            bus.kv_put(Bucket::Control, subject::BEAT, signed.into()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
}

#[tokio::test]
async fn a_server_over_which_nothing_is_heard_of_what_is_read_is_left() {
    let house = House::new().await;
    let inner = bus_of(&house).await;
    let bus = Deaf::over(inner.clone());
    let metrics = EdgeMetrics::register(&mut Registry::default());
    let clock = Arc::new(CorrectedClock::new(house.clock.clone(), 0));
    let pulse = Pulse::new("edge-1", SigningKey::from_seed(&[2; 32]), clock, None);
    let config = FeedConfig { pulse: Some(pulse), ..FeedConfig::default() };
    let alive = live(&house, inner);
    let follower = FeedFollower::start(bus.clone(), house.view.clone(), metrics, house.clock.clone(), config).await.unwrap();
    assert_eq!(bus.left.load(Ordering::Relaxed), 0, "not for one reading");
    let left = async {
        while bus.left.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(DEADLINE, left).await.unwrap();
    alive.abort();
    follower.stop();
}

/// Control knows by it that a start has ended, once the end of its lanes is read.
#[tokio::test]
async fn a_heartbeat_names_the_lanes_of_its_start() {
    let house = House::new().await;
    let bus = bus_of(&house).await;
    let clock = Arc::new(CorrectedClock::new(house.clock.clone(), 0));
    let pulse = Pulse::new("edge-1", SigningKey::from_seed(&[2; 32]), clock, None);
    let mut said = bus.hear(&subject::heartbeat("edge-1")).await.unwrap();
    pulse.leave(&*bus, &house.view, &house.ledger).await;
    let heard = tokio::time::timeout(DEADLINE, said.next()).await.unwrap().unwrap();
    let heartbeat: Value = serde_json::from_slice(&heard.payload).unwrap();
    let lane = house.ledger.lane_of(&house.tenant);
    assert_eq!(lane.rsplit_once('.').unwrap().1, heartbeat["epoch"], "{heartbeat}");
}

/// A start that waits for nothing at all, beyond the tries that it makes anyhow.
async fn started(house: &House, bus: Arc<Deaf>) -> Result<FeedFollower, EdgeError> {
    let metrics = EdgeMetrics::register(&mut Registry::default());
    let tenants = ["acme", "initech", "umbrella"].map(|name| TenantId::new(name).unwrap());
    let config = FeedConfig { tenants: Some(tenants.to_vec()), start_wait: Duration::ZERO, ..FeedConfig::default() };
    FeedFollower::start(bus, house.view.clone(), metrics, house.clock.clone(), config).await
}

#[tokio::test]
async fn a_start_reads_the_feed_to_its_end_for_as_long_as_something_comes_of_it() {
    let house = House::new().await;
    let inner = bus_of(&house).await;
    let key = subject::kv_containment(&house.tenant, TargetType::Agent, "a");
    inner.kv_put(Bucket::Containment, &key, frozen(&house, 1000)).await.unwrap();
    let bus = Deaf::that_brings(inner, |reading| reading % 2 == 1);
    let follower = started(&house, bus.clone()).await.unwrap();
    let readings = bus.readings.load(Ordering::Relaxed);
    assert_eq!(
        readings,
        12 + 1,
        "six places, and each other reading brings nothing; containment once more, until a reading brings nothing"
    );
    assert_eq!(decided(&house.ask(|_| ()).await), ("deny", "agent_frozen"));
    follower.stop();
}

#[tokio::test]
async fn a_start_of_which_nothing_comes_ends() {
    let house = House::new().await;
    let bus = Deaf::that_brings(bus_of(&house).await, |_| false);
    assert!(matches!(started(&house, bus.clone()).await, Err(EdgeError::Bus(_))));
    assert_eq!(bus.readings.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn what_is_contained_while_a_start_reads_on_holds_when_it_answers() {
    let house = House::new().await;
    let bus = Deaf::over(bus_of(&house).await);
    let key = subject::kv_containment(&house.tenant, TargetType::Agent, "a");
    *bus.contained_meanwhile.lock() = Some((key, frozen(&house, 1000)));
    let follower = started(&house, bus).await.unwrap();
    assert_eq!(decided(&house.ask(|_| ()).await), ("deny", "agent_frozen"));
    follower.stop();
}

#[tokio::test]
async fn the_feed_is_as_old_as_the_beginning_of_its_reading() {
    let house = House::new().await;
    let bus = Deaf::over(bus_of(&house).await);
    let mut registry = Registry::default();
    let metrics = EdgeMetrics::register(&mut registry);
    let follower =
        FeedFollower::start(bus.clone(), house.view.clone(), metrics, house.clock.clone(), FeedConfig::default()).await.unwrap();
    *bus.runs_on.lock() = Some(house.clock.clone());
    // It is told behind a reading of both buckets.
    let is_told = || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text.lines().any(|line| line == format!("aegis_control_feed_age_seconds {}", 2 * READING_S))
    };
    let told = async {
        while !is_told() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(DEADLINE, told).await.unwrap();
    follower.stop();
}
