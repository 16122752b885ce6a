//! The same laws over Postgres: a server of Debian's package, started for the tests, each with a database of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../store/approvals.rs"]
mod approvals;
#[path = "../store/callbacks.rs"]
mod callbacks;
#[path = "../store/containment.rs"]
mod containment;
#[path = "../store/edge_lives.rs"]
mod edge_lives;
#[path = "../store/fixtures.rs"]
mod fixtures;
#[path = "../store/history.rs"]
mod history;
#[path = "../store/incidents.rs"]
mod incidents;
#[path = "../store/isolation.rs"]
mod isolation;
#[path = "../store/keys.rs"]
mod keys;
#[path = "../store/old_history.rs"]
mod old_history;
mod opening;
mod place;
#[path = "../../../aegis-bus/tests/nats/port.rs"]
mod port;
#[path = "../store/registry.rs"]
mod registry;
#[path = "../store/repeats.rs"]
mod repeats;
#[path = "../store/rule_sets.rs"]
mod rule_sets;
#[path = "../store/rules.rs"]
mod rules;
mod server;
mod silence;
mod taking_over;
