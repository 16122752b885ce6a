//! The matches of one key: which of them are alerts, which join an episode, and what is retracted.
//! Everything is decided on event time from the final set of matches, so the order of arrival changes nothing in the end.
//!
//! An alert is retracted only once no event that is in time could bring it back: a retraction is said once and stays. Of a match only its ends
//! are kept; all its evidence is there until its key was looked at, and is found again from the events of the window where it is needed later.

mod again;

use std::collections::BTreeMap;

use aegis_canon::CanonError;
use aegis_model::{EventId, TenantId, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::alert::alert_id;
use crate::alerts::Final;
use crate::output::{Evidence, Match};

/// What a checkpoint has of an alert that was emitted, or of an episode, at most.
const BYTES_OF_AN_ALERT: usize = 384;

/// A run of matches of one key that raises one alert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Episode {
    pub(crate) alert_id: String,
    /// First evidence of its first match.
    first: EventId,
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
    alert_id: String,
    /// Time of its first evidence: a match with this id lies within one window of it.
    first_ts: Timestamp,
    /// Instant of the match that raised it.
    start: Timestamp,
    /// True once the match that raises it can no longer change.
    stands: bool,
    /// It was told in another life, behind the checkpoint: maybe by a later one of two rules of the same text.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    of_before: bool,
    /// True once it is among the `finals`.
    #[serde(default)]
    is_final: bool,
}

/// Where a match stands among those of its key.
pub(crate) type Order = (Timestamp, (Timestamp, EventId), (Timestamp, EventId));

/// A match that can still change.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    /// Its instant, its first and its last evidence.
    order: Order,
    /// All of it, while an alert may be made of it; afterwards the receipt of its last evidence.
    detail: Option<Box<Match>>,
    receipt_hash: Option<String>,
}

impl Seen {
    const fn instant(&self) -> Timestamp {
        self.order.0
    }

    const fn first(&self) -> (Timestamp, EventId) {
        self.order.1
    }

    const fn last(&self) -> (Timestamp, EventId) {
        self.order.2
    }

    fn receipt_hash(&self) -> Option<&String> {
        self.detail.as_ref().map_or(self.receipt_hash.as_ref(), |detail| detail.last().receipt_hash.as_ref())
    }

    fn forget_detail(&mut self) {
        let last = self.detail.take().and_then(|detail| detail.evidence.into_iter().next_back());
        self.receipt_hash = last.and_then(|last| last.receipt_hash).or_else(|| self.receipt_hash.take());
    }
}

/// Where a match stands.
pub(crate) fn order_of(found: &Match) -> Order {
    let end = |evidence: &Evidence| (evidence.ts, evidence.event_id);
    (found.instant, end(found.first()), end(found.last()))
}

/// What is remembered of a key. A checkpoint has what was told; the matches are found again from the events of the window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct KeyState {
    key: Map<String, Value>,
    /// Matches that can still change, in their order.
    #[serde(skip)]
    matches: Vec<Seen>,
    /// Up to where they stand because there were too many, and are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stands_to: Option<Order>,
    /// Up to where those that join the settled episode were counted before a restart that could not tell which they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    counted_to: Option<Timestamp>,
    /// The last episode that can no longer change.
    settled: Option<Episode>,
    /// By first evidence.
    emitted: BTreeMap<EventId, Emitted>,
    /// Of a rule that others read: what became final since they were asked for.
    #[serde(skip)]
    finals: Vec<Final>,
}

/// What a key's rule says about identity and time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyRules<'a> {
    pub(crate) tenant: &'a TenantId,
    pub(crate) rule_id: &'a str,
    pub(crate) window_micros: i64,
    pub(crate) suppress_micros: Option<i64>,
    /// True where no events are kept from which a match could be found again.
    pub(crate) keeps_details: bool,
    /// True if rules read its alerts.
    pub(crate) is_read: bool,
}

