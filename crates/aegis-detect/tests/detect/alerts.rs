//! L-ALERTS: what rules on rules tell is a function of the log, however it was cut, over a restart, and for each tenant by itself; and a rule that
//! stands on itself does not load.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use aegis_detect::{CommonRules, Engine, EngineConfig, RuleCode, RuleErrors, RuleSet, TickOutput};
use aegis_model::{Alert, Decision, EventKind, ManualClock, SecurityEvent, TenantId, Timestamp};
use proptest::prelude::*;

use crate::standing::parts;

const START: i64 = 1_767_225_600_000_000;

/// Rules over events in three shapes, one on top of them, and one on top of that.
const RULES: [(&str, &str, &str); 6] = [
    ("denied", "", "SELECT agent_id, event_id FROM events WHERE decision = 'deny'"),
    (
        "denied-twice",
        "suppress: 4s\n",
        "SELECT agent_id, count(*) OVER w AS n, array_agg(event_id) OVER w AS event_ids FROM events WHERE decision = 'deny' \
         WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '5' SECOND PRECEDING AND CURRENT ROW) QUALIFY n >= 2",
    ),
    (
        "allowed-unasked",
        "",
        "SELECT agent_id, event_id FROM events w WHERE decision = 'allow' AND NOT EXISTS \
         (SELECT 1 FROM events d WHERE d.agent_id = w.agent_id AND d.decision = 'deny')",
    ),
    (
        "several",
        "suppress: 5s\n",
        "SELECT agent_id, count(DISTINCT rule_name) OVER w AS n, array_agg(event_id) OVER w AS event_ids FROM alerts \
         WHERE rule_name IN ('denied', 'denied-twice', 'allowed-unasked') \
         WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '8' SECOND PRECEDING AND CURRENT ROW) QUALIFY n >= 2",
    ),
    (
        "each",
        "",
        "SELECT agent_id, event_id, alert_id, severity, mode, key FROM alerts WHERE rule_id = 'T-several' AND rule_name <> 'x'",
    ),
    (
        "both",
        "",
        "SELECT agent_id, array_agg(event_id) AS event_ids FROM alerts WHERE rule_name IN ('each', 'denied-twice') GROUP BY agent_id \
         HAVING count(*) >= 2",
    ),
];
const ON_RULES: [&str; 3] = ["several", "each", "both"];

fn text(name: &str, extra: &str, query: &str) -> String {
    format!(
        "/* rule\nid: T-{name}\nname: {name}\nversion: 1\nseverity: low\nwindow: 10s\nkey: [agent_id]\nmode: active\nrequires: any\n{extra}\
         owner: soc\ndescription: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-27, note: first}}\n*/\n{query}\n"
    )
}

fn set_of(rules: &[(&str, &str, &str)]) -> Result<RuleSet, RuleErrors> {
    RuleSet::from_texts(rules.iter().map(|(name, extra, query)| (format!("{name}/rule.sql").into(), text(name, extra, query))))
}

/// The rules come in this order or the other: nothing depends on it.
fn engine(backwards: bool) -> Engine {
    let mut rules = RULES;
    if backwards {
        rules.reverse();
    }
    let mut config = EngineConfig::new(Arc::new(ManualClock::new(Timestamp::from_micros(START))));
    config.lateness_s = 6;
    Engine::new(set_of(&rules).unwrap(), config)
}

#[derive(Clone, Debug)]
struct Step {
    forward: i64,
    late: i64,
    tenant: u8,
    agent: u8,
    deny: bool,
}

fn any_step() -> impl Strategy<Value = Step> {
    (0..4i64, prop_oneof![3 => Just(0i64), 2 => 0..9i64], 0..2u8, 0..2u8, any::<bool>())
        .prop_map(|(forward, late, tenant, agent, deny)| Step { forward, late, tenant, agent, deny })
}

