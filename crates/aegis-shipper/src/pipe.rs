//! What is under way: publishes that were begun one after the other and wait for their acknowledgements. Promises that answers are taken in that
//! order, whichever comes first, so that the row up to which everything is shipped never passes one that is not acknowledged; that what was refused,
//! or not acknowledged in time, is published again before anything new is; and that what is under way is bounded in events and bytes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aegis_bus::{Acks, Bus, BusError, PubAck, Stream};
use aegis_ledger::Ledger;
use tokio::time::{Instant, sleep_until};

use crate::letter::Outgoing;
use crate::stop::{Expired, Stop};
use crate::window::{Weight, Window};
use crate::{Counts, ShipperConfig};

/// Messages that are published again of a publish of which nothing was taken, before the rest of it: a bus that is gone is not sent all of them each time.
const PROBE: usize = 16;

/// What one publish was answered.
pub(crate) type Answers = Vec<Result<PubAck, BusError>>;

struct UnderWay {
    stream: Stream,
    /// What is not acknowledged yet, in order.
    outgoing: Vec<Outgoing>,
    /// How many of those are published, the first ones.
    published: usize,
    weight: Weight,
    acks: Acks,
    begun: Instant,
    /// Of messages that the bus will never take.
    letters: Vec<Outgoing>,
    /// Up to this row everything is shipped once this publish and all before it are acknowledged.
    passes: Option<i64>,
}

pub(crate) struct Pipe {
    ledger: Ledger,
    bus: Arc<dyn Bus>,
    config: ShipperConfig,
    counts: Arc<Counts>,
    window: Window,
    /// The oldest first.
    under_way: VecDeque<UnderWay>,
    /// The wait after the next refusal.
    backoff: Duration,
    /// The last row up to which all messages are acknowledged.
    shipped: i64,
    stop: Stop,
}

impl Pipe {
    pub(crate) fn new(
        ledger: Ledger,
        bus: Arc<dyn Bus>,
        config: ShipperConfig,
        counts: Arc<Counts>,
        shipped: i64,
        stop: Stop,
    ) -> Self {
        let window = Window::new(Weight { events: config.window, bytes: config.window_bytes }, config.late);
        let backoff = config.min_backoff;
        Self { ledger, bus, config, counts, window, under_way: VecDeque::new(), backoff, shipped, stop }
    }

