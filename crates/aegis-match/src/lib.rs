//! `MATCH_RECOGNIZE` (SQL:2016 row pattern matching) as a relation of SQL: planned by DataFusion, run in batch and streaming by one matcher.
//!
//! Owns what a pattern, a condition and a measure mean in a query, and the way from the text to rows: [`prepare`] and [`MatchPlanner`] read
//! it, [`MatchRecognize`] is what the optimizer sees, [`Recognizer`] what is run: by [`MatchExec`] over a whole input, and, as [`Endings`], by a [`Walk`] over
//! rows as they come, which tells of each time the matches that the operator finds in the window that ends there. Promises that both find the same matches,
//! that optimizing changes none, and that what is not run is refused by name.
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
mod take_out;
mod threads;
mod tokens;
mod walk;

pub use endings::{Ended, Endings, Shown};
pub use exec::MatchExec;
pub use limits::{Budget, CONDITION_WORK, Limits, Overrun, Overruns, ROW_WORK, Report};
pub use node::MatchRecognize;
pub use planner::MatchPlanner;
pub use recognizer::Recognizer;
pub use refusal::{Place, Refusal, RefusalKind};
pub use session::{MatchExtension, install, plan_query};
pub use tokens::prepare;
pub use walk::{Ending, Walk};
