//! How rules look at events: as many at once as they may, each within its budget. Promises that a rule that fails, panics or takes too long is stopped,
//! and the others go on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::{Engine, TickOutput, emit};
use crate::begun::rest_together;
use crate::error::DetectError;
use crate::evaluate::{Must, RunningRule};
use crate::matter::Matter;
use crate::schema::EventBatch;

/// Events that a rule looks at at once.
const EVENTS_OF_A_LOOK: usize = 2048;

impl Engine {
    pub(crate) fn evaluate(&mut self, batch: Option<&Arc<EventBatch>>, must: Must<'_>, output: &mut TickOutput) {
        let (quotas, clock, lost) = (self.config.quotas, Arc::clone(&self.config.clock), &self.lost);
        self.names.lock().beginnings.clear();
        // One time for all: those that rest together look together.
        let now = clock.now();
        for running in self.rules.iter_mut().filter(|r| r.stats.quarantined.is_none() && r.plan.sources.is_none()) {
            if is_idle(running, batch) {
                continue;
            }
            let mut ready = Vec::new();
            let (mut result, mut spent) = running.timed(clock.as_ref(), |running| {
                guarded(running, |running| {
                    batch.map_or(Ok(()), |batch| running.wait(batch))?;
                    ready = running.ready(now, must);
                    Ok(())
                })
            });
            let ran = !ready.is_empty();
            // As many at a time as a tick has: a key's quota is for what was looked at, and the budget for one look.
            let mut ready = Matter::at_a_time(ready, EVENTS_OF_A_LOOK).into_iter();
            let mut longest = 0;
            while result.is_ok() && longest <= self.config.rule_budget_ms.saturating_mul(1000) {
                let Some(events) = ready.next() else { break };
                let (looked, micros) = running.timed(clock.as_ref(), |running| {
                    guarded(running, |running| {
                        let keys = running.evaluate(&events, quotas)?;
                        let told = output.alerts.len();
                        let emitted = emit(running, keys, quotas, clock.now(), output);
                        running.withhold(&mut output.alerts[told..], lost);
                        emitted
                    })
                });
                (result, longest, spent) = (looked, longest.max(micros), spent.saturating_add(micros));
            }
            if ran {
                running.rest(spent, clock.now());
            }
            stop_if_failed(running, result, longest, self.config.rule_budget_ms, output);
        }
        self.names.lock().beginnings.clear();
        rest_together(&mut self.rules);
    }
}

/// True of a tenant's own rule that has nothing new to look at, and nothing from before: there may be as many as tenants, and a tick is of some.
fn is_idle(running: &RunningRule, batch: Option<&Arc<EventBatch>>) -> bool {
    let has_events = |owner| batch.is_some_and(|batch| batch.of_tenant(owner).is_some());
    running.scope.owner().is_some_and(|owner| !has_events(owner)) && !running.is_behind() && running.failures.is_empty()
}

/// Does something with a rule. An operator that panics must not take the other rules with it.
pub(crate) fn guarded(
    running: &mut RunningRule,
    work: impl FnOnce(&mut RunningRule) -> Result<(), DetectError>,
) -> Result<(), DetectError> {
    catch_unwind(AssertUnwindSafe(|| work(running))).unwrap_or_else(|_| {
        Err(DetectError::Output { rule: running.rule.header.id.clone(), reason: "the query engine panicked".into() })
    })
}

/// Says why tenants were set aside, and stops a rule that failed, or took longer for one look than it may.
pub(crate) fn stop_if_failed(
    running: &mut RunningRule,
    result: Result<(), DetectError>,
    longest: i64,
    budget_ms: i64,
    output: &mut TickOutput,
) {
    output.quarantined.extend(running.failures());
    let failure = match result {
        Ok(()) => over_budget(running, longest, budget_ms),
        Err(error) => Some(error),
    };
    if let Some(error) = failure {
        running.quarantine(&error);
        output.quarantined.push(error);
    }
}

/// The error of a look that took longer than it may.
pub(crate) fn over_budget(running: &RunningRule, micros: i64, budget_ms: i64) -> Option<DetectError> {
    let error = || DetectError::Output {
        rule: running.rule.header.id.clone(),
        reason: format!("one look took {} ms, the budget is {budget_ms} ms", micros / 1000),
    };
    (micros > budget_ms.saturating_mul(1000)).then(error)
}
