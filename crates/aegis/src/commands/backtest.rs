//! `aegis rules backtest|diff`: rules over the history of a data folder, or over its lake, also while the program runs on it.

use std::collections::{BTreeSet, HashMap};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use aegis_detect::{Backtest, BacktestReport, RuleSet, Sieve, is_ahead_of_time};
use aegis_lake::{Replay, Span, stored_to};
use aegis_ledger::LedgerReader;
use aegis_model::{Clock, SecurityEvent, SystemClock, TenantId, Timestamp, WireEvent};
use aegis_store::{HistoryRow, Store, Wire};
use anyhow::{Context, bail};
use serde_json::json;

use super::SAID_NO;
use crate::arguments::rules::HistoryArgs;

/// Rows read at a time.
const PAGE: u32 = 1000;
/// How often a terminal is told how far it is, in events.
const PROGRESS: u64 = 20_000;

pub(crate) fn backtest(path: &Path, args: &HistoryArgs) -> anyhow::Result<ExitCode> {
    let Some(rules) = load(path)? else { return Ok(ExitCode::from(SAID_NO)) };
    let report = super::runtime()?.block_on(run(vec![rules], args))?.remove(0);
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report}");
    }
    let stopped = report.rules.iter().any(|rule| rule.quarantined.is_some());
    Ok(if stopped { ExitCode::from(SAID_NO) } else { ExitCode::SUCCESS })
}

pub(crate) fn diff(old: &Path, new: &Path, args: &HistoryArgs) -> anyhow::Result<ExitCode> {
    let (Some(before), Some(after)) = (load(old)?, load(new)?) else { return Ok(ExitCode::from(SAID_NO)) };
    let mut reports = super::runtime()?.block_on(run(vec![before, after], args))?;
    let (after, before) = (reports.remove(1), reports.remove(0));
    let (added, dropped) = (after.beyond(&before), before.beyond(&after));
    if args.json {
        println!(
            "{}",
            json!({"events": after.events, "gone": after.gone, "before": before.rules, "after": after.rules, "added": added, "dropped": dropped})
        );
        return Ok(ExitCode::SUCCESS);
    }
    added.iter().for_each(|told| println!("+ {told}"));
    dropped.iter().for_each(|told| println!("- {told}"));
    if let Some(said) = after.said_of_gone() {
        println!("{said}");
    }
    let (was, is) = (before.standing.len(), after.standing.len());
    println!("events: {} · alerts: {was} before, {is} after: {} added, {} dropped", after.events, added.len(), dropped.len());
    Ok(ExitCode::SUCCESS)
}

/// The rules that a path names; None if one of them is not in order, which was said.
fn load(path: &Path) -> anyhow::Result<Option<RuleSet>> {
    let read = |file: PathBuf| {
        let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        anyhow::Ok((file, text))
    };
    let texts = super::rules::rule_files(path)?.into_iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
    match RuleSet::from_texts(texts) {
        Ok(rules) => Ok(Some(rules)),
        Err(errors) => {
            eprintln!("{errors}");
            Ok(None)
        }
    }
}

/// Each set of rules over the same events.
async fn run(sets: Vec<RuleSet>, args: &HistoryArgs) -> anyhow::Result<Vec<BacktestReport>> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let (from, to) = (time(args.from.as_deref(), "--from")?, time(args.to.as_deref(), "--to")?);
    let needed = from.and_then(|from| sets.iter().map(|rules| Backtest::needs_from(rules, clock.clone(), from)).min());
    let needed_to = to.and_then(|to| sets.iter().map(|rules| Backtest::needs_to(rules, clock.clone(), to)).max());
    let span = (needed.unwrap_or(Timestamp::from_micros(i64::MIN)), needed_to.unwrap_or(Timestamp::from_micros(i64::MAX)));
    let columns: BTreeSet<&'static str> = sets.iter().flat_map(RuleSet::columns_read).collect();
    let sieve = Arc::new(Sieve::of(&sets));
    let mut runs: Vec<Backtest> = sets.into_iter().map(|rules| Backtest::new(rules, clock.clone(), from, to)).collect();
    if args.lake {
        return over_lake(runs, &columns, &sieve, args, span).await;
    }
    let store = open(&args.data, clock).await?;
    let tenants = tenants(&store, args.tenant.as_deref()).await?;
    let mut progress = Progress::new();
    let mut history = History::new(&store, &args.data);
    // Tenant by tenant: what a rule tells of one never depends on another.
    for tenant in tenants {
        let mut after = 0;
        while let Some(events) = history.page(&tenant, &mut after, span).await? {
            progress.passed(events.len());
            show(&mut runs, events.into_iter().map(Arc::new).collect());
        }
        runs.iter_mut().for_each(|run| run.end_of(&tenant));
    }
    progress.done();
    store.close().await;
    runs.iter_mut().for_each(|run| run.miss(history.gone));
    Ok(runs.into_iter().map(Backtest::finish).collect())
}

