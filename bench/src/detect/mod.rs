//! The detection engine by itself on one core: real rules through the real loader, over events that a real ledger sealed and detection's first
//! stage proved. No HTTP and no bus. No figure is printed unless what was told is what the log was made to be told of and, for its beginning, what
//! the plain plan tells: else the benchmark fails.

mod calls;
mod log;
mod matches;
mod peer;
mod rules;
mod run;
mod table;
mod traffic;

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use serde::Serialize;
use tokio::runtime::Runtime;

pub(crate) use self::peer::{PeerOptions, run as run_for_peer};
pub(crate) use self::run::{RunOptions, run};
pub(crate) use self::table::print;

use self::rules::{Fill, Texts};
use self::run::{Measured, PREFIX};
use self::traffic::{SPAN_S, Traffic};
use crate::instance::data_folder;

/// Quiet tenants beside a hot one.
const QUIET: usize = 1000;
/// How much of what goes without the hot tenant the quiet ones send, so that there is room for as many events of the hot one.
const QUIET_SHARE: f64 = 0.25;
/// The same where there is nothing to make room for.
const SHARE: f64 = 0.5;

/// What the command line asks for.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// How many rules; several runs with commas
    #[arg(long, value_delimiter = ',', default_values_t = [10, 50, 200])]
    rules: Vec<usize>,
    /// Where a set has more rules than are shipped, what the copies look at that fill it; both with a comma
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Fill::Copies, Fill::Apart])]
    sets: Vec<Fill>,
    /// How many tenants; several runs with commas
    #[arg(long, value_delimiter = ',', default_values_t = [10, 1000, 10_000])]
    tenants: Vec<usize>,
    /// Events of a log, about, over a quarter of an hour of their own time; beside a hot tenant and in a flood twice as many
    #[arg(long, default_value_t = 100_000)]
    events: usize,
    /// Print what is in the file instead of tables
    #[arg(long)]
    pub(crate) json: bool,
}

/// What was measured, and on what.
#[derive(Debug, Serialize)]
pub(crate) struct Detected {
    rule_sets: Vec<Filled>,
    /// About so many in each log, over so much event time.
    events: usize,
    event_time_s: i64,
    /// Events of which both plans told the same.
    proved_events: usize,
    /// By set, tenants and rules.
    even: Vec<Subject>,
    /// If there are sets of copies.
    #[serde(flatten)]
    disturbed: Option<Disturbed>,
}

/// A kind of rule set.
#[derive(Debug, Serialize)]
struct Filled {
    set: Fill,
    how: &'static str,
    /// How many its logs have.
    tools: usize,
}

/// A hot tenant and a flood, with what they are compared with: rules of the set of copies.
#[derive(Debug, Serialize)]
struct Disturbed {
    quiet: Subject,
    quiet_beside_hot: Subject,
    flood: Subject,
}

/// One configuration, with its rounds.
#[derive(Debug, Serialize)]
struct Subject {
    set: Fill,
    tenants: usize,
    rules: usize,
    #[serde(skip)]
    log: PathBuf,
    #[serde(skip)]
    texts: PathBuf,
    rounds: Vec<Measured>,
}

/// Each configuration in turn, `rounds` times, each for about as long as its log takes and `seconds` at a fixed rate.
pub(crate) fn measure(runtime: &Runtime, options: &Options, seconds: u64, rounds: usize) -> anyhow::Result<Detected> {
    let Options { rules, sets, tenants, events, .. } = options;
    let all_are_some = [*events, rounds].iter().chain(rules).chain(tenants).all(|number| *number > 0);
    ensure!(
        all_are_some && !rules.is_empty() && !sets.is_empty() && !tenants.is_empty(),
        "events, rules, sets, tenants and rounds must all be at least one"
    );
    let folder = data_folder()?;
    let mut stock = Stock { runtime, events: *events, folder: folder.path(), logs: Vec::new() };
    let (mut rule_sets, mut even) = (Vec::new(), Vec::new());
    for set in sets {
        // One log for all sizes of a set: with the tools of the largest.
        let tools = Texts::of(rules.iter().copied().max().unwrap_or(0), *set)?.tools_of_a_log();
        rule_sets.push(Filled { set: *set, how: set.how(), tools });
        for count in tenants {
            let traffic = match set {
                Fill::Copies => Traffic::Even(*count),
                Fill::Apart => Traffic::Tools { tenants: *count, tools },
            };
            for of_rules in rules {
                even.push(stock.subject(*set, traffic, *count, *of_rules)?);
            }
        }
    }
    let disturbed = if sets.contains(&Fill::Copies) {
        // Neither the least nor the most.
        let beside = rules[rules.len() / 2];
        let mut of_copies = |traffic, tenants| stock.subject(Fill::Copies, traffic, tenants, beside);
        let (quiet, quiet_beside_hot) = (of_copies(Traffic::Even(QUIET), QUIET)?, of_copies(Traffic::Hot(QUIET), QUIET + 1)?);
        Some(Disturbed { quiet, quiet_beside_hot, flood: of_copies(Traffic::Flood, 2)? })
    } else {
        None
    };
    let mut detected = Detected { rule_sets, events: *events, event_time_s: SPAN_S, proved_events: PREFIX, even, disturbed };
    let mut proved = BTreeSet::new();
    for one in detected.subjects() {
        if proved.insert((one.log.clone(), one.texts.clone())) {
            one.prove()?;
        }
    }
    for round in 1..=rounds {
        let at = |share: f64| Pace { rate: 0.0, share, seconds };
        for one in &mut detected.even {
            one.round(round, at(SHARE))?;
        }
        if let Some(Disturbed { quiet, quiet_beside_hot, flood }) = &mut detected.disturbed {
            let rate = quiet.round(round, at(QUIET_SHARE))?;
            quiet_beside_hot.round(round, Pace { rate: 2.0 * rate, ..at(SHARE) })?;
            flood.round(round, at(SHARE))?;
        }
    }
    progress("");
    Ok(detected)
}