fn log_of(steps: &[Step]) -> Vec<SecurityEvent> {
    let mut second = 100;
    let event_of = |(index, step): (usize, &Step)| {
        second += step.forward;
        let tenant = TenantId::new(["a", "b"][usize::from(step.tenant)]).unwrap();
        let ts = Timestamp::from_micros(START + (second - step.late) * 1_000_000);
        let mut event = SecurityEvent::new(tenant, "edge", "edge", EventKind::AuthorizeDecision, ts);
        event.event_id = uuid::Uuid::from_u128(index as u128 + 1);
        event.lane = Some(format!("{}.edge.1", event.tenant_id));
        event.verified = true;
        event.agent_id = Some(format!("agent-{}", step.agent));
        event.decision = Some(if step.deny { Decision::Deny } else { Decision::Allow });
        event.receipt_hash = Some(format!("{index:064x}"));
        event.bus_ts = Some(Timestamp::from_micros(START + second * 1_000_000));
        event
    };
    steps.iter().enumerate().map(event_of).collect()
}

/// What stands; nothing that was told of alerts is ever taken back.
#[derive(Default)]
struct Standing(BTreeMap<String, Alert>);

impl Standing {
    fn take(&mut self, output: TickOutput) {
        assert!(output.quarantined.is_empty(), "{:?}", output.quarantined);
        self.0.extend(output.alerts.into_iter().map(|alert| (alert.alert_id.clone(), alert)));
        for retraction in output.retractions {
            let taken_back = self.0.remove(&retraction.alert_id).expect("retracted, and never told");
            assert!(!ON_RULES.contains(&taken_back.rule_name.as_str()), "{taken_back:?}");
        }
    }

    /// Of rules on rules all that an alert says of its evidence; of the others that they stand.
    fn told(&self) -> BTreeSet<String> {
        let said = |alert: &Alert| {
            let all = format!("{:?} {:?} {:?}", alert.first_ts, alert.event_ids, alert.receipt_hashes);
            let of_rules = ON_RULES.contains(&alert.rule_name.as_str()) && alert.rule_name != "both";
            format!("{} {} {}", alert.rule_name, alert.alert_id, if of_rules { all } else { String::new() })
        };
        self.0.values().map(said).collect()
    }
}

fn run(log: &[SecurityEvent], cuts: &[usize], backwards: bool) -> BTreeSet<String> {
    let (mut engine, mut standing) = (engine(backwards), Standing::default());
    for part in parts(log, cuts) {
        standing.take(engine.tick(part.to_vec()));
    }
    standing.take(engine.finish());
    standing.told()
}

proptest! {
    // As many as in laws.rs, and more in `make test-full`: each case runs every rule.
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn l_alerts_any_batching_and_order_of_rules_tells_the_same(
        steps in prop::collection::vec(any_step(), 1..40),
        mut cuts in prop::collection::vec(0..40usize, 0..12),
    ) {
        let log = log_of(&steps);
        cuts.retain(|cut| *cut <= log.len());
        cuts.sort_unstable();
        let at_once = run(&log, &[], false);
        prop_assert_eq!(&run(&log, &cuts, false), &at_once);
        let each: Vec<usize> = (0..log.len()).collect();
        prop_assert_eq!(&run(&log, &each, true), &at_once);
    }

    #[test]
    fn l_alerts_a_restart_from_a_checkpoint_tells_the_same(steps in prop::collection::vec(any_step(), 2..40), written in 0..40usize) {
        let log = log_of(&steps);
        let written = written % log.len();
        let mut first = engine(false);
        let mut standing = Standing::default();
        let mut taken = Vec::new();
        for event in &log[..written] {
            let output = first.tick(vec![event.clone()]);
            if output.late.is_empty() {
                taken.push(event.clone());
            }
            standing.take(output);
        }
        let checkpoint = serde_json::to_string(&first.checkpoint()).unwrap();
        taken.retain(|event| first.horizon(&event.tenant_id).is_none_or(|horizon| event.ts >= horizon));
        let mut second = engine(true);
        second.restore(serde_json::from_str(&checkpoint).unwrap(), taken, true);
        standing.take(second.tick(log[written..].to_vec()));
        standing.take(second.finish());
        prop_assert_eq!(standing.told(), run(&log, &[], false));
    }

    #[test]
    fn l_alerts_one_run_over_all_tenants_is_the_union_of_the_runs_over_each(steps in prop::collection::vec(any_step(), 1..40)) {
        let log = log_of(&steps);
        let of = |tenant: &str| -> Vec<SecurityEvent> {
            log.iter().filter(|event| event.tenant_id.as_str() == tenant).cloned().collect()
        };
        let union: BTreeSet<String> = ["a", "b"].into_iter().flat_map(|tenant| run(&of(tenant), &[], false)).collect();
        prop_assert_eq!(run(&log, &[], false), union);
    }
}

