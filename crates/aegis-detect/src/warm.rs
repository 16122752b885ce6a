//! What lies long before what detection keeps: a rule that comes and whose window is longer is filled from there before it acts, a tenant's own, and, tenant
//! by tenant (`every`), one that every tenant has.
//! Promises that no tick waits for what is read; that the rule begins at a record of the log which says that all of it can be read, so that it begins
//! in the same place whenever the log is read; and that where nothing can be read it waits until it knows its window by itself.

mod cut;
pub(crate) mod every;
mod lanes;
mod waited;

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{BusError, Stream};
use aegis_model::{CommonRuleWarmRecord, RuleWarmRecord, SecurityEvent, TenantId, Timestamp};
use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use tokio::time::Instant;

use crate::back::reach_of;
use crate::engine::Engine;
use crate::error::DetectError;
use crate::evaluate::{RuleStats, RunningRule};
use crate::follow::{READ_WAIT, Running};
use crate::own::{KnownRule, OwnRule};
use crate::scope::Since;
use crate::sieve::Sieve;
use crate::worker::{Shared, WorkerStats};
pub use lanes::{Followed, Following, PastLanes, PastReceipts};

/// Events that a rule is filled with at most: no rule keeps more of a tenant.
pub(crate) const MOST: usize = 200_000;
/// How often it is looked whether all that is wanted is there; what fails is asked again after twice as long each time, so many times, and others meanwhile.
pub(crate) const LOOK: Duration = Duration::from_secs(1);
const MOST_DOUBLED: u32 = 8;
/// Between one that is filled and the next: what a tick takes for one, others wait for.
const NEXT: Duration = Duration::from_millis(50);

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
    /// All that was in time, or what a sieve leaves of it.
    fn in_time(tenant: &TenantId, from: Timestamp, to: Timestamp, sieve: Option<Arc<Sieve>>) -> Self {
        Self { tenant: tenant.clone(), from, to, most: MOST, with_late: false, sieve }
    }
}

/// Who puts into the log that a rule knows its window. Records of rules count by control's signature alone, whose key detection has not.
#[async_trait]
pub trait WarmRecords: Send + Sync + fmt::Debug {
    /// Signs the record as control, and publishes it under `ruleset.<pp>` of its tenant, without an id. May be asked for the same one again.
    async fn put(&self, record: &RuleWarmRecord) -> Result<(), BusError>;

    /// The same of a rule that every tenant has, for one of them.
    async fn put_common(&self, record: &CommonRuleWarmRecord) -> Result<(), BusError>;
}

/// Whose rule it is that is filled for a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    Own,
    EveryTenant,
}

/// What a rule is to be filled with, once the consumer has passed all of it.
#[derive(Clone, Debug)]
struct Wanted {
    whose: Whose,
    record: RuleWarmRecord,
    from: Timestamp,
    to: Timestamp,
    behind: u64,
    /// The rule contains, and nothing counts for it but what its lanes prove.
    contains: bool,
    /// How often in a row it could not be read, and until when it is left alone for that.
    failures: u32,
    rests_until: Option<Instant>,
}

impl Wanted {
    fn rests(&self, now: Instant) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }

    /// Whose rule it is, and which.
    fn of(&self) -> (Whose, &TenantId, &str) {
        (self.whose, &self.record.tenant_id, &self.record.rule_id)
    }
}

#[derive(Debug)]
enum Step {
    Asked(Wanted, oneshot::Receiver<Past>),
    /// The lanes of what was read are followed.
    Follows(Wanted, oneshot::Receiver<Followed>),
    /// The log is to be told.
    Read(Wanted, Vec<SecurityEvent>),
    /// The log was told, and was not read up to there.
    Told(Wanted, Vec<SecurityEvent>),
}

impl Step {
    const fn wanted(&self) -> &Wanted {
        match self {
            Self::Asked(wanted, _) | Self::Follows(wanted, _) | Self::Read(wanted, _) | Self::Told(wanted, _) => wanted,
        }
    }
}

