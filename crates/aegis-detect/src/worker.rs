//! The detector: reads security events from the bus, verifies them, ticks the engine, publishes alerts, writes checkpoints.
//! Runs on a thread of its own, behind the others, so that no rule ever slows an answer. Loses nothing: an alert is published
//! before the checkpoint that counts its events, and its id makes publishing it again harmless.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aegis_bus::{Bus, BusError, Delivered, Message, Stream, Subscription, subject};
use aegis_keys::KeyRing;
use aegis_ledger::verify::LaneHeads;
use aegis_model::{Clock, SecurityEvent, Timestamp};
use aegis_threads::Work;
use futures_util::FutureExt;
use parking_lot::Mutex;
use serde::Serialize;

use crate::checkpoint::{Checkpoint, Tail};
use crate::engine::{Engine, EngineConfig};
use crate::error::DetectError;
use crate::evaluate::RuleStats;
use crate::hold::{Hold, Kept};
use crate::ruleset::RuleSet;
use crate::verify::{Stage, VerifyStage, chain_broken_event};
use crate::wire::{dead_letter, messages, read};

/// The name under which the detector's position is registered.
pub const CONSUMER: &str = "detect";
/// Largest micro-batch.
const MAX_BATCH: usize = 2048;
/// A quiet stream is looked at this often for a stop.
const IDLE_WAIT: Duration = Duration::from_millis(200);
/// Ticks are at least this far apart, so that events gather; the first after a pause runs at once.
const TICK_SPACING: Duration = Duration::from_millis(5);
/// The same behind a batch of this many: under load.
const BUSY: usize = 64;
const BUSY_TICK_SPACING: Duration = Duration::from_millis(10);
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(5);
/// How long a message that must be there is waited for.
const READ_WAIT: Duration = Duration::from_secs(10);
/// The partition under which a worker that owns all of them writes its checkpoint.
const CHECKPOINT_PARTITION: u32 = 0;
/// Lanes whose last receipt is older are forgotten; a lane that speaks again later is a break, not a secret.
const IDLE_LANE_S: i64 = 30 * 24 * 3600;

/// Settings of a worker.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    pub engine: EngineConfig,
    /// Time between checkpoints, in milliseconds.
    pub checkpoint_ms: i64,
    /// How long a lane waits for a receipt that is missing in it, in milliseconds of the bus; 0: not at all, for a bus that keeps the order.
    pub hold_ms: i64,
}

impl WorkerConfig {
    /// Defaults: the engine's, and a checkpoint every two seconds.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { engine: EngineConfig::new(clock), checkpoint_ms: 2000, hold_ms: 0 }
    }
}

/// Counters of a worker, since it was started.
#[derive(Clone, Debug, Default, Serialize)]
pub struct WorkerStats {
    pub rules: Vec<RuleStats>,
    /// True once the state of the last run is rebuilt.
    pub ready: bool,
    /// Stream sequence up to which events have been taken.
    pub position: u64,
    /// Messages in the stream behind that.
    pub lag: u64,
    pub events: u64,
    pub ticks: u64,
    pub tick_seconds: f64,
    pub verified: u64,
    /// Events that failed verification: `receipt_verify_failures_total`.
    pub broken: u64,
    pub repeated: u64,
    pub late: u64,
    /// Messages set aside as dead letters.
    pub malformed: u64,
    pub alerts: u64,
    pub retractions: u64,
    /// From an alert's last event to its detection (`soc_mttd_seconds`): sum, and how many.
    pub detect_seconds_sum: f64,
    pub detect_seconds_count: u64,
    pub checkpoints: u64,
    /// What keeps the worker from going on, if something does.
    pub trouble: Option<String>,
}

/// A running detector.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    ended: Option<Work>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    wake: tokio::sync::Notify,
    stats: Mutex<WorkerStats>,
}

