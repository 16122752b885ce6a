//! Detection that is impaired says so: one alert of the engine's own for each tenant, cause and hour, and none where nothing is wrong.

use std::collections::BTreeSet;
use std::sync::Arc;

use aegis_detect::{Engine, EngineConfig, IMPAIRED_NAME, IMPAIRED_RULE, Quotas, RuleCode, RuleSet};
use aegis_model::{Alert, Decision, EventId, EventKind, ManualClock, RuleMode, SecurityEvent, Severity, TenantId, Timestamp};
use serde_json::{Value, json};

/// The beginning of an hour.
const START: i64 = 1_767_225_600_000_000;
const HOUR_S: i64 = 3600;

const OFTEN: &str = "SELECT agent_id, event_id FROM events QUALIFY count(*) OVER (PARTITION BY agent_id ORDER BY ts \
    RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND CURRENT ROW) > 100";
/// Each row can be taken in two ways, and the end depends on which.
const COSTLY: &str = "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES array_agg(event_id) AS event_ids \
    PATTERN ((a | b)+ c) DEFINE c AS c.tool = CAST(count(a.*) AS text))";
/// Fails on a resource that is no number: where a row is made, and where rows are chosen.
const FAILS_ON_A_ROW: &str = "SELECT agent_id, event_id, CAST(resource AS BIGINT) AS n FROM events";
const FAILS_ON_ALL: &str = "SELECT agent_id, event_id FROM events WHERE CAST(resource AS BIGINT) > 100";

fn text(id: &str, name: &str, query: &str) -> String {
    format!(
        "/* rule\nid: {id}\nname: {name}\nversion: 1\nseverity: low\nwindow: 60s\nkey: [agent_id]\nmode: active\nrequires: any\n\
         owner: soc\ndescription: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-26, note: first}}\n*/\n{query}\n"
    )
}

fn engine(query: &str, quotas: Quotas) -> Engine {
    engine_of(text("T-1", "t", query), quotas)
}

fn engine_of(text: String, quotas: Quotas) -> Engine {
    let rules = RuleSet::from_texts([("t/rule.sql".into(), text)]).unwrap();
    let mut config = EngineConfig::new(Arc::new(ManualClock::new(Timestamp::from_micros(START))));
    config.lateness_s = 6;
    config.quotas = quotas;
    Engine::new(rules, config)
}

fn event(tenant: &str, agent: &str, second: i64) -> SecurityEvent {
    let ts = Timestamp::from_micros(START + second * 1_000_000);
    let mut event = SecurityEvent::new(TenantId::new(tenant).unwrap(), "edge-1", "edge", EventKind::AuthorizeDecision, ts);
    event.lane = Some(format!("{tenant}.edge-1.1"));
    event.seq = Some(second);
    event.verified = true;
    event.agent_id = Some(agent.into());
    event.tool = Some("github".into());
    event.resource = Some("7".into());
    event.decision = Some(Decision::Deny);
    event.receipt_hash = Some(format!("{second:064x}"));
    event.bus_ts = Some(ts);
    event
}

/// What the engine says of itself: tenant, key, evidence.
fn said(alerts: Vec<Alert>) -> Vec<(String, Value, Vec<EventId>)> {
    let own = alerts.into_iter().filter(|alert| alert.rule_id == IMPAIRED_RULE);
    own.map(|alert| (alert.tenant_id.to_string(), Value::Object(alert.key), alert.event_ids)).collect()
}

fn is_silent(alerts: Vec<Alert>) -> bool {
    said(alerts).is_empty()
}

fn of_rule(tenant: &str, what: &str, evidence: EventId) -> (String, Value, Vec<EventId>) {
    (tenant.to_owned(), json!({"rule": "T-1", "what": what}), vec![evidence])
}

fn keys(keys_per_tenant: usize) -> Quotas {
    Quotas { keys_per_tenant, ..Quotas::default() }
}

