//! Detection: rules written as SQL, checked when they load, run over the log of security events as it grows.
//!
//! Owns the rule format (`docs/specs/detection-rule.md`), the engine, and the worker that feeds it from the bus. Promises that
//! the alerts that stand are a function of the log, that no tenant's events reach another tenant's matches, and that no rule
//! that contains sees an unproven event or a score. Never decides containment: it says what matched, and responders ask.

mod absence;
mod alert;
mod alerts;
mod backtest;
mod baseline;
mod bucket;
mod check;
mod checkpoint;
mod condition;
mod deferred;
mod engine;
mod episode;
mod error;
mod evaluate;
mod explain;
mod explanation;
mod find;
mod finished;
mod follow;
mod hold;
mod impaired;
mod lost;
mod output;
mod own;
mod pipeline;
mod plan;
mod reachable;
mod rebuild;
mod refused;
mod room;
mod rows;
mod rule;
mod ruleset;
mod schema;
mod scope;
mod shape;
mod shelf;
mod side;
mod sieve;
mod sliding;
mod slot;
mod sql;
pub mod testing;
mod tick;
mod told;
mod verify;
mod watermark;
mod window;
mod windows;
mod wire;
mod worker;

pub use alert::alert_id;
pub use backtest::{Backtest, BacktestReport, RuleResult, Told};
pub use condition::Judged;
pub use engine::{Engine, EngineCheckpoint, EngineConfig, EpisodeUpdate, TickOutput};
pub use error::{DetectError, Place, RuleCode, RuleError, RuleErrors};
pub use evaluate::RuleStats;
pub use explain::Explain;
pub use explanation::{Explanation, JoinedAlert, MatchedRow, RaisedAlert};
pub use impaired::{IMPAIRED_NAME, IMPAIRED_RULE, IMPAIRED_SEVERITY};
pub use own::{OwnRule, RuleTexts};
pub use rows::events_of;
pub use rule::{Change, HEADER_SCHEMA, Header, Requires, Response, Rule};
pub use ruleset::{CommonRules, LintReport, RuleSet, lint_file, lint_shipped};
pub use schema::{EventBatch, SCORE_COLUMN, TABLE, events_schema};
pub use shape::Shape;
pub use sieve::Sieve;
pub use verify::{ChainBreak, Stage, VerifyStage, chain_broken_event, is_ahead_of_time};
pub use watermark::Watermarks;
pub use window::Quotas;
pub use worker::{CONSUMER, Worker, WorkerConfig, WorkerStats};
