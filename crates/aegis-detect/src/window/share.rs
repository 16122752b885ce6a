//! What a rule's state of a tenant may weigh: how many keys and buckets there are, what their texts take, and whose events made them.
//! Promises that no agent makes more than its part of a tenant's, and that a key that is known goes on.

use std::collections::HashMap;

use aegis_model::TenantId;

use super::{Hasher, RuleState, TenantState};
use crate::bucket::{Bucket, Maker, Quotas};
use crate::episode::KeyState;
use crate::name::BucketName;

/// How many buckets an agent's events have made, and what the texts of the keys in them take.
#[derive(Debug, Default)]
pub(super) struct Made {
    buckets: usize,
    key_bytes: usize,
}

/// Of each agent.
pub(super) type Makers = HashMap<Maker, Made, Hasher>;

/// What the texts of a key take: its own, which is there as its columns too, and its part of the bucket's.
pub(super) fn bytes_of_key(bucket: &str, text: &str) -> usize {
    bucket.len() + 2 * text.len()
}

impl TenantState {
    /// True if an event of this agent may make one more bucket. Those of no agent have no share of their own.
    pub(super) fn has_share(&mut self, agent: Option<&str>, quotas: Quotas) -> bool {
        let Some(agent) = agent else { return true };
        let (most, most_bytes) = (quotas.keys_per_agent(), quotas.key_bytes_per_agent());
        // Who made how many is counted where it can come to that.
        if self.buckets.len() < most && self.weight_of_keys().1 < most_bytes {
            return true;
        }
        let Self { seldom, buckets, .. } = self;
        let made_by = &mut seldom.get_or_insert_default().made_by;
        let made_by =
            made_by.get_or_insert_with(|| Box::new(made_of(buckets.iter().map(|(name, bucket)| (name.text(), bucket)))));
        made_by.get(&Maker::of(agent)).is_none_or(|made| made.buckets < most && made.key_bytes < most_bytes)
    }

    /// Makes a bucket that is not there, and answers where it stands.
    pub(super) fn make(&mut self, name: &BucketName, agent: Option<&str>) -> usize {
        let made_by = agent.map(Maker::of);
        let mut bucket = Bucket::made_by(made_by);
        if let Some(seldom) = &mut self.seldom {
            if let (Some(agent), Some(counted)) = (made_by, &mut seldom.made_by) {
                counted.entry(agent).or_default().buckets += 1;
            }
            bucket.lose_to(seldom.refused.newest(name.text()));
        }
        self.buckets.add(name.clone(), bucket)
    }
}

/// What each agent made of some buckets.
fn made_of<'a>(buckets: impl Iterator<Item = (&'a str, &'a Bucket)>) -> Makers {
    let mut made_by = Makers::default();
    for (name, bucket) in buckets {
        if let Some(agent) = bucket.made_by {
            let made = made_by.entry(agent).or_default();
            made.buckets += 1;
            made.key_bytes += bucket.keys().map(|(text, _)| bytes_of_key(name, text)).sum::<usize>();
        }
    }
    made_by
}

/// Keys of so many bytes are gone from one of an agent's buckets, and the bucket too, or not.
pub(super) fn give_back(made_by: &mut Makers, agent: Maker, key_bytes: usize, bucket_too: bool) {
    if let Some(made) = made_by.get_mut(&agent) {
        made.key_bytes -= key_bytes;
        made.buckets -= usize::from(bucket_too);
        if made.buckets == 0 {
            made_by.remove(&agent);
        }
    }
}

impl RuleState {
    /// The state of a key, made if there is none. `agent` is whose event a match was found in. None: a quota of keys is full, or the agent's part
    /// of it.
    pub(crate) fn key_or_new(
        &mut self,
        tenant: &TenantId,
        bucket: &str,
        text: &str,
        agent: Option<&str>,
        quotas: Quotas,
    ) -> Option<&mut KeyState> {
        let number = self.tenant_or_new(tenant);
        let Self { tenants, due, .. } = self;
        let (_, state) = tenants.get_index_mut(number)?;
        let known = state.buckets.get(bucket);
        if !known.is_some_and(|bucket| bucket.has_key(text)) {
            let is_new = known.is_none();
            let has_room = !is_new || (state.buckets.len() < quotas.keys_per_tenant && state.has_share(agent, quotas));
            let (keys, key_bytes) = state.weight_of_keys();
            if keys >= quotas.keys_per_tenant || key_bytes >= quotas.key_bytes_per_tenant || !has_room {
                return None;
            }
            if is_new {
                state.make(&BucketName::new(tenant, bucket), agent);
            }
            let bytes = bytes_of_key(bucket, text);
            if !state.has_keys() {
                due.note(tenant, state);
            }
            let made_by = state.buckets.get(bucket).and_then(|bucket| bucket.made_by);
            let seldom = state.seldom();
            if !seldom.keyed.contains(bucket) {
                seldom.keyed.insert(bucket.to_owned());
            }
            seldom.keys += 1;
            seldom.key_bytes += bytes;
            if let (Some(agent), Some(counted)) = (made_by, &mut seldom.made_by)
                && let Some(made) = counted.get_mut(&agent)
            {
                made.key_bytes += bytes;
            }
        }
        Some(state.buckets.get_mut(bucket)?.key_or_new(text))
    }
}
