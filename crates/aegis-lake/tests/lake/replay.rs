//! A replay gives the rows in the order of events, each event once, whatever the files are; and a backtest over it tells what one over the bus's
//! order tells.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use aegis_detect::{Backtest, BacktestReport, RuleSet, Sieve, Told, Watermarks};
use aegis_lake::{Folder, Replay, Span, find_event};
use aegis_model::{Clock, ManualClock, SecurityEvent, TenantId, Timestamp};
use object_store::ObjectStore;
use proptest::prelude::*;

use crate::house::{Logged, MINUTE, RUNTIME, base, expected, fill, log_of, logs, memory, observed, proved, take, tenant, writer};

const TENANTS: [&str; 3] = ["acme", "acme-2", "b"];

async fn replayed(store: &Arc<dyn ObjectStore>, of: &TenantId, span: Span) -> Vec<SecurityEvent> {
    all_of(Replay::open(Arc::clone(store), of, None, span).await.unwrap()).await
}

async fn all_of(mut replay: Replay) -> Vec<SecurityEvent> {
    let mut all = Vec::new();
    while let Some(events) = replay.next().await.unwrap() {
        assert!(!events.is_empty());
        all.extend(events.into_iter().map(Arc::unwrap_or_clone));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn events_come_in_order_and_once_before_files_are_merged_and_after(
        log in logs(),
        batch in 1..40usize,
        from in -200i64..200,
        minutes in 0..200i64,
    ) {
        RUNTIME.block_on(async {
            let store = memory();
            let mut writer = writer(&store, &log);
            for part in log.chunks(batch) {
                take(&mut writer, part);
                writer.flush().await.unwrap();
            }
            let first = base().plus_micros(from * MINUTE).as_micros();
            let spans = [Span::ALL, Span { from: first, to: first + minutes * MINUTE }];
            for merged in [false, true] {
                while merged && writer.tidy(base().plus_seconds(30 * 24 * 3600), 1).await.unwrap() > 0 {}
                for (of, span) in TENANTS.into_iter().flat_map(|of| spans.map(|span| (tenant(of), span))) {
                    let mut wanted = expected(&log, &of);
                    wanted.retain(|event| span.meets(event.ts.as_micros(), event.ts.as_micros()));
                    prop_assert_eq!(replayed(&store, &of, span).await, wanted);
                }
            }
            Ok(())
        })?;
    }
}

#[tokio::test]
async fn an_observation_that_is_delivered_again_in_another_hour_counts_once() {
    let store = memory();
    let first = observed("acme", 0);
    let again = SecurityEvent { event_id: first.event_id, ..observed("acme", 70 * MINUTE) };
    let between = observed("acme", 10 * MINUTE);
    let of_other = SecurityEvent { tenant_id: tenant("b"), ..again.clone() };
    // Behind a restart, which forgets what came before.
    let log = log_of([first.clone(), between.clone(), again, of_other.clone()]);
    for part in log.chunks(2) {
        fill(&store, part).await;
    }
    let mut replay = Replay::open(Arc::clone(&store), &tenant("acme"), None, Span::ALL).await.unwrap();
    let mut given = Vec::new();
    while let Some(events) = replay.next().await.unwrap() {
        given.extend(events.into_iter().map(Arc::unwrap_or_clone));
    }
    assert_eq!(given, [first, between]);
    let read = replay.read();
    assert_eq!((read.hours, read.files, read.repeated), (2, 2, 1));
    assert_eq!(replayed(&store, &tenant("b"), Span::ALL).await, [of_other], "another tenant's delivery is its own");
}

#[tokio::test]
async fn what_says_that_it_is_a_receipt_and_proves_nothing_stands_behind_it_and_once() {
    let receipt = proved("acme", "acme.edge-1.1", 1, 0);
    let mut forged = SecurityEvent { verified: false, agent_id: Some("nobody".to_owned()), ..receipt.clone() };
    forged.bus_ts = Some(base());
    for log in [[forged.clone(), forged.clone(), receipt.clone()], [receipt.clone(), forged.clone(), forged.clone()]] {
        let store = memory();
        fill(&store, &log_of(log)).await;
        assert_eq!(replayed(&store, &tenant("acme"), Span::ALL).await, [receipt.clone(), forged.clone()]);
        assert_eq!(find_event(&store, &tenant("acme"), receipt.event_id).await.unwrap(), Some(receipt.clone()));
    }
}

#[tokio::test]
async fn an_event_is_found_by_its_id_and_not_in_another_tenants_rows() {
    let store = memory();
    let log = log_of((1..=50).map(|seq| proved("acme", "acme.edge-1.1", seq, seq * MINUTE)).chain([observed("b", 0)]));
    fill(&store, &log).await;
    for (_, event) in [&log[0], &log[30], &log[50]] {
        let other = if event.tenant_id == tenant("b") { tenant("acme") } else { tenant("b") };
        assert_eq!(find_event(&store, &event.tenant_id, event.event_id).await.unwrap().as_ref(), Some(event));
        assert_eq!(find_event(&store, &other, event.event_id).await.unwrap(), None);
    }
}

#[tokio::test]
async fn files_that_are_merged_and_removed_meanwhile_are_read_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let store = Folder::open(folder.path()).unwrap();
    // More than is given at once, in ten files of an hour, each with rows of all of it; and an hour of which nothing is open yet.
    let of_hour = (1..=6000i64).map(|seq| proved("acme", "acme.edge-1.1", seq, (seq * 7919 % 6000) * 1_000));
    let log = log_of(of_hour.chain([proved("acme", "acme.edge-1.1", 6001, 90 * MINUTE)]));
    let mut writer = writer(&store, &log);
    for part in log.chunks(600) {
        take(&mut writer, part);
        writer.flush().await.unwrap();
    }
    let mut replay = Replay::open(Arc::clone(&store), &tenant("acme"), None, Span::ALL).await.unwrap();
    let mut given: Vec<SecurityEvent> = replay.next().await.unwrap().unwrap().into_iter().map(Arc::unwrap_or_clone).collect();
    let on_disk = || walk(folder.path().to_owned()).into_iter().filter(|name| name.ends_with(".parquet")).count();
    let before = on_disk();
    for days in [30, 60] {
        while writer.tidy(base().plus_seconds(days * 24 * 3600), 1).await.unwrap() > 0 {}
    }
    assert!(before > 10 && on_disk() == 2, "{before} files became {}", on_disk());
    given.extend(all_of(replay).await);
    assert_eq!(given, expected(&log, &tenant("acme")));
}

