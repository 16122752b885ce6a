//! L-REGISTRY for the table alone: what is said is a function of the set of records.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use aegis_model::TenantId;
use proptest::prelude::*;
use serde_json::json;

use super::super::DAY;
use super::*;

fn record(kind: EventKind, at: i64, id: u128) -> SecurityEvent {
    let ts = Timestamp::from_micros(at);
    let mut event = SecurityEvent::new(TenantId::new("t").unwrap(), "control", "control", kind, ts);
    event.event_id = uuid::Uuid::from_u128(id);
    (event.lane, event.seq, event.verified) = (Some("t.control.1".into()), i64::try_from(id).ok(), true);
    event
}

fn registration(agent: &str, owner: Option<&str>, at: i64, id: u128) -> SecurityEvent {
    let agent = json!({"id": agent, "agent_key": format!("key-{agent}"), "owner_team": owner, "environment": "production",
                       "risk_tier": "high", "trust_ceiling": "unknown"});
    let (reason, attributes) = (Some("agent_registered_again".into()), Some(json!({"agent": agent}).to_string()));
    SecurityEvent { reason, attributes, ..record(EventKind::ConfigChanged, at, id) }
}

fn containment(agent: &str, status: &str, attributes: &serde_json::Value, at: i64, id: u128) -> SecurityEvent {
    let attributes = attributes.is_object().then(|| attributes.to_string());
    let (agent_id, status) = (Some(agent.to_owned()), Some(status.to_owned()));
    SecurityEvent { agent_id, status, attributes, ..record(EventKind::ContainmentApplied, at, id) }
}

fn asked(agent: &str, at: i64) -> SecurityEvent {
    SecurityEvent { agent_id: Some(agent.into()), ..record(EventKind::AuthorizeDecision, at, 1) }
}

fn take(tables: &mut SideTables, event: &SecurityEvent, quotas: Quotas) -> Changes {
    let mut changes = Changes::default();
    tables.registry.take(event, Some(i64::MAX), quotas, &mut changes);
    changes
}

fn tables_of(records: &[SecurityEvent]) -> SideTables {
    let mut tables = SideTables::default();
    records.iter().for_each(|event| drop(take(&mut tables, event, Quotas::default())));
    tables
}

#[test]
fn only_controls_own_proved_word_counts_and_from_its_time_on() {
    let said = registration("a", Some("o"), 100, 1);
    for word in [
        SecurityEvent { verified: false, ..said.clone() },
        SecurityEvent { lane: Some("t.edge.1".into()), ..said.clone() },
        SecurityEvent { lane: Some("control.edge.control".into()), ..said.clone() },
        SecurityEvent { lane: None, ..said.clone() },
        SecurityEvent { reason: Some("tool_registered".into()), ..said.clone() },
        SecurityEvent { attributes: None, ..said.clone() },
        SecurityEvent { attributes: Some("{}".into()), ..said.clone() },
    ] {
        assert_eq!(tables_of(std::slice::from_ref(&word)).registry_owner_team(&asked("a", 200)), None, "{word:?}");
    }
    let tables = tables_of(&[said, registration("a", Some("p"), 300, 2), registration("b", None, 100, 3)]);
    let owner = |agent: &str, at: i64| tables.registry_owner_team(&asked(agent, at));
    assert_eq!([99, 100, 299, 300].map(|at| owner("a", at)), [None, Some("o"), Some("o"), Some("p")]);
    assert_eq!((owner("b", 400), owner("c", 400)), (None, None));
    assert_eq!(tables.registry_agent_key(&asked("b", 400)), Some("key-b"));
    assert_eq!(tables.registry_environment(&asked("b", 400)), Some("production"));
    assert_eq!(tables.registry_risk_tier(&asked("b", 400)), Some("high"));
    assert_eq!(tables.registry_trust_ceiling(&asked("b", 400)), Some("unknown"));
    let elsewhere = SecurityEvent { tenant_id: TenantId::new("other").unwrap(), ..asked("a", 200) };
    assert_eq!(tables.registry_owner_team(&elsewhere), None, "of another tenant");
    let (last, later) = (300 + PAUSE, 301 + PAUSE);
    assert_eq!((owner("a", last), owner("a", later)), (Some("p"), None), "an agent in use is registered again");
}

