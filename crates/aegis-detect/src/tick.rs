//! A tick: the next messages of the stream are verified, held where their lane waits, shown to the engine, and what follows is published.

use std::sync::Arc;

use aegis_bus::{BusError, Delivered, Message, Stream, subject};
use aegis_model::{SecurityEvent, Timestamp};

use crate::engine::TickOutput;
use crate::error::DetectError;
use crate::follow::{RETRY_FIRST, RETRY_MOST, Running};
use crate::hold::Kept;
use crate::impaired::IMPAIRED_RULE;
use crate::verify::Stage;
use crate::wire::{dead_letter, messages, read, smaller};
use crate::worker::{Shared, WorkerStats};

/// What a tick is made of.
#[derive(Default)]
struct Tick {
    seen: WorkerStats,
    events: Vec<Arc<SecurityEvent>>,
    dead: Vec<Message>,
}

impl Running {
    /// One tick: verify, evaluate, publish.
    pub(crate) async fn take(&mut self, batch: Vec<Delivered>, shared: &Shared) -> Result<(), DetectError> {
        let started = self.clock.now();
        let mut tick = Tick::default();
        for delivered in batch {
            if self.position == 0 && delivered.seq > 1 {
                self.engine.lose_before(delivered.bus_ts);
            }
            if delivered.subject.starts_with("ruleset.") {
                // In its place: what came before was for the rules of before. Where it fails, it is read again.
                self.finish(std::mem::take(&mut tick), started, shared).await?;
                self.take_rule(&delivered, shared).await?;
            }
            self.position = delivered.seq;
            self.stored = Some(delivered.bus_ts);
            for waited in self.hold.release(delivered.bus_ts) {
                self.take_one(waited, false, &mut tick);
            }
            if !subject::is_event(&delivered.subject) {
                // Of a record of time its place in the log is all that is asked.
                self.tail.skip(delivered.seq);
                continue;
            }
            tick.seen.events += 1;
            self.warm.note_event(delivered.seq);
            let mut lane = self.take_one(delivered, self.hold.is_on(), &mut tick);
            while let Some(following) = lane.and_then(|(lane, head)| self.hold.next(&lane, head)) {
                lane = self.take_one(following, false, &mut tick);
            }
        }
        self.finish(tick, started, shared).await
    }

    /// Takes what is held as it is, as if its time had come: the stream that it waits for is gone.
    pub(crate) async fn take_held(&mut self, shared: &Shared) -> Result<(), DetectError> {
        let (started, mut tick) = (self.clock.now(), Tick::default());
        for waited in self.hold.release_all() {
            self.take_one(waited, false, &mut tick);
        }
        self.finish(tick, started, shared).await
    }

    /// Runs the rules over the tick's events, and publishes what follows.
    async fn finish(&mut self, tick: Tick, started: Timestamp, shared: &Shared) -> Result<(), DetectError> {
        let Tick { seen, events, dead } = tick;
        let mut output = self.engine.tick_shared(events);
        if let Some(stored) = self.stored {
            output.append(self.engine.pass_time(stored));
        }
        self.tell(seen, output, dead, started, shared).await
    }

    /// Looks at what rules have put off.
    pub(crate) async fn catch_up(&mut self, shared: &Shared) -> Result<(), DetectError> {
        if !self.engine.is_behind() {
            return Ok(());
        }
        let started = self.clock.now();
        let output = self.engine.catch_up();
        self.tell(WorkerStats::default(), output, Vec::new(), started, shared).await
    }

