//! From the bus into the lake: reads, proves, judges and hands to the writer; goes on from the position that the lake has.
//! Promises that the position passes nothing that is not written. Changes no event but for what is added behind the seal: `bus_ts`, `verified`, `late`.

use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Bus, Delivered, Stream, Subscription, subject};
use aegis_detect::{Watermarks, is_ahead};
use aegis_keys::KeyRing;
use aegis_ledger::verify::Prover;
use aegis_model::{Clock, SecurityEvent, Timestamp};
use object_store::ObjectStore;
use tokio::time::Instant;

use crate::error::LakeError;
use crate::lanes::Lanes;
use crate::layout::Hour;
use crate::position::Position;
use crate::swap::{Version, check_conditions};
use crate::worker::{CONSUMER, LakeConfig, Shared};
use crate::writer::Writer;

/// Events taken at once.
const BATCH: usize = 512;
/// How long one read waits.
const WAIT: Duration = Duration::from_millis(250);
/// Reads that find little are at least this far apart, so that events gather.
const SPACING: Duration = Duration::from_millis(50);
/// Hours that wait are written at least this far apart each, on average: what a file costs the disk, commits that answers wait for cost too.
const PER_HOUR: Duration = Duration::from_millis(50);
/// How long a stop goes on reading.
const DRAIN: Duration = Duration::from_secs(5);
/// How often it is looked for files to merge and to remove: one hour's each time, and at once again while there are more.
const TIDY_EVERY: Duration = Duration::from_secs(30);
const TIDY_HOURS: usize = 1;
/// How often the bus is asked how much there is to read.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// First and longest pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Fills the lake until it is stopped.
pub(crate) async fn run(
    bus: Arc<dyn Bus>,
    store: Arc<dyn ObjectStore>,
    ring: KeyRing,
    clock: Arc<dyn Clock>,
    config: LakeConfig,
    shared: &Shared,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        let (worked, outcome) = tokio::select! {
            done = follow(&bus, &store, &ring, &clock, &config, shared) => done,
            () = given_up(&config, shared) => {
                tracing::warn!("the lake's store does not answer; what is not written is at the next start");
                return;
            }
        };
        let Err(error) = outcome else { return };
        tracing::warn!(%error, "the lake stands still");
        {
            let mut stats = shared.stats.lock();
            stats.failures += 1;
            stats.trouble = Some(error.to_string());
        }
        if shared.stopping() {
            return;
        }
        pause = if worked { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        shared.pause(pause).await;
    }
}

/// Goes on until it is stopped, or something fails. Also whether anything was written.
async fn follow(
    bus: &Arc<dyn Bus>,
    store: &Arc<dyn ObjectStore>,
    ring: &KeyRing,
    clock: &Arc<dyn Clock>,
    config: &LakeConfig,
    shared: &Shared,
) -> (bool, Result<(), LakeError>) {
    match Follow::begin(bus, store, ring, clock, config, shared).await {
        Ok(mut begun) => {
            let outcome = begun.until_stopped().await;
            (begun.has_written, outcome)
        }
        Err(error) => (false, Err(error)),
    }
}

/// Ends some time after a stop was asked for. Letting go of what is under way is what a crash does.
async fn given_up(config: &LakeConfig, shared: &Shared) {
    while !shared.stopping() {
        tokio::time::sleep(WAIT).await;
    }
    tokio::time::sleep(Duration::from_millis(config.give_up_ms)).await;
}

struct Follow<'a> {
    bus: &'a Arc<dyn Bus>,
    clock: &'a Arc<dyn Clock>,
    config: &'a LakeConfig,
    shared: &'a Shared,
    subscription: Box<dyn Subscription>,
    writer: Writer,
    prover: Prover,
    watermarks: Watermarks,
    stream: String,
    /// How far lanes are, where that is followed.
    lanes: Option<Lanes>,
    begun: Instant,
    /// How far the bus was at a moment.
    mark: Option<(u64, Instant)>,
    /// Everything that was published then has been read.
    at_end: Option<Instant>,
    /// Everything up to here was handed to the writer, and when the bus stored the last of it.
    read: u64,
    stored_to: Option<Timestamp>,
    /// Everything up to here is written, and the position says so.
    noted: u64,
    /// Of the position that is written, and when this one put it last.
    version: Version,
    put: Option<Instant>,
    has_written: bool,
    /// What was written and tidied before the writer was made.
    before: (u64, u64),
}