/// The same over the lake, which has each tenant's events in the order of events: of a row, the columns alone that the rules read.
async fn over_lake(
    runs: Vec<Backtest>,
    columns: &BTreeSet<&'static str>,
    sieve: &Arc<Sieve>,
    args: &HistoryArgs,
    span: (Timestamp, Timestamp),
) -> anyhow::Result<Vec<BacktestReport>> {
    let store = crate::lake::find(args.config.as_deref(), &args.data)?;
    let there = match &args.tenant {
        Some(tenant) => BTreeSet::from([TenantId::new(tenant).context("--tenant")?]),
        None => aegis_lake::tenants(&store).await?,
    };
    // Asked first: what is read after it has at least that.
    let known_to = stored_to(&store).await?;
    let mut runs: Vec<Backtest> = runs.into_iter().map(|run| run.in_order(known_to)).collect();
    let mut progress = Progress::new();
    for tenant in there {
        let replay = Replay::open(Arc::clone(&store), &tenant, Some(columns), span_of(span)).await?;
        let mut replay = replay.sifted_by(sieve);
        let mut left_out = sieve.left_out();
        while let Some(events) = replay.next().await? {
            progress.passed(events.len() + usize::try_from(sieve.left_out() - left_out).unwrap_or(0));
            left_out = sieve.left_out();
            show(&mut runs, events);
        }
        runs.iter_mut().for_each(|run| run.end_of(&tenant));
    }
    progress.done();
    runs.iter_mut().for_each(|run| run.pass(sieve.left_out()));
    Ok(runs.into_iter().map(Backtest::finish).collect())
}

/// From the first of these times to before the second, as the lake has spans.
pub(super) fn span_of((from, to): (Timestamp, Timestamp)) -> Span {
    Span { from: from.as_micros(), to: to.as_micros().saturating_sub(1) }
}

/// Shows all of them the same events.
fn show(runs: &mut [Backtest], events: Vec<Arc<SecurityEvent>>) {
    for run in runs {
        events.iter().for_each(|event| run.take_shared(Arc::clone(event)));
    }
}

/// A time of the command line.
pub(super) fn time(text: Option<&str>, option: &str) -> anyhow::Result<Option<Timestamp>> {
    match text {
        Some(text) => Timestamp::parse_rfc3339(text).map(Some).with_context(|| format!("{option} {text}: not an RFC 3339 time")),
        None => Ok(None),
    }
}

/// The store of a data folder, which must be there.
pub(super) async fn open(data: &Path, clock: Arc<dyn Clock>) -> anyhow::Result<Store> {
    if !data.is_dir() {
        bail!("there is no data folder {}; name the one that `aegis up` runs on with --data", data.display());
    }
    crate::store::open_beside(data, clock).await
}

/// The tenant that the command line names, or all.
pub(super) async fn tenants(store: &Store, named: Option<&str>) -> anyhow::Result<Vec<TenantId>> {
    match named {
        Some(tenant) => Ok(vec![TenantId::new(tenant).context("--tenant")?]),
        None => Ok(store.list_tenants().await?),
    }
}

/// Events as the detector saw them.
pub(crate) struct History<'a> {
    store: &'a Store,
    ledgers: HashMap<String, LedgerReader>,
    data: &'a Path,
    rows: u32,
    /// Events that were asked for and left out.
    pub(crate) gone: u64,
}

impl<'a> History<'a> {
    pub(crate) fn new(store: &'a Store, data: &'a Path) -> Self {
        Self { store, ledgers: HashMap::new(), data, rows: PAGE, gone: 0 }
    }