impl Detected {
    fn subjects(&self) -> impl Iterator<Item = &Subject> {
        let disturbed = self.disturbed.iter().flat_map(|all| [&all.quiet, &all.quiet_beside_hot, &all.flood]);
        self.even.iter().chain(disturbed)
    }
}

/// How fast events come in the measurement at a fixed rate: so many a second, or a share of what goes.
struct Pace {
    rate: f64,
    share: f64,
    seconds: u64,
}

impl Subject {
    fn name(&self) -> String {
        format!("{} tenants, {} rules", self.tenants, self.rules)
    }

    /// One more round; the rate of its measurement at a fixed rate.
    fn round(&mut self, round: usize, pace: Pace) -> anyhow::Result<f64> {
        progress(&format!("round {round}: {}, {}", self.name(), self.set.name()));
        let Pace { rate, share, seconds } = pace;
        let output =
            self.start(&["--rate", &rate.to_string(), "--share", &share.to_string(), "--seconds", &seconds.to_string()])?;
        let measured: Measured = serde_json::from_slice(&output).context("a run printed no measurement")?;
        let came = measured.rate;
        self.rounds.push(measured);
        Ok(came)
    }

    /// Both plans over the beginning of the log.
    fn prove(&self) -> anyhow::Result<()> {
        progress(&format!("both plans: {}, {}", self.name(), self.set.name()));
        self.start(&["--prove"]).map(drop)
    }

    /// A process of its own on the last core: what it prints.
    fn start(&self, more: &[&str]) -> anyhow::Result<Vec<u8>> {
        let core = std::thread::available_parallelism().map_or(0, |cores| cores.get() - 1);
        let mut command = Command::new(std::env::current_exe().context("where is this program?")?);
        command.arg("detect-run").arg("--log").arg(&self.log).arg("--rules").arg(&self.texts);
        command.args(["--core", &core.to_string()]).args(more);
        let output = command.stderr(Stdio::inherit()).output().context("cannot start a run")?;
        ensure!(
            output.status.success(),
            "{}, {}: no figure, because the run failed ({})",
            self.name(),
            self.set.name(),
            output.status
        );
        Ok(output.stdout)
    }
}

/// Logs and rules on the disk, made where they are asked for first.
struct Stock<'a> {
    runtime: &'a Runtime,
    events: usize,
    folder: &'a Path,
    logs: Vec<(Traffic, PathBuf)>,
}

impl Stock<'_> {
    fn subject(&mut self, set: Fill, traffic: Traffic, tenants: usize, rules: usize) -> anyhow::Result<Subject> {
        let (log, texts) = (self.log_of(traffic)?, self.texts_of(set, rules)?);
        Ok(Subject { set, tenants, rules, log, texts, rounds: Vec::new() })
    }

    fn log_of(&mut self, traffic: Traffic) -> anyhow::Result<PathBuf> {
        if let Some((_, path)) = self.logs.iter().find(|(sealed, _)| *sealed == traffic) {
            return Ok(path.clone());
        }
        progress(&format!("sealing a log: {traffic:?}"));
        let path = self.folder.join(format!("log-{}", self.logs.len()));
        self.runtime.block_on(log::seal(traffic, self.events, &path))?;
        self.logs.push((traffic, path.clone()));
        Ok(path)
    }

    fn texts_of(&self, set: Fill, rules: usize) -> anyhow::Result<PathBuf> {
        let path = self.folder.join(format!("{}-{rules}", set.name()));
        if !path.exists() {
            Texts::of(rules, set)?.save(&path)?;
        }
        Ok(path)
    }
}

/// What is being done, on a terminal.
fn progress(what: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[2K{what}");
    }
}
