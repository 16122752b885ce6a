//! Versions of a tenant's rules: one after the other, one step at a time, bounded, and never without their receipt's draft.

use aegis_model::RuleMode;
use aegis_store::{NewRuleVersion, RuleChange, RuleRefusal};

use crate::fixtures::*;

async fn put(place: &Place, new: &NewRuleVersion) -> RuleChange {
    place.store.put_rule_version(&acme(), new, "ann", &[fact(&acme())]).await.unwrap()
}

async fn refusal(place: &Place, new: &NewRuleVersion) -> RuleRefusal {
    let before = place.store.pending_outbox(100).await.unwrap().len();
    let RuleChange::Refused(refusal) = put(place, new).await else { panic!("{new:?} was taken") };
    assert_eq!(place.store.pending_outbox(100).await.unwrap().len(), before, "what was not changed gets no receipt");
    assert_eq!(place.store.may_change_rule(&acme(), new).await.unwrap().as_ref(), Some(&refusal));
    refusal
}

fn of_mode(version: i64, mode: RuleMode) -> NewRuleVersion {
    NewRuleVersion { mode, ..rule_version(version, "a note") }
}

#[tokio::test]
async fn the_highest_version_stands_and_every_one_is_history() {
    let mut place = Place::new().await;
    let active = of_mode(1, RuleMode::Active);
    let too_long = RuleRefusal::StepTooLong { from: RuleMode::Disabled, to: RuleMode::Active };
    assert_eq!(refusal(&place, &active).await, too_long, "what never ran may not act");
    assert!(matches!(put(&place, &of_mode(1, RuleMode::LogOnly)).await, RuleChange::Made { .. }));
    assert!(matches!(put(&place, &of_mode(3, RuleMode::Active)).await, RuleChange::Made { .. }));
    assert_eq!(place.store.pending_outbox(100).await.unwrap().len(), 2);
    let lower = RuleRefusal::VersionNotHigher { version: 2, standing: 3 };
    assert_eq!(refusal(&place, &of_mode(2, RuleMode::LogOnly)).await, lower);
    assert!(matches!(put(&place, &of_mode(4, RuleMode::Disabled)).await, RuleChange::Made { .. }), "back at any time");
    assert!(matches!(refusal(&place, &of_mode(5, RuleMode::Active)).await, RuleRefusal::StepTooLong { .. }));

    place.reopen().await;
    let history = place.store.list_rule_versions(&acme(), None, 100, 0).await.unwrap();
    assert_eq!(
        history.iter().map(|v| (v.version, v.mode)).collect::<Vec<_>>(),
        [(4, RuleMode::Disabled), (3, RuleMode::Active), (1, RuleMode::LogOnly)]
    );
    assert_eq!((history[0].changed_by.as_str(), history[0].changed_at), ("ann", START));
    assert_eq!(history[0].backtest, Some(serde_json::json!({"alerts": 3})));
    assert!(place.store.list_rule_versions(&acme(), Some("T-2"), 100, 0).await.unwrap().is_empty());
    let standing = place.store.standing_rules(&acme()).await.unwrap();
    assert_eq!(standing.iter().map(|rule| rule.text.as_str()).collect::<Vec<_>>(), ["text 4: a note"]);
}

#[tokio::test]
async fn a_rule_that_every_tenant_has_counts_as_the_one_before_until_there_is_one_of_its_own() {
    let place = Place::new().await;
    let common = Some((4, RuleMode::Active));
    let over = |version: i64| NewRuleVersion { common, ..of_mode(version, RuleMode::Active) };
    assert_eq!(refusal(&place, &over(4)).await, RuleRefusal::VersionNotHigher { version: 4, standing: 4 });
    assert!(matches!(put(&place, &over(5)).await, RuleChange::Made { .. }));
    let of_another = NewRuleVersion { rule_id: "T-2".into(), ..rule_version(1, "another") };
    assert_eq!(refusal(&place, &of_another).await, RuleRefusal::NameTaken("T-1".into()));
}

#[tokio::test]
async fn what_a_tenant_may_keep_and_change_is_bounded_and_stopping_is_not() {
    let place = Place::new().await;
    let nth = |n: i64| NewRuleVersion { rule_id: format!("T-{n}"), name: format!("t-{n}"), ..rule_version(1, "note") };
    for n in 0..50 {
        assert!(matches!(put(&place, &nth(n)).await, RuleChange::Made { .. }), "{n}");
    }
    assert_eq!(refusal(&place, &nth(50)).await, RuleRefusal::TooManyRules);
    let next = |n: i64, mode| NewRuleVersion { version: 2, mode, ..nth(n) };
    for n in 0..10 {
        assert!(matches!(put(&place, &next(n, RuleMode::LogOnly)).await, RuleChange::Made { .. }), "{n}");
    }
    assert_eq!(refusal(&place, &next(10, RuleMode::LogOnly)).await, RuleRefusal::TooOften);
    assert!(matches!(put(&place, &next(10, RuleMode::Disabled)).await, RuleChange::Made { .. }));
    place.clock.advance_seconds(3601);
    assert!(matches!(put(&place, &next(11, RuleMode::LogOnly)).await, RuleChange::Made { .. }));
}

