//! Rules that every tenant has, which records in the log change while detection runs, partition by partition.

use std::sync::Arc;
use std::time::Duration;

use aegis_bus::{Bus, Message, Stream, subject};
use aegis_detect::{RuleSet, RuleTexts, Worker};
use aegis_keys::{SigningKey, sign_notice};
use aegis_model::{Alert, CommonRuleRecord, RuleMode, TenantId, partition_of};
use tokio::time::Instant;

use super::{DEADLINE, Line};
use crate::ground::control_key;

/// As many denies of an agent within a minute.
fn denies(id: &str, name: &str, version: u32, at_least: usize, mode: &str) -> String {
    format!(
        "/* rule\nid: {id}\nname: {name}\nversion: {version}\nseverity: low\nwindow: 60s\nkey: [agent_id]\nmode: {mode}\nrequires: verified\n\
         suppress: 1h\nowner: soc\ndescription: d\nfalse_positives: none\nchangelog:\n  - {{version: {version}, date: 2026-11-27, note: n}}\n*/\n\
         SELECT agent_id, count(*) OVER w AS n, array_agg(event_id) OVER w AS event_ids FROM events WHERE decision = 'deny' WINDOW w AS \
         (PARTITION BY agent_id ORDER BY ts RANGE BETWEEN INTERVAL '60' SECOND PRECEDING AND CURRENT ROW) QUALIFY n >= {at_least}\n"
    )
}

/// What the program has: one rule that is changed, and one that is not.
fn program() -> RuleSet {
    let texts = [denies("T-1", "three", 1, 3, "active"), denies("T-2", "four", 1, 4, "active")];
    RuleSet::from_texts(texts.into_iter().enumerate().map(|(n, text)| (format!("{n}/rule.sql").into(), text))).unwrap()
}

/// The versions that were made, as the control plane keeps them.
#[derive(Debug)]
struct Texts(Vec<String>);

#[async_trait::async_trait]
impl RuleTexts for Texts {
    async fn text(&self, _tenant: &TenantId, _rule_id: &str, _hash: &str) -> Result<Option<String>, String> {
        Ok(None)
    }

    async fn common_text(&self, _rule_id: &str, hash: &str) -> Result<Option<String>, String> {
        Ok(self.0.iter().find(|text| aegis_canon::sha256_hex(text.as_bytes()) == hash).cloned())
    }
}

/// Puts a change into the log, in the partition of a tenant.
pub(super) async fn record(line: &Line, tenant: &str, rule_id: &str, text: &str, revision: i64) {
    let partition = partition_of(&TenantId::new(tenant).unwrap());
    let hash = aegis_canon::sha256_hex(text.as_bytes());
    let record = CommonRuleRecord { partition, rule_id: rule_id.into(), revision, hash, text: text.into() };
    publish(line, partition, sign_notice(&control_key(), &record).unwrap()).await;
}

async fn publish(line: &Line, partition: u32, payload: Vec<u8>) {
    for result in line.bus.publish(Stream::Ase, vec![Message::new(subject::ruleset(partition), payload)]).await {
        result.unwrap();
    }
}

/// Denies of an agent in each of two tenants, which are of different partitions.
async fn denied(line: &mut Line, agent: &str, count: usize) {
    for tenant in ["acme", "beta"] {
        let wires = line.seal_denies(tenant, agent, count).await;
        line.publish(&wires).await;
    }
}

/// Whose agent it was of which which rule told, in what mode.
fn told(alerts: &[Alert]) -> Vec<(String, String, String, RuleMode)> {
    let row = |alert: &Alert| {
        let agent = alert.key["agent_id"].as_str().unwrap_or_default().to_owned();
        (agent, alert.tenant_id.to_string(), alert.rule_name.clone(), alert.mode)
    };
    let mut told: Vec<_> = alerts.iter().map(row).collect();
    told.sort_by_key(|(agent, tenant, rule, _)| (agent.clone(), tenant.clone(), rule.clone()));
    told
}

