//! Rules that every tenant has are filled as if they had always been there.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use aegis_model::{Decision, EventId, EventKind, ManualClock};
use proptest::prelude::*;

use super::*;
use crate::common::Change;
use crate::engine::EngineConfig;
use crate::impaired::IMPAIRED_RULE;
use crate::ruleset::RuleSet;

const TENANTS: [&str; 3] = ["acme", "beta", "gamma"];
/// Followed event by event, with all its evidence, and run over the window.
const COUNTS: [&str; 2] = [
    "count(*) OVER w AS n, array_agg(event_id) OVER w AS event_ids",
    "sum(CAST(mutates_state AS BIGINT) + 1) OVER w AS n, event_id",
];

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

fn text(count: &str) -> String {
    format!(
        "/* rule\nid: T-1\nname: t\nversion: 1\nseverity: low\nwindow: 10m\nkey: [agent_id]\nmode: active\nrequires: any\nsuppress: 5m\n\
         owner: soc\ndescription: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-27, note: first}}\n*/\n\
         SELECT agent_id, {count} FROM events WHERE decision = 'deny' WINDOW w AS \
         (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '600' SECOND PRECEDING AND CURRENT ROW) QUALIFY n >= 3\n"
    )
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(1_767_225_600_000_000).plus_seconds(second)
}

/// Denies of agents in tenants, some seconds after one another, some of them a little late.
fn log(steps: &[(usize, i64, i64, u8)]) -> Vec<SecurityEvent> {
    let mut second = 0;
    let event = |(number, (tenant_of, after, back, agent)): (usize, &(usize, i64, i64, u8))| {
        second += after;
        let name = TENANTS[*tenant_of];
        let mut event = SecurityEvent::new(tenant(name), "edge-1", "edge", EventKind::AuthorizeDecision, at(second - back));
        event.event_id = EventId::from_u128(1 + number as u128);
        (event.lane, event.seq) = (Some(format!("{name}.edge-1.1")), Some(1 + number as i64));
        (event.agent_id, event.decision) = (Some(format!("agent-{agent}")), Some(Decision::Deny));
        (event.verified, event.mutates_state, event.bus_ts) = (true, Some(false), Some(at(second)));
        event
    };
    steps.iter().enumerate().map(event).collect()
}

/// A rule that every tenant has, besides one that says nothing.
fn engine() -> (Engine, RuleSet) {
    let never = text(COUNTS[0]).replace("T-1", "T-9").replace("name: t", "name: never").replace("n >= 3", "n >= 1000");
    let set = || RuleSet::from_texts([("never/rule.sql".into(), never.clone())]).unwrap();
    (Engine::new(set(), EngineConfig::new(Arc::new(ManualClock::new(at(0))))), set())
}

fn come(engine: &mut Engine, set: &RuleSet, text: &str, since: Since) {
    let stands = set.common().standing_by("T-1", text).unwrap();
    let _of_before = engine.set_common(Change { rule_id: "T-1".to_owned(), stands, since }, Vec::new());
}

/// What stands of what was told.
fn stands(outputs: Vec<TickOutput>) -> BTreeSet<(String, i64, usize)> {
    let mut told = BTreeMap::new();
    for output in outputs {
        for alert in output.alerts.into_iter().filter(|alert| alert.rule_id != IMPAIRED_RULE) {
            told.insert(alert.alert_id, (alert.first_ts.as_micros(), alert.event_ids.len()));
        }
        for retraction in &output.retractions {
            told.remove(&retraction.alert_id);
        }
    }
    told.into_iter().map(|(id, (first, events))| (id, first, events)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// L-WARM: a rule that comes midway without anything of its windows, and is filled for one tenant after the other, tells of each tenant what one tells
    /// that was there from the first event on and counts from the same time on; and nothing before it is filled.
    #[test]
    fn l_warm_a_rule_that_is_filled_midway_tells_what_one_tells_that_was_always_there(
        steps in prop::collection::vec((0..TENANTS.len(), 0..40i64, 0..20i64, 0..2u8), 20..120),
        comes in 0.0..1.0f64,
        filled in prop::collection::vec(0.0..1.0f64, TENANTS.len()),
        batch in 1..9usize,
        count in prop::sample::select(COUNTS.to_vec()),
    ) {
        let (events, text) = (log(&steps), text(count));
        let batches: Vec<&[SecurityEvent]> = events.chunks(batch).collect();
        let last = batches.len() as f64 - 1.0;
        let comes = (comes * last) as usize;
        // In front of which batch it is filled for whom.
        let places: Vec<usize> = filled.iter().map(|part| comes + ((batches.len() - comes) as f64 * part) as usize).collect();
        // Behind all that came before it.
        let time_of = |place: usize| {
            let before = batches[..place].iter().flat_map(|events| events.iter()).filter_map(|event| event.bus_ts).max();
            before.unwrap_or(at(-1_000_000)).plus_micros(1)
        };
        let of_tenant = TENANTS.iter().zip(&places).map(|(name, place)| (tenant(name), time_of(*place)));
        let partitions = || TENANTS.iter().map(|name| (partition_of(&tenant(name)), at(1_000_000)));
        let since = Since { of_tenant: of_tenant.collect(), of_partition: partitions().collect() };
        let waits = Since { of_tenant: BTreeMap::new(), of_partition: partitions().collect() };

        let (mut always, set) = engine();
        come(&mut always, &set, &text, since);
        let expected = stands(batches.iter().map(|events| always.tick(events.to_vec())).collect());

        let (mut later, set) = engine();
        let mut outputs = Vec::new();
        for (place, events) in batches.iter().enumerate() {
            if place == comes {
                come(&mut later, &set, &text, waits.clone());
            }
            for name in TENANTS.iter().zip(&places).filter(|(_, of)| **of == place).map(|(name, _)| tenant(name)) {
                let before = batches[..place].iter().flat_map(|events| events.iter());
                let its: Vec<SecurityEvent> = before.filter(|event| event.tenant_id == name).cloned().collect();
                outputs.push(later.fill_common(&name, "T-1", time_of(place), its));
            }
            outputs.push(later.tick(events.to_vec()));
        }
        prop_assert_eq!(stands(outputs), expected);
    }
}

#[test]
fn what_fails_over_what_it_is_filled_with_is_set_aside_for_that_tenant_alone() {
    let (mut engine, set) = engine();
    let partitions = TENANTS.iter().map(|name| (partition_of(&tenant(name)), at(1_000_000))).collect();
    come(&mut engine, &set, &text(COUNTS[0]), Since { of_tenant: BTreeMap::new(), of_partition: partitions });
    let place = engine.rules.iter().position(|running| running.is_common("T-1")).unwrap();
    let reason = "on purpose".to_owned();
    engine.rules[place].set_aside(&tenant("acme"), DetectError::Output { rule: "T-1".to_owned(), reason }, None).unwrap();
    assert!(!engine.rules[place].runs_for(&tenant("acme")) && engine.rules[place].runs_for(&tenant("beta")));
    let _of_acme = engine.fill_common(&tenant("acme"), "T-1", at(0), log(&[(0, 1, 0, 1), (0, 1, 0, 1)]));
    let _of_beta = engine.fill_common(&tenant("beta"), "T-1", at(0), log(&[(1, 1, 0, 1), (1, 1, 0, 1)]));
    assert_eq!(engine.rules[place].state.event_count(), 2, "nothing is kept of who was set aside");
}
