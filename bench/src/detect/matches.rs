//! What an engine told of a log: held against what the log was made to be told of, and against what another engine told.

use std::collections::{BTreeMap, BTreeSet};

use aegis_detect::{IMPAIRED_RULE, TickOutput};
use aegis_model::{Alert, EventId};
use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::rules::Texts;
use super::traffic::Expected;

/// Differences that are shown of two sets.
const SHOWN: usize = 5;

/// Rule, tenant and last evidence.
type Place = (String, String, EventId);

/// Alerts that stand, by id.
#[derive(Debug, Default)]
pub(crate) struct Matches {
    standing: BTreeMap<String, Alert>,
    /// What the engine said of itself: that it did not look at something.
    pub(crate) impaired: usize,
}

impl Matches {
    /// Takes what a tick told. A rule that stopped, or an event that was not looked at, ends the benchmark.
    pub(crate) fn take(&mut self, output: TickOutput) -> anyhow::Result<()> {
        if let Some(error) = output.quarantined.first() {
            bail!("{error}");
        }
        let unseen = output.late.len() as u64 + output.ahead;
        ensure!(unseen == 0, "{unseen} events came too late, or too early, for the rules");
        for alert in output.alerts {
            if alert.rule_id == IMPAIRED_RULE {
                self.impaired += 1;
            } else {
                self.standing.insert(alert.alert_id.clone(), alert);
            }
        }
        for retraction in output.retractions {
            self.standing.remove(&retraction.alert_id);
        }
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.standing.len()
    }

    /// Holds what stands against what must: with `only`, nothing else may. How many there had to be.
    pub(crate) fn check(&self, expected: &BTreeSet<Place>, only: bool) -> anyhow::Result<usize> {
        let mut found = BTreeSet::new();
        for alert in self.standing.values() {
            found.insert(place_of(alert)?);
        }
        let missing: Vec<&Place> = expected.difference(&found).collect();
        ensure!(missing.is_empty(), "{} of {} alerts are missing: {}", missing.len(), expected.len(), shown(&missing));
        let surplus: Vec<&Place> = found.difference(expected).collect();
        ensure!(!only || surplus.is_empty(), "{} alerts are told that nothing accounts for: {}", surplus.len(), shown(&surplus));
        ensure!(!only || found.len() == self.len(), "some of {} alerts are about the same event", self.len());
        Ok(expected.len())
    }

    /// Holds what stands against what another engine told, with evidence and fields. The lists among those may be in another order.
    pub(crate) fn check_same(&self, other: &Self) -> anyhow::Result<()> {
        ensure!(self.len() > 0, "nothing is told, so nothing was compared");
        let (own, others) = (self.told(), other.told());
        let differing = |from: &BTreeMap<&str, String>, to: &BTreeMap<&str, String>| {
            let only = from.iter().filter(|(id, told)| to.get(**id) != Some(*told)).map(|(_, told)| told.clone());
            only.collect::<Vec<String>>()
        };
        let (here, there) = (differing(&own, &others), differing(&others, &own));
        ensure!(
            here.is_empty() && there.is_empty(),
            "followed event by event, {} alerts differ: {}; and over whole windows {}: {}",
            here.len(),
            shown(&here),
            there.len(),
            shown(&there)
        );
        Ok(())
    }

    /// All that an alert says, but for when it was made.
    fn told(&self) -> BTreeMap<&str, String> {
        let text = |alert: &Alert| {
            let Alert { rule_id, tenant_id, key, first_ts, last_ts, event_ids, fields, .. } = alert;
            let sorted: BTreeMap<&str, Value> = fields.iter().map(|(name, value)| (name.as_str(), in_order(value))).collect();
            format!("{rule_id} {tenant_id} {key:?} {first_ts} {last_ts} {event_ids:?} {sorted:?}")
        };
        self.standing.iter().map(|(id, alert)| (id.as_str(), text(alert))).collect()
    }
}

/// What of the expected a set of rules must tell in a log's events, of which `is_among` says whether they are there: each what its shipped rule
/// must, or as much of that as is of its tool.
pub(crate) fn must_be_told(expected: &[Expected], texts: &Texts, is_among: impl Fn(&EventId) -> bool) -> BTreeSet<Place> {
    let mut by_rule: BTreeMap<&str, Vec<&Expected>> = BTreeMap::new();
    for one in expected.iter().filter(|one| is_among(&one.event_id)) {
        by_rule.entry(&one.rule).or_default().push(one);
    }
    let mut places = BTreeSet::new();
    for (id, name) in &texts.names {
        let tool = texts.tools.get(id);
        let own = by_rule.get(name.as_str()).into_iter().flatten();
        let own = own.filter(|one| tool.is_none() || one.tool.as_ref() == tool);
        places.extend(own.map(|one| (id.clone(), one.tenant.clone(), one.event_id)));
    }
    places
}

fn place_of(alert: &Alert) -> anyhow::Result<Place> {
    let last = alert.event_ids.last().context("an alert without evidence")?;
    Ok((alert.rule_id.clone(), alert.tenant_id.to_string(), *last))
}

