//! The data plane: `POST /v1/authorize`, answered from memory, receipted before it is believed.
//! Owns the order of the checks, run trust, idempotency, nonces and the view of what control signed.
//! Promises that nothing behind it (bus, control, detection) can delay an answer or open the path. No SQL, no detection here.

mod alarm;
mod appended;
mod authorize;
mod bounded;
mod call;
mod clock;
mod digest;
mod error;
mod evidence;
mod feed;
mod http;
mod limits;
mod metrics;
mod pulse;
mod rebuild;
mod replay;
mod reply;
mod runs;
mod snapshot;
mod told;
mod trust;
mod view;

use std::collections::BTreeSet;
use std::sync::Arc;

use aegis_keys::{KeyRing, TrustTokenKey};
use aegis_ledger::Ledger;
use aegis_model::{Clock, TenantId};

pub use alarm::Alarm;
pub use clock::CorrectedClock;
pub use error::EdgeError;
pub use feed::{FeedConfig, FeedFollower};
pub use http::{PATH, answer, router};
pub use metrics::EdgeMetrics;
pub use pulse::Pulse;
pub use view::{Applied, EdgeView, RefusedEntry};

/// An edge's limits and times. The defaults suit one machine; all memory is bounded by them.
#[derive(Clone, Debug)]
pub struct EdgeConfig {
    /// This edge's id, part of its lanes' names.
    pub edge_id: String,
    /// Largest request body, bytes.
    pub max_body_bytes: usize,
    /// How far `timestamp` may lie in the past or the future, seconds.
    pub timestamp_skew_s: i64,
    /// How long a request id or a nonce is remembered, seconds.
    pub replay_memory_s: i64,
    /// How many request ids, and how many nonces, are remembered; tenants, and each tenant's agents, have equal shares of it once it is full.
    pub replay_capacity: usize,
    /// How many runs' labels are held; tenants have equal shares of it once it is full.
    pub run_capacity: usize,
    /// How many verified agent tokens are held.
    pub token_capacity: usize,
    /// How long a reply waits for its receipt to be durable, milliseconds; past it the answer is a deny.
    pub commit_wait_ms: u64,
    /// The tenants it serves; None: whichever control signed a token for.
    pub tenants: Option<BTreeSet<TenantId>>,
    /// How old the control feed may be before mutating calls are denied, seconds; 0: however old.
    pub max_feed_age_s: i64,
    /// The same for a copy on disk that an edge started from, until the feed was read once; and how old its copy of what other edges made of runs
    /// may be, until that was read: without one, runs count as `unknown`.
    pub max_snapshot_age_s: i64,
}

impl EdgeConfig {
    /// Defaults for the edge `edge_id`.
    #[must_use]
    pub fn new(edge_id: &str) -> Self {
        Self {
            edge_id: edge_id.to_owned(),
            max_body_bytes: 1 << 20,
            timestamp_skew_s: 300,
            replay_memory_s: 24 * 3600,
            replay_capacity: 1_000_000,
            run_capacity: 1_000_000,
            token_capacity: 100_000,
            commit_wait_ms: 5_000,
            tenants: None,
            max_feed_age_s: 0,
            max_snapshot_age_s: 3_600,
        }
    }
}

/// One edge: everything an authorize call touches.
#[derive(Debug)]
pub struct Edge {
    config: EdgeConfig,
    view: Arc<EdgeView>,
    ledger: Ledger,
    ring: KeyRing,
    trust_tokens: TrustTokenKey,
    clock: Arc<dyn Clock>,
    metrics: EdgeMetrics,
    tokens: trust::TokenCache,
    runs: runs::Runs,
    replay: replay::ReplayMemory,
    limits: limits::RateLimits,
}

impl Edge {
    /// An edge over `ledger`, believing what keys of `ring` signed. Rebuilds nonces, request ids and run labels from the ledger.
    pub async fn open(
        config: EdgeConfig,
        view: Arc<EdgeView>,
        ledger: Ledger,
        ring: KeyRing,
        trust_tokens: TrustTokenKey,
        clock: Arc<dyn Clock>,
        metrics: EdgeMetrics,
    ) -> Result<Arc<Self>, EdgeError> {
        let edge = Self {
            tokens: trust::TokenCache::new(config.token_capacity),
            runs: runs::Runs::new(config.run_capacity),
            replay: replay::ReplayMemory::new(config.replay_capacity, config.replay_memory_s),
            limits: limits::RateLimits::new(config.token_capacity),
            config,
            view,
            ledger,
            ring,
            trust_tokens,
            clock,
            metrics,
        };
        rebuild::from_ledger(&edge).await?;
        Ok(Arc::new(edge))
    }

    /// What this edge believes.
    #[must_use]
    pub fn view(&self) -> &Arc<EdgeView> {
        &self.view
    }
}
