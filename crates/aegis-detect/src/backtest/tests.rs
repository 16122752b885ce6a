//! What a backtest counts, and what it knows of the end of a history.

use super::*;
use aegis_model::{Decision, EventKind, ManualClock};

const START: i64 = 1_767_225_600_000_000;

fn rule(version: u32, denies: u32) -> String {
    format!(
        "/* rule\nid: T-1\nname: storm\nversion: {version}\nseverity: low\nwindow: 60s\nkey: [agent_id]\nmode: disabled\nrequires: any\n\
         suppress: 10m\nowner: soc\ndescription: d\nfalse_positives: none\nchangelog:\n  - {{version: {version}, date: 2026-11-22, note: n}}\n*/\n\
         SELECT agent_id, count(*) OVER w AS n, array_agg(event_id) OVER w AS event_ids FROM events WHERE decision = 'deny' \
         WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND CURRENT ROW) \
         QUALIFY n >= {denies}\n"
    )
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(START + second * 1_000_000)
}

/// Denies of two agents: one has three in a minute on the first day, the other five on the second.
fn log() -> Vec<SecurityEvent> {
    let deny = |agent: &str, second: i64| {
        let mut event = SecurityEvent::new(TenantId::new("a").unwrap(), "e", "edge", EventKind::AuthorizeDecision, at(second));
        event.event_id = uuid::Uuid::from_u128(second.unsigned_abs().into());
        event.agent_id = Some(agent.to_owned());
        event.decision = Some(Decision::Deny);
        event.bus_ts = Some(at(second));
        event
    };
    let first = (0..3).map(|n| deny("one", 100 + n));
    first.chain((0..5).map(|n| deny("two", 86_400 + n))).collect()
}

fn run(denies: u32, from: Option<Timestamp>, to: Option<Timestamp>) -> BacktestReport {
    let rules = RuleSet::from_texts([("r/rule.sql".into(), rule(1, denies))]).unwrap();
    let mut backtest = Backtest::new(rules, Arc::new(ManualClock::new(at(0))), from, to);
    log().into_iter().for_each(|event| backtest.take(event));
    backtest.finish()
}

#[test]
fn a_backtest_says_when_and_for_whom_a_rule_would_have_told() {
    let report = run(3, None, None);
    let result = &report.rules[0];
    assert_eq!((report.events, result.alerts, result.relevant), (8, 2, 8));
    assert_eq!(
        result.by_day.iter().map(|(day, n)| (day.as_str(), *n)).collect::<Vec<_>>(),
        [("2026-01-01", 1), ("2026-01-02", 1)]
    );
    assert_eq!(result.top, [(r#"{"agent_id":"one"}"#.to_owned(), 1), (r#"{"agent_id":"two"}"#.to_owned(), 1)]);
    assert_eq!((result.samples[0].evidence, result.samples[0].last_ts), (3, at(102)));
    let text = report.to_string();
    assert!(
        text.contains("T-1 storm: 2 alerts")
            && text.contains("2026-01-02  1")
            && text.ends_with("events: 8 (0 late) · alerts: 2"),
        "{text}"
    );
}

#[test]
fn a_tenant_of_whom_nothing_follows_is_let_go_and_what_was_told_of_it_stands() {
    let tenants: Vec<TenantId> = (0..ENDED_TOGETHER + 3).map(|n| TenantId::new(&format!("t{n}")).unwrap()).collect();
    let run = |ends: bool| {
        let rules = RuleSet::from_texts([("r/rule.sql".into(), rule(1, 3))]).unwrap();
        let mut backtest = Backtest::new(rules, Arc::new(ManualClock::new(at(200_000))), None, None);
        for tenant in &tenants {
            log().into_iter().for_each(|event| backtest.take(SecurityEvent { tenant_id: tenant.clone(), ..event }));
            backtest.tick();
            if ends {
                backtest.end_of(tenant);
            }
        }
        let kept: usize = backtest.engine.rules.iter().map(|running| running.state.event_count()).sum();
        (kept, backtest.finish())
    };
    let ((kept, ended), (all_kept, whole)) = (run(true), run(false));
    assert_eq!((ended.standing.len(), ended.events, ended.late), (2 * tenants.len(), whole.events, whole.late));
    assert_eq!(ended.standing, whole.standing);
    // Those that came after the last that were let go together.
    assert_eq!(kept * tenants.len(), all_kept * 3, "{kept} of {all_kept}");
}

#[test]
fn what_no_rule_saw_is_counted_and_said() {
    let rules = RuleSet::from_texts([("r/rule.sql".into(), rule(1, 3))]).unwrap();
    let mut backtest = Backtest::new(rules, Arc::new(ManualClock::new(at(0))), None, None);
    log().into_iter().for_each(|event| backtest.take(event));
    backtest.miss(2);
    backtest.miss(1);
    let report = backtest.finish();
    assert_eq!((report.events, report.gone, serde_json::to_value(&report).unwrap()["gone"].as_u64()), (8, 3, Some(3)));
    let text = report.to_string();
    assert!(text.contains("\ngone: 3 events, whose text is not there any more: no rule saw them\nevents: 8 "), "{text}");
    assert!(!run(3, None, None).to_string().contains("gone"));
}

#[test]
fn only_what_lies_between_from_and_to_counts() {
    let counted = |from, to| run(3, from, to).standing.len();
    assert_eq!(counted(Some(at(102)), Some(at(86_402))), 1);
    assert_eq!(counted(Some(at(103)), None), 1);
    assert_eq!(counted(None, Some(at(102))), 0);
}

#[test]
fn what_follows_the_end_of_what_is_known_decides_nothing() {
    let text = rule(1, 3);
    let (header, _) = text.split_once("SELECT").unwrap();
    let query = "SELECT agent_id, event_id FROM events QUALIFY count(*) OVER (PARTITION BY agent_id ORDER BY ts \
                 RANGE BETWEEN INTERVAL '1 microsecond' FOLLOWING AND INTERVAL '60' SECOND FOLLOWING) = 0";
    let run = |now: i64, to: Option<i64>| {
        let rules = RuleSet::from_texts([("r/rule.sql".into(), format!("{header}{query}\n"))]).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(at(now)));
        let needed = to.map(|to| Backtest::needs_to(&rules, Arc::clone(&clock), at(to)));
        let mut backtest = Backtest::new(rules, clock, None, to.map(at));
        log().into_iter().filter(|e| needed.is_none_or(|needed| e.ts < needed)).for_each(|event| backtest.take(event));
        let report = backtest.finish();
        (report.rules[0].alerts, report.rules[0].undecided)
    };
    // The last event of each agent, a minute and the lateness after it.
    assert_eq!(run(86_404 + 60 + 120, None), (1, 1));
    assert_eq!(run(86_404 + 60 + 121, None), (2, 0));
    // The first agent's last is at 102; what is after that is read, but for the other agent's day.
    assert_eq!(run(100_000, Some(103)), (1, 0));
    assert_eq!(run(200, Some(103)), (0, 3));
}

#[test]
fn two_versions_are_compared_by_the_alerts_they_stand_by() {
    let (wide, narrow) = (run(3, None, None), run(5, None, None));
    let dropped = wide.beyond(&narrow);
    assert_eq!(dropped.iter().map(|told| told.key["agent_id"].as_str().unwrap()).collect::<Vec<_>>(), ["one"]);
    assert!(narrow.beyond(&wide).is_empty());
}
