//! L-REVOKED, L-COMMAND, L-CAP, and holds side by side.

use aegis_model::{ContainmentKind, ContainmentState, TargetType, Verdict};
use aegis_store::{AutomaticHold, Store, StoreError};

use crate::fixtures::*;

const AGENT: TargetType = TargetType::Agent;

async fn state(store: &Store) -> ContainmentState {
    store.containment(&acme(), AGENT, "a").await.unwrap().unwrap()
}

#[tokio::test]
async fn holds_stand_side_by_side_and_every_change_takes_a_higher_revision() {
    let mut place = Place::new().await;
    let store = &place.store;
    assert_eq!(store.containment(&acme(), AGENT, "a").await.unwrap(), None);
    let freeze = hold("1", ContainmentKind::Freeze, "ann", Some(START.plus_seconds(60)));
    let quarantine = hold("2", ContainmentKind::Quarantine, "bob", None);
    let first = store.add_hold(&acme(), AGENT, "a", &freeze, &[]).await.unwrap();
    let second = store.add_hold(&acme(), AGENT, "a", &quarantine, &[]).await.unwrap();
    assert_eq!(second.holds, [freeze.clone(), quarantine.clone()]);
    assert!(second.revision > first.revision);
    assert_eq!(second.verdict_at(START), Verdict::Frozen);
    assert_eq!(second.verdict_at(START.plus_seconds(60)), Verdict::Quarantined);

    let released = store.release_holds(&acme(), AGENT, "a", ContainmentKind::Quarantine, &[]).await.unwrap();
    assert_eq!(released.holds, [freeze]);
    assert!(matches!(store.add_hold(&acme(), AGENT, "a", &quarantine, &[]).await, Err(StoreError::Taken("hold id"))));
    assert_eq!(state(store).await, released, "a refused hold changes nothing");

    place.clock.advance_seconds(60);
    let third =
        place.store.add_hold(&acme(), AGENT, "a", &hold("3", ContainmentKind::Quarantine, "ann", None), &[]).await.unwrap();
    assert_eq!(third.holds.len(), 1, "an expired hold leaves the state with the next change");
    place.reopen().await;
    assert_eq!(state(&place.store).await, third);
}

