//! What lies long before what detection keeps: a tenant's own rule whose window is longer is filled from there before it acts.
//! Promises that no tick waits for what is read; that the rule begins at a record of the log which says that all of it can be read, so that it begins
//! in the same place whenever the log is read; and that where nothing can be read it waits until it knows its window by itself.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{BusError, Stream};
use aegis_model::{RuleWarmRecord, SecurityEvent, TenantId, Timestamp};
use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::Instant;

use crate::checkpoint::Checkpoint;
use crate::engine::Engine;
use crate::error::DetectError;
use crate::evaluate::{RuleStats, RunningRule};
use crate::follow::{READ_WAIT, Running};
use crate::own::{KnownRule, OwnRule, reach_of};
use crate::scope::Since;
use crate::sieve::Sieve;
use crate::worker::{Shared, WorkerStats};

/// Events that a rule is filled with at most: no rule keeps more of a tenant.
pub(crate) const MOST: usize = 200_000;
/// How often it is looked whether all that is wanted is there; what fails is asked again after twice as long each time, so many times.
const LOOK: Duration = Duration::from_secs(1);
const MOST_DOUBLED: u32 = 6;

/// None: they are more than was asked for. An error: it cannot be told now.
pub type Past = Result<Option<Vec<SecurityEvent>>, String>;

/// Where events are that detection does not keep any more.
pub trait PastEvents: Send + Sync + fmt::Debug {
    /// The consumer of the stream ASE that writes them there: what it has passed is there to be read, and changes no more.
    fn consumer(&self) -> &'static str;
    /// Asks for events, which come in the order of events. Never waits: whoever answers does so when it has read them.
    fn ask(&self, asked: PastAsked) -> oneshot::Receiver<Past>;
}

/// Which events are asked for: a tenant's of `from <= ts < to`, unless they are more than `most`.
#[derive(Clone, Debug)]
pub struct PastAsked {
    pub tenant: TenantId,
    pub from: Timestamp,
    pub to: Timestamp,
    pub most: usize,
    /// True: those too that were late, each of which says so. False: those alone that were in time.
    pub with_late: bool,
    /// What it leaves out may be left out.
    pub sieve: Option<Arc<Sieve>>,
}

impl PastAsked {
    /// All that was in time.
    fn in_time(tenant: &TenantId, from: Timestamp, to: Timestamp) -> Self {
        Self { tenant: tenant.clone(), from, to, most: MOST, with_late: false, sieve: None }
    }
}

/// Who puts into the log that a rule knows its window. Records of rules count by control's signature alone, whose key detection has not.
#[async_trait]
pub trait WarmRecords: Send + Sync + fmt::Debug {
    /// Signs the record as control, and publishes it under `ruleset.<pp>` of its tenant, without an id. May be asked for the same one again.
    async fn put(&self, record: &RuleWarmRecord) -> Result<(), BusError>;
}

/// What a rule is to be filled with, once the consumer has passed all of it.
#[derive(Clone, Debug)]
struct Wanted {
    record: RuleWarmRecord,
    from: Timestamp,
    to: Timestamp,
    behind: u64,
}

#[derive(Debug)]
enum Step {
    Asked(Wanted, oneshot::Receiver<Past>),
    /// The log is to be told.
    Read(Wanted, Vec<SecurityEvent>),
    /// The log was told, and was not read up to there.
    Told(Wanted, Vec<SecurityEvent>),
}

/// Rules that are to be filled, one at a time.
#[derive(Debug, Default)]
pub(crate) struct WarmUp {
    past: Option<Arc<dyn PastEvents>>,
    records: Option<Arc<dyn WarmRecords>>,
    wanted: VecDeque<Wanted>,
    step: Option<Step>,
    rests_until: Option<Instant>,
    /// How often in a row nothing could be read.
    failures: u32,
    /// The newest message with an event that was taken.
    pub(crate) last_event: u64,
}

impl WarmUp {
    pub(crate) fn new(past: Option<Arc<dyn PastEvents>>, records: Option<Arc<dyn WarmRecords>>) -> Self {
        Self { past, records, ..Self::default() }
    }

    /// True if a rule can be filled at all.
    fn is_possible(&self) -> bool {
        self.past.is_some() && self.records.is_some()
    }

    pub(crate) fn note_event(&mut self, seq: u64) {
        self.last_event = seq.max(self.last_event);
    }

    /// The stream is another one, and may not have what the one before was told.
    pub(crate) fn begin_again(&mut self) {
        self.last_event = 0;
        self.wanted.iter_mut().for_each(|wanted| wanted.behind = 0);
        if let Some(Step::Told(wanted, events)) = self.step.take_if(|step| matches!(step, Step::Told(..))) {
            self.step = Some(Step::Read(wanted, events));
        }
    }

