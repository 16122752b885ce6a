//! The loop: what is to be shipped next, and when. Rows come from the ring as long as they follow one another; a jump means that the ring had no
//! room and the outbox has more.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use aegis_bus::{Bus, Stream};
use aegis_ledger::{Ledger, OutboxItem, QuietLane, SealedReceiver};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

use crate::again::Stretch;
use crate::letter::Outgoing;
use crate::pipe::Pipe;
use crate::stop::{Expired, Stop};
use crate::{Counts, ShipperConfig};

/// A publish of this many events says that the ledger is busy.
const BUSY: usize = 64;

/// Receipts that one request brings again; whoever lacks more asks for the rest.
const MOST_AGAIN: usize = 10_000;

/// Lanes that are shipped ahead of the others at a time.
const MOST_QUIET: usize = 10_000;

struct Task {
    ledger: Ledger,
    config: ShipperConfig,
    counts: Arc<Counts>,
    /// None when there is none, or when the ledger's writer is gone.
    ring: Option<SealedReceiver>,
    /// An item of the ring that did not follow the last one.
    held: Option<OutboxItem>,
    /// The last row up to which all messages are under way, or acknowledged.
    begun: i64,
    /// Behind it, by lane: up to which seq they are too.
    ahead: HashMap<String, i64>,
    /// When lanes were looked for last that have little to ship.
    looked: Option<Instant>,
    /// What is to be shipped again.
    asked: mpsc::Receiver<Stretch>,
    /// Something was shipped again last.
    new_is_next: bool,
    pipe: Pipe,
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
    let acknowledged = ledger.shipped_row().await;
    let shipped = config.kept_to.map_or(acknowledged, |kept_to| kept_to.min(acknowledged));
    if shipped < acknowledged {
        tracing::warn!(
            from = shipped + 1,
            to = acknowledged,
            "the bus does not know these rows in their places; they are shipped again"
        );
    }
    let stop = Stop::new(stopping, config.drain);
    let pipe = Pipe::new(ledger.clone(), bus, config.clone(), Arc::clone(&counts), shipped, stop);
    let mut task = Task {
        ledger,
        config,
        counts,
        ring,
        held: None,
        begun: shipped,
        ahead: HashMap::new(),
        looked: None,
        asked,
        new_is_next: false,
        pipe,
    };
    let _done_or_expired = task.ship_all().await;
    if task.ledger.last_row() > task.pipe.shipped() {
        tracing::warn!(
            backlog = task.ledger.backlog(),
            "the shipper stopped before everything was shipped; the next start goes on"
        );
    }
}

impl Task {
    /// Ships until a stop, and then what is there.
    async fn ship_all(&mut self) -> Result<(), Expired> {
        while let Some(items) = self.next_items().await? {
            if items.is_empty() {
                self.ship_again().await?;
                continue;
            }
            let spacing = if items.len() < BUSY { self.config.spacing } else { self.config.busy_spacing };
            let next = Instant::now() + spacing;
            self.ship(items).await?;
            // Events gather until the next publish is due; a stop does not wait for that.
            if !self.pipe.is_stopping()? {
                self.pipe.settle_until(next).await?;
            }
        }
        Ok(())
    }

    /// The rows that follow, or none if something is to be shipped again; None when a stop was asked for and nothing is left.
    async fn next_items(&mut self) -> Result<Option<Vec<OutboxItem>>, Expired> {
        let mut backoff = self.config.min_backoff;
        loop {
            let is_stopping = self.pipe.is_stopping()?;
            // In turn with what is new, so that nobody who asks holds that up.
            if !is_stopping && !self.asked.is_empty() && !std::mem::take(&mut self.new_is_next) {
                return Ok(Some(Vec::new()));
            }
            let items = self.take_from_ring();
            if !items.is_empty() {
                return Ok(Some(items));
            }
            let last_row = self.ledger.last_row();
            if last_row > self.begun {
                if !is_stopping {
                    self.ship_quiet_lanes(last_row).await?;
                }
                match self.ledger.read_outbox(self.begun, self.config.batch).await {
                    Ok(items) if !items.is_empty() => return Ok(Some(items)),
                    // Numbers without a readable row: nothing to ship up to there.
                    Ok(_) => {
                        self.begun = last_row;
                        self.pipe.pass(last_row).await;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the outbox cannot be read; trying again");
                        self.pipe.settle_until(Instant::now() + backoff).await?;
                        backoff = (backoff * 2).min(self.config.max_backoff);
                    }
                }
                continue;
            }
            self.ahead.clear();
            if !is_stopping {
                self.wait_for_work().await?;
            } else if self.pipe.is_empty() {
                return Ok(None);
            } else {
                self.pipe.settle_all().await?;
            }
        }
    }

