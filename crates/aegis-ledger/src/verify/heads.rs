//! Lane heads: how far each lane has been followed, and how a receipt stands to that. The consumer's checkpoint holds them.

use std::collections::BTreeMap;
use std::collections::btree_map::Range;

use aegis_model::Timestamp;
use serde::{Deserialize, Serialize};

use super::{FailureCode, VerifiedReceipt, VerifyFailure};

/// The last receipt of a lane that was followed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    seq: i64,
    hash: String,
    ts: Timestamp,
    closed: bool,
    /// A later lane named this one as its predecessor.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    succeeded: bool,
    /// Ranges of seqs that the lane went on without, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    missing: Vec<(i64, i64)>,
}

impl Head {
    /// The head that a lane has before `receipt`, where the log that is read begins with that and the lane was followed to here once. None: it is the
    /// lane's first.
    fn before(&self, receipt: &VerifiedReceipt) -> Option<Self> {
        if receipt.seq > self.seq {
            return Some(self.clone());
        }
        let missing = self.missing.iter().copied().filter(|(_, to)| *to < receipt.seq).collect();
        let (seq, hash) = (receipt.seq - 1, receipt.prev_receipt_hash.clone());
        (receipt.seq > 1).then(|| Self { seq, hash, ts: receipt.ts, missing, ..Self::default() })
    }
}

/// Missing ranges that a lane remembers. Past it the oldest is forgotten, and what still comes of it counts as seen before.
const MAX_MISSING: usize = 64;
/// Lanes of one tenant's edge that are remembered. It opens as many as it wants, and a checkpoint must have room for those of everybody.
const MAX_LANES: usize = 1024;

/// The heads of all lanes seen. Serializable, so that a checkpoint can hold it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LaneHeads(BTreeMap<String, Head>);

/// How far a lane was followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneHead<'a> {
    pub lane: &'a str,
    pub seq: i64,
    pub receipt_hash: &'a str,
    pub ts: Timestamp,
    /// True if that receipt closed it.
    pub closed: bool,
    /// Ranges of seqs that it went on without, first and last of each, oldest first; the newest 64 of them.
    pub missing: &'a [(i64, i64)],
}

/// How a receipt stands to its lane's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// Seq 1 of a lane not seen before.
    First,
    /// The next receipt, and it links to the head.
    Next,
    /// At or before the head. `same`: it is the head itself; for older ones only the seq is known.
    Repeated { same: bool },
    /// Before the head, in a range that the lane went on without: it was missing, and has come late.
    Late,
    /// Receipts `from ..= to` are missing before it. A lane not seen before counts from seq 1.
    Missing { from: i64, to: i64 },
    /// It breaks the chain.
    Broken(VerifyFailure),
}

impl LaneHeads {
    /// Number of lanes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True before the first receipt.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Seq and hash of a lane's head.
    #[must_use]
    pub fn get(&self, lane: &str) -> Option<(i64, &str)> {
        self.0.get(lane).map(|head| (head.seq, head.hash.as_str()))
    }

    /// Those of a tenant's lanes whose last receipt is not before a time.
    #[must_use]
    pub fn of_tenant_since(&self, tenant: &str, from: Timestamp) -> Self {
        let its = self.range_of(tenant).filter(|(_, head)| head.ts >= from);
        Self(its.map(|(lane, head)| (lane.clone(), head.clone())).collect())
    }

