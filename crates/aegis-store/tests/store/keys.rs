//! API keys: only hashes are kept, a revoked key is no key at once, and secrets stay out of what is printed.

use aegis_store::{NewKey, Role, StoreError};

use crate::fixtures::*;

#[tokio::test]
async fn a_key_verifies_until_it_is_revoked_and_survives_a_restart() {
    let mut place = Place::new().await;
    let groups = ["security".to_owned(), "on-call".to_owned()];
    let (created, secret) = place.store.create_key(&acme(), Role::Approver, "ann", &groups, None).await.unwrap();
    let random_part = secret.expose().strip_prefix("aegis_approver_").unwrap();
    assert_eq!(random_part.len(), 43);
    assert_eq!(place.store.verify_key(secret.expose()).await.unwrap(), Some(created.clone()));
    place.reopen().await;
    assert_eq!(place.store.verify_key(secret.expose()).await.unwrap(), Some(created.clone()));
    assert_eq!(place.store.list_keys(&acme()).await.unwrap(), std::slice::from_ref(&created));
    assert!(place.store.revoke_key(&acme(), &created.key_id, &[]).await.unwrap());
    assert_eq!(place.store.verify_key(secret.expose()).await.unwrap(), None, "at once, though it was believed a moment ago");
    assert!(!place.store.revoke_key(&acme(), &created.key_id, &[]).await.unwrap());
    assert!(place.store.list_keys(&acme()).await.unwrap().is_empty());
    assert_eq!(place.store.key_name(&acme(), &created.key_id).await.unwrap().as_deref(), Some("ann"), "whose it was stays known");
    assert_eq!(place.store.key_name(&tenant("other"), &created.key_id).await.unwrap(), None);
    assert_eq!(place.store.key_name(&acme(), "key_of_nobody").await.unwrap(), None);
}

#[tokio::test]
async fn a_key_and_a_revocation_stand_with_their_facts_or_not_at_all() {
    let place = Place::new().await;
    let store = &place.store;
    let value = "v".repeat(40);
    let make = |value: &str| NewKey::make(&acme(), Role::Auditor, "ann", &[], Some(value)).unwrap();
    let (made, revoked) = (fact(&acme()), fact(&acme()));
    let key = make(&value);
    let promised = key.principal().clone();
    assert_eq!(store.verify_key(&value).await.unwrap(), None, "what is only made is no key");
    let (created, _) = store.put_key(key, std::slice::from_ref(&made)).await.unwrap();
    assert_eq!(created, promised, "the fact could name it before it stood");
    assert_eq!(store.pending_outbox(10).await.unwrap(), std::slice::from_ref(&made));

    // A fact that cannot be written, a value that is taken: neither leaves a key or a fact.
    let second = "w".repeat(40);
    assert!(store.put_key(make(&second), std::slice::from_ref(&made)).await.is_err());
    assert_eq!(store.verify_key(&second).await.unwrap(), None);
    assert!(matches!(store.put_key(make(&value), &[fact(&acme())]).await, Err(StoreError::Taken("key value"))));
    assert!(store.revoke_key(&acme(), &created.key_id, std::slice::from_ref(&made)).await.is_err());
    assert_eq!(store.verify_key(&value).await.unwrap(), Some(created.clone()), "not revoked without its fact");
    assert_eq!(store.pending_outbox(10).await.unwrap(), std::slice::from_ref(&made));

    assert!(store.revoke_key(&acme(), &created.key_id, std::slice::from_ref(&revoked)).await.unwrap());
    assert!(!store.revoke_key(&acme(), &created.key_id, &[fact(&acme())]).await.unwrap());
    assert_eq!(store.pending_outbox(10).await.unwrap(), [made, revoked], "one fact for each change");
}

#[tokio::test]
async fn a_key_revoked_by_another_process_is_believed_five_seconds_at_most() {
    let place = Place::new().await;
    let (created, secret) = place.store.create_key(&acme(), Role::Admin, "ops", &[], None).await.unwrap();
    let other_process = place.another().await;
    assert!(place.store.verify_key(secret.expose()).await.unwrap().is_some());
    assert!(other_process.revoke_key(&acme(), &created.key_id, &[]).await.unwrap());
    place.clock.advance_seconds(5);
    assert_eq!(place.store.verify_key(secret.expose()).await.unwrap(), None);
}

#[tokio::test]
async fn a_given_value_must_be_long_and_nobody_else_s() {
    let place = Place::new().await;
    let value = "x".repeat(32);
    let create = async |value: &str| place.store.create_key(&acme(), Role::Registrar, "ci", &[], Some(value)).await;
    assert!(matches!(create(&value[1..]).await, Err(StoreError::Invalid { .. })));
    assert_eq!(create(&value).await.unwrap().1.expose(), value);
    assert!(matches!(create(&value).await, Err(StoreError::Taken("key value"))));
    assert_eq!(place.store.verify_key(&value).await.unwrap().unwrap().role, Role::Registrar);
    for wrong in ["", "x", &"x".repeat(33), &"x".repeat(100_000)] {
        assert_eq!(place.store.verify_key(wrong).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_key_names_somebody() {
    let place = Place::new().await;
    for nobody in ["", " ", "--", "\u{200b}"] {
        let made = place.store.create_key(&acme(), Role::Approver, nobody, &[], None).await;
        assert!(matches!(made, Err(StoreError::Invalid { what: "key name", .. })), "{nobody:?}");
    }
    place.store.create_key(&acme(), Role::Approver, "a", &[], None).await.unwrap();
}

#[tokio::test]
async fn no_key_stands_in_the_database_and_no_secret_in_a_debug_text() {
    let place = Place::new().await;
    let (_, secret) = place.store.create_key(&acme(), Role::Admin, "ops", &[], None).await.unwrap();
    place.store.put_webhook_secret(&acme(), "github", "hook-secret").await.unwrap();
    let hook = place.store.webhook_secret(&acme(), "github").await.unwrap().unwrap();
    assert_eq!(hook.expose(), "hook-secret");
    assert!(!format!("{secret:?}{hook:?}{:?}", place.store).contains("secret\""));
    assert!(!format!("{hook:?}").contains("hook"));
    assert!(!place.keeps(secret.expose().as_bytes()).await);
    assert!(place.keeps(b"hook-secret").await, "what is kept as it is, is found by the same search");
}
