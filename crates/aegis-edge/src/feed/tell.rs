//! Tells each tenant what is wrong with its control feed, by events with receipts in the edge's own lanes. As best effort, a bounded number at a time:
//! nobody waits for it, and what is refused here is nothing that a call is judged by.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use aegis_ledger::{Draft, Durability, Ledger};
use aegis_model::{SecurityEvent, TenantId};
use tokio::time::Instant;

use super::Follower;
use super::trouble::{Report, Staleness, Whom};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Events of one look: what concerns every tenant of an edge with many is told over several.
const MOST_AT_ONCE: usize = 32;

/// Tells what is wrong with the feed.
#[derive(Debug)]
pub(super) struct Teller {
    follower: Arc<Follower>,
    ledger: Ledger,
    edge_id: String,
    staleness: Staleness,
    started: Instant,
    /// What is told next.
    waiting: VecDeque<(TenantId, Report)>,
}

impl Teller {
    pub(super) fn new(follower: Arc<Follower>, ledger: Ledger, edge_id: &str, now: Instant) -> Self {
        let staleness = Staleness::new(follower.stale_after_s);
        Self { follower, ledger, edge_id: edge_id.to_owned(), staleness, started: now, waiting: VecDeque::new() }
    }

    /// Looks until the task is ended.
    pub(super) async fn run(mut self) {
        loop {
            self.look(Instant::now());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Seals what is due.
    fn look(&mut self, now: Instant) {
        let mut found: Vec<(Whom, Report)> = Vec::new();
        // What waits is bounded: nothing is taken up behind it but the age of the feed, which somebody who forges entries is not to hold up, and that
        // once only.
        if !self.waiting.iter().any(|(_, report)| report.is_of_age()) {
            let age_s = self.age_s(now);
            found.extend(self.staleness.look(age_s, now).map(|report| (None, report)));
        }
        if self.waiting.is_empty() {
            found.extend(self.follower.trouble.take_due(now, MOST_AT_ONCE));
        }
        for (whom, report) in found {
            let tenants = whom.map_or_else(|| self.follower.followed(), |tenant| vec![tenant]);
            self.waiting.extend(tenants.into_iter().map(|tenant| (tenant, report.clone())));
        }
        for (tenant, report) in self.waiting.drain(..self.waiting.len().min(MOST_AT_ONCE)) {
            let told = draft(&self.follower, &self.edge_id, tenant, &report);
            // What the ledger cannot keep it counts, and seals a gap for.
            let _not_awaited = self.ledger.try_submit(told, Durability::BestEffort);
        }
    }

    /// How old the feed is. One that never was read is as old as this start.
    fn age_s(&self, now: Instant) -> i64 {
        let since_start = || i64::try_from(now.duration_since(self.started).as_secs()).unwrap_or(i64::MAX);
        self.follower.view.feed_age_s(self.follower.clock.now()).unwrap_or_else(since_start)
    }
}

fn draft(follower: &Follower, edge_id: &str, tenant: TenantId, report: &Report) -> Draft {
    let (kind, phase, reason, attributes) = report.facts();
    let mut event = SecurityEvent::new(tenant, edge_id, "edge", kind, follower.clock.now());
    event.reason = Some(reason.to_owned());
    event.attributes = Some(attributes.to_string());
    event.clock_suspect = follower.clock.is_suspect();
    Draft::new(event, phase)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use aegis_bus::{Bucket, EmbeddedBus, EmbeddedLimits, subject};
    use aegis_keys::{KeyRing, SigningKey, sign_entry, sign_notice};
    use aegis_ledger::LedgerConfig;
    use aegis_model::{Beat, Clock, EntryKind, EventKind, ManualClock, SignedEntry, Timestamp};
    use serde_json::{Value, json};

    use super::*;
    use crate::EdgeView;
    use crate::feed::bare;
    use crate::feed::entries::is_in_its_place;

    /// How long a test waits for what must come.
    const DEADLINE: Duration = Duration::from_secs(30);
    const EVENTS: [EventKind; 2] = [EventKind::ControlFeedRefused, EventKind::ControlFeedStale];

    struct House {
        _folder: tempfile::TempDir,
        clock: Arc<ManualClock>,
        control: SigningKey,
        bus: Arc<EmbeddedBus>,
        view: Arc<EdgeView>,
        ledger: Ledger,
    }

    impl House {
        async fn new() -> Self {
            let (folder, control) = (tempfile::tempdir().unwrap(), SigningKey::from_seed(&[1; 32]));
            let clock = Arc::new(ManualClock::new(Timestamp::from_micros(1_800_000_000_000_000)));
            let bus = EmbeddedBus::open(&folder.path().join("bus.db"), EmbeddedLimits::default(), clock.clone()).await.unwrap();
            let view = Arc::new(EdgeView::new(KeyRing::new([control.verifying_key()])).unwrap());
            let config = LedgerConfig::new(folder.path().join("ledger.db"), "edge-1", "edge");
            let ledger = Ledger::open(config, SigningKey::from_seed(&[2; 32]), clock.clone()).await.unwrap();
            Self { _folder: folder, clock, control, bus, view, ledger }
        }

        fn follower(&self, tenants: &[&str]) -> Follower {
            let tenants = tenants.iter().map(|name| tenant(name)).collect();
            Follower {
                tenants: Some(tenants),
                stale_after_s: 60,
                ..bare(self.bus.clone(), self.view.clone(), self.clock.clone())
            }
        }

        /// Tenant, reason and attributes of what the ledger has of the feed, once it is so much.
        async fn told(&self, count: usize) -> Vec<(String, String, Value)> {
            let read = async {
                loop {
                    let items = self.ledger.recent(Timestamp::from_micros(0), &EVENTS, 0, 1000).await.unwrap();
                    if items.len() >= count {
                        return items;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let items = tokio::time::timeout(DEADLINE, read).await.unwrap();
            assert_eq!(items.len(), count);
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            let told = items.iter().map(|item| {
                let wire: Value = serde_json::from_str(&item.sealed.wire).unwrap();
                assert_eq!((&wire["edge_id"], &wire["source"]), (&json!("edge-1"), &json!("edge")));
                let attributes: Value = serde_json::from_str(wire["attributes"].as_str().unwrap()).unwrap();
                (text(&wire["tenant_id"]), text(&wire["reason"]), attributes)
            });
            told.collect()
        }
    }

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).unwrap()
    }

    #[tokio::test]
    async fn what_is_refused_is_told_by_what_is_wrong_with_it_and_to_whose_feed_it_is() {
        let house = House::new().await;
        let follower = Follower { overtaken: Duration::ZERO, ..house.follower(&["acme", "beta"]) };
        let (acme, now) = (tenant("acme"), house.clock.now());
        let key = subject::kv_control(&acme, EntryKind::Tool, "crm");
        let body = |name: &str| json!({"tool": "crm", "name": name, "actions": []});
        let signed = |key: &SigningKey, revision: i64, name: &str| {
            sign_entry(key, &acme, EntryKind::Tool, "crm", revision, now, Some(body(name))).unwrap()
        };
        let put = |key: &str, entry: &Value| follower.apply(Bucket::Control, key, entry.to_string().as_bytes(), true);
        let value = |entry: SignedEntry| serde_json::to_value(entry).unwrap();
        put(&key, &value(signed(&house.control, 7, "CRM")));
        assert_eq!(follower.metrics.feed_refused.get(), 0);

        let mut changed = value(signed(&house.control, 8, "CRM"));
        changed["body"]["name"] = json!("Another");
        put(&key, &changed);
        put(&key, &value(signed(&SigningKey::from_seed(&[66; 32]), 9, "CRM")));
        put(&key, &json!("no entry"));
        put(&key, &value(signed(&house.control, 6, "CRM")));
        let elsewhere = subject::kv_control(&acme, EntryKind::Tool, "vault");
        assert!(!is_in_its_place(Bucket::Control, &elsewhere, &signed(&house.control, 9, "CRM")));
        put(&elsewhere, &value(signed(&house.control, 9, "CRM")));
        let no_tool = sign_entry(&house.control, &acme, EntryKind::Tool, "crm", 9, now, Some(json!({"tool": 1}))).unwrap();
        put(&key, &value(no_tool));
        // Of a tenant that the edge does not serve, nobody is told; of control's sign of life, everybody.
        put(&subject::kv_control(&tenant("other"), EntryKind::Tool, "crm"), &json!("no entry"));
        let beat = sign_notice(&SigningKey::from_seed(&[66; 32]), &Beat { at: now, start: 9, n: 9 }).unwrap();
        follower.apply(Bucket::Control, subject::BEAT, &beat, true);
        assert_eq!(follower.metrics.feed_refused.get(), 8);

        let mut teller = Teller::new(Arc::new(follower), house.ledger.clone(), "edge-1", Instant::now());
        house.view.confirm(now);
        teller.look(Instant::now());
        let mut told = house.told(8).await;
        told.sort_by_key(|(tenant, reason, facts)| (tenant.clone(), reason.clone(), facts["key"].to_string()));
        let named: Vec<(&str, &str)> = told.iter().map(|(tenant, reason, _)| (tenant.as_str(), reason.as_str())).collect();
        let of_acme = ["bad_signature", "malformed", "misplaced", "older", "unknown_key", "unknown_key", "unusable"];
        let expected: Vec<(&str, &str)> =
            of_acme.iter().map(|reason| ("acme", *reason)).chain([("beta", "unknown_key")]).collect();
        assert_eq!(named, expected);
        assert_eq!(told[0].2, json!({"count": 1, "bucket": "control", "key": key}));
        assert_eq!((&told[3].2["offered"], &told[3].2["held"]), (&json!(6), &json!(7)));
        assert_eq!(told[2].2["key"], json!(elsewhere));
        assert_eq!(told[7].2["key"], json!("beat"));
    }

    #[tokio::test]
    async fn an_older_entry_right_behind_the_newer_says_nothing() {
        let house = House::new().await;
        let follower = house.follower(&["acme"]);
        let key = subject::kv_control(&tenant("acme"), EntryKind::Tool, "crm");
        for revision in [7, 6] {
            let body = json!({"tool": "crm", "name": "CRM", "actions": []});
            let entry =
                sign_entry(&house.control, &tenant("acme"), EntryKind::Tool, "crm", revision, house.clock.now(), Some(body));
            follower.apply(Bucket::Control, &key, &serde_json::to_vec(&entry.unwrap()).unwrap(), true);
        }
        assert_eq!(follower.metrics.feed_refused.get(), 1, "it is refused and counted");
        assert!(follower.trouble.take_due(Instant::now(), 9).is_empty(), "the one was on its way when the other came");
    }

    #[tokio::test]
    async fn a_feed_that_is_too_old_is_told_to_every_tenant_and_that_it_is_young_again() {
        let house = House::new().await;
        let follower = Arc::new(house.follower(&["acme", "beta"]));
        let start = Instant::now();
        let mut teller = Teller::new(follower, house.ledger.clone(), "edge-1", start);
        house.view.confirm(house.clock.now());
        house.clock.advance_seconds(61);
        (0..10).for_each(|second| teller.look(start + Duration::from_secs(second)));
        let facts = json!({"feed_age_s": 61, "stale_after_s": 60});
        let of = |tenant: &str, reason: &str| (tenant.to_owned(), reason.to_owned(), facts.clone());
        assert_eq!(house.told(2).await, [of("acme", "stale"), of("beta", "stale")]);
        house.view.confirm(house.clock.now());
        teller.look(start + Duration::from_secs(10));
        let told = house.told(4).await;
        assert_eq!(told[2..], [of("acme", "fresh_again"), of("beta", "fresh_again")]);
    }

    #[tokio::test]
    async fn a_feed_that_never_was_read_is_as_old_as_the_start() {
        let house = House::new().await;
        let start = Instant::now();
        let mut teller = Teller::new(Arc::new(house.follower(&["acme"])), house.ledger.clone(), "edge-1", start);
        (55..71).for_each(|second| teller.look(start + Duration::from_secs(second)));
        assert_eq!(house.told(1).await[0].1, "stale");
    }

    #[tokio::test]
    async fn many_tenants_are_told_over_several_looks() {
        let house = House::new().await;
        let names: Vec<String> = (0..100).map(|n| format!("t-{n:03}")).collect();
        let follower = Arc::new(house.follower(&names.iter().map(String::as_str).collect::<Vec<_>>()));
        let start = Instant::now();
        let mut teller = Teller::new(Arc::clone(&follower), house.ledger.clone(), "edge-1", start);
        house.view.confirm(house.clock.now());
        follower.apply(Bucket::Control, subject::BEAT, b"{}", true);
        for left in [68, 36, 4, 0] {
            teller.look(start);
            assert_eq!(teller.waiting.len(), left);
        }
        let mut told: Vec<String> = house.told(100).await.into_iter().map(|(tenant, ..)| tenant).collect();
        told.sort();
        assert_eq!(told, names);
    }

    #[tokio::test]
    async fn a_feed_that_stays_too_old_fills_nothing_however_many_are_to_be_told() {
        let house = House::new().await;
        let names: Vec<String> = (0..100).map(|n| format!("t-{n:03}")).collect();
        let follower = Arc::new(house.follower(&names.iter().map(String::as_str).collect::<Vec<_>>()));
        let start = Instant::now();
        let mut teller = Teller::new(Arc::clone(&follower), house.ledger.clone(), "edge-1", start);
        house.view.confirm(house.clock.now());
        house.clock.advance_seconds(61);
        (0..10).for_each(|second| teller.look(start + Duration::from_secs(second)));
        assert_eq!(teller.waiting.len(), 68);
        // As late as if there were so many that the same is due again before the last of them heard of it.
        let later = start + Duration::from_secs(3600);
        for left in [36, 4, 0] {
            teller.look(later);
            assert_eq!(teller.waiting.len(), left);
        }
        // What is forged in everybody's name meanwhile does not keep from them that the feed is young again.
        follower.apply(Bucket::Control, subject::BEAT, b"{}", true);
        teller.look(later);
        assert_eq!(teller.waiting.len(), 168, "the age, told again as it is due, and what is forged");
        house.view.confirm(house.clock.now());
        for left in [136, 104, 72, 140, 108] {
            teller.look(later);
            assert_eq!(teller.waiting.len(), left);
        }
    }
}
