//! How a rule keeps the events that matter to it. Promises to say what a quota took, or did not let in, and what is new of each bucket.

use std::borrow::Cow;

use aegis_model::Timestamp;

use crate::evaluate::RunningRule;
use crate::impaired::Cause;
use crate::matter::Matter;
use crate::name::Relevant;
use crate::window::{Kept, Quotas, Touched};

impl RunningRule {
    /// Keeps them for later evaluations, and answers which buckets have something new.
    pub(crate) fn keep(&mut self, relevant: &Matter, quotas: Quotas) -> Touched {
        let buckets = relevant.by_bucket();
        let mut touched = Touched::of(buckets.len());
        let mut lost = Vec::new();
        let (looks_again, has_seeds, differing) = (self.plan.reads_sides, self.plan.seed.is_some(), self.plan.differing);
        let places = self.state.places(buckets.iter().map(|(name, stands, _)| (*name, stands.get())));
        for ((name, stands, events), place) in buckets.into_iter().zip(places) {
            let (mut span, mut given_up, mut refused) = (None, 0, 0);
            let mut seed: Option<Timestamp> = None;
            let (mut value, mut differs): (Option<Cow<'_, str>>, bool) = (None, false);
            let losses = &mut self.losses;
            let place = self.state.keep((name, place), events, quotas, |Relevant { event, is_seed, .. }, kept| {
                if has_seeds && *is_seed {
                    seed = seed.max(Some(event.ts));
                }
                if let Some(own) = differing.and_then(|differing| differing.value(event)) {
                    differs |= value.as_ref().is_some_and(|value| *value != own);
                    value = Some(own);
                }
                match kept {
                    Kept::Added | Kept::Known => {}
                    Kept::AddedOverQuota(count) => {
                        given_up += count as u64;
                        losses.note(Cause::EventsGivenUp, event);
                    }
                    Kept::GivenUp => {
                        given_up += 1;
                        losses.note(Cause::EventsGivenUp, event);
                    }
                    Kept::Refused => {
                        refused += 1;
                        losses.note(Cause::QuotaFull, event);
                    }
                }
                let is_seen_again = looks_again && kept == Kept::Known;
                if is_seen_again || matches!(kept, Kept::Added | Kept::AddedOverQuota(_)) {
                    let (oldest, newest) = span.unwrap_or((event.ts, event.ts));
                    span = Some((event.ts.min(oldest), event.ts.max(newest)));
                }
            });
            if let Some(place) = place {
                stands.set(place.bucket());
                if let Some(seed) = seed {
                    self.state.sow(place, seed);
                }
                if let Some(value) = value {
                    self.state.see(place, &value, differs);
                }
            }
            self.stats.given_up += given_up;
            self.stats.refused += refused;
            if given_up > 0 {
                lost.push(name);
            }
            if let Some(span) = span {
                touched.add(name.clone(), place, span);
            }
        }
        for name in lost {
            self.stand(name.tenant(), name.text());
        }
        touched
    }
}
