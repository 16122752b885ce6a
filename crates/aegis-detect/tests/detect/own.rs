//! Rules that a tenant has of its own: shown that tenant's events alone, in place of the rule of their id there and nowhere else.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use aegis_detect::{Engine, EngineConfig, IMPAIRED_RULE, RuleCode, RuleSet, TickOutput};
use aegis_model::{Decision, EventKind, ManualClock, RuleMode, SecurityEvent, TenantId, Timestamp};

const START: i64 = 1_767_225_600_000_000;
const THREE: &str = "SELECT agent_id, event_id FROM events QUALIFY count(*) OVER (PARTITION BY agent_id ORDER BY ts \
    RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND CURRENT ROW) >= 3";
const TWO: &str = "SELECT agent_id, event_id FROM events QUALIFY count(*) OVER (PARTITION BY agent_id ORDER BY ts \
    RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND CURRENT ROW) >= 2";

fn text(id: &str, name: &str, mode: &str, query: &str) -> String {
    format!(
        "/* rule\nid: {id}\nname: {name}\nversion: 1\nseverity: low\nwindow: 60s\nkey: [agent_id]\nmode: {mode}\nrequires: any\n\
         owner: soc\ndescription: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-26, note: first}}\n*/\n{query}\n"
    )
}

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

/// The rule that every tenant has.
fn common() -> RuleSet {
    RuleSet::from_texts([("t/rule.sql".into(), text("T-1", "t", "active", THREE))]).unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(START + second * 1_000_000)
}

/// Makes it one of `a`'s own, from this second on, with these events in its window.
fn set(engine: &mut Engine, text: &str, second: i64, events: Vec<SecurityEvent>) {
    engine.set_own(common().common().own(&tenant("a"), text).unwrap(), at(second), events);
}

/// Where `a` has these rules of its own.
fn engine(own: &[String]) -> Engine {
    let mut engine = Engine::new(common(), EngineConfig::new(Arc::new(ManualClock::new(at(0)))));
    own.iter().for_each(|text| set(&mut engine, text, 0, Vec::new()));
    engine
}

/// Of each tenant an event a second.
fn log(seconds: std::ops::Range<i64>) -> Vec<SecurityEvent> {
    let event = |name: &str, second: i64| {
        let mut event = SecurityEvent::new(tenant(name), "edge-1", "edge", EventKind::AuthorizeDecision, at(second));
        event.event_id = aegis_model::EventId::from_u128(u128::from(name.as_bytes()[0]) * 1000 + second.unsigned_abs() as u128);
        event.lane = Some(format!("{name}.edge-1.1"));
        event.seq = Some(second + 1);
        event.agent_id = Some("agent".into());
        event.decision = Some(Decision::Deny);
        event.bus_ts = Some(at(second));
        event
    };
    seconds.flat_map(|second| ["a", "b"].map(|name| event(name, second))).collect()
}

/// Whose alerts, of which rule, in which mode, and the second of their last evidence.
fn told(output: &TickOutput) -> BTreeSet<(String, String, String, i64)> {
    let of_rules = output.alerts.iter().filter(|alert| alert.rule_id != IMPAIRED_RULE);
    of_rules
        .map(|alert| {
            let second = (alert.last_ts.as_micros() - START) / 1_000_000;
            (alert.tenant_id.to_string(), alert.rule_name.clone(), alert.mode.to_string(), second)
        })
        .collect()
}

fn row(tenant: &str, name: &str, mode: &str, second: i64) -> (String, String, String, i64) {
    (tenant.to_owned(), name.to_owned(), mode.to_owned(), second)
}

#[test]
fn a_tenant_s_own_rule_sees_that_tenant_alone() {
    let told = told(&engine(&[text("T-2", "own", "log_only", TWO)]).tick(log(0..3)));
    let common = [row("a", "t", "active", 2), row("b", "t", "active", 2)];
    let own = [row("a", "own", "log_only", 1), row("a", "own", "log_only", 2)];
    assert_eq!(told, common.into_iter().chain(own).collect::<BTreeSet<_>>());
}

#[test]
fn under_the_id_of_another_it_stands_in_its_place_there_and_nowhere_else() {
    let of_b = row("b", "t", "active", 2);
    let lower = engine(&[text("T-1", "t", "log_only", TWO)]).tick(log(0..3));
    assert_eq!(told(&lower), BTreeSet::from([row("a", "t", "log_only", 1), row("a", "t", "log_only", 2), of_b.clone()]));
    let off = engine(&[text("T-1", "t", "disabled", TWO)]).tick(log(0..3));
    assert_eq!(told(&off), BTreeSet::from([of_b]), "what is disabled for one tenant runs on for the other");
    let twice = [text("T-1", "t", "disabled", TWO), text("T-1", "t", "active", TWO)];
    assert_eq!(told(&engine(&twice).tick(log(0..2))), BTreeSet::from([row("a", "t", "active", 1)]), "the later one stands");
}

/// Two alerts of the rule that every tenant has, within a minute.
const TOLD_TWICE: &str = "SELECT agent_id, event_id FROM alerts WHERE rule_name = 't' QUALIFY count(*) OVER (PARTITION BY agent_id ORDER BY ts \
    RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND CURRENT ROW) >= 2";

