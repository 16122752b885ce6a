//! The loop: next rows, publish, mark, again. Rows come from the ring as long as they follow one another; a jump means that the
//! ring had no room and the outbox has more.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aegis_bus::{Bus, BusError, Stream};
use aegis_ledger::{Ledger, OutboxItem, QuietLane, SealedReceiver};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::again::Stretch;
use crate::letter::Outgoing;
use crate::{Counts, ShipperConfig};

/// A publish of this many events says that the ledger is busy.
const BUSY: usize = 64;

/// Receipts that one request brings again; whoever lacks more asks for the rest.
const MOST_AGAIN: usize = 10_000;

/// Lanes that are shipped ahead of the others at a time.
const MOST_QUIET: usize = 10_000;

/// The time to stop has passed.
struct Expired;

struct Task {
    ledger: Ledger,
    bus: Arc<dyn Bus>,
    config: ShipperConfig,
    counts: Arc<Counts>,
    /// None when there is none, or when the ledger's writer is gone.
    ring: Option<SealedReceiver>,
    /// An item of the ring that did not follow the last one.
    held: Option<OutboxItem>,
    /// The last row up to which all messages are acknowledged.
    shipped: i64,
    /// Behind it, by lane: up to which seq they are too.
    ahead: HashMap<String, i64>,
    /// When lanes were looked for last that have little to ship.
    looked: Option<Instant>,
    /// What is to be shipped again.
    asked: mpsc::Receiver<Stretch>,
    /// Something was shipped again last.
    new_is_next: bool,
    stopping: watch::Receiver<bool>,
    /// Set once a stop was asked for.
    deadline: Option<Instant>,
}

pub(crate) async fn run(
    ledger: Ledger,
    bus: Arc<dyn Bus>,
    config: ShipperConfig,
    counts: Arc<Counts>,
    asked: mpsc::Receiver<Stretch>,
    stopping: watch::Receiver<bool>,
) {
    let ring = ledger.take_sealed_receiver();
    if ring.is_none() {
        tracing::warn!("the ledger's ring is taken; shipping from the outbox only");
    }
    let shipped = ledger.shipped_row().await;
    let mut task = Task {
        ledger,
        bus,
        config,
        counts,
        ring,
        held: None,
        shipped,
        ahead: HashMap::new(),
        looked: None,
        asked,
        new_is_next: false,
        stopping,
        deadline: None,
    };
    while let Ok(Some(items)) = task.next_items().await {
        if items.is_empty() {
            if task.ship_again().await.is_err() {
                break;
            }
            continue;
        }
        let spacing = if items.len() < BUSY { task.config.spacing } else { task.config.busy_spacing };
        let next = Instant::now() + spacing;
        if task.ship(items).await.is_err() {
            break;
        }
        task.gather(next).await;
    }
    if task.ledger.last_row() > task.shipped {
        tracing::warn!(
            backlog = task.ledger.backlog(),
            "the shipper stopped before everything was shipped; the next start goes on"
        );
    }
}