    /// What the ring holds, as far as it goes on from the last row that is under way without a jump.
    fn take_from_ring(&mut self) -> Vec<OutboxItem> {
        let waiting = self.ring.as_ref().map_or(0, SealedReceiver::waiting) + usize::from(self.held.is_some());
        let mut items = Vec::with_capacity(waiting.min(self.config.batch));
        let mut last_row = self.begun;
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

    /// Waits for an event, or an acknowledgement; not where somebody asks for something again.
    async fn wait_for_work(&mut self) -> Result<(), Expired> {
        if !self.asked.is_empty() {
            return Ok(());
        }
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
            answered = self.pipe.answer() => if let Some(answers) = answered? {
                self.pipe.settle(answers).await?;
            },
            // The ring may have had no room for the last row before a pause.
            () = sleep(self.config.idle_check) => {}
        }
        Ok(())
    }

    async fn ship(&mut self, items: Vec<OutboxItem>) -> Result<(), Expired> {
        let Some(last_row) = items.last().map(|item| item.row) else { return Ok(()) };
        let is_ahead = |item: &OutboxItem| self.ahead.get(&item.sealed.lane).is_some_and(|seq| item.sealed.seq <= *seq);
        let items = items.into_iter().filter(|item| !is_ahead(item)).collect();
        self.send(items, Some(last_row)).await?;
        self.begun = last_row;
        Ok(())
    }

    /// Begins to publish items; behind them everything up to the row `passes` is shipped.
    async fn send(&mut self, items: Vec<OutboxItem>, passes: Option<i64>) -> Result<(), Expired> {
        if items.iter().any(|item| item.frozen.is_some()) {
            // An approval that can be decided must be there before anyone reads that it was asked for.
            self.pipe.send(Stream::Approvals, items.iter().filter_map(Outgoing::approval), None).await?;
            self.pipe.settle_all().await?;
        }
        let kept_as = self.config.kept_as.clone();
        let events = items.into_iter().map(|item| Outgoing::event(item, kept_as.as_ref()));
        self.pipe.send(Stream::Ase, events, passes).await
    }

    /// While much waits, now and then first what lanes have that have little: they do not wait behind the others. A bus that reads the ledger
    /// itself knows rows in their order alone, and is next door.
    async fn ship_quiet_lanes(&mut self, last_row: i64) -> Result<(), Expired> {
        let is_much = last_row - self.begun > self.config.batch as i64;
        let is_due = self.looked.is_none_or(|looked| looked.elapsed() >= self.config.quiet_every);
        if !is_much || !is_due || self.config.kept_as.is_some() {
            return Ok(());
        }
        self.looked = Some(Instant::now());
        let lanes = match self.ledger.quiet_lanes(self.begun, self.config.batch, MOST_QUIET).await {
            Ok(lanes) => lanes,
            Err(error) => {
                tracing::warn!(%error, "lanes that have little to ship cannot be looked for; they take their turn");
                return Ok(());
            }
        };
        let (mut items, mut bytes) = (Vec::new(), 0);
        for QuietLane { lane, first_seq, last_seq } in lanes {
            let first_seq = first_seq.max(self.ahead.get(&lane).map_or(i64::MIN, |seq| seq + 1));
            if first_seq > last_seq {
                continue;
            }
            match self.ledger.read_lane(&lane, first_seq, last_seq, self.config.batch).await {
                Ok(found) => {
                    bytes += found.iter().map(OutboxItem::weight).sum::<usize>();
                    items.extend(found);
                }
                Err(error) => tracing::warn!(%error, lane, "a lane that has little to ship cannot be read; it takes its turn"),
            }
            // As much as is held at once otherwise, of however many lanes it is.
            if items.len() >= self.config.batch || bytes >= self.config.batch_bytes {
                bytes = 0;
                self.ship_ahead(std::mem::take(&mut items)).await?;
            }
        }
        self.ship_ahead(items).await
    }

    async fn ship_ahead(&mut self, items: Vec<OutboxItem>) -> Result<(), Expired> {
        let begun: Vec<_> = items.iter().map(|item| (item.sealed.lane.clone(), item.sealed.seq)).collect();
        self.send(items, None).await?;
        self.ahead.extend(begun);
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
            let shipped = items.into_iter().filter(|item| item.row <= self.pipe.shipped());
            let events: Vec<Outgoing> = shipped.map(|item| Outgoing::event(item, kept_as.as_ref())).collect();
            self.counts.again.fetch_add(events.len() as u64, Ordering::Relaxed);
            self.pipe.send(Stream::Ase, events.into_iter(), None).await?;
        }
        Ok(())
    }
}
