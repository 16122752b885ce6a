//! Receipts that a consumer (the history, the lake) lacks: a lane went on without them. They are asked for again, and a gap that nobody fills is told
//! of. What is open is kept by the consumer with its rows; of a lane that is new to the process, the consumer says how far it is. Promises that no
//! tenant's gaps take the room, or the turn, of another's.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use aegis_model::{LaneReach, TenantId, Timestamp};

use crate::{AskForMissing, Turns};

/// Lanes that are followed at most; past it all of them are looked up again.
const MOST_LANES: usize = 100_000;
/// Stretches of one lane, as many as a consumer keeps, and of all. A lane with more goes on when some have come: its edge ships again what
/// lies behind its head. Where all places are taken, the tenant that has the most gives up its newest for one that has fewer.
const MOST_OF_A_LANE: usize = 256;
const MOST_GAPS: usize = 65_536;
/// How long a gap is left alone at first, and between two requests, microseconds: what comes out of order comes soon.
const FIRST_US: i64 = 2_000_000;
const AGAIN_US: i64 = 5_000_000;
/// After so many requests a gap is asked for less often, and for as long as the process lives.
const MANY_TRIES: u32 = 24;
const SELDOM_US: i64 = 60_000_000;
/// A lane does not go on as far at once: who says so is not believed, and nothing is asked for.
const MOST_MISSING: i64 = 1_000_000;

/// Requests at once: not more than whoever ships again takes. After so many nobody looks for more within this time, microseconds: it takes a look at all
/// that are open, and the consumer waits for it.
const AT_ONCE: usize = 64;
const REST_US: i64 = 100_000;

/// A lane and the first seq that is missing.
type Place = (String, i64);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Gap {
    tenant: TenantId,
    to_seq: i64,
    ask_at: Timestamp,
    tries: u32,
}

/// The gaps of all lanes.
#[derive(Debug, Default)]
pub struct Gaps {
    heads: HashMap<String, (TenantId, i64)>,
    open: BTreeMap<Place, Gap>,
    /// Whose they are.
    of_tenant: BTreeMap<TenantId, BTreeSet<Place>>,
    /// Whose turn it was last.
    asked_last: Option<TenantId>,
    /// When as many were asked for as may be at once.
    full_at: Option<Timestamp>,
    /// Lanes that the consumer does not have as they are here.
    changed: BTreeSet<String>,
}

impl Gaps {
    /// Whether the lane was seen; else `begin` says how far it is.
    #[must_use]
    pub fn knows(&self, lane: &str) -> bool {
        self.heads.contains_key(lane)
    }

    /// A lane as the consumer has it. What there is no place for is behind its head from now on, and comes again with what goes on from there.
    pub fn begin(&mut self, lane: LaneReach, now: Timestamp) {
        // Not while some of them are still to be written.
        if self.heads.len() >= MOST_LANES && self.changed.is_empty() {
            self.heads.clear();
        }
        let LaneReach { tenant_id, lane, mut head, missing } = lane;
        for (from_seq, to_seq) in missing {
            let place = (lane.clone(), from_seq);
            if self.open.contains_key(&place) {
                continue;
            }
            if !self.make_place(&tenant_id) {
                head = from_seq - 1;
                break;
            }
            self.put(place, Gap { tenant: tenant_id.clone(), to_seq, ask_at: now.plus_micros(FIRST_US), tries: 0 });
        }
        self.heads.insert(lane, (tenant_id, head));
    }

    /// Whether the consumer has this receipt of the lane, or is about to.
    #[must_use]
    pub fn has(&self, lane: &str, seq: i64) -> bool {
        if self.heads.get(lane).is_none_or(|(_, head)| seq > *head) {
            return false;
        }
        let before = self.open.range(..=(lane.to_owned(), seq)).next_back();
        before.is_none_or(|(place, gap)| place.0 != lane || seq > gap.to_seq)
    }