#[test]
fn a_tenant_s_own_rule_reads_what_every_tenant_s_rule_told_of_it() {
    let own = [text("T-5", "on-t", "log_only", TOLD_TWICE)];
    let of_own = |output: &TickOutput| told(output).into_iter().filter(|row| row.1 == "on-t").collect::<Vec<_>>();
    let mut engine = engine(&own);
    let first = engine.tick(log(0..5));
    assert!(of_own(&first).is_empty(), "what may still be taken back is not read");
    let mut rest = engine.tick(log(300..301));
    rest.append(engine.finish());
    assert_eq!(
        of_own(&rest),
        [row("a", "on-t", "log_only", 3), row("a", "on-t", "log_only", 4)],
        "and nothing of the other tenant"
    );

    // One that comes later has no rows of before: it begins with what is final from then on.
    let mut later = self::engine(&[]);
    later.tick(log(0..5));
    later.tick(log(300..303));
    set(&mut later, &own[0], 310, Vec::new());
    let mut output = later.tick(log(310..313));
    output.append(later.finish());
    assert_eq!(of_own(&output).first(), Some(&row("a", "on-t", "log_only", 310)), "of those of before its time it tells nothing");
    // And one that is taken away reads nothing more.
    let mut gone = self::engine(&own);
    gone.tick(log(0..5));
    set(&mut gone, &text("T-5", "on-t", "disabled", TOLD_TWICE), 5, Vec::new());
    assert!(of_own(&gone.finish()).is_empty());
}

#[test]
fn a_restart_gives_a_tenant_s_own_rule_its_alerts_again() {
    let own = [text("T-5", "on-t", "log_only", TOLD_TWICE)];
    let mut before = engine(&own);
    before.tick(log(0..20));
    before.tick(log(135..136));
    let checkpoint = serde_json::to_string(&before.checkpoint()).unwrap();
    let mut after = engine(&own);
    after.restore(serde_json::from_str(&checkpoint).unwrap(), log(0..20).into_iter().chain(log(135..136)).collect(), true);
    let rest = |engine: &mut Engine| {
        let mut output = engine.tick(log(136..140));
        output.append(engine.finish());
        told(&output)
    };
    let (expected, found) = (rest(&mut before), rest(&mut after));
    assert!(expected.iter().any(|row| row.1 == "on-t" && row.3 < 20), "{expected:?}");
    assert_eq!(found, expected);
}

#[test]
fn a_restart_gives_each_its_own_state_again() {
    let own = [text("T-1", "t", "active", TWO)];
    let mut before = engine(&own);
    before.tick(log(0..2));
    let checkpoint = serde_json::to_string(&before.checkpoint()).unwrap();
    let mut after = engine(&own);
    after.restore(serde_json::from_str(&checkpoint).unwrap(), log(0..2), true);
    assert_eq!(told(&after.tick(log(2..3))), told(&before.tick(log(2..3))));
}

#[test]
fn a_rule_that_comes_knows_its_window_and_says_nothing_of_what_lies_before() {
    let mut engine = engine(&[]);
    engine.tick(log(0..3));
    set(&mut engine, &text("T-1", "t", "active", THREE.replace(">= 3", ">= 4").as_str()), 3, log(0..3));
    let mut restarted = self::engine(&[]);
    set(&mut restarted, &text("T-1", "t", "active", THREE.replace(">= 3", ">= 4").as_str()), 3, Vec::new());
    restarted.restore(engine.checkpoint(), log(0..3), true);
    for mut engine in [engine, restarted] {
        // The fourth of the window, three of which were there before the rule.
        let mut output = engine.tick(log(3..4));
        output.append(engine.finish());
        assert!(output.retractions.is_empty(), "what was told before stands: {:?}", output.retractions);
        assert_eq!(told(&output), BTreeSet::from([row("a", "t", "active", 3), row("b", "t", "active", 3)]));
    }
}

#[test]
fn a_change_leaves_all_other_rules_their_state_and_the_same_text_its_own() {
    let (first, other) = (text("T-2", "own", "active", THREE), text("T-3", "other", "active", THREE));
    let mut engine = engine(&[first.clone(), other.clone()]);
    engine.tick(log(0..2));
    // The very same, without its events and later: it goes on as before.
    set(&mut engine, &first, 60, Vec::new());
    set(&mut engine, &text("T-3", "other", "disabled", THREE), 2, Vec::new());
    let third = engine.tick(log(2..3));
    assert_eq!(
        told(&third),
        BTreeSet::from([row("a", "own", "active", 2), row("a", "t", "active", 2), row("b", "t", "active", 2)])
    );
    set(&mut engine, &other, 10, log(0..3));
    let rows = told(&engine.tick(log(3..12)));
    let of_other: Vec<_> = rows.iter().filter(|row| row.1 == "other").map(|row| row.3).collect();
    assert_eq!(of_other, [10, 11], "nothing of before it acts");
}

#[test]
fn a_name_or_id_that_every_tenant_s_rule_has_is_refused() {
    let common = common().common();
    for (id, name) in [("T-3", "t"), (IMPAIRED_RULE, "other"), ("T-3", aegis_detect::IMPAIRED_NAME)] {
        let error = common.own(&tenant("a"), &text(id, name, "log_only", TWO)).unwrap_err();
        assert_eq!(error.code, RuleCode::RuleDuplicate, "{id} {name}");
    }
    assert!(common.lint_own(&text("T-1", "t", "log_only", TWO), Path::new("r.sql")).is_ok());
    assert_eq!((common.standing("T-1"), common.standing("T-2")), (Some((1, RuleMode::Active)), None));
}