impl<'a> Follow<'a> {
    /// Takes up what an earlier one left.
    async fn begin(
        bus: &'a Arc<dyn Bus>,
        store: &Arc<dyn ObjectStore>,
        ring: &KeyRing,
        clock: &'a Arc<dyn Clock>,
        config: &'a LakeConfig,
        shared: &'a Shared,
    ) -> Result<Self, LakeError> {
        let (position, mut version) = Position::read(store).await?;
        let is_still = match &position {
            Some(position) => bus.is_still(Stream::Ase, &position.place).await?,
            None => false,
        };
        let position = match position {
            Some(position) if is_still => position,
            former => {
                if let Some(former) = &former
                    && former.place.seq > 0
                {
                    tracing::warn!(
                        seq = former.place.seq,
                        "the stream is another one than the lake was filled from; reading it from its start"
                    );
                }
                let place = bus.place(Stream::Ase, 0).await?;
                // What a sequence meant before it does not mean now.
                let stream = format!("{}/{}", place.stream, clock.now().as_micros());
                let unfinished = former.map(|former| former.unfinished).unwrap_or_default();
                let fresh = Position { place, stream, watermarks: Watermarks::default(), stored_to: None, unfinished };
                version = fresh.write(store, &version).await?;
                fresh
            }
        };
        check_conditions(store, &Position::at()).await?;
        let lanes = match &config.lanes {
            Some(shared) => Some(Lanes::open(store, shared, clock.now()).await?),
            None => None,
        };
        let start = position.place.seq;
        let first = bus.stream_state(Stream::Ase).await?.first_seq;
        if start > 0 && first > start + 1 {
            tracing::warn!(
                from = start + 1,
                to = first - 1,
                "the bus no longer has these; the lake will not have what they were"
            );
        }
        // Registered even when nothing was read: retention leaves what a registered consumer has not passed.
        bus.set_consumer_position(Stream::Ase, CONSUMER, start).await?;
        let subscription = bus.subscribe(Stream::Ase, "ase.>", start + 1).await?;
        let unfinished = position.unfinished.iter().filter_map(|folder| Hour::parse(folder));
        let writer = Writer::new(Arc::clone(store), &position.stream, unfinished, config.limits);
        let before = {
            let mut stats = shared.stats.lock();
            stats.position = start;
            (stats.rows, stats.files)
        };
        Ok(Self {
            bus,
            clock,
            config,
            shared,
            subscription,
            writer,
            prover: Prover::new(ring.clone()),
            watermarks: position.watermarks,
            stream: position.stream,
            lanes,
            begun: Instant::now(),
            mark: None,
            at_end: None,
            read: start,
            stored_to: position.stored_to,
            noted: start,
            version,
            put: None,
            has_written: false,
            before,
        })
    }

    async fn until_stopped(&mut self) -> Result<(), LakeError> {
        let flush_every = Duration::from_millis(self.config.flush_ms);
        let begun = Instant::now();
        let (mut flushed, mut looked, mut tidied) = (begun, begun, begun);
        let mut is_untidy = false;
        let mut give_up = None;
        loop {
            let is_stopping = self.shared.stopping();
            let asked = Instant::now();
            let batch = self.subscription.next_batch(BATCH, WAIT.min(flush_every)).await?;
            for delivered in &batch {
                self.take(delivered);
                self.read = delivered.seq;
                self.stored_to = self.stored_to.max(Some(delivered.bus_ts));
            }
            if looked.elapsed() >= LOOK_EVERY {
                looked = Instant::now();
                // What comes last may be no event, and is never read.
                let newest = if batch.is_empty() { self.read } else { self.bus.last_seq(Stream::Ase).await? };
                self.mark.get_or_insert((newest, asked));
                let gaps = self.lanes.as_ref().map_or(0, Lanes::open_gaps);
                let mut stats = self.shared.stats.lock();
                stats.lag = newest.saturating_sub(self.read);
                stats.gaps = gaps;
            }
            if batch.is_empty() {
                self.at_end = Some(asked);
                self.mark = None;
            } else if let Some((_, at)) = self.mark.take_if(|(newest, _)| *newest <= self.read) {
                self.at_end = self.at_end.max(Some(at));
            }
            let is_last = is_stopping && (batch.is_empty() || *give_up.get_or_insert(Instant::now() + DRAIN) <= Instant::now());
            if self.writer.is_heavy() {
                // An hour says up to which sequence it has everything.
                self.bus.settle().await?;
                self.writer.relieve().await?;
            }
            let hours = u32::try_from(self.writer.hours_waiting()).unwrap_or(u32::MAX);
            let is_due = self.read > self.noted && flushed.elapsed() >= flush_every.max(PER_HOUR.saturating_mul(hours));
            let is_full = self.writer.is_full() || self.lanes.as_ref().is_some_and(Lanes::is_full);
            if is_last || is_due || is_full {
                self.note().await?;
                flushed = Instant::now();
            }
            if is_last {
                return Ok(());
            }
            self.tell_of_lanes().await?;
            if is_untidy || tidied.elapsed() >= TIDY_EVERY {
                tidied = Instant::now();
                is_untidy = self.tidy().await > 0;
            }
            if batch.len() < BATCH && !batch.is_empty() && !is_stopping {
                tokio::time::sleep(SPACING).await;
            }
        }
    }

