//! The control plane of one process: its parts, its background tasks, and how they start and stop.
//! Promises that what an earlier run left undone (unsealed receipts, unpublished entries) is done before it answers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aegis_bus::{AskForMissing, Bus, Keeper, LanesInLake};
use aegis_keys::{KeyRing, SigningKey, TrustTokenKey};
use aegis_ledger::Ledger;
use aegis_model::{Clock, EntryKind, RuleInSet};
use aegis_policy::{PolicySource, default_pack, github_pack};
use aegis_store::Store;
use aegis_threads::Work;
use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use crate::asking::Asking;
use crate::bundles::Bundles;
use crate::detection::FollowedLanes;
use crate::feed::Feed;
use crate::fleet::Fleet;
use crate::gone::Gone;
use crate::labels::Labels;
use crate::metrics::Metrics;
use crate::outbox::Outbox;
use crate::rules::{RuleTrials, ToldRules, WaitingRules};
use crate::silence::Lives;
use crate::{archive, callbacks, expiry, feed, fleet, gone, labels, materialise, outbox, prune, rule_set, rules, silence};

/// Limits and times of control. The defaults suit one machine.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// `edge_id` of control's events.
    pub edge_id: String,
    /// Largest request body, bytes.
    pub max_body_bytes: usize,
    /// The policy packs that every tenant has.
    pub packs: Vec<PolicySource>,
    /// How long an agent token is valid, seconds.
    pub agent_token_ttl_s: i64,
    /// How long the reply to a change waits for the local edge to enforce it.
    pub applied_wait: Duration,
    /// How long a request about a decision made a moment ago waits for it to arrive over the bus.
    pub arrival_wait: Duration,
    /// How often approvals past their time are expired.
    pub expiry_interval: Duration,
    /// How often approvals that are long over are forgotten.
    pub prune_interval: Duration,
    /// How often callbacks that are due are looked for.
    pub callback_interval: Duration,
    /// Whether callbacks may go to loopback addresses of this machine, and there without TLS.
    pub callback_loopback: bool,
    /// Time between two signs of life of control.
    pub beat_every: Duration,
    /// How long an edge that lived is not heard until its tenants are told that it is silent: so many signs of life of control's own that the bus
    /// took, and none of the edge.
    pub edge_silent_after: Duration,
    /// How often leftovers of the outbox are looked for.
    pub outbox_interval: Duration,
    /// How many events or frozen actions a consumer takes at once.
    pub consumer_batch: usize,
    /// Who keeps events on this machine, so that the history need not: by the name that the bus knows.
    pub keepers: HashMap<Arc<str>, Arc<dyn Keeper>>,
    /// Who ships receipts of this process again, by the edge id in their lanes' names.
    pub ships_again: HashMap<String, Arc<dyn AskForMissing>>,
    /// How far the lake has lanes, which is confirmed to edges; None: nothing is.
    pub lake: Option<Arc<dyn LanesInLake>>,
    /// The key that an edge gets when it enrols, to MAC trust tokens with; None: no edge can enrol.
    pub edge_trust_key: Option<TrustTokenKey>,
    /// Who tries the rules that tenants' admins activate; None: they may not.
    pub rule_trials: Option<Arc<dyn RuleTrials>>,
    /// Who says which rules do not know a tenant's window yet; None: none waits.
    pub waiting_rules: Option<Arc<dyn WaitingRules>>,
    /// Who says how far detection has followed a tenant's lanes; None: nobody.
    pub followed_lanes: Option<Arc<dyn FollowedLanes>>,
    /// The bus as the history has it, where it is a user of its own there; None: control's.
    pub history_bus: Option<Arc<dyn Bus>>,
    /// The connections to the bus by whose they are, for readiness; none where it is a file.
    pub connections: Vec<(&'static str, Arc<dyn Bus>)>,
    /// Ledgers of others in this process, for readiness: its edge's.
    pub ledgers_beside: Vec<Ledger>,
    /// The rules that every tenant has by the program, or the folder that it was given; None: whoever runs them tells of them.
    pub rule_set: Option<Vec<RuleInSet>>,
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self {
            edge_id: "control".to_owned(),
            max_body_bytes: 1 << 20,
            packs: vec![default_pack(), github_pack()],
            agent_token_ttl_s: 24 * 3600,
            applied_wait: Duration::from_secs(1),
            arrival_wait: Duration::from_secs(2),
            expiry_interval: Duration::from_secs(1),
            prune_interval: Duration::from_secs(3600),
            callback_interval: Duration::from_secs(1),
            callback_loopback: false,
            beat_every: Duration::from_secs(2),
            edge_silent_after: Duration::from_secs(30),
            outbox_interval: Duration::from_secs(5),
            consumer_batch: 256,
            keepers: HashMap::new(),
            ships_again: HashMap::new(),
            lake: None,
            edge_trust_key: None,
            rule_trials: None,
            waiting_rules: None,
            followed_lanes: None,
            history_bus: None,
            connections: Vec::new(),
            ledgers_beside: Vec::new(),
            rule_set: None,
        }
    }
}

