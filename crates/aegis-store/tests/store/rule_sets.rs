//! Sets of rules that programs ran, and of which each tenant is told once.

use aegis_model::{RuleInSet, RuleMode};

use crate::fixtures::{acme, fact, tenant};
use crate::place::Place;

fn rules(version: u32) -> Vec<RuleInSet> {
    let (rule_id, name) = ("T-1".to_owned(), "one".to_owned());
    vec![RuleInSet { rule_id, name, version, mode: RuleMode::Active, hash: format!("hash {version}") }]
}

#[tokio::test]
async fn a_set_that_follows_itself_is_one_and_one_that_comes_back_is_another_also_over_a_restart() {
    let mut place = Place::new().await;
    let put = async |place: &Place, version: u32| {
        place.store.put_rule_set(&format!("digest {version}"), &rules(version)).await.unwrap()
    };
    assert_eq!([put(&place, 1).await, put(&place, 1).await, put(&place, 2).await], [1, 1, 2]);
    place.reopen().await;
    assert_eq!([put(&place, 2).await, put(&place, 1).await], [2, 3]);
    let listed = place.store.list_rule_sets(10, 0).await.unwrap();
    let told: Vec<_> = listed.iter().map(|set| (set.revision, set.digest.as_str(), set.rules.clone())).collect();
    assert_eq!(told, [(3, "digest 1", rules(1)), (2, "digest 2", rules(2)), (1, "digest 1", rules(1))]);
    assert!(place.store.put_rule_set("digest", &[]).await.is_ok(), "a folder without rules is a set too");
}

#[tokio::test]
async fn each_set_is_told_with_what_it_changed_also_at_the_end_of_a_page() {
    let place = Place::new().await;
    let rule = |rule_id: &str, version: u32| RuleInSet { rule_id: rule_id.to_owned(), ..rules(version).remove(0) };
    let sets = [vec![rule("A", 1), rule("B", 1)], vec![rule("A", 2), rule("C", 1)], vec![rule("A", 1)]];
    for (n, set) in sets.iter().enumerate() {
        place.store.put_rule_set(&format!("digest {n}"), set).await.unwrap();
    }
    let expected = [(3, "", "C", "A"), (2, "C", "B", "A"), (1, "A,B", "", "")];
    for limit in 1..=4 {
        let mut told = Vec::new();
        for offset in (0..3).step_by(limit) {
            told.extend(place.store.list_rule_set_changes(limit as u32, offset).await.unwrap());
        }
        let ids = |rules: &[RuleInSet]| rules.iter().map(|rule| rule.rule_id.clone()).collect::<Vec<_>>().join(",");
        let of_each: Vec<_> = told.iter().map(|of| (of.revision, ids(&of.added), ids(&of.removed), ids(&of.changed))).collect();
        let expected = expected.map(|(n, added, removed, changed)| (n, added.to_owned(), removed.to_owned(), changed.to_owned()));
        assert_eq!(of_each, expected, "{limit} at a time");
        assert_eq!(told.iter().map(|of| (of.is_about("B"), of.rules)).collect::<Vec<_>>(), [(false, 1), (true, 2), (true, 2)]);
    }
}

#[tokio::test]
async fn each_tenant_is_told_once_of_a_set_whenever_it_comes() {
    let mut place = Place::new().await;
    let other = tenant("other");
    place.store.put_rule_set("digest 1", &rules(1)).await.unwrap();
    let untold = async |place: &Place, revision: i64| -> Vec<(String, Option<u32>)> {
        let untold = place.store.tenants_untold_of_rule_set(revision, 10).await.unwrap();
        untold.into_iter().map(|of| (of.tenant_id.to_string(), of.before.map(|before| before[0].version))).collect()
    };
    assert_eq!(untold(&place, 1).await, [("acme".to_owned(), None)]);
    assert!(place.store.tell_rule_set(&acme(), 1, &[fact(&acme())]).await.unwrap());
    assert!(!place.store.tell_rule_set(&acme(), 1, &[fact(&acme())]).await.unwrap());
    assert_eq!(place.store.pending_outbox(10).await.unwrap().len(), 1, "no second receipt");
    assert!(untold(&place, 1).await.is_empty());
    // One that is made later, and the next set.
    place.store.create_tenant(&other, "Other").await.unwrap();
    assert_eq!(untold(&place, 1).await, [("other".to_owned(), None)]);
    assert_eq!(place.store.put_rule_set("digest 2", &rules(2)).await.unwrap(), 2);
    place.reopen().await;
    assert_eq!(untold(&place, 2).await, [("acme".to_owned(), Some(1)), ("other".to_owned(), None)]);
    assert!(place.store.tell_rule_set(&acme(), 2, &[]).await.unwrap());
    assert!(!place.store.tell_rule_set(&acme(), 1, &[]).await.unwrap(), "an older one tells nothing");
    assert_eq!(untold(&place, 2).await, [("other".to_owned(), None)]);
    // A fact for another tenant is none, and nothing is told with it.
    assert!(place.store.tell_rule_set(&other, 2, &[fact(&acme())]).await.is_err());
    assert_eq!(untold(&place, 2).await.len(), 1);
}
