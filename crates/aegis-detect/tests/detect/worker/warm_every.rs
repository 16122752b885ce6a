//! A rule that every tenant has, and whose window is longer than what detection keeps: filled for one tenant after the other.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use aegis_bus::subject;
use aegis_detect::{RuleSet, Worker};
use aegis_keys::{SigningKey, sign_notice};
use aegis_model::{Alert, CommonRuleWarmRecord, Notice, RuleWarmRecord, TenantId, partition_of};
use serde_json::json;

use super::common_rules::record;
use super::own_rules::{place, put};
use super::warm::{House, never, rule_of_ten_minutes, until_rule_warms};
use crate::ground::control_key;

const ID: &str = "OPS-1";

/// An operator's rule over ten minutes: four denies of an agent.
fn of_ten_minutes() -> String {
    rule_of_ten_minutes().replace("OWN-1", ID).replace("own-denies", "ops-denies")
}

/// The same over three hours.
fn of_three_hours() -> String {
    of_ten_minutes().replace("window: 10m", "window: 3h").replace("INTERVAL '600' SECOND", "INTERVAL '10800' SECOND")
}

fn warm_record(tenant: &str, revision: i64) -> CommonRuleWarmRecord {
    CommonRuleWarmRecord(RuleWarmRecord { tenant_id: TenantId::new(tenant).unwrap(), rule_id: ID.into(), revision })
}

async fn house(folder: &Path, text: &str) -> House {
    House::open_with(folder, text.to_owned()).await
}

/// Three denies each of two agents of each tenant, and some time later the rule, in both partitions.
async fn begin(house: &mut House, worker: &Worker, text: &str, seconds: i64) {
    for tenant in ["acme", "beta"] {
        house.deny_in(tenant, worker, "over", 3).await;
        house.deny_in(tenant, worker, "again", 3).await;
    }
    house.clock.advance_seconds(seconds);
    house.deny_in("acme", worker, "other", 1).await;
    for tenant in ["acme", "beta"] {
        record(&house.line, tenant, ID, text, 1).await;
    }
    house.line.caught_up(worker).await;
}

async fn begun(folder: &Path, text: &str, seconds: i64) -> (House, Worker) {
    let mut house = house(folder, text).await;
    let worker = house.worker();
    begin(&mut house, &worker, text, seconds).await;
    (house, worker)
}

/// Of which tenant's which agent how many denies were told.
fn told(alerts: &[Alert]) -> BTreeSet<(String, String, usize)> {
    let row = |alert: &Alert| {
        let agent = alert.key["agent_id"].as_str().unwrap_or_default().to_owned();
        (alert.tenant_id.to_string(), agent, alert.event_ids.len())
    };
    alerts.iter().map(row).collect()
}

fn rows<const N: usize>(rows: [(&str, &str, usize); N]) -> BTreeSet<(String, String, usize)> {
    rows.into_iter().map(|(tenant, agent, count)| (tenant.to_owned(), agent.to_owned(), count)).collect()
}

#[tokio::test]
async fn it_is_filled_for_each_tenant_and_acts_there_from_the_record_on_in_every_life_and_replay() {
    let folder = tempfile::tempdir().unwrap();
    let text = of_ten_minutes();
    let (mut house, worker) = begun(folder.path(), &text, 300).await;
    until_rule_warms(&worker, ID, 2).await;
    // The fourth within the window; what lies before is not there to be read yet.
    house.deny_in("acme", &worker, "over", 1).await;
    assert!(house.told().await.is_empty() && house.past.asked_of().is_empty());
    house.clock.advance_seconds(1);
    house.pass().await;
    until_rule_warms(&worker, ID, 0).await;
    assert_eq!(house.past.asked_of(), ["acme", "beta"], "who spoke last comes first");
    assert_eq!(house.records_of(CommonRuleWarmRecord::SCHEMA).await, 2);
    assert!(house.told().await.is_empty(), "nothing of before the records acts");
    for tenant in ["acme", "beta"] {
        house.deny_in(tenant, &worker, "over", 1).await;
    }
    let expected = [("acme", "over", 5), ("beta", "over", 4)];
    assert_eq!(told(&house.line.alerts(2).await), rows(expected));
    worker.stop().await;

    // A life later it still knows what lies before, of each.
    let worker = house.worker();
    for tenant in ["acme", "beta"] {
        house.deny_in(tenant, &worker, "again", 1).await;
    }
    let later = [("acme", "again", 4), ("beta", "again", 4)];
    assert_eq!(told(&house.line.alerts(4).await), rows(expected).union(&rows(later)).cloned().collect());
    worker.stop().await;
    assert_eq!(house.told_by_replay().await, house.told().await);
}

