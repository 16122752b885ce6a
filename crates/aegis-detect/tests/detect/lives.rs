//! L-REPLAY over whole lives of the worker: a log with records of a tenant's own rules, and of what operators make of those that every tenant has, taken in
//! parts, over restarts and crashes, leaves the same alerts standing as one that is read at once.

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

use aegis_bus::{EmbeddedBus, EmbeddedLimits, Message, Stream, subject};
use aegis_detect::{IMPAIRED_RULE, RuleSet, RuleTexts, Worker};
use aegis_keys::sign_notice;
use aegis_model::{Clock, CommonRuleRecord, Decision, ManualClock, RuleRecord, TenantId, Timestamp, partition_of};
use proptest::prelude::*;
use serde_json::Value;

use crate::ground::{Edge, caught_up, checkpoint, control_key, message, open_bus, publish, put_checkpoint, read_all, start};

const START: Timestamp = Timestamp::from_micros(1_767_225_600_000_000);
const TENANTS: [&str; 2] = ["acme", "beta"];

/// The evidence of each is its own row: what one version told, no other finds.
const TWO: &str = "SELECT agent_id, event_id FROM events WHERE decision = 'deny' QUALIFY count(*) OVER \
     (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '5' SECOND PRECEDING AND CURRENT ROW) >= 2";
const NONE_BEFORE: &str = "SELECT agent_id, event_id FROM events w WHERE decision = 'allow' AND NOT EXISTS \
     (SELECT 1 FROM events d WHERE d.agent_id = w.agent_id AND d.decision = 'deny')";
const NONE_AFTER: &str = "SELECT agent_id, event_id FROM events WHERE decision IN ('allow', 'deny') \
     QUALIFY decision = 'allow' AND count(*) FILTER (WHERE decision = 'deny') OVER (PARTITION BY agent_id ORDER BY ts \
       RANGE BETWEEN CURRENT ROW AND INTERVAL '3' SECOND FOLLOWING) = 0";
/// A row pattern that is followed.
const ALLOWED_THEN_DENIED: &str = "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES d.event_id AS event_id \
     PATTERN (a d) DEFINE a AS a.decision = 'allow', d AS d.decision = 'deny')";

/// Over alerts, each a row once it is final.
const TOLD_TWICE: &str = "SELECT agent_id, event_id FROM alerts WHERE rule_name IN ('two', 'none-before') QUALIFY count(*) OVER \
     (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '9' SECOND PRECEDING AND CURRENT ROW) >= 2";

fn text(id: &str, name: &str, mode: &str, more: &str, query: &str) -> String {
    format!(
        "/* rule\nid: {id}\nname: {name}\nversion: 1\nseverity: low\nkey: [agent_id]\nmode: {mode}\nrequires: any\n{more}\n\
         owner: soc\ndescription: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-27, note: first}}\n*/\n{query}\n"
    )
}

/// What every tenant has, one of each way of being run.
fn common() -> RuleSet {
    set_of(&common_texts())
}

fn common_texts() -> Vec<String> {
    vec![
        text("T-1", "two", "active", "window: 5s", TWO),
        text("T-2", "two-suppressed", "active", "window: 5s\nsuppress: 7s", TWO),
        text("T-3", "none-before", "active", "window: 8s", NONE_BEFORE),
        text("T-4", "none-after", "active", "window: 5s", NONE_AFTER),
        text("T-6", "allowed-then-denied", "active", "window: 8s", ALLOWED_THEN_DENIED),
    ]
}

/// The same, and one that reads what two of them told.
fn common_and_readers() -> RuleSet {
    let mut texts = common_texts();
    texts.push(text("T-5", "told-twice", "active", "window: 9s", TOLD_TWICE));
    set_of(&texts)
}

/// Rules that look back further than the stream is held, and one that does not.
fn far() -> RuleSet {
    let of_hours = TWO.replace("INTERVAL '5' SECOND", "INTERVAL '4' HOUR");
    set_of(&[
        text("T-1", "two", "active", "window: 4h", &of_hours),
        text("T-2", "two-suppressed", "active", "window: 5s\nsuppress: 7s", TWO),
        text("T-3", "none-before", "active", "window: 3h", NONE_BEFORE),
        text("T-4", "two-in-hours", "active", "window: 5h\nsuppress: 3h", &of_hours),
        text("T-6", "allowed-then-denied", "active", "window: 3h", ALLOWED_THEN_DENIED),
    ])
}

