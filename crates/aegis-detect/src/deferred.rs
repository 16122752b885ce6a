//! Rules whose frames end after their row: a row waits until nothing is expected any more before its frames' end, and is decided then. Promises
//! that deciding costs what is due and not what waits, and that a row is decided again where an event comes all the same that says otherwise.

use std::collections::HashMap;
use std::sync::Arc;

use aegis_model::{SecurityEvent, TenantId, Timestamp};

use crate::error::DetectError;
use crate::evaluate::{RunningRule, TouchedKeys};
use crate::find::{ROWS_OF_A_RUN, within};
use crate::output::Found;
use crate::shape::{Reach, Shape};
use crate::window::{Quotas, Touched};

impl RunningRule {
    /// True if rows wait for what follows them.
    pub(crate) fn is_deferred(&self) -> bool {
        self.plan.shape == Shape::Deferred
    }

    /// Keeps new events. The rows that they make, or can change, wait.
    pub(crate) fn keep_waiting(&mut self, relevant: &[Arc<SecurityEvent>], quotas: Quotas) {
        let touched = self.keep(relevant, quotas);
        for (tenant, bucket, oldest, _) in touched.iter() {
            self.state.wait_for(tenant, bucket, oldest.plus_micros(-self.plan.reach.ahead));
        }
    }

    /// After a restart: what was not decided for good waits.
    pub(crate) fn wait_again(&mut self, settled: &HashMap<TenantId, Timestamp>) {
        if !self.is_deferred() {
            return;
        }
        for (tenant, bucket) in self.state.buckets() {
            let decided = settled.get(&tenant).map(|settled| settled.plus_micros(-self.plan.reach.ahead));
            self.state.wait_for(&tenant, &bucket, decided.unwrap_or(Timestamp::from_micros(i64::MIN)));
        }
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
                due.add(tenant, bucket, (first, last));
            }
        }
        let found = match self.find_due(&due) {
            Ok(found) => found,
            Err(error) => {
                let newest =
                    due.iter().filter_map(|(_, bucket, first, last)| self.state.events(tenant, bucket, first, last).last());
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
        let (mut found, mut slice) = (Vec::new(), Vec::new());
        for (tenant, bucket, first, last) in due.iter() {
            slice.extend_from_slice(self.state.events(tenant, bucket, first.plus_micros(-back), last.plus_micros(ahead)));
            if slice.len() >= ROWS_OF_A_RUN {
                found.extend(self.run(std::mem::take(&mut slice), None)?);
            }
        }
        if !slice.is_empty() {
            found.extend(self.run(slice, None)?);
        }
        let is_due = |f: &Found| due.span(&f.tenant, &f.bucket).is_some_and(|(first, last)| within(f.found.instant, first, last));
        found.retain(is_due);
        Ok(found)
    }
}