    /// A tenant's lanes, by name.
    pub fn of_tenant(&self, tenant: &str) -> impl Iterator<Item = LaneHead<'_>> {
        self.range_of(tenant).map(|(lane, head)| {
            let Head { seq, hash, ts, closed, missing, .. } = head;
            LaneHead { lane, seq: *seq, receipt_hash: hash, ts: *ts, closed: *closed, missing }
        })
    }

    fn range_of(&self, tenant: &str) -> Range<'_, String, Head> {
        self.0.range(format!("{tenant}.")..format!("{tenant}/"))
    }

    /// Each lane, with seq and hash of its head.
    pub fn all(&self) -> impl Iterator<Item = (&str, i64, &str)> {
        self.0.iter().map(|(lane, head)| (lane.as_str(), head.seq, head.hash.as_str()))
    }

    /// Forgets lanes that have ended (closed, or succeeded by another lane) with a last receipt earlier than `before`; and of one tenant's edge with
    /// more than 1,024 those with the oldest last receipts. Bounds a long-running consumer: every start of a producer makes new lanes. A lane that is
    /// only quiet is kept.
    pub fn forget_idle(&mut self, before: Timestamp) {
        self.0.retain(|_, head| head.ts >= before || !(head.closed || head.succeeded));
        if self.0.len() <= MAX_LANES {
            return;
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for lane in self.0.keys() {
            *counts.entry(edge_of(lane)).or_default() += 1;
        }
        let crowded = counts.into_iter().filter(|(_, lanes)| *lanes > MAX_LANES).map(|(edge, _)| edge.to_owned());
        for edge in crowded.collect::<Vec<String>>() {
            let own = self.0.iter().filter(|(lane, _)| edge_of(lane) == edge);
            let mut by_age: Vec<(Timestamp, String)> = own.map(|(lane, head)| (head.ts, lane.clone())).collect();
            by_age.sort_unstable();
            by_age.truncate(by_age.len().saturating_sub(MAX_LANES));
            for (_, lane) in by_age {
                self.0.remove(&lane);
            }
        }
    }

    /// How `receipt` stands to its lane. Changes nothing.
    #[must_use]
    pub fn link(&self, receipt: &VerifiedReceipt) -> Link {
        let broken = |code, message: String| Link::Broken(VerifyFailure::new(code, message).of(receipt));
        if (receipt.seq == 1) != receipt.prev_receipt_hash.is_empty() || (receipt.seq == 1) != (receipt.phase == "open") {
            return broken(FailureCode::LaneRule, "seq 1, no previous receipt and phase open go together".to_owned());
        }
        let Some(head) = self.0.get(&receipt.lane) else {
            return if receipt.seq == 1 { Link::First } else { Link::Missing { from: 1, to: receipt.seq - 1 } };
        };
        if receipt.seq <= head.seq {
            let same = receipt.seq == head.seq && receipt.receipt_hash == head.hash;
            if receipt.seq == head.seq && !same {
                return broken(FailureCode::ForkedSeq, format!("the lane has another receipt with seq {}", receipt.seq));
            }
            let late = head.missing.iter().any(|(from, to)| (*from..=*to).contains(&receipt.seq));
            return if late { Link::Late } else { Link::Repeated { same } };
        }
        if head.closed {
            return broken(FailureCode::LaneRule, format!("the lane was closed at seq {}", head.seq));
        }
        if receipt.seq > head.seq + 1 {
            return Link::Missing { from: head.seq + 1, to: receipt.seq - 1 };
        }
        if receipt.prev_receipt_hash != head.hash {
            return broken(FailureCode::BrokenLink, format!("it does not link to the receipt with seq {}", head.seq));
        }
        if receipt.ts < head.ts {
            return broken(FailureCode::TimeReversed, format!("its ts is earlier than that of seq {}", head.seq));
        }
        Link::Next
    }

    /// The same in a log that begins within lanes, which were followed to `known` once.
    pub(super) fn link_within(&self, known: &Self, receipt: &VerifiedReceipt) -> Link {
        let head = known.0.get(&receipt.lane).filter(|_| !self.0.contains_key(&receipt.lane));
        match head.and_then(|head| head.before(receipt)) {
            Some(head) => Self(BTreeMap::from([(receipt.lane.clone(), head)])).link(receipt),
            None => self.link(receipt),
        }
    }

    /// Takes up the lane of `receipt` where the log begins with that, and the lane was followed to `known` once.
    pub(super) fn take_up(&mut self, known: &mut Self, receipt: &VerifiedReceipt) {
        if known.is_empty() || self.0.contains_key(&receipt.lane) {
            return;
        }
        if let Some(head) = known.0.remove(&receipt.lane).and_then(|head| head.before(receipt)) {
            self.0.insert(receipt.lane.clone(), head);
        }
    }

    /// Takes up all lanes of `known` that are not followed yet, as they stood there.
    pub(super) fn take_up_all(&mut self, known: Self) {
        for (lane, head) in known.0 {
            self.0.entry(lane).or_insert(head);
        }
    }

    /// Makes `receipt` the head of its lane, because it is the next one, or the first that is looked at.
    pub fn advance(&mut self, receipt: &VerifiedReceipt) {
        self.put(receipt);
    }

    /// Makes `receipt` the head of its lane although `from ..= to` are missing before it; they may still come late.
    pub(super) fn advance_over(&mut self, receipt: &VerifiedReceipt, from: i64, to: i64) {
        let missing = &mut self.put(receipt).missing;
        missing.push((from, to));
        if missing.len() > MAX_MISSING {
            missing.remove(0);
        }
    }

    /// Notes that a missing receipt has come.
    pub(super) fn found(&mut self, receipt: &VerifiedReceipt) {
        let Some(head) = self.0.get_mut(&receipt.lane) else { return };
        let Some(place) = head.missing.iter().position(|(from, to)| (*from..=*to).contains(&receipt.seq)) else { return };
        let (from, to) = head.missing.remove(place);
        let rest = [(from, receipt.seq - 1), (receipt.seq + 1, to)];
        let rest = rest.into_iter().filter(|(from, to)| from <= to);
        head.missing.splice(place..place, rest);
        // Filling a range from its middle splits it; the bound holds all the same.
        if head.missing.len() > MAX_MISSING {
            head.missing.remove(0);
        }
    }

    /// The lane's head, which is now this receipt; what was missing before it still is.
    fn put(&mut self, receipt: &VerifiedReceipt) -> &mut Head {
        // Of the same tenant only: no tenant's lane may end another's.
        if let Some(predecessor) = &receipt.predecessor
            && predecessor.split_once('.').is_some_and(|(tenant, _)| tenant == receipt.tenant_id)
            && let Some(before) = self.0.get_mut(predecessor)
        {
            before.succeeded = true;
        }
        let head = self.0.entry(receipt.lane.clone()).or_default();
        head.seq = receipt.seq;
        head.hash.clone_from(&receipt.receipt_hash);
        head.ts = receipt.ts;
        head.closed = receipt.phase == "close";
        head.succeeded = false;
        head
    }
}

/// Tenant and edge of a lane: its id without the epoch.
fn edge_of(lane: &str) -> &str {
    lane.rsplit_once('.').map_or(lane, |(edge, _)| edge)
}