impl Worker {
    /// Starts the thread.
    pub fn spawn(
        bus: Arc<dyn Bus>,
        ring: KeyRing,
        rules: RuleSet,
        clock: Arc<dyn Clock>,
        config: WorkerConfig,
    ) -> Result<Self, DetectError> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let ended = aegis_threads::spawn("aegis-detect", move || async move {
            let work = AssertUnwindSafe(run(bus, ring, rules, clock, config, &of_thread)).catch_unwind();
            if work.await.is_err() {
                tracing::error!("the detection thread panicked");
                of_thread.stats.lock().trouble = Some("the detection thread panicked; restart the process".into());
            }
        })?;
        Ok(Self { shared, ended: Some(ended) })
    }

    /// Counters now.
    #[must_use]
    pub fn stats(&self) -> WorkerStats {
        self.shared.stats.lock().clone()
    }

    /// Messages of the stream not yet taken.
    #[must_use]
    pub fn lag(&self) -> u64 {
        self.shared.stats.lock().lag
    }

    /// Finishes the tick at hand, writes a checkpoint, and ends.
    pub async fn stop(mut self) {
        self.signal();
        if let Some(ended) = self.ended.take() {
            let _panic_is_told_already = ended.ended().await;
        }
    }

    fn signal(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.wake.notify_one();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.signal();
    }
}

/// What a tick is made of.
#[derive(Default)]
struct Tick {
    seen: WorkerStats,
    events: Vec<SecurityEvent>,
    dead: Vec<Message>,
}

struct Running {
    bus: Arc<dyn Bus>,
    stage: VerifyStage,
    hold: Hold,
    /// When the next record of time is due, if one is needed.
    next_tick: Timestamp,
    engine: Engine,
    tail: Tail,
    stream: String,
    position: u64,
    /// True while a tick's alerts are not all on the bus: then no checkpoint may count its events.
    unpublished: bool,
    clock: Arc<dyn Clock>,
}

async fn run(bus: Arc<dyn Bus>, ring: KeyRing, rules: RuleSet, clock: Arc<dyn Clock>, config: WorkerConfig, shared: &Shared) {
    let mut running = Running {
        bus,
        stage: VerifyStage::new(ring.clone(), LaneHeads::default()),
        hold: Hold::new(config.hold_ms),
        next_tick: Timestamp::default(),
        engine: Engine::new(rules, config.engine.clone()),
        tail: Tail::default(),
        stream: String::new(),
        position: 0,
        unpublished: false,
        clock: Arc::clone(&clock),
    };
    let mut pause = RETRY_FIRST;
    while !shared.stopping() {
        let result = match running.start(&ring).await {
            Ok(subscription) => {
                pause = RETRY_FIRST;
                shared.stats.lock().trouble = None;
                running.follow(subscription, &config, shared).await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::warn!(%error, "detection waits for the bus");
            shared.stats.lock().trouble = Some(error.to_string());
            shared.pause(pause).await;
            pause = (pause * 2).min(RETRY_MOST);
        }
    }
    if running.position > 0
        && !running.unpublished
        && running.hold.is_empty()
        && let Err(error) = running.write_checkpoint(shared).await
    {
        tracing::warn!(%error, "no checkpoint at the end; the next start replays a little more");
    }
}

impl Shared {
    fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    async fn pause(&self, time: Duration) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = self.wake.notified() => {}
        }
    }
}

impl Running {
    /// Rebuilds the state on the first call, and subscribes behind what has been taken.
    async fn start(&mut self, ring: &KeyRing) -> Result<Box<dyn Subscription>, DetectError> {
        if self.stream.is_empty() {
            let stream = self.bus.stream_identity(Stream::Ase).await?;
            if let Some(checkpoint) = self.read_checkpoint(&stream).await? {
                self.restore(checkpoint, ring).await?;
            }
            self.stream = stream;
            // Registered from the start, so that nothing is dropped before it was seen.
            self.bus.set_consumer_position(Stream::Ase, CONSUMER, self.tail.rewind(self.position + 1).saturating_sub(1)).await?;
        }
        // Records of time and of rules too: they are part of the log.
        Ok(self.bus.subscribe(Stream::Ase, ">", self.position + 1).await?)
    }

