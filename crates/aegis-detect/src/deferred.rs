//! Rules whose frames end after their row: a row waits until nothing is expected any more before its frames' end, and is decided then. Promises
//! that deciding costs what is due and not what waits, and that a row is decided again where an event comes all the same that says otherwise.

use std::sync::Arc;

use aegis_model::{TenantId, Timestamp};

use crate::engine::{Engine, Settled, TickOutput, emit, guarded, over_budget, stop_if_failed};
use crate::error::DetectError;
use crate::evaluate::{Must, RunningRule, Tenants, TouchedKeys};
use crate::find::{Slice, within};
use crate::lost::{EVENTS_GONE, GONE, GONE_BESIDE, NOT_CONTAINED};
use crate::matter::Matter;
use crate::name::BucketName;
use crate::output::Found;
use crate::shape::{Reach, Shape};
use crate::watermark::{IDLE_ACTIVITY, MAX_PAUSE};
use crate::window::{Named, Quotas, Touched};

/// By the log's time it is looked this often for rows that nothing else decides.
const LOOK_STEP_MICROS: i64 = 1_000_000;
/// A look at due rows runs over all that their frames take in, so that rows of this part of it are decided together: each event is run over about so
/// many times, and not with every look.
const PARTS: i64 = 16;

/// What says that nothing is expected any more before a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// The tenant's own: it is so for good.
    Watermark,
    /// The whole log's, while nothing of the tenant comes.
    Log,
    /// The log ends.
    End,
}

const NOTHING_PROVED: &str = "nothing of the tenant was proved for an hour: what did not follow may only not have come";

/// True if rows of the rule are decided by it.
fn decides(running: &RunningRule, by: By) -> bool {
    let may = by != By::Log || !running.rule.header.contains();
    may && running.is_deferred() && running.stats.quarantined.is_none()
}

impl Engine {
    /// The log has come to this time of the bus, whoever wrote. Decides rows of deferred rules before whose frames' end nothing is expected any more,
    /// though nothing of their tenant came. What comes later all the same takes back what it contradicts, so that it changes nothing in the end when,
    /// and whether, this is called. Nobody is contained on a silence: a rule that contains waits for its tenant's watermark.
    pub fn pass_time(&mut self, bus_ts: Timestamp) -> TickOutput {
        let mut output = TickOutput::default();
        self.watermarks.pass(bus_ts);
        let Some(now) = self.watermarks.log_time() else { return output };
        // A clock that was set back ends no looks.
        let since = |looked: Timestamp| now.as_micros().saturating_sub(looked.as_micros());
        if self.looked.is_some_and(|looked| (-LOOK_STEP_MICROS..LOOK_STEP_MICROS).contains(&since(looked))) {
            return output;
        }
        self.looked = Some(now);
        let lateness = self.lateness_micros();
        let mut due = Tenants::default();
        for running in self.rules.iter().filter(|running| decides(running, By::Log)) {
            let may_be_due = running.settled_to(now.plus_micros(-lateness)).plus_micros(-running.plan.reach.ahead);
            due.extend(running.state.awaiting().filter(|(_, first)| *first < may_be_due).map(|(tenant, _)| tenant.clone()));
        }
        if due.is_empty() {
            return output;
        }
        self.evaluate(None, Must::Of(&due), &mut output);
        let mut due: Vec<TenantId> = due.into_iter().collect();
        due.sort_unstable();
        let expected_from = |tenant| Some((tenant, self.watermarks.expected_from(tenant, lateness)?));
        let due: Vec<(&TenantId, Timestamp)> = due.iter().filter_map(expected_from).collect();
        self.decide_each(due, By::Log, &mut output);
        self.tell_impaired(&[], &mut output);
        output
    }

    /// From this time of the bus on, records of time in the log would let rows be decided, or show who is silent. None: no row waits.
    #[must_use]
    pub fn needs_time_from(&self) -> Option<Timestamp> {
        let deciding = self.rules.iter().filter(|running| decides(running, By::Log));
        let ends = deciding.flat_map(|r| r.state.awaiting().map(move |(_, first)| first.plus_micros(r.plan.reach.ahead)));
        Some(ends.min()?.plus_micros(self.lateness_micros()).plus_micros(-(IDLE_ACTIVITY + 2 * MAX_PAUSE)))
    }

