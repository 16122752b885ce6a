//! `MATCH_RECOGNIZE` through DataFusion: examples that read as a specification, what is refused and how, a slow matcher that is obviously
//! correct, and random queries over random rows on which everything must agree.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bounds;
mod clauses;
mod endings;
mod harness;
mod laws;
mod random;
mod reference;
mod refusals;
mod types;
