//! The detector's way along the stream: state from the checkpoint, ticks, the next checkpoint. Over a stream that was made anew, or has
//! lost its end, it begins again at the start.

mod save;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{AskForMissing, Bus, BusError, Message, Place, Stream, Subscription, subject};
use aegis_keys::KeyRing;
use aegis_ledger::verify::LaneHeads;
use aegis_model::{Clock, SecurityEvent, TenantId, Timestamp};

use crate::checkpoint::{Before, Checkpoint, Saved, Tail};
use crate::distrust::Distrust;
use crate::engine::Engine;
use crate::error::DetectError;
use crate::hold::{HeldLane, Hold};
use crate::late::CatchUp;
use crate::own::Own;
use crate::room::Room;
use crate::ruleset::RuleSet;
use crate::shelf::Shelf;
use crate::verify::{VerifyStage, chain_broken_event};
use crate::warm::WarmUp;
use crate::watermark::MAX_PAUSE;
use crate::wire::read;
use crate::worker::{CONSUMER, Shared, WorkerConfig};

/// Largest micro-batch.
pub(crate) const MAX_BATCH: usize = 2048;
/// A quiet stream is looked at this often for a stop.
const IDLE_WAIT: Duration = Duration::from_millis(200);
/// So long a pause is quiet enough for rules that rest to look at what waits: they rest for the sake of what follows, and nothing does. Where
/// looking took long, it is so many times as long.
const BEHIND_WAIT: Duration = Duration::from_millis(20);
const BEHIND_RESTS: u32 = 9;
/// Ticks are at least this far apart, so that events gather; the first after a pause runs at once.
const TICK_SPACING: Duration = Duration::from_millis(5);
/// The same behind a batch of this many: under load.
const BUSY: usize = 64;
const BUSY_TICK_SPACING: Duration = Duration::from_millis(10);
pub(crate) const RETRY_FIRST: Duration = Duration::from_millis(50);
pub(crate) const RETRY_MOST: Duration = Duration::from_secs(5);
/// When a lane that waits is asked for first, and again, microseconds.
const ASK_FIRST_US: i64 = 500_000;
const ASK_AGAIN_US: i64 = 3_000_000;
/// How often a quiet log is told the time while a lane is held, and while a row waits for what follows it, microseconds. A longer pause of the bus
/// would not count in full.
const HOLD_TICK_US: i64 = 1_000_000;
const ROW_TICK_US: i64 = MAX_PAUSE;
/// Lanes that are asked for at once.
const MOST_ASKED: usize = 256;
/// How long a message that must be there is waited for.
pub(crate) const READ_WAIT: Duration = Duration::from_secs(10);
/// A large checkpoint takes its time: as many times as long, none is written.
const CHECKPOINT_RESTS: i64 = 10;
/// The partition under which a worker that owns all of them writes its checkpoint.
const CHECKPOINT_PARTITION: u32 = 0;

pub(crate) struct Running {
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) stage: VerifyStage,
    pub(crate) hold: Hold,
    /// When this process put the last record of time into the log.
    told_time: Timestamp,
    missing: Option<Arc<dyn AskForMissing>>,
    /// When each lane that waits is to be asked for next, by this process's clock: it decides when a request is sent, and nothing else.
    ask_at: BTreeMap<String, Timestamp>,
    pub(crate) engine: Engine,
    /// What tenants have of their own.
    pub(crate) own: Own,
    pub(crate) tail: Tail,
    /// What rules that come are filled with.
    pub(crate) warm: WarmUp,
    /// What came too late for the windows.
    pub(crate) late: CatchUp,
    /// What is to be told of records of rules that are refused.
    pub(crate) distrust: Distrust,
    shelf: Shelf,
    /// Up to where the last checkpoint counts.
    written: u64,
    /// What was told of keys may have so much of a checkpoint.
    room: Room,
    /// Why the last checkpoint could not be written, if it could not.
    pub(crate) unwritten: Option<String>,
    /// True once the checkpoint was looked for.
    begun: bool,
    /// Which incarnation of the stream is read.
    stream: String,
    /// When the bus stored the message at the position.
    pub(crate) stored: Option<Timestamp>,
    pub(crate) position: u64,
    /// Up to here the stream is read again behind a checkpoint of which only the lanes' heads were read.
    known_to: u64,
    /// What the life before can have told of, it had read up to here.
    read_before: u64,
    /// Up to here another stream is read than the one that what is known of rules is of: records in it may be older.
    pub(crate) other_to: u64,
    /// True while a tick's alerts are not all on the bus: then no checkpoint may count its events.
    pub(crate) unpublished: bool,
    pub(crate) clock: Arc<dyn Clock>,
}