#[tokio::test]
async fn of_who_was_silent_for_long_nothing_is_read_until_he_speaks_again() {
    let folder = tempfile::tempdir().unwrap();
    let text = of_three_hours();
    let (mut house, worker) = begun(folder.path(), &text, 3700).await;
    house.clock.advance_seconds(1);
    house.pass().await;
    until_rule_warms(&worker, ID, 1).await;
    assert_eq!(house.past.asked_of(), ["acme"]);
    // Also not after a restart.
    worker.stop().await;
    let worker = house.worker();
    house.deny_in("acme", &worker, "other", 1).await;
    house.pass().await;
    until_rule_warms(&worker, ID, 1).await;
    assert!(!house.past.asked_of().contains(&"beta".to_owned()));
    house.deny_in("beta", &worker, "other", 1).await;
    house.pass().await;
    house.clock.advance_seconds(1);
    until_rule_warms(&worker, ID, 0).await;
    house.deny_in("beta", &worker, "over", 1).await;
    assert_eq!(told(&house.line.alerts(1).await), rows([("beta", "over", 4)]));
    worker.stop().await;
}

#[tokio::test]
async fn of_whom_more_lies_before_than_may_be_kept_it_waits_and_for_the_others_it_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let text = of_ten_minutes();
    let mut house = house(folder.path(), &text).await;
    *house.past.too_much_of.lock() = Some("acme".to_owned());
    let worker = house.worker();
    begin(&mut house, &worker, &text, 300).await;
    house.clock.advance_seconds(1);
    house.pass().await;
    until_rule_warms(&worker, ID, 1).await;
    let waits_of = async |house: &House, tenant: &str| -> Vec<(String, bool)> {
        let waits = house.waits.of(&TenantId::new(tenant).unwrap()).await.unwrap();
        waits.into_iter().map(|wait| (wait.rule_id, wait.own)).collect()
    };
    assert_eq!(waits_of(&house, "acme").await, [(ID.to_owned(), false)]);
    assert!(waits_of(&house, "beta").await.is_empty());
    // Who speaks on is not asked for again and again.
    for _ in 0..3 {
        house.deny_in("acme", &worker, "over", 1).await;
        house.pass().await;
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    house.deny_in("beta", &worker, "over", 1).await;
    assert_eq!(told(&house.line.alerts(1).await), rows([("beta", "over", 4)]));
    assert_eq!(house.past.asked_of(), ["acme", "beta"]);
    // Once it knows the window by itself, it tells of the one too.
    house.clock.advance_seconds(700);
    house.deny_in("acme", &worker, "over", 4).await;
    until_rule_warms(&worker, ID, 0).await;
    assert!(waits_of(&house, "acme").await.is_empty());
    assert_eq!(told(&house.line.alerts(2).await), rows([("beta", "over", 4), ("acme", "over", 4)]));
    worker.stop().await;
}

/// The attack: whoever can publish where records of rules stand has a rule act in a tenant before it knows that tenant's window.
#[tokio::test]
async fn that_it_knows_a_tenant_s_window_is_control_s_word_of_that_tenant_and_that_version_alone() {
    let folder = tempfile::tempdir().unwrap();
    let text = of_ten_minutes();
    let (mut house, worker) = begun(folder.path(), &text, 300).await;
    let record = warm_record("acme", 1);
    let signed = sign_notice(&control_key(), &record).unwrap();
    put(&house.line, place(), serde_json::to_vec(&record).unwrap()).await;
    put(&house.line, place(), sign_notice(&SigningKey::from_seed(&[66; 32]), &record).unwrap()).await;
    put(&house.line, place(), sign_notice(&house.line.key, &record).unwrap()).await;
    let of_beta = subject::ruleset(partition_of(&TenantId::new("beta").unwrap()));
    put(&house.line, of_beta, signed.clone()).await;
    // Control's word, of a version that does not stand, and of a rule of acme's own.
    put(&house.line, place(), sign_notice(&control_key(), &warm_record("acme", 7)).unwrap()).await;
    put(&house.line, place(), sign_notice(&control_key(), &record.0).unwrap()).await;
    house.deny_in("acme", &worker, "over", 1).await;
    let stats = house.line.caught_up(&worker).await;
    assert_eq!((stats.rule_records_refused, stats.malformed), (4, 4));
    until_rule_warms(&worker, ID, 2).await;
    assert!(house.told().await.is_empty() && house.past.asked_of().is_empty());
    // As control signed it, it is taken, of acme alone.
    house.clock.advance_seconds(1);
    put(&house.line, place(), signed).await;
    for tenant in ["acme", "beta"] {
        house.deny_in(tenant, &worker, "over", 1).await;
    }
    until_rule_warms(&worker, ID, 1).await;
    assert_eq!(told(&house.line.alerts(1).await), rows([("acme", "over", 5)]));
    worker.stop().await;
}