/// Rules that are to be filled, one at a time.
#[derive(Debug)]
pub(crate) struct WarmUp {
    past: Option<Arc<dyn PastEvents>>,
    receipts: Option<Arc<dyn PastReceipts>>,
    records: Option<Arc<dyn WarmRecords>>,
    /// How long a lane waits for what is missing in it.
    hold_ms: i64,
    wanted: VecDeque<Wanted>,
    step: Option<Step>,
    rests_until: Option<Instant>,
    /// The newest message with an event that was taken.
    pub(crate) last_event: u64,
    /// How long a tick waits for what is read, and until when it waits for nobody.
    patience: Duration,
    waits_again_at: Option<Instant>,
    /// Records for which ticks waited in vain, the newest: sent again, they make nobody wait.
    in_vain: VecDeque<(Whose, RuleWarmRecord)>,
    /// Of whom something came since those were looked at whom rules of every tenant wait for; None while no such rule waits.
    spoke: Option<BTreeSet<TenantId>>,
    /// When those are counted again.
    counts_again_at: Option<Instant>,
}

impl WarmUp {
    pub(crate) fn new(past: Option<Arc<dyn PastEvents>>, records: Option<Arc<dyn WarmRecords>>) -> Self {
        Self {
            past,
            receipts: None,
            records,
            hold_ms: 0,
            wanted: VecDeque::new(),
            step: None,
            rests_until: None,
            last_event: 0,
            patience: READ_WAIT,
            waits_again_at: None,
            in_vain: VecDeque::new(),
            spoke: None,
            counts_again_at: None,
        }
    }

    /// With who has lanes followed, which live wait so long for what is missing in them.
    pub(crate) fn following(self, receipts: Option<Arc<dyn PastReceipts>>, hold_ms: i64) -> Self {
        Self { receipts, hold_ms, ..self }
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
        self.wanted.retain(|before| before.of() != wanted.of());
        self.wanted.push_back(wanted);
    }

    /// What was read for a record that the log has now.
    fn take_told(&mut self, whose: Whose, record: &RuleWarmRecord) -> Option<Vec<SecurityEvent>> {
        let is_it = |step: &mut Step| matches!(step, Step::Told(wanted, _) if wanted.whose == whose && wanted.record == *record);
        match self.step.take_if(is_it) {
            Some(Step::Told(_, events)) => Some(events),
            _ => None,
        }
    }

    /// What did not fail so far comes first: whose past cannot be read keeps nobody from his turn.
    fn take_next(&mut self, now: Instant) -> Option<Wanted> {
        let awake = self.wanted.iter().enumerate().filter(|(_, wanted)| !wanted.rests(now));
        let (place, _) = awake.min_by_key(|(_, wanted)| wanted.failures)?;
        self.wanted.remove(place)
    }

    /// How many are wanted and did not fail.
    fn fresh(&self) -> usize {
        self.wanted.iter().filter(|wanted| wanted.failures == 0).count()
    }

    fn try_again(&mut self, mut wanted: Wanted, reason: &str) {
        let RuleWarmRecord { tenant_id, rule_id, .. } = &wanted.record;
        tracing::warn!(tenant = %tenant_id, rule = rule_id, reason, "what lies before a rule cannot be read now; it waits");
        wanted.rests_until = Some(rests_until(&mut wanted.failures, MOST_DOUBLED));
        self.rests_until = Some(Instant::now() + LOOK);
        self.wanted.push_back(wanted);
    }
}