    /// The last row up to which all messages are acknowledged.
    pub(crate) const fn shipped(&self) -> i64 {
        self.shipped
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Whether a stop was asked for; an error once its time has passed.
    pub(crate) fn is_stopping(&mut self) -> Result<bool, Expired> {
        self.stop.is_asked()
    }

    /// Begins to publish, in pieces of bounded size, each as soon as there is room for it. Up to the row `passes` everything is shipped once this
    /// and all that was begun before is acknowledged.
    pub(crate) async fn send(
        &mut self,
        stream: Stream,
        outgoing: impl Iterator<Item = Outgoing>,
        passes: Option<i64>,
    ) -> Result<(), Expired> {
        let (mut piece, mut weight) = (Vec::new(), Weight::default());
        for out in outgoing {
            let one = Weight { events: 1, bytes: out.message.payload.len() };
            if !piece.is_empty() && weight.bytes + one.bytes > self.config.batch_bytes {
                self.send_piece(stream, std::mem::take(&mut piece), weight).await?;
                weight = Weight::default();
            }
            piece.push(out);
            weight = weight.plus(one);
        }
        if !piece.is_empty() {
            self.send_piece(stream, piece, weight).await?;
        }
        if let Some(row) = passes {
            self.pass(row).await;
        }
        Ok(())
    }

    /// Up to this row everything is shipped once what is under way is acknowledged.
    pub(crate) async fn pass(&mut self, row: i64) {
        match self.under_way.back_mut() {
            Some(last) => last.passes = Some(row),
            None => self.passed(row).await,
        }
    }

    async fn send_piece(&mut self, stream: Stream, mut outgoing: Vec<Outgoing>, weight: Weight) -> Result<(), Expired> {
        loop {
            // First what is known of those before it: what was refused goes before what is new.
            if let Some(answers) = self.answer_that_is_there().await {
                self.settle(answers).await?;
            } else if self.window.has_room(self.under_way.len(), self.weight(), weight) {
                break;
            } else {
                self.settle_next().await?;
            }
        }
        let begun = Instant::now();
        let (published, acks) = (outgoing.len(), self.begin(stream, &mut outgoing).await?);
        self.under_way.push_back(UnderWay {
            stream,
            outgoing,
            published,
            weight,
            acks,
            begun,
            letters: Vec::new(),
            passes: None,
        });
        Ok(())
    }

    fn weight(&self) -> Weight {
        self.under_way.iter().fold(Weight::default(), |sum, under_way| sum.plus(under_way.weight))
    }

    async fn begin(&mut self, stream: Stream, outgoing: &mut [Outgoing]) -> Result<Acks, Expired> {
        let messages = outgoing.iter_mut().map(Outgoing::take_publish).collect();
        self.stop.before(self.bus.begin_publish(stream, messages)).await
    }

    /// Waits for what the oldest publish under way is answered, for ever where none is; none when a stop was asked for meanwhile. May be cancelled.
    /// What it gives is to be settled.
    pub(crate) async fn answer(&mut self) -> Result<Option<Answers>, Expired> {
        let oldest = async {
            match self.under_way.front_mut() {
                Some(oldest) => oldest.acks.as_mut().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            answers = oldest => Ok(Some(answers)),
            asked = self.stop.next() => asked.map(|()| None),
        }
    }

    /// The same without a wait.
    async fn answer_that_is_there(&mut self) -> Option<Answers> {
        let oldest = self.under_way.front_mut()?;
        tokio::select! {
            biased;
            answers = oldest.acks.as_mut() => Some(answers),
            () = std::future::ready(()) => None,
        }
    }

    async fn settle_next(&mut self) -> Result<(), Expired> {
        match self.answer().await? {
            Some(answers) => self.settle(answers).await,
            None => Ok(()),
        }
    }

    /// Waits until everything under way is acknowledged.
    pub(crate) async fn settle_all(&mut self) -> Result<(), Expired> {
        while !self.under_way.is_empty() {
            self.settle_next().await?;
        }
        Ok(())
    }

    /// Takes answers as they come, until then; a stop that is asked for meanwhile ends it.
    pub(crate) async fn settle_until(&mut self, until: Instant) -> Result<(), Expired> {
        loop {
            let answered = tokio::select! {
                biased;
                answered = self.answer() => answered?,
                () = sleep_until(until) => return Ok(()),
            };
            match answered {
                Some(answers) => self.settle(answers).await?,
                None => return Ok(()),
            }
        }
    }

    /// Takes what the oldest publish under way was answered. Not to be cancelled.
    pub(crate) async fn settle(&mut self, answers: Answers) -> Result<(), Expired> {
        let publishes = self.under_way.len();
        let Some(mut oldest) = self.under_way.pop_front() else { return Ok(()) };
        let stream = oldest.stream;
        let held_back = oldest.outgoing.split_off(oldest.published);
        let sorted = sort(oldest.outgoing, answers);
        if stream == Stream::Ase {
            self.counts.emitted.fetch_add(sorted.taken, Ordering::Relaxed);
        }
        for (out, refusal) in sorted.refused {
            tracing::error!(%stream, error = %refusal, event_id = %out.event_id, "the bus will never take this message; it goes to the dead letters");
            self.counts.dead_lettered.fetch_add(1, Ordering::Relaxed);
            oldest.letters.push(out.dead_letter(stream, &refusal));
        }
        if sorted.taken > 0 || sorted.refusal.is_none() {
            self.backoff = self.config.min_backoff;
        }
        oldest.outgoing = sorted.left;
        oldest.outgoing.extend(held_back);
        if !oldest.outgoing.is_empty() {
            oldest.published = oldest.outgoing.len();
            if let Some(refusal) = sorted.refusal {
                // Nothing new is begun until this, and all that was begun behind it, is acknowledged.
                self.window.refused();
                self.pause(stream, &refusal, oldest.outgoing.len()).await?;
                if sorted.taken == 0 {
                    oldest.published = oldest.published.min(PROBE);
                }
            }
            oldest.begun = Instant::now();
            oldest.acks = self.begin(stream, &mut oldest.outgoing[..oldest.published]).await?;
            self.under_way.push_front(oldest);
            return Ok(());
        }
        self.window.acknowledged(publishes, oldest.begun.elapsed());
        self.bury(oldest.letters).await?;
        if let Some(row) = oldest.passes {
            self.passed(row).await;
        }
        Ok(())
    }

    async fn passed(&mut self, row: i64) {
        // INVARIANT: rows are passed in their order, each behind all that was begun before it.
        debug_assert!(row >= self.shipped, "row {row} was passed behind {}", self.shipped);
        self.shipped = row;
        self.ledger.mark_shipped(row).await;
    }

    /// Publishes dead letters, and waits until the bus has them.
    async fn bury(&mut self, mut letters: Vec<Outgoing>) -> Result<(), Expired> {
        while !letters.is_empty() {
            let messages = letters.iter().map(|letter| letter.message.clone()).collect();
            let answers = self.stop.before(self.bus.publish(Stream::Dlq, messages)).await?;
            let sorted = sort(letters, answers);
            for (letter, error) in sorted.refused {
                tracing::error!(%error, event_id = %letter.event_id, row = letter.row, "not even a dead letter could be published; the ledger has the event");
            }
            letters = sorted.left;
            if let Some(refusal) = sorted.refusal {
                self.pause(Stream::Dlq, &refusal, letters.len()).await?;
            }
        }
        Ok(())
    }

    /// Waits after a refusal, longer with each further one. A stop shortens it once.
    async fn pause(&mut self, stream: Stream, refusal: &BusError, waiting: usize) -> Result<(), Expired> {
        self.counts.retries.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(%stream, error = %refusal, waiting, "the bus does not take events now; the ledger keeps them");
        let until = Instant::now() + self.backoff;
        self.backoff = (self.backoff * 2).min(self.config.max_backoff);
        tokio::select! {
            () = sleep_until(until) => {}
            asked = self.stop.next() => {
                asked?;
                self.backoff = self.config.min_backoff;
            }
        }
        Ok(())
    }
}

/// What became of messages.
struct Sorted {
    taken: u64,
    /// To be published again, in order.
    left: Vec<Outgoing>,
    /// Why the first of those was not taken.
    refusal: Option<BusError>,
    /// Those that the bus will never take.
    refused: Vec<(Outgoing, BusError)>,
}

/// Puts messages together with their answers. One without an answer was not taken.
fn sort(outgoing: Vec<Outgoing>, answers: Answers) -> Sorted {
    let mut sorted = Sorted { taken: 0, left: Vec::new(), refusal: None, refused: Vec::new() };
    let mut answers = answers.into_iter();
    for out in outgoing {
        let no_answer = || Err(BusError::Unavailable { reason: "no answer to a publish".to_owned() });
        match answers.next().unwrap_or_else(no_answer) {
            Ok(_) => sorted.taken += 1,
            Err(refusal) if refusal.is_retryable() => {
                sorted.refusal.get_or_insert(refusal);
                sorted.left.push(out);
            }
            Err(refusal) => sorted.refused.push((out, refusal)),
        }
    }
    sorted
}