fn set_of(texts: &[String]) -> RuleSet {
    RuleSet::from_texts(texts.iter().enumerate().map(|(n, text)| (format!("{n}/rule.sql").into(), text.clone()))).unwrap()
}

/// Ids of rules that acme changes: the first stands in place of one that every tenant has, the last reads alerts of those.
const CHANGED: [(&str, &str); 3] = [("T-1", "two"), ("OWN-1", "own"), ("OWN-2", "own-reader")];

/// Ids of rules that operators change: two that are read by another, that one, and one that the program does not have.
const COMMON_CHANGED: [(&str, &str); 4] = [("T-1", "two"), ("T-3", "none-before"), ("T-5", "told-twice"), ("OPS-1", "ops")];

/// What operators make of a rule. The first may be the program's own text; one that would wait is not taken where its alerts are read, and leaves the rule
/// as the program has it; without a text it is that again.
fn common_versions(rule: usize) -> Vec<String> {
    let (id, name) = COMMON_CHANGED[rule];
    let mut all = match id {
        "T-5" => [("active", "window: 9s"), ("log_only", "window: 9s\nsuppress: 7s"), ("active", "window: 20s")]
            .map(|(mode, more)| text(id, name, mode, more, TOLD_TWICE))
            .to_vec(),
        _ => versions_of(id, name),
    };
    all.push(String::new());
    all
}

/// What acme makes of a rule.
fn versions(rule: usize) -> Vec<String> {
    let (id, name) = CHANGED[rule];
    if id != "OWN-2" {
        return versions_of(id, name);
    }
    [("active", "window: 9s"), ("log_only", "window: 9s\nsuppress: 7s"), ("active", "window: 20s"), ("disabled", "window: 9s")]
        .map(|(mode, more)| text(id, name, mode, more, TOLD_TWICE))
        .to_vec()
}

/// Which of them waits for what follows.
const WAITS: usize = 4;

fn versions_of(id: &str, name: &str) -> Vec<String> {
    vec![
        text(id, name, "active", "window: 5s", TWO),
        text(id, name, "log_only", "window: 5s\nsuppress: 7s", TWO),
        text(id, name, "active", "window: 8s", NONE_BEFORE),
        // Longer than what is kept: it waits until it knows all of it.
        text(id, name, "active", "window: 20s", NONE_BEFORE),
        text(id, name, "active", "window: 5s", NONE_AFTER),
        text(id, name, "disabled", "window: 5s", TWO),
        text(id, name, "active", "window: 8s", ALLOWED_THEN_DENIED),
    ]
}

/// All of them, as the control plane keeps them.
#[derive(Debug)]
struct Texts;

#[async_trait::async_trait]
impl RuleTexts for Texts {
    async fn text(&self, _tenant: &TenantId, _rule_id: &str, hash: &str) -> Result<Option<String>, String> {
        let mut all = (0..CHANGED.len()).flat_map(versions);
        Ok(all.find(|text| aegis_canon::sha256_hex(text.as_bytes()) == hash))
    }

