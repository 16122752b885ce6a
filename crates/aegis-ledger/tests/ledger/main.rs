//! The ledger's laws, its files and what can happen to them, in one binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod corpus;
#[path = "../../../aegis-bus/tests/bus/kept/disk.rs"]
mod disk;
mod durability;
mod exports;
mod faults;
mod fixture;
mod kept;
mod lanes;
mod proof;
mod pruning;
mod refused;
mod set_back;
mod upgrade;
