//! The engine's side of a comparison with another program (`bench/duckdb.py`, `bench/flink/run.py`): a log that both read, or the Parquet files of a
//! lake, and what the backtest of the smallest set of rules, or of its first ones, makes of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aegis_detect::{Backtest, BacktestReport, RuleSet, Sieve, Told};
use aegis_lake::{Folder, Replay, Span, Writer, WriterLimits, tenants};
use aegis_model::{SystemClock, Timestamp};
use anyhow::{Context, ensure};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::runtime::Runtime;
use tokio::time::Instant;

use super::log::{read, seal};
use super::rules::{Fill, Texts};
use super::traffic::Traffic;
use crate::stage::pin;

/// What is to be run.
#[derive(Debug, clap::Args)]
pub(crate) struct PeerOptions {
    /// Where the log is; made if it is not there
    #[arg(long)]
    log: PathBuf,
    /// Where the same events are as a lake; made if it is not there. The backtest is then over its files, reading them included
    #[arg(long)]
    lake: Option<PathBuf>,
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
    events: u64,
    seconds: f64,
    /// Of these those that the engine had the core, where events are in memory: what is left where others want it too.
    processor_seconds: Option<f64>,
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

/// How long a backtest took.
#[derive(Debug)]
struct Took {
    clock: Duration,
    processor_seconds: Option<f64>,
}

/// About what an event weighs while it waits to be written, bytes.
const EVENT_BYTES: usize = 1000;
/// How often it is looked whether too much waits, in events.
const LOOK_EVERY: usize = 1000;
/// Long after the last hour of a log, and again as long: its files are merged, and then those that were are removed. In seconds.
const MUCH_LATER_S: i64 = 24 * 3600;

pub(crate) fn run(runtime: &Runtime, options: &PeerOptions) -> anyhow::Result<()> {
    let PeerOptions { log, lake, tenants, events, rules, core } = options;
    if !log.exists() {
        runtime.block_on(seal(Traffic::Even(*tenants), *events, log))?;
    }
    if let Some(lake) = lake.as_deref().filter(|lake| !lake.exists()) {
        runtime.block_on(fill(log, lake)).with_context(|| format!("cannot fill {}", lake.display()))?;
    }
    pin(std::process::id(), *core)?;
    let texts = Texts::of(*rules, Fill::Copies)?;
    let rules = texts.load()?;
    let (report, took) = match lake {
        Some(lake) => runtime.block_on(over_lake(lake, rules))?,
        None => over_log(log, rules)?,
    };
    let in_order = report.rules.iter().all(|rule| rule.quarantined.is_none() && rule.over_quota == 0);
    ensure!(in_order && report.late == 0, "the backtest did not look at everything:\n{report}");
    let (events, seconds, processor_seconds) = (report.events, took.clock.as_secs_f64(), took.processor_seconds);
    let alerts = report.standing.into_values().map(Standing::of).collect();
    let ran = Ran { events, seconds, processor_seconds, rules: texts.names, alerts };
    println!("{}", serde_json::to_string(&ran)?);
    Ok(())
}

/// Over events that are in memory already.
fn over_log(log: &Path, rules: RuleSet) -> anyhow::Result<(BacktestReport, Took)> {
    let history = read(log, usize::MAX)?.events;
    let mut backtest = Backtest::new(rules, Arc::new(SystemClock), None, None);
    let (started, had) = (Instant::now(), on_processor()?);
    for event in history {
        backtest.take(event);
    }
    let report = backtest.finish();
    let took = Took { clock: started.elapsed(), processor_seconds: Some(on_processor()? - had) };
    Ok((report, took))
}

/// Seconds that this thread has had of a processor; the engine starts no other.
fn on_processor() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").context("no /proc")?;
    let nanoseconds = text.split_whitespace().next().and_then(|first| first.parse::<u64>().ok());
    Ok(nanoseconds.context("/proc/thread-self/schedstat does not begin with a time")? as f64 / 1e9)
}

/// Over the files of a lake, as `aegis rules backtest --lake` does it.
async fn over_lake(lake: &Path, rules: RuleSet) -> anyhow::Result<(BacktestReport, Took)> {
    let sets = [rules];
    let (columns, sieve) = (sets[0].columns_read(), Arc::new(Sieve::of(&sets)));
    let [rules] = sets;
    let mut backtest = Backtest::new(rules, Arc::new(SystemClock), None, None).in_order(None);
    let started = Instant::now();
    let store = Folder::open(lake)?;
    for tenant in tenants(&store).await? {
        let replay = Replay::open(Arc::clone(&store), &tenant, Some(&columns), Span::ALL).await?;
        let mut replay = replay.sifted_by(&sieve);
        while let Some(events) = replay.next().await? {
            events.into_iter().for_each(|event| backtest.take_shared(event));
        }
        backtest.end_of(&tenant);
    }
    backtest.pass(sieve.left_out());
    let report = backtest.finish();
    // Threads of the runtime have read for it.
    Ok((report, Took { clock: started.elapsed(), processor_seconds: None }))
}

/// Writes a log's events as the program's lake has them once their hours are over.
async fn fill(log: &Path, lake: &Path) -> anyhow::Result<()> {
    // Whole or not there.
    let unfinished = lake.with_extension("unfinished");
    std::fs::create_dir_all(&unfinished)?;
    let mut writer = Writer::new(Folder::open(&unfinished)?, "log", [], WriterLimits::default());
    let mut newest = Timestamp::from_micros(0);
    for (place, event) in read(log, usize::MAX)?.events.into_iter().enumerate() {
        newest = newest.max(event.ts);
        writer.take(place as u64 + 1, event, EVENT_BYTES);
        if place.is_multiple_of(LOOK_EVERY) {
            writer.relieve().await?;
            if writer.is_full() {
                writer.flush().await?;
            }
        }
    }
    writer.flush().await?;
    for times in 1..=2 {
        while writer.tidy(newest.plus_seconds(times * MUCH_LATER_S), usize::MAX).await? > 0 {}
    }
    std::fs::rename(&unfinished, lake)?;
    Ok(())
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