/// What there is to say of a key.
#[derive(Debug, Default)]
pub(crate) struct Emission {
    /// Alerts that were not emitted before, now marked so.
    pub(crate) fresh: Vec<(String, Match)>,
    /// Matches that raise an alert, of which only the ends are known: to be found again, and to be supplied.
    pub(crate) wanted: Vec<Order>,
    /// Every episode as it now is.
    pub(crate) episodes: Vec<Episode>,
}

impl KeyState {
    pub(crate) const fn key(&self) -> &Map<String, Value> {
        &self.key
    }

    /// Forgets the matches at instants within `[from, to]`.
    pub(crate) fn clear(&mut self, from: Timestamp, to: Timestamp) {
        self.matches.retain(|m| m.instant() < from || m.instant() > to);
    }

    /// Adds a match, unless the same is there.
    pub(crate) fn insert(&mut self, found: Match) {
        if self.key.is_empty() {
            self.key.clone_from(&found.key);
        }
        let seen = Seen { order: order_of(&found), detail: Some(Box::new(found)), receipt_hash: None };
        if self.stands_to.is_some_and(|to| seen.order <= to) {
            return;
        }
        match self.matches.binary_search_by(|m| m.order.cmp(&seen.order)) {
            Ok(at) => self.matches[at] = seen,
            Err(at) => self.matches.insert(at, seen),
        }
    }

    /// Keeps only the ends of its matches.
    pub(crate) fn forget_details(&mut self) {
        self.matches.iter_mut().for_each(Seen::forget_detail);
    }

    /// All of the matches that were wanted. One that cannot be found any more has its ends as evidence: an alert is not lost.
    pub(crate) fn supply(&mut self, wanted: &[Order], found: Vec<Match>) {
        let mut found: BTreeMap<Order, Match> = found.into_iter().map(|m| (order_of(&m), m)).collect();
        for order in wanted {
            let Ok(at) = self.matches.binary_search_by(|m| m.order.cmp(order)) else { continue };
            let detail = found.remove(order).unwrap_or_else(|| ends_of(order, &self.key));
            self.matches[at].detail = Some(Box::new(detail));
        }
    }

    /// The episodes of the matches that can still change: each with the match that raises it.
    fn episodes(&self, rules: KeyRules<'_>) -> Result<Vec<(Episode, Option<&Seen>)>, CanonError> {
        let mut episodes: Vec<(Episode, Option<&Seen>)> = self.settled.clone().map(|e| (e, None)).into_iter().collect();
        for found in &self.matches {
            let ((_, first), (last_ts, last_event_id)) = (found.first(), found.last());
            let joins = episodes.last_mut().filter(|(current, _)| match rules.suppress_micros {
                Some(suppress) => found.instant() < current.start.plus_micros(suppress),
                None => current.first == first,
            });
            if let Some((current, raised_by)) = joins {
                let is_counted = raised_by.is_none() && self.counted_to.is_some_and(|to| found.instant() <= to);
                if !is_counted {
                    current.count += 1;
                    (current.last_ts, current.last_event_id) = (last_ts, last_event_id);
                }
                continue;
            }
            let alert_id = match self.emitted.get(&first) {
                Some(emitted) => emitted.alert_id.clone(),
                None => alert_id(rules.tenant, rules.rule_id, &self.key, first)?,
            };
            episodes.push((Episode { alert_id, first, start: found.instant(), count: 1, last_ts, last_event_id }, Some(found)));
        }
        Ok(episodes)
    }

