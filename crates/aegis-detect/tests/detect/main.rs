//! The rule format, the engine's laws and the worker, in one binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod alerts;
mod apart;
mod bounds;
mod catalog;
mod cut;
mod deferred;
mod explain;
mod first_seen;
mod ground;
mod impaired;
mod incremental;
mod laws;
mod lives;
mod looks;
mod marks;
mod own;
mod patterns;
mod refusals;
mod registry;
mod shared;
mod shipped;
mod standing;
mod twins;
mod upgrade;
mod worker;