    /// A later version of a rule takes the place of the one before.
    fn want(&mut self, wanted: Wanted) {
        let is_other = |before: &Wanted| {
            (&before.record.tenant_id, &before.record.rule_id) != (&wanted.record.tenant_id, &wanted.record.rule_id)
        };
        self.wanted.retain(is_other);
        self.wanted.push_back(wanted);
    }

    /// What was read for a record that the log has now.
    fn take_told(&mut self, record: &RuleWarmRecord) -> Option<Vec<SecurityEvent>> {
        let is_it = |step: &mut Step| matches!(step, Step::Told(wanted, _) if wanted.record == *record);
        match self.step.take_if(is_it) {
            Some(Step::Told(_, events)) => Some(events),
            _ => None,
        }
    }

    fn try_again(&mut self, wanted: Wanted, reason: &str) {
        let RuleWarmRecord { tenant_id, rule_id, .. } = &wanted.record;
        tracing::warn!(tenant = %tenant_id, rule = rule_id, reason, "what lies before a rule cannot be read now; it waits");
        self.failures = (self.failures + 1).min(MOST_DOUBLED);
        self.rests_until = Some(Instant::now() + LOOK * 2_u32.pow(self.failures));
        self.wanted.push_back(wanted);
    }
}

impl Engine {
    fn own_rule(&self, tenant: &TenantId, id: &str) -> Option<&RunningRule> {
        self.rules.iter().find(|running| running.is_own(tenant, id))
    }

    /// From when on a rule acts, and, where it was filled, from when on it would know its window without what was read.
    pub(crate) fn set_since(&mut self, tenant: &TenantId, id: &str, since: Timestamp, whole: Option<Timestamp>) {
        for running in self.rules.iter_mut().filter(|running| running.is_own(tenant, id)) {
            (running.since, running.whole) = (Since::of_owner(tenant, since), whole);
        }
    }
}

impl Running {
    /// Since when all of a tenant's events are in the part of the stream that is read again after a restart, in microseconds: all of them, until
    /// something of the tenant is final. A rule that came a while ago, the tenant's own or an operator's, holds no more than was there when it came,
    /// whatever its window is. To be asked before a rule comes, whose window would count.
    pub(crate) fn held_from(&self, tenant: &TenantId) -> i64 {
        let settled = self.engine.settled.get(tenant);
        settled.map_or(i64::MIN, |settled| self.engine.kept_from(tenant, *settled).as_micros())
    }

    /// Has a rule filled that waits until it knows its window, where that helps: of a rule that contains it does not, since nobody followed the lanes
    /// of what is read; nor while events of the tenant are gone.
    pub(crate) fn want_past(&mut self, known: &KnownRule, now: Timestamp) {
        let KnownRule { tenant_id, rule_id, revision, since, held, is_filled, .. } = known;
        let (Some(held), Some(running)) = (held, self.engine.own_rule(tenant_id, rule_id)) else { return };
        let from = now.plus_micros(-reach_of(running));
        let gone = self.tail.cut().get(tenant_id).copied().max(self.engine.lost.to(tenant_id));
        let is_gone = gone.is_some_and(|gone| gone >= from);
        let reads_events = running.plan.sources.is_none();
        let waits = *since > now && !is_filled && !running.rule.header.contains() && reads_events;
        if !self.warm.is_possible() || is_gone || !waits {
            return;
        }
        let record = RuleWarmRecord { tenant_id: tenant_id.clone(), rule_id: rule_id.clone(), revision: *revision };
        let behind = self.warm.last_event;
        self.warm.want(Wanted { record, from, to: Timestamp::from_micros(*held), behind });
    }