    /// What is to be told of the key now.
    pub(crate) fn emit(&mut self, rules: KeyRules<'_>) -> Result<Emission, CanonError> {
        let mut emission = Emission::default();
        let mut raised = BTreeMap::new();
        for (episode, raised_by) in self.episodes(rules)? {
            if let Some(seen) = raised_by.filter(|_| !self.emitted.contains_key(&episode.first)) {
                match &seen.detail {
                    Some(_) if raised.contains_key(&episode.first) => {}
                    Some(detail) => {
                        let (alert_id, first_ts) = (episode.alert_id.clone(), seen.first().0);
                        let start = episode.start;
                        let emitted = Emitted { alert_id, first_ts, start, stands: false, of_before: false, is_final: false };
                        raised.insert(episode.first, emitted);
                        emission.fresh.push((episode.alert_id.clone(), (**detail).clone()));
                    }
                    None => emission.wanted.push(seen.order),
                }
            }
            emission.episodes.push(episode);
        }
        self.emitted.extend(raised);
        if !rules.keeps_details {
            self.forget_details();
        }
        Ok(emission)
    }

    /// Time has passed `final_before`: what lies before it is settled. Answers the ids of alerts that are now retracted.
    pub(crate) fn settle(&mut self, rules: KeyRules<'_>, final_before: Timestamp) -> Result<Vec<String>, CanonError> {
        self.settle_matches(rules, self.matches.partition_point(|m| m.instant() < final_before))?;
        // Within this span a later match could still join the settled episode.
        let keeps = rules.suppress_micros.unwrap_or(rules.window_micros);
        if self.settled.as_ref().is_some_and(|e| e.start.plus_micros(keeps) < final_before) {
            self.settled = None;
        }
        let mut retracted = Vec::new();
        self.emitted.retain(|_, emitted| {
            let can_change = emitted.first_ts.plus_micros(rules.window_micros) >= final_before;
            if !can_change && !emitted.stands {
                retracted.push(emitted.alert_id.clone());
            }
            can_change
        });
        Ok(retracted)
    }

    /// The oldest `count` matches can no longer change.
    fn settle_matches(&mut self, rules: KeyRules<'_>, count: usize) -> Result<(), CanonError> {
        if count == 0 {
            return Ok(());
        }
        let provisional = self.matches.split_off(count);
        let final_of = |episode: &Episode, seen: &Seen| {
            let (alert_id, receipt_hash) = (episode.alert_id.clone(), seen.receipt_hash().cloned());
            Final { alert_id, first: episode.first, last: seen.last(), receipt_hash }
        };
        let with_final = |(episode, raised_by): (Episode, Option<&Seen>)| {
            let told = raised_by.filter(|_| rules.is_read).map(|seen| final_of(&episode, seen));
            (episode, told)
        };
        let settled: Vec<(Episode, Option<Final>)> = self.episodes(rules)?.into_iter().map(with_final).collect();
        for (episode, told) in settled {
            let mut is_news = true;
            if let Some(emitted) = self.emitted.get_mut(&episode.first) {
                is_news = !emitted.is_final;
                (emitted.stands, emitted.is_final) = (true, true);
            }
            self.finals.extend(told.filter(|_| is_news));
            self.settled = Some(episode);
        }
        self.matches = provisional;
        Ok(())
    }

    /// What became final since the last time.
    pub(crate) fn take_finals(&mut self) -> Vec<Final> {
        std::mem::take(&mut self.finals)
    }

    /// Of more matches than `most`, all of which were told: the oldest stand as they are, half of `most` are left. Answers how many those are.
    pub(crate) fn settle_surplus(&mut self, rules: KeyRules<'_>, most: usize) -> Result<usize, CanonError> {
        if self.matches.len() <= most {
            return Ok(0);
        }
        let surplus = self.matches.len() - most / 2;
        self.stands_to = self.matches.get(surplus - 1).map(|last| last.order);
        self.settle_matches(rules, surplus)?;
        Ok(surplus)
    }

    /// True if there is anything for a checkpoint.
    pub(crate) fn has_told(&self) -> bool {
        self.settled.is_some() || !self.emitted.is_empty()
    }

    /// How many bytes a checkpoint has of it under its `text`, about and at most.
    pub(crate) fn told_bytes(&self, text: &str) -> usize {
        let told = self.emitted.len() + usize::from(self.settled.is_some());
        json_bytes(text) + text.len() + (told + 1) * BYTES_OF_AN_ALERT
    }

