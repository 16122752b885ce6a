//! The control plane: tenants' keys, agents, registry, policies, approvals, containment, receipts, and the API over them.
//! Owns the control signing key: only what it signs is believed by edges. Promises that every change is an event and a receipt.
//! Never answers an authorize call, and nothing here can delay or open the action path.

mod agents;
mod approvals;
mod archive;
mod asking;
mod auth;
mod bundles;
mod callbacks;
mod consume;
mod containment;
mod control;
mod decide;
mod edges;
mod evidence;
mod expiry;
mod export;
mod feed;
mod fleet;
mod follow;
mod given_way;
mod health;
mod heard;
mod input;
mod judge;
mod keys;
mod labels;
mod materialise;
mod metrics;
mod notices;
mod outbox;
mod outcome;
mod policies;
mod problem;
mod progress;
mod prune;
mod reach;
mod record;
mod registry;
mod reply;
mod room;
mod routes;
mod rules;
mod settings;
mod side;
mod silence;
mod soc;
mod wires;

pub use auth::Access;
pub use containment::{ContainmentOutcome, ContainmentRequest};
pub use control::{AppliedWatch, Control, ControlConfig, ControlError, NoLocalEdge};
pub use metrics::Metrics;
pub use problem::Problem;
pub use routes::{ROUTES, Route, router};
pub use rules::{RuleTest, RuleTrialError, RuleTrials, common_rule_change_by_operator, rule_change_by_operator};