    /// One step on the way to a rule that is filled; waits for nobody but the bus.
    pub(crate) async fn warm_up(&mut self) -> Result<(), DetectError> {
        let rests = self.warm.rests_until.is_some_and(|until| Instant::now() < until);
        match self.warm.step.take() {
            Some(Step::Asked(wanted, mut answer)) => match answer.try_recv() {
                Err(TryRecvError::Empty) => self.warm.step = Some(Step::Asked(wanted, answer)),
                Ok(Ok(Some(events))) => {
                    self.warm.failures = 0;
                    self.warm.step = Some(Step::Read(wanted, events));
                }
                Ok(Ok(None)) => {
                    let RuleWarmRecord { tenant_id, rule_id, .. } = &wanted.record;
                    tracing::warn!(tenant = %tenant_id, rule = rule_id, most = MOST, "more lies before a rule than it may keep; it waits");
                }
                Ok(Err(reason)) => self.warm.try_again(wanted, &reason),
                Err(TryRecvError::Closed) => self.warm.try_again(wanted, "nobody answered"),
            },
            Some(Step::Read(wanted, events)) if !rests && self.is_warming(&wanted.record) => {
                self.warm.rests_until = Some(Instant::now() + LOOK);
                let told = self.tell_warm(&wanted.record).await;
                let is_told = matches!(told, Ok(true));
                self.warm.step = Some(if is_told { Step::Told(wanted, events) } else { Step::Read(wanted, events) });
                told?;
            }
            Some(Step::Read(wanted, events)) => {
                // Of a version that does not wait any more nothing is told.
                self.warm.step = self.is_warming(&wanted.record).then_some(Step::Read(wanted, events));
            }
            Some(told @ Step::Told(..)) => self.warm.step = Some(told),
            None if rests || self.warm.wanted.is_empty() => {}
            None => {
                self.warm.rests_until = Some(Instant::now() + LOOK);
                self.ask_next().await?;
            }
        }
        Ok(())
    }

    /// Asks for what the next rule is to be filled with, if all of it is there.
    async fn ask_next(&mut self) -> Result<(), DetectError> {
        let (Some(past), Some(wanted)) = (self.warm.past.clone(), self.warm.wanted.pop_front()) else { return Ok(()) };
        if !self.is_warming(&wanted.record) {
            return Ok(());
        }
        if wanted.from >= wanted.to {
            self.warm.step = Some(Step::Read(wanted, Vec::new()));
            return Ok(());
        }
        // While something of that time may still come, what is read is not all that there will be.
        let is_final = self.engine.settled.get(&wanted.record.tenant_id).is_none_or(|settled| wanted.to <= *settled);
        if !is_final {
            self.warm.wanted.push_back(wanted);
            return Ok(());
        }
        let passed = match self.bus.consumer_position(Stream::Ase, past.consumer()).await {
            Ok(passed) => passed,
            Err(error) => {
                self.warm.wanted.push_front(wanted);
                return Err(error.into());
            }
        };
        if passed < wanted.behind {
            self.warm.wanted.push_back(wanted);
            return Ok(());
        }
        let answer = past.ask(PastAsked::in_time(&wanted.record.tenant_id, wanted.from, wanted.to));
        self.warm.step = Some(Step::Asked(wanted, answer));
        Ok(())
    }

    /// True while this version of a rule waits until it knows its window.
    fn is_warming(&self, record: &RuleWarmRecord) -> bool {
        let known = self.own.known.get(&(record.tenant_id.clone(), record.rule_id.clone()));
        known.is_some_and(|known| {
            known.revision == record.revision && !known.is_filled && self.stored.is_none_or(|stored| known.since > stored)
        })
    }

