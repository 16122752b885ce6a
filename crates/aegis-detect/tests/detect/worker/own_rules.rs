//! A tenant's own rules, which records in the log change while detection runs.

use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Bus, Message, Stream, subject};
use aegis_detect::{RuleSet, RuleTexts, Worker};
use aegis_keys::{SigningKey, sign_notice};
use aegis_model::{RuleMode, RuleRecord, TenantId, partition_of};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{DEADLINE, Line, fell_silent};
use crate::ground::{checkpoint, control_key, put_checkpoint};

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

    async fn common_text(&self, rule_id: &str, hash: &str) -> Result<Option<String>, String> {
        self.text(&TenantId::new("acme").unwrap(), rule_id, hash).await
    }
}

pub(super) fn record_of(text: &str, revision: i64) -> RuleRecord {
    let hash = aegis_canon::sha256_hex(text.as_bytes());
    RuleRecord { tenant_id: TenantId::new("acme").unwrap(), rule_id: "OWN-1".into(), revision, hash, text: text.into() }
}

/// Where acme's records stand.
pub(super) fn place() -> String {
    subject::ruleset(partition_of(&TenantId::new("acme").unwrap()))
}

pub(super) async fn put(line: &Line, place: String, payload: Vec<u8>) {
    line.bus.publish(Stream::Ase, vec![Message::new(place, payload)]).await.remove(0).unwrap();
}

/// Puts a change of acme's own rule into the log, as control does.
pub(super) async fn record(line: &Line, text: &str, revision: i64) {
    put(line, place(), sign_notice(&control_key(), &record_of(text, revision)).unwrap()).await;
}

/// A set of one rule that never fires.
pub(super) fn never() -> RuleSet {
    let text = own_rule(1000, "active").replace("OWN-1", "T-9").replace("own-denies", "never");
    RuleSet::from_texts([("never/rule.sql".into(), text)]).unwrap()
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
    let start = |line: &Line| line.worker_with(never(), 0, None, Some(texts.clone()));
    let worker = start(&line);
    for (agent, count) in [("before", 4), ("over", 3)] {
        let denies = line.seal_denies("acme", agent, count).await;
        line.publish(&denies).await;
    }
    record(&line, &of_four, 7).await;
    // An older record, and one that is none, change nothing.
    record(&line, &off, 6).await;
    put(&line, place(), b"{}".to_vec()).await;
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

/// The attack: whoever can publish where records of rules stand turns a tenant's rule off, or puts an own one in its place.
#[tokio::test]
async fn a_record_that_control_did_not_sign_to_the_letter_is_refused_loudly_and_what_stood_stands() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let (of_four, off) = (own_rule(4, "active"), own_rule(4, "disabled"));
    let texts = Arc::new(Texts(vec![of_four.clone(), off.clone()]));
    let start = |line: &Line| line.worker_with(never(), 0, None, Some(texts.clone()));
    let worker = start(&line);
    record(&line, &of_four, 7).await;
    line.caught_up(&worker).await;
    until_it_runs(&worker, true).await;

    let turned_off = record_of(&off, 8);
    let signed = sign_notice(&control_key(), &turned_off).unwrap();
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut value: Value = serde_json::from_slice(&signed).unwrap();
        change(&mut value);
        serde_json::to_vec(&value).unwrap()
    };
    let of_other_text = RuleRecord { text: of_four.clone(), ..record_of(&off, 8) };
    let forged = [
        ("no json", b"no json".to_vec()),
        ("as they were before records were signed", serde_json::to_vec(&turned_off).unwrap()),
        ("by a stranger", sign_notice(&SigningKey::from_seed(&[66; 32]), &turned_off).unwrap()),
        ("by an edge, whose receipts are believed", sign_notice(&line.key, &turned_off).unwrap()),
        ("of another revision than was signed", changed(&|value| value["revision"] = json!(9))),
        ("of another tenant than was signed", changed(&|value| value["tenant_id"] = json!("beta"))),
        ("with a text of its own", changed(&|value| value["text"] = json!(own_rule(9, "active")))),
        ("a notice of another kind", changed(&|value| value["schema"] = json!("aegis-beat-1"))),
        ("signed, and not what its hash says", sign_notice(&control_key(), &of_other_text).unwrap()),
    ];
    let count = u64::try_from(forged.len()).unwrap();
    for (_, payload) in &forged {
        put(&line, place(), payload.clone()).await;
    }
    // As signed, and where another partition's stand.
    let elsewhere = if place() == subject::ruleset(0) { subject::ruleset(1) } else { subject::ruleset(0) };
    put(&line, elsewhere, signed.clone()).await;
    let denies = line.seal_denies("acme", "prober", 4).await;
    line.publish(&denies).await;
    let stats = line.caught_up(&worker).await;
    assert_eq!((stats.rule_records_refused, stats.malformed), (count + 1, count + 1));
    let alert = line.alerts(1).await.remove(0);
    assert_eq!((alert.rule_name.as_str(), &alert.key["agent_id"]), ("own-denies", &json!("prober")), "what stood stands");
    let dead = line.read_stream(Stream::Dlq, "dlq.>").await;
    assert_eq!(dead.len(), forged.len() + 1, "each is put aside");
    let reason = dead[1]["reason"].as_str().unwrap();
    assert!(reason.contains("not signed") && reason.contains("control plane"), "{reason}");
    worker.stop().await;

    // And none of them has used up the revision that control signs.
    let worker = start(&line);
    until_it_runs(&worker, true).await;
    put(&line, place(), signed).await;
    line.caught_up(&worker).await;
    until_it_runs(&worker, false).await;
    worker.stop().await;
}

