//! The engine's side of a comparison with another program (`bench/duckdb.py`, `bench/flink`): a log that both read, and what the backtest of the
//! smallest set of rules, or of its first ones, makes of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use aegis_detect::{Backtest, Told};
use aegis_model::SystemClock;
use anyhow::{Context, ensure};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::runtime::Runtime;
use tokio::time::Instant;

use super::log::{read, seal};
use super::rules::Texts;
use super::traffic::Traffic;
use crate::stage::pin;

/// What is to be run.
#[derive(Debug, clap::Args)]
pub(crate) struct PeerOptions {
    /// Where the log is; made if it is not there
    #[arg(long)]
    log: PathBuf,
    #[arg(long)]
    tenants: usize,
    #[arg(long)]
    events: usize,
    #[arg(long)]
    rules: usize,
    #[arg(long)]
    core: u32,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Ran {
    events: usize,
    seconds: f64,
    /// Of these those that the engine had the core: what is left where other programs want it too.
    processor_seconds: f64,
    /// Of each rule's id the name of its folder.
    rules: BTreeMap<String, String>,
    alerts: Vec<Standing>,
}

/// An alert, as another program can tell it too.
#[derive(Debug, Serialize)]
struct Standing {
    rule: String,
    tenant: String,
    key: Map<String, Value>,
    /// Event time of the first and the last evidence, microseconds; and how much evidence there is.
    first_us: i64,
    last_us: i64,
    evidence: usize,
}

pub(crate) fn run(runtime: &Runtime, options: &PeerOptions) -> anyhow::Result<()> {
    let PeerOptions { log, tenants, events, rules, core } = options;
    if !log.exists() {
        runtime.block_on(seal(Traffic::Even(*tenants), *events, log))?;
    }
    pin(std::process::id(), *core)?;
    let texts = Texts::of(*rules)?;
    let history = read(log, usize::MAX)?.events;
    let count = history.len();
    let mut backtest = Backtest::new(texts.load()?, Arc::new(SystemClock), None, None);
    let (started, had) = (Instant::now(), on_processor()?);
    for event in history {
        backtest.take(event);
    }
    let report = backtest.finish();
    let seconds = started.elapsed().as_secs_f64();
    let processor_seconds = on_processor()? - had;
    let in_order = report.rules.iter().all(|rule| rule.quarantined.is_none() && rule.over_quota == 0);
    ensure!(in_order && report.late == 0, "the backtest did not look at everything:\n{report}");
    let alerts = report.standing.into_values().map(Standing::of).collect();
    let ran = Ran { events: count, seconds, processor_seconds, rules: texts.names, alerts };
    println!("{}", serde_json::to_string(&ran)?);
    Ok(())
}

/// Seconds that this thread has had of a processor; the engine starts no other.
fn on_processor() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").context("no /proc")?;
    let nanoseconds = text.split_whitespace().next().and_then(|first| first.parse::<u64>().ok());
    Ok(nanoseconds.context("/proc/thread-self/schedstat does not begin with a time")? as f64 / 1e9)
}

impl Standing {
    fn of(told: Told) -> Self {
        Self {
            rule: told.rule_id,
            tenant: told.tenant_id,
            key: told.key,
            first_us: told.first_ts.as_micros(),
            last_us: told.last_ts.as_micros(),
            evidence: told.evidence,
        }
    }
}