#[test]
fn a_full_quota_is_told_once_an_hour_to_the_tenant_that_filled_it() {
    let mut engine = engine(OFTEN, keys(2));
    let log: Vec<SecurityEvent> = (0..5).map(|n| event("a", &format!("agent-{n}"), n)).collect();
    let mut all = log.clone();
    all.push(event("b", "agent", 3));
    let alerts = engine.tick(all).alerts;
    let alert = alerts[0].clone();
    assert_eq!(said(alerts), [of_rule("a", "quota_full", log[2].event_id)]);
    assert_eq!((alert.rule_name.as_str(), alert.severity, alert.mode), (IMPAIRED_NAME, Severity::High, RuleMode::Active));
    assert!(alert.respond.is_empty(), "it contains nobody");
    assert_eq!(alert.receipt_hashes, [log[2].receipt_hash.clone().unwrap()]);
    let id = aegis_detect::alert_id(&alert.tenant_id, IMPAIRED_RULE, &alert.key, log[2].event_id).unwrap();
    assert_eq!(alert.alert_id, id);
    assert!(is_silent(engine.tick(vec![event("a", "agent-6", 50)]).alerts));
    // In the next hour it is told again. Nothing has expired yet: that comes after the tick's events were looked at.
    let next = event("a", "agent-7", HOUR_S);
    assert_eq!(said(engine.tick(vec![next.clone()]).alerts), [of_rule("a", "quota_full", next.event_id)]);
    // Now there is room.
    assert!(is_silent(engine.tick(vec![event("a", "agent-8", 3 * HOUR_S)]).alerts));
    assert!(is_silent(engine.finish().alerts));
}

#[test]
fn an_agent_that_varies_what_a_rule_keys_on_blinds_it_for_itself_alone() {
    let query = "SELECT tool, action, event_id FROM events QUALIFY count(*) OVER (PARTITION BY tool, action ORDER BY ts \
        RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND CURRENT ROW) >= 3";
    let by_action = text("T-1", "t", query).replace("key: [agent_id]", "key: [tool, action]");
    let mut engine = engine_of(by_action, keys(8));
    let call =
        |agent: &str, action: &str, second: i64| SecurityEvent { action: Some(action.to_owned()), ..event("a", agent, second) };
    let mut log: Vec<SecurityEvent> = (0..20).map(|n| call("frozen", &format!("action-{n}"), n)).collect();
    log.extend((20..23).map(|n| call("other", "merge", n)));
    let evidence = log[2].event_id;
    let alerts = engine.tick(log).alerts;
    let found: Vec<&Value> = alerts.iter().filter(|alert| alert.rule_id == "T-1").map(|alert| &alert.key["action"]).collect();
    assert_eq!(found, ["merge"]);
    assert_eq!(said(alerts), [of_rule("a", "quota_full", evidence)]);
    assert_eq!(engine.stats()[0].refused, 18);
}

#[test]
fn a_match_of_a_key_for_which_there_is_no_room_is_told() {
    let mut engine = engine("SELECT agent_id, event_id FROM events", keys(1));
    let (first, second) = (event("a", "one", 1), event("a", "two", 2));
    let evidence = second.event_id;
    let alerts = engine.tick(vec![first, second]).alerts;
    assert_eq!(alerts.iter().filter(|alert| alert.rule_id == "T-1").count(), 1);
    assert_eq!(said(alerts), [of_rule("a", "quota_full", evidence)]);
}

#[test]
fn a_key_that_gives_up_its_events_is_told() {
    let quotas = Quotas { events_per_key: 3, ..Quotas::default() };
    let mut engine = engine(OFTEN, quotas);
    let log: Vec<SecurityEvent> = (0..6).map(|n| event("a", "agent", n)).collect();
    let mut all = log.clone();
    all.extend((0..3).map(|n| event("b", "agent", n)));
    assert_eq!(said(engine.tick(all).alerts), [of_rule("a", "events_given_up", log[3].event_id)]);
}

#[test]
fn instants_that_cost_too_much_are_told() {
    let mut engine = engine(COSTLY, Quotas::default());
    let at_once = |n: i64| SecurityEvent { seq: Some(n), ..event("a", "agent", 1) };
    let mut log: Vec<SecurityEvent> = (0..40).map(at_once).collect();
    log.push(event("b", "agent", 1));
    let newest = log[39].event_id;
    assert_eq!(said(engine.tick(log).alerts), [of_rule("a", "instants_given_up", newest)]);
}