/// An upgrade: what a checkpoint of before records were signed names runs on, and control's first word of it counts, whatever revision stands there.
#[tokio::test]
async fn what_was_taken_before_records_were_signed_runs_on_until_control_says_what_stands() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let (of_four, off) = (own_rule(4, "active"), own_rule(4, "disabled"));
    let texts = Arc::new(Texts(vec![of_four.clone(), off.clone()]));
    let start = |line: &Line| line.worker_with(never(), 0, None, Some(texts.clone()));
    let worker = start(&line);
    let denies = line.seal_denies("acme", "prober", 3).await;
    line.publish(&denies).await;
    record(&line, &of_four, 7).await;
    line.caught_up(&worker).await;
    until_it_runs(&worker, true).await;
    worker.stop().await;
    let older = |checkpoint: &Value| {
        let mut older = checkpoint.clone();
        let known = older["own"][0].as_object_mut().unwrap();
        assert_eq!(known.remove("is_signed"), Some(json!(true)));
        // Somebody had put it out of control's reach.
        known.insert("revision".to_owned(), json!(1_000_000));
        older
    };
    let signed = checkpoint(&line.bus).await.unwrap();
    put_checkpoint(&line.bus, &older(&signed)).await;

    // The same text is told again: the rule keeps what it knows, and control's revision counts from now on.
    let worker = start(&line);
    until_it_runs(&worker, true).await;
    record(&line, &of_four, 7).await;
    let fourth = line.seal_denies("acme", "prober", 1).await;
    line.publish(&fourth).await;
    line.caught_up(&worker).await;
    assert_eq!(line.alerts(1).await[0].event_ids.len(), 4);
    record(&line, &off, 6).await;
    line.caught_up(&worker).await;
    until_it_runs(&worker, true).await;
    worker.stop().await;

    // Another text is another version, though its revision is lower than the one that nobody signed.
    let signed = checkpoint(&line.bus).await.unwrap();
    assert_eq!((&signed["own"][0]["revision"], &signed["own"][0]["is_signed"]), (&json!(7), &json!(true)));
    put_checkpoint(&line.bus, &older(&signed)).await;
    let worker = start(&line);
    until_it_runs(&worker, true).await;
    record(&line, &off, 8).await;
    line.caught_up(&worker).await;
    until_it_runs(&worker, false).await;
    worker.stop().await;
}
