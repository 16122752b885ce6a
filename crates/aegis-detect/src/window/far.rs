//! What a checkpoint has of a window from before the part of the stream that a restart reads again: the events themselves. Promises that what finds no
//! room is the oldest of the agents that have most, and of the keys of those, so that nobody takes the room of another, however many keys an agent makes; and
//! that it is known up to when some are left out.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use aegis_model::{SecurityEvent, TenantId, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Hasher, RuleState, TenantState};
use crate::bucket::{Maker, bytes_of};

/// Bytes that a checkpoint has of a rule's events of one tenant at most, about.
const MOST_BYTES: usize = 1 << 20;
/// What an event takes there beside its texts, about.
const BYTES_OF_AN_EVENT: usize = 500;

/// Of each tenant, as it stands in a checkpoint.
pub(crate) type Far = BTreeMap<TenantId, FarPart>;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct FarPart {
    /// In their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) events: Vec<SecurityEvent>,
    /// What a start read of what found no room: one copy for all rules, of which a tenant may have many.
    #[serde(skip)]
    pub(crate) read: Vec<Arc<SecurityEvent>>,
    /// Up to then there are some that are not here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cut: Option<Timestamp>,
    /// Of a rule that waits for what does not follow: up to when a quota has taken events of these buckets,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    taken: BTreeMap<String, Timestamp>,
    /// and did not let in those of others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused: Option<Timestamp>,
}

impl FarPart {
    /// Events up to then may be gone.
    pub(crate) fn cut_to(&mut self, to: Option<Timestamp>) {
        self.cut = self.cut.max(to);
    }

    fn is_empty(&self) -> bool {
        self.events.is_empty() && self.cut.is_none() && self.taken.is_empty() && self.refused.is_none()
    }
}

/// Up to when events of a tenant are to be in the checkpoint; None: of no time.
pub(crate) type FarTo<'a> = dyn Fn(&TenantId) -> Option<Timestamp> + 'a;

/// How many bytes a rule may have of a tenant's events, of those tenants for whom there is no room for all.
pub(crate) type FarMost = BTreeMap<TenantId, usize>;

fn weight_of(event: &SecurityEvent) -> usize {
    BYTES_OF_AN_EVENT + bytes_of(event)
}

impl TenantState {
    /// The events of before a time, bucket by bucket.
    fn before(&self, to: Timestamp) -> impl Iterator<Item = &[Arc<SecurityEvent>]> {
        self.buckets.values().map(move |bucket| bucket.before(to)).filter(|far| !far.is_empty())
    }

    /// How much they are, about and at most.
    fn far_bytes(&self, to: Timestamp) -> usize {
        let count: usize = self.before(to).map(<[_]>::len).sum();
        if count == 0 { 0 } else { count * BYTES_OF_AN_EVENT + self.bytes }
    }

    /// The most that each agent's keys may have: what a rule keys on can be the caller's to choose.
    fn shares(&self, to: Timestamp, most: usize) -> Shares {
        let mut weights: HashMap<Option<Maker>, Vec<usize>, Hasher> = HashMap::default();
        for events in self.before(to) {
            let weight: usize = events.iter().map(|event| weight_of(event)).sum();
            weights.entry(whose(events)).or_default().push(weight);
        }
        let of_agent = share_of(weights.values().map(|of_keys| of_keys.iter().sum::<usize>()).collect(), most);
        weights.into_iter().map(|(agent, of_keys)| (agent, share_of(of_keys, of_agent))).collect()
    }