fn row(agent: &str, tenant: &str, rule: &str, mode: RuleMode) -> (String, String, String, RuleMode) {
    (agent.to_owned(), tenant.to_owned(), rule.to_owned(), mode)
}

async fn until(worker: &Worker, what: &str, is_so: impl Fn(&Worker) -> bool) {
    let start = Instant::now();
    while !is_so(worker) {
        assert!(start.elapsed() < DEADLINE, "{what}: {:?}", worker.stats().rules);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_operator_s_change_holds_in_its_partition_from_its_place_on_and_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let (off, quiet) = (denies("T-1", "three", 2, 3, "disabled"), denies("T-1", "three", 3, 3, "log_only"));
    let texts = Arc::new(Texts(vec![off.clone(), quiet.clone()]));
    let start = |line: &Line| line.worker_with(program(), 0, None, Some(texts.clone()));
    let worker = start(&line);
    record(&line, "acme", "T-1", &off, 7).await;
    denied(&mut line, "first", 3).await;
    line.caught_up(&worker).await;
    let alerts = line.alerts(1).await;
    let of_beta = row("first", "beta", "three", RuleMode::Active);
    assert_eq!(told(&alerts), std::slice::from_ref(&of_beta), "it is off for acme, and for nobody else");
    worker.stop().await;

    // After a restart it is still off for acme; an older record and some that are none change nothing.
    let worker = start(&line);
    record(&line, "acme", "T-1", &quiet, 6).await;
    let elsewhere = partition_of(&TenantId::new("beta").unwrap());
    let record_of = |partition: u32, hash: &str, text: &str| {
        let (hash, text) = (hash.to_owned(), text.to_owned());
        CommonRuleRecord { partition, rule_id: "T-1".to_owned(), revision: 99, hash, text }
    };
    let signed = |record: &CommonRuleRecord| sign_notice(&control_key(), record).unwrap();
    let hash = aegis_canon::sha256_hex(off.as_bytes());
    publish(&line, elsewhere, signed(&record_of(elsewhere + 1, &hash, &off))).await;
    publish(&line, elsewhere, signed(&record_of(elsewhere, &hash, &quiet))).await;
    // Right but for who signed it: nobody, and somebody else.
    let not_control_s = record_of(elsewhere, &hash, &off);
    publish(&line, elsewhere, serde_json::to_vec(&not_control_s).unwrap()).await;
    publish(&line, elsewhere, sign_notice(&SigningKey::from_seed(&[77; 32]), &not_control_s).unwrap()).await;
    denied(&mut line, "second", 3).await;
    line.caught_up(&worker).await;
    let alerts = line.alerts(2).await;
    assert_eq!(told(&alerts), [of_beta.clone(), row("second", "beta", "three", RuleMode::Active)]);

    // It logs in both, knows its window, and other rules keep theirs.
    denied(&mut line, "third", 2).await;
    for tenant in ["acme", "beta"] {
        record(&line, tenant, "T-1", &quiet, 8).await;
    }
    denied(&mut line, "third", 2).await;
    line.caught_up(&worker).await;
    let alerts = line.alerts(6).await;
    let mut expected = vec![of_beta, row("second", "beta", "three", RuleMode::Active)];
    for tenant in ["acme", "beta"] {
        expected.extend([row("third", tenant, "four", RuleMode::Active), row("third", tenant, "three", RuleMode::LogOnly)]);
    }
    assert_eq!(told(&alerts), expected);
    let mut of_third = alerts.iter().filter(|alert| alert.mode == RuleMode::LogOnly);
    assert!(of_third.all(|alert| alert.rule_version == 3 && alert.event_ids.len() == 3), "{alerts:#?}");
    worker.stop().await;
}

#[tokio::test]
async fn a_rule_that_an_operator_adds_runs_for_every_tenant_and_the_program_s_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let (one_more, off) = (denies("OPS-1", "two", 1, 2, "log_only"), denies("T-1", "three", 2, 3, "disabled"));
    let worker = line.worker_with(program(), 0, None, Some(Arc::new(Texts(vec![one_more.clone(), off.clone()]))));
    for tenant in ["acme", "beta"] {
        record(&line, tenant, "OPS-1", &one_more, 1).await;
        record(&line, tenant, "T-1", &off, 2).await;
    }
    let runs = |worker: &Worker, id: &str| worker.stats().rules.iter().filter(|rule| rule.rule_id == id).count();
    line.caught_up(&worker).await;
    until(&worker, "one more runs", |worker| runs(worker, "OPS-1") == 1).await;
    denied(&mut line, "agent", 2).await;
    line.caught_up(&worker).await;
    let alerts = line.alerts(2).await;
    let two = |tenant| row("agent", tenant, "two", RuleMode::LogOnly);
    assert_eq!(told(&alerts), [two("acme"), two("beta")]);
    // Without a text the rule is again as the program has it, and the one that it does not have is gone.
    for tenant in ["acme", "beta"] {
        record(&line, tenant, "T-1", "", 3).await;
        record(&line, tenant, "OPS-1", "", 4).await;
    }
    denied(&mut line, "agent", 1).await;
    denied(&mut line, "later", 3).await;
    line.caught_up(&worker).await;
    let alerts = line.alerts(6).await;
    let three = |agent, tenant| row(agent, tenant, "three", RuleMode::Active);
    let expected = [
        three("agent", "acme"),
        two("acme"),
        three("agent", "beta"),
        two("beta"),
        three("later", "acme"),
        three("later", "beta"),
    ];
    assert_eq!(told(&alerts), expected, "it knows the denies of before, and tells of the agent's third");
    worker.stop().await;
}

