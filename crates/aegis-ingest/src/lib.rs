//! Agentless sources: webhooks that enter the log as external events. Owns their endpoints and the pure mappings behind them.
//! Promises an answer only after the durable append, and never lets raw content or a secret into an event.
//! An external event is an observation: it proves no authorization and contains nobody.

pub mod github;
mod rate;
mod refusal;
mod state;
mod webhook;

pub use state::{IngestLimits, IngestState, NotRegistered, ResourceSink, SecretsUnavailable, WebhookSecrets};
pub use webhook::router;