    /// Those for which there is room.
    fn save_far(&self, to: Timestamp, most: usize, waits: bool, slim: &dyn Fn(&SecurityEvent) -> SecurityEvent) -> FarPart {
        let shares = if self.far_bytes(to) <= most { Shares::default() } else { self.shares(to, most) };
        let mut part = FarPart::default();
        for events in self.before(to) {
            let mut left = shares.get(&whose(events)).copied().unwrap_or(usize::MAX);
            for event in events.iter().rev() {
                let Some(rest) = left.checked_sub(weight_of(event)) else {
                    part.cut_to(Some(event.ts));
                    break;
                };
                left = rest;
                part.events.push(slim(event));
            }
        }
        part.events.sort_by(|a, b| a.order_key().cmp(&b.order_key()));
        if waits {
            let mut left = most / 4;
            for (name, lost_to) in self.buckets.iter().filter_map(|(name, bucket)| Some((name, bucket.lost_to()?))) {
                match left.checked_sub(BYTES_OF_AN_EVENT + name.text().len()) {
                    Some(rest) => {
                        left = rest;
                        part.taken.insert(name.text().to_owned(), lost_to);
                    }
                    None => part.cut_to(Some(lost_to)),
                }
            }
            part.refused = self.seldom.as_ref().and_then(|seldom| seldom.refused.newest_of_all());
        }
        part
    }
}

/// The most that one of an agent's keys may have; those of no agent have a share together.
type Shares = HashMap<Option<Maker>, usize, Hasher>;

/// Whose key it is: of the first of its events.
fn whose(events: &[Arc<SecurityEvent>]) -> Option<Maker> {
    events.first()?.agent_id.as_deref().map(Maker::of)
}

/// The most that each of some may have so that all together have no more than `most`: what one does not need is the others'.
pub(crate) fn share_of(mut weights: Vec<usize>, most: usize) -> usize {
    weights.sort_unstable();
    let (mut left, mut others) = (most, weights.len());
    for weight in weights {
        let share = left / others;
        if weight > share {
            return share;
        }
        left -= weight;
        others -= 1;
    }
    usize::MAX
}

impl RuleState {
    /// How many bytes a checkpoint would have of each tenant's events of before a time, about and at most.
    pub(crate) fn far_bytes<'a>(&'a self, to: &'a FarTo<'a>) -> impl Iterator<Item = (&'a TenantId, usize)> {
        self.tenants.iter().filter_map(move |(tenant, state)| Some((tenant, state.far_bytes(to(tenant)?).min(MOST_BYTES))))
    }

    /// The events of before a time, of some tenants no more than so many bytes. `waits`: for what does not follow.
    pub(crate) fn save_far(
        &self,
        to: &FarTo<'_>,
        most: &FarMost,
        waits: bool,
        slim: &dyn Fn(&SecurityEvent) -> SecurityEvent,
    ) -> Far {
        let of_tenant = |(tenant, state): (&TenantId, &TenantState)| {
            let most = most.get(tenant).map_or(MOST_BYTES, |most| MOST_BYTES.min(*most));
            let part = state.save_far(to(tenant)?, most, waits, slim);
            (!part.is_empty()).then(|| (tenant.clone(), part))
        };
        self.tenants.iter().map(|(tenant, state)| (tenant, &**state)).filter_map(of_tenant).collect()
    }

    /// What quotas had taken of a tenant's events, which are not among those that came back.
    pub(crate) fn know_taken(&mut self, tenant: &TenantId, part: &FarPart) {
        if part.taken.is_empty() && part.refused.is_none() {
            return;
        }
        let number = self.tenant_or_new(tenant);
        let Some((_, state)) = self.tenants.get_index_mut(number) else { return };
        state.seldom().refused.note_all(part.refused);
        for (name, lost_to) in &part.taken {
            match state.buckets.get_mut(name) {
                Some(bucket) => bucket.lose_to(Some(*lost_to)),
                None => state.seldom().refused.note(name, *lost_to),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_does_not_need_is_the_others_and_nobody_has_more_than_his_share() {
        assert_eq!(share_of(vec![10, 20, 30], 60), usize::MAX);
        assert_eq!(share_of(Vec::new(), 0), usize::MAX);
        for (weights, most) in [(vec![10, 1000, 30], 100), (vec![50, 50, 50], 100), (vec![1, 1, 1000, 1000], 500), (vec![7], 0)] {
            let share = share_of(weights.clone(), most);
            let had: usize = weights.iter().map(|weight| share.min(*weight)).sum();
            assert!(had <= most, "{weights:?} have {had} of {most}");
            assert!(most - had < weights.len(), "{weights:?} leave {} of {most}", most - had);
        }
    }
}