    /// False where the log has no room now.
    async fn tell_warm(&self, record: &RuleWarmRecord) -> Result<bool, DetectError> {
        let Some(records) = &self.warm.records else { return Ok(false) };
        match records.put(record).await {
            Ok(()) => Ok(true),
            // It has room again once a checkpoint releases it, which must not wait for this.
            Err(error @ BusError::Full { .. }) => {
                tracing::warn!(%error, "the log cannot be told now that a rule knows its window");
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Takes a record that a rule knows its window. Nothing has changed where it fails; where nothing can be read, the rule waits on.
    pub(crate) async fn take_warm(
        &mut self,
        record: &RuleWarmRecord,
        now: Timestamp,
        shared: &Shared,
    ) -> Result<(), DetectError> {
        let read = self.warm.take_told(record);
        let place = (record.tenant_id.clone(), record.rule_id.clone());
        let Some(mut known) = self.own.known.get(&place).filter(|_| self.is_warming(record)).cloned() else { return Ok(()) };
        let Some(own) = self.own_again(&known) else { return Ok(()) };
        let Some(held) = known.held.filter(|_| !own.rule.header.contains() && known.since > now) else { return Ok(()) };
        let past = match read {
            Some(events) => events,
            None => {
                let reach = self.engine.own_rule(&known.tenant_id, &known.rule_id).map_or(0, reach_of);
                let from = now.plus_micros(-reach);
                let Some(events) = self.read_past(&known.tenant_id, from, Timestamp::from_micros(held)).await else {
                    return Ok(());
                };
                events
            }
        };
        // What rules have put off is of the time before.
        self.catch_up(shared).await?;
        let started = self.clock.now();
        let mut events = self.events_of(&known.tenant_id).await?;
        events.extend(past);
        let whole = known.since;
        (known.since, known.is_filled) = (now, true);
        tracing::info!(tenant = %known.tenant_id, rule = known.rule_id, events = events.len(), "a tenant's own rule knows its window");
        let output = self.engine.fill_own(own, now, events);
        self.engine.set_since(&known.tenant_id, &known.rule_id, now, Some(whole));
        known.whole = Some(whole);
        self.tell(WorkerStats::default(), output, Vec::new(), started, shared).await?;
        self.own.known.insert(place, known);
        Ok(())
    }

    /// The rule as it runs, to begin anew. None: it does not run, or not for its tenant.
    fn own_again(&self, known: &KnownRule) -> Option<OwnRule> {
        let running = self.engine.own_rule(&known.tenant_id, &known.rule_id)?;
        let runs = running.stats.quarantined.is_none() && running.stats.set_aside.is_empty();
        let own = self.own.read(&known.tenant_id, &running.rule.text).ok();
        own.filter(|_| runs)
    }

    /// Waits for what lies before, at most as long as for a message that must be there: a log that is read again says that it can be read.
    async fn read_past(&self, tenant: &TenantId, from: Timestamp, to: Timestamp) -> Option<Vec<SecurityEvent>> {
        if from >= to {
            return Some(Vec::new());
        }
        let answer = self.warm.past.as_ref()?.ask(PastAsked::in_time(tenant, from, to));
        let reason = match tokio::time::timeout(READ_WAIT, answer).await {
            Ok(Ok(Ok(Some(events)))) => return Some(events),
            Ok(Ok(Ok(None))) => "there is more than a rule may keep".to_owned(),
            Ok(Ok(Err(reason))) => reason,
            Ok(Err(_)) | Err(_) => "nobody answers".to_owned(),
        };
        tracing::warn!(%tenant, reason, "what lies before a rule cannot be read; it waits until it knows its window");
        None
    }

    /// What filled rules need, beside the events that are read again after a restart: of each tenant what its rules look back to and the stream has not.
    /// Where that cannot be read they wait anew.
    pub(crate) async fn past_of_filled(&mut self, checkpoint: &Checkpoint) -> Vec<SecurityEvent> {
        let mut spans: BTreeMap<TenantId, (Timestamp, Timestamp)> = BTreeMap::new();
        for known in self.own.known.values().filter(|known| known.is_filled) {
            let Some(running) = self.engine.own_rule(&known.tenant_id, &known.rule_id) else { continue };
            let Some(settled) = checkpoint.engine.settled_to(&known.tenant_id) else { continue };
            let (from, to) = (settled.plus_micros(-reach_of(running)), Timestamp::from_micros(known.held.unwrap_or(i64::MIN)));
            if from < to {
                let (first, last) = spans.entry(known.tenant_id.clone()).or_insert((from, to));
                (*first, *last) = (from.min(*first), to.max(*last));
            }
        }
        let (mut all, mut answers) = (Vec::new(), true);
        for (tenant, (from, to)) in spans {
            let past = if answers { self.read_past(&tenant, from, to).await } else { None };
            match past {
                Some(events) => all.extend(events),
                None => {
                    // Nobody is asked again and again while all wait.
                    answers = false;
                    self.wait_anew(&tenant);
                }
            }
        }
        all
    }

    /// The filled rules of a tenant wait until they know their windows by themselves.
    fn wait_anew(&mut self, tenant: &TenantId) {
        for known in self.own.known.values_mut().filter(|known| known.is_filled && known.tenant_id == *tenant) {
            let whole = known.whole.unwrap_or(known.since);
            (known.since, known.is_filled) = (whole, false);
            self.engine.set_since(&known.tenant_id, &known.rule_id, whole, None);
        }
    }

    /// Rules that waited when the checkpoint was written.
    pub(crate) fn want_again(&mut self) {
        self.warm.note_event(self.position);
        let Some(stored) = self.stored else { return };
        let known: Vec<KnownRule> = self.own.known.values().cloned().collect();
        known.iter().for_each(|known| self.want_past(known, stored));
    }

    /// Counters of each rule; which of them do not know their window yet.
    pub(crate) fn rule_stats(&self) -> Vec<RuleStats> {
        let is_warming = |running: &RunningRule| {
            running.scope.owner().is_some_and(|tenant| self.stored.is_some_and(|stored| running.since.of(tenant) > stored))
        };
        let stats = self.engine.stats().into_iter().zip(&self.engine.rules);
        stats.map(|(stats, running)| RuleStats { warming: u64::from(is_warming(running)), ..stats }).collect()
    }
}
