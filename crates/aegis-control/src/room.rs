//! The room in which frozen actions wait for their decisions, and who leaves it when it is full.
//! Promises that tenants whose decisions never come, however many, keep nobody else's actions out; never gives up an action whose decision
//! may still be on its way, but of a tenant some of whose were given up a moment ago.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use aegis_bus::Delivered;
use aegis_model::{FrozenAction, TenantId};
use tokio::time::Instant;

/// What all that wait may weigh together, bytes; past it the stream is not read on. One weighs its message and what stands around it.
const ROOM: usize = 64 << 20;
const AROUND: usize = 64 << 10;
/// The history is up to date so long after an action came: its decision, which was sent with it, should be there.
const SETTLED: Duration = Duration::from_secs(5);
/// The same so long: its decision is there, or what is there under its id is all that will be.
const DECIDED: Duration = Duration::from_secs(1);
/// The same so long: it is overdue, whether there is room or not.
const PATIENCE: Duration = Duration::from_secs(60);
/// What all that are overdue may weigh, and those of one tenant: equal shares of it, and no more than this.
const OVERDUE: usize = ROOM / 2;
const OVERDUE_OF_ONE: usize = 128 * AROUND;
/// How long a tenant is suspect after an action of it was given up.
const SUSPECT: Duration = Duration::from_secs(600);

/// A frozen action that waits for its decision, and since when it is here.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) delivered: Delivered,
    pub(crate) frozen: FrozenAction,
    /// How many events with its decision's id were held against it, and are none.
    pub(crate) looked_at: usize,
    since: Instant,
}

impl Waiting {
    /// Whether its decision would be in the history, which was up to date at that time, had it been sent.
    pub(crate) fn is_settled(&self, up_to_date: Option<Instant>) -> bool {
        up_to_date.is_some_and(|at| at >= self.since + DECIDED)
    }
}

/// All that wait, in the order in which they are looked at.
#[derive(Debug, Default)]
pub(crate) struct Room {
    waiting: VecDeque<Waiting>,
    /// Tenants of whom actions were given up, and when last.
    suspects: HashMap<TenantId, Instant>,
}

impl Room {
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether the stream may be read on.
    pub(crate) fn has_place(&self) -> bool {
        self.waiting.iter().map(|one| weight(&one.delivered)).sum::<usize>() < ROOM
    }

    pub(crate) fn enter(&mut self, delivered: Delivered, frozen: FrozenAction, now: Instant) {
        self.waiting.push_back(Waiting { delivered, frozen, looked_at: 0, since: now });
    }

    pub(crate) fn take_first(&mut self) -> Option<Waiting> {
        self.waiting.pop_front()
    }

    pub(crate) fn put_back(&mut self, waiting: Waiting) {
        self.waiting.push_back(waiting);
    }

    /// The place in the stream of the first that waits.
    pub(crate) fn first_seq(&self) -> Option<u64> {
        self.waiting.iter().map(|one| one.delivered.seq).min()
    }

    /// Everything is read again from the saved position.
    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
    }

    /// Takes out what must be given up. `up_to_date`: when the history last had everything that had been published.
    pub(crate) fn give_up(&mut self, up_to_date: Option<Instant>, now: Instant) -> Vec<Waiting> {
        self.suspects.retain(|_, since| now.duration_since(*since) < SUSPECT);
        let places: Vec<Place<'_>> = self.waiting.iter().map(Place::of).collect();
        let leaving = surplus(&places, up_to_date, |tenant| self.suspects.contains_key(tenant));
        let mut given_up = Vec::with_capacity(leaving.len());
        if leaving.is_empty() {
            return given_up;
        }
        for one in std::mem::take(&mut self.waiting) {
            if leaving.contains(&one.delivered.seq) {
                self.suspects.insert(one.frozen.tenant_id.clone(), now);
                given_up.push(one);
            } else {
                self.waiting.push_back(one);
            }
        }
        given_up
    }
}

fn weight(delivered: &Delivered) -> usize {
    delivered.payload.len() + AROUND
}

/// One that waits, as far as fairness looks at it.
#[derive(Clone, Copy, Debug)]
struct Place<'a> {
    tenant: &'a TenantId,
    seq: u64,
    weight: usize,
    since: Instant,
}

impl<'a> Place<'a> {
    fn of(one: &'a Waiting) -> Self {
        Self { tenant: &one.frozen.tenant_id, seq: one.delivered.seq, weight: weight(&one.delivered), since: one.since }
    }

    /// True if the history was up to date `patience` after this one came.
    fn has_waited(&self, patience: Duration, up_to_date: Option<Instant>) -> bool {
        up_to_date.is_some_and(|at| at >= self.since + patience)
    }
}

