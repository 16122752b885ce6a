//! Callbacks: queued with the change and only with it, told apart by tenant and version, and signed with the secrets that are in force.

use aegis_model::{ApprovalStatus, FrozenAction};
use aegis_store::{Callback, CallbackState, Secret, VoteResult};

use crate::fixtures::*;

async fn last(place: &Place, id: &str) -> Option<Callback> {
    place.store.approval_callback(&acme(), id).await.unwrap()
}

async fn secrets(place: &Place) -> Vec<String> {
    place.store.callback_secrets(&acme()).await.unwrap().iter().map(|secret| secret.expose().to_owned()).collect()
}

async fn set(place: &Place, secret: &str, overlap_s: i64) -> bool {
    let until = START.plus_seconds(overlap_s);
    place.store.put_callback_secret(&acme(), &Secret::new(secret.into()), until, &[]).await.unwrap().is_some()
}

#[tokio::test]
async fn each_change_of_an_approval_is_one_callback_and_what_changes_nothing_is_none() {
    let mut place = Place::new().await;
    place.store.insert_approval(&frozen(&acme(), "a", 2)).await.unwrap();
    assert_eq!(last(&place, "a").await, None);
    let vote = async |place: &Place, who: &str, hash: &str| {
        let fact = fact(&acme());
        let voted = place.store.record_approval_vote(&acme(), "a", who, hash, START, std::slice::from_ref(&fact)).await.unwrap();
        (voted, fact.event_id)
    };
    assert_eq!(vote(&place, "ann", "hash-0").await.0, VoteResult::NeedsMore { have: 1, need: 2 });
    assert_eq!(last(&place, "a").await, None, "one vote of two decides nothing");
    let (voted, event_id) = vote(&place, "bob", "hash-0").await;
    assert_eq!(voted, VoteResult::Approved);
    let approved = last(&place, "a").await.unwrap();
    assert_eq!((approved.version, approved.status, approved.state), (1, ApprovalStatus::Approved, CallbackState::Waiting));
    assert_eq!((approved.event_id, approved.action_hash.as_str(), approved.attempts), (Some(event_id), "hash-0", 0));
    assert_eq!(approved.url, "https://hooks.example/approvals");
    vote(&place, "cat", "hash-0").await;
    assert_eq!(last(&place, "a").await.unwrap(), approved, "a refused vote is no change");

    place.store.edit_approval(&acme(), "a", "ann", &call(7), "hash-1", "digest-1", &[]).await.unwrap();
    let edited = last(&place, "a").await.unwrap();
    assert_eq!((edited.version, edited.status, edited.action_hash.as_str()), (2, ApprovalStatus::Pending, "hash-1"));
    place.store.reject_approval(&acme(), "a", "ann", START, &[]).await.unwrap();
    place.store.reject_approval(&acme(), "a", "ann", START, &[]).await.unwrap();
    assert_eq!(last(&place, "a").await.unwrap().version, 3, "rejected once");

    place.store.insert_approval(&frozen(&acme(), "b", 1)).await.unwrap();
    let late = START.plus_seconds(900);
    assert!(!place.store.expire_approval(&acme(), "b", START, &[]).await.unwrap());
    assert_eq!(last(&place, "b").await, None);
    assert!(place.store.expire_approval(&acme(), "b", late, &[]).await.unwrap());
    assert_eq!(last(&place, "b").await.unwrap().status, ApprovalStatus::Expired);

    let silent = FrozenAction { callback_url: None, ..frozen(&acme(), "c", 1) };
    place.store.insert_approval(&silent).await.unwrap();
    place.store.record_approval_vote(&acme(), "c", "ann", "hash-0", START, &[]).await.unwrap();
    assert_eq!(last(&place, "c").await, None, "its request named no callback");

    place.reopen().await;
    assert_eq!(place.store.callbacks_waiting().await.unwrap(), 4);
    let due = place.store.due_callbacks(&acme(), START, 10).await.unwrap();
    assert_eq!(due.iter().map(|one| one.version).collect::<Vec<_>>(), [1, 2, 3]);
}