    /// A receipt of the lane, proved, is to be kept.
    pub fn took(&mut self, lane: &str, seq: i64, now: Timestamp) {
        let Some(head) = self.heads.get(lane).map(|(_, head)| *head) else { return };
        if seq <= head {
            self.fill(lane, seq);
            return;
        }
        let from_seq = head + 1;
        if seq - head > MOST_MISSING {
            return;
        }
        if seq > from_seq && !self.open_gap(lane, (from_seq, seq - 1), now) {
            return;
        }
        if let Some((_, head)) = self.heads.get_mut(lane) {
            *head = seq;
        }
        if !self.changed.contains(lane) {
            self.changed.insert(lane.to_owned());
        }
    }

    /// A receipt that was taken is not kept, and will not be when it comes again: the lane lacks it. It is asked for, seldom.
    pub fn lacks(&mut self, lane: &str, seq: i64, now: Timestamp) {
        let Some(tenant) = self.heads.get(lane).map(|(tenant, _)| tenant.clone()).filter(|_| self.has(lane, seq)) else { return };
        self.changed.insert(lane.to_owned());
        if self.has_room(lane) && self.make_place(&tenant) {
            let gap = Gap { tenant, to_seq: seq, ask_at: now.plus_micros(SELDOM_US), tries: MANY_TRIES + 1 };
            self.put((lane.to_owned(), seq), gap);
            return;
        }
        // It stands before that one, and nothing is said of what came behind it.
        let behind = (lane.to_owned(), seq)..=(lane.to_owned(), i64::MAX);
        let behind: Vec<Place> = self.open.range(behind).map(|(place, _)| place.clone()).collect();
        behind.iter().for_each(|place| self.remove(place));
        if let Some((_, head)) = self.heads.get_mut(lane) {
            *head = seq - 1;
        }
    }

    /// The lanes that are to be written with the rows that changed them.
    #[must_use]
    pub fn changed(&self) -> Vec<LaneReach> {
        let state = |lane: &String| {
            let (tenant_id, head) = self.heads.get(lane)?.clone();
            let open = self.open.range((lane.clone(), i64::MIN)..=(lane.clone(), i64::MAX));
            let missing = open.map(|((_, from_seq), gap)| (*from_seq, gap.to_seq)).collect();
            Some(LaneReach { tenant_id, lane: lane.clone(), head, missing })
        };
        self.changed.iter().filter_map(state).collect()
    }

    /// They were written.
    pub fn written(&mut self) {
        self.changed.clear();
    }

    /// Neither they were written nor the rows that changed them, or not all: the consumer has them as before, and each is to be begun again.
    pub fn not_written(&mut self) {
        for lane in std::mem::take(&mut self.changed) {
            let open = self.open.range((lane.clone(), i64::MIN)..=(lane.clone(), i64::MAX));
            let open: Vec<Place> = open.map(|(place, _)| place.clone()).collect();
            open.iter().for_each(|place| self.remove(place));
            self.heads.remove(&lane);
        }
    }

    /// False if there is no place for it.
    fn open_gap(&mut self, lane: &str, (from_seq, to_seq): (i64, i64), now: Timestamp) -> bool {
        let Some(tenant) = self.heads.get(lane).map(|(tenant, _)| tenant.clone()) else { return false };
        if !self.has_room(lane) || !self.make_place(&tenant) {
            return false;
        }
        self.put((lane.to_owned(), from_seq), Gap { tenant, to_seq, ask_at: now.plus_micros(FIRST_US), tries: 0 });
        true
    }

    fn has_room(&self, lane: &str) -> bool {
        let own = self.open.range((lane.to_owned(), i64::MIN)..=(lane.to_owned(), i64::MAX));
        own.take(MOST_OF_A_LANE).count() < MOST_OF_A_LANE
    }

