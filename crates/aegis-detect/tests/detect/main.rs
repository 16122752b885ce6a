//! The rule format, the engine's laws and the worker, in one binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod alerts;
mod apart;
mod deferred;
mod explain;
mod first_seen;
mod impaired;
mod incremental;
mod laws;
mod marks;
mod own;
mod refusals;
mod registry;
mod shipped;
mod twins;
mod worker;
