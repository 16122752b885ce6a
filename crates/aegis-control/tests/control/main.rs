//! Control over its real store, ledger and bus, in one binary: each of its tests' own would make all that control is made of once more.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod access;
mod approvals;
mod callbacks;
mod detection;
mod drift;
mod edges;
mod far_edges;
mod feed;
mod house;
#[path = "../../../aegis-bus/tests/nats/mod.rs"]
mod nats;
mod oversized;
mod repeats;
mod rules;
mod silence;
