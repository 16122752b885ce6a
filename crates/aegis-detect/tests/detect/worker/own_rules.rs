//! A tenant's own rules, which records in the log change while detection runs.

use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Bus, Message, Stream, subject};
use aegis_detect::{RuleSet, RuleTexts, Worker};
use aegis_model::{RuleMode, RuleRecord, TenantId, partition_of};
use tokio::time::Instant;

use super::{DEADLINE, Line, fell_silent};

/// A rule of acme's own: as many denies of an agent within a minute.
pub(super) fn own_rule(denies: usize, mode: &str) -> String {
    format!(
        "/* rule\nid: OWN-1\nname: own-denies\nversion: 1\nseverity: low\nwindow: 60s\nkey: [agent_id]\nmode: {mode}\nrequires: verified\n\
         suppress: 1h\nowner: soc\ndescription: d\nfalse_positives: none\nchangelog:\n  - {{version: 1, date: 2026-11-26, note: first}}\n*/\n\
         SELECT agent_id, count(*) OVER w AS n, array_agg(event_id) OVER w AS event_ids FROM events WHERE decision = 'deny' WINDOW w AS \
         (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND CURRENT ROW) QUALIFY n >= {denies}\n"
    )
}

/// The versions that were made, as the control plane keeps them.
#[derive(Debug)]
pub(super) struct Texts(pub(super) Vec<String>);

#[async_trait::async_trait]
impl RuleTexts for Texts {
    async fn text(&self, _tenant: &TenantId, _rule_id: &str, hash: &str) -> Result<Option<String>, String> {
        Ok(self.0.iter().find(|text| aegis_canon::sha256_hex(text.as_bytes()) == hash).cloned())
    }
}

/// Puts a change of acme's own rule into the log.
pub(super) async fn record(line: &Line, text: &str, revision: i64) {
    let tenant_id = TenantId::new("acme").unwrap();
    let place = subject::ruleset(partition_of(&tenant_id));
    let hash = aegis_canon::sha256_hex(text.as_bytes());
    let record = RuleRecord { tenant_id, rule_id: "OWN-1".into(), revision, hash, text: text.into() };
    for result in line.bus.publish(Stream::Ase, vec![Message::new(place, serde_json::to_string(&record).unwrap())]).await {
        result.unwrap();
    }
}

/// Waits until the worker runs acme's own rule, or does not.
async fn until_it_runs(worker: &Worker, runs: bool) {
    let start = Instant::now();
    while worker.stats().rules.iter().any(|rule| rule.rule_id == "OWN-1" && rule.quarantined.is_none()) != runs {
        assert!(start.elapsed() < DEADLINE, "{:?}", worker.stats().rules);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_record_in_the_log_makes_a_rule_that_knows_its_window_and_stands_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let (of_four, off) = (own_rule(4, "log_only"), own_rule(4, "disabled"));
    let texts = Arc::new(Texts(vec![of_four.clone(), off.clone()]));
    let never = own_rule(1000, "active").replace("OWN-1", "T-9").replace("own-denies", "never");
    let rules = || RuleSet::from_texts([("never/rule.sql".into(), never.clone())]).unwrap();
    let start = |line: &Line| line.worker_with(rules(), 0, None, Some(texts.clone()));
    let worker = start(&line);
    for (agent, count) in [("before", 4), ("over", 3)] {
        let denies = line.seal_denies("acme", agent, count).await;
        line.publish(&denies).await;
    }
    record(&line, &of_four, 7).await;
    // An older record, and one that is none, change nothing.
    record(&line, &off, 6).await;
    let none = Message::new(subject::ruleset(partition_of(&TenantId::new("acme").unwrap())), "{}");
    line.bus.publish(Stream::Ase, vec![none]).await.remove(0).unwrap();
    line.caught_up(&worker).await;
    until_it_runs(&worker, true).await;
    worker.stop().await;
    assert!(line.read_stream(Stream::Alerts, "alert.>").await.is_empty(), "what lies before the record raises nothing");

    // After a restart it still knows the three of before, and nothing is told of the four that lie before it.
    let worker = start(&line);
    let fourth = line.seal_denies("acme", "over", 1).await;
    line.publish(&fourth).await;
    line.caught_up(&worker).await;
    let alert = line.alerts(1).await.remove(0);
    assert_eq!((alert.rule_name.as_str(), alert.mode, alert.event_ids.len()), ("own-denies", RuleMode::LogOnly, 4));
    assert_eq!(alert.key["agent_id"], "over");

    record(&line, &off, 8).await;
    let others = line.seal_denies("acme", "later", 5).await;
    line.publish(&others).await;
    line.caught_up(&worker).await;
    until_it_runs(&worker, false).await;
    worker.stop().await;
    line.alerts(1).await;
}

#[tokio::test]
async fn a_rule_whose_window_is_longer_than_what_is_kept_waits_until_it_knows_all_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    // Ten seconds are kept, and sixty asked for.
    let worker = line.worker_of(fell_silent(), 0, None);
    record(&line, &own_rule(4, "active"), 1).await;
    let denies = line.seal_denies("acme", "prober", 6).await;
    line.publish(&denies).await;
    line.caught_up(&worker).await;
    until_it_runs(&worker, true).await;
    worker.stop().await;
    assert!(line.read_stream(Stream::Alerts, "alert.>").await.is_empty());
}