    /// How far a rule's frames end after their row, in microseconds; of one that reads alerts, how long these take to become final.
    pub(crate) fn ahead_of(&self, rule_id: &str) -> i64 {
        let rule = self.rules.iter().find(|running| running.rule.header.id == rule_id);
        let ahead = |running: &RunningRule| match running.plan.sources {
            Some(_) => self.lateness_micros(),
            None => running.plan.reach.ahead,
        };
        rule.map_or(0, ahead)
    }

    /// Decides a tenant's rows of deferred rules whose frames end before `ends_before`. Where the tenant's time went on though nothing was proved,
    /// its edges are silent, and whoever reaches the bus can have moved it: what is told then has no response. Nor has what is told of a row that
    /// looks back to before a restart over which events of the tenant were lost.
    pub(crate) fn decide(&mut self, tenant: &TenantId, ends_before: Timestamp, by: By, output: &mut TickOutput) {
        self.decide_each([(tenant, ends_before)], by, output);
    }

    /// The same of some tenants, one after the other. Which rules have such rows at all is asked once: few of them, and there may be very many.
    pub(crate) fn decide_each<'a>(
        &mut self,
        due: impl IntoIterator<Item = (&'a TenantId, Timestamp)>,
        by: By,
        output: &mut TickOutput,
    ) {
        let rules = self.rules.iter().enumerate().filter(|(_, running)| decides(running, by));
        let deciding: Vec<usize> = rules.map(|(place, _)| place).collect();
        if deciding.is_empty() {
            return;
        }
        for (tenant, ends_before) in due {
            self.decide_by(&deciding, (tenant, ends_before), by, output);
        }
    }

    fn decide_by(&mut self, deciding: &[usize], (tenant, ends_before): (&TenantId, Timestamp), by: By, output: &mut TickOutput) {
        let (quotas, clock) = (self.config.quotas, Arc::clone(&self.config.clock));
        let proved_before = self.watermarks.proved_before(tenant, self.lateness_micros());
        let unproved = by == By::Watermark && proved_before.is_none_or(|proved_before| proved_before < ends_before);
        let lost_to = self.lost.to(tenant);
        for place in deciding {
            // One may have failed since.
            let Some(running) = self.rules.get_mut(*place).filter(|running| decides(running, by)) else { continue };
            // Most rules have no row of most tenants that waits for this.
            if !running.has_due(tenant, running.decided_to(ends_before, by)) {
                continue;
            }
            let (decided, micros) = running.timed(clock.as_ref(), |running| {
                guarded(running, |running| {
                    let first = output.alerts.len();
                    let contains = by == By::Watermark && running.rule.header.contains();
                    if let Some(proved_before) = proved_before.filter(|_| contains && unproved) {
                        let keys = running.decide(tenant, running.decided_to(proved_before, by), quotas)?;
                        emit(running, keys, quotas, clock.now(), output)?;
                    }
                    let told = output.alerts.len();
                    let keys = running.decide(tenant, running.decided_to(ends_before, by), quotas)?;
                    emit(running, keys, quotas, clock.now(), output)?;
                    let back = running.plan.reach.back;
                    for (place, alert) in output.alerts.iter_mut().enumerate().skip(first) {
                        let looks_from = alert.last_ts.plus_micros(-back);
                        let is_gone = lost_to.is_some_and(|lost_to| looks_from <= lost_to);
                        let why = match is_gone {
                            _ if contains && unproved && place >= told => NOTHING_PROVED,
                            true if contains => GONE,
                            true => {
                                alert.fields.insert(EVENTS_GONE.to_owned(), GONE_BESIDE.into());
                                continue;
                            }
                            false => continue,
                        };
                        alert.respond.clear();
                        alert.fields.insert(NOT_CONTAINED.to_owned(), why.into());
                    }
                    Ok(())
                })
            });
            // It was one tenant's look, so that the others' go on.
            let budget_ms = self.config.rule_budget_ms;
            let decided = match over_budget(running, micros, budget_ms).filter(|_| decided.is_ok()) {
                Some(error) => running.set_aside(tenant, error, None),
                None => decided,
            };
            stop_if_failed(running, decided, 0, budget_ms, output);
        }
    }
}

impl RunningRule {
    /// True if rows wait for what follows them.
    pub(crate) fn is_deferred(&self) -> bool {
        self.plan.shape == Shape::Deferred
    }