/// Tells when the local edge enforces an entry of the control feed.
#[async_trait]
pub trait AppliedWatch: Send + Sync + std::fmt::Debug {
    /// True as soon as the edge has applied an entry of `kind` with this revision or a newer one; false after `timeout`.
    async fn wait_applied(&self, revision: i64, kind: EntryKind, timeout: Duration) -> bool;

    /// False where there is no edge in this process, so that its word says nothing.
    fn has_edge(&self) -> bool {
        true
    }
}

/// For a control without an edge in its process: nothing is ever reported as enforced.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoLocalEdge;

#[async_trait]
impl AppliedWatch for NoLocalEdge {
    async fn wait_applied(&self, _revision: i64, _kind: EntryKind, _timeout: Duration) -> bool {
        false
    }

    fn has_edge(&self) -> bool {
        false
    }
}

/// Why control does not start.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The store failed.
    #[error("control store: {0}")]
    Store(#[from] aegis_store::StoreError),
    /// The policies shipped with the binary do not load.
    #[error("shipped policies: {0}")]
    Policy(String),
    /// Receipts of an earlier run cannot be sealed.
    #[error("{0} receipts of an earlier run cannot be sealed; check that the ledger can be written")]
    Outbox(usize),
    /// A change or a read failed; the text is fit for a log.
    #[error("{0}")]
    Failed(String),
}

impl From<crate::Problem> for ControlError {
    fn from(problem: crate::Problem) -> Self {
        Self::Failed(format!("{}: {}", problem.code, problem.message))
    }
}

/// The control plane.
pub struct Control {
    pub(crate) config: ControlConfig,
    pub(crate) store: Store,
    pub(crate) ledger: Ledger,
    pub(crate) bus: Arc<dyn Bus>,
    /// Over which the history reads.
    pub(crate) history_bus: Arc<dyn Bus>,
    pub(crate) key: SigningKey,
    /// Whose receipts are believed: control's own and every edge's.
    pub(crate) ring: KeyRing,
    /// Whose agent tokens are: control's alone.
    pub(crate) token_ring: KeyRing,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) applied: Arc<dyn AppliedWatch>,
    pub(crate) bundles: Bundles,
    pub(crate) feed: Feed,
    pub(crate) fleet: Fleet,
    pub(crate) labels: Labels,
    /// Which edges live, as their tenants know it.
    pub(crate) lives: Lives,
    /// As of when the history has everything that had been published.
    pub(crate) caught_up: Mutex<Option<tokio::time::Instant>>,
    /// Greater with every start of a control plane on this store.
    pub(crate) start: i64,
    /// What edges are to be asked for.
    pub(crate) missing: Asking,
    /// What ledgers say that they do not have of what they are asked for.
    pub(crate) gone: Gone,
    pub(crate) outbox: Outbox,
    pub(crate) rules: ToldRules,
    pub(crate) metrics: Metrics,
    /// Rung whenever events have arrived in the history.
    pub(crate) arrived: Notify,
    /// Rung when an edge has enrolled.
    pub(crate) enrolled: Notify,
    /// Rung when a change of an approval may have queued a callback.
    pub(crate) callback_queued: Notify,
    /// Serialises changes whose check and write must not be parted: registry entries with the policies that read them.
    pub(crate) registry_turn: tokio::sync::Mutex<()>,
    /// Serialises what people do with approvals, so that a receipt says what the vote led to.
    pub(crate) approval_turn: tokio::sync::Mutex<()>,
    /// Held while a rule is tried.
    pub(crate) rule_turn: tokio::sync::Mutex<()>,
    pub(crate) archive_ok: AtomicBool,
    pub(crate) approvals_ok: AtomicBool,
    stop: watch::Sender<bool>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    /// What fills the history, and what sends callbacks: on threads that give way to everything else.
    behind: Mutex<Vec<Work>>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("config", &self.config).field("key_id", &self.key.key_id()).finish_non_exhaustive()
    }
}

impl Control {
    /// Starts control: seals what an earlier run left, rewrites the control feed, starts the background tasks.
    ///
    /// `ledger` is control's own; `ring` holds the keys of control and of every edge whose receipts it must prove.
    #[allow(clippy::too_many_arguments)]
    pub async fn start(
        config: ControlConfig,
        store: Store,
        ledger: Ledger,
        bus: Arc<dyn Bus>,
        key: SigningKey,
        ring: KeyRing,
        clock: Arc<dyn Clock>,
        applied: Arc<dyn AppliedWatch>,
    ) -> Result<Arc<Self>, ControlError> {
        let bundles = Bundles::new(config.packs.clone()).map_err(ControlError::Policy)?;
        let (stop, _) = watch::channel(false);
        let start = store.next_start().await?;
        let history_bus = config.history_bus.clone().unwrap_or_else(|| Arc::clone(&bus));
        let control = Arc::new(Self {
            config,
            store,
            ledger,
            bus,
            history_bus,
            token_ring: KeyRing::new([key.verifying_key()]),
            key,
            ring,
            clock,
            applied,
            bundles,
            feed: Feed::default(),
            fleet: Fleet::default(),
            labels: Labels::default(),
            lives: Lives::default(),
            caught_up: Mutex::default(),
            start,
            missing: Asking::default(),
            gone: Gone::default(),
            outbox: Outbox::default(),
            rules: ToldRules::default(),
            metrics: Metrics::default(),
            arrived: Notify::new(),
            enrolled: Notify::new(),
            callback_queued: Notify::new(),
            registry_turn: tokio::sync::Mutex::new(()),
            approval_turn: tokio::sync::Mutex::new(()),
            rule_turn: tokio::sync::Mutex::new(()),
            archive_ok: AtomicBool::new(false),
            approvals_ok: AtomicBool::new(false),
            stop,
            tasks: Mutex::new(Vec::new()),
            behind: Mutex::new(Vec::new()),
        });
        control.settle_at_start().await?;
        control.spawn_tasks()?;
        Ok(control)
    }

