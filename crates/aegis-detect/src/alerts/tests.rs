//! When an alert is final, and what rules on rules take of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::atomic::{AtomicI64, Ordering};

use aegis_model::Clock;

use super::*;
use crate::engine::Engine;
use crate::episode::{KeyRules, KeyState};
use crate::output::{Evidence, Match};
use crate::ruleset::RuleSet;

fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(second * 1_000_000)
}

fn found(first: i64, instant: i64) -> Match {
    let evidence = |s: i64| Evidence {
        event_id: uuid::Uuid::from_u128(s.unsigned_abs().into()),
        ts: at(s),
        receipt_hash: Some(format!("receipt-{s}")),
    };
    Match { instant: at(instant), key: Map::new(), evidence: vec![evidence(first), evidence(instant)], fields: Map::new() }
}

fn rules(tenant: &TenantId, suppress: Option<i64>) -> KeyRules<'_> {
    let (window_micros, suppress_micros) = (60_000_000, suppress.map(|s| s * 1_000_000));
    KeyRules { tenant, rule_id: "R", window_micros, suppress_micros, keeps_details: false, is_read: true }
}

#[test]
fn an_alert_is_final_once_and_the_same_whenever_time_passes() {
    let tenant = TenantId::new("t").unwrap();
    for suppress in [None, Some(60)] {
        let rules = rules(&tenant, suppress);
        let finals = |step: i64| {
            let (mut key, mut finals) = (KeyState::default(), Vec::new());
            for (first, instant) in [(10, 10), (10, 20), (15, 21), (10, 30), (75, 80), (140, 141)] {
                key.insert(found(first, instant));
                key.emit(rules).unwrap();
                if instant % step == 0 {
                    key.settle(rules, at(instant)).unwrap();
                    finals.extend(key.take_finals());
                }
            }
            key.settle(rules, at(10_000)).unwrap();
            finals.extend(key.take_finals());
            assert!(key.is_empty());
            finals
        };
        let at_once = finals(1_000);
        assert_eq!(at_once.iter().map(|told| told.last.0).collect::<Vec<_>>()[0], at(10));
        let ids: std::collections::BTreeSet<_> = at_once.iter().map(|told| told.alert_id.clone()).collect();
        assert_eq!(ids.len(), at_once.len(), "each once");
        assert_eq!(finals(1), at_once);
        assert_eq!(finals(10), at_once);
    }
    // What stands early because there is too much is not lost to a restart before its key is settled.
    let mut key = KeyState::default();
    for second in 1..=10 {
        key.insert(found(second, second));
        key.emit(rules(&tenant, None)).unwrap();
    }
    assert_eq!(key.settle_surplus(rules(&tenant, None), 4).unwrap(), 8);
    let mut again: KeyState = serde_json::from_str(&serde_json::to_string(&key.told()).unwrap()).unwrap();
    let early = again.take_finals();
    assert_eq!(early.iter().map(|told| told.last.0).collect::<Vec<_>>(), (1..=8).map(at).collect::<Vec<_>>());
    assert_eq!(early, key.take_finals());
    // Nobody reads the others'.
    let mut key = KeyState::default();
    key.insert(found(1, 1));
    let unread = KeyRules { is_read: false, ..rules(&tenant, None) };
    key.emit(unread).unwrap();
    key.settle(unread, at(10_000)).unwrap();
    assert!(key.is_empty() && key.take_finals().is_empty());
}

/// By it, whatever is timed takes longer than a look may.
#[derive(Debug, Default)]
struct SlowClock(AtomicI64);

impl Clock for SlowClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.fetch_add(11_000_000, Ordering::Relaxed))
    }
}

/// It is set forward by as much whenever it is asked, and nothing takes any time.
#[derive(Debug, Default)]
struct SetClock(SlowClock);

impl Clock for SetClock {
    fn now(&self) -> Timestamp {
        self.0.now()
    }

    fn steady_micros(&self) -> i64 {
        0
    }
}

/// A rule on rules behind an alert of the tenant `a`, and what was told, by this clock.
fn taken_by(clock: Arc<dyn Clock>) -> (Engine, TickOutput) {
    let text = |name: &str, query: &str| {
        let text = format!(
            "/* rule\nid: T-{name}\nname: {name}\nversion: 1\nseverity: low\nwindow: 60s\nkey: [agent_id]\nmode: active\nrequires: any\n\
             owner: soc\ndescription: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-27, note: n}}\n*/\n{query}\n"
        );
        (PathBuf::from(format!("{name}/rule.sql")), text)
    };
    let below = text("below", "SELECT agent_id, event_id FROM events");
    let above = text("above", "SELECT agent_id, event_id FROM alerts WHERE rule_name = 'below'");
    let config = EngineConfig::new(clock);
    let mut engine = Engine::new(RuleSet::from_texts([below, above]).unwrap(), config.clone());
    let tenant = TenantId::new("a").unwrap();
    let event_id = uuid::Uuid::from_u128(1);
    let told = Final { alert_id: "alert".to_owned(), first: event_id, last: (at(1), event_id), receipt_hash: None };
    let key = Map::from_iter([("agent_id".to_owned(), Value::from("x"))]);
    let row = Arc::new(row_of(&engine.rules[0].rule, &tenant, &key, &told));
    let mut output = TickOutput::default();
    engine.rules[1].take_alerts(&[row], &config, &mut output);
    (engine, output)
}

#[test]
fn a_tenant_whose_alerts_take_too_long_stops_the_rule_for_itself_alone() {
    let (engine, output) = taken_by(Arc::new(SlowClock::default()));
    let (stats, tenant) = (&engine.rules[1].stats, TenantId::new("a").unwrap());
    assert_eq!((&stats.quarantined, stats.set_aside.keys().collect::<Vec<_>>()), (&None, vec![&tenant]));
    assert_eq!(output.quarantined.len(), 1, "and it is said");
}

#[test]
fn a_clock_that_is_set_forward_meanwhile_stops_no_rule() {
    let (engine, output) = taken_by(Arc::new(SetClock::default()));
    let stats = &engine.rules[1].stats;
    assert!(stats.quarantined.is_none() && stats.set_aside.is_empty(), "{:?}", stats.set_aside);
    assert!(output.quarantined.is_empty());
}