#[tokio::test]
async fn revoked_absorbs_everything() {
    let place = Place::new().await;
    let store = &place.store;
    let revoked = store.revoke(&acme(), AGENT, "a", &[fact(&acme())]).await.unwrap();
    let held = store.add_hold(&acme(), AGENT, "a", &hold("1", ContainmentKind::Freeze, "ann", None), &[]).await.unwrap();
    let released = store.release_holds(&acme(), AGENT, "a", ContainmentKind::Freeze, &[]).await.unwrap();
    let again = store.revoke(&acme(), AGENT, "a", &[]).await.unwrap();
    for later in [&held, &released, &again] {
        assert_eq!(later.verdict_at(START), Verdict::Revoked);
        assert!(later.revision > revoked.revision);
    }
    assert!(store.containment(&acme(), TargetType::McpServer, "a").await.unwrap().is_none(), "another kind of target");
    let server = store.revoke(&acme(), TargetType::McpServer, "files", &[]).await.unwrap();
    assert_eq!(store.contained(&acme(), START).await.unwrap(), [server, again.clone()]);
    assert_eq!(store.pending_outbox(10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_contained_is_listed_for_its_tenant_as_long_as_it_holds() {
    let place = Place::new().await;
    let store = &place.store;
    let other = tenant("other");
    store.create_tenant(&other, "Other").await.unwrap();
    let forever = hold("1", ContainmentKind::Freeze, "ann", None);
    let short = hold("2", ContainmentKind::Quarantine, "ann", Some(START.plus_seconds(60)));
    store.add_hold(&other, AGENT, "a", &forever, &[]).await.unwrap();
    store.add_hold(&acme(), AGENT, "released", &forever, &[]).await.unwrap();
    store.release_holds(&acme(), AGENT, "released", ContainmentKind::Freeze, &[]).await.unwrap();
    let held = store.add_hold(&acme(), AGENT, "a", &forever, &[]).await.unwrap();
    let server = store.add_hold(&acme(), TargetType::McpServer, "a", &short, &[]).await.unwrap();
    let revoked = store.revoke(&acme(), AGENT, "gone", &[]).await.unwrap();
    let expected = [revoked.clone(), server, held.clone()];
    assert_eq!(store.contained(&acme(), START.plus_micros(59_999_999)).await.unwrap(), expected);
    assert_eq!(store.contained(&acme(), START.plus_seconds(60)).await.unwrap(), [revoked, held]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_command_is_applied_once() {
    let mut place = Place::new().await;
    let mut tasks = Vec::new();
    for i in 0..64 {
        let store = place.store.clone();
        tasks.push(tokio::spawn(async move {
            let by_rule = hold(&format!("hold-{i}"), ContainmentKind::Freeze, "rule:R1", None);
            store.add_automatic_hold(&acme(), "command", AGENT, "a", &by_rule, 100, &[fact(&acme())]).await.unwrap()
        }));
    }
    let mut applied = 0;
    for task in tasks {
        match task.await.unwrap() {
            AutomaticHold::Applied(_) => applied += 1,
            AutomaticHold::AlreadyApplied => {}
            AutomaticHold::CapReached => panic!("the cap is 100"),
        }
    }
    assert_eq!((applied, state(&place.store).await.holds.len()), (1, 1));
    assert_eq!(place.store.pending_outbox(100).await.unwrap().len(), 1);
    place.reopen().await;
    assert!(!place.store.apply_command(&acme(), "command").await.unwrap());
    assert!(place.store.apply_command(&acme(), "another").await.unwrap());
    assert!(!place.store.apply_command(&acme(), "another").await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_rules_cannot_pass_the_hourly_cap_together() {
    const CAP: u32 = 5;
    let place = Place::new().await;
    let freeze = |i: usize| {
        let store = place.store.clone();
        async move {
            let by_rule = hold(&format!("hold-{i}"), ContainmentKind::Freeze, "rule:R1", None);
            let target = format!("agent-{i}");
            store
                .add_automatic_hold(&acme(), &format!("command-{i}"), AGENT, &target, &by_rule, CAP, &[fact(&acme())])
                .await
                .unwrap()
        }
    };
    let tasks: Vec<_> = (0..64).map(|i| tokio::spawn(freeze(i))).collect();
    let mut refused = Vec::new();
    for (i, task) in tasks.into_iter().enumerate() {
        if task.await.unwrap() == AutomaticHold::CapReached {
            refused.push(i);
        }
    }
    assert_eq!(refused.len(), 64 - CAP as usize);
    assert_eq!(place.store.automatic_holds_since(&acme(), START.plus_seconds(-3600)).await.unwrap(), CAP);
    assert_eq!(place.store.pending_outbox(100).await.unwrap().len(), CAP as usize);
    let left_alone = format!("agent-{}", refused[0]);
    assert_eq!(place.store.containment(&acme(), AGENT, &left_alone).await.unwrap(), None);

    // Releasing what a rule did does not make room; time does, and the refused command may then be applied.
    place.store.release_holds(&acme(), AGENT, "agent-0", ContainmentKind::Freeze, &[]).await.unwrap();
    assert_eq!(freeze(refused[0]).await, AutomaticHold::CapReached);
    let by_person = hold("by-ann", ContainmentKind::Freeze, "ann", None);
    place.store.add_hold(&acme(), AGENT, "agent-0", &by_person, &[]).await.unwrap();
    place.clock.advance_seconds(3600);
    assert!(matches!(freeze(refused[0]).await, AutomaticHold::Applied(_)));
}

#[tokio::test]
async fn an_automatic_hold_names_its_rule() {
    let place = Place::new().await;
    let by_person = hold("1", ContainmentKind::Freeze, "ann", None);
    let outcome = place.store.add_automatic_hold(&acme(), "c", AGENT, "a", &by_person, 5, &[]).await;
    assert!(matches!(outcome, Err(StoreError::Invalid { .. })));
}
