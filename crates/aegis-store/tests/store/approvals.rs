//! L-CONSUME and the approval's life.

use std::collections::BTreeMap;

use aegis_model::{ApprovalStatus, ContainmentKind, FrozenAction, TargetType, TenantId};
use aegis_store::{CallbackState, ConsumeResult, DecideResult, VoteResult};

use crate::fixtures::*;

const CONCURRENT: usize = 64;

async fn approved(place: &Place, id: &str) {
    assert!(place.store.insert_approval(&frozen(&acme(), id, 1)).await.unwrap());
    let vote = place.store.record_approval_vote(&acme(), id, "ann", "hash-0", START, &[]).await.unwrap();
    assert_eq!(vote, VoteResult::Approved);
}

async fn status(place: &Place, id: &str) -> ApprovalStatus {
    place.store.approval(&acme(), id).await.unwrap().unwrap().status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_64_concurrent_consumes_exactly_one_wins_and_only_it_leaves_a_fact() {
    let mut place = Place::new().await;
    for round in 0..5 {
        let id = format!("approval-{round}");
        approved(&place, &id).await;
        let tasks: Vec<_> = (0..CONCURRENT)
            .map(|_| {
                let (store, id) = (place.store.clone(), id.clone());
                tokio::spawn(async move {
                    let fact = fact(&acme());
                    let outcome =
                        store.consume_approval(&acme(), &id, "hash-0", None, START, std::slice::from_ref(&fact)).await.unwrap();
                    (outcome, fact)
                })
            })
            .collect();
        let mut winners = Vec::new();
        for task in tasks {
            match task.await.unwrap() {
                (ConsumeResult::Consumed, fact) => winners.push(fact),
                (ConsumeResult::AlreadyConsumed, _) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(winners.len(), 1);
        assert_eq!(place.store.pending_outbox(100).await.unwrap(), winners);
        assert!(place.store.delete_outbox(winners[0].event_id).await.unwrap());
    }
    place.reopen().await;
    for round in 0..5 {
        let again =
            place.store.consume_approval(&acme(), &format!("approval-{round}"), "hash-0", None, START, &[fact(&acme())]).await;
        assert_eq!(again.unwrap(), ConsumeResult::AlreadyConsumed);
    }
    assert!(place.store.pending_outbox(100).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_contained_agent_consumes_nothing_and_another_tenant_s_hold_is_none_of_it() {
    let place = Place::new().await;
    let store = &place.store;
    approved(&place, "approval-1").await;
    let consume = async |now| store.consume_approval(&acme(), "approval-1", "hash-0", None, now, &[fact(&acme())]).await.unwrap();
    let other = tenant("other");
    store.create_tenant(&other, "Other").await.unwrap();
    let forever = hold("1", ContainmentKind::Freeze, "ann", None);
    store.add_hold(&other, TargetType::Agent, "agent-1", &forever, &[]).await.unwrap();
    let short = hold("2", ContainmentKind::Freeze, "ann", Some(START.plus_seconds(10)));
    store.add_hold(&acme(), TargetType::Agent, "agent-1", &short, &[]).await.unwrap();
    assert_eq!(consume(START.plus_seconds(9)).await, ConsumeResult::Contained);
    assert_eq!(status(&place, "approval-1").await, ApprovalStatus::Approved);
    assert!(store.pending_outbox(100).await.unwrap().is_empty());
    assert_eq!(consume(START.plus_seconds(10)).await, ConsumeResult::Consumed);

    approved(&place, "approval-2").await;
    store.revoke(&acme(), TargetType::Agent, "agent-1", &[]).await.unwrap();
    let revoked = store.consume_approval(&acme(), "approval-2", "hash-0", None, START, &[fact(&acme())]).await.unwrap();
    assert_eq!(revoked, ConsumeResult::Contained);
}

/// An approved call of the MCP server `files`.
async fn approved_mcp_call(place: &Place, id: &str) {
    let mut of_server = frozen(&acme(), id, 1);
    of_server.tool_call.tool = "mcp:files".into();
    assert!(place.store.insert_approval(&of_server).await.unwrap());
    let vote = place.store.record_approval_vote(&acme(), id, "ann", "hash-0", START, &[]).await.unwrap();
    assert_eq!(vote, VoteResult::Approved);
}

#[tokio::test]
async fn a_quarantine_of_an_mcp_server_that_was_answered_holds_for_every_later_consume() {
    let place = Place::new().await;
    let store = &place.store;
    let mut server = mcp_server("Files");
    server.drifted = false;
    store.put_mcp_server(&acme(), &server, &[]).await.unwrap();
    approved_mcp_call(&place, "of-server").await;
    approved(&place, "of-another-tool").await;
    let consume = async |id: &str, now| store.consume_approval(&acme(), id, "hash-0", None, now, &[fact(&acme())]).await.unwrap();

    let short = hold("1", ContainmentKind::Quarantine, "ann", Some(START.plus_seconds(10)));
    store.add_hold(&acme(), TargetType::McpServer, "files", &short, &[]).await.unwrap();
    assert_eq!(consume("of-server", START.plus_seconds(9)).await, ConsumeResult::ServerQuarantined);
    assert_eq!(status(&place, "of-server").await, ApprovalStatus::Approved, "a refusal burns nothing");
    assert!(store.pending_outbox(100).await.unwrap().is_empty());

    // The same key as another kind of target, another server, another tenant's server: none of its business.
    let other = tenant("other");
    store.create_tenant(&other, "Other").await.unwrap();
    let forever = hold("2", ContainmentKind::Quarantine, "ann", None);
    store.add_hold(&acme(), TargetType::Agent, "files", &forever, &[]).await.unwrap();
    store.add_hold(&acme(), TargetType::McpServer, "mail", &forever, &[]).await.unwrap();
    store.add_hold(&other, TargetType::McpServer, "files", &forever, &[]).await.unwrap();

    server.drifted = true;
    store.put_mcp_server(&acme(), &server, &[]).await.unwrap();
    assert_eq!(consume("of-server", START.plus_seconds(10)).await, ConsumeResult::ManifestDrifted);
    server.drifted = false;
    store.put_mcp_server(&acme(), &server, &[]).await.unwrap();
    assert_eq!(consume("of-server", START.plus_seconds(10)).await, ConsumeResult::Consumed);

    store.revoke(&acme(), TargetType::McpServer, "files", &[]).await.unwrap();
    approved_mcp_call(&place, "later").await;
    assert_eq!(consume("later", START).await, ConsumeResult::ServerQuarantined);
    assert_eq!(consume("of-another-tool", START).await, ConsumeResult::Consumed);
}

#[tokio::test]
async fn an_edit_decides_which_mcp_server_s_quarantine_counts() {
    let place = Place::new().await;
    let store = &place.store;
    approved(&place, "a").await;
    let mut of_server = call(1);
    of_server.tool = "mcp:files".into();
    store.edit_approval(&acme(), "a", "bob", &of_server, "hash-1", "digest-1", &[]).await.unwrap();
    let vote = store.record_approval_vote(&acme(), "a", "ann", "hash-1", START, &[]).await.unwrap();
    assert_eq!(vote, VoteResult::Approved);
    let quarantine = hold("1", ContainmentKind::Quarantine, "ann", None);
    store.add_hold(&acme(), TargetType::McpServer, "files", &quarantine, &[]).await.unwrap();
    let refused = store.consume_approval(&acme(), "a", "hash-1", None, START, &[]).await.unwrap();
    assert_eq!(refused, ConsumeResult::ServerQuarantined);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_consume_that_begins_after_a_quarantine_in_another_process_wins() {
    let place = Place::new().await;
    let second = place.another().await;
    for round in 0..16 {
        let (id, key) = (format!("approval-{round}"), format!("server-{round}"));
        let mut of_server = frozen(&acme(), &id, 1);
        of_server.tool_call.tool = format!("mcp:{key}");
        place.store.insert_approval(&of_server).await.unwrap();
        place.store.record_approval_vote(&acme(), &id, "ann", "hash-0", START, &[]).await.unwrap();
        let (store, consumed) = (place.store.clone(), id.clone());
        let beside =
            tokio::spawn(async move { store.consume_approval(&acme(), &consumed, "hash-0", None, START, &[]).await.unwrap() });
        let quarantine = hold("1", ContainmentKind::Quarantine, "ann", None);
        second.add_hold(&acme(), TargetType::McpServer, &key, &quarantine, &[]).await.unwrap();
        let after = place.store.consume_approval(&acme(), &id, "hash-0", None, START, &[]).await.unwrap();
        let expected = match beside.await.unwrap() {
            ConsumeResult::Consumed => ConsumeResult::AlreadyConsumed,
            ConsumeResult::ServerQuarantined => ConsumeResult::ServerQuarantined,
            // The later one may have come first; it was refused as well.
            other => panic!("{other:?}"),
        };
        assert_eq!(after, expected, "a quarantine that was answered");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_consume_in_another_process_counts_too() {
    let place = Place::new().await;
    approved(&place, "a").await;
    let second = place.another().await;
    let mut tasks = Vec::new();
    for i in 0..CONCURRENT {
        let store = if i % 2 == 0 { place.store.clone() } else { second.clone() };
        tasks.push(tokio::spawn(async move { store.consume_approval(&acme(), "a", "hash-0", None, START, &[]).await.unwrap() }));
    }
    let mut won = 0;
    for task in tasks {
        won += usize::from(task.await.unwrap() == ConsumeResult::Consumed);
    }
    assert_eq!(won, 1);
}

#[tokio::test]
async fn a_wrong_hash_does_not_burn_the_approval() {
    let place = Place::new().await;
    approved(&place, "a").await;
    let facts = [fact(&acme())];
    let swapped = place.store.consume_approval(&acme(), "a", "hash-of-another-action", None, START, &facts).await.unwrap();
    assert_eq!(swapped, ConsumeResult::HashMismatch);
    assert!(place.store.pending_outbox(10).await.unwrap().is_empty());
    assert_eq!(place.store.consume_approval(&acme(), "a", "hash-0", None, START, &facts).await.unwrap(), ConsumeResult::Consumed);
    assert_eq!(place.store.pending_outbox(10).await.unwrap(), facts);
}

#[tokio::test]
async fn nothing_but_an_approved_and_unexpired_approval_is_consumed() {
    let place = Place::new().await;
    let consume = async |id: &str, now| place.store.consume_approval(&acme(), id, "hash-0", None, now, &[]).await.unwrap();
    assert_eq!(consume("none", START).await, ConsumeResult::NotFound);
    place.store.insert_approval(&frozen(&acme(), "a", 1)).await.unwrap();
    assert_eq!(consume("a", START).await, ConsumeResult::NotApproved(ApprovalStatus::Pending));
    assert_eq!(place.store.reject_approval(&acme(), "a", "ann", START, &[]).await.unwrap(), DecideResult::Done);
    assert_eq!(consume("a", START).await, ConsumeResult::NotApproved(ApprovalStatus::Rejected));
    approved(&place, "b").await;
    assert_eq!(consume("b", START.plus_seconds(900)).await, ConsumeResult::Expired);
    assert_eq!(consume("b", START.plus_micros(899_999_999)).await, ConsumeResult::Consumed);
}

#[tokio::test]
async fn time_alone_expires_an_approval_and_the_sweep_names_it_once() {
    let place = Place::new().await;
    approved(&place, "a").await;
    place.store.insert_approval(&frozen(&acme(), "b", 1)).await.unwrap();
    place.clock.advance_seconds(900);
    let now = START.plus_seconds(900);
    assert_eq!(status(&place, "a").await, ApprovalStatus::Expired);
    assert_eq!(place.store.list_approvals(&acme(), Some(ApprovalStatus::Expired), 10, 0).await.unwrap().len(), 2);
    assert!(place.store.list_approvals(&acme(), Some(ApprovalStatus::Pending), 10, 0).await.unwrap().is_empty());
    assert_eq!(place.store.record_approval_vote(&acme(), "b", "ann", "hash-0", now, &[]).await.unwrap(), VoteResult::Expired);
    assert_eq!(place.store.due_approvals(now, 10).await.unwrap().len(), 2);
    let facts = [fact(&acme())];
    assert!(place.store.expire_approval(&acme(), "a", now, &facts).await.unwrap());
    assert!(!place.store.expire_approval(&acme(), "a", now, &[fact(&acme())]).await.unwrap());
    assert_eq!(place.store.pending_outbox(10).await.unwrap(), facts);
    assert_eq!(place.store.due_approvals(now, 10).await.unwrap(), [(acme(), "b".to_owned())]);
    assert!(place.store.expire_approval(&acme(), "b", now, &[]).await.unwrap());
    assert!(place.store.due_approvals(now, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn two_approvals_need_two_people() {
    let place = Place::new().await;
    place.store.insert_approval(&frozen(&acme(), "a", 2)).await.unwrap();
    let vote =
        async |who: &str| place.store.record_approval_vote(&acme(), "a", who, "hash-0", START, &[fact(&acme())]).await.unwrap();
    assert_eq!(vote("ann").await, VoteResult::NeedsMore { have: 1, need: 2 });
    assert_eq!(vote("ann").await, VoteResult::NeedsMore { have: 1, need: 2 });
    assert_eq!(vote("Ann").await, VoteResult::NeedsMore { have: 1, need: 2 }, "a name is the same however it is written");
    assert_eq!(vote(" ANN ").await, VoteResult::NeedsMore { have: 1, need: 2 });
    assert_eq!(vote("bob").await, VoteResult::Approved);
    assert_eq!(vote("cat").await, VoteResult::Conflict(ApprovalStatus::Approved));
    let row = place.store.approval(&acme(), "a").await.unwrap().unwrap();
    assert_eq!((row.approved_by, row.decided_by.as_deref()), (vec!["ann".to_owned(), "bob".to_owned()], Some("bob")));
    assert_eq!(place.store.pending_outbox(10).await.unwrap().len(), 2, "one fact for each vote that counted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_votes_complete_an_approval_once() {
    let place = Place::new().await;
    place.store.insert_approval(&frozen(&acme(), "a", 3)).await.unwrap();
    let mut tasks = Vec::new();
    for i in 0..CONCURRENT {
        let store = place.store.clone();
        tasks.push(tokio::spawn(async move {
            store.record_approval_vote(&acme(), "a", &format!("person-{}", i % 8), "hash-0", START, &[]).await.unwrap()
        }));
    }
    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    for task in tasks {
        *outcomes.entry(format!("{:?}", task.await.unwrap())).or_default() += 1;
    }
    assert_eq!(outcomes.get("Approved"), Some(&1), "{outcomes:?}");
    assert_eq!(place.store.approval(&acme(), "a").await.unwrap().unwrap().approved_by.len(), 3);
}

#[tokio::test]
async fn an_edit_is_another_action_that_its_editors_cannot_approve_alone() {
    let place = Place::new().await;
    approved(&place, "a").await;
    let edit = async |who: &str, n: u32| {
        place.store.edit_approval(&acme(), "a", who, &call(n), &format!("hash-{n}"), "digest-1", &[]).await.unwrap()
    };
    let vote = async |who: &str, hash: &str| place.store.record_approval_vote(&acme(), "a", who, hash, START, &[]).await.unwrap();
    assert_eq!(edit("bob", 1).await, DecideResult::Done);
    let row = place.store.approval(&acme(), "a").await.unwrap().unwrap();
    assert_eq!((row.status, row.current_hash.as_str(), row.approved_by.len()), (ApprovalStatus::Pending, "hash-1", 0));
    assert_eq!((row.frozen.action_hash.as_str(), row.edited), ("hash-0", Some(call(1))));
    assert_eq!(
        place.store.consume_approval(&acme(), "a", "hash-0", None, START, &[]).await.unwrap(),
        ConsumeResult::HashMismatch,
        "the approval of the old action is gone"
    );
    assert_eq!(vote("ann", "hash-0").await, VoteResult::HashChanged);
    assert_eq!(vote("bob", "hash-1").await, VoteResult::SelfEdited);
    assert_eq!(vote("Bob", "hash-1").await, VoteResult::SelfEdited);
    assert_eq!(edit("cat", 2).await, DecideResult::Done);
    assert_eq!(vote("bob", "hash-2").await, VoteResult::SelfEdited, "an earlier editor stays one");
    assert_eq!(vote("ann", "hash-2").await, VoteResult::Approved);
    assert_eq!(place.store.consume_approval(&acme(), "a", "hash-2", None, START, &[]).await.unwrap(), ConsumeResult::Consumed);
    assert_eq!(edit("ann", 3).await, DecideResult::Conflict(ApprovalStatus::Consumed));
}

#[tokio::test]
async fn an_approval_that_is_delivered_again_changes_nothing() {
    let place = Place::new().await;
    approved(&place, "a").await;
    assert!(!place.store.insert_approval(&frozen(&acme(), "a", 1)).await.unwrap());
    assert_eq!(status(&place, "a").await, ApprovalStatus::Approved);
}

#[tokio::test]
async fn what_is_over_is_forgotten_whole_and_nothing_that_is_not_or_is_another_tenant_s() {
    let place = Place::new().await;
    let (store, other, end) = (&place.store, tenant("other"), START.plus_seconds(901));
    store.create_tenant(&other, "Other").await.unwrap();
    let silent = |t: &TenantId, id: &str| FrozenAction { callback_url: None, ..frozen(t, id, 1) };
    for id in ["rejected", "consumed", "expired", "pending"] {
        store.insert_approval(&silent(&acme(), id)).await.unwrap();
    }
    store.insert_approval(&silent(&other, "rejected")).await.unwrap();
    store.insert_approval(&FrozenAction { expires_at: end, ..silent(&acme(), "later") }).await.unwrap();
    store.insert_approval(&frozen(&acme(), "told", 1)).await.unwrap();
    for id in ["rejected", "later", "told"] {
        store.reject_approval(&acme(), id, "ann", START, &[]).await.unwrap();
    }
    store.reject_approval(&other, "rejected", "ann", START, &[]).await.unwrap();
    store.edit_approval(&acme(), "consumed", "ann", &call(7), "hash-1", "digest-1", &[]).await.unwrap();
    store.record_approval_vote(&acme(), "consumed", "bob", "hash-1", START, &[]).await.unwrap();
    store.consume_approval(&acme(), "consumed", "hash-1", None, START, &[]).await.unwrap();
    assert!(store.expire_approval(&acme(), "expired", end, &[]).await.unwrap());

    assert_eq!(store.prune_approvals(&acme(), START.plus_seconds(900), 100).await.unwrap(), 0, "not yet");
    assert_eq!(store.prune_approvals(&acme(), end, 2).await.unwrap(), 2);
    assert_eq!(store.prune_approvals(&acme(), end, 2).await.unwrap(), 1);
    let left = async |t: &TenantId| {
        let listed = store.list_approvals(t, None, 100, 0).await.unwrap();
        let mut ids: Vec<String> = listed.into_iter().map(|row| row.frozen.approval_id).collect();
        ids.sort();
        ids
    };
    assert_eq!(left(&acme()).await, ["later", "pending", "told"], "one may still be told of");
    assert_eq!(left(&other).await, ["rejected"]);
    let told = store.approval_callback(&acme(), "told").await.unwrap().unwrap();
    assert!(store.note_callback(&acme(), told.callback_id, CallbackState::Delivered, None, START).await.unwrap());
    assert_eq!(store.prune_approvals(&acme(), end, 100).await.unwrap(), 1);
    assert_eq!(store.approval_callback(&acme(), "told").await.unwrap(), None);
    // Nothing of it is left: a new one of the same name begins anew.
    assert!(store.insert_approval(&silent(&acme(), "consumed")).await.unwrap());
    let anew = store.approval(&acme(), "consumed").await.unwrap().unwrap();
    assert_eq!((anew.status, anew.approved_by.len(), anew.edited), (ApprovalStatus::Pending, 0, None));
    let vote = store.record_approval_vote(&acme(), "consumed", "ann", "hash-0", START, &[]).await.unwrap();
    assert_eq!(vote, VoteResult::Approved, "who edited the one before is no editor of this one");
}