    /// Whether the tenant may have one more. What another gives up for it is behind the head of its lane from then on.
    fn make_place(&mut self, tenant: &TenantId) -> bool {
        if self.open.len() < MOST_GAPS {
            return true;
        }
        let own = self.of_tenant.get(tenant).map_or(0, BTreeSet::len);
        let Some((_, of_fullest)) = self.of_tenant.iter().max_by_key(|(_, places)| places.len()) else { return false };
        if of_fullest.len() <= own + 1 {
            return false;
        }
        let Some(place) = of_fullest.last().cloned() else { return false };
        if !self.changed.contains(&place.0) {
            tracing::warn!(lane = place.0, "its tenant has more gaps than any other, and gives up some for another's");
        }
        self.remove(&place);
        if let Some((_, head)) = self.heads.get_mut(&place.0) {
            *head = place.1 - 1;
            self.changed.insert(place.0);
        }
        true
    }

    fn put(&mut self, place: Place, gap: Gap) {
        self.of_tenant.entry(gap.tenant.clone()).or_default().insert(place.clone());
        self.open.insert(place, gap);
    }

    fn remove(&mut self, place: &Place) {
        let Some(gap) = self.open.remove(place) else { return };
        if let Some(places) = self.of_tenant.get_mut(&gap.tenant) {
            places.remove(place);
            if places.is_empty() {
                self.of_tenant.remove(&gap.tenant);
            }
        }
    }

    fn fill(&mut self, lane: &str, seq: i64) {
        let before = self.open.range(..=(lane.to_owned(), seq)).next_back();
        let Some((place, gap)) = before.map(|(place, gap)| (place.clone(), gap.clone())) else { return };
        if place.0 != lane || seq > gap.to_seq {
            return;
        }
        let parts = place.1 < seq && seq < gap.to_seq;
        if parts && !(self.has_room(lane) && self.make_place(&gap.tenant)) {
            // It stays whole: what came is shipped once more with the rest.
            return;
        }
        self.remove(&place);
        self.changed.insert(lane.to_owned());
        if place.1 < seq {
            self.put(place, Gap { to_seq: seq - 1, ..gap.clone() });
        }
        if seq < gap.to_seq {
            self.put((lane.to_owned(), seq + 1), gap);
        }
    }

    /// Asks for what is due, tenant by tenant in turn, of each what has waited longest first.
    pub fn ask(&mut self, from: &dyn AskForMissing, now: Timestamp) {
        // Not where the clock was set back since.
        if self.full_at.is_some_and(|at| at <= now && now < at.plus_micros(REST_US)) {
            return;
        }
        let due = self.due(now);
        self.full_at = (due.len() >= AT_ONCE).then_some(now);
        for place in due {
            let Some(gap) = self.open.get_mut(&place) else { continue };
            let (lane, from_seq) = &place;
            if gap.tries == MANY_TRIES {
                tracing::error!(
                    lane,
                    from_seq,
                    to_seq = gap.to_seq,
                    "receipts are missing behind the bus, and nobody has sent them yet"
                );
            }
            from.ask(lane, *from_seq, gap.to_seq);
            gap.tries = gap.tries.saturating_add(1);
            gap.ask_at = now.plus_micros(if gap.tries > MANY_TRIES { SELDOM_US } else { AGAIN_US });
            self.asked_last = Some(gap.tenant.clone());
        }
    }

    /// What is to be asked for now. The tenant behind the one whose turn it was last comes first.
    fn due(&self, now: Timestamp) -> Vec<Place> {
        let mut by_tenant: BTreeMap<&TenantId, Vec<(Timestamp, &Place)>> = BTreeMap::new();
        for (place, gap) in self.open.iter().filter(|(_, gap)| now >= gap.ask_at) {
            by_tenant.entry(&gap.tenant).or_default().push((gap.ask_at, place));
        }
        let mut turns = Turns::behind(self.asked_last.as_ref());
        for (tenant, mut of_tenant) in by_tenant {
            if of_tenant.len() > AT_ONCE {
                of_tenant.select_nth_unstable(AT_ONCE);
                of_tenant.truncate(AT_ONCE);
            }
            of_tenant.sort_unstable();
            of_tenant.into_iter().for_each(|(_, place)| turns.put(tenant, place));
        }
        turns.take(AT_ONCE).cloned().collect()
    }

    /// Stretches that are missing now.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.len()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
