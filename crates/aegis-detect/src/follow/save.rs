//! How far the detector is, as a checkpoint has it. Promises that the stream is not released before one is written, and that one for which there is no room
//! leaves out what most was told of, or is not written, and says so.

use aegis_bus::{BusError, Stream};

use super::Running;
use crate::checkpoint::{Before, Checkpoint};
use crate::error::DetectError;
use crate::worker::{CONSUMER, Shared};

/// Lanes whose last receipt is older are forgotten; a lane that speaks again later is a break, not a secret.
const IDLE_LANE_S: i64 = 30 * 24 * 3600;

impl Running {
    /// Writes down how far it is. Where there is no room for it, that is said: the one before stands, and the stream is not released.
    pub(super) async fn write_checkpoint(&mut self, shared: &Shared) -> Result<(), DetectError> {
        self.catch_up(shared).await?;
        if self.position >= self.read_before {
            // No rule that comes later told any of it.
            self.engine.told = Vec::new();
        }
        self.stage.forget_idle(self.clock.now().plus_seconds(-IDLE_LANE_S));
        self.engine.looks.keep(|lane| self.stage.heads().get(lane).is_some());
        let rewind = self.tail.rewind(self.position + 1);
        let mut place = self.bus.place(Stream::Ase, self.position).await?;
        // What the bus in a file does not tell: a start asks what time it is in the log before another message comes.
        place.stored = place.stored.or(self.stored);
        if place.stream != self.stream {
            let reason = "it was made anew".to_owned();
            return Err(BusError::Rewound { stream: Stream::Ase.to_string(), reason }.into());
        }
        let alerts = self.bus.place(Stream::Alerts, self.bus.last_seq(Stream::Alerts).await?).await?;
        let is_again = self.position < self.known_to;
        if !is_again {
            self.stage.take_up_all();
        }
        let cut = self.tail.cut();
        let mut checkpoint = Checkpoint {
            version: Checkpoint::VERSION,
            place,
            rewind,
            heads: self.stage.heads().clone(),
            engine: self.engine.checkpoint_beside(self.room.most_of_keys(), &cut),
            skipped: self.tail.skipped(),
            broken: self.tail.broken(),
            held: self.hold.held(),
            cut,
            own: self.own.known(),
            changed: self.own.changed.all(),
            alerts: Some(alerts),
            late: self.late.saved(),
            untold: self.distrust.untold(),
            before: is_again.then(|| Before { heads: self.stage.known().clone(), to: self.known_to }),
        };
        let written = loop {
            let written = match serde_json::to_vec(&checkpoint) {
                Ok(text) => self.shelf.write(self.bus.as_ref(), text).await,
                Err(error) => Err(BusError::Invalid { what: "checkpoint", reason: error.to_string() }),
            };
            if !matches!(written, Err(BusError::TooLarge { .. })) || !self.room.narrow() {
                break written;
            }
            // Better without what the largest tenants were told than not at all.
            let most_bytes = self.room.most_of_keys();
            tracing::warn!(most_bytes, "the checkpoint is too large: what most was told of is left out");
            checkpoint.engine = self.engine.checkpoint_beside(most_bytes, &checkpoint.cut);
        };
        match written {
            Ok(()) => {}
            Err(error) if error.is_retryable() && !matches!(error, BusError::Full { .. }) => return Err(error.into()),
            Err(error) => {
                tracing::error!(%error, "no checkpoint; a restart replays from the last one, and the stream is not released");
                let trouble = format!("no checkpoint can be written, and the stream {} is not released: {error}", Stream::Ase);
                self.unwritten = Some(trouble);
                shared.stats.lock().trouble.clone_from(&self.unwritten);
                return Ok(());
            }
        }
        if self.unwritten.take().is_some() {
            shared.stats.lock().trouble = None;
        }
        self.bus.set_consumer_position(Stream::Ase, CONSUMER, self.needed_from().saturating_sub(1)).await?;
        self.written = self.position;
        self.room.note_written();
        // Of whom it had no room is known now.
        let rules = self.rule_stats();
        let mut stats = shared.stats.lock();
        stats.checkpoints += 1;
        stats.rules = rules;
        drop(stats);
        Ok(())
    }
}