    /// Merges files and removes old ones, a few each time. Answers how many: there may be more as long as it is not none. A failure is told where it
    /// happens, and counted; what cannot be merged is read as it is.
    async fn tidy(&mut self) -> usize {
        let now = self.clock.now();
        let files = self.writer.tidy(now, TIDY_HOURS).await;
        let old = match self.config.keep_micros {
            Some(keep_micros) => self.writer.expire(now, keep_micros, self.noted, TIDY_HOURS).await,
            None => Ok(0),
        };
        let failed = u64::from(files.is_err()) + u64::from(old.is_err());
        let (files, old) = (files.unwrap_or(0), old.unwrap_or(0));
        let mut stats = self.shared.stats.lock();
        stats.tidied += files as u64;
        stats.untidied += failed;
        files + old
    }

    /// Hands an event to the writer.
    fn take(&mut self, delivered: &Delivered) {
        match read(delivered, &mut self.prover, self.config) {
            Some((mut event, is_proved)) => {
                if is_proved && let Some(lanes) = &mut self.lanes {
                    lanes.read(&event);
                }
                if !self.watermarks.admit(&event, self.config.lateness_micros) {
                    Arc::make_mut(&mut event).late = true;
                }
                self.writer.take(delivered.seq, event, delivered.payload.len());
            }
            None => self.shared.stats.lock().malformed += 1,
        }
    }

    /// Says how far all lanes are, where nothing that was read waits to be written, and asks for what is missing of them.
    async fn tell_of_lanes(&mut self) -> Result<(), LakeError> {
        if self.lanes.is_none() || self.read > self.noted {
            return Ok(());
        }
        // Nothing that comes would show that the store is another one by now, and edges prune for what is said of it.
        let look_every = Duration::from_millis(self.config.look_ms);
        if self.put.is_none_or(|put| put.elapsed() >= look_every) {
            self.write_position().await?;
            self.goes_on();
        }
        let Some(lanes) = &mut self.lanes else { return Ok(()) };
        if let Some(at_end) = self.at_end {
            lanes.is_whole(at_end);
        }
        let Some(missing) = &self.config.missing else { return Ok(()) };
        if lanes.open_gaps() == 0 || self.begun.elapsed() < Duration::from_millis(self.config.ask_after_ms) {
            return Ok(());
        }
        if self.has_written {
            lanes.ask(&**missing, self.clock.now());
            return Ok(());
        }
        // Nothing came since the start: whether it could be written is found out before anybody ships it again.
        self.write_position().await?;
        self.has_written = true;
        Ok(())
    }

    async fn write_position(&mut self) -> Result<(), LakeError> {
        let position = Position {
            place: self.bus.place(Stream::Ase, self.read).await?,
            stream: self.stream.clone(),
            watermarks: self.watermarks.clone(),
            stored_to: self.stored_to,
            unfinished: self.writer.unfinished.iter().map(Hour::folder).collect(),
        };
        self.version = position.write(&self.writer.store, &self.version).await?;
        self.put = Some(Instant::now());
        Ok(())
    }

    /// Writes what waits, and then how far that is.
    async fn note(&mut self) -> Result<(), LakeError> {
        self.bus.settle().await?;
        self.writer.flush().await?;
        if let Some(lanes) = &mut self.lanes {
            lanes.written(&self.writer.store, self.clock.now()).await?;
        }
        if self.read > self.noted {
            self.write_position().await?;
            self.bus.set_consumer_position(Stream::Ase, CONSUMER, self.read).await?;
            self.noted = self.read;
        }
        self.has_written = true;
        let (rows, files) = self.writer.written();
        {
            let mut stats = self.shared.stats.lock();
            stats.position = self.read;
            (stats.rows, stats.files) = (self.before.0 + rows, self.before.1 + files);
        }
        self.goes_on();
        Ok(())
    }

    /// What it puts is taken: nothing keeps it from going on any more.
    fn goes_on(&self) {
        if self.shared.stats.lock().trouble.take().is_some() {
            tracing::info!(position = self.read, "the lake goes on");
        }
    }
}

/// The event of a message, with what is added behind the seal, and whether its receipt proves itself and has its place in the lane, whatever it says.
/// None: it is none.
fn read(delivered: &Delivered, prover: &mut Prover, config: &LakeConfig) -> Option<(Arc<SecurityEvent>, bool)> {
    let read = delivered.event().ok()?;
    let event = read.unmarked();
    let is_its_own = subject::is_ase(&delivered.subject, event.tenant_id(), event.kind());
    if !is_its_own || !event.names_a_lane_or_none() {
        return None;
    }
    let is_kept = delivered.kept.as_ref().is_some_and(|kept| config.keepers.contains(&*kept.by));
    let is_proved = event.lane().is_some() && (is_kept || prover.prove(&read.wire()).is_some());
    let is_verified = is_proved && event.is_for_its_lane_to_say() && !is_ahead(event.ts(), event.bus_ts());
    Some((read.into_marked(is_verified), is_proved))
}
