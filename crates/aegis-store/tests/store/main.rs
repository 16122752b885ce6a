//! The store in files: its laws, by their ids: L-TENANT, L-CONSUME, L-OUTBOX, L-REVOKED, L-COMMAND, L-CAP, L-INCIDENT.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod approvals;
mod callbacks;
mod containment;
mod edge_lives;
mod fixtures;
mod history;
mod incidents;
mod isolation;
mod keys;
mod old_history;
mod opening;
mod place;
mod registry;
mod repeats;
mod rule_sets;
mod rules;
mod taking_over;