/// What a tenant has in the room.
#[derive(Debug, Default)]
struct Held {
    weight: usize,
    /// Which may leave, and what each weighs, the newest last.
    may_leave: Vec<(u64, usize)>,
}

/// Who leaves: of tenants with more than their share of overdue ones the newest of these; and while there is no room, the newest that may
/// leave of whoever takes the most room.
fn surplus(places: &[Place<'_>], up_to_date: Option<Instant>, is_suspect: impl Fn(&TenantId) -> bool) -> BTreeSet<u64> {
    let mut leaving: BTreeSet<u64> = BTreeSet::new();
    let mut overdue: BTreeMap<&TenantId, Vec<(u64, usize)>> = BTreeMap::new();
    for place in places.iter().filter(|place| place.has_waited(PATIENCE, up_to_date)) {
        overdue.entry(place.tenant).or_default().push((place.seq, place.weight));
    }
    let share = (OVERDUE / overdue.len().max(1)).min(OVERDUE_OF_ONE);
    for of_tenant in overdue.values_mut() {
        of_tenant.sort_unstable();
        let mut kept = 0;
        for (seq, weight) in of_tenant.iter() {
            kept += weight;
            if kept > share {
                leaving.insert(*seq);
            }
        }
    }
    let mut held: BTreeMap<&TenantId, Held> = BTreeMap::new();
    let mut total = 0;
    for place in places.iter().filter(|place| !leaving.contains(&place.seq)) {
        let of_tenant = held.entry(place.tenant).or_default();
        of_tenant.weight += place.weight;
        total += place.weight;
        if place.has_waited(SETTLED, up_to_date) || is_suspect(place.tenant) {
            of_tenant.may_leave.push((place.seq, place.weight));
        }
    }
    held.values_mut().for_each(|of_tenant| of_tenant.may_leave.sort_unstable());
    while total >= ROOM {
        let candidates = held.values_mut().filter(|of_tenant| !of_tenant.may_leave.is_empty());
        let Some(fullest) = candidates.max_by_key(|of_tenant| of_tenant.weight) else { break };
        let Some((seq, weight)) = fullest.may_leave.pop() else { break };
        leaving.insert(seq);
        fullest.weight -= weight;
        total -= weight;
    }
    leaving
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use aegis_model::Timestamp;
    use serde_json::json;

    fn tenants(count: usize) -> Vec<TenantId> {
        (0..count).map(|n| TenantId::new(&format!("t{n:04}")).unwrap()).collect()
    }

    /// So many small actions of each tenant in turn, all of the same moment.
    fn places(of: &[TenantId], each: usize, first_seq: u64, since: Instant) -> Vec<Place<'_>> {
        let in_turn = (0..each).flat_map(|_| of.iter());
        in_turn.zip(first_seq..).map(|(tenant, seq)| Place { tenant, seq, weight: AROUND, since }).collect()
    }

    fn kept(places: &[Place<'_>], leaving: &BTreeSet<u64>, tenant: &TenantId) -> usize {
        places.iter().filter(|place| place.tenant == tenant && !leaving.contains(&place.seq)).count()
    }

    const FULL: usize = ROOM / AROUND;

    fn frozen(tenant: &str) -> FrozenAction {
        serde_json::from_value(json!({
            "approval_id": "a", "tenant_id": tenant, "event_id": "0190aaaa-0000-7000-8000-000000000000", "agent_id": "agent-1",
            "token_id": null, "user_id": null, "run_id": null, "environment": "e",
            "tool_call": {"tool": "t", "action": "a", "resource": null, "mutates_state": true, "parameters": {}},
            "action_hash": "h", "source_trust": "unknown", "root_trust": "unknown", "contains_sensitive_data": false,
            "risk_level": "low", "reason": "r", "matched_policies": [], "policy_digest": "d", "approver_group": "g",
            "approvals_needed": 1, "requested_at": Timestamp::default(), "expires_at": Timestamp::default(),
            "callback_url": null,
        }))
        .unwrap()
    }

    fn delivered(seq: u64) -> Delivered {
        Delivered {
            seq,
            subject: String::new(),
            payload: bytes::Bytes::new(),
            bus_ts: Timestamp::default(),
            kept: None,
            reading: aegis_model::Reading::default(),
        }
    }

    #[test]
    fn a_decision_may_come_behind_what_has_its_id_until_the_history_is_past_it() {
        let (start, mut room) = (Instant::now(), Room::default());
        room.enter(delivered(1), frozen("honest"), start);
        let waiting = room.take_first().unwrap();
        assert!(!waiting.is_settled(None), "the history stands still");
        assert!(!waiting.is_settled(Some(start)) && !waiting.is_settled(Some(start + DECIDED / 2)));
        assert!(waiting.is_settled(Some(start + DECIDED)));
    }

    #[test]
    fn eight_hostile_tenants_leave_room_for_the_others() {
        let (hostile, honest) = (tenants(8), TenantId::new("honest").unwrap());
        let start = Instant::now();
        let mut all = places(&hostile, FULL / 8, 1, start);
        all.push(Place { tenant: &honest, seq: 10_000, weight: AROUND, since: start });
        let nobody = |_: &TenantId| false;
        assert!(surplus(&all, None, nobody).is_empty(), "the history stands still: all may be on their way");
        assert!(surplus(&all, Some(start + SETTLED / 2), nobody).is_empty(), "a decision may take its time");
        let leaving = surplus(&all, Some(start + SETTLED), nobody);
        assert_eq!(all.len() - leaving.len(), FULL - 1, "there is room again, and no more is given up than that needs");
        assert!(leaving.iter().all(|seq| *seq > FULL as u64 - 16 && *seq < 10_000), "the newest of the fullest: {leaving:?}");
        // Overdue, they take half of the room at most, in equal shares.
        let leaving = surplus(&all, Some(start + PATIENCE), nobody);
        assert_eq!(kept(&all, &leaving, &honest), 1);
        assert!(hostile.iter().all(|tenant| kept(&all, &leaving, tenant) == FULL / 2 / 9), "nine wait: {leaving:?}");
    }

    #[test]
    fn a_tenant_s_share_shrinks_with_the_number_that_wait_and_is_bounded() {
        let start = Instant::now();
        for (count, share) in [(1, 128), (2, 128), (4, 128), (16, 32), (512, 1), (600, 0)] {
            let of = tenants(count);
            let all = places(&of, FULL.div_ceil(count), 1, start);
            let leaving = surplus(&all, Some(start + PATIENCE), |_| false);
            assert!(of.iter().all(|tenant| kept(&all, &leaving, tenant) == share), "{count} tenants");
        }
    }

    #[test]
    fn a_burst_whose_decisions_are_on_their_way_waits_and_only_a_suspect_s_does_not() {
        let of = tenants(2);
        let start = Instant::now();
        let (burst, flood) = (places(&of[..1], FULL / 4, 1, start), places(&of[1..], FULL, 10_000, start));
        let all: Vec<Place<'_>> = burst.iter().chain(&flood).copied().collect();
        assert!(surplus(&all, Some(start), |_| false).is_empty());
        let leaving = surplus(&all, Some(start), |tenant| *tenant == of[1]);
        assert_eq!(kept(&all, &leaving, &of[0]), FULL / 4);
        assert_eq!(kept(&all, &leaving, &of[1]), FULL - FULL / 4 - 1);
    }

    #[test]
    fn large_actions_count_for_what_they_weigh() {
        let of = tenants(2);
        let start = Instant::now();
        let small = places(&of[..1], FULL / 2, 1, start);
        let large: Vec<Place<'_>> =
            places(&of[1..], 64, 10_000, start).into_iter().map(|place| Place { weight: 1 << 20, ..place }).collect();
        let all: Vec<Place<'_>> = small.iter().chain(&large).copied().collect();
        let leaving = surplus(&all, Some(start + SETTLED), |_| false);
        assert_eq!(kept(&all, &leaving, &of[0]), FULL / 2, "the few large ones take the most room");
    }

    #[test]
    fn who_was_given_up_on_is_suspect_for_a_while() {
        let (start, mut room) = (Instant::now(), Room::default());
        let fill = |into: &mut Room, from: u64, now: Instant| {
            let mut seq = from;
            while into.has_place() {
                into.enter(delivered(seq), frozen("forger"), now);
                seq += 1;
            }
            seq
        };
        let next = fill(&mut room, 2, start);
        room.enter(delivered(1), frozen("honest"), start);
        assert!(room.give_up(Some(start), start).is_empty() && !room.has_place());
        let later = start + SETTLED;
        assert_eq!(room.give_up(Some(later), later).len(), 2, "as many as make room");
        // What the forger sends now gives way at once.
        let next = fill(&mut room, next, later);
        assert_eq!(room.give_up(Some(later), later).len(), 1);
        let forgiven = later + SUSPECT;
        fill(&mut room, next, forgiven);
        assert_eq!(room.first_seq(), Some(1), "the honest one is there");
        assert!(room.give_up(None, forgiven).is_empty());
    }
}
