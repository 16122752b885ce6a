//! L-REGISTRY for actions alone: what is said is a function of the set of records.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use aegis_model::TenantId;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::DAY;
use super::*;

/// Risk and approval; the rest follows from them, so that all of it is seen to come from one record.
type Level = (&'static str, bool);

const LOW: Level = ("low", false);
const LOW_ASKED: Level = ("low", true);
const HIGH: Level = ("high", false);
const CRITICAL: Level = ("critical", true);
const LEVELS: [Level; 4] = [LOW, LOW_ASKED, HIGH, CRITICAL];

fn facts(action: &str, (risk, approval): Level) -> Value {
    json!({
        "action": action, "risk": risk, "mutates_state": approval, "data_access": if approval { "sensitive" } else { "none" },
        "destination": if risk == "low" { "internal" } else { "external" }, "approval_required": approval,
        "default_decision": if risk == "critical" { "deny" } else { "policy" },
    })
}

fn record(attributes: &Value, at: i64, id: u128) -> SecurityEvent {
    let ts = Timestamp::from_micros(at);
    let mut event = SecurityEvent::new(TenantId::new("t").unwrap(), "control", "control", EventKind::ConfigChanged, ts);
    event.event_id = uuid::Uuid::from_u128(id);
    (event.lane, event.seq, event.verified) = (Some("t.control.1".into()), i64::try_from(id).ok(), true);
    (event.reason, event.attributes) = (Some("tool_registered".into()), Some(attributes.to_string()));
    event
}

fn registration(action: &str, level: Level, was: Option<Level>, at: i64, id: u128) -> SecurityEvent {
    let mut said = facts(action, level);
    if let Some(was) = was {
        said["was"] = facts(action, was);
    }
    record(&json!({"tool": "crm", "actions": [said]}), at, id)
}

fn removal(action: &str, was: Level, at: i64, id: u128) -> SecurityEvent {
    record(&json!({"tool": "crm", "actions": [], "removed": [facts(action, was)]}), at, id)
}

fn asked(action: &str, at: i64) -> SecurityEvent {
    let mut event = record(&Value::Null, at, 1);
    (event.kind, event.tool, event.action) = (EventKind::AuthorizeDecision, Some("crm".into()), Some(action.into()));
    event
}

fn take(tables: &mut SideTables, event: &SecurityEvent, quotas: Quotas) -> Changes {
    let mut changes = Changes::default();
    tables.catalog.take(event, Some(i64::MAX), quotas, &mut changes);
    changes
}

fn tables_of(records: &[SecurityEvent]) -> SideTables {
    let mut tables = SideTables::default();
    records.iter().for_each(|event| drop(take(&mut tables, event, Quotas::default())));
    tables
}

/// Risk, approval, since when, and since when lower than what, and by which record.
type Told = (Option<String>, Option<bool>, Option<i64>, Option<(i64, String, u128)>);

fn said(tables: &SideTables, action: &str, at: i64) -> Told {
    let event = asked(action, at);
    let lowered = tables.registry_action_lowered(&event).map(|lowered| {
        let from = tables.registry_action_lowered_from(&event).unwrap().to_owned();
        (lowered.as_micros(), from, tables.registry_action_lowered_event(&event).unwrap().as_u128())
    });
    let since = tables.registry_action_since(&event).map(Timestamp::as_micros);
    (tables.registry_action_risk(&event).map(str::to_owned), tables.registry_action_approval_required(&event), since, lowered)
}

fn stands((risk, approval): Level, since: i64, lowered: Option<(i64, &str, u128)>) -> Told {
    (Some(risk.to_owned()), Some(approval), Some(since), lowered.map(|(at, from, by)| (at, from.to_owned(), by)))
}

const NOTHING: Told = (None, None, None, None);

#[test]
fn only_controls_own_proved_word_counts_and_from_its_time_on() {
    let word = registration("refund", HIGH, None, 100, 1);
    for other in [
        SecurityEvent { verified: false, ..word.clone() },
        SecurityEvent { lane: Some("t.edge.1".into()), ..word.clone() },
        SecurityEvent { lane: None, ..word.clone() },
        SecurityEvent { reason: Some("agent_registered".into()), ..word.clone() },
        SecurityEvent { kind: EventKind::ToolOutcome, ..word.clone() },
        SecurityEvent { attributes: None, ..word.clone() },
        SecurityEvent { attributes: Some("{\"tool\": \"crm\", \"actions\": [{\"action\": \"refund\"}]}".into()), ..word.clone() },
    ] {
        assert_eq!(said(&tables_of(std::slice::from_ref(&other)), "refund", 200), NOTHING, "{other:?}");
    }
    let more = SecurityEvent { reason: Some("tool_registered_more".into()), ..registration("export", CRITICAL, None, 100, 2) };
    let tables = tables_of(&[word, more]);
    assert_eq!((said(&tables, "refund", 99), said(&tables, "refund", 100)), (NOTHING, stands(HIGH, 100, None)));
    assert_eq!(said(&tables, "export", 100), stands(CRITICAL, 100, None));
    let event = asked("export", 100);
    assert_eq!(tables.registry_action_data_access(&event), Some("sensitive"));
    assert_eq!(tables.registry_action_destination(&event), Some("external"));
    assert_eq!(tables.registry_action_default_decision(&event), Some("deny"));
    assert_eq!(tables.registry_action_mutates_state(&event), Some(true));
    assert_eq!(said(&tables, "other", 100), NOTHING);
    for other in [
        SecurityEvent { tenant_id: TenantId::new("other").unwrap(), ..event.clone() },
        SecurityEvent { tool: Some("mail".into()), ..event.clone() },
        SecurityEvent { action: None, ..event },
    ] {
        assert_eq!(tables.registry_action_risk(&other), None, "{other:?}");
    }
    let (last, later) = (said(&tables, "refund", 100 + PAUSE), said(&tables, "refund", 101 + PAUSE));
    assert_eq!((last, later), (stands(HIGH, 100, None), NOTHING), "of longer ago nothing is known");
}

#[test]
fn lower_is_a_lower_risk_or_no_approval_any_more_until_it_is_what_it_was() {
    let tables = tables_of(&[
        registration("refund", CRITICAL, None, 100, 1),
        registration("refund", HIGH, Some(CRITICAL), 200, 2),
        registration("refund", HIGH, None, 250, 3),
        registration("refund", LOW, Some(HIGH), 300, 4),
        registration("refund", HIGH, Some(LOW), 400, 5),
        registration("refund", CRITICAL, Some(HIGH), 500, 6),
        registration("refund", LOW_ASKED, Some(CRITICAL), 600, 7),
        registration("refund", LOW, Some(LOW_ASKED), 700, 8),
    ]);
    let told = [199, 200, 260, 300, 400, 500, 600, 700].map(|at| said(&tables, "refund", at));
    let expected = [
        stands(CRITICAL, 100, None),
        stands(HIGH, 200, Some((200, "critical", 2))),
        stands(HIGH, 200, Some((200, "critical", 2))),
        stands(LOW, 300, Some((300, "high", 4))),
        // It is no lower than at 300, and lower than at first.
        stands(HIGH, 400, Some((200, "critical", 2))),
        stands(CRITICAL, 500, None),
        stands(LOW_ASKED, 600, Some((600, "critical", 7))),
        stands(LOW, 700, Some((700, "low", 8))),
    ];
    assert_eq!(told, expected);
}

#[test]
fn an_action_that_is_taken_away_and_comes_back_lower_is_lowered() {
    let tables = tables_of(&[
        registration("refund", CRITICAL, None, 100, 1),
        removal("refund", CRITICAL, 200, 2),
        registration("refund", LOW, None, 300, 3),
        registration("export", LOW, None, 100, 4),
        removal("export", LOW, 200, 5),
        registration("export", HIGH, None, 300, 6),
    ]);
    assert_eq!(said(&tables, "refund", 250), NOTHING);
    assert_eq!(said(&tables, "refund", 300), stands(LOW, 300, Some((300, "critical", 3))));
    assert_eq!(said(&tables, "export", 300), stands(HIGH, 300, None));
}

#[test]
fn what_is_there_already_is_looked_at_again_where_a_record_comes_behind_it() {
    let tenant = TenantId::new("t").unwrap();
    let told = |newest: Option<i64>| {
        let (mut tables, mut changes) = (SideTables::default(), Changes::default());
        tables.catalog.take(&registration("refund", LOW, None, 50, 1), newest, Quotas::default(), &mut changes);
        changes.all().map(|(tenant, from)| (tenant.clone(), from.as_micros())).collect::<Vec<_>>()
    };
    assert_eq!([None, Some(49), Some(50), Some(90)].map(told), [vec![], vec![], vec![(tenant.clone(), 50)], vec![(tenant, 50)]]);
}

#[test]
fn a_new_action_is_refused_when_the_tenant_is_full_and_a_known_one_loses_what_is_old() {
    let quotas = Quotas { registry_bytes_per_tenant: 1_900, ..Quotas::default() };
    let tenant = TenantId::new("t").unwrap();
    let mut tables = SideTables::default();
    let refused: Vec<bool> = (0..20)
        .map(|n| !take(&mut tables, &registration(&format!("action-{n:02}"), HIGH, None, 10, n), quotas).refused().is_empty())
        .collect();
    assert!(!refused[0] && refused[19], "{refused:?}");
    assert_eq!((said(&tables, "action-00", 10), said(&tables, "action-19", 10)), (stands(HIGH, 10, None), NOTHING));
    let given_up = take(&mut tables, &registration("action-00", LOW, Some(HIGH), 20, 100), quotas);
    assert_eq!(given_up.refused().len(), 1, "and it is told");
    assert_eq!(said(&tables, "action-00", 20), stands(LOW, 20, Some((20, "high", 100))), "what is said last stands");
    assert!(tables.catalog.bytes().all(|(_, bytes)| bytes <= 1_900));
    // A tenant that says the same action over and over fills nothing.
    for (at, id) in (21..200).zip(200..) {
        take(&mut tables, &registration("action-00", HIGH, None, at, id), Quotas::default());
    }
    assert_eq!(tables.catalog.tenants[&tenant].tools["crm"]["action-00"].0.len(), MOST_RECORDS);
    tables.forget(&tenant, Timestamp::from_micros(PAUSE + LINGERS + 300));
    assert_eq!(tables.catalog.bytes().map(|(_, bytes)| bytes).sum::<usize>(), 0, "all of it is given back");
    assert!(!tables.knows(&tenant));
}

/// The attack (T-A6): who lowered an action registers it again and again, as it is now or a little different, until what it was is driven out.
#[test]
fn that_an_action_was_lowered_is_not_driven_out_by_saying_it_over_and_over() {
    let lowered =
        || tables_of(&[registration("refund", CRITICAL, None, 100, 1), registration("refund", LOW, Some(CRITICAL), 200, 2)]);
    let many = 3 * MOST_RECORDS as i64;
    let is_lower = |tables: &SideTables| said(tables, "refund", 1000).3.map(|(_, from, _)| from);
    let mut same = lowered();
    for n in 0..many {
        take(&mut same, &registration("refund", LOW, None, 201 + n, 1000 + u128::from(n.unsigned_abs())), Quotas::default());
    }
    assert_eq!(is_lower(&same).as_deref(), Some("critical"));
    let mut toggled = lowered();
    for n in 0..many {
        let [was, is] = if n % 2 == 0 { [LOW, LOW_ASKED] } else { [LOW_ASKED, LOW] };
        take(
            &mut toggled,
            &registration("refund", is, Some(was), 201 + n, 1000 + u128::from(n.unsigned_abs())),
            Quotas::default(),
        );
    }
    take(&mut toggled, &registration("refund", LOW_ASKED, Some(LOW), 900, 9000), Quotas::default());
    assert_eq!(is_lower(&toggled).as_deref(), Some("critical"));
    let mut away = lowered();
    for n in 0..many {
        let id = 1000 + u128::from(n.unsigned_abs());
        let again = if n % 2 == 0 { removal("refund", LOW, 201 + n, id) } else { registration("refund", LOW, None, 201 + n, id) };
        take(&mut away, &again, Quotas::default());
    }
    assert_eq!(is_lower(&away).as_deref(), Some("critical"));
    // One that is put back is no finding.
    let mut raised = lowered();
    for n in 0..many {
        take(
            &mut raised,
            &registration("refund", CRITICAL, Some(LOW), 201 + n, 1000 + u128::from(n.unsigned_abs())),
            Quotas::default(),
        );
    }
    assert_eq!(is_lower(&raised), None);
}

/// A record of a random history of two actions; its time in quarters of a day.
fn any_record() -> impl Strategy<Value = (i64, u8, u8, u8)> {
    (prop_oneof![4 => 0..24i64, 1 => 0..800i64], 0..2u8, 0..6u8, 0..4u8)
}

fn record_of(place: usize, (quarter, action, what, was): (i64, u8, u8, u8)) -> SecurityEvent {
    let (action, at, id) = (["a", "b"][usize::from(action)], quarter * DAY / 4, place as u128 + 1);
    let was = LEVELS[usize::from(was)];
    match what {
        0 => removal(action, was, at, id),
        1 => registration(action, LOW, Some(was), at, id),
        2 => registration(action, HIGH, Some(was), at, id),
        3 => registration(action, was, None, at, id),
        _ => registration(action, HIGH, None, at, id),
    }
}

proptest! {
    #[test]
    fn l_registry_no_order_of_arrival_matters_and_forgetting_changes_nothing_that_can_be_asked_for(
        steps in prop::collection::vec(any_record(), 1..40),
        settled in 0..900i64,
    ) {
        let records: Vec<SecurityEvent> = steps.iter().enumerate().map(|(place, step)| record_of(place, *step)).collect();
        let all = |tables: &SideTables| -> Vec<(Told, Told)> {
            (0..900).map(|quarter| quarter * DAY / 4 + 1).map(|at| (said(tables, "a", at), said(tables, "b", at))).collect()
        };
        let before = all(&tables_of(&records));
        let backwards: Vec<SecurityEvent> = records.iter().rev().cloned().collect();
        prop_assert_eq!(&all(&tables_of(&backwards)), &before);

        // Those of before are there, it is settled, and the others come.
        let now = Timestamp::from_micros(settled * DAY / 4);
        let (early, late): (Vec<SecurityEvent>, Vec<SecurityEvent>) = records.into_iter().partition(|event| event.ts < now);
        let mut settled_then = tables_of(&early);
        settled_then.forget(&TenantId::new("t").unwrap(), now);
        late.iter().for_each(|event| drop(take(&mut settled_then, event, Quotas::default())));
        let after = all(&settled_then);
        // A day back, and what is settled lingers an hour.
        let from = usize::try_from((settled - 4).max(0)).unwrap();
        prop_assert_eq!(&after[from..], &before[from..]);
        let counted = settled_then.catalog.tenants.values().flat_map(|own| &own.tools).flat_map(|(tool, of_tool)| {
            of_tool.iter().map(move |(action, known)| bytes_of_action(tool, action) + ENTRY * known.0.len())
        });
        prop_assert_eq!(settled_then.catalog.bytes().map(|(_, bytes)| bytes).sum::<usize>(), counted.sum::<usize>());
    }
}
