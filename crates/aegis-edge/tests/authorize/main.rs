//! The action path over its HTTP surface, with a real ledger, real Cedar packs and entries as control signs them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod decisions;
mod entries;
mod feed;
mod house;
mod large;
mod order;
mod others;
mod requests;
mod stalled;
mod trust;
