//! The writer: the one task that gives drafts their place, and the only one that writes. It takes what waits as one group, seals
//! it, commits it in one transaction, and only then answers. Never answers before the disk has it (L-DURABLE).

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aegis_model::{Clock, TenantId};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use crate::LedgerError;
use crate::commit::{Disk, WriteError};
use crate::config::LedgerConfig;
use crate::draft::{Committed, Draft, Durability, Submission};
use crate::gather::Gathering;
use crate::lifecycle::LANES_PER_COMMIT;
use crate::loss::Loss;
use crate::prune::prune;
use crate::ring::{Durable, Slot};
use crate::rows::FROZEN_WEIGHT;
use crate::seal::{SealedBatch, Sealer};
use crate::shared::{Command, Shared};

/// How long an idle writer lets a new shipped position wait before it writes it alone: any commit takes it along.
const SHIPPED_IDLE: Duration = Duration::from_millis(200);

/// Why what would commit is not even tried.
const LOG_IN_DOUBT: &str = "the disk gave an error, and the ledger's log is not in order again yet; ask again";

/// Receipts that are sealed before others of the runtime have a turn, while nobody waits for one: an answer is not held up by them.
const SEALED_AT_ONCE: usize = 16;

pub(crate) struct Writer {
    pub(crate) disk: Disk,
    pub(crate) sealer: Sealer,
    pub(crate) shared: Arc<Shared>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) config: LedgerConfig,
    pub(crate) queue: mpsc::Receiver<Submission>,
    pub(crate) commands: mpsc::Receiver<Command>,
    /// When a disk that did not take a write is tried again.
    pub(crate) try_again_at: Option<Instant>,
    /// Best-effort drafts that wait for the disk to come back.
    pub(crate) retry: VecDeque<Submission>,
    /// A batch whose COMMIT gave an error, and of which it is not known whether it is on the disk.
    pub(crate) in_doubt: Option<SealedBatch>,
    pub(crate) closed: bool,
    pub(crate) checkpointer: JoinHandle<()>,
    /// Bytes of rows' texts written since the checkpointer was woken.
    pub(crate) log_bytes: usize,
    /// Groups written since it was looked how long the log is.
    pub(crate) groups_since_look: u32,
    pub(crate) gathering: Gathering,
    /// Held for as long as this writer may write.
    pub(crate) _lock: File,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.checkpointer.abort();
        self.shared.counters.writable.store(false, Ordering::Release);
    }
}