/// What an operator makes of a rule that the program has as version 4, which acts.
fn common(version: i64, mode: RuleMode) -> NewRuleVersion {
    let text = format!("common {version}");
    NewRuleVersion { text, common: Some((4, RuleMode::Active)), ..of_mode(version, mode) }
}

/// The same rule again as the program has it.
fn of_program() -> NewRuleVersion {
    NewRuleVersion { text: String::new(), ..common(4, RuleMode::Active) }
}

async fn put_common(place: &Place, new: &NewRuleVersion) -> RuleChange {
    place.store.put_common_rule_version(new, Some("of the program"), "operator", |tenant| Ok(fact(tenant))).await.unwrap()
}

async fn common_refusal(place: &Place, new: &NewRuleVersion) -> RuleRefusal {
    let before = place.store.pending_outbox(100).await.unwrap().len();
    let RuleChange::Refused(refusal) = put_common(place, new).await else { panic!("{new:?} was taken") };
    assert_eq!(place.store.pending_outbox(100).await.unwrap().len(), before, "what was not changed gets no receipt");
    assert_eq!(place.store.may_change_common_rule(new).await.unwrap().as_ref(), Some(&refusal));
    refusal
}

#[tokio::test]
async fn a_change_of_a_rule_that_every_tenant_has_is_receipted_in_each_tenant_s_lane() {
    let mut place = Place::new().await;
    place.store.create_tenant(&tenant("other"), "Other").await.unwrap();
    assert!(matches!(put_common(&place, &common(5, RuleMode::LogOnly)).await, RuleChange::Made { .. }));
    let of: Vec<String> = place.store.pending_outbox(100).await.unwrap().iter().map(|row| row.tenant_id.to_string()).collect();
    assert_eq!(of, ["acme", "other"]);
    // A fact for another tenant than it is asked for is none, and nothing is changed without.
    let wrong =
        place.store.put_common_rule_version(&common(6, RuleMode::Disabled), None, "operator", |_| Ok(fact(&acme()))).await;
    assert!(wrong.is_err(), "{wrong:?}");

    place.reopen().await;
    let history = place.store.list_common_rule_versions(Some("T-1"), 100, 0).await.unwrap();
    assert_eq!(history.iter().map(|v| (v.version, v.mode, v.of_program)).collect::<Vec<_>>(), [(5, RuleMode::LogOnly, false)]);
    assert_eq!((history[0].changed_by.as_str(), history[0].changed_at), ("operator", START));
    let standing = place.store.standing_common_rules().await.unwrap();
    assert_eq!(standing.iter().map(|rule| rule.text.as_str()).collect::<Vec<_>>(), ["common 5"]);
    assert_eq!(standing[0].program_hash.as_deref(), Some("of the program"));
    assert_eq!(place.store.common_rule_text("T-1", &standing[0].hash).await.unwrap().as_deref(), Some("common 5"));
    assert!(place.store.standing_rules(&acme()).await.unwrap().is_empty(), "no tenant has one of its own by it");
}

#[tokio::test]
async fn an_operator_s_change_follows_what_stands_and_is_taken_back_step_by_step_too() {
    let place = Place::new().await;
    assert_eq!(common_refusal(&place, &of_program()).await, RuleRefusal::NothingToTakeBack);
    let lower = RuleRefusal::VersionNotHigher { version: 4, standing: 4 };
    assert_eq!(common_refusal(&place, &common(4, RuleMode::LogOnly)).await, lower);
    for (version, mode) in [(5, RuleMode::Active), (6, RuleMode::Disabled)] {
        assert!(matches!(put_common(&place, &common(version, mode)).await, RuleChange::Made { .. }), "{version}");
    }
    let too_long = RuleRefusal::StepTooLong { from: RuleMode::Disabled, to: RuleMode::Active };
    assert_eq!(common_refusal(&place, &common(7, RuleMode::Active)).await, too_long);
    assert_eq!(common_refusal(&place, &of_program()).await, too_long, "what is off does not act at once again");
    assert!(matches!(put_common(&place, &common(7, RuleMode::LogOnly)).await, RuleChange::Made { .. }));
    assert!(matches!(put_common(&place, &of_program()).await, RuleChange::Made { .. }));
    assert!(place.store.standing_common_rules().await.unwrap()[0].is_of_program());
    // What was made once keeps its number, also where something else stood since.
    let lower = RuleRefusal::VersionNotHigher { version: 7, standing: 7 };
    assert_eq!(common_refusal(&place, &common(7, RuleMode::Active)).await, lower);
    assert!(matches!(put_common(&place, &common(8, RuleMode::Active)).await, RuleChange::Made { .. }));
    let one_more = NewRuleVersion { rule_id: "T-2".into(), common: None, ..common(1, RuleMode::LogOnly) };
    assert_eq!(common_refusal(&place, &one_more).await, RuleRefusal::NameTaken("T-1".into()));
    let acts = NewRuleVersion { name: "t-2".into(), mode: RuleMode::Active, ..one_more };
    assert!(matches!(common_refusal(&place, &acts).await, RuleRefusal::StepTooLong { .. }), "what never ran may not act");
}