#[test]
fn a_rule_that_is_set_aside_for_a_tenant_is_told_to_it_every_hour() {
    let mut engine = engine(FAILS_ON_A_ROW, Quotas::default());
    let mut bad = event("a", "agent", 1);
    bad.resource = Some("none".into());
    let output = engine.tick(vec![bad.clone(), event("b", "agent", 1)]);
    assert_eq!(output.alerts.iter().filter(|alert| alert.rule_id == "T-1").count(), 1, "the other tenant's go on");
    assert_eq!(said(output.alerts), [of_rule("a", "set_aside", bad.event_id)]);
    assert!(is_silent(engine.tick(vec![event("a", "agent", 2), event("b", "agent", 2)]).alerts));
    let next = event("a", "agent", HOUR_S);
    let found = engine.tick(vec![next.clone(), event("b", "agent", HOUR_S)]).alerts;
    assert_eq!(said(found), [of_rule("a", "set_aside", next.event_id)]);
}

#[test]
fn a_quarantined_rule_is_told_to_each_tenant_of_whom_something_comes() {
    let mut engine = engine(FAILS_ON_ALL, Quotas::default());
    let bad = |n: i64| {
        let mut bad = event(&format!("t{n:02}"), "agent", 1);
        bad.resource = Some("none".into());
        bad
    };
    let output = engine.tick((0..16).map(bad).collect());
    assert_eq!(output.quarantined.len(), 16);
    assert!(said(output.alerts).iter().all(|(_, key, _)| key["what"] == "set_aside"));
    assert_eq!(engine.tick(vec![event("b", "agent", 1)]).alerts.len(), 0, "one that does not match");
    assert_eq!(engine.tick(vec![bad(16)]).quarantined.len(), 1, "it fails for too many");
    let other = event("b", "agent", 2);
    let evidence = other.event_id;
    assert_eq!(said(engine.tick(vec![other]).alerts), [of_rule("b", "quarantined", evidence)]);
}

/// An event of this lane that comes when the bus has this time.
fn of_lane(tenant: &str, epoch: u32, second: i64, bus_second: i64) -> SecurityEvent {
    let mut event = event(tenant, "agent", second);
    event.lane = Some(format!("{tenant}.edge-1.{epoch}"));
    event.bus_ts = Some(Timestamp::from_micros(START + bus_second * 1_000_000));
    event
}

#[test]
fn proved_events_that_come_late_are_told_of_once_for_each_lane() {
    let mut engine = engine(OFTEN, Quotas::default());
    let on_time = |tenant: &str| of_lane(tenant, 1, 200, 200);
    let output = engine.tick(vec![on_time("a"), on_time("b")]);
    assert_eq!((output.late.len(), said(output.alerts).len()), (0, 0));
    let late: Vec<SecurityEvent> =
        [(2, 150), (2, 151), (3, 152), (2, 140)].map(|(epoch, second)| of_lane("a", epoch, second, 201)).into();
    let unproved = SecurityEvent { verified: false, ..of_lane("a", 4, 150, 201) };
    let observed = SecurityEvent { verified: false, lane: None, ..of_lane("a", 5, 150, 201) };
    let mut all = late.clone();
    all.extend([unproved, observed, of_lane("b", 1, 201, 201)]);
    let output = engine.tick(all);
    assert_eq!((output.late.len(), output.late_proved.len()), (6, 4));
    let of_lane = |lane: &str, evidence: EventId| ("a".to_owned(), json!({"lane": lane, "what": "late"}), vec![evidence]);
    let expected = [of_lane("a.edge-1.2", late[0].event_id), of_lane("a.edge-1.3", late[2].event_id)];
    assert_eq!(said(output.alerts), expected);
}

#[test]
fn where_nothing_is_impaired_nothing_is_said() {
    for query in [OFTEN, COSTLY, FAILS_ON_A_ROW, FAILS_ON_ALL] {
        let mut engine = engine(query, Quotas::default());
        let log = (0..6).flat_map(|n| [event("a", "agent", n * 1000), event("b", "agent", n * 1000)]).collect();
        let mut alerts = engine.tick(log).alerts;
        alerts.extend(engine.finish().alerts);
        assert!(is_silent(alerts), "{query}");
    }
}

