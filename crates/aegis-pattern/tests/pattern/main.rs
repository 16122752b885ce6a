//! The laws of row pattern matching: examples that read as a specification, a slow matcher that is obviously correct, and random
//! patterns over random rows on which the two must agree.
#![allow(clippy::unwrap_used, clippy::panic)]

mod bounds;
mod examples;
mod parse;
mod random;
mod reference;
mod specification;
mod streaming;
mod table;
