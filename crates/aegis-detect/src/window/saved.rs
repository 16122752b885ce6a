//! What of a rule's state stands in a checkpoint: what was told of its keys. The events of the window come from the stream again.

use std::collections::{BTreeMap, BTreeSet};

use aegis_model::TenantId;

use super::RuleState;
use super::share::bytes_of_key;
use crate::bucket::Bucket;
use crate::episode::{KeyState, json_bytes};
use crate::name::BucketName;

/// What a rule told of its keys, as it stands in a checkpoint: tenant → bucket → key.
pub(crate) type SavedKeys = BTreeMap<TenantId, BTreeMap<String, BTreeMap<String, KeyState>>>;

impl RuleState {
    /// How many bytes a checkpoint has of what was told of each tenant's keys, about and at most.
    pub(crate) fn told_bytes(&self) -> impl Iterator<Item = (&TenantId, usize)> {
        self.tenants.iter().map(|(tenant, state)| {
            let of_bucket = |(name, bucket): (&BucketName, &Bucket)| {
                let told = bucket.keys().filter(|(_, key)| key.has_told());
                let bytes: usize = told.map(|(text, key)| key.told_bytes(text)).sum();
                if bytes == 0 { 0 } else { bytes + json_bytes(name.text()) }
            };
            // Most tenants have none, and are far away.
            let bytes = if state.has_keys() { state.buckets.iter().map(of_bucket).sum::<usize>() } else { 0 };
            (tenant, bytes)
        })
    }

    /// What was told of keys, but for those of the tenants that are left out.
    pub(crate) fn save_keys(&self, left_out: &BTreeSet<TenantId>) -> SavedKeys {
        let mut saved = SavedKeys::new();
        for (tenant, state) in self.tenants.iter().filter(|(tenant, state)| state.has_keys() && !left_out.contains(tenant)) {
            for (name, bucket) in state.buckets.iter() {
                let keys = bucket.keys().filter(|(_, k)| k.has_told()).map(|(text, key)| (text.clone(), key.told()));
                let keys: BTreeMap<String, KeyState> = keys.collect();
                if !keys.is_empty() {
                    saved.entry(tenant.clone()).or_default().insert(name.text().to_owned(), keys);
                }
            }
        }
        saved
    }

    pub(crate) fn load_keys(&mut self, saved: SavedKeys) {
        for (tenant, buckets) in saved {
            let number = self.tenant_or_new(&tenant);
            let Some((_, state)) = self.tenants.get_index_mut(number) else { continue };
            self.due.note(&tenant, state);
            for (name, keys) in buckets {
                let seldom = state.seldom();
                seldom.keys += keys.len();
                if !keys.is_empty() {
                    seldom.keyed.insert(name.clone());
                }
                seldom.key_bytes += keys.keys().map(|text| bytes_of_key(&name, text)).sum::<usize>();
                let known = state.buckets.place_of_text(&name);
                let place = known.unwrap_or_else(|| state.buckets.add(BucketName::new(&tenant, &name), Bucket::default()));
                if let Some(bucket) = state.buckets.at_mut(place) {
                    bucket.set_keys(keys);
                }
            }
        }
    }
}
