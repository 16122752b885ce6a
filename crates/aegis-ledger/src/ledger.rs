//! The handle: what the rest of the program sees of a ledger. Submitting never blocks; reading (see `read`) goes over its own
//! connections and never waits for the writer. Dropping every handle without `close` is a stop like a crash: the next start says so.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use aegis_keys::SigningKey;
use aegis_model::{Clock, TenantId, Timestamp};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use sqlx::sqlite::SqlitePoolOptions;
use sqlx::{Connection, SqliteConnection, SqlitePool};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::checkpoint::checkpoint;
use crate::commit::Disk;
use crate::config::LedgerConfig;
use crate::draft::{Committed, Draft, Durability, PendingReceipt, Submission};
use crate::entropy::Entropy;
use crate::error::{LedgerError, SubmitError, read_error};
use crate::gather::Gathering;
use crate::lane::Identity;
use crate::prune::{Prunable, take_up_marks};
use crate::recovery;
use crate::ring::{SealedReceiver, Slot};
use crate::schema;
use crate::seal::Sealer;
use crate::shared::{Command, Shared};
use crate::stats::LedgerStats;
use crate::writer::Writer;

/// Connections that read.
const READERS: u32 = 3;

/// Rows that one read returns at most.
pub const MAX_READ: usize = 10_000;

/// A ledger of receipts. Cheap to clone; all clones are one ledger.
#[derive(Clone, Debug)]
pub struct Ledger {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    queue: mpsc::Sender<Submission>,
    commands: mpsc::Sender<Command>,
    ring: Mutex<Option<(mpsc::Sender<Slot>, mpsc::Receiver<Slot>)>>,
    pub(crate) readers: SqlitePool,
    /// For `read_outbox` alone.
    pub(crate) outbox_reader: SqlitePool,
    /// For `read_kept` alone: who reads the past holds up no shipping.
    pub(crate) kept_reader: SqlitePool,
    /// As many waiting receipts are not let wait for more.
    enough: usize,
    lane_suffix: String,
}

impl Ledger {
    /// Opens the ledger, makes it if there is none, and recovers what the last start left: lanes without a `close` get a
    /// successor whose second receipt is a `gap`.
    pub async fn open(config: LedgerConfig, key: SigningKey, clock: Arc<dyn Clock>) -> Result<Self, LedgerError> {
        Self::opening(config, key, clock).await
    }

