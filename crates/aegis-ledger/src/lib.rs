//! The ledger: every decision's receipt, chained in its tenant's lane, signed by its commit, durable before anyone hears of it.
//! It is the outbox too: what follows an event (shipping it, asking for its approval) is in the same transaction.
//!
//! Promises: nothing is acknowledged, returned or handed out that is not on the disk (L-DURABLE); every lane is gapless and linked
//! (L-LINK); any change of a published event is found (L-PROOF). Never blocks its callers, never continues a lane of an earlier
//! start. The format is described in `docs/specs/receipt.md`.

mod body;
mod canonical;
mod checkpoint;
mod commit;
mod commitment;
mod config;
mod draft;
mod entropy;
mod error;
mod export;
mod gather;
mod lane;
mod ledger;
mod lifecycle;
mod log;
mod loss;
mod members;
mod merkle;
mod prune;
mod quiet;
mod read;
mod reader;
mod recovery;
mod ring;
mod rows;
mod schema;
mod seal;
mod set_back;
mod shared;
mod stats;
pub mod verify;
mod writer;

pub use config::{LedgerConfig, MAX_RECEIPT_BYTES, TestHooks};
pub use draft::{Committed, Draft, Durability, PendingReceipt};
pub use error::{LedgerError, SubmitError};
pub use export::ExportLine;
pub use ledger::{Ledger, MAX_READ};
pub use prune::PRUNE_ROWS;
pub use quiet::QuietLane;
pub use reader::LedgerReader;
pub use ring::SealedReceiver;
pub use rows::OutboxItem;
pub use stats::{COMMIT_SECONDS_BUCKETS, LedgerStats};
