//! One measurement, in a process of its own, so that its memory is its own: an engine on one core over a log, as fast as it goes, and again at a
//! fixed rate.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aegis_detect::{Engine, EngineConfig};
use aegis_model::{Alert, Clock, EventId, ManualClock, SecurityEvent, SystemClock, Timestamp};
use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::log::{Log, read};
use super::matches::{Matches, must_be_told};
use super::rules::Texts;
use super::traffic::HOT;
use crate::load::percentile;
use crate::stage::pin;

/// Events of a tick at most: those of the program's.
const MAX_BATCH: usize = 2048;
/// How long is waited where no event is due: the timer's resolution.
const NOTHING_DUE: Duration = Duration::from_millis(1);
/// After the last event: what rules have put off.
const NOTHING: &[SecurityEvent] = &[];
/// Events of which both plans tell before anything is measured; the plain one looks at whole windows for each tick.
pub(crate) const PREFIX: usize = 4 * MAX_BATCH;

/// What is to be measured.
#[derive(Debug, clap::Args)]
pub(crate) struct RunOptions {
    #[arg(long)]
    log: PathBuf,
    #[arg(long)]
    rules: PathBuf,
    #[arg(long)]
    core: u32,
    /// Events a second of the measurement at a fixed rate; 0: a share of what goes
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    #[arg(long, default_value_t = 0.5)]
    share: f64,
    /// Measure nothing: hold both plans against each other, and against what must be told
    #[arg(long)]
    prove: bool,
}

/// From the time when an alert's last event was handed in, or due, until the tick that told it was over: microseconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) alerts: usize,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// One round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Opened lanes included.
    pub(crate) events: usize,
    /// What reading, proving and linking an event costs before the engine has it.
    pub(crate) proof_us: f64,
    /// Loading all rules.
    pub(crate) load_s: f64,
    /// As fast as it goes, in ticks of `MAX_BATCH`.
    pub(crate) per_second: f64,
    pub(crate) event_us: f64,
    pub(crate) latency_at_saturation: Latency,
    /// Events a second of the measurement at a fixed rate, and how much faster than the clock event time passes there.
    pub(crate) rate: f64,
    pub(crate) time_lapse: f64,
    /// The hot tenant's alerts are left out.
    pub(crate) latency: Latency,
    /// Growth of resident memory: by the loaded rules, and from there to the most that was seen.
    pub(crate) rules_mib: f64,
    pub(crate) state_mib: f64,
    /// Alerts that stand, those that had to be told, and what the engine said of itself.
    pub(crate) alerts: usize,
    pub(crate) expected: usize,
    pub(crate) impaired: usize,
    /// Events of new keys that a full quota refused, summed over rules.
    pub(crate) refused: u64,
}

