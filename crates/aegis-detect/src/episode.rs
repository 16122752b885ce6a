//! The matches of one key: which of them are alerts, which join an episode, and what is retracted.
//! Everything is decided on event time from the final set of matches, so the order of arrival changes nothing in the end.
//!
//! An alert is retracted only once no event that is in time could bring it back: a retraction is said once and stays.

use std::collections::BTreeMap;

use aegis_canon::CanonError;
use aegis_model::{EventId, TenantId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::alert::alert_id;
use crate::output::Match;

/// A run of matches of one key that raises one alert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Episode {
    pub(crate) alert_id: String,
    /// Instant of its first match.
    pub(crate) start: Timestamp,
    /// How many matches it joins.
    pub(crate) count: u64,
    pub(crate) last_ts: Timestamp,
    pub(crate) last_event_id: EventId,
}

/// An alert that was emitted and could still change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Emitted {
    /// Time of its first evidence: a match with this id lies within one window of it.
    first_ts: Timestamp,
    /// True once the match that raises it can no longer change.
    stands: bool,
}

/// What is remembered of a key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct KeyState {
    /// Matches that can still change, by (instant, first evidence).
    matches: Vec<Match>,
    /// The last episode that can no longer change.
    settled: Option<Episode>,
    emitted: BTreeMap<String, Emitted>,
}

/// What a key's rule says about identity and time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyRules<'a> {
    pub(crate) tenant: &'a TenantId,
    pub(crate) rule_id: &'a str,
    pub(crate) window_micros: i64,
    pub(crate) suppress_micros: Option<i64>,
}

impl KeyState {
    /// Forgets the matches at instants within `[from, to]`.
    pub(crate) fn clear(&mut self, from: Timestamp, to: Timestamp) {
        self.matches.retain(|m| m.instant < from || m.instant > to);
    }

    /// Adds a match, unless the same is there.
    pub(crate) fn insert(&mut self, found: Match) {
        let order = |m: &Match| (m.instant, m.first().ts, m.first().event_id, m.last().event_id);
        match self.matches.binary_search_by(|m| order(m).cmp(&order(&found))) {
            Ok(at) => self.matches[at] = found,
            Err(at) => self.matches.insert(at, found),
        }
    }

    /// The episodes of the matches that can still change: each with the match that raises it.
    fn episodes(&self, rules: KeyRules<'_>) -> Result<Vec<(Episode, Option<&Match>)>, CanonError> {
        let mut episodes: Vec<(Episode, Option<&Match>)> = self.settled.clone().map(|e| (e, None)).into_iter().collect();
        for found in &self.matches {
            let id = alert_id(rules.tenant, rules.rule_id, &found.key, found.first().event_id)?;
            let joins = episodes.last_mut().filter(|(current, _)| match rules.suppress_micros {
                Some(suppress) => found.instant < current.start.plus_micros(suppress),
                None => current.alert_id == id,
            });
            match joins {
                Some((current, _)) => {
                    current.count += 1;
                    current.last_ts = found.last().ts;
                    current.last_event_id = found.last().event_id;
                }
                None => {
                    let (last_ts, last_event_id) = (found.last().ts, found.last().event_id);
                    let episode = Episode { alert_id: id, start: found.instant, count: 1, last_ts, last_event_id };
                    episodes.push((episode, Some(found)));
                }
            }
        }
        Ok(episodes)
    }

    /// Alerts that were not emitted before, and marks them so; and every episode as it now is.
    #[allow(clippy::type_complexity)] // alert ids with their matches, and the episodes they changed
    pub(crate) fn emit(&mut self, rules: KeyRules<'_>) -> Result<(Vec<(String, Match)>, Vec<Episode>), CanonError> {
        let episodes = self.episodes(rules)?;
        let mut fresh = Vec::new();
        for (episode, raised_by) in &episodes {
            let Some(found) = raised_by else { continue };
            let known = self.emitted.contains_key(&episode.alert_id) || fresh.iter().any(|(id, _)| id == &episode.alert_id);
            if !known {
                fresh.push((episode.alert_id.clone(), (*found).clone()));
            }
        }
        let all = episodes.into_iter().map(|(episode, _)| episode).collect();
        for (id, found) in &fresh {
            self.emitted.insert(id.clone(), Emitted { first_ts: found.first().ts, stands: false });
        }
        Ok((fresh, all))
    }