fn in_order(value: &Value) -> Value {
    match value {
        Value::Array(items) => {
            let mut items = items.clone();
            items.sort_by_key(Value::to_string);
            Value::Array(items)
        }
        other => other.clone(),
    }
}

fn shown<T: std::fmt::Debug>(all: &[T]) -> String {
    format!("{:?}{}", &all[..all.len().min(SHOWN)], if all.len() > SHOWN { ", …" } else { "" })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use aegis_detect::{Engine, EngineConfig};
    use aegis_model::{ManualClock, SecurityEvent, Timestamp};

    use super::*;
    use crate::detect::rules::{FIRST, Fill};
    use crate::detect::traffic::{Events, Traffic};

    /// Proved by word: the ledger is not what is tested here.
    fn proved(mut events: Vec<SecurityEvent>) -> Vec<SecurityEvent> {
        for (seq, event) in events.iter_mut().enumerate() {
            (event.lane, event.seq) = (Some(format!("{}.edge.1", event.tenant_id)), Some(seq as i64));
            (event.verified, event.bus_ts) = (true, Some(event.ts));
        }
        events
    }

    fn engine(texts: &Texts, incremental: bool) -> Engine {
        let mut config = EngineConfig::new(Arc::new(ManualClock::new(Timestamp::from_micros(0))));
        config.incremental = incremental;
        Engine::new(texts.load().unwrap(), config)
    }

    fn told(events: &[SecurityEvent], texts: &Texts, incremental: bool) -> Matches {
        let mut engine = engine(texts, incremental);
        let mut matches = Matches::default();
        for part in events.chunks(512) {
            matches.take(engine.tick(part.to_vec())).unwrap();
        }
        matches.take(engine.finish()).unwrap();
        matches
    }

    #[test]
    fn every_kind_of_traffic_is_told_of_as_it_was_made_to_be() {
        // Close together too, so that stories of one kind would add up to what another rule tells of.
        for (traffic, rules, count) in
            [(Traffic::Even(1), 28, 20_000), (Traffic::Hot(20), 10, 2_500), (Traffic::Flood, 10, 2_500)]
        {
            let texts = Texts::of(rules, Fill::Copies).unwrap();
            let Events { events, expected } = traffic.events(count).unwrap();
            let matches = told(&proved(events), &texts, true);
            let expected = must_be_told(&expected, &texts, |_| true);
            assert_eq!(matches.check(&expected, traffic.is_known_whole()).unwrap(), expected.len());
        }
    }

    #[test]
    fn rules_apart_tell_of_their_own_tools_and_see_as_much_of_them_as_their_originals() {
        let texts = Texts::of(70, Fill::Apart).unwrap();
        let tools = texts.tools_of_a_log();
        assert!(tools >= 2);
        let Events { events, expected } = Traffic::Tools { tenants: 2, tools }.events(10_000).unwrap();
        let events = proved(events);
        let (matches, expected) = (told(&events, &texts, true), must_be_told(&expected, &texts, |_| true));
        matches.check(&expected, true).unwrap();
        let alerts_of = |id: &str| expected.iter().filter(|(rule, ..)| rule == id).count();
        for (id, name) in texts.names.iter().filter(|(id, name)| texts.tools.contains_key(*id) && FIRST.contains(&name.as_str()))
        {
            let original = texts.names.iter().find(|(id, own)| *own == name && !texts.tools.contains_key(*id)).unwrap().0;
            assert!((1..alerts_of(original)).contains(&alerts_of(id)), "{id}");
        }

        // Of one tool's events, what the rule was before it was copied, and nothing of the others'.
        for used in texts.tools.values().collect::<BTreeSet<_>>() {
            let mut engine = engine(&texts, true);
            engine.tick(events.iter().filter(|event| event.tool.as_ref() == Some(used)).cloned().collect());
            engine.finish();
            let seen: BTreeMap<String, u64> = engine.stats().into_iter().map(|rule| (rule.rule_id, rule.relevant)).collect();
            for (id, tool) in &texts.tools {
                let original =
                    texts.names.iter().find(|(other, name)| !texts.tools.contains_key(*other) && **name == texts.names[id]);
                let sees = if tool == used { seen[original.unwrap().0] } else { 0 };
                assert_eq!(seen[id], sees, "{id} among events of {used}");
            }
        }
    }

    #[test]
    fn both_plans_tell_the_same_and_a_missing_or_added_alert_is_noticed() {
        let texts = Texts::of(10, Fill::Copies).unwrap();
        let Events { events, expected } = Traffic::Even(2).events(1_000).unwrap();
        let events = proved(events);
        let (mut followed, plain) = (told(&events, &texts, true), told(&events, &texts, false));
        followed.check_same(&plain).unwrap();
        let all = must_be_told(&expected, &texts, |_| true);
        followed.check(&all, true).unwrap();
        let fewer = all.iter().skip(1).cloned().collect();
        assert!(followed.check(&fewer, true).is_err());
        assert!(followed.check(&fewer, false).is_ok());
        followed.standing.pop_first();
        assert!(followed.check(&all, true).is_err());
        assert!(followed.check(&all, false).is_err());
        assert!(followed.check_same(&plain).is_err());
        assert!(Matches::default().check_same(&Matches::default()).is_err());
    }
}