fn deny_at(second: i64, number: u128) -> SecurityEvent {
    let step = Step { forward: second - 100, late: 0, tenant: 0, agent: 0, deny: true };
    SecurityEvent { event_id: uuid::Uuid::from_u128(number), ..log_of(&[step]).remove(0) }
}

#[test]
fn an_alert_is_read_when_it_is_final_at_the_time_of_its_last_evidence() {
    let mut engine = engine(false);
    let of_rules = |output: &TickOutput| {
        let told = output.alerts.iter().filter(|alert| ON_RULES.contains(&alert.rule_name.as_str()));
        told.map(|alert| (alert.rule_name.clone(), alert.last_ts.as_micros() / 1_000_000 - START / 1_000_000)).collect::<Vec<_>>()
    };
    let first = engine.tick(vec![deny_at(100, 1), deny_at(103, 2)]);
    assert!(first.alerts.iter().any(|alert| alert.rule_name == "denied-twice"), "{first:?}");
    assert!(of_rules(&first).is_empty(), "it may still be taken back");
    // Its time is over, and what stands on it stands on the ground of the same events.
    let second = engine.tick(vec![deny_at(200, 3)]);
    let mut told = of_rules(&second);
    told.sort();
    assert_eq!(told, [("both".to_owned(), 103), ("each".to_owned(), 103), ("several".to_owned(), 103)]);
    let each = second.alerts.iter().find(|alert| alert.rule_name == "each").unwrap();
    let several = second.alerts.iter().find(|alert| alert.rule_name == "several").unwrap();
    assert_eq!(each.fields["alert_id"], several.alert_id.as_str());
    assert_eq!((&each.fields["severity"], &each.fields["mode"]), (&"low".into(), &"active".into()));
    assert_eq!(each.fields["key"], r#"{"agent_id":"agent-0"}"#);
    assert_eq!(several.receipt_hashes.len(), several.event_ids.len(), "{several:?}");
    assert_eq!(several.event_ids, [1, 2].map(uuid::Uuid::from_u128));
}

/// Of who rested, for nothing was there, it is known within the same look that there is something: a log's last look is the last.
#[test]
fn what_stands_on_an_alert_that_becomes_final_with_the_last_look_is_told() {
    let mut engine = engine(false);
    // Everybody is asked once, and rests.
    let first = engine.tick(vec![deny_at(100, 1), deny_at(103, 2)]);
    let mut told: Vec<String> = first.alerts.into_iter().chain(engine.finish().alerts).map(|alert| alert.rule_name).collect();
    told.retain(|name| ON_RULES.contains(&name.as_str()));
    told.sort();
    assert_eq!(told, ["both", "each", "several"]);
}

#[test]
fn a_rule_that_stands_on_itself_does_not_load_and_the_way_is_named() {
    let on = |name: &'static str, sources: &str| {
        let query: &'static str =
            Box::leak(format!("SELECT agent_id, event_id\nFROM alerts\nWHERE rule_name IN ({sources})").into_boxed_str());
        (name, "", query)
    };
    let denied = RULES[0];
    assert!(set_of(&[denied, on("x", "'denied'"), on("y", "'x', 'denied'"), on("z", "'x', 'y'")]).is_ok());
    let errors = set_of(&[denied, on("x", "'denied', 'z'"), on("y", "'x'"), on("z", "'y'"), on("w", "'x'")]).unwrap_err();
    assert_eq!(errors.0.len(), 3, "who reads a circle is not one of it: {errors}");
    let said = errors.to_string();
    assert!(said.contains("x reads z reads y reads x"), "{said}");
    for error in &errors.0 {
        // The header has fifteen lines; the word stands in the third of the query.
        assert_eq!((error.code, error.place.map(|place| place.line)), (RuleCode::RuleUnsupported, Some(18)), "{error}");
    }
    let own = set_of(&[denied, on("x", "'x', 'denied'")]).unwrap_err();
    assert!(own.to_string().contains("x reads x"), "{own}");
    let unknown = set_of(&[denied, on("x", "'denied', 'nobody'")]).unwrap_err();
    assert_eq!(unknown.0[0].code, RuleCode::RuleUnreachable);
    assert!(unknown.to_string().contains("`nobody` is no rule of this set"), "{unknown}");
    let late = "SELECT agent_id, event_id FROM events QUALIFY count(*) OVER (PARTITION BY agent_id ORDER BY ts \
                RANGE BETWEEN CURRENT ROW AND INTERVAL '5' SECOND FOLLOWING) = 1";
    let too_late = set_of(&[("late", "", late), on("x", "'late'")]).unwrap_err();
    assert!(too_late.to_string().contains("come too late"), "{too_late}");
}