/// What failed once more rests twice as long as before, so many times: until when.
pub(crate) fn rests_until(failures: &mut u32, most_doubled: u32) -> Instant {
    *failures = failures.saturating_add(1).min(most_doubled);
    Instant::now() + LOOK * 2_u32.saturating_pow(*failures)
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

    /// True of a rule that may be filled at all. One that reads alerts begins without; one that contains is filled where lanes can be followed.
    fn may_be_filled(&self, running: &RunningRule) -> bool {
        running.plan.sources.is_none() && (self.warm.receipts.is_some() || !running.rule.header.contains())
    }

    /// Has a rule filled that waits until it knows its window, where that helps: not while events of the tenant are gone.
    pub(crate) fn want_past(&mut self, known: &KnownRule, now: Timestamp) {
        let KnownRule { tenant_id, rule_id, revision, since, held, is_filled, .. } = known;
        let (Some(held), Some(running)) = (held, self.engine.own_rule(tenant_id, rule_id)) else { return };
        let from = now.plus_micros(-reach_of(running));
        let waits = *since > now && !is_filled && self.may_be_filled(running);
        let contains = running.rule.header.contains();
        if !self.warm.is_possible() || !waits || self.is_gone(tenant_id, from) {
            return;
        }
        let record = RuleWarmRecord { tenant_id: tenant_id.clone(), rule_id: rule_id.clone(), revision: *revision };
        let behind = self.warm.last_event;
        let to = Timestamp::from_micros(*held);
        self.warm.want(Wanted { whose: Whose::Own, record, from, to, behind, contains, failures: 0, rests_until: None });
    }

    /// True once nothing of the time that is wanted can still come.
    fn is_final(&self, wanted: &Wanted) -> bool {
        self.engine.settled.get(&wanted.record.tenant_id).is_none_or(|settled| wanted.to <= *settled)
    }

    /// True if some of a tenant's events from a time on were given up, or lie before the log that is read.
    fn is_gone(&self, tenant: &TenantId, from: Timestamp) -> bool {
        let gone = self.tail.cut_of(tenant).max(self.engine.lost.to(tenant));
        gone.is_some_and(|gone| gone >= from)
    }

    /// One step on the way to a rule that is filled; waits for nobody but the bus.
    pub(crate) async fn warm_up(&mut self) -> Result<(), DetectError> {
        let rests = self.warm.rests_until.is_some_and(|until| Instant::now() < until);
        match self.warm.step.take() {
            Some(Step::Asked(wanted, mut answer)) => match answer.try_recv() {
                Err(TryRecvError::Empty) => self.warm.step = Some(Step::Asked(wanted, answer)),
                Ok(Ok(Some(events))) => self.note_read(wanted, events),
                Ok(Ok(None)) => self.give_up(&wanted, &format!("there are more than {MOST} events")),
                Ok(Err(reason)) => self.warm.try_again(wanted, &reason),
                Err(TryRecvError::Closed) => self.warm.try_again(wanted, "nobody answered"),
            },
            Some(Step::Follows(wanted, mut answer)) => match answer.try_recv() {
                Err(TryRecvError::Empty) => self.warm.step = Some(Step::Follows(wanted, answer)),
                Ok(Ok(Ok(events))) => self.warm.step = Some(Step::Read(wanted, events)),
                Ok(Ok(Err(reason))) => self.give_up(&wanted, &reason),
                Ok(Err(reason)) => self.warm.try_again(wanted, &reason),
                Err(TryRecvError::Closed) => self.warm.try_again(wanted, "nobody answered"),
            },
            Some(Step::Read(wanted, events)) if !rests && self.is_warming(wanted.whose, &wanted.record) => {
                self.warm.rests_until = Some(Instant::now() + LOOK);
                let told = self.tell_warm(wanted.whose, &wanted.record).await;
                let is_told = matches!(told, Ok(true));
                self.warm.step = Some(if is_told { Step::Told(wanted, events) } else { Step::Read(wanted, events) });
                told?;
                if is_told {
                    self.warm.rests_until = Some(Instant::now() + NEXT);
                }
            }
            Some(Step::Read(wanted, events)) => {
                // Of a version that does not wait any more nothing is told.
                self.warm.step = self.is_warming(wanted.whose, &wanted.record).then_some(Step::Read(wanted, events));
            }
            Some(told @ Step::Told(..)) => self.warm.step = Some(told),
            None if rests => {}
            None if self.warm.wanted.is_empty() && self.warm.spoke.is_none() => {}
            None => {
                self.warm.rests_until = Some(Instant::now() + LOOK);
                self.want_of_those_who_spoke();
                self.ask_next().await?;
                if self.warm.step.is_some() {
                    self.warm.rests_until = Some(Instant::now() + NEXT);
                }
            }
        }
        Ok(())
    }

    /// What a rule is to be filled with was read. For one that contains, the lanes are followed before it counts.
    fn note_read(&mut self, wanted: Wanted, events: Vec<SecurityEvent>) {
        let follows = self.warm.receipts.clone().filter(|_| wanted.contains);
        let Some(receipts) = follows else {
            self.warm.step = Some(Step::Read(wanted, events));
            return;
        };
        let (tenant, span) = (wanted.record.tenant_id.clone(), (wanted.from, wanted.to));
        let heads = self.stage.heads().of_tenant_since(tenant.as_str(), wanted.from);
        let lanes = PastLanes::new(tenant, span, events, heads, self.warm.hold_ms);
        self.warm.step = Some(Step::Follows(wanted, receipts.follow(lanes)));
    }

    /// A rule waits until it knows its window by itself, whoever is asked.
    fn give_up(&mut self, wanted: &Wanted, reason: &str) {
        let RuleWarmRecord { tenant_id, rule_id, .. } = &wanted.record;
        tracing::warn!(tenant = %tenant_id, rule = rule_id, reason, "a rule cannot be filled with what lies before it; it waits until it knows its window");
        if wanted.whose == Whose::EveryTenant {
            self.own.changed.note_given_up(&wanted.record);
        }
    }

    /// Asks for what the next rule is to be filled with, if all of it is there.
    async fn ask_next(&mut self) -> Result<(), DetectError> {
        let Some(past) = self.warm.past.clone() else { return Ok(()) };
        let wanted = loop {
            let Some(wanted) = self.warm.take_next(Instant::now()) else { return Ok(()) };
            // Of a version that does not wait any more nothing is asked.
            if self.is_warming(wanted.whose, &wanted.record) {
                break wanted;
            }
        };
        if wanted.from >= wanted.to {
            self.warm.step = Some(Step::Read(wanted, Vec::new()));
            return Ok(());
        }
        // While something of that time may still come, what is read is not all that there will be.
        if !self.is_final(&wanted) {
            // A tenant's time goes on once it speaks, and then a rule that every tenant has is wanted anew: the silent keep nobody from his turn.
            if wanted.whose == Whose::Own {
                self.warm.wanted.push_back(wanted);
            }
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
            // What came later to be wanted has no less to wait for.
            self.warm.wanted.push_front(wanted);
            return Ok(());
        }
        let RuleWarmRecord { tenant_id, rule_id, .. } = &wanted.record;
        let sieve = self.engine.sieve_of(wanted.whose, tenant_id, rule_id);
        let answer = past.ask(PastAsked::in_time(tenant_id, wanted.from, wanted.to, sieve));
        self.warm.step = Some(Step::Asked(wanted, answer));
        Ok(())
    }

    /// True while this version of a rule waits until it knows its window.
    fn is_warming(&self, whose: Whose, record: &RuleWarmRecord) -> bool {
        if whose == Whose::EveryTenant {
            return self.waits_for_window_of(record);
        }
        let known = self.own.known.get(&(record.tenant_id.clone(), record.rule_id.clone()));
        known.is_some_and(|known| {
            known.revision == record.revision && !known.is_filled && self.stored.is_none_or(|stored| known.since > stored)
        })
    }

    /// False where the log has no room now.
    async fn tell_warm(&self, whose: Whose, record: &RuleWarmRecord) -> Result<bool, DetectError> {
        let Some(records) = &self.warm.records else { return Ok(false) };
        let put = match whose {
            Whose::Own => records.put(record).await,
            Whose::EveryTenant => records.put_common(&CommonRuleWarmRecord(record.clone())).await,
        };
        match put {
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
        let read = self.warm.take_told(Whose::Own, record);
        let place = (record.tenant_id.clone(), record.rule_id.clone());
        let is_warming = self.is_warming(Whose::Own, record);
        let Some(mut known) = self.own.known.get(&place).filter(|_| is_warming).cloned() else { return Ok(()) };
        let Some(own) = self.own_again(&known) else { return Ok(()) };
        let running = self.engine.own_rule(&known.tenant_id, &known.rule_id).filter(|running| self.may_be_filled(running));
        let (Some(reach), Some(held)) = (running.map(reach_of), known.held.filter(|_| known.since > now)) else { return Ok(()) };
        let span = (now.plus_micros(-reach), Timestamp::from_micros(held));
        let contains = own.rule.header.contains();
        let sieve = self.engine.sieve_of(Whose::Own, &known.tenant_id, &known.rule_id);
        let Some(past) = self.past_of_record(read, (Whose::Own, record), span, contains, sieve).await else { return Ok(()) };
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

    /// Rules that waited when the checkpoint was written.
    pub(crate) fn want_again(&mut self) {
        self.warm.note_event(self.position);
        let Some(stored) = self.stored else { return };
        let known: Vec<KnownRule> = self.own.known.values().cloned().collect();
        known.iter().for_each(|known| self.want_past(known, stored));
        self.listen(|_| true, stored);
    }

    /// Counters of each rule; which of them do not know their window yet.
    pub(crate) fn rule_stats(&self) -> Vec<RuleStats> {
        let is_warming = |running: &RunningRule, tenant: &TenantId| {
            u64::from(self.stored.is_some_and(|stored| running.since.of(tenant) > stored))
        };
        let stats = self.engine.stats().into_iter().zip(&self.engine.rules);
        // Those of rules that every tenant has are counted now and then.
        let warming = |running: &RunningRule| running.scope.owner().map(|tenant| is_warming(running, tenant));
        stats.map(|(stats, running)| RuleStats { warming: warming(running).unwrap_or(stats.warming), ..stats }).collect()
    }
}
