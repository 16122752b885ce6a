//! `MATCH_RECOGNIZE` (SQL:2016 row pattern matching) as a relation of SQL: planned by DataFusion, run in batch and streaming by one matcher.
//!
//! Owns what a pattern, a condition and a measure mean in a query, and the way from the text to rows: [`prepare`] and [`MatchPlanner`] read
//! it, [`MatchRecognize`] is what the optimizer sees, [`Recognizer`] what is run, by [`MatchExec`] over a whole input or by [`Streaming`] over
//! rows as they come; a [`Walk`] tells of rows as they come where the operator's matches end, and no more. Promises that both find the same matches, that optimizing changes none, and that what is not run is refused by name.
//! Never searches itself: that is `aegis-pattern`'s. Never unbounded: see [`Limits`]; what ran into one is said in a [`Report`].
//!
//! `docs/specs/row-patterns.md` says it precisely.

mod aggregate;
mod cell;
mod compile;
mod conditions;
mod definition;
mod endings;
mod exec;
mod functions;
mod kept;
mod limits;
mod node;
mod output;
mod partition;
mod pattern;
mod planner;
mod recognizer;
mod refusal;
mod resolve;
mod session;
mod skip;
mod stream;
mod take_out;
mod tokens;

pub use endings::{Ending, Endings, Walk};
pub use exec::MatchExec;
pub use limits::{Budget, CONDITION_WORK, Limits, Overrun, Overruns, ROW_WORK, Report};
pub use node::MatchRecognize;
pub use planner::MatchPlanner;
pub use recognizer::Recognizer;
pub use refusal::{Place, Refusal, RefusalKind};
pub use session::{MatchExtension, install, plan_query};
pub use stream::{PartitionSnapshot, Snapshot, Streaming};
pub use tokens::prepare;
