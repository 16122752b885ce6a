//! A log that is finished, of which the engine is shown all there is: it may come in another order than the bus's, and it ends, for one tenant after
//! the other or for all. Promises that what stands at the end is what stands where the same events came as the bus had them.

use std::collections::BTreeSet;

use aegis_model::{SecurityEvent, TenantId, Timestamp};

use crate::deferred::By;
use crate::engine::{Engine, TickOutput};
use crate::verify::is_ahead_of_time;

/// After any window, and far from overflow.
pub(crate) const END_OF_TIME: Timestamp = Timestamp::from_micros(i64::MAX / 2);

impl Engine {
    /// The same for each tenant's events in the order of events, as a lake has them: what was late is told by them, not by the order.
    #[must_use]
    pub fn in_order(mut self) -> Self {
        self.in_order = true;
        self
    }

    /// True if the event is in time.
    pub(crate) fn admit(&mut self, event: &SecurityEvent) -> bool {
        if self.in_order {
            // A time that is ahead tells nothing of when it is.
            return !is_ahead_of_time(event) && self.watermarks.admit_in_order(event);
        }
        let lateness = self.lateness_micros();
        self.watermarks.admit(event, lateness)
    }

    /// The log ends here: nothing follows, and nothing can change any more. For tests and replays over a finished log.
    pub fn finish(&mut self) -> TickOutput {
        self.finish_at(END_OF_TIME)
    }

    /// The same of a log that is known up to `known_to`: a row whose frames end later is not decided.
    pub(crate) fn finish_at(&mut self, known_to: Timestamp) -> TickOutput {
        let mut output = self.catch_up();
        let tenants: BTreeSet<TenantId> = self.rules.iter().flat_map(|r| r.state.tenants.keys().cloned()).collect();
        self.end(&tenants, known_to, &mut output);
        output
    }

    /// Nothing of these tenants follows in such a log: what is kept of them goes.
    pub(crate) fn finish_of(&mut self, tenants: &BTreeSet<TenantId>, known_to: Timestamp) -> TickOutput {
        let mut output = self.catch_up();
        self.end(tenants, known_to, &mut output);
        let mut sides = self.sides.write();
        tenants.iter().for_each(|tenant| sides.forget_all(tenant));
        drop(sides);
        output
    }

    fn end(&mut self, tenants: &BTreeSet<TenantId>, known_to: Timestamp, output: &mut TickOutput) {
        let known_to = known_to.plus_micros(-self.lateness_micros());
        let ends_before = |tenant| {
            let final_before = self.watermarks.final_before(tenant, self.lateness_micros());
            (tenant, final_before.map_or(known_to, |final_before| final_before.max(known_to)))
        };
        let ends: Vec<(&TenantId, Timestamp)> = tenants.iter().map(ends_before).collect();
        self.decide_each(ends, By::End, output);
        for running in &mut self.rules {
            running.stats.undecided += running.state.awaiting_count(tenants) as u64;
        }
        let due: Vec<(TenantId, Timestamp)> = tenants.iter().map(|tenant| (tenant.clone(), END_OF_TIME)).collect();
        self.settle(&due, output);
    }
}