    async fn common_text(&self, _rule_id: &str, hash: &str) -> Result<Option<String>, String> {
        let mut all = (0..COMMON_CHANGED.len()).flat_map(common_versions);
        Ok(all.find(|text| aegis_canon::sha256_hex(text.as_bytes()) == hash))
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A call after some seconds. One of the second edge comes behind so many further steps.
    Call { forward: i64, tenant: usize, agent: u8, deny: bool, delay: Option<usize> },
    /// Acme changes a rule.
    Change { rule: usize, version: usize },
    /// An operator's change of what every tenant has reaches the partition of this one.
    Common { tenant: usize, rule: usize, version: usize },
}

/// Any of the steps, and changes of what every tenant has.
fn any_step_of_all() -> impl Strategy<Value = Step> {
    let common = (0..2usize, 0..COMMON_CHANGED.len(), 0..8usize).prop_map(|(tenant, rule, version)| {
        let version = version % common_versions(rule).len();
        Step::Common { tenant, rule, version }
    });
    prop_oneof![5 => any_step(), 1 => common]
}

fn any_step() -> impl Strategy<Value = Step> {
    let delay = prop::option::weighted(0.4, 0..4usize);
    let call = (0..3i64, 0..2usize, 0..2u8, any::<bool>(), delay).prop_map(|(forward, tenant, agent, deny, delay)| Step::Call {
        forward,
        tenant,
        agent,
        deny,
        delay,
    });
    let change =
        (0..CHANGED.len(), 0..7usize).prop_map(|(rule, version)| Step::Change { rule, version: version % versions(rule).len() });
    prop_oneof![5 => call, 1 => change]
}

/// The same, with three quarters of an hour for each second.
fn any_slow_step() -> impl Strategy<Value = Step> {
    any_step().prop_map(|step| match step {
        Step::Call { forward, tenant, agent, deny, delay } => Step::Call { forward: forward * 2700, tenant, agent, deny, delay },
        other => other,
    })
}

/// A message, and when the bus stores it.
type Log = Vec<(Timestamp, Message)>;

fn change(rule: usize, version: usize, revision: i64) -> Message {
    let tenant_id = TenantId::new(TENANTS[0]).unwrap();
    let text = versions(rule).swap_remove(version);
    let hash = aegis_canon::sha256_hex(text.as_bytes());
    let place = subject::ruleset(partition_of(&tenant_id));
    let record = RuleRecord { tenant_id, rule_id: CHANGED[rule].0.to_owned(), revision, hash, text };
    Message::new(place, sign_notice(&control_key(), &record).unwrap())
}

fn common_change(tenant: usize, rule: usize, version: usize, revision: i64) -> Message {
    let partition = partition_of(&TenantId::new(TENANTS[tenant]).unwrap());
    let text = common_versions(rule).swap_remove(version);
    let hash = aegis_canon::sha256_hex(text.as_bytes());
    let record = CommonRuleRecord { partition, rule_id: COMMON_CHANGED[rule].0.to_owned(), revision, hash, text };
    Message::new(subject::ruleset(partition), sign_notice(&control_key(), &record).unwrap())
}

/// How long it goes on behind the last step until all is final, also what rules told that look back over hours: a pause of the bus does not count in full.
const END: [i64; 1] = [600];
const SLOW_END: [i64; 10] = [2700; 10];

/// The log of some steps, at whose end all is final.
async fn log_of(folder: &Path, steps: &[Step], end: &[i64]) -> Log {
    let manual = Arc::new(ManualClock::new(START));
    let clock: Arc<dyn Clock> = manual.clone();
    let mut edges =
        [Edge::open(folder, "edge-1", Arc::clone(&clock)).await, Edge::open(folder, "edge-2", Arc::clone(&clock)).await];
    let mut log = Log::new();
    let mut delayed: VecDeque<(usize, Vec<Message>)> = VecDeque::new();
    for (n, step) in steps.iter().enumerate() {
        match step {
            Step::Call { forward, tenant, agent, deny, delay } => {
                manual.advance_seconds(*forward);
                let decision = if *deny { Decision::Deny } else { Decision::Allow };
                let edge = &mut edges[usize::from(delay.is_some())];
                let sealed = edge.seal(TENANTS[*tenant], Some(&format!("agent-{agent}")), decision).await;
                let messages: Vec<Message> = sealed.iter().map(message).collect();
                match delay {
                    None => log.extend(messages.into_iter().map(|message| (clock.now(), message))),
                    Some(delay) => delayed.push_back((n + delay, messages)),
                }
            }
            Step::Change { rule, version } => {
                // No event is of its very time.
                manual.advance_seconds(1);
                log.push((clock.now(), change(*rule, *version, i64::try_from(n).unwrap() + 1)));
                manual.advance_seconds(1);
            }
            Step::Common { tenant, rule, version } => {
                manual.advance_seconds(1);
                log.push((clock.now(), common_change(*tenant, *rule, *version, i64::try_from(n).unwrap() + 1)));
                manual.advance_seconds(1);
            }
        }
        while delayed.front().is_some_and(|(due, _)| *due <= n) {
            let (_, messages) = delayed.pop_front().unwrap();
            log.extend(messages.into_iter().map(|message| (clock.now(), message)));
        }
    }
    log.extend(delayed.into_iter().flat_map(|(_, messages)| messages).map(|message| (clock.now(), message)));
    // Of an agent that none of the rules asks for.
    for seconds in end {
        manual.advance_seconds(*seconds);
        for tenant in TENANTS {
            for edge in &mut edges {
                let sealed = edge.seal(tenant, None, Decision::Deny).await;
                log.extend(sealed.iter().map(|wire| (clock.now(), message(wire))));
            }
        }
    }
    log
}

/// What becomes of the process behind a part of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    GoesOn,
    Restarts,
    /// It dies, and what it wrote down since its last start is not there.
    Crashes,
}

