//! The lake: every security event as a row of Parquet files in an object store, a folder or S3, by tenant, date and hour; and read-only SQL over it.
//!
//! Owns the layout (docs/lake.md), the writer that follows the bus, the merging of small files, and the table `events` that reads them. Promises that a
//! row is in the lake once whatever crashes when (L-LAKE-ONCE), and that a query reaches the rows of one tenant alone (L-TENANT). Never
//! on the action path: it follows the bus on a thread of its own, and nothing waits for it.

mod bounds;
#[cfg(feature = "s3")]
mod bucket;
mod content;
mod error;
mod expire;
mod file;
mod folder;
mod follow;
mod lanes;
mod layout;
mod manifest;
mod merge;
mod position;
mod query;
mod recent;
mod refuse;
mod replay;
mod s3;
mod show;
mod swap;
mod table;
#[cfg(test)]
mod watched;
mod worker;
mod writer;

/// The store of a lake.
pub type Lake = std::sync::Arc<dyn object_store::ObjectStore>;

pub use bounds::Span;
pub use error::{LakeError, QueryError};
pub use folder::Folder;
pub use lanes::LakeLanes;
pub use layout::{Hour, tenants};
pub use position::stored_to;
pub use query::{Answer, Bounds, QUERY_SECONDS, query};
pub use replay::{Replay, Replayed, find_event};
pub use s3::{AccessKey, KeySource, S3Settings, open_s3};
pub use show::Table;
pub use table::{LakeTable, Read};
pub use worker::{CONSUMER, LakeConfig, LakeStats, LakeWorker};
pub use writer::{Writer, WriterLimits};