/// Measures, and prints it as JSON.
pub(crate) fn run(options: &RunOptions, seconds: u64) -> anyhow::Result<()> {
    pin(std::process::id(), options.core)?;
    if options.prove {
        return prove(options);
    }
    let log = read(&options.log, usize::MAX)?;
    let texts = Texts::read(&options.rules)?;
    let before = resident_mib()?;
    let started = Instant::now();
    let mut engine = new_engine(&texts, Arc::new(SystemClock), true)?;
    let load_s = started.elapsed().as_secs_f64();
    let loaded = resident_mib()?;

    let mut whole = Run::new(&log);
    let (busy, most) = whole.saturate(&mut engine, &log.events)?;
    let refused = engine.stats().iter().map(|rule| rule.refused).sum();
    whole.matches.take(engine.finish())?;
    let expected = whole.matches.check(&must_be_told(&log.expected, &texts, |_| true), log.known_whole)?;
    drop(engine);

    let per_second = log.events.len() as f64 / busy.as_secs_f64();
    let rate = if options.rate > 0.0 { options.rate } else { per_second * options.share };
    let count = ((rate * seconds as f64) as usize).clamp(1, log.events.len());
    let mut paced = Run::new(&log);
    let mut engine = new_engine(&texts, Arc::new(SystemClock), true)?;
    paced.pace(&mut engine, &log.events[..count], rate)?;
    paced.matches.take(engine.finish())?;
    paced.check(&log, &texts, count)?;

    let measured = Measured {
        events: log.events.len(),
        proof_us: log.proof_us,
        load_s,
        per_second,
        event_us: 1e6 / per_second,
        latency_at_saturation: whole.latency(),
        rate,
        time_lapse: event_seconds(&log.events) / (log.events.len() as f64 / rate),
        latency: paced.latency(),
        rules_mib: loaded - before,
        state_mib: most - loaded,
        alerts: whole.matches.len(),
        expected,
        impaired: whole.matches.impaired,
        refused,
    };
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

/// Both plans over the beginning of a log, in the same ticks.
fn prove(options: &RunOptions) -> anyhow::Result<()> {
    let log = read(&options.log, PREFIX)?;
    let texts = Texts::read(&options.rules)?;
    let told = |incremental: bool| {
        // A clock that stands still: no rule rests, so that both look at the same events at once, and none is over its budget.
        let mut engine = new_engine(&texts, Arc::new(ManualClock::new(Timestamp::default())), incremental)?;
        let mut run = Run::new(&log);
        for part in log.events.chunks(MAX_BATCH) {
            run.matches.take(engine.tick(part.to_vec()))?;
        }
        run.matches.take(engine.finish())?;
        anyhow::Ok(run)
    };
    let followed = told(true)?;
    followed.matches.check_same(&told(false)?.matches)?;
    followed.check(&log, &texts, log.events.len())
}

fn new_engine(texts: &Texts, clock: Arc<dyn Clock>, incremental: bool) -> anyhow::Result<Engine> {
    let mut config = EngineConfig::new(clock);
    config.incremental = incremental;
    Ok(Engine::new(texts.load()?, config))
}

/// An engine's way through a log.
struct Run {
    /// Where the events are of which something must be told, counted from the first.
    places: HashMap<EventId, usize>,
    matches: Matches,
    /// Microseconds.
    taken: Vec<f64>,
}

impl Run {
    fn new(log: &Log) -> Self {
        let expected: BTreeSet<EventId> = log.expected.iter().map(|one| one.event_id).collect();
        let events = log.events.iter().enumerate().filter(|(_, event)| expected.contains(&event.event_id));
        let places = events.map(|(place, event)| (event.event_id, place)).collect();
        Self { places, matches: Matches::default(), taken: Vec::new() }
    }

    /// Where an alert's last event is, if its latency counts.
    fn place_of(&self, alert: &Alert) -> Option<usize> {
        let last = alert.event_ids.last().filter(|_| alert.tenant_id.as_str() != HOT)?;
        self.places.get(last).copied()
    }

    /// One tick after the other; the time that the engine had, and the most memory, MiB. Copying the events is not the engine's time, and what it
    /// keeps of them is its memory.
    fn saturate(&mut self, engine: &mut Engine, events: &[SecurityEvent]) -> anyhow::Result<(Duration, f64)> {
        let (mut busy, mut most) = (Duration::ZERO, 0.0_f64);
        let mut handed_in = Vec::new();
        for part in events.chunks(MAX_BATCH).chain([NOTHING]) {
            let batch = part.to_vec();
            handed_in.push(busy);
            let started = Instant::now();
            let output = if batch.is_empty() { engine.catch_up() } else { engine.tick(batch) };
            busy += started.elapsed();
            let places: Vec<usize> = output.alerts.iter().filter_map(|alert| self.place_of(alert)).collect();
            for place in places {
                self.taken.push((busy - handed_in[place / MAX_BATCH]).as_secs_f64() * 1e6);
            }
            self.matches.take(output)?;
            most = most.max(resident_mib()?);
        }
        Ok((busy, most))
    }

    /// Events on a fixed schedule: a tick has those that are due. An alert's latency counts from the time at which its last event was due.
    fn pace(&mut self, engine: &mut Engine, events: &[SecurityEvent], rate: f64) -> anyhow::Result<()> {
        let started = Instant::now();
        let mut given = 0;
        while given < events.len() || engine.is_behind() {
            let due = ((started.elapsed().as_secs_f64() * rate) as usize).saturating_add(1).min(events.len());
            if due <= given {
                std::thread::sleep(NOTHING_DUE);
                // With events that go on, the next tick looks at what rules have put off.
                if given < events.len() {
                    continue;
                }
            }
            let batch = events[given..due.min(given + MAX_BATCH)].to_vec();
            given += batch.len();
            let output = engine.tick(batch);
            let now = started.elapsed().as_secs_f64();
            let places: Vec<usize> = output.alerts.iter().filter_map(|alert| self.place_of(alert)).collect();
            self.taken.extend(places.into_iter().map(|place| (now - place as f64 / rate) * 1e6));
            self.matches.take(output)?;
        }
        Ok(())
    }

    /// Holds what was told of the first `count` events against what must be.
    fn check(&self, log: &Log, texts: &Texts, count: usize) -> anyhow::Result<()> {
        let is_among = |id: &EventId| self.places.get(id).is_some_and(|place| *place < count);
        self.matches.check(&must_be_told(&log.expected, texts, is_among), log.known_whole)?;
        Ok(())
    }

    fn latency(&mut self) -> Latency {
        self.taken.sort_by(f64::total_cmp);
        let at = |share| if self.taken.is_empty() { 0.0 } else { percentile(&self.taken, share) };
        Latency { alerts: self.taken.len(), p50_us: at(0.5), p99_us: at(0.99) }
    }
}

/// From the first event to the last, by their own time.
fn event_seconds(events: &[SecurityEvent]) -> f64 {
    let (Some(first), Some(last)) = (events.first(), events.last()) else { return 0.0 };
    (last.ts.as_micros() - first.ts.as_micros()) as f64 / 1e6
}

/// Resident memory of this process.
fn resident_mib() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status").context("no /proc")?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    Ok(kib.context("/proc/self/status says nothing of resident memory")? / 1024.0)
}
