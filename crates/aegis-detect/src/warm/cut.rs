//! What a checkpoint had no room for of a rule's window: a start reads it from where all events are written down. Promises that nothing counts so for a rule that
//! contains, whose lanes nobody followed; that a start waits no longer than it may, and goes on without what cannot be read, which is known to be gone; and that no
//! tenant's part keeps another's from being read.

use std::collections::BTreeMap;
use std::sync::Arc;

use aegis_bus::Stream;
use aegis_model::{SecurityEvent, TenantId, Timestamp};
use tokio::time::Instant;

use super::PastAsked;
use super::waited::{RESTART_WAIT, Turns};
use crate::back::reach_of;
use crate::checkpoint::{Checkpoint, MAX_REWIND};
use crate::error::DetectError;
use crate::follow::Running;
use crate::plan::RulePlan;
use crate::sieve::Sieve;

/// What is lacking of one tenant.
struct Lacking<'a> {
    from: Timestamp,
    to: Timestamp,
    /// Of which rules, by their names in the checkpoint.
    rules: Vec<String>,
    plans: Vec<&'a RulePlan>,
}

/// What is asked of one tenant, for which rules.
struct Wants {
    tenant: TenantId,
    from: Timestamp,
    to: Timestamp,
    rules: Vec<String>,
    sieve: Arc<Sieve>,
}

impl Running {
    /// Reads into a checkpoint what it had no room for. What has not been written down yet is not waited for.
    pub(crate) async fn read_cut(&mut self, checkpoint: &mut Checkpoint) -> Result<(), DetectError> {
        let Some(past) = self.warm.past.clone() else { return Ok(()) };
        let mut lacking: BTreeMap<TenantId, Lacking<'_>> = BTreeMap::new();
        for running in self.engine.rules.iter().filter(|running| running.is_far() && !running.rule.header.contains()) {
            for (tenant, cut) in checkpoint.engine.cut_of(running) {
                let Some(settled) = checkpoint.engine.settled_to(tenant) else { continue };
                let (from, to) = (settled.plus_micros(-reach_of(running)), cut.plus_micros(1));
                let of_tenant =
                    lacking.entry(tenant.clone()).or_insert(Lacking { from, to, rules: Vec::new(), plans: Vec::new() });
                (of_tenant.from, of_tenant.to) = (from.min(of_tenant.from), to.max(of_tenant.to));
                of_tenant.rules.push(running.saved_as());
                of_tenant.plans.push(&running.plan);
            }
        }
        if lacking.is_empty() {
            return Ok(());
        }
        let sifted = |(tenant, of_tenant): (TenantId, Lacking<'_>)| {
            let Lacking { from, to, rules, plans } = of_tenant;
            Wants { tenant, from, to, rules, sieve: Arc::new(Sieve::of_plans(plans.into_iter())) }
        };
        let mut turns = Turns::new(lacking.into_iter().map(sifted).collect(), MAX_REWIND);
        // All of it stands before what is read again.
        let passed = self.bus.consumer_position(Stream::Ase, past.consumer()).await?;
        let is_there = passed.saturating_add(1) >= checkpoint.rewind;
        let begun = Instant::now();
        self.warm.waits_again_at = None;
        while let Some((want, most)) = turns.take() {
            let Wants { tenant, from, to, rules, sieve } = &want;
            let asked = PastAsked { most, ..PastAsked::in_time(tenant, *from, *to, Some(Arc::clone(sieve))) };
            let read = if !is_there {
                Err("not all of it has been written down yet".to_owned())
            } else if begun.elapsed() >= RESTART_WAIT {
                Err("a start waits no longer".to_owned())
            } else {
                self.warm.wait_for(|| past.ask(asked)).await
            };
            // That one's does not come says nothing of the others'.
            self.warm.waits_again_at = None;
            let reason = match read {
                Ok(Some(events)) if events.len() <= most => {
                    turns.fill(events.len());
                    let events: Vec<Arc<SecurityEvent>> = events.into_iter().map(Arc::new).collect();
                    tracing::info!(%tenant, events = events.len(), "what a checkpoint had no room for was read");
                    rules.iter().for_each(|rule| checkpoint.engine.refill(rule, tenant, &events));
                    continue;
                }
                Ok(_) if turns.has_another(most) => {
                    turns.put_behind(want);
                    continue;
                }
                Ok(_) => "there is more than a rule may keep".to_owned(),
                Err(reason) => reason,
            };
            tracing::warn!(
                %tenant,
                reason,
                ?rules,
                "what a checkpoint had no room for cannot be read: the rules go on without it"
            );
        }
        Ok(())
    }
}
