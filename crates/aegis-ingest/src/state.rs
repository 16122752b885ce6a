//! What the endpoints work with: secrets, the bus, a clock, bounds, and who wants to hear of repositories.

use std::sync::Arc;
use std::time::Duration;

use aegis_bus::Bus;
use aegis_model::{Clock, ResourceRecord, TenantId};
use async_trait::async_trait;
use tokio::sync::Semaphore;

use crate::rate::Rates;

/// Where the webhook secrets of the tenants are kept.
#[async_trait]
pub trait WebhookSecrets: Send + Sync + std::fmt::Debug {
    /// The tenant's secret for an adapter; None for an unknown tenant, or one that has not set the adapter up.
    async fn secret(&self, tenant: &TenantId, adapter: &str) -> Result<Option<Vec<u8>>, SecretsUnavailable>;
}

/// The secrets cannot be read now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("webhook secrets cannot be read: {reason}")]
pub struct SecretsUnavailable {
    pub reason: String,
}

/// Who hears what a webhook said about a resource. Called after the durable append of every delivery, redeliveries included, before the answer.
#[async_trait]
pub trait ResourceSink: Send + Sync + std::fmt::Debug {
    /// The facts are as good as the tenant's webhook secret; they may arrive out of order. An error makes the answer a 503, so that
    /// the sender delivers again.
    async fn observed(&self, tenant: &TenantId, record: ResourceRecord) -> Result<(), NotRegistered>;
}

/// What a webhook said of a resource could not be registered now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a resource cannot be registered: {reason}")]
pub struct NotRegistered {
    pub reason: String,
}

/// The bounds of the endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngestLimits {
    /// The `edge_id` of the events: which process took them in.
    pub ingest_id: String,
    /// Largest request body, bytes. GitHub sends up to 25 MiB; what an event keeps of it is far smaller.
    pub max_body_bytes: usize,
    /// Requests whose body is held in memory at a time.
    pub max_in_flight: usize,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// Signed deliveries per second and tenant, on average; a burst may be twice that.
    pub rate_per_s: u32,
}

impl Default for IngestLimits {
    fn default() -> Self {
        Self {
            ingest_id: "ingest".to_owned(),
            max_body_bytes: 5 * 1024 * 1024,
            max_in_flight: 64,
            body_timeout: Duration::from_secs(10),
            rate_per_s: 1000,
        }
    }
}

/// Everything an endpoint needs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct IngestState {
    pub(crate) secrets: Arc<dyn WebhookSecrets>,
    pub(crate) bus: Arc<dyn Bus>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) limits: Arc<IngestLimits>,
    pub(crate) resources: Option<Arc<dyn ResourceSink>>,
    pub(crate) in_flight: Arc<Semaphore>,
    pub(crate) rates: Arc<Rates>,
}

impl IngestState {
    /// A state with default bounds that tells nobody of repositories.
    #[must_use]
    pub fn new(secrets: Arc<dyn WebhookSecrets>, bus: Arc<dyn Bus>, clock: Arc<dyn Clock>) -> Self {
        let limits = IngestLimits::default();
        Self {
            secrets,
            bus,
            clock,
            in_flight: Arc::new(Semaphore::new(limits.max_in_flight)),
            rates: Arc::new(Rates::new(limits.rate_per_s)),
            limits: Arc::new(limits),
            resources: None,
        }
    }

    /// The same with other bounds.
    #[must_use]
    pub fn with_limits(mut self, limits: IngestLimits) -> Self {
        self.in_flight = Arc::new(Semaphore::new(limits.max_in_flight));
        self.rates = Arc::new(Rates::new(limits.rate_per_s));
        self.limits = Arc::new(limits);
        self
    }

    /// The same with another bound for the body, in bytes.
    #[must_use]
    pub fn with_max_body_bytes(self, max_body_bytes: usize) -> Self {
        let limits = IngestLimits { max_body_bytes, ..(*self.limits).clone() };
        self.with_limits(limits)
    }

    /// The same, telling `resources` what webhooks say about repositories.
    #[must_use]
    pub fn with_resources(mut self, resources: Arc<dyn ResourceSink>) -> Self {
        self.resources = Some(resources);
        self
    }
}
