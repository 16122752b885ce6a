//! The two drivers, what they promise, and the server's users, in one binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod embedded;
mod jetstream;
mod kept;
mod kill;
#[path = "../nats/mod.rs"]
mod nats;
mod users;