/// The attack: whoever can write to the bus makes up tenants, each of which would be asked for, and have a record in the log.
#[tokio::test]
async fn of_whom_nothing_was_ever_proved_nothing_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let text = of_ten_minutes();
    let (mut house, worker) = begun(folder.path(), &text, 300).await;
    record(&house.line, "ghost", ID, &text, 1).await;
    let mut forged = house.line.seal_denies("acme", "other", 1).await.remove(0);
    forged["tenant_id"] = json!("ghost");
    house.line.publish(&[forged]).await;
    house.line.caught_up(&worker).await;
    house.clock.advance_seconds(1);
    house.pass().await;
    until_rule_warms(&worker, ID, 1).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(house.past.asked_of(), ["acme", "beta"]);
    assert_eq!(house.records_of(CommonRuleWarmRecord::SCHEMA).await, 2);
    worker.stop().await;
}

#[tokio::test]
async fn one_that_contains_waits() {
    let folder = tempfile::tempdir().unwrap();
    let text = of_ten_minutes().replace("suppress: 1h\n", "suppress: 1h\nrespond: [freeze_agent]\n");
    let (mut house, worker) = begun(folder.path(), &text, 300).await;
    house.pass().await;
    put(&house.line, place(), sign_notice(&control_key(), &warm_record("acme", 1)).unwrap()).await;
    for _ in 0..2 {
        house.deny_in("acme", &worker, "over", 2).await;
        house.pass().await;
    }
    until_rule_warms(&worker, ID, 2).await;
    assert!(house.told().await.is_empty() && house.past.asked_of().is_empty());
    worker.stop().await;
}

/// The same program with a rule more.
fn newer_program() -> RuleSet {
    RuleSet::from_texts([("never/rule.sql".into(), never()), ("ops/rule.sql".into(), of_ten_minutes())]).unwrap()
}

#[tokio::test]
async fn one_that_another_program_brings_waits_and_is_filled_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut house = house(folder.path(), "").await;
    let worker = house.worker();
    house.deny_in("acme", &worker, "over", 3).await;
    house.deny_in("acme", &worker, "again", 3).await;
    house.clock.advance_seconds(300);
    house.deny_in("acme", &worker, "other", 1).await;
    worker.stop().await;

    house.program = newer_program;
    let worker = house.worker();
    house.deny_in("acme", &worker, "over", 1).await;
    until_rule_warms(&worker, ID, 1).await;
    assert!(house.told().await.is_empty(), "the fourth, of which it knows no other");
    house.clock.advance_seconds(1);
    house.pass().await;
    until_rule_warms(&worker, ID, 0).await;
    house.deny_in("acme", &worker, "over", 1).await;
    assert_eq!(told(&house.line.alerts(1).await), rows([("acme", "over", 5)]));
    worker.stop().await;
    // A life later of the same program.
    let worker = house.worker();
    house.deny_in("acme", &worker, "again", 1).await;
    assert_eq!(told(&house.line.alerts(2).await), rows([("acme", "over", 5), ("acme", "again", 4)]));
    assert_eq!(house.records_of(CommonRuleWarmRecord::SCHEMA).await, 1);
    worker.stop().await;
}

/// What the life before kept for a rule is known of its next text, too.
#[tokio::test]
async fn one_that_another_program_has_in_another_text_goes_on_with_what_was_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut house = house(folder.path(), "").await;
    house.program = newer_program;
    let worker = house.worker();
    house.deny_in("acme", &worker, "over", 3).await;
    house.clock.advance_seconds(300);
    house.deny_in("acme", &worker, "other", 1).await;
    worker.stop().await;

    house.program = || {
        let text = of_ten_minutes().replace("description: d", "description: another");
        RuleSet::from_texts([("never/rule.sql".into(), never()), ("ops/rule.sql".into(), text)]).unwrap()
    };
    let worker = house.worker();
    house.deny_in("acme", &worker, "over", 1).await;
    assert_eq!(told(&house.line.alerts(1).await), rows([("acme", "over", 4)]));
    until_rule_warms(&worker, ID, 0).await;
    worker.stop().await;
}

/// A version with the very same text changes nothing of who was filled and who waits.
#[tokio::test]
async fn the_same_text_as_a_later_version_keeps_who_was_filled() {
    let folder = tempfile::tempdir().unwrap();
    let text = of_ten_minutes();
    let (mut house, worker) = begun(folder.path(), &text, 300).await;
    house.clock.advance_seconds(1);
    house.pass().await;
    until_rule_warms(&worker, ID, 0).await;
    for tenant in ["acme", "beta"] {
        record(&house.line, tenant, ID, &text, 2).await;
    }
    house.line.caught_up(&worker).await;
    until_rule_warms(&worker, ID, 0).await;
    worker.stop().await;
    let worker = house.worker();
    for tenant in ["acme", "beta"] {
        house.deny_in(tenant, &worker, "over", 1).await;
    }
    assert_eq!(told(&house.line.alerts(2).await), rows([("acme", "over", 4), ("beta", "over", 4)]));
    assert_eq!(house.records_of(CommonRuleWarmRecord::SCHEMA).await, 2, "nobody is filled again");
    worker.stop().await;
}