impl Task {
    /// The rows that follow, or none if something is to be shipped again; None when a stop was asked for and nothing is left.
    async fn next_items(&mut self) -> Result<Option<Vec<OutboxItem>>, Expired> {
        let mut backoff = self.config.min_backoff;
        loop {
            if *self.stopping.borrow() || self.stopping.has_changed().is_err() {
                self.begin_stop();
            }
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Err(Expired);
            }
            // In turn with what is new, so that nobody who asks holds that up.
            if self.deadline.is_none() && !self.asked.is_empty() && !std::mem::take(&mut self.new_is_next) {
                return Ok(Some(Vec::new()));
            }
            let items = self.take_from_ring();
            if !items.is_empty() {
                return Ok(Some(items));
            }
            let last_row = self.ledger.last_row();
            if last_row > self.shipped {
                self.ship_quiet_lanes(last_row).await?;
                match self.ledger.read_outbox(self.shipped, self.config.batch).await {
                    Ok(items) if !items.is_empty() => return Ok(Some(items)),
                    // Numbers without a readable row: nothing to ship up to there.
                    Ok(_) => self.passed(last_row).await,
                    Err(error) => {
                        tracing::warn!(%error, "the outbox cannot be read; trying again");
                        self.pause(&mut backoff).await?;
                    }
                }
                continue;
            }
            self.ahead.clear();
            if self.deadline.is_some() {
                return Ok(None);
            }
            self.wait_for_work().await;
        }
    }

    /// What the ring holds, as far as it goes on from the last shipped row without a jump.
    fn take_from_ring(&mut self) -> Vec<OutboxItem> {
        let mut items = Vec::new();
        let mut last_row = self.shipped;
        while items.len() < self.config.batch {
            let Some(item) = self.held.take().or_else(|| self.ring.as_mut()?.try_recv().ok()) else { break };
            if item.row <= last_row {
                continue;
            }
            if item.row != last_row + 1 {
                self.held = Some(item);
                break;
            }
            last_row = item.row;
            items.push(item);
        }
        items
    }

    /// Lets events gather until the next publish is due; a stop does not wait for that.
    async fn gather(&mut self, next: Instant) {
        if self.deadline.is_none() {
            tokio::select! {
                () = sleep_until(next) => {}
                _ = self.stopping.changed() => self.begin_stop(),
            }
        }
    }

    async fn wait_for_work(&mut self) {
        let ring = async {
            match &mut self.ring {
                Some(ring) => ring.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            item = ring => match item {
                Some(item) => self.held = Some(item),
                None => self.ring = None,
            },
            // The ring may have had no room for the last row before a pause.
            () = sleep(self.config.idle_check) => {}
            _ = self.stopping.changed() => self.begin_stop(),
        }
    }

    async fn ship(&mut self, items: Vec<OutboxItem>) -> Result<(), Expired> {
        let Some(last_row) = items.last().map(|item| item.row) else { return Ok(()) };
        let is_ahead = |item: &OutboxItem| self.ahead.get(&item.sealed.lane).is_some_and(|seq| item.sealed.seq <= *seq);
        let items = items.into_iter().filter(|item| !is_ahead(item)).collect();
        self.publish_items(items).await?;
        self.passed(last_row).await;
        Ok(())
    }

    async fn publish_items(&mut self, items: Vec<OutboxItem>) -> Result<(), Expired> {
        // An approval that can be decided must be there before anyone reads that it was asked for.
        self.publish(Stream::Approvals, items.iter().filter_map(Outgoing::approval).collect()).await?;
        let kept_as = self.config.kept_as.clone();
        let events = items.into_iter().map(|item| Outgoing::event(item, kept_as.as_ref())).collect();
        self.publish(Stream::Ase, events).await
    }

    /// While much waits, now and then first what lanes have that have little: they do not wait behind the others. A bus that reads the ledger
    /// itself knows rows in their order alone, and is next door.
    async fn ship_quiet_lanes(&mut self, last_row: i64) -> Result<(), Expired> {
        let is_much = last_row - self.shipped > self.config.batch as i64;
        let is_due = self.looked.is_none_or(|looked| looked.elapsed() >= self.config.quiet_every);
        if !is_much || !is_due || self.config.kept_as.is_some() || self.deadline.is_some() {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        let lanes = match self.ledger.quiet_lanes(self.shipped, self.config.batch, MOST_QUIET).await {
            Ok(lanes) => lanes,
            Err(error) => {
                tracing::warn!(%error, "lanes that have little to ship cannot be looked for; they take their turn");
                return Ok(());
            }
        };
        let mut items = Vec::new();
        for QuietLane { lane, first_seq, last_seq } in lanes {
            let first_seq = first_seq.max(self.ahead.get(&lane).map_or(i64::MIN, |seq| seq + 1));
            if first_seq > last_seq {
                continue;
            }
            match self.ledger.read_lane(&lane, first_seq, last_seq, self.config.batch).await {
                Ok(found) => items.extend(found),
                Err(error) => tracing::warn!(%error, lane, "a lane that has little to ship cannot be read; it takes its turn"),
            }
            if items.len() >= self.config.batch {
                self.ship_ahead(std::mem::take(&mut items)).await?;
            }
        }
        self.ship_ahead(items).await
    }

    async fn ship_ahead(&mut self, items: Vec<OutboxItem>) -> Result<(), Expired> {
        let shipped: Vec<_> = items.iter().map(|item| (item.sealed.lane.clone(), item.sealed.seq)).collect();
        self.publish_items(items).await?;
        self.ahead.extend(shipped);
        Ok(())
    }

    /// Ships one stretch of a lane again, up to a bound. What is not shipped yet is left to its turn.
    async fn ship_again(&mut self) -> Result<(), Expired> {
        self.new_is_next = true;
        let Ok(Stretch { lane, mut from_seq, to_seq }) = self.asked.try_recv() else { return Ok(()) };
        let mut left = MOST_AGAIN;
        while from_seq <= to_seq && left > 0 {
            let items = match self.ledger.read_lane(&lane, from_seq, to_seq, self.config.batch.min(left)).await {
                Ok(items) => items,
                Err(error) => {
                    tracing::error!(%error, lane, "receipts that are missing behind the bus cannot be read");
                    return Ok(());
                }
            };
            let Some(last) = items.last() else { break };
            from_seq = last.sealed.seq + 1;
            left -= items.len();
            let kept_as = self.config.kept_as.clone();
            let shipped = items.into_iter().filter(|item| item.row <= self.shipped);
            let events: Vec<Outgoing> = shipped.map(|item| Outgoing::event(item, kept_as.as_ref())).collect();
            self.counts.again.fetch_add(events.len() as u64, Ordering::Relaxed);
            self.publish(Stream::Ase, events).await?;
        }
        Ok(())
    }

    async fn passed(&mut self, row: i64) {
        self.shipped = row;
        self.ledger.mark_shipped(row).await;
    }

    /// Publishes until every message is acknowledged, or is a dead letter.
    async fn publish(&mut self, stream: Stream, outgoing: Vec<Outgoing>) -> Result<(), Expired> {
        let letters = self.publish_stream(stream, outgoing).await?;
        let refused = self.publish_stream(Stream::Dlq, letters).await?;
        for letter in refused {
            tracing::error!(event_id = %letter.event_id, row = letter.row, "not even a dead letter could be published; the ledger has the event");
        }
        Ok(())
    }

    /// Publishes to one stream, waiting while it is full or gone; returns dead letters of what it will never take.
    async fn publish_stream(&mut self, stream: Stream, mut outgoing: Vec<Outgoing>) -> Result<Vec<Outgoing>, Expired> {
        let mut letters = Vec::new();
        let mut backoff = self.config.min_backoff;
        while !outgoing.is_empty() {
            let messages = outgoing.iter().map(|o| o.message.clone()).collect();
            let mut results = self.bus.publish(stream, messages).await.into_iter();
            let sent = outgoing.len();
            let mut left = Vec::new();
            let mut first_refusal = None;
            for out in outgoing {
                let no_answer = || Err(BusError::Unavailable { reason: "no answer to a publish".to_owned() });
                match results.next().unwrap_or_else(no_answer) {
                    Ok(_) if stream == Stream::Ase => _ = self.counts.emitted.fetch_add(1, Ordering::Relaxed),
                    Ok(_) => {}
                    Err(refusal) if refusal.is_retryable() => {
                        first_refusal.get_or_insert(refusal);
                        left.push(out);
                    }
                    Err(refusal) => {
                        tracing::error!(%stream, error = %refusal, event_id = %out.event_id, "the bus will never take this message; it goes to the dead letters");
                        self.counts.dead_lettered.fetch_add(1, Ordering::Relaxed);
                        letters.push(out.dead_letter(stream, &refusal));
                    }
                }
            }
            if left.len() < sent {
                backoff = self.config.min_backoff;
            }
            if let Some(refusal) = first_refusal {
                self.counts.retries.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%stream, error = %refusal, waiting = left.len(), "the bus does not take events now; the ledger keeps them");
                self.pause(&mut backoff).await?;
            }
            outgoing = left;
        }
        Ok(letters)
    }

    /// Waits, and doubles the next wait. A stop shortens it once and sets the deadline; past it, nothing more is tried.
    async fn pause(&mut self, backoff: &mut Duration) -> Result<(), Expired> {
        let until = Instant::now() + *backoff;
        *backoff = (*backoff * 2).min(self.config.max_backoff);
        match self.deadline {
            Some(deadline) if Instant::now() >= deadline => return Err(Expired),
            Some(deadline) => sleep_until(until.min(deadline)).await,
            None => tokio::select! {
                () = sleep_until(until) => {}
                _ = self.stopping.changed() => {
                    self.begin_stop();
                    *backoff = self.config.min_backoff;
                }
            },
        }
        Ok(())
    }

    /// Also when the handle was dropped: then nobody waits, but what is there is still shipped.
    fn begin_stop(&mut self) {
        self.deadline.get_or_insert(Instant::now() + self.config.drain);
    }
}
