//! Hears the feed's changes as they are written. Containment and settings are applied as they come; what policies are compiled for waits in a line of
//! its own, in which nothing else does, and is taken together.

use std::sync::Arc;

use aegis_bus::Bucket;
use aegis_model::EntryKind;
use bytes::Bytes;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::{Follower, RETRY_AFTER};
use crate::view::is_registered;

/// Entries of registries that wait to be applied at most, and are applied together at most. The watch waits then, and the feed is read whole meanwhile.
const MOST_WAITING: usize = 256;

/// An entry as a bucket has it.
type Heard = (String, Bytes, u64);

/// Follows one place. Each has a line of its own: no tenant's changes wait for what is compiled for another.
pub(super) async fn follow(follower: Arc<Follower>, bucket: Bucket, filter: String) {
    let (registries, waiting) = channel(MOST_WAITING);
    tokio::join!(hear(&follower, bucket, &filter, registries), register(&follower, waiting));
}

/// Applies what is heard, and has registries applied, for as long as somebody does that.
async fn hear(follower: &Follower, bucket: Bucket, filter: &str, registries: Sender<Heard>) {
    loop {
        if let Ok(mut watch) = follower.bus.kv_watch(bucket, filter).await {
            loop {
                match watch.next().await {
                    Ok(heard) if is_of_a_registry(bucket, &heard.0) => {
                        if registries.send(heard).await.is_err() {
                            return;
                        }
                    }
                    // A change that was heard has no revision.
                    Ok((key, value, revision)) => follower.apply(bucket, &key, &value, revision == 0),
                    Err(error) => {
                        tracing::warn!(%error, ?bucket, "the watch on the control feed ended; watching again");
                        break;
                    }
                }
            }
        }
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

/// By its key alone: an entry of another kind that stands there is refused as one that belongs elsewhere.
fn is_of_a_registry(bucket: Bucket, key: &str) -> bool {
    let kind = || key.split('.').nth(1).and_then(|kind| kind.parse::<EntryKind>().ok());
    bucket == Bucket::Control && kind().is_some_and(is_registered)
}

/// Applies what is heard of registries, all that waits in one go.
async fn register(follower: &Arc<Follower>, mut registries: Receiver<Heard>) {
    let mut heard = Vec::new();
    while registries.recv_many(&mut heard, MOST_WAITING).await > 0 {
        if let Err(error) = follower.take(Bucket::Control, std::mem::take(&mut heard)).await {
            tracing::error!(%error, "what was heard of a registry is left to the next reading of the feed");
        }
    }
}