impl Writer {
    /// Serves until every handle is gone. Then it writes what still waits and goes; it closes lanes only when asked to.
    pub(crate) async fn run(mut self) {
        let mut group = Vec::new();
        let shared = Arc::clone(&self.shared);
        loop {
            self.note_when_to_try_again();
            let idle_work = self.idle_work();
            self.gathering.wait(&shared.hurry, &self.queue, self.config.max_batch).await;
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => break,
                },
                // Before the queue: what comes in while the disk is away must not put off the next try.
                () = wait_until(self.try_again_at), if self.try_again_at.is_some() => {
                    self.try_again_at = None;
                    self.catch_up().await;
                }
                _ = self.queue.recv_many(&mut group, self.config.max_batch), if !self.queue.is_closed() || !self.queue.is_empty() => {
                    shared.hurry.taken(&self.queue);
                    self.gathering.took(group.len());
                    self.take(std::mem::take(&mut group)).await;
                    self.shorten_log().await;
                }
                () = shared.wake.notified() => {}
                () = sleep(SHIPPED_IDLE), if idle_work => self.catch_up().await,
            }
        }
        self.drain().await;
        self.catch_up().await;
    }

    /// While the disk does not take what waits, there is one moment at which it is tried again, whatever else comes.
    fn note_when_to_try_again(&mut self) {
        if self.writable() && self.retry.is_empty() {
            self.try_again_at = None;
        } else {
            self.try_again_at.get_or_insert_with(|| Instant::now() + self.config.retry_interval);
        }
    }

    /// Whether `catch_up` has something to do when nothing else comes; any commit does it along.
    fn idle_work(&self) -> bool {
        self.disk.shipped_is_behind(&self.shared.counters) || (!self.closed && !self.shared.losses.is_empty())
    }

    pub(crate) fn writable(&self) -> bool {
        self.shared.counters.writable.load(Ordering::Acquire) && !self.is_checkpoint_refused()
    }

    fn is_checkpoint_refused(&self) -> bool {
        self.shared.checkpoint_refused.load(Ordering::Acquire)
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Close(reply) => {
                let closed = self.close().await;
                let _ = reply.send(closed);
            }
            // A commit that succeeded would count what was refused before it.
            Command::Shred(_, reply) if self.is_disk_in_doubt() => {
                let _ = reply.send(Err(LedgerError::Unavailable(LOG_IN_DOUBT.to_owned())));
            }
            Command::Prune(_, reply) if self.is_disk_in_doubt() => {
                let _ = reply.send(Err(LedgerError::Unavailable(LOG_IN_DOUBT.to_owned())));
            }
            Command::Shred(tenant, reply) => {
                let shredded = self.shred(&tenant).await;
                self.heed_the_disk();
                let _ = reply.send(shredded);
            }
            Command::Prune(what, reply) => {
                // Nothing is pruned that the file does not have as shipped.
                if self.writable() && self.disk.shipped_is_behind(&self.shared.counters) {
                    self.commit(Vec::new()).await;
                }
                // The commit before it may have failed.
                if self.is_disk_in_doubt() {
                    let _ = reply.send(Err(LedgerError::Unavailable(LOG_IN_DOUBT.to_owned())));
                    return;
                }
                let pruned = prune(&mut self.disk.connection, &what, self.disk.shipped).await;
                if let Err(error) = &pruned {
                    self.disk.note(error);
                    self.heed_the_disk();
                }
                if pruned.as_ref().is_ok_and(|rows| *rows > 0) {
                    self.shared.was_pruned.store(true, Ordering::Release);
                }
                let _ = reply.send(pruned.map_err(|error| LedgerError::Unavailable(error.to_string())));
            }
        }
    }

    /// True behind an error of the disk, until it has taken again what it refused: nothing is committed.
    fn is_disk_in_doubt(&self) -> bool {
        self.disk.log_in_doubt || self.is_checkpoint_refused()
    }

    /// The ledger says that it does not write where the disk is in doubt.
    fn heed_the_disk(&self) {
        if self.is_disk_in_doubt() {
            self.set_writable(false);
        }
    }

    async fn shred(&mut self, tenant: &TenantId) -> Result<(), LedgerError> {
        self.disk.delete_commitment_key(tenant).await?;
        self.sealer.commitment_keys.0.remove(tenant);
        let emptied = self.disk.truncate_log().await;
        if self.disk.log_in_doubt {
            self.shared.checkpoint_failed(true);
        }
        emptied
    }

    /// Takes a group from the queue. While the disk is known not to take writes, only the timer tries it.
    async fn take(&mut self, group: Vec<Submission>) {
        if self.writable() {
            self.commit(group).await;
        } else {
            self.fail(group, "the last commit failed and none has succeeded since");
        }
    }

    /// Writes what is left in the queue.
    pub(crate) async fn drain(&mut self) {
        self.queue.close();
        loop {
            let mut group = Vec::new();
            if self.queue.recv_many(&mut group, self.config.max_batch).await == 0 {
                return;
            }
            self.take(group).await;
        }
    }

    /// What the timer does: tries a disk that failed, and writes what waits: kept drafts, losses, the shipped position.
    pub(crate) async fn catch_up(&mut self) {
        if !self.writable() && !self.is_disk_well().await {
            return;
        }
        self.set_writable(true);
        while self.writable() {
            let next = self.retry.len().min(self.config.max_batch);
            let group: Vec<Submission> = self.retry.drain(..next).collect();
            let more = !self.retry.is_empty() || (!self.closed && !self.shared.losses.is_empty());
            if group.is_empty() && !more && !self.disk.shipped_is_behind(&self.shared.counters) {
                return;
            }
            self.commit(group).await;
        }
    }

    /// Tries a disk that failed: the commit of which nothing is known, the checkpoint that it refused, and a write. The write last: a log that cannot be
    /// copied only grows by it.
    async fn is_disk_well(&mut self) -> bool {
        if self.disk.put_log_in_order().await.is_err() || self.settle_doubt().await.is_err() {
            return false;
        }
        if self.is_checkpoint_refused() {
            if !self.checkpoint().await {
                return false;
            }
            self.shared.checkpoint_refused.store(false, Ordering::Release);
        }
        self.disk.probe().await.is_ok()
    }

    pub(crate) fn set_writable(&self, writable: bool) {
        // What the checkpointer met while a commit was under way is not forgotten by that.
        let writable = writable && !self.is_checkpoint_refused();
        let was = self.shared.counters.writable.swap(writable, Ordering::AcqRel);
        match (was, writable) {
            (true, false) => tracing::error!(ledger = %self.config.path.display(), "the ledger cannot write"),
            (false, true) => tracing::info!(ledger = %self.config.path.display(), "the ledger can write again"),
            _ => {}
        }
    }

    /// Seals and commits a group, with the gaps that earlier losses need, and answers every waiter.
    async fn commit(&mut self, mut group: Vec<Submission>) {
        loop {
            let losses = if self.closed { Vec::new() } else { self.shared.losses.take(LANES_PER_COMMIT) };
            let (sealed, places) = self.seal(&mut group, &losses).await;
            if sealed.is_none() && !self.disk.shipped_is_behind(&self.shared.counters) {
                return;
            }
            let started = Instant::now();
            match self.disk.write(sealed.as_ref(), &self.shared.counters, self.clock.now()).await {
                Ok(()) => {
                    if let Some(sealed) = sealed {
                        self.shared.counters.committed(sealed.rows.len() as u64, started.elapsed());
                        self.acknowledge(sealed, group, places);
                    }
                    self.set_writable(true);
                    return;
                }
                Err(error) => {
                    self.put_back(losses);
                    let reason = match error {
                        WriteError::Duplicate => {
                            let before = group.len();
                            self.reject_duplicates(&mut group).await;
                            if group.len() < before {
                                continue;
                            }
                            "a receipt is there twice, and cannot be told apart".to_owned()
                        }
                        WriteError::Failed(reason) => reason,
                        WriteError::InDoubt(reason) => {
                            self.in_doubt = sealed;
                            reason
                        }
                    };
                    self.shared.counters.failed_commits.fetch_add(1, Ordering::Relaxed);
                    self.fail(group, &reason);
                    return;
                }
            }
        }
    }

    /// Seals gaps first, then the group. What cannot be sealed is answered and leaves the group alone.
    async fn seal(&mut self, group: &mut Vec<Submission>, losses: &[(TenantId, Loss)]) -> (Option<SealedBatch>, Vec<usize>) {
        self.sealer.note_time(self.shared.latest());
        let mut batch = self.sealer.batch(self.clock.now());
        batch.make_room(losses.len() + group.len());
        for (tenant, loss) in losses {
            if let Err(error) = batch.gap_after_loss(tenant, loss) {
                tracing::error!(%tenant, %error, "a gap receipt could not be sealed");
            }
        }
        let nobody_waits = group.iter().all(|submission| submission.durability == Durability::BestEffort);
        let mut places = Vec::with_capacity(group.len());
        let mut kept = Vec::with_capacity(group.len());
        for (index, submission) in group.drain(..).enumerate() {
            if index % SEALED_AT_ONCE == SEALED_AT_ONCE - 1 && nobody_waits && !self.shared.hurry.is_said() {
                tokio::task::yield_now().await;
            }
            match batch.seal(&submission.draft) {
                Ok(place) => {
                    places.push(place);
                    kept.push(submission);
                }
                Err(error) => {
                    tracing::warn!(event_id = %submission.draft.event.event_id, %error, "a draft was refused");
                    let _ = submission.reply.send(Err(error));
                }
            }
        }
        *group = kept;
        (batch.finish(), places)
    }

    /// The batch is durable: the state moves on, the waiters wake, the ring gets what it has room for.
    pub(crate) fn acknowledge(&mut self, mut sealed: SealedBatch, group: Vec<Submission>, places: Vec<usize>) {
        self.sealer.adopt(&sealed);
        self.log_bytes += sealed.rows.iter().map(|row| row.event.len() + row.stored().len()).sum::<usize>();
        if let Some(last) = sealed.rows.last() {
            self.shared.counters.last_row.store(last.row, Ordering::Release);
        }
        // Of gaps, and of lanes' beginnings, there is none.
        let mut drafts: Vec<Option<Box<Draft>>> = sealed.rows.iter().map(|_| None).collect();
        for (submission, place) in group.into_iter().zip(places) {
            let Submission { draft, reply, .. } = submission;
            let row = &sealed.rows[place];
            drafts[place] = Some(draft);
            // Nobody waits for a harmless read's.
            if reply.is_closed() {
                continue;
            }
            let committed = Committed {
                event_id: row.event_id,
                lane: str::to_owned(&row.lane),
                seq: row.seq,
                receipt_hash: str::to_owned(&row.receipt_hash_hex),
                prev_receipt_hash: str::to_owned(&row.prev_receipt_hash),
                ts: row.ts,
            };
            let _ = reply.send(Ok(committed));
        }
        let ring = self.shared.ring.lock().clone();
        let Some(ring) = ring else { return };
        let bytes = sealed.rows.iter().map(|row| row.event.len() + row.receipt.len()).sum::<usize>();
        let frozen_bytes = sealed.rows.iter().filter_map(|row| row.frozen.as_ref()).map(|row| row.json.len()).sum::<usize>();
        let events = drafts.iter().flatten().map(|draft| draft.event.weight()).sum::<usize>();
        let Some(weight) = self.shared.ring_weight.add(bytes + events + FROZEN_WEIGHT * frozen_bytes) else { return };
        for row in &mut sealed.rows {
            // It stands in the slot, once; this text holds raw parameters.
            row.frozen = None;
            // The disk has it, and the ring the body itself.
            row.kept = None;
        }
        for draft in drafts.iter_mut().flatten() {
            // Raw parameters, and what the receipt has as text: nobody has a use for them any more.
            (draft.input, draft.output, draft.detail) = (None, None, None);
        }
        let durable = Arc::new(Durable { commit: sealed.commit, rows: sealed.rows, _weight: weight });
        for (place, draft) in drafts.into_iter().enumerate() {
            if ring.try_send(Slot { of: Arc::clone(&durable), place, draft }).is_err() {
                // Full: whoever reads it sees the gap in `row` and reads the outbox.
                return;
            }
        }
    }

    /// Nothing of the group was written. Required drafts end here; best-effort ones wait, as far as there is room.
    fn fail(&mut self, group: Vec<Submission>, reason: &str) {
        self.set_writable(false);
        let now = self.clock.now();
        for submission in group {
            let tenant = submission.draft.event.tenant_id.clone();
            match submission.durability {
                Durability::BestEffort if self.retry.len() < self.config.best_effort_capacity => {
                    self.retry.push_back(submission);
                    continue;
                }
                Durability::BestEffort => {
                    self.shared.counters.dropped.fetch_add(1, Ordering::Relaxed);
                    self.shared.losses.dropped(&tenant, true, now);
                }
                Durability::Required => self.shared.losses.refused(&tenant, now),
            }
            let _ = submission.reply.send(Err(LedgerError::Unavailable(reason.to_owned())));
        }
    }

    fn put_back(&self, losses: Vec<(TenantId, Loss)>) {
        for (tenant, loss) in losses {
            self.shared.losses.add(&tenant, loss);
        }
    }

    /// Answers the drafts whose event already has a receipt, and takes them out of the group.
    async fn reject_duplicates(&mut self, group: &mut Vec<Submission>) {
        let mut kept = Vec::with_capacity(group.len());
        for submission in group.drain(..) {
            let event = &submission.draft.event;
            match self.disk.has_receipt(&event.tenant_id, event.event_id).await {
                Ok(true) => {
                    let event_id = event.event_id;
                    let _ = submission.reply.send(Err(LedgerError::Duplicate { event_id }));
                }
                Ok(false) | Err(_) => kept.push(submission),
            }
        }
        *group = kept;
    }

    /// Finds out whether the batch in doubt is on the disk, and if so goes on from it. Its waiters were told that it is not:
    /// the gap that follows says that receipts may be there of actions that were refused.
    async fn settle_doubt(&mut self) -> Result<(), LedgerError> {
        let Some(batch) = &self.in_doubt else { return Ok(()) };
        let durable = self.disk.settle(batch.commit.commit_id).await?;
        if durable {
            self.sealer.adopt(batch);
            if let Some(last) = batch.rows.last() {
                self.shared.counters.last_row.store(last.row, Ordering::Release);
            }
        }
        self.in_doubt = None;
        Ok(())
    }
}

/// Ends at `moment`, never without one.
async fn wait_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