fn any_then() -> impl Strategy<Value = Then> {
    prop_oneof![2 => Just(Then::GoesOn), 1 => Just(Then::Restarts), 2 => Just(Then::Crashes)]
}

/// The log in parts of these sizes, and what comes after each; the rest at once. Answers which alerts stand in the end.
async fn live(rules: fn() -> RuleSet, folder: &Path, log: &[(Timestamp, Message)], parts: &[(usize, Then)]) -> BTreeSet<String> {
    let manual = Arc::new(ManualClock::new(START));
    let bus = open_bus(folder, EmbeddedLimits::default(), manual.clone()).await;
    // By a clock that stands still: what the bus's does in the middle of a look is not the time that this takes.
    let still: Arc<dyn Clock> = Arc::new(ManualClock::new(START));
    let begin = || start(&bus, rules(), &still, Some(Arc::new(Texts)));
    // A life begins behind the next part, and reads what it has to read again together with that.
    let mut running: Option<Worker> = None;
    let mut rest = log;
    let mut written: Option<Value> = None;
    for (size, then) in parts {
        let (part, others) = rest.split_at((*size).min(rest.len()));
        rest = others;
        put(&bus, &manual, part).await;
        let life = running.take().unwrap_or_else(&begin);
        caught_up(&bus, &life).await;
        if *then == Then::GoesOn {
            running = Some(life);
            continue;
        }
        life.stop().await;
        match &written {
            Some(before) if *then == Then::Crashes => put_checkpoint(&bus, before).await,
            // Of a process that never wrote anything down nothing is lost.
            _ => written = checkpoint(&bus).await,
        }
    }
    put(&bus, &manual, rest).await;
    let life = running.take().unwrap_or_else(&begin);
    caught_up(&bus, &life).await;
    life.stop().await;
    standing(&bus).await
}

async fn put(bus: &Arc<EmbeddedBus>, clock: &ManualClock, part: &[(Timestamp, Message)]) {
    for (stored, message) in part {
        clock.advance_micros(stored.as_micros() - clock.now().as_micros());
        publish(bus, Stream::Ase, vec![message.clone()]).await;
    }
}

/// What rules told, and did not take back.
async fn standing(bus: &EmbeddedBus) -> BTreeSet<String> {
    let id_of = |value: &Value| format!("{} {}", value["rule_id"].as_str().unwrap(), value["alert_id"].as_str().unwrap());
    let alerts = read_all(bus, Stream::Alerts, "alert.>").await;
    let told: BTreeSet<String> = alerts.iter().filter(|alert| alert["rule_id"] != IMPAIRED_RULE).map(id_of).collect();
    let retracted: BTreeSet<String> = read_all(bus, Stream::Alerts, "retract.>").await.iter().map(id_of).collect();
    assert!(retracted.is_subset(&told), "something is taken back that was never told");
    told.difference(&retracted).cloned().collect()
}

/// What stands of a log that is taken in parts, and of the same read at once.
fn both(steps: &[Step], parts: &[(usize, Then)]) -> (BTreeSet<String>, BTreeSet<String>) {
    both_of(common, steps, parts, &END)
}