    async fn read_checkpoint(&self, stream: &str) -> Result<Option<Checkpoint>, DetectError> {
        if self.bus.last_seq(Stream::Ckpt).await? == 0 {
            return Ok(None);
        }
        let mut subscription = self.bus.subscribe(Stream::Ckpt, &subject::ckpt(CHECKPOINT_PARTITION), 0).await?;
        let Some(newest) = subscription.next_batch(16, READ_WAIT).await?.pop() else { return Ok(None) };
        let checkpoint: Checkpoint = match serde_json::from_slice(&newest.payload) {
            Ok(checkpoint) => checkpoint,
            Err(error) => {
                tracing::warn!(%error, "the checkpoint cannot be read; replaying the whole stream");
                return Ok(None);
            }
        };
        let last_seq = self.bus.last_seq(Stream::Ase).await?;
        if checkpoint.version != Checkpoint::VERSION || checkpoint.stream != stream || checkpoint.seq > last_seq {
            tracing::warn!("the checkpoint belongs to another stream; replaying the whole stream");
            return Ok(None);
        }
        Ok(Some(checkpoint))
    }

    /// Reads the messages that the windows need once more; no rule is run over them.
    async fn restore(&mut self, checkpoint: Checkpoint, ring: &KeyRing) -> Result<(), DetectError> {
        let mut events = Vec::new();
        let mut next = checkpoint.rewind;
        let mut subscription = self.bus.subscribe(Stream::Ase, ">", next).await?;
        // Nothing behind the first message that is still there has been dropped.
        while next <= checkpoint.seq && self.bus.stream_state(Stream::Ase).await?.first_seq <= checkpoint.seq {
            let batch = subscription.next_batch(MAX_BATCH, READ_WAIT).await?;
            if batch.is_empty() {
                return Err(BusError::Unavailable { reason: format!("message {next} of the stream does not come") }.into());
            }
            for delivered in batch.into_iter().take_while(|d| d.seq <= checkpoint.seq) {
                next = delivered.seq + 1;
                let broken = checkpoint.broken.get(&delivered.seq).cloned();
                match read(&delivered) {
                    Ok((_, mut event)) if !checkpoint.skipped.contains(&delivered.seq) => {
                        event.verified = broken.is_none() && event.lane.is_some();
                        let said = broken.as_ref().map(|b| chain_broken_event(&event, b));
                        let needed_at = said.as_ref().map_or(event.ts, |s| s.ts.max(event.ts));
                        self.tail.show(delivered.seq, &event.tenant_id, event.event_id, needed_at, broken);
                        events.push(event);
                        events.extend(said);
                    }
                    _ => self.tail.skip(delivered.seq),
                }
            }
        }
        self.engine.restore(checkpoint.engine, events)?;
        self.stage = VerifyStage::new(ring.clone(), checkpoint.heads);
        self.position = checkpoint.seq;
        Ok(())
    }

    async fn follow(
        &mut self,
        mut subscription: Box<dyn Subscription>,
        config: &WorkerConfig,
        shared: &Shared,
    ) -> Result<(), DetectError> {
        let mut last_checkpoint = self.clock.now();
        let mut written = self.position;
        {
            let mut stats = shared.stats.lock();
            stats.ready = true;
            stats.position = self.position;
            stats.rules = self.engine.stats();
        }
        while !shared.stopping() {
            let batch = tokio::select! {
                batch = subscription.next_batch(MAX_BATCH, IDLE_WAIT) => batch?,
                () = shared.wake.notified() => continue,
            };
            let started = self.clock.now();
            let (full, quiet) = (batch.len() == MAX_BATCH, batch.is_empty());
            let spacing = if batch.len() < BUSY { TICK_SPACING } else { BUSY_TICK_SPACING };
            if quiet {
                self.tell_the_time().await?;
            } else {
                self.take(batch, shared).await?;
                let lag = if full { self.bus.last_seq(Stream::Ase).await?.saturating_sub(self.position) } else { 0 };
                let mut stats = shared.stats.lock();
                stats.lag = lag;
                stats.rules = self.engine.stats();
            }
            let now = self.clock.now();
            let since = now.as_micros().saturating_sub(last_checkpoint.as_micros());
            // What is held was taken by nobody yet: a checkpoint behind it would lose it.
            if written != self.position && self.hold.is_empty() && since >= config.checkpoint_ms.saturating_mul(1000) {
                self.write_checkpoint(shared).await?;
                (written, last_checkpoint) = (self.position, now);
            }
            let took = Duration::from_micros(now.as_micros().saturating_sub(started.as_micros()).max(0).unsigned_abs());
            if !full
                && !quiet
                && let Some(rest) = spacing.checked_sub(took)
            {
                tokio::time::sleep(rest).await;
            }
        }
        Ok(())
    }