    /// What a checkpoint has of it.
    pub(crate) fn told(&self) -> Self {
        Self {
            key: self.key.clone(),
            matches: Vec::new(),
            stands_to: self.stands_to,
            counted_to: self.counted_to,
            settled: self.settled.clone(),
            emitted: self.emitted.clone(),
            finals: Vec::new(),
        }
    }

    /// True if nothing is remembered.
    pub(crate) fn is_empty(&self) -> bool {
        self.matches.is_empty() && self.settled.is_none() && self.emitted.is_empty() && self.finals.is_empty()
    }

    pub(crate) fn match_count(&self) -> usize {
        self.matches.len()
    }
}

/// How many bytes a text has as JSON.
pub(crate) fn json_bytes(text: &str) -> usize {
    let bytes = |byte: u8| match byte {
        0..0x20 => r"\u0000".len(),
        b'"' | b'\\' => 2,
        _ => 1,
    };
    text.bytes().map(bytes).sum::<usize>() + 2
}

/// A match of which only the ends are known.
fn ends_of(order: &Order, key: &Map<String, Value>) -> Match {
    let (instant, first, last) = *order;
    let evidence = |(ts, event_id)| Evidence { event_id, ts, receipt_hash: None };
    let mut evidence = vec![evidence(first), evidence(last)];
    evidence.dedup();
    Match { instant, key: key.clone(), evidence, fields: Map::new() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_micros(second * 1_000_000)
    }

    fn found(first: i64, instant: i64) -> Match {
        let evidence =
            |s: i64| Evidence { event_id: uuid::Uuid::from_u128(s.unsigned_abs().into()), ts: at(s), receipt_hash: None };
        Match { instant: at(instant), key: Map::new(), evidence: vec![evidence(first), evidence(instant)], fields: Map::new() }
    }

    fn rules(tenant: &TenantId, suppress: Option<i64>) -> KeyRules<'_> {
        KeyRules {
            tenant,
            rule_id: "R",
            window_micros: 60_000_000,
            suppress_micros: suppress.map(|s| s * 1_000_000),
            keeps_details: false,
            is_read: false,
        }
    }

    #[test]
    fn repeated_matches_join_one_episode_until_suppress_has_passed() {
        let tenant = TenantId::new("t").unwrap();
        let mut key = KeyState::default();
        for second in [10, 20, 600, 609, 610, 700] {
            key.insert(found(second, second));
        }
        let Emission { fresh: alerts, episodes, .. } = key.emit(rules(&tenant, Some(600))).unwrap();
        let starts: Vec<_> = alerts.iter().map(|(_, m)| m.instant).collect();
        assert_eq!(starts, [at(10), at(610)], "exactly `suppress` after the first match a new episode begins");
        assert_eq!(episodes.iter().map(|e| e.count).collect::<Vec<_>>(), [4, 2]);
        assert!(key.emit(rules(&tenant, Some(600))).unwrap().fresh.is_empty(), "an alert is emitted once");
    }

    #[test]
    fn episodes_do_not_depend_on_when_time_passes() {
        let tenant = TenantId::new("t").unwrap();
        let seconds = [10, 20, 70, 130, 131, 190, 260];
        let mut at_once = KeyState::default();
        seconds.into_iter().for_each(|s| at_once.insert(found(s, s)));
        let expected: Vec<_> = at_once.emit(rules(&tenant, Some(60))).unwrap().fresh.into_iter().map(|(id, _)| id).collect();
        let mut step_by_step = KeyState::default();
        let mut emitted = Vec::new();
        for second in seconds {
            step_by_step.insert(found(second, second));
            emitted.extend(step_by_step.emit(rules(&tenant, Some(60))).unwrap().fresh.into_iter().map(|(id, _)| id));
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
        let alerts = key.emit(rules(&tenant, None)).unwrap().fresh;
        // A late event puts another first evidence into the same match.
        key.clear(at(0), at(100));
        key.insert(found(5, 30));
        assert_eq!(key.emit(rules(&tenant, None)).unwrap().fresh.len(), 1);
        assert!(key.settle(rules(&tenant, None), at(70)).unwrap().is_empty(), "a match at 70 could still begin at 10");
        assert_eq!(key.settle(rules(&tenant, None), at(71)).unwrap(), [alerts[0].0.clone()]);
        assert!(key.settle(rules(&tenant, None), at(10_000)).unwrap().is_empty());
        assert!(key.is_empty());
    }

    #[test]
    fn a_match_that_comes_to_raise_an_alert_later_is_wanted_and_supplied() {
        let tenant = TenantId::new("t").unwrap();
        let mut key = KeyState::default();
        for second in [10, 609] {
            key.insert(found(second, second));
        }
        assert_eq!(key.emit(rules(&tenant, Some(600))).unwrap().fresh.len(), 1);
        // A late match begins an episode that ends before the second one.
        key.insert(found(5, 5));
        let emission = key.emit(rules(&tenant, Some(600))).unwrap();
        assert_eq!(emission.fresh.iter().map(|(_, m)| m.instant).collect::<Vec<_>>(), [at(5)]);
        assert_eq!(emission.wanted, [order_of(&found(609, 609))]);
        key.supply(&emission.wanted, vec![found(609, 609)]);
        let again = key.emit(rules(&tenant, Some(600))).unwrap();
        assert_eq!(again.fresh.iter().map(|(_, m)| m.clone()).collect::<Vec<_>>(), [found(609, 609)]);
        assert!(again.wanted.is_empty());
        // Of one whose events are gone, the ends.
        key.insert(found(4, 4));
        key.insert(found(604, 604));
        let mut bare = key.clone();
        bare.clear(at(604), at(604));
        bare.insert(found(604, 604));
        bare.forget_details();
        let wanted: Vec<Order> = bare.emit(rules(&tenant, Some(600))).unwrap().wanted;
        assert!(!wanted.is_empty());
        bare.supply(&wanted, Vec::new());
        assert!(bare.emit(rules(&tenant, Some(600))).unwrap().fresh.iter().any(|(_, m)| m.instant == at(604)));
    }

    #[test]
    fn of_too_many_matches_the_oldest_stand_and_none_is_counted_twice() {
        let tenant = TenantId::new("t").unwrap();
        let mut key = KeyState::default();
        let mut alerts = 0;
        for second in 1..=100 {
            key.insert(found(second, second));
            alerts += key.emit(rules(&tenant, Some(600))).unwrap().fresh.len();
            key.settle_surplus(rules(&tenant, Some(600)), 10).unwrap();
            assert!(key.match_count() <= 10);
        }
        // Found again, because a late event touched the window.
        for second in 1..=100 {
            key.insert(found(second, second));
        }
        let last = key.emit(rules(&tenant, Some(600))).unwrap();
        assert_eq!((alerts, last.fresh.len()), (1, 0));
        assert_eq!(last.episodes.iter().map(|e| e.count).collect::<Vec<_>>(), [100]);
    }

    #[test]
    fn what_a_checkpoint_has_of_a_key_does_not_grow_with_its_matches() {
        let tenant = TenantId::new("t").unwrap();
        let mut key = KeyState::default();
        let size = |key: &KeyState| serde_json::to_vec(key).unwrap().len();
        key.insert(found(1, 1));
        key.emit(rules(&tenant, Some(600))).unwrap();
        let one = size(&key);
        for second in 2..500 {
            key.insert(found(1, second));
            key.emit(rules(&tenant, Some(600))).unwrap();
        }
        assert_eq!(key.match_count(), 499);
        assert_eq!(size(&key), one);
    }
}