#[test]
fn siblings_are_the_held_agents_of_the_same_owner() {
    let frozen = |agent: &str, at, id| containment(agent, "applied", &json!({"kind": "freeze"}), at, id);
    let until = json!({"kind": "quarantine", "until": Timestamp::from_micros(250).to_rfc3339()});
    let mut records: Vec<SecurityEvent> =
        ["a", "b", "c", "d"].iter().zip(1..).map(|(agent, id)| registration(agent, Some("o"), 10, id)).collect();
    records.extend([registration("other", Some("p"), 10, 5), registration("nobodys", None, 10, 6)]);
    records.extend([frozen("a", 100, 11), frozen("other", 100, 12), frozen("nobodys", 100, 13), frozen("unknown", 100, 14)]);
    records.push(containment("b", "applied", &until, 150, 15));
    records.push(containment("c", "revoked", &serde_json::Value::Null, 160, 16));
    records.push(containment("c", "released", &serde_json::Value::Null, 170, 17));
    records.push(containment("a", "cap_reached", &json!({"kind": "freeze"}), 175, 18));
    records.push(containment("a", "released", &json!({"kind": "quarantine"}), 180, 19));
    records.push(containment("a", "released", &json!({"kind": "freeze"}), 300, 20));
    let tables = tables_of(&records);
    let siblings = |agent: &str, at: i64| tables.registry_frozen_siblings(&asked(agent, at));
    let named = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>());
    assert_eq!(siblings("d", 99), named(&[]));
    assert_eq!(siblings("d", 100), named(&["a"]));
    assert_eq!(siblings("d", 249), named(&["c", "b", "a"]), "the newest first; a hold of another kind is not released");
    assert_eq!(siblings("d", 250), named(&["c", "a"]), "its time is over");
    assert_eq!(siblings("d", 300), named(&["c"]), "nobody is released who is revoked");
    assert_eq!(siblings("a", 249), named(&["c", "b"]), "an agent is none of its own");
    assert_eq!((siblings("other", 249), siblings("nobodys", 249), siblings("unknown", 249)), (named(&[]), None, None));
}

#[test]
fn who_is_told_of_are_those_of_whom_something_else_is_said() {
    let mut tables = tables_of(&[
        registration("a", Some("o"), 10, 1),
        registration("b", Some("o"), 10, 2),
        registration("c", Some("p"), 10, 3),
    ]);
    let told = |changes: &Changes| -> Vec<(String, i64)> {
        let all = changes.agents().flat_map(|(_, agents)| agents.iter());
        all.map(|(agent, from)| (agent.clone(), from.as_micros())).collect()
    };
    let again = take(&mut tables, &registration("a", Some("o"), 20, 4), Quotas::default());
    assert_eq!(told(&again), [("a".to_owned(), 20)], "nobody's sibling is held");
    let frozen = take(&mut tables, &containment("a", "applied", &json!({}), 30, 5), Quotas::default());
    assert_eq!(told(&frozen), [("a".to_owned(), 30), ("b".to_owned(), 30)]);
    let moved = take(&mut tables, &registration("a", Some("p"), 40, 6), Quotas::default());
    assert_eq!(told(&moved), ["a", "b", "c"].map(|agent| (agent.to_owned(), 40)));
    let mut newest = Changes::default();
    tables.registry.take(&registration("b", Some("p"), 50, 7), Some(49), Quotas::default(), &mut newest);
    assert!(told(&newest).is_empty(), "what is newer than all events says nothing of them");
}

#[test]
fn a_new_agent_is_refused_when_the_tenant_is_full_and_a_known_one_loses_what_is_old() {
    let quotas = Quotas { registry_bytes_per_tenant: 2_000, ..Quotas::default() };
    let mut tables = SideTables::default();
    let mut refused =
        |agent: &str, at: i64, id: u128| !take(&mut tables, &registration(agent, Some("o"), at, id), quotas).refused().is_empty();
    let mut id = 0;
    let of_loud: Vec<bool> = (0..10)
        .map(|at| {
            id += 1;
            refused("loud", at, id)
        })
        .collect();
    assert!(!of_loud[0] && of_loud[9], "an agent has a quarter: {of_loud:?}");
    let of_others: Vec<bool> = (0..20)
        .map(|n| {
            id += 1;
            refused(&format!("agent-{n:02}"), 20, id)
        })
        .collect();
    assert!(!of_others[0] && of_others[19], "{of_others:?}");
    let owner = |agent: &str, at: i64| tables.registry_owner_team(&asked(agent, at));
    assert_eq!((owner("loud", 0), owner("loud", 9)), (None, Some("o")), "the newest stands");
    assert_eq!((owner("agent-00", 20), owner("agent-19", 20)), (Some("o"), None), "of what was refused nothing is said");
    let tenant = TenantId::new("t").unwrap();
    assert!(tables.registry.bytes().all(|(_, bytes)| bytes <= 2_000));
    tables.forget(&tenant, Timestamp::from_micros(PAUSE + LINGERS + 100));
    assert_eq!(tables.registry.bytes().map(|(_, bytes)| bytes).sum::<usize>(), 0, "all of it is given back");
    assert!(!tables.registry.knows(&tenant));
}

