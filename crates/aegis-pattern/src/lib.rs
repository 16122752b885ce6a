//! SQL:2016 row pattern matching (`MATCH_RECOGNIZE`), the part that batch and streaming evaluation share.
//!
//! Owns the pattern, its program, the search for the preferred match, and the walk over a partition. Promises: the match found is the
//! first in the standard's order of preferment (L-PATTERN-PREFERMENT); rows fed in any pieces give the matches of one run over all
//! (L-PATTERN-CHUNKS), also after saving and restoring (L-PATTERN-RESTORE); every attempt ends within its bounds (L-PATTERN-BOUNDS).
//! Never sees a row: conditions are asked through [`Conditions`], rows are numbers, and the caller keeps them.
//! `docs/specs/row-patterns.md` says it precisely.
//!
//! An operator compiles a [`Program`] and makes one [`Matcher`] for a query, and one [`Finder`] for each partition. Batch: give all rows
//! as [`Rows::complete`], and call [`Finder::find`] until it says [`Found::Done`]. Streaming: after each batch of rows or step of the
//! watermark, call it with [`Rows::growing`] until it says [`Found::NeedsMore`], take the measures of each match from its [`Mapping`], then
//! drop the rows before [`Finder::needed_from`].
//!
//! ```
//! use aegis_pattern::{Answer, Conditions, Finder, Found, Limits, Mapping, Matcher, Pattern, Program, Quantifier, Rows, Skip, Variable};
//!
//! /// Rows are letters; a variable's condition is that the row is its letter.
//! struct Letters(&'static [u8]);
//! impl Conditions for Letters {
//!     type Error = std::convert::Infallible;
//!     fn holds(&mut self, variable: Variable, row: usize, _so_far: &Mapping) -> Result<Answer, Self::Error> {
//!         Ok(Answer::from(self.0[row] == b"ab"[variable.index()]))
//!     }
//! }
//!
//! let pattern = Pattern::concat([Pattern::variable("a").times(Quantifier::ONE_OR_MORE), Pattern::variable("b")]);
//! assert_eq!(pattern.to_string(), "a+ b");
//! let matcher = Matcher::new(Program::compile(&pattern)?, Skip::PastLastRow, Limits::default(), |_variable| false);
//! let mut finder = Finder::default();
//! let mut rows = Letters(b"aab");
//! let Found::Match(found) = finder.find(&matcher, Rows::growing(3), &mut rows)? else { unreachable!() };
//! assert_eq!((found.match_number(), found.start(), found.end()), (1, 0, 3));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod attempt;
mod compile;
mod conditions;
mod error;
mod failures;
mod finder;
mod front;
mod mapping;
mod matcher;
mod navigation;
mod pattern;
mod program;
mod survey;

pub use attempt::{Attempt, Bound, Outcome};
pub use conditions::{Answer, Conditions, Rows};
pub use error::{CompileError, MatchError};
pub use finder::{Finder, Found, Saved};
pub use mapping::{Mapping, Scope, View};
pub use matcher::{Limits, Matcher, Skip};
pub use navigation::{Navigation, Target};
pub use pattern::{Pattern, Quantifier};
pub use program::{MAX_DEPTH, MAX_STATES, Program, Variable};