#[test]
fn events_of_a_time_that_is_not_yet_swallow_no_match() {
    let query = "SELECT agent_id, event_id FROM events";
    let suppressed = text("T-1", "t", query).replace("mode: active", "suppress: 1h\nmode: active");
    let stored = |second: i64, bus_second: i64| of_lane("a", 1, second, bus_second);
    let far = 74 * 365 * 24 * HOUR_S;
    let forged = |n: i64| SecurityEvent { verified: false, ..stored(far + n, 0) };
    let observed = |n: i64| SecurityEvent { lane: None, kind: EventKind::ExternalGithubWebhook, ..forged(n) };
    let logs: [(Vec<SecurityEvent>, u64); 2] = [((0..2001).map(forged).collect(), 0), ((0..2001).map(observed).collect(), 2001)];
    for (log, ahead) in logs {
        for rule in [suppressed.clone(), text("T-1", "t", OFTEN)] {
            let mut engine = engine_of(rule, Quotas::default());
            let output = engine.tick(log.clone());
            assert_eq!((output.ahead, output.alerts.len(), engine.stats()[0].kept), (ahead, 0, 0));
        }
        let mut engine = engine_of(suppressed.clone(), Quotas::default());
        engine.tick(log);
        let genuine = stored(10, 10);
        let alerts = engine.tick(vec![genuine.clone()]).alerts;
        let evidence: Vec<Vec<EventId>> = alerts.into_iter().map(|alert| alert.event_ids).collect();
        assert_eq!(evidence, [vec![genuine.event_id]]);
        let output = engine.tick(vec![stored(311, 11)]);
        assert_eq!((output.ahead, output.episodes.len()), (0, 1), "a clock may be five minutes off");
    }
}

#[test]
fn what_is_said_does_not_depend_on_how_the_log_is_cut() {
    let late = |n: i64| of_lane("a", 2, n * 600, 10 * HOUR_S + n);
    let mut log = vec![of_lane("a", 1, 10 * HOUR_S, 10 * HOUR_S)];
    log.extend((0..40).map(late));
    let run = |size: usize| {
        let mut engine = engine(OFTEN, Quotas::default());
        let ticks = log.chunks(size).flat_map(|part| engine.tick(part.to_vec()).alerts).collect::<Vec<Alert>>();
        ticks.into_iter().map(|alert| alert.alert_id).collect::<BTreeSet<String>>()
    };
    let at_once = run(log.len());
    assert_eq!(at_once.len(), 7, "one for each hour of what is late");
    assert_eq!((run(1), run(7)), (at_once.clone(), at_once));
}

#[test]
fn after_a_restart_the_same_is_not_told_again() {
    let log: Vec<SecurityEvent> = (0..4).map(|n| event("a", &format!("agent-{n}"), n)).collect();
    let mut first = engine(OFTEN, keys(2));
    assert_eq!(said(first.tick(log.clone()).alerts).len(), 1);
    let checkpoint = serde_json::to_string(&first.checkpoint()).unwrap();
    let mut second = engine(OFTEN, keys(2));
    second.restore(serde_json::from_str(&checkpoint).unwrap(), log, true);
    assert!(is_silent(second.tick(vec![event("a", "agent-5", 10)]).alerts));
    let next = event("a", "agent-6", HOUR_S);
    assert_eq!(said(second.tick(vec![next.clone()]).alerts), [of_rule("a", "quota_full", next.event_id)]);
}

#[test]
fn what_had_left_the_window_takes_no_quota_after_a_restart() {
    let mut log: Vec<SecurityEvent> = (0..2).map(|n| event("a", &format!("old-{n}"), n)).collect();
    log.extend([event("a", "old-1", 199), event("a", "new", 200), event("a", "new", 201)]);
    let mut first = engine(OFTEN, keys(2));
    // The third tick settles: what is old expires, and there is room for a new key.
    for one in &log {
        assert!(is_silent(first.tick(vec![one.clone()]).alerts));
    }
    let checkpoint = serde_json::to_string(&first.checkpoint()).unwrap();
    let changed = text("T-1", "t", &OFTEN.replace("100", "99"));
    for mut second in [engine(OFTEN, keys(2)), engine_of(changed, keys(2))] {
        second.restore(serde_json::from_str(&checkpoint).unwrap(), log.clone(), true);
        let stats = &second.stats()[0];
        assert_eq!((stats.kept, stats.refused), (3, 0));
        assert!(is_silent(second.tick(vec![event("a", "new", 202)]).alerts));
    }
}

