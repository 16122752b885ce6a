//! Responding over the real bus and the real store, with a control that can fail, hang, and count.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod absence;
mod alerts;
mod life;