    /// A function that is no future itself, so that everything behind it is compiled in this crate, and not in every program that opens a ledger.
    #[inline(never)]
    fn opening(config: LedgerConfig, key: SigningKey, clock: Arc<dyn Clock>) -> BoxFuture<'static, Result<Self, LedgerError>> {
        Box::pin(Self::open_here(config, key, clock))
    }

    async fn open_here(config: LedgerConfig, key: SigningKey, clock: Arc<dyn Clock>) -> Result<Self, LedgerError> {
        config.check()?;
        let lock = schema::lock(&config.path, config.lock_wait).await?;
        let mut connection = schema::open(&config.path).await?;
        let recovered = recovery::recover(&mut connection, &config.path, &key).await?;

        let mut entropy = Entropy::new(config.hooks.seed);
        let identity =
            Identity { edge_id: config.edge_id.clone(), source: config.source.clone(), epoch: entropy.boot_epoch(clock.now())? };
        let lane_suffix = format!(".{}.{}", identity.edge_id, identity.epoch);
        let sealer = Sealer {
            identity,
            key,
            entropy,
            lanes: std::collections::HashMap::new(),
            predecessors: recovered.predecessors,
            commitment_keys: recovered.commitment_keys,
            next_row: recovered.next_row,
            next_commit_id: recovered.next_commit_id,
            next_lane_no: recovered.next_lane_no,
            latest: Timestamp::default(),
        };
        let shared = Arc::new(Shared::default());
        shared.counters.last_row.store(recovered.next_row - 1, Ordering::Release);
        shared.counters.shipped_row.store(recovered.shipped, Ordering::Release);
        shared.counters.writable.store(true, Ordering::Release);
        let was_pruned = match take_up_marks(&mut connection).await {
            Ok(was_pruned) => was_pruned,
            Err(error) => return Err(schema::start_error(&mut connection, &config.path, &error).await),
        };
        shared.was_pruned.store(was_pruned, Ordering::Release);

        let (queue, queued) = mpsc::channel(config.queue_capacity);
        let (commands, commanded) = mpsc::channel(COMMANDS);
        let ring = mpsc::channel(config.ring_capacity);
        let mut writer = Writer {
            disk: Disk {
                path: config.path.clone(),
                connection,
                shipped: recovered.shipped,
                shipped_at: Instant::now(),
                log_in_doubt: false,
                hooks: config.hooks.clone(),
            },
            sealer,
            shared: Arc::clone(&shared),
            clock: Arc::clone(&clock),
            queue: queued,
            commands: commanded,
            retry: std::collections::VecDeque::new(),
            try_again_at: None,
            in_doubt: None,
            closed: false,
            checkpointer: tokio::spawn(checkpoint(config.path.clone(), Arc::clone(&shared))),
            log_bytes: 0,
            groups_since_look: 0,
            gathering: Gathering::default(),
            _lock: lock,
            config: config.clone(),
        };
        writer.succeed_unclean_lanes(recovered.unclean).await?;
        tokio::spawn(writer.run());

        let reading = |connections| {
            let options = schema::options(&config.path).pragma("query_only", "ON");
            // One whose transaction SQLite ended by itself, as it does where the disk gives an error, is not used again: sqlx takes it for open, and the next
            // export would leave a snapshot open on it for good.
            let pool = SqlitePoolOptions::new().before_acquire(|connection: &mut SqliteConnection, _| {
                let is_free = !connection.is_in_transaction();
                Box::pin(async move { Ok(is_free) })
            });
            pool.max_connections(connections).connect_lazy_with(options)
        };
        // A connection's thread has the priority of whoever connects: the shipper's is not lent to those that answer.
        let (readers, outbox_reader, kept_reader) = (reading(READERS), reading(1), reading(1));
        let enough = config.max_batch.min(config.queue_capacity / 2).max(1);
        let ring = Mutex::new(Some(ring));
        let inner = Inner { shared, clock, queue, commands, ring, readers, outbox_reader, kept_reader, enough, lane_suffix };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Hands a draft to the writer. Never blocks. The answer comes when the receipt is durable, or cannot be.
    pub fn try_submit(&self, draft: Draft, durability: Durability) -> Result<PendingReceipt, SubmitError> {
        let shared = &self.inner.shared;
        if durability == Durability::Required && !self.is_writable() && !self.inner.queue.is_closed() {
            shared.losses.refused(&draft.event.tenant_id, self.inner.clock.now());
            return Err(SubmitError::Unavailable);
        }
        shared.note_time(self.inner.clock.now());
        let (answer, reply) = oneshot::channel();
        match self.inner.queue.try_send(Submission { draft: Box::new(draft), durability, reply: answer }) {
            Ok(()) => {
                let queue = &self.inner.queue;
                if durability == Durability::Required || queue.max_capacity() - queue.capacity() >= self.inner.enough {
                    shared.hurry.say();
                }
                Ok(PendingReceipt { reply })
            }
            Err(mpsc::error::TrySendError::Full(submission)) => {
                if durability == Durability::BestEffort {
                    shared.counters.dropped.fetch_add(1, Ordering::Relaxed);
                    shared.losses.dropped(&submission.draft.event.tenant_id, false, self.inner.clock.now());
                    shared.wake.notify_one();
                }
                Err(SubmitError::QueueFull)
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Err(SubmitError::Closed),
        }
    }

    /// Submits a draft that must be durable and waits for it.
    pub async fn submit(&self, draft: Draft) -> Result<Committed, LedgerError> {
        match self.try_submit(draft, Durability::Required) {
            Ok(pending) => pending.await,
            Err(SubmitError::Closed) => Err(LedgerError::Closed),
            Err(refused) => Err(LedgerError::Unavailable(refused.to_string())),
        }
    }

    /// The id of the tenant's first lane in this start of the process, open or not. Another follows only where the clock is set back.
    #[must_use]
    pub fn lane_of(&self, tenant: &TenantId) -> String {
        format!("{tenant}{}", self.inner.lane_suffix)
    }

    /// The last part of the names of the lanes that this start opens.
    #[must_use]
    pub fn epoch(&self) -> &str {
        self.inner.lane_suffix.rsplit_once('.').map_or("", |(_, epoch)| epoch)
    }

    /// False from a failed commit until the next that succeeds.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.inner.shared.counters.writable.load(Ordering::Acquire)
    }

    /// Best-effort drafts lost for good since the start.
    #[must_use]
    pub fn dropped_total(&self) -> u64 {
        self.inner.shared.counters.dropped.load(Ordering::Relaxed)
    }

    /// All counters, for metrics.
    #[must_use]
    pub fn stats(&self) -> LedgerStats {
        let queue = &self.inner.queue;
        self.inner.shared.counters.snapshot(queue.max_capacity() - queue.capacity())
    }

    /// The receiving end of the ring, once. From then on sealed events are put into it as far as there is room; a jump in
    /// `row` means that the outbox has more.
    #[must_use]
    pub fn take_sealed_receiver(&self) -> Option<SealedReceiver> {
        let (sender, receiver) = self.inner.ring.lock().take()?;
        *self.inner.shared.ring.lock() = Some(sender);
        Some(SealedReceiver { slots: receiver })
    }

    /// Notes that everything up to `up_to_row` has reached the bus. Written with a later commit: a crash before it only means
    /// that rows are shipped again.
    pub async fn mark_shipped(&self, up_to_row: i64) {
        let counters = &self.inner.shared.counters;
        let bound = up_to_row.min(counters.last_row.load(Ordering::Acquire));
        counters.shipped_row.fetch_max(bound, Ordering::AcqRel);
        self.inner.shared.wake.notify_one();
    }

    /// The last row marked as shipped.
    pub async fn shipped_row(&self) -> i64 {
        self.inner.shared.counters.shipped_row.load(Ordering::Acquire)
    }

    /// The last durable row.
    #[must_use]
    pub fn last_row(&self) -> i64 {
        self.inner.shared.counters.last_row.load(Ordering::Acquire)
    }

    /// Receipts not yet marked as shipped.
    #[must_use]
    pub fn backlog(&self) -> u64 {
        self.inner.shared.counters.backlog()
    }

    /// True if `commitment` (an `input_hash` or `output_hash`) is over `bytes`; None if the tenant's key was shredded or never was.
    pub async fn opens_commitment(&self, tenant: &TenantId, commitment: &str, bytes: &[u8]) -> Result<Option<bool>, LedgerError> {
        let key: Option<Vec<u8>> = sqlx::query_scalar("SELECT key FROM commitment_keys WHERE tenant_id = ?")
            .bind(tenant.as_str())
            .fetch_optional(&self.inner.readers)
            .await
            .map_err(|e| read_error(&e))?;
        let key = key.and_then(|key| <[u8; 32]>::try_from(key).ok()).map(crate::commitment::CommitmentKey::new);
        Ok(key.map(|key| crate::commitment::opens(&key, commitment, bytes)))
    }

    /// Deletes the tenant's commitment key: what was committed to under it can never be checked again.
    pub async fn shred_commitment_key(&self, tenant: &TenantId) -> Result<(), LedgerError> {
        self.ask(|reply| Command::Shred(tenant.clone(), reply)).await
    }

    /// From now on no row is pruned: a bus or a history of this process names them instead of holding copies.
    pub fn keep_rows(&self) {
        self.inner.shared.rows_are_kept.store(true, Ordering::Release);
    }

    /// Deletes some shipped receipts of a lane, up to `through_seq` and from before a time, and never its last: of an open lane the last 64. Returns
    /// how many; ask again until none. The caller must know that history and lake have them; refused where this process reads them again
    /// (`keep_rows`).
    pub async fn prune_confirmed(&self, lane: &str, through_seq: i64, before: Timestamp) -> Result<u64, LedgerError> {
        if self.inner.shared.rows_are_kept.load(Ordering::Acquire) {
            return Err(LedgerError::Kept);
        }
        let what = Prunable { lane: lane.to_owned(), through_seq, before };
        self.ask(|reply| Command::Prune(what, reply)).await
    }

    /// Seals `close` in every open lane and takes no more drafts. What was queued before is written first. Reading and
    /// `mark_shipped` go on working, so that the last receipts can be shipped.
    pub async fn close(&self) -> Result<(), LedgerError> {
        self.ask(Command::Close).await
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T, LedgerError>>) -> Command) -> Result<T, LedgerError> {
        let (reply, answer) = oneshot::channel();
        self.inner.commands.send(command(reply)).await.map_err(|_| LedgerError::Closed)?;
        answer.await.unwrap_or(Err(LedgerError::Closed))
    }
}

/// Commands that may wait for the writer.
const COMMANDS: usize = 16;