#[test]
fn what_a_restart_loses_is_told() {
    let log: Vec<SecurityEvent> = (0..4).map(|n| event("a", &format!("agent-{n}"), n)).collect();
    let mut first = engine(OFTEN, keys(100));
    assert!(is_silent(first.tick(log.clone()).alerts));
    let checkpoint = serde_json::to_string(&first.checkpoint()).unwrap();
    let mut second = engine(OFTEN, keys(2));
    second.restore(serde_json::from_str(&checkpoint).unwrap(), log.clone(), true);
    let alerts = second.tick(vec![event("a", "agent-0", 10)]).alerts;
    assert_eq!(said(alerts), [of_rule("a", "quota_full", log[2].event_id)]);
    assert!(is_silent(second.tick(vec![event("a", "agent-5", 11)]).alerts));
}

#[test]
fn no_rule_speaks_under_the_name_of_the_engine() {
    for (id, name) in [(IMPAIRED_RULE, "t"), ("T-1", IMPAIRED_NAME)] {
        let errors = RuleSet::from_texts([("t/rule.sql".into(), text(id, name, OFTEN))]).unwrap_err();
        assert_eq!(errors.0.iter().map(|error| error.code).collect::<Vec<_>>(), [RuleCode::RuleDuplicate]);
    }
}

#[test]
fn of_whom_most_was_told_a_checkpoint_leaves_it_out_and_that_is_told() {
    let query = "SELECT agent_id, event_id FROM events";
    let mut first = engine(query, Quotas::default());
    let long = "x".repeat(10_000);
    let mut log: Vec<SecurityEvent> = (0..20).map(|n| event("loud", &format!("{long}-{n}"), n)).collect();
    log.push(event("quiet", "agent", 20));
    let told: BTreeSet<String> = first.tick(log.clone()).alerts.into_iter().map(|alert| alert.alert_id).collect();
    assert_eq!(told.len(), log.len());
    let whole = serde_json::to_string(&first.checkpoint_within(1 << 30)).unwrap();
    assert!(whole.contains(&long) && is_silent(first.tick(vec![event("loud", "one more", 21)]).alerts));

    let text = serde_json::to_string(&first.checkpoint_within(100_000)).unwrap();
    assert!(text.len() < 100_000 && !text.contains(&long));
    let next = event("loud", "another", 22);
    let alerts = first.tick(vec![next.clone(), event("quiet", "agent", 22)]).alerts;
    assert_eq!(said(alerts), [of_rule("loud", "unwritten", next.event_id)]);

    // Nothing is missed after a restart, and what is told again is what was told.
    let mut second = engine(query, Quotas::default());
    second.restore(serde_json::from_str(&text).unwrap(), log, true);
    let again = [event("loud", &format!("{long}-19"), 23), event("quiet", "agent", 23)];
    let alerts = second.tick(again.to_vec()).alerts;
    for event in &again {
        assert!(alerts.iter().any(|alert| alert.event_ids == [event.event_id]));
    }
    let repeated: Vec<&Alert> = alerts.iter().filter(|alert| told.contains(&alert.alert_id)).collect();
    assert_eq!(alerts.len(), repeated.len() + again.len());
    assert!(repeated.iter().all(|alert| alert.tenant_id.as_str() == "loud"), "what the others were told is known");
}

#[test]
fn what_was_told_of_keys_has_no_more_of_a_checkpoint_than_it_may() {
    let mut engine = engine("SELECT agent_id, event_id FROM events", Quotas::default());
    let mut log = Vec::new();
    for tenant in 0..10i64 {
        // Texts that are long as JSON, and longer as JSON in JSON.
        let agent =
            ["\u{1}", "\"", "\\", "é"][usize::try_from(tenant % 4).unwrap()].repeat(500 + 100 * usize::try_from(tenant).unwrap());
        log.extend((0..5).map(|n| event(&format!("t{tenant}"), &format!("{agent}{n}"), 5 * tenant + n)));
    }
    engine.tick(log);
    let without = serde_json::to_string(&engine.checkpoint_within(0)).unwrap().len();
    let mut sizes = Vec::new();
    for most in [0, 50_000, 100_000, 200_000, 1 << 30] {
        let size = serde_json::to_string(&engine.checkpoint_within(most)).unwrap().len() - without;
        assert!(size <= most, "{size} of {most}");
        sizes.push(size);
    }
    assert!(sizes.is_sorted() && sizes[1] > 0 && sizes[3] < sizes[4], "{sizes:?}");
}
