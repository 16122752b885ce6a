//! L-OUTBOX for the lives of edges: a change is told once, to each tenant, or does not happen.

use aegis_store::{EdgeLife, StoreError};

use crate::fixtures::*;

#[tokio::test]
async fn a_change_of_an_edge_s_life_happens_once_with_its_facts_and_survives() {
    let mut place = Place::new().await;
    let other = tenant("other");
    place.store.create_tenant(&other, "Other").await.unwrap();
    let facts = [fact(&acme()), fact(&other)];
    assert!(place.store.change_edge_life("edge-1", None, EdgeLife::Live, &[]).await.unwrap());
    assert!(!place.store.change_edge_life("edge-1", None, EdgeLife::Silent, &facts).await.unwrap(), "it is known already");
    assert!(place.store.change_edge_life("edge-1", Some(EdgeLife::Live), EdgeLife::Silent, &facts).await.unwrap());
    // Whoever looked at it before that, or is another process, tells nothing.
    let again = [fact(&acme()), fact(&other)];
    assert!(!place.store.change_edge_life("edge-1", Some(EdgeLife::Live), EdgeLife::Silent, &again).await.unwrap());
    assert!(!place.store.change_edge_life("edge-2", Some(EdgeLife::Live), EdgeLife::Silent, &again).await.unwrap());
    place.reopen().await;
    assert_eq!(place.store.edge_lives().await.unwrap(), [("edge-1".to_owned(), EdgeLife::Silent)]);
    assert_eq!(place.store.pending_outbox(10).await.unwrap(), facts);
    // A tenant that does not exist: nothing of it happens.
    let nobody = [fact(&acme()), fact(&tenant("nobody"))];
    let refused = place.store.change_edge_life("edge-1", Some(EdgeLife::Silent), EdgeLife::Live, &nobody).await;
    assert!(matches!(refused, Err(StoreError::UnknownTenant(_))), "{refused:?}");
    assert_eq!(place.store.edge_lives().await.unwrap(), [("edge-1".to_owned(), EdgeLife::Silent)]);
    assert_eq!(place.store.pending_outbox(10).await.unwrap(), facts);
}