    /// One tick: verify, evaluate, publish.
    async fn take(&mut self, batch: Vec<Delivered>, shared: &Shared) -> Result<(), DetectError> {
        let started = self.clock.now();
        let mut tick = Tick::default();
        for delivered in batch {
            self.position = delivered.seq;
            for waited in self.hold.release(delivered.bus_ts) {
                self.take_one(waited, false, &mut tick);
            }
            if !delivered.subject.starts_with("ase.") {
                // A record of time, or of rules: its place in the log is all that is asked of it here.
                self.tail.skip(delivered.seq);
                continue;
            }
            tick.seen.events += 1;
            let mut lane = self.take_one(delivered, self.hold.is_on(), &mut tick);
            while let Some(following) = lane.and_then(|(lane, head)| self.hold.next(&lane, head)) {
                lane = self.take_one(following, false, &mut tick);
            }
        }
        let Tick { seen, events, dead } = tick;
        let output = self.engine.tick(events);
        self.tail.mark_late(&output.late);
        self.tail.trim(&self.engine);
        let took = self.clock.now().as_micros().saturating_sub(started.as_micros());
        {
            let mut stats = shared.stats.lock();
            stats.position = self.position;
            stats.events += seen.events;
            stats.ticks += 1;
            stats.tick_seconds += took as f64 / 1e6;
            stats.verified += seen.verified;
            stats.broken += seen.broken;
            stats.repeated += seen.repeated;
            stats.malformed += seen.malformed;
            stats.late += output.late.len() as u64;
            stats.alerts += output.alerts.len() as u64;
            stats.retractions += output.retractions.len() as u64;
            for alert in &output.alerts {
                let micros = alert.detected_at.as_micros().saturating_sub(alert.last_ts.as_micros()).max(0);
                stats.detect_seconds_sum += micros as f64 / 1e6;
                stats.detect_seconds_count += 1;
            }
        }
        let (alerts, episodes) = messages(&output);
        self.unpublished = true;
        self.publish(Stream::Alerts, alerts, shared).await?;
        self.publish(Stream::Dlq, dead, shared).await?;
        self.publish(Stream::Episodes, episodes, shared).await?;
        self.unpublished = false;
        Ok(())
    }

    /// Verifies one event and takes it into the tick, or holds it, if it may be held and something is missing before it in its lane. The lane,
    /// and how far it was followed, if others may wait there.
    fn take_one(&mut self, delivered: Delivered, may_hold: bool, tick: &mut Tick) -> Option<(String, i64)> {
        let (wire, mut event) = match read(&delivered) {
            Ok(read) => read,
            Err(reason) => {
                tick.seen.malformed += 1;
                self.tail.skip(delivered.seq);
                tick.dead.push(dead_letter(&delivered, &reason));
                return None;
            }
        };
        if may_hold && self.stage.misses_one_before(&wire, &event) {
            let (lane, seq, place) = (event.lane.unwrap_or_default(), event.seq.unwrap_or_default(), delivered.seq);
            match self.hold.keep(&lane, seq, delivered) {
                Kept::Held => return None,
                Kept::Again => {
                    tick.seen.repeated += 1;
                    self.tail.skip(place);
                    return None;
                }
                Kept::Not(delivered) => return self.take_one(*delivered, false, tick),
            }
        }
        let (broken, said) = match self.stage.take(&wire, &mut event) {
            Stage::Repeated => {
                tick.seen.repeated += 1;
                self.tail.skip(delivered.seq);
                return self.waits_behind(&event);
            }
            Stage::Kept => (None, None),
            Stage::Broken(broken, said) => (Some(broken), Some(*said)),
        };
        tick.seen.verified += u64::from(event.verified);
        tick.seen.broken += u64::from(broken.is_some());
        let needed_at = said.as_ref().map_or(event.ts, |s| s.ts.max(event.ts));
        self.tail.show(delivered.seq, &event.tenant_id, event.event_id, needed_at, broken);
        let waits = self.waits_behind(&event);
        tick.events.push(event);
        tick.events.extend(said);
        waits
    }