fn walk(folder: PathBuf) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            names.extend(walk(path));
        } else {
            names.push(path.display().to_string());
        }
    }
    names
}

/// Rules of which one looks back, one is a list of rows by themselves, and one waits for what does not follow.
fn rules() -> RuleSet {
    rules_of(&["T-1", "T-2", "T-3"])
}

fn rules_of(ids: &[&str]) -> RuleSet {
    let text = |id: &str, query: &str| {
        format!(
            "/* rule\nid: {id}\nname: {}\nversion: 1\nseverity: low\nwindow: 5m\nkey: [agent_id]\nmode: active\nrequires: any\nsuppress: 2m\n\
             owner: soc\ndescription: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-22, note: n}}\n*/\n{query}\n",
            id.to_lowercase()
        )
    };
    let queries = [
        (
            "T-1",
            "SELECT agent_id, count(*) OVER w AS n, array_agg(event_id) OVER w AS event_ids FROM events WHERE decision = 'deny' \
             WINDOW w AS (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '90' SECOND PRECEDING AND CURRENT ROW) QUALIFY n >= 4",
        ),
        ("T-2", "SELECT agent_id, event_id FROM events WHERE decision = 'deny' AND tool = 'rare'"),
        (
            "T-3",
            "SELECT agent_id, event_id FROM events QUALIFY tool = 'rare' AND count(*) FILTER (WHERE tool <> 'rare') OVER \
             (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN CURRENT ROW AND INTERVAL '20' SECOND FOLLOWING) = 0",
        ),
    ];
    let chosen = queries.into_iter().filter(|(id, _)| ids.contains(id));
    RuleSet::from_texts(chosen.map(|(id, query)| (format!("{id}/rule.sql").into(), text(id, query)))).unwrap()
}

/// Events of two tenants over three hours as a bus had them: some behind the others, some too late, some delivered again.
fn as_the_bus_had_them(seed: u64) -> Vec<Logged> {
    let mut state = seed;
    let mut below = |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    let mut seqs: BTreeMap<&str, i64> = BTreeMap::new();
    let mut events: Vec<SecurityEvent> = Vec::new();
    for n in 0..3000i64 {
        let of = TENANTS[below(2) as usize];
        let stored = n * 3_600_000;
        // Half are a little behind; one in forty by more than is waited for.
        let behind = match below(40) {
            0 => 300_000_000 + below(60_000_000) as i64,
            1..20 => below(60_000_000) as i64,
            _ => 0,
        };
        if below(50) == 0
            && let Some(again) = events.last().cloned()
        {
            events.push(again);
            continue;
        }
        let seq = seqs.entry(of).and_modify(|seq| *seq += 1).or_insert(1);
        let mut event = proved(of, &format!("{of}.edge-1.1"), *seq, stored - behind);
        event.bus_ts = Some(base().plus_micros(stored));
        event.agent_id = Some(format!("agent-{}", below(6)));
        event.tool = Some(if below(8) == 0 { "rare" } else { "usual" }.to_owned());
        if below(20) == 0 {
            (event.verified, event.lane, event.seq) = (false, None, None);
            event.kind = aegis_model::EventKind::ExternalOtlp;
        }
        events.push(event);
    }
    let mut watermarks = Watermarks::default();
    for event in &mut events {
        event.late = !watermarks.admit(event, 120_000_000);
    }
    log_of(events)
}

