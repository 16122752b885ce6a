//! The lake from outside: what is written is what is read, once, whatever fails when; and a query reaches nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod crash;
mod expire;
mod failing;
mod follow;
mod house;
mod isolation;
mod lanes;
#[path = "../../../aegis-bus/tests/nats/port.rs"]
mod port;
mod prune;
mod queries;
mod replay;
mod round_trip;
mod server;
mod stores;