    /// The lane of an event that was taken, and its head now, if something is held.
    fn waits_behind(&self, event: &SecurityEvent) -> Option<(String, i64)> {
        let lane = event.lane.as_ref().filter(|_| !self.hold.is_empty())?;
        self.stage.heads().get(lane).map(|(head, _)| (lane.clone(), head))
    }

    /// A quiet log tells no time: while a lane is held, this puts one record a second into it.
    async fn tell_the_time(&mut self) -> Result<(), DetectError> {
        let now = self.clock.now();
        if self.hold.is_empty() || now < self.next_tick {
            return Ok(());
        }
        self.next_tick = now.plus_seconds(1);
        for result in self.bus.publish(Stream::Ase, vec![Message::new(subject::tick(CHECKPOINT_PARTITION), "{}")]).await {
            result?;
        }
        Ok(())
    }

    /// Publishes until every message is taken or will never be. "Already there" is the same as taken.
    async fn publish(&self, stream: Stream, mut messages: Vec<Message>, shared: &Shared) -> Result<(), DetectError> {
        let mut pause = RETRY_FIRST;
        while !messages.is_empty() {
            let results = self.bus.publish(stream, messages.clone()).await;
            let mut again = Vec::new();
            for (message, result) in messages.into_iter().zip(results) {
                match result {
                    Ok(_) | Err(BusError::WrongLastSequence { .. }) => {}
                    Err(error) if error.is_retryable() => again.push(message),
                    Err(error) => tracing::error!(subject = %message.subject, %error, "the bus will never take this message"),
                }
            }
            if again.is_empty() {
                break;
            }
            if shared.stopping() {
                return Err(BusError::Closed.into());
            }
            shared.stats.lock().trouble = Some(format!("stream {stream} takes no messages; trying again"));
            shared.pause(pause).await;
            shared.stats.lock().trouble = None;
            pause = (pause * 2).min(RETRY_MOST);
            messages = again;
        }
        Ok(())
    }

    async fn write_checkpoint(&mut self, shared: &Shared) -> Result<(), DetectError> {
        self.stage.forget_idle(self.clock.now().plus_seconds(-IDLE_LANE_S));
        let rewind = self.tail.rewind(self.position + 1);
        let checkpoint = Checkpoint {
            version: Checkpoint::VERSION,
            stream: self.stream.clone(),
            seq: self.position,
            rewind,
            heads: self.stage.heads().clone(),
            engine: self.engine.checkpoint(),
            skipped: self.tail.skipped(),
            broken: self.tail.broken(),
        };
        let Ok(payload) = serde_json::to_vec(&checkpoint) else { return Ok(()) };
        if payload.len() > aegis_bus::MAX_PAYLOAD {
            tracing::warn!(bytes = payload.len(), "the checkpoint is too large for the bus; a restart replays from the last one");
            return Ok(());
        }
        let message = Message::new(subject::ckpt(CHECKPOINT_PARTITION), payload);
        for result in self.bus.publish(Stream::Ckpt, vec![message]).await {
            result?;
        }
        self.bus.set_consumer_position(Stream::Ase, CONSUMER, rewind.saturating_sub(1)).await?;
        shared.stats.lock().checkpoints += 1;
        Ok(())
    }
}