#[test]
fn a_tenants_own_rule_reads_alerts_of_the_program_s_rules_alone_and_none_of_its_own_place() {
    let common = set_of(&RULES).unwrap().common();
    let tenant = TenantId::new("a").unwrap();
    let own = |name: &str, sources: &str| {
        let query = format!("SELECT agent_id, event_id FROM alerts WHERE rule_name IN ({sources})");
        common.own(&tenant, &text(name, "", &query)).map(drop).map_err(|error| error.code)
    };
    assert_eq!(own("mine", "'denied', 'several'"), Ok(()));
    assert_eq!(own("mine", "'denied', 'nobody'"), Err(RuleCode::RuleUnreachable));
    // In the place of one that reads others, and is read: what it tells there is read by nobody.
    assert_eq!(own("several", "'denied'"), Ok(()));
    for (name, sources) in [("mine", "'mine'"), ("denied", "'denied', 'several'")] {
        assert_eq!(own(name, sources), Err(RuleCode::RuleUnsupported), "{name}: {sources}");
    }
    let nobody_s = CommonRules::default()
        .own(&tenant, &text("mine", "", "SELECT agent_id, event_id FROM alerts WHERE rule_name = 'denied'"));
    assert_eq!(nobody_s.unwrap_err().code, RuleCode::RuleUnreachable);
}

#[test]
fn an_operator_s_version_leaves_who_reads_whom_as_it_is() {
    let common = set_of(&RULES).unwrap().common();
    let load = |name: &str, query: &str| common.version(&text(name, "", query), Path::new("rule.sql"));
    let over = |sources: &str| format!("SELECT agent_id, event_id FROM alerts WHERE rule_name IN ({sources})");
    for (name, query) in RULES.map(|(name, _, query)| (name, query)) {
        assert!(load(name, query).is_ok(), "{name} in its own place");
    }
    let deny = "SELECT agent_id, event_id FROM events WHERE decision = 'deny'";
    let waits = "SELECT agent_id, event_id FROM events QUALIFY count(*) OVER (PARTITION BY agent_id ORDER BY ts \
                 RANGE BETWEEN CURRENT ROW AND INTERVAL '5' SECOND FOLLOWING) = 1";
    // One that is read by nobody, as one more: it may wait, and read any rule of the program.
    for query in [deny.to_owned(), waits.to_owned(), over("'both', 'denied'")] {
        assert!(load("one-more", &query).is_ok(), "{query}");
    }
    assert!(load("each", deny).is_ok() && load("several", &over("'denied'")).is_ok());
    let unsupported = [
        ("denied", waits.to_owned()),
        ("denied", over("'denied-twice'")),
        ("several", over("'each'")),
        ("several", over("'both', 'denied'")),
        ("each", over("'each'")),
    ];
    for (name, query) in unsupported {
        assert_eq!(load(name, &query).unwrap_err().code, RuleCode::RuleUnsupported, "{name}: {query}");
    }
    assert_eq!(load("one-more", &over("'nobody'")).unwrap_err().code, RuleCode::RuleUnreachable);
    // By its id it is the same rule, and keeps its name; a name that another rule of the program has is that one's.
    let renamed = text("denied", "", deny).replace("name: denied", "name: denied-at-all");
    assert_eq!(common.version(&renamed, Path::new("rule.sql")).unwrap_err().code, RuleCode::RuleHeader);
    let taken = text("one-more", "", deny).replace("name: one-more", "name: denied");
    assert_eq!(common.version(&taken, Path::new("rule.sql")).unwrap_err().code, RuleCode::RuleDuplicate);
    // What stops a rule needs no query.
    let off = text("denied", "", "SELECT nothing FROM nowhere").replace("mode: active", "mode: disabled");
    assert!(common.version(&off, Path::new("rule.sql")).is_ok());
}
