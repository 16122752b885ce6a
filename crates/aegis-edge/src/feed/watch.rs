//! Hears the feed's changes as they are written. Containment and settings are applied as they come; what policies are compiled for waits in a line of
//! its own, in which nothing else does, and is taken together.

use std::sync::Arc;

use aegis_bus::Bucket;
use aegis_model::EntryKind;
use bytes::Bytes;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::Instant;

use super::{Follower, RETRY_AFTER};
use crate::view::is_registered;

/// Entries of registries that wait to be applied at most, and are applied together at most. The watch waits then, and the feed is read whole meanwhile.
const MOST_WAITING: usize = 256;

/// An entry as a bucket has it, and when it was heard.
type Heard = ((String, Bytes, u64), Instant);

/// Follows one place, which has a line of its own. Where tenants are named a place is one tenant's, whose changes wait for nothing that is compiled for
/// another; where they are not (one program) one place has all of them, and a tenant's registry waits for another's.
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
                        if registries.send((heard, Instant::now())).await.is_err() {
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
    let mut heard: Vec<Heard> = Vec::new();
    while registries.recv_many(&mut heard, MOST_WAITING).await > 0 {
        // The first of them has waited longest. That one was put back is told all the same, where it stands when the feed is read again.
        let came = heard.first().map_or_else(Instant::now, |(_, came)| *came);
        let entries = heard.drain(..).map(|(entry, _)| entry).collect();
        if let Err(error) = follower.take(Bucket::Control, entries, came).await {
            tracing::error!(%error, "what was heard of a registry is left to the next reading of the feed");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use aegis_bus::{EmbeddedBus, EmbeddedLimits, subject};
    use aegis_keys::{KeyRing, SigningKey, sign_entry};
    use aegis_model::{ManualClock, TenantId, Timestamp};
    use serde_json::json;

    use super::super::bare;
    use super::*;
    use crate::view::EdgeView;

    #[tokio::test]
    async fn what_waited_for_policies_to_be_compiled_was_not_put_back() {
        let folder = tempfile::tempdir().unwrap();
        let now = Timestamp::from_micros(1_800_000_000_000_000);
        let clock = Arc::new(ManualClock::new(now));
        let bus = EmbeddedBus::open(&folder.path().join("bus.db"), EmbeddedLimits::default(), clock.clone()).await.unwrap();
        let control = SigningKey::from_seed(&[1; 32]);
        let view = Arc::new(EdgeView::new(KeyRing::new([control.verifying_key()])).unwrap());
        let follower = Arc::new(Follower { overtaken: Duration::from_nanos(1), ..bare(bus, view, clock) });
        let tenant = TenantId::new("acme").unwrap();
        let key = subject::kv_control(&tenant, EntryKind::Tool, "crm");
        let tool = |revision: i64| {
            let body = json!({"tool": "crm", "name": "CRM", "actions": []});
            let entry = sign_entry(&control, &tenant, EntryKind::Tool, "crm", revision, now, Some(body)).unwrap();
            Bytes::from(serde_json::to_vec(&entry).unwrap())
        };
        let heard_at = async |came: Instant| {
            let (registries, waiting) = channel(MOST_WAITING);
            registries.send(((key.clone(), tool(6), 0), came)).await.unwrap();
            drop(registries);
            register(&follower, waiting).await;
            follower.trouble.take_due(Instant::now(), 9).len()
        };
        let before = Instant::now();
        follower.apply(Bucket::Control, &key, &tool(7), true);
        assert_eq!(heard_at(before).await, 0, "it was heard before the newer");
        assert_eq!(heard_at(Instant::now() + Duration::from_secs(1)).await, 1, "it came behind that");
        assert_eq!(follower.metrics.feed_refused.get(), 2);
    }
}