#[tokio::test]
async fn a_change_wins_over_a_newer_program_until_it_is_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let quiet = denies("T-1", "three", 2, 2, "log_only");
    let texts = Arc::new(Texts(vec![quiet.clone()]));
    let newer = || RuleSet::from_texts([("0/rule.sql".into(), denies("T-1", "three", 5, 4, "active"))]).unwrap();
    let worker = line.worker_with(program(), 0, None, Some(texts.clone()));
    for tenant in ["acme", "beta"] {
        record(&line, tenant, "T-1", &quiet, 1).await;
    }
    line.caught_up(&worker).await;
    worker.stop().await;
    let worker = line.worker_with(newer(), 0, None, Some(texts));
    denied(&mut line, "before", 4).await;
    line.caught_up(&worker).await;
    let versions = |alerts: &[Alert]| alerts.iter().map(|alert| alert.rule_version).collect::<Vec<_>>();
    assert_eq!(versions(&line.alerts(2).await), [2, 2]);
    for tenant in ["acme", "beta"] {
        record(&line, tenant, "T-1", "", 2).await;
    }
    denied(&mut line, "later", 4).await;
    line.caught_up(&worker).await;
    assert_eq!(versions(&line.alerts(4).await), [2, 2, 5, 5]);
    worker.stop().await;
}

#[tokio::test]
async fn what_a_program_does_not_take_leaves_the_rule_as_the_program_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut line = Line::open(folder.path()).await;
    let broken = denies("T-1", "three", 2, 3, "active").replace("FROM events", "FROM agents");
    // What is off needs no query.
    let off = denies("T-2", "four", 2, 4, "disabled").replace("FROM events", "FROM agents");
    let texts = Arc::new(Texts(vec![broken.clone(), off.clone()]));
    for _ in 0..2 {
        let worker = line.worker_with(program(), 0, None, Some(texts.clone()));
        for tenant in ["acme", "beta"] {
            record(&line, tenant, "T-1", &broken, 1).await;
            record(&line, tenant, "T-2", &off, 2).await;
        }
        let before = line.read_stream(Stream::Alerts, "alert.>").await.len();
        denied(&mut line, &format!("agent-{before}"), 4).await;
        line.caught_up(&worker).await;
        let alerts = line.alerts(before + 2).await;
        assert!(alerts.iter().all(|alert| (alert.rule_name.as_str(), alert.rule_version) == ("three", 1)), "{alerts:#?}");
        worker.stop().await;
    }
}