    /// Time has passed `final_before`: what lies before it is settled. Answers the ids of alerts that are now retracted.
    pub(crate) fn settle(&mut self, rules: KeyRules<'_>, final_before: Timestamp) -> Result<Vec<String>, CanonError> {
        let is_final = |m: &Match| m.instant < final_before;
        if self.matches.first().is_some_and(is_final) {
            let provisional = self.matches.split_off(self.matches.partition_point(is_final));
            let settled: Vec<Episode> = self.episodes(rules)?.into_iter().map(|(episode, _)| episode).collect();
            for episode in settled {
                if let Some(emitted) = self.emitted.get_mut(&episode.alert_id) {
                    emitted.stands = true;
                }
                self.settled = Some(episode);
            }
            self.matches = provisional;
        }
        // Within this span a later match could still join the settled episode.
        let keeps = rules.suppress_micros.unwrap_or(rules.window_micros);
        if self.settled.as_ref().is_some_and(|e| e.start.plus_micros(keeps) < final_before) {
            self.settled = None;
        }
        let mut retracted = Vec::new();
        self.emitted.retain(|id, emitted| {
            let can_change = emitted.first_ts.plus_micros(rules.window_micros) >= final_before;
            if !can_change && !emitted.stands {
                retracted.push(id.clone());
            }
            can_change
        });
        Ok(retracted)
    }

    /// True if nothing is remembered.
    pub(crate) fn is_empty(&self) -> bool {
        self.matches.is_empty() && self.settled.is_none() && self.emitted.is_empty()
    }

    pub(crate) fn match_count(&self) -> usize {
        self.matches.len()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::output::Evidence;
    use serde_json::Map;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_micros(second * 1_000_000)
    }

    fn found(first: i64, instant: i64) -> Match {
        let evidence =
            |s: i64| Evidence { event_id: uuid::Uuid::from_u128(s.unsigned_abs().into()), ts: at(s), receipt_hash: None };
        Match { instant: at(instant), key: Map::new(), evidence: vec![evidence(first), evidence(instant)], fields: Map::new() }
    }

    fn rules(tenant: &TenantId, suppress: Option<i64>) -> KeyRules<'_> {
        KeyRules { tenant, rule_id: "R", window_micros: 60_000_000, suppress_micros: suppress.map(|s| s * 1_000_000) }
    }

    #[test]
    fn repeated_matches_join_one_episode_until_suppress_has_passed() {
        let tenant = TenantId::new("t").unwrap();
        let mut key = KeyState::default();
        for second in [10, 20, 600, 609, 610, 700] {
            key.insert(found(second, second));
        }
        let (alerts, episodes) = key.emit(rules(&tenant, Some(600))).unwrap();
        let starts: Vec<_> = alerts.iter().map(|(_, m)| m.instant).collect();
        assert_eq!(starts, [at(10), at(610)], "exactly `suppress` after the first match a new episode begins");
        assert_eq!(episodes.iter().map(|e| e.count).collect::<Vec<_>>(), [4, 2]);
        assert!(key.emit(rules(&tenant, Some(600))).unwrap().0.is_empty(), "an alert is emitted once");
    }

    #[test]
    fn episodes_do_not_depend_on_when_time_passes() {
        let tenant = TenantId::new("t").unwrap();
        let seconds = [10, 20, 70, 130, 131, 190, 260];
        let mut at_once = KeyState::default();
        seconds.into_iter().for_each(|s| at_once.insert(found(s, s)));
        let expected: Vec<_> = at_once.emit(rules(&tenant, Some(60))).unwrap().0.into_iter().map(|(id, _)| id).collect();
        let mut step_by_step = KeyState::default();
        let mut emitted = Vec::new();
        for second in seconds {
            step_by_step.insert(found(second, second));
            emitted.extend(step_by_step.emit(rules(&tenant, Some(60))).unwrap().0.into_iter().map(|(id, _)| id));
            assert!(step_by_step.settle(rules(&tenant, Some(60)), at(second - 5)).unwrap().is_empty());
        }
        assert_eq!(emitted, expected);
        assert!(step_by_step.settle(rules(&tenant, Some(60)), at(10_000)).unwrap().is_empty());
        assert!(step_by_step.is_empty());
    }

    #[test]
    fn an_alert_that_vanishes_is_retracted_once_it_can_no_longer_come_back() {
        let tenant = TenantId::new("t").unwrap();
        let mut key = KeyState::default();
        key.insert(found(10, 30));
        let (alerts, _) = key.emit(rules(&tenant, None)).unwrap();
        // A late event puts another first evidence into the same match.
        key.clear(at(0), at(100));
        key.insert(found(5, 30));
        assert_eq!(key.emit(rules(&tenant, None)).unwrap().0.len(), 1);
        assert!(key.settle(rules(&tenant, None), at(70)).unwrap().is_empty(), "a match at 70 could still begin at 10");
        assert_eq!(key.settle(rules(&tenant, None), at(71)).unwrap(), [alerts[0].0.clone()]);
        assert!(key.settle(rules(&tenant, None), at(10_000)).unwrap().is_empty());
        assert!(key.is_empty());
    }
}