    pub(crate) async fn tell(
        &mut self,
        seen: WorkerStats,
        output: TickOutput,
        dead: Vec<Message>,
        started: Timestamp,
        shared: &Shared,
    ) -> Result<(), DetectError> {
        self.tail.mark_late(&output.late);
        let windows = &self.engine.windows;
        self.late.note(&output.late_proved, &|tenant| windows.has_own(tenant));
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
            stats.rule_records_refused += seen.rule_records_refused;
            stats.late += output.late.len() as u64 + output.ahead;
            stats.late_verified += output.late_proved.len() as u64;
            stats.alerts += output.alerts.len() as u64;
            stats.retractions += output.retractions.len() as u64;
            for alert in &output.alerts {
                if alert.rule_id == IMPAIRED_RULE {
                    // Nobody found anything.
                    stats.impaired += 1;
                    continue;
                }
                if alert.found_late {
                    // How late its events came says nothing of how long detection took.
                    continue;
                }
                // What did not follow an event cannot be seen before it could have.
                let shown = alert.last_ts.plus_micros(self.engine.ahead_of(&alert.rule_id));
                let micros = alert.detected_at.as_micros().saturating_sub(shown.as_micros()).max(0);
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
        let read = match read(&delivered) {
            Ok(read) => read,
            Err(reason) => {
                tick.seen.malformed += 1;
                self.tail.skip(delivered.seq);
                tick.dead.push(dead_letter(&delivered, &reason));
                return None;
            }
        };
        let (wire, event) = (read.wire(), read.unmarked());
        if may_hold && self.stage.misses_one_before(&wire, event) {
            let (lane, seq, place) = (event.lane().unwrap_or_default(), event.seq().unwrap_or_default(), delivered.seq);
            match self.hold.keep(event.tenant_id(), lane, seq, delivered) {
                Kept::Held => return None,
                Kept::Again => {
                    tick.seen.repeated += 1;
                    self.tail.skip(place);
                    return None;
                }
                Kept::Not(delivered) => return self.take_one(*delivered, false, tick),
            }
        }
        let new_lane = event.lane().filter(|lane| self.stage.head_of(lane) == 0);
        let (verified, stage) = self.stage.judge(&wire, event, || read.event().as_ref());
        drop(wire);
        // What did not prove itself may name any lane, and begins none.
        if let Some(lane) = new_lane.filter(|lane| self.stage.heads().get(lane).is_some()) {
            self.engine.looks.begin(event.tenant_id(), lane);
        }
        let (broken, said) = match stage {
            Stage::Repeated => {
                tick.seen.repeated += 1;
                self.tail.skip(delivered.seq);
                return self.waits_behind(event.lane());
            }
            Stage::Kept => (None, None),
            Stage::Broken(broken, said) => (Some(broken), Some(*said)),
        };
        let event = read.into_marked(verified);
        self.warm.note_spoke(&event.tenant_id);
        tick.seen.verified += u64::from(event.verified);
        tick.seen.broken += u64::from(broken.is_some());
        self.tail.take(delivered.seq, &event, said.as_ref(), broken);
        let waits = self.waits_behind(event.lane.as_deref());
        tick.events.push(event);
        tick.events.extend(said.map(Arc::new));
        waits
    }

    /// The lane of an event that was taken, and its head now, if something is held.
    fn waits_behind(&self, lane: Option<&str>) -> Option<(String, i64)> {
        let lane = lane.filter(|_| !self.hold.is_empty())?;
        self.stage.heads().get(lane).map(|(head, _)| (lane.to_owned(), head))
    }

    /// Publishes until every message is taken or will never be. "Already there" is the same as taken. The record of an episode that finds its
    /// stream full is given up, and counted: its alert is out, and others must not wait for it. An alert that is over the bus's bound goes out
    /// without what makes it large.
    async fn publish(&self, stream: Stream, mut messages: Vec<Message>, shared: &Shared) -> Result<(), DetectError> {
        let mut pause = RETRY_FIRST;
        while !messages.is_empty() {
            let results = self.bus.publish(stream, messages.clone()).await;
            let (mut again, mut smaller_ones) = (Vec::new(), Vec::new());
            let (mut dropped, mut refused) = (0, 0);
            for (message, result) in messages.into_iter().zip(results) {
                match result {
                    Ok(_) | Err(BusError::WrongLastSequence { .. }) => {}
                    Err(BusError::Full { .. }) if stream == Stream::Episodes => dropped += 1,
                    Err(error) if error.is_retryable() => again.push(message),
                    Err(error) => {
                        let smaller = if let BusError::TooLarge { max, .. } = error { smaller(&message, max) } else { None };
                        match smaller {
                            Some(smaller) => {
                                tracing::warn!(subject = %message.subject, %error, "this alert goes out without its fields");
                                smaller_ones.push(smaller);
                            }
                            None => {
                                refused += 1;
                                tracing::error!(subject = %message.subject, %error, "the bus will never take this message");
                            }
                        }
                    }
                }
            }
            if dropped > 0 || refused > 0 {
                let mut stats = shared.stats.lock();
                stats.refused += refused;
                if stats.episodes_dropped == 0 && dropped > 0 {
                    tracing::warn!(%stream, "it is full: what becomes of episodes is not written down until there is room");
                }
                stats.episodes_dropped += dropped;
            }
            let waits = !again.is_empty();
            messages = again;
            messages.append(&mut smaller_ones);
            if !waits {
                continue;
            }
            if shared.stopping() {
                return Err(BusError::Closed.into());
            }
            shared.stats.lock().trouble = Some(format!("stream {stream} takes no messages; trying again"));
            shared.pause(pause).await;
            shared.stats.lock().trouble.clone_from(&self.unwritten);
            pause = (pause * 2).min(RETRY_MOST);
        }
        Ok(())
    }
}