    /// The same by pages of so many rows.
    pub(crate) fn with_rows(mut self, rows: u32) -> Self {
        self.rows = rows;
        self
    }

    /// The tenant's events of a span that come after a place of the history, which goes on behind them. None: that was all.
    pub(crate) async fn page(
        &mut self,
        tenant: &TenantId,
        after: &mut i64,
        span: (Timestamp, Timestamp),
    ) -> anyhow::Result<Option<Vec<SecurityEvent>>> {
        let page = self.store.history_in_order(tenant, *after, span, self.rows).await?;
        let Some((last, _)) = page.last() else { return Ok(None) };
        *after = *last;
        let rows: Vec<HistoryRow> = page.into_iter().map(|(_, row)| row).collect();
        Ok(Some(self.events(&rows).await?))
    }

    /// The events of some rows; those whose text is gone are left out, and counted.
    pub(super) async fn events(&mut self, rows: &[HistoryRow]) -> anyhow::Result<Vec<SecurityEvent>> {
        debug_assert!(self.store.is_on_this_machine() || rows.iter().all(|row| row.wire.text().is_some()));
        let kept = self.kept(rows).await?;
        let mut events = Vec::with_capacity(rows.len());
        for row in rows {
            let text = match &row.wire {
                Wire::Text(text) => text.clone(),
                Wire::Kept { by, position } => match kept.get(&(by.to_string(), *position)) {
                    Some(text) => text.clone(),
                    // Told of where evidence is asked for; a rule cannot see what is gone.
                    None => {
                        self.gone += 1;
                        continue;
                    }
                },
            };
            let mut event =
                WireEvent::read(text.as_bytes()).and_then(|wire| wire.event()).with_context(|| row.event_id.to_string())?;
            if event.event_id != row.event_id {
                // The ledger is another one than that which the history names.
                self.gone += 1;
                continue;
            }
            event.bus_ts = row.bus_ts.or(Some(row.ts));
            event.verified = row.is_proved() && event.is_for_its_lane_to_say() && !is_ahead_of_time(&event);
            events.push(event);
        }
        Ok(events)
    }

    /// The texts that stand in a ledger, by its name and their place there.
    async fn kept(&mut self, rows: &[HistoryRow]) -> anyhow::Result<HashMap<(String, i64), Arc<str>>> {
        let mut wanted: HashMap<String, (i64, i64)> = HashMap::new();
        for row in rows {
            if let Wire::Kept { by, position } = &row.wire {
                let span = wanted.entry(by.to_string()).or_insert((*position, *position));
                *span = (span.0.min(*position), span.1.max(*position));
            }
        }
        let mut texts = HashMap::new();
        for (by, (first, last)) in wanted {
            if !self.ledgers.contains_key(&by) {
                let path = self.data.join(&by).join("ledger.db");
                let reader = LedgerReader::open(&path).await.with_context(|| path.display().to_string())?;
                self.ledgers.insert(by.clone(), reader);
            }
            let (Some(ledger), Some(row)) = (self.ledgers.get(&by), rows.first()) else { continue };
            let mut after = first - 1;
            while after < last {
                let lines = ledger.export(&row.tenant_id, after, PAGE as usize).await?;
                let Some(end) = lines.last() else { break };
                after = end.row;
                let sealed = lines.into_iter().filter(|line| line.is_sealed);
                texts.extend(sealed.map(|line| ((by.clone(), line.row), line.text.as_str().into())));
            }
        }
        Ok(texts)
    }
}

/// How far it is, on a terminal.
pub(super) struct Progress {
    events: u64,
    shown: u64,
    is_terminal: bool,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { events: 0, shown: 0, is_terminal: std::io::stderr().is_terminal() }
    }

    pub(super) fn passed(&mut self, events: usize) {
        self.events += events as u64;
        if self.is_terminal && self.events >= self.shown + PROGRESS {
            self.shown = self.events;
            eprint!("\r{} events", self.events);
            let _unseen = std::io::stderr().flush();
        }
    }

    pub(super) fn done(&self) {
        if self.shown > 0 {
            eprintln!("\r{} events", self.events);
        }
    }
}