    async fn settle_at_start(&self) -> Result<(), ControlError> {
        let left = self.settle_outbox().await?;
        if left > 0 {
            return Err(ControlError::Outbox(left));
        }
        // Now each of their keys has its receipts.
        self.pin_edges().await?;
        self.recall_lives().await?;
        match self.publish_all(true).await {
            Ok(entries) => tracing::info!(entries, "control feed rewritten"),
            // The bus may come later: edges enforce what they hold, and the feed task tries again.
            Err(_) => self.feed.mark_behind(),
        }
        Ok(())
    }

    fn spawn_tasks(self: &Arc<Self>) -> Result<(), ControlError> {
        let (control, stop) = (Arc::clone(self), self.stop.subscribe());
        let archive = aegis_threads::spawn("aegis-archive", move || archive::run(control, stop))
            .map_err(|error| ControlError::Failed(format!("the archive's thread: {error}")))?;
        let (jobs, waiting) = mpsc::channel(callbacks::SLOTS);
        let to_loopback = self.config.callback_loopback;
        let sender = aegis_threads::spawn("aegis-callbacks", move || callbacks::send::run(waiting, to_loopback))
            .map_err(|error| ControlError::Failed(format!("the callbacks' thread: {error}")))?;
        *self.behind.lock() = vec![archive, sender];
        let mut tasks = self.tasks.lock();
        tasks.push(tokio::spawn(materialise::run(Arc::clone(self), self.stop.subscribe())));
        tasks.push(tokio::spawn(expiry::run(Arc::clone(self), self.stop.subscribe())));
        tasks.push(tokio::spawn(prune::run(Arc::clone(self), self.stop.subscribe())));
        tasks.push(tokio::spawn(callbacks::run(Arc::clone(self), jobs, self.stop.subscribe())));
        tasks.push(tokio::spawn(feed::run(Arc::clone(self), self.stop.subscribe())));
        tasks.push(tokio::spawn(fleet::run(Arc::clone(self), self.stop.subscribe())));
        tasks.push(tokio::spawn(fleet::ask_for_missing(Arc::clone(self), self.stop.subscribe())));
        tasks.push(tokio::spawn(gone::run(Arc::clone(self), self.stop.subscribe())));
        tasks.push(tokio::spawn(fleet::beat(Arc::clone(self), self.stop.subscribe())));
        if self.has_far_edges() {
            tasks.push(tokio::spawn(labels::run(Arc::clone(self), self.stop.subscribe())));
            tasks.push(tokio::spawn(silence::run(Arc::clone(self), self.stop.subscribe())));
        }
        tasks.push(tokio::spawn(rules::run(Arc::clone(self), self.stop.subscribe())));
        if let Some(set) = self.config.rule_set.clone() {
            tasks.push(tokio::spawn(rule_set::run(Arc::clone(self), set, self.stop.subscribe())));
        }
        tasks.push(tokio::spawn(outbox::run(Arc::clone(self), self.stop.subscribe())));
        Ok(())
    }

    /// Stops the background tasks and waits for them. Store, ledger and bus stay open: they are the caller's.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "background task ended badly");
            }
        }
        let behind = std::mem::take(&mut *self.behind.lock());
        for work in behind {
            if let Err(error) = work.ended().await {
                tracing::error!(%error, "the archive or the callbacks' sender ended badly");
            }
        }
    }

    /// Waits until an edge has enrolled. For one waiter: an enrolment while nobody waits is told to the next.
    pub async fn edge_enrolled(&self) {
        self.enrolled.notified().await;
    }

    /// The metrics, to be registered and counted on.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The key that edges pin.
    pub fn verifying_key(&self) -> aegis_keys::VerifyingKey {
        self.key.verifying_key()
    }

    /// True if edges of their own can reach what carries the events.
    pub(crate) fn has_far_edges(&self) -> bool {
        self.config.edge_trust_key.is_some()
    }

    /// True while no background task has died and none was asked to stop.
    pub(crate) fn tasks_running(&self) -> bool {
        let tasks = self.tasks.lock();
        let behind = self.behind.lock();
        !behind.is_empty() && behind.iter().all(|work| !work.is_finished()) && tasks.iter().all(|task| !task.is_finished())
    }

    pub(crate) fn set_healthy(flag: &AtomicBool, healthy: bool) {
        flag.store(healthy, Ordering::SeqCst);
    }
}
