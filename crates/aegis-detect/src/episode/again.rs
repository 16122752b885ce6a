//! A key after a restart, after some of its events are gone, and where its rule sees nothing more: what of it was told stands, is found again, or is
//! taken back. Promises that nothing is counted twice, and that nothing is told for want of what is gone.

use aegis_canon::CanonError;
use aegis_model::{Alert, EventId, Timestamp};

use super::{Emitted, Episode, KeyRules, KeyState};
use crate::finished::END_OF_TIME;

impl KeyState {
    /// What was told stands: some of the events that could say otherwise are not there any more.
    pub(crate) fn stand(&mut self) {
        self.emitted.values_mut().for_each(|emitted| emitted.stands = true);
    }

    /// What was told stands, and the last of it is the episode that a next match joins: the events that could say otherwise are not all there
    /// any more.
    pub(crate) fn let_stand(&mut self) {
        self.stand();
        let last = self.emitted.iter().max_by_key(|(_, emitted)| emitted.start);
        if let Some((first, last)) =
            last.filter(|(_, last)| self.settled.as_ref().is_none_or(|settled| settled.start < last.start))
        {
            let (alert_id, start) = (last.alert_id.clone(), last.start);
            self.settled = Some(Episode { alert_id, first: *first, start, count: 1, last_ts: start, last_event_id: *first });
        }
        // What is found again of it, now or when its time comes again, would be counted a second time.
        let counted_to = self.settled.as_ref().map(|settled| settled.last_ts.max(settled.start));
        self.counted_to = counted_to;
        self.matches.retain(|m| counted_to.is_none_or(|to| m.instant() > to));
    }

    /// Takes note of an alert that was told with this first evidence; it stands, or still has to be found again.
    pub(crate) fn know_told(&mut self, alert: &Alert, first: EventId, stands: bool) {
        if self.key.is_empty() {
            self.key.clone_from(&alert.key);
        }
        let emitted = || Emitted {
            alert_id: alert.alert_id.clone(),
            first_ts: alert.first_ts,
            start: alert.last_ts,
            stands,
            of_before: true,
            is_final: false,
        };
        self.emitted.entry(first).or_insert_with(emitted);
    }

    /// Its rule sees nothing more, and has seen what came up to `seen_to`: answers the ids of alerts that have no match, and are now retracted.
    pub(crate) fn end(&mut self, rules: KeyRules<'_>, seen_to: Timestamp) -> Result<Vec<String>, CanonError> {
        self.emitted.retain(|_, emitted| !(emitted.of_before && emitted.start > seen_to));
        self.settle(rules, END_OF_TIME)
    }

    /// Forgets what is found again and was not told: all that there was to tell was, and what contradicted this is gone.
    pub(crate) fn forget_untold(&mut self, rules: KeyRules<'_>) {
        let mut current = self.settled.as_ref().map(|settled| (settled.first, settled.start));
        let Self { matches, emitted, .. } = self;
        matches.retain(|found| {
            let first = found.first().1;
            let joins = current.is_some_and(|(first_of_current, start)| match rules.suppress_micros {
                Some(suppress) => found.instant() < start.plus_micros(suppress),
                None => first_of_current == first,
            });
            let is_told = joins || emitted.contains_key(&first);
            if is_told && !joins {
                current = Some((first, found.instant()));
            }
            is_told
        });
    }
}