fn standing(report: BacktestReport) -> BTreeMap<String, Told> {
    assert!(report.rules.iter().all(|rule| rule.quarantined.is_none() && rule.over_quota == 0), "{report}");
    assert!(report.rules.iter().all(|rule| rule.alerts > 0), "a rule that tells nothing compares nothing: {report}");
    report.standing
}

/// The rules over the bus's order, as a history has it: an event once, and what was late told by the order.
fn over_the_history(log: &[Logged], clock: &Arc<dyn Clock>) -> BacktestReport {
    let mut history = Backtest::new(rules(), Arc::clone(clock), None, None);
    for of in TENANTS.map(tenant) {
        let mut known = HashSet::new();
        for (_, event) in log.iter().filter(|(_, event)| event.tenant_id == of) {
            if known.insert(event.event_id) {
                history.take(SecurityEvent { late: false, ..event.clone() });
            }
        }
    }
    history.finish()
}

async fn over_the_lake(store: &Arc<dyn ObjectStore>, mut lake: Backtest, rules: RuleSet, span: Span) -> (BacktestReport, u64) {
    let (columns, sieve) = (rules.columns_read(), Arc::new(Sieve::of(&[rules])));
    assert!(!columns.contains("attributes") && columns.contains("tool"), "{columns:?}");
    for of in TENANTS.map(tenant) {
        let replay = Replay::open(Arc::clone(store), &of, Some(&columns), span).await.unwrap();
        let mut replay = replay.sifted_by(&sieve);
        while let Some(events) = replay.next().await.unwrap() {
            events.into_iter().for_each(|event| lake.take_shared(event));
        }
        lake.end_of(&of);
    }
    lake.pass(sieve.left_out());
    (lake.finish(), sieve.left_out())
}

#[tokio::test]
async fn a_backtest_over_the_lake_tells_what_one_over_the_history_tells() {
    for seed in [3, 17, 4711] {
        let log = as_the_bus_had_them(seed);
        let newest: Timestamp = log.iter().filter_map(|(_, event)| event.bus_ts).max().unwrap();
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(newest));
        let store = memory();
        for part in log.chunks(170) {
            fill(&store, part).await;
        }
        let history = over_the_history(&log, &clock);
        let lake = Backtest::new(rules(), Arc::clone(&clock), None, None).in_order(None);
        let (lake, left_out) = over_the_lake(&store, lake, rules(), Span::ALL).await;
        assert_eq!(left_out, 0, "one of the rules looks at each event");
        assert_eq!((history.events, history.late), (lake.events, lake.late), "seed {seed}");
        assert!(history.late > 0);
        let (history_events, history_late) = (history.events, history.late);
        let told = standing(history);
        assert_eq!(standing(lake), told, "seed {seed}");

        // A part of it: what comes later is not read.
        let (from, to) = (base().plus_micros(20 * MINUTE), base().plus_micros(150 * MINUTE));
        let last = Backtest::needs_to(&rules(), Arc::clone(&clock), to);
        let part = Backtest::new(rules(), Arc::clone(&clock), Some(from), Some(to)).in_order(Some(newest));
        let span = Span { from: i64::MIN, to: last.as_micros() - 1 };
        let (part, _) = over_the_lake(&store, part, rules(), span).await;
        let within: BTreeMap<String, Told> =
            told.clone().into_iter().filter(|(_, told)| told.last_ts >= from && told.last_ts < to).collect();
        assert_eq!(standing(part), within, "seed {seed}");

        // Rules that look at few events: the others are left out before they are events.
        let few = || rules_of(&["T-1", "T-2"]);
        let sifted = Backtest::new(few(), Arc::clone(&clock), None, None).in_order(Some(newest));
        let (sifted, left_out) = over_the_lake(&store, sifted, few(), Span::ALL).await;
        assert!(left_out > sifted.events / 4, "{left_out} of {}", sifted.events);
        assert_eq!((sifted.events, sifted.late), (history_events, history_late), "seed {seed}");
        let of_few: BTreeMap<String, Told> = told.into_iter().filter(|(_, told)| told.rule_id != "T-3").collect();
        assert_eq!(standing(sifted), of_few, "seed {seed}");
    }
}

#[tokio::test]
async fn what_the_lake_may_not_have_yet_is_not_told_to_be_missing() {
    let store = memory();
    let mut asked = proved("acme", "acme.edge-1.1", 1, 0);
    (asked.tool, asked.bus_ts) = (Some("rare".to_owned()), Some(base()));
    fill(&store, &log_of([asked])).await;
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(base().plus_micros(60 * MINUTE)));
    // Nothing of it follows; the bus is known up to the event itself, or long after it.
    for (stored_to, alerts, undecided) in [(None, 0, 1), (Some(base().plus_micros(30 * MINUTE)), 1, 0)] {
        let lake = Backtest::new(rules(), Arc::clone(&clock), None, None).in_order(stored_to);
        let (report, _) = over_the_lake(&store, lake, rules(), Span::ALL).await;
        let waits = report.rules.iter().find(|rule| rule.rule_id == "T-3").unwrap();
        assert_eq!((waits.alerts, waits.undecided), (alerts, undecided));
    }
}