/// None, where the clock was set back.
fn micros_between(from: Timestamp, to: Timestamp) -> Duration {
    Duration::from_micros(to.as_micros().saturating_sub(from.as_micros()).max(0).unsigned_abs())
}

/// The pause after which the stream is quiet, by how long it took to catch up the last time.
fn quiet_after(is_behind: bool, caught_up_in: Duration) -> Duration {
    if is_behind { caught_up_in.saturating_mul(BEHIND_RESTS).clamp(BEHIND_WAIT, IDLE_WAIT) } else { IDLE_WAIT }
}

pub(crate) async fn run(
    bus: Arc<dyn Bus>,
    ring: KeyRing,
    rules: RuleSet,
    clock: Arc<dyn Clock>,
    config: WorkerConfig,
    shared: &Shared,
) {
    let own = Own::new(rules.common(), config.texts.clone(), config.control.clone());
    let mut running = Running {
        bus,
        stage: VerifyStage::new(ring.clone(), LaneHeads::default()),
        hold: Hold::new(config.hold_ms),
        told_time: Timestamp::default(),
        missing: config.missing.clone(),
        ask_at: BTreeMap::new(),
        engine: Engine::new(rules, config.engine.clone()),
        own,
        tail: Tail::default(),
        warm: WarmUp::new(config.past.clone(), config.warm_records.clone())
            .following(config.past_receipts.clone(), config.hold_ms),
        late: CatchUp::new(config.past.clone()),
        distrust: Distrust::new(config.refused_records.clone()),
        shelf: Shelf::new(CHECKPOINT_PARTITION).with_most(config.checkpoint_bytes),
        written: 0,
        room: Room::new(config.checkpoint_bytes),
        unwritten: None,
        begun: false,
        stream: String::new(),
        stored: None,
        position: 0,
        known_to: 0,
        read_before: 0,
        other_to: 0,
        unpublished: false,
        clock: Arc::clone(&clock),
    };
    let mut pause = RETRY_FIRST;
    while !shared.stopping() {
        let result = match running.start(&ring).await {
            Ok(subscription) => {
                pause = RETRY_FIRST;
                shared.stats.lock().trouble.clone_from(&running.unwritten);
                running.follow(subscription, &config, shared).await
            }
            Err(error) => Err(error),
        };
        let result = match result {
            Err(DetectError::Bus(BusError::Rewound { stream, reason })) => {
                tracing::warn!(stream, reason, "detection reads its stream again from the start");
                running.begin_again(shared).await
            }
            other => other,
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
        && let Err(error) = running.write_checkpoint(shared).await
    {
        tracing::warn!(%error, "no checkpoint at the end; the next start replays a little more");
    }
}

impl Running {
    /// Rebuilds the state on the first call, and subscribes behind what has been taken.
    async fn start(&mut self, ring: &KeyRing) -> Result<Box<dyn Subscription>, DetectError> {
        if !self.begun {
            let saved = self.shelf.read(self.bus.as_ref()).await?.and_then(|text| Saved::read(&text));
            match saved {
                Some(Saved::Whole(checkpoint)) => self.restore(*checkpoint, ring).await?,
                Some(Saved::Heads(saved)) => {
                    let is_still = self.bus.is_still(Stream::Ase, &saved.place).await?;
                    self.stage = VerifyStage::new(ring.clone(), LaneHeads::default());
                    self.know_lanes(Some(saved.into_before()), is_still);
                }
                None => {}
            }
            self.begun = true;
            self.stream = self.bus.stream_identity(Stream::Ase).await?;
            // Registered from the start, so that nothing is dropped before it was seen.
            self.bus.set_consumer_position(Stream::Ase, CONSUMER, self.needed_from().saturating_sub(1)).await?;
        }
        // Whatever ended the last reader: what follows the position is only what follows if the stream still is the same.
        if self.position > 0 && !self.bus.is_still(Stream::Ase, &self.place()).await? {
            let reason = "it was made anew, or lost its end".to_owned();
            return Err(BusError::Rewound { stream: Stream::Ase.to_string(), reason }.into());
        }
        // Records of time and of rules too: they are part of the log.
        Ok(self.bus.subscribe(Stream::Ase, ">", self.position + 1).await?)
    }

    /// How far lanes were followed once: where the stream is the same, it is read again, and may begin within them; of another one what is known of
    /// each lane stands, and drops what comes again.
    fn know_lanes(&mut self, before: Option<Before>, is_still: bool) {
        self.known_to = 0;
        let Some(Before { heads, to }) = before else { return };
        self.stage.begin_within(heads);
        if is_still {
            self.known_to = to;
        } else {
            self.stage.take_up_all();
        }
    }

    /// Takes up the state of a checkpoint. Of another stream it is still true how far each lane was seen and what was told; only the
    /// events of the windows are gone, and the stream is read from its start.
    async fn restore(&mut self, mut checkpoint: Checkpoint, ring: &KeyRing) -> Result<(), DetectError> {
        // A start that broke off here begins anew.
        self.tail = Tail::default();
        self.own.know_again(&mut self.engine, checkpoint.own.clone(), checkpoint.changed.clone()).await?;
        let (mut events, mut all_cut) = (Vec::new(), true);
        let is_still = self.bus.is_still(Stream::Ase, &checkpoint.place).await?;
        if is_still {
            all_cut = self.bus.stream_state(Stream::Ase).await?.first_seq > checkpoint.rewind;
            self.read_cut(&mut checkpoint).await?;
            events = self.read_windows(&checkpoint).await?;
            self.position = checkpoint.place.seq;
            self.written = self.position;
            self.stored = checkpoint.place.stored;
        } else {
            tracing::warn!(
                "the stream is not the one that the checkpoint is about; reading it from its start, with empty windows"
            );
        }
        events.extend(self.past_of_filled(&checkpoint).await);
        let told = match &checkpoint.alerts {
            Some(place) if is_still => self.told_behind(place).await?,
            _ => Vec::new(),
        };
        self.read_before = self.bus.last_seq(Stream::Ase).await?;
        self.other_to = if is_still { 0 } else { self.read_before };
        self.distrust.know_again(checkpoint.untold);
        let (new, kept) = (self.engine.new_of_program(&checkpoint.engine), checkpoint.engine.kept_from().clone());
        let cut = checkpoint.cut;
        let is_cut = |tenant: &TenantId| all_cut || cut.contains_key(tenant);
        self.engine.restore_cut(checkpoint.engine, events, &is_cut);
        self.engine.know_told(told, &is_cut);
        self.tail.stays_cut(cut);
        self.stage = VerifyStage::new(ring.clone(), checkpoint.heads);
        self.know_lanes(checkpoint.before, is_still);
        self.late.take_up(checkpoint.late);
        self.wait_for_windows_of(&new, &kept);
        self.want_again();
        Ok(())
    }

    /// Reads the messages that the windows need once more, and those of the lanes that wait; no rule is run over them.
    async fn read_windows(&mut self, checkpoint: &Checkpoint) -> Result<Vec<SecurityEvent>, DetectError> {
        let mut events = Vec::new();
        let until = |lane: &HeldLane| lane.seqs.iter().map(|seq| (*seq, lane.until)).collect::<Vec<_>>();
        let held: BTreeMap<u64, Timestamp> = checkpoint.held.iter().flat_map(until).collect();
        let first_held = held.first_key_value().map_or(checkpoint.rewind, |(seq, _)| *seq);
        let (mut next, last) = (checkpoint.rewind.min(first_held), checkpoint.place.seq);
        let mut subscription = self.bus.subscribe(Stream::Ase, ">", next).await?;
        // Nothing behind the first message that is still there has been dropped.
        while next <= last && self.bus.stream_state(Stream::Ase).await?.first_seq <= last {
            let batch = subscription.next_batch(MAX_BATCH, READ_WAIT).await?;
            if batch.is_empty() {
                return Err(BusError::Unavailable { reason: format!("message {next} of the stream does not come") }.into());
            }
            for delivered in batch.into_iter().take_while(|d| d.seq <= last) {
                next = delivered.seq + 1;
                if let Some(until) = held.get(&delivered.seq) {
                    self.hold_again(*until, delivered);
                    continue;
                }
                if delivered.seq < checkpoint.rewind {
                    continue;
                }
                let broken = checkpoint.broken.get(&delivered.seq).cloned();
                let skipped = checkpoint.skipped.contains(delivered.seq);
                match (read(&delivered), broken) {
                    (Ok(read), Some(broken)) if skipped => {
                        let said = chain_broken_event(read.event(), &broken);
                        self.tail.say(delivered.seq, &read.event().tenant_id, said.ts, broken);
                        events.push(said);
                    }
                    (Ok(read), broken) if !skipped => {
                        let is_verified = broken.is_none() && read.unmarked().lane().is_some();
                        let event = read.into_marked(is_verified);
                        let said = broken.as_ref().map(|b| chain_broken_event(&event, b));
                        self.tail.take(delivered.seq, &event, said.as_ref(), broken);
                        events.push(Arc::unwrap_or_clone(event));
                        events.extend(said);
                    }
                    _ => self.tail.skip(delivered.seq),
                }
            }
        }
        Ok(events)
    }

    /// The first message that a start would have to read.
    fn needed_from(&self) -> u64 {
        let next = self.position + 1;
        self.tail.rewind(next).min(self.hold.first_seq(next))
    }

    /// Where it stands, to be compared with what the stream is later.
    fn place(&self) -> Place {
        Place { stream: self.stream.clone(), seq: self.position, stored: self.stored }
    }

    /// The stream is another one than was read so far. What is known of each lane and in the windows stands, and drops what comes again; its
    /// sequences mean nothing any more.
    async fn begin_again(&mut self, shared: &Shared) -> Result<(), DetectError> {
        self.other_to = self.bus.last_seq(Stream::Ase).await?;
        self.stream = self.bus.stream_identity(Stream::Ase).await?;
        self.position = 0;
        self.written = 0;
        self.stored = None;
        self.known_to = 0;
        self.stage.take_up_all();
        self.take_held(shared).await?;
        self.tail.begin_again();
        self.warm.begin_again();
        self.late.begin_again();
        shared.stats.lock().rewinds += 1;
        self.bus.set_consumer_position(Stream::Ase, CONSUMER, 0).await?;
        Ok(())
    }

    async fn follow(
        &mut self,
        mut subscription: Box<dyn Subscription>,
        config: &WorkerConfig,
        shared: &Shared,
    ) -> Result<(), DetectError> {
        let mut last_checkpoint = self.clock.now();
        let mut rests = config.checkpoint_ms.saturating_mul(1000);
        let mut caught_up_in = Duration::ZERO;
        {
            let mut stats = shared.stats.lock();
            stats.ready = true;
            stats.position = self.position;
            stats.rules = self.rule_stats();
        }
        while !shared.stopping() {
            let batch = tokio::select! {
                batch = subscription.next_batch(MAX_BATCH, quiet_after(self.engine.is_behind(), caught_up_in)) => batch?,
                () = shared.woken() => continue,
            };
            let started = self.clock.now();
            let (full, quiet) = (batch.len() == MAX_BATCH, batch.is_empty());
            let spacing = if batch.len() < BUSY { TICK_SPACING } else { BUSY_TICK_SPACING };
            if quiet {
                self.catch_up(shared).await?;
                caught_up_in = micros_between(started, self.clock.now());
                self.tell_the_time().await?;
            } else {
                self.take(batch, shared).await?;
                let lag = if full { self.bus.last_seq(Stream::Ase).await?.saturating_sub(self.position) } else { 0 };
                // Of a rule that came just now nobody is shown that it waits for nobody.
                self.count_waiting();
                let mut stats = shared.stats.lock();
                stats.lag = lag;
                stats.rules = self.rule_stats();
            }
            self.warm_up().await?;
            self.catch_up_late(shared).await?;
            self.distrust.step();
            if self.count_waiting() {
                shared.stats.lock().rules = self.rule_stats();
            }
            if let Some(waits) = &config.waits {
                waits.answer(|tenant, ()| self.waits_of(tenant));
            }
            if let Some(looks) = &config.looks {
                looks.answer(|tenant, asked| self.lanes_of(tenant, &asked));
            }
            self.ask_for_missing();
            let now = self.clock.now();
            let since = now.as_micros().saturating_sub(last_checkpoint.as_micros());
            // A clock that was set back says nothing of how long it was.
            if self.written != self.position && !(0..rests).contains(&since) {
                self.write_checkpoint(shared).await?;
                last_checkpoint = self.clock.now();
                let took = last_checkpoint.as_micros().saturating_sub(now.as_micros());
                rests = config.checkpoint_ms.saturating_mul(1000).max(took.saturating_mul(CHECKPOINT_RESTS));
            }
            let took = micros_between(started, now);
            if !full
                && !quiet
                && let Some(rest) = spacing.checked_sub(took)
            {
                tokio::time::sleep(rest).await;
            }
        }
        Ok(())
    }

    /// Asks for what held lanes wait for: a moment after they began to wait, and again every few seconds. No tenant's lanes keep those of another
    /// from being asked for.
    fn ask_for_missing(&mut self) {
        let Some(missing) = &self.missing else { return };
        if self.hold.is_empty() {
            self.ask_at.clear();
            return;
        }
        let now = self.clock.now();
        let mut ask_at = BTreeMap::new();
        for (lane, first) in self.hold.longest_waiting_of_each(MOST_ASKED) {
            // A clock that was set back must not keep a lane waiting.
            let known = self.ask_at.get(lane).copied().filter(|at| *at <= now.plus_micros(ASK_AGAIN_US));
            let mut at = known.unwrap_or_else(|| now.plus_micros(ASK_FIRST_US));
            if now >= at {
                let head = self.stage.head_of(lane);
                missing.ask(lane, head + 1, first - 1);
                at = now.plus_micros(ASK_AGAIN_US);
            }
            ask_at.insert(lane.to_owned(), at);
        }
        self.ask_at = ask_at;
    }

    /// A quiet log tells no time: this puts a record of it there while a lane is held, and while a row waits for what does not follow it. Of the
    /// process's clock it takes only when.
    async fn tell_the_time(&mut self) -> Result<(), DetectError> {
        let now = self.clock.now();
        let spacing = match self.engine.needs_time_from() {
            _ if !self.hold.is_empty() => HOLD_TICK_US,
            Some(from) if now >= from => ROW_TICK_US,
            _ => return Ok(()),
        };
        // A clock that was set back must not stop it.
        let since = now.as_micros().saturating_sub(self.told_time.as_micros());
        if (0..spacing).contains(&since) {
            return Ok(());
        }
        self.told_time = now;
        for result in self.bus.publish(Stream::Ase, vec![Message::new(subject::tick(CHECKPOINT_PARTITION), "{}")]).await {
            match result {
                Ok(_) => {}
                // It has room again once a checkpoint releases it, which must not wait for this.
                Err(error @ BusError::Full { .. }) => tracing::warn!(%error, "the log cannot be told the time now"),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_rest_look_in_a_short_pause_unless_looking_takes_long() {
        let (short, long) = (Duration::from_millis(1), Duration::from_millis(10));
        assert_eq!(quiet_after(false, Duration::ZERO), IDLE_WAIT);
        assert_eq!(quiet_after(true, Duration::ZERO), BEHIND_WAIT);
        assert_eq!(quiet_after(true, short), BEHIND_WAIT);
        assert_eq!(quiet_after(true, long), Duration::from_millis(90));
        assert_eq!(quiet_after(true, Duration::from_secs(5)), IDLE_WAIT);
        let later = Timestamp::from_micros(5);
        assert_eq!(micros_between(Timestamp::from_micros(2), later), Duration::from_micros(3));
        assert_eq!(micros_between(later, Timestamp::from_micros(2)), Duration::ZERO, "the clock was set back");
    }
}
