//! What holds, as it stands in its bucket: the same bytes again need no proof. The buckets are read whole every few seconds, and to prove an entry
//! takes a thread that answers as long as some answers do.

use std::collections::HashMap;

use aegis_bus::Bucket;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

/// The entries that were applied last, one for each place.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<HashMap<(Bucket, String), Entry>>);

#[derive(Debug)]
struct Entry {
    digest: [u8; 32],
    revision: i64,
}

impl Known {
    /// The revision of an entry that holds; None if something else does.
    pub(super) fn revision_of(&self, bucket: Bucket, key: &str, bytes: &[u8]) -> Option<i64> {
        let known = self.0.lock();
        let entry = known.get(&(bucket, key.to_owned()))?;
        (entry.digest == digest_of(bytes)).then_some(entry.revision)
    }

    /// These bytes were proved, and held then. Whoever proved newer ones meanwhile is right: what is read whole and what is watched is applied side by side.
    pub(super) fn note(&self, bucket: Bucket, key: &str, bytes: &[u8], revision: i64) {
        let mut known = self.0.lock();
        let place = (bucket, key.to_owned());
        if known.get(&place).is_none_or(|entry| entry.revision <= revision) {
            known.insert(place, Entry { digest: digest_of(bytes), revision });
        }
    }
}

fn digest_of(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use aegis_bus::{EmbeddedBus, EmbeddedLimits, subject};
    use aegis_keys::{KeyRing, SigningKey, sign_entry};
    use aegis_model::{EntryKind, ManualClock, TenantId, Timestamp};
    use serde_json::{Value, json};
    use tokio::time::Instant;

    use super::super::bare;
    use super::*;
    use crate::view::EdgeView;

    #[test]
    fn only_the_bytes_that_hold_are_known_and_only_in_their_place() {
        let known = Known::default();
        known.note(Bucket::Control, "k", b"first", 1);
        known.note(Bucket::Control, "k", b"second", 2);
        assert_eq!(known.revision_of(Bucket::Control, "k", b"second"), Some(2));
        assert_eq!(known.revision_of(Bucket::Control, "k", b"first"), None);
        assert_eq!(known.revision_of(Bucket::Containment, "k", b"second"), None);
        assert_eq!(known.revision_of(Bucket::Control, "l", b"second"), None);
        known.note(Bucket::Control, "k", b"first", 1);
        assert_eq!(known.revision_of(Bucket::Control, "k", b"first"), None, "noted late by who proved it before the second");
        assert_eq!(known.revision_of(Bucket::Control, "k", b"second"), Some(2));
    }

    #[tokio::test]
    async fn what_is_put_back_or_tampered_with_is_refused_however_often_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(Timestamp::from_micros(1_800_000_000_000_000)));
        let bus = EmbeddedBus::open(&folder.path().join("bus.db"), EmbeddedLimits::default(), clock.clone()).await.unwrap();
        let control = SigningKey::from_seed(&[1; 32]);
        let view = Arc::new(EdgeView::new(KeyRing::new([control.verifying_key()])).unwrap());
        let follower = bare(bus, view.clone(), clock);
        let tenant = TenantId::new("acme").unwrap();
        let key = subject::kv_control(&tenant, EntryKind::Settings, "settings");
        let entry = |revision: i64, rate: u32| {
            let body = json!({"agent_rate_per_s": rate});
            let now = Timestamp::from_micros(revision);
            let entry = sign_entry(&control, &tenant, EntryKind::Settings, "settings", revision, now, Some(body)).unwrap();
            serde_json::to_string(&entry).unwrap()
        };
        let (first, second) = (entry(1, 11), entry(2, 22));
        let read = |text: &str| follower.apply(Bucket::Control, &key, text.as_bytes(), false);
        let stands = || (follower.metrics.feed_refused.get(), view.settings(&tenant).agent_rate_per_s);

        for _ in 0..3 {
            read(&first);
            assert_eq!(stands(), (0, 11));
        }
        for _ in 0..3 {
            read(&second);
            assert_eq!(stands(), (0, 22));
        }
        for refused in 1..4 {
            read(&first);
            assert_eq!(stands(), (refused, 22), "an older one was put back");
        }
        for refused in 4..7 {
            read(&second.replace("22", "99"));
            assert_eq!(stands(), (refused, 22));
            read(&second);
            assert_eq!(stands(), (refused, 22));
        }
    }

    #[tokio::test]
    async fn what_came_twice_and_cannot_hold_is_proved_again() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(Timestamp::from_micros(1_800_000_000_000_000)));
        let bus = EmbeddedBus::open(&folder.path().join("bus.db"), EmbeddedLimits::default(), clock.clone()).await.unwrap();
        let control = SigningKey::from_seed(&[1; 32]);
        let view = Arc::new(EdgeView::new(KeyRing::new([control.verifying_key()])).unwrap());
        let follower = bare(bus, view.clone(), clock);
        let tenant = TenantId::new("acme").unwrap();
        let entry = |kind: EntryKind, name: &str, revision: i64, body: Value| {
            let now = Timestamp::from_micros(revision);
            let entry = sign_entry(&control, &tenant, kind, name, revision, now, Some(body)).unwrap();
            (subject::kv_control(&tenant, kind, name), serde_json::to_vec(&entry).unwrap())
        };
        let text = "@id(\"large\") forbid (principal, action == Action::\"desk/pay\", resource) when { context.parameters has amount && context.parameters.amount > 10 };";
        let policies = entry(EntryKind::Policies, "policies", 1, json!({"policies": text}));
        let parameters = json!({"type": "object", "properties": {"amount": {"type": "integer"}}});
        let pay = json!({"action": "pay", "risk": "medium", "mutates_state": true, "parameters": parameters});
        let desk = entry(EntryKind::Tool, "desk", 2, json!({"tool": "desk", "name": "Desk", "actions": [pay]}));
        let apply = |entries: &[&(String, Vec<u8>)]| {
            follower.apply_all(
                Bucket::Control,
                entries.iter().map(|(key, bytes)| (key.as_str(), bytes.as_slice())),
                Instant::now(),
                false,
            );
        };

        apply(&[&policies, &policies]);
        assert_eq!(follower.metrics.feed_refused.get(), 2);
        assert!(!view.wait_applied(1, Duration::ZERO).await, "nobody is told that it holds");
        apply(&[&policies]);
        assert_eq!(follower.metrics.feed_refused.get(), 3, "it is not taken for known");
        apply(&[&policies, &desk]);
        assert_eq!(follower.metrics.feed_refused.get(), 3);
        assert!(view.wait_applied(1, Duration::ZERO).await && view.wait_applied(2, Duration::ZERO).await);
    }
}