#[test]
fn what_an_event_asks_of_holds_is_bounded_in_agents_and_in_records() {
    let quotas = Quotas::default();
    let tenant = TenantId::new("t").unwrap();
    let mut tables = SideTables::default();
    let (mut id, mut refused) = (0, 0);
    let mut say = |tables: &mut SideTables, event: &dyn Fn(u128) -> SecurityEvent| {
        id += 1;
        take(tables, &event(id), quotas).refused().len()
    };
    let agents: Vec<String> = (0..MOST_HELD + 10).map(|n| format!("agent-{n:04}")).collect();
    for (agent, at) in agents.iter().zip(100..) {
        refused += say(&mut tables, &|id| registration(agent, Some("o"), 10, id));
        refused += say(&mut tables, &|id| containment(agent, "applied", &json!({"kind": "freeze"}), at, id));
    }
    assert_eq!(refused, 10, "and it is told");
    assert_eq!(tables.registry.tenants[&tenant].held.len(), MOST_HELD);
    let (first, last) = (&agents[0], &agents[MOST_HELD + 9]);
    let siblings = tables.registry_frozen_siblings(&asked(first, 10_000)).unwrap();
    assert_eq!((siblings.len(), siblings.first()), (MOST_SIBLINGS, Some(last)), "the newest are known");
    let again = say(&mut tables, &|id| containment(last, "revoked", &serde_json::Value::Null, 20_000, id));
    assert_eq!(again, 0);
    for at in 20_001..20_001 + 2 * i64::try_from(MOST_CHANGES).unwrap() {
        let again = say(&mut tables, &|id| containment(last, "applied", &json!({"kind": "freeze"}), at, id));
        assert_eq!(again, 0, "what is held again and again is held all the same");
    }
    say(&mut tables, &|id| containment(last, "released", &json!({"kind": "freeze"}), 30_000, id));
    let known = &tables.registry.tenants[&tenant].agents[last.as_str()];
    assert_eq!((known.holds.len(), &known.holds[0].what), (MOST_CHANGES, &Change::Revoked));
    let siblings = tables.registry_frozen_siblings(&asked(first, 30_001)).unwrap();
    assert_eq!(siblings.first(), Some(last), "revoked is for good");
    let counted: usize = tables.registry.tenants[&tenant].agents.values().map(|agent| agent.bytes).sum();
    assert_eq!(tables.registry.bytes().map(|(_, bytes)| bytes).sum::<usize>(), counted);
    tables.forget_all(&tenant);
    assert!(!tables.knows(&tenant), "a tenant of whom nothing follows is forgotten");
}

/// A record of a random history of two agents; its time in quarters of a day.
fn any_record() -> impl Strategy<Value = (i64, u8, u8)> {
    (prop_oneof![4 => 0..24i64, 1 => 0..800i64], 0..2u8, 0..8u8)
}

fn record_of(place: usize, (quarter, agent, what): (i64, u8, u8)) -> SecurityEvent {
    let (agent, at, id) = (["a", "b"][usize::from(agent)], quarter * DAY / 4, place as u128 + 1);
    match what {
        0 => containment(agent, "applied", &json!({"kind": "freeze"}), at, id),
        1 => containment(agent, "applied", &json!({"kind": "quarantine"}), at, id),
        2 => containment(agent, "released", &json!({"kind": "freeze"}), at, id),
        3 => containment(agent, "released", &json!({}), at, id),
        4 => registration(agent, Some("p"), at, id),
        _ => registration(agent, Some("o"), at, id),
    }
}

proptest! {
    #[test]
    fn l_registry_no_order_of_arrival_matters_and_forgetting_changes_nothing_that_can_be_asked_for(
        steps in prop::collection::vec(any_record(), 1..40),
        settled in 0..900i64,
    ) {
        let records: Vec<SecurityEvent> = steps.iter().enumerate().map(|(place, step)| record_of(place, *step)).collect();
        let said = |tables: &SideTables, quarter: i64| {
            let of = |agent: &str| {
                let event = asked(agent, quarter * DAY / 4 + 1);
                (tables.registry_owner_team(&event).map(str::to_owned), tables.registry_frozen_siblings(&event))
            };
            (of("a"), of("b"))
        };
        let all: Vec<i64> = (0..900).collect();
        let tables = tables_of(&records);
        let before: Vec<_> = all.iter().map(|quarter| said(&tables, *quarter)).collect();
        let backwards: Vec<SecurityEvent> = records.iter().rev().cloned().collect();
        let other = tables_of(&backwards);
        let other: Vec<_> = all.iter().map(|quarter| said(&other, *quarter)).collect();
        prop_assert_eq!(&other, &before);

        // Those of before are there, it is settled, and the others come.
        let now = Timestamp::from_micros(settled * DAY / 4);
        let (early, late): (Vec<SecurityEvent>, Vec<SecurityEvent>) = records.into_iter().partition(|event| event.ts < now);
        let mut settled_then = tables_of(&early);
        settled_then.forget(&TenantId::new("t").unwrap(), now);
        late.iter().for_each(|event| drop(take(&mut settled_then, event, Quotas::default())));
        // A day back, and what is settled lingers an hour.
        for quarter in (settled - 4).max(0)..900 {
            prop_assert_eq!(&said(&settled_then, quarter), &before[usize::try_from(quarter).unwrap()], "at {}", quarter);
        }
        let counted: usize = settled_then.registry.tenants.values().flat_map(|own| own.agents.values()).map(|agent| agent.bytes).sum();
        prop_assert_eq!(settled_then.registry.bytes().map(|(_, bytes)| bytes).sum::<usize>(), counted);
    }
}