    /// Up to where the rule's state is settled where a tenant's time has come to `final_before`: of a deferred rule, whose rows are decided together, a
    /// little less.
    pub(crate) fn settled_to(&self, final_before: Timestamp) -> Timestamp {
        match self.step_micros() {
            0 => final_before,
            step => final_before.plus_micros(-final_before.as_micros().rem_euclid(step)),
        }
    }

    /// By how much that is less at most.
    pub(crate) fn step_micros(&self) -> i64 {
        self.plan.reach.span() / PARTS
    }

    /// Up to where frames must end so that their rows are decided now.
    fn decided_to(&self, ends_before: Timestamp, by: By) -> Timestamp {
        if by == By::End { ends_before } else { self.settled_to(ends_before) }
    }

    /// Keeps new events. The rows that they make, or can change, wait.
    pub(crate) fn keep_waiting(&mut self, relevant: &Matter, quotas: Quotas) {
        let touched = self.keep(relevant, quotas);
        for (Named { tenant, bucket, .. }, oldest, _) in touched.iter() {
            self.state.wait_for(tenant, bucket, oldest.plus_micros(-self.plan.reach.ahead));
        }
    }

    /// After a restart: what was not decided for good waits.
    pub(crate) fn wait_again(&mut self, settled: &Settled) {
        if !self.is_deferred() {
            return;
        }
        for (tenant, bucket) in self.state.buckets() {
            let decided = settled.get(&tenant).map(|settled| self.settled_to(*settled).plus_micros(-self.plan.reach.ahead));
            self.state.wait_for(&tenant, &bucket, decided.unwrap_or(Timestamp::from_micros(i64::MIN)));
        }
    }

    /// True if rows of the tenant whose frames end before `ends_before` wait for their decision.
    fn has_due(&self, tenant: &TenantId, ends_before: Timestamp) -> bool {
        self.state.has_due(tenant, ends_before.plus_micros(-self.plan.reach.ahead))
    }

    /// Decides a tenant's rows whose frames end before `ends_before`, and answers the keys whose matches changed. Where the query fails over them,
    /// the rule is set aside for the tenant.
    pub(crate) fn decide(
        &mut self,
        tenant: &TenantId,
        ends_before: Timestamp,
        quotas: Quotas,
    ) -> Result<TouchedKeys, DetectError> {
        let Reach { back, ahead } = self.plan.reach;
        let last = ends_before.plus_micros(-ahead).plus_micros(-1);
        let mut due = Touched::default();
        for (bucket, first) in self.state.take_due(tenant, last.plus_micros(1)) {
            // Of a row before that, some of what it looks at may be gone.
            let whole_from = self.state.lost_to(tenant, &bucket).map(|lost| lost.plus_micros(back).plus_micros(1));
            let first = whole_from.map_or(first, |whole_from| first.max(whole_from));
            if first <= last {
                due.add(BucketName::new(tenant, &bucket), None, (first, last));
            }
        }
        let found = match self.find_due(&due) {
            Ok(found) => found,
            Err(error) => {
                let newest =
                    due.iter().filter_map(|(named, first, last)| self.state.events(tenant, named.bucket, first, last).last());
                let newest = newest.max_by(|a, b| a.order_key().cmp(&b.order_key())).cloned();
                self.set_aside(tenant, error, newest.as_ref())?;
                return Ok(TouchedKeys::new());
            }
        };
        let mut keys = self.clear(&due, 0);
        keys.extend(self.insert(found, quotas));
        Ok(keys)
    }

    /// The matches of due rows.
    fn find_due(&mut self, due: &Touched) -> Result<Vec<Found>, DetectError> {
        let Reach { back, ahead } = self.plan.reach;
        let (mut found, mut slice) = (Vec::new(), Slice::default());
        for (Named { tenant, bucket, .. }, first, last) in due.iter() {
            let events = self.state.events(tenant, bucket, first.plus_micros(-back), last.plus_micros(ahead));
            if let Some(rows) = slice.add(events) {
                found.extend(self.run(rows, None)?);
            }
        }
        if let Some(rows) = slice.rest() {
            found.extend(self.run(rows, None)?);
        }
        let spans = due.spans();
        found.retain(|f: &Found| {
            let span = spans.get(&(&f.tenant, f.bucket.as_str()));
            span.is_some_and(|(first, last)| within(f.found.instant, *first, *last))
        });
        Ok(found)
    }
}