fn both_of(rules: fn() -> RuleSet, steps: &[Step], parts: &[(usize, Then)], end: &[i64]) -> (BTreeSet<String>, BTreeSet<String>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let log = log_of(folders[0].path(), steps, end).await;
        (live(rules, folders[1].path(), &log, parts).await, live(rules, folders[2].path(), &log, &[]).await)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn l_replay_lives_over_a_log_with_records_of_rules_leave_the_same_alerts_standing(
        steps in prop::collection::vec(any_step(), 4..32),
        parts in prop::collection::vec((1..8usize, any_then()), 0..5),
    ) {
        let (live, replayed) = both(&steps, &parts);
        prop_assert_eq!(live, replayed);
    }

    #[test]
    fn l_replay_lives_over_a_log_with_changes_of_what_every_tenant_has_leave_the_same_alerts_standing(
        steps in prop::collection::vec(any_step_of_all(), 4..32),
        parts in prop::collection::vec((1..8usize, any_then()), 0..5),
    ) {
        let (live, replayed) = both_of(common_and_readers, &steps, &parts, &END);
        prop_assert_eq!(live, replayed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn l_replay_lives_of_rules_that_look_back_further_than_the_stream_is_held_leave_the_same_alerts_standing(
        steps in prop::collection::vec(any_slow_step(), 4..32),
        parts in prop::collection::vec((1..8usize, any_then()), 0..5),
    ) {
        let (live, replayed) = both_of(far, &steps, &parts, &SLOW_END);
        prop_assert_eq!(live, replayed);
    }
}

fn call(forward: i64, agent: u8, deny: bool, delay: Option<usize>) -> Step {
    Step::Call { forward, tenant: 0, agent, deny, delay }
}

/// Told once more of a rule that runs, it has known its window no shorter for it.
#[test]
fn a_record_of_the_very_same_text_changes_nothing_over_a_restart_either() {
    let change = |version| Step::Change { rule: 0, version };
    for version in 0..versions(0).len() {
        let of_agent = |deny| call(0, 0, deny, None);
        let calls = [of_agent(false), of_agent(true), of_agent(true), of_agent(false)];
        let mut steps = vec![of_agent(false), change(version)];
        steps.extend(calls);
        steps.extend([change(version), call(0, 1, false, Some(0))]);
        for size in 1..10 {
            let (live, replayed) = both(&steps, &[(size, Then::Restarts)]);
            assert_eq!(live, replayed, "version {version}, a restart behind {size}");
        }
    }
}

#[test]
fn a_tenants_rule_that_waits_and_came_twice_tells_over_a_restart_what_it_tells_without() {
    let change = || Step::Change { rule: 0, version: WAITS };
    let steps = [call(0, 0, false, None), change(), call(0, 0, false, None), change(), call(0, 1, false, Some(0))];
    let (live, replayed) = both_of(far, &steps, &[(5, Then::Restarts)], &SLOW_END);
    assert_eq!(live, replayed);
}

#[test]
fn an_alert_of_before_a_crash_is_taken_back_where_the_next_life_sees_at_once_what_contradicts_it() {
    // The deny happens before the allow, and comes behind it.
    let steps = [call(0, 1, true, None), call(1, 0, true, Some(1)), call(1, 0, false, None)];
    // Each lane begins with a receipt of its own: the first edge's, the deny of the other agent; the allow. Then the process dies.
    let parts = [(2, Then::Restarts), (1, Then::Crashes)];
    let (live, replayed) = both(&steps, &parts);
    assert!(live.iter().all(|alert| !alert.starts_with("T-3 ")), "{live:?}");
    assert_eq!(live, replayed);
}

#[test]
fn an_alert_that_is_contradicted_before_its_rule_changes_is_taken_back() {
    // Told of the allow, contradicted by the deny before it, and then the rule is another.
    let contradicted = [call(0, 0, true, Some(1)), call(1, 0, false, None)];
    let own = [Step::Change { rule: 1, version: 2 }, call(9, 1, true, None)];
    let off = [Step::Change { rule: 1, version: 5 }];
    let steps: Vec<Step> = own.into_iter().chain(contradicted).chain(off).collect();
    let (live, replayed) = both(&steps, &[(1, Then::GoesOn); 6]);
    assert!(live.iter().all(|alert| !alert.starts_with("OWN-1 ")), "{live:?}");
    assert_eq!(live, replayed);
}

#[test]
fn l_replay_over_records_of_rules_is_not_kept_by_silence() {
    let mut steps = Vec::new();
    for version in [0, 1, 6, 2, 4] {
        steps.push(Step::Change { rule: 0, version });
        steps.push(Step::Change { rule: 1, version });
        steps.extend([call(9, 0, true, None), call(1, 0, true, None), call(9, 1, false, None), call(1, 0, true, None)]);
        steps.extend([call(1, 0, true, Some(2)), call(1, 1, true, Some(1)), call(4, 1, false, None), call(9, 1, false, None)]);
    }
    let parts = [(5, Then::Restarts), (7, Then::Crashes), (1, Then::GoesOn), (9, Then::Crashes), (3, Then::Crashes)];
    let (live, replayed) = both(&steps, &parts);
    assert_eq!(live, replayed);
    for rule in ["T-1 ", "T-2 ", "T-3 ", "T-4 ", "T-6 ", "OWN-1 "] {
        assert!(live.iter().any(|alert| alert.starts_with(rule)), "{rule} tells nothing: {live:?}");
    }
}

#[test]
fn l_replay_over_changes_of_what_every_tenant_has_is_not_kept_by_silence() {
    let mut steps = Vec::new();
    for version in [1, 0, 2, 7, 4, 5, 6, 1, 7] {
        for (rule, (_, name)) in COMMON_CHANGED.iter().enumerate() {
            let version = match *name {
                "told-twice" if version == 7 => 3,
                "told-twice" => version % 3,
                _ => version,
            };
            steps.push(Step::Common { tenant: 0, rule, version });
            // The other partition has it a little later.
            steps.extend([call(1, 0, true, None), Step::Common { tenant: 1, rule, version }]);
        }
        for tenant in 0..2 {
            let call = |forward, agent, deny, delay| Step::Call { forward, tenant, agent, deny, delay };
            steps.extend([call(9, 0, true, None), call(1, 0, true, None), call(9, 1, false, None), call(1, 0, true, None)]);
            steps.extend([
                call(1, 0, true, Some(2)),
                call(1, 1, true, Some(1)),
                call(4, 1, false, None),
                call(9, 1, false, None),
            ]);
        }
    }
    let parts = [(9, Then::Restarts), (14, Then::Crashes), (1, Then::GoesOn), (21, Then::Crashes), (30, Then::Crashes)];
    let (live, replayed) = both_of(common_and_readers, &steps, &parts, &END);
    assert_eq!(live, replayed);
    for rule in ["T-1 ", "T-2 ", "T-3 ", "T-4 ", "T-5 ", "T-6 ", "OPS-1 "] {
        assert!(live.iter().any(|alert| alert.starts_with(rule)), "{rule} tells nothing: {live:?}");
    }
}

#[test]
fn what_is_final_before_a_change_is_read_wherever_the_log_was_cut() {
    // Two alerts of the first agent are final with the last deny, so short behind the one before that no tick by itself makes them so; and then the rule
    // that told them is off.
    let of_first = [call(0, 0, true, None), call(1, 0, true, None), call(1, 0, true, None)];
    let of_second = [call(3, 1, true, None), call(4, 1, true, None)];
    let off = [Step::Common { tenant: 0, rule: 0, version: 5 }];
    let steps: Vec<Step> = of_first.into_iter().chain(of_second).chain(off).collect();
    for parts in [vec![], vec![(1, Then::GoesOn); 8], vec![(3, Then::Restarts), (1, Then::Crashes), (2, Then::Crashes)]] {
        let (live, replayed) = both_of(common_and_readers, &steps, &parts, &END);
        assert!(live.iter().any(|alert| alert.starts_with("T-5 ")), "{live:?}");
        assert_eq!(live, replayed);
    }
}