#[tokio::test]
async fn a_change_that_is_taken_back_leaves_no_callback() {
    let place = Place::new().await;
    let other = tenant("other");
    place.store.create_tenant(&other, "Other").await.unwrap();
    place.store.insert_approval(&frozen(&acme(), "a", 1)).await.unwrap();
    place.store.reject_approval(&acme(), "a", "ann", START, &[fact(&other)]).await.unwrap_err();
    assert_eq!(last(&place, "a").await, None);
    assert_eq!(place.store.callbacks_waiting().await.unwrap(), 0);
}

#[tokio::test]
async fn what_came_of_an_attempt_is_kept_and_an_end_is_an_end() {
    let place = Place::new().await;
    place.store.insert_approval(&frozen(&acme(), "a", 1)).await.unwrap();
    place.store.reject_approval(&acme(), "a", "ann", START, &[]).await.unwrap();
    let id = last(&place, "a").await.unwrap().callback_id;
    let note = async |state, error, due| place.store.note_callback(&acme(), id, state, error, due).await.unwrap();
    let later = START.plus_seconds(60);
    assert_eq!(place.store.due_callback_tenants(START).await.unwrap(), [acme()]);
    assert!(note(CallbackState::Waiting, Some("answered_500"), later).await);
    assert!(place.store.due_callback_tenants(START).await.unwrap().is_empty());
    assert!(place.store.due_callbacks(&acme(), START, 10).await.unwrap().is_empty());
    let again = place.store.due_callbacks(&acme(), later, 10).await.unwrap();
    assert_eq!((again[0].attempts, again[0].last_error.as_deref()), (1, Some("answered_500")));
    assert!(note(CallbackState::Delivered, None, later).await);
    assert!(!note(CallbackState::GivenUp, Some("timed_out"), later).await);
    let done = last(&place, "a").await.unwrap();
    assert_eq!((done.state, done.attempts, done.last_error), (CallbackState::Delivered, 2, None));
    assert_eq!(place.store.callbacks_waiting().await.unwrap(), 0);
}

#[tokio::test]
async fn what_a_clock_that_was_ahead_put_off_is_due_once_it_is_set_back() {
    let place = Place::new().await;
    place.store.insert_approval(&frozen(&acme(), "a", 1)).await.unwrap();
    let ahead = START.plus_seconds(365 * 86_400);
    place.store.expire_approval(&acme(), "a", ahead, &[]).await.unwrap();
    assert_eq!(place.store.due_callback_tenants(START).await.unwrap(), [acme()]);
    let due = place.store.due_callbacks(&acme(), START, 10).await.unwrap();
    assert_eq!(due.len(), 1);
    let id = due[0].callback_id;
    assert!(place.store.note_callback(&acme(), id, CallbackState::Waiting, None, START.plus_seconds(900)).await.unwrap());
    assert!(place.store.due_callback_tenants(START).await.unwrap().is_empty(), "a pause is a pause");
    assert!(place.store.due_callbacks(&acme(), START, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn the_secret_before_the_newest_signs_until_its_time_is_over() {
    let place = Place::new().await;
    assert!(secrets(&place).await.is_empty());
    assert!(!set(&place, "one", 60).await, "there was none before");
    assert_eq!(secrets(&place).await, ["one"]);
    assert!(set(&place, "two", 60).await);
    assert_eq!(secrets(&place).await, ["two", "one"]);
    // Whoever asks again, having had no answer, does not lose the one before.
    assert!(set(&place, "two", 3600).await);
    assert_eq!(secrets(&place).await, ["two", "one"]);
    place.clock.advance_seconds(60);
    assert_eq!(secrets(&place).await, ["two"], "a longer overlap, asked for later, brings nothing back");
    assert!(!set(&place, "three", 60).await, "an overlap that is over is none");
    assert_eq!(secrets(&place).await, ["three"]);
    assert!(set(&place, "four", 90).await);
    assert!(!set(&place, "four", 0).await);
    assert_eq!(secrets(&place).await, ["four"], "asked for again without an overlap");
}
