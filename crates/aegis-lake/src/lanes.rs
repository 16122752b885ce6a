//! How far the lake has each lane, in objects beside the rows, `lanes/<partition>.json`, so that all of it is restored together or not at all. From it
//! edges are told what the lake has, and what is missing before a lane's head is asked for. INVARIANT: a receipt that it counts is in a file that a
//! manifest names, or was, until the hour was as old as may be.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use aegis_bus::gaps::Gaps;
use aegis_bus::{AskForMissing, LanesInLake};
use aegis_model::{LaneReach, SecurityEvent, TenantId, Timestamp, partition_of};
use object_store::ObjectStore;
use object_store::path::Path;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::error::LakeError;
use crate::layout::{Hour, hours, tenants};
use crate::manifest::Manifest;
use crate::swap::{self, Version};

const FOLDER: &str = "lanes";
/// Lanes of one partition that are remembered.
const MOST_LANES: usize = 20_000;
/// Receipts that may be read before it is noted that they are written.
const MOST_READ: usize = 500_000;
/// So many go at once where there are more.
const GO_AT_ONCE: usize = 64;
/// Stretches of a lane that are remembered as missing, as many as `Gaps` has; a lane with more stands before the next one.
const MOST_MISSING: usize = 256;

/// The lanes of a partition's tenants.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Part {
    /// Tenants of whom some lanes were given up: of one of theirs that is not here nothing is known.
    #[serde(default)]
    cut: BTreeSet<TenantId>,
    lanes: BTreeMap<TenantId, BTreeMap<String, Known>>,
    /// Which version of the object it was read from, or written as.
    #[serde(skip)]
    version: Version,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    head: i64,
    missing: Vec<(i64, i64)>,
    /// When it changed last, microseconds since the epoch.
    at: i64,
}

impl Part {
    fn place(pp: u32) -> Path {
        Path::from(format!("{FOLDER}/{pp:02}.json"))
    }

    /// A partition's; one that cannot be read is made anew, in the place of that version.
    async fn read(store: &Arc<dyn ObjectStore>, pp: u32) -> Result<(Option<Self>, Version), LakeError> {
        let Some((bytes, version)) = swap::read(store, &Self::place(pp)).await? else { return Ok((None, Version::default())) };
        match serde_json::from_slice::<Self>(&bytes) {
            Ok(part) => Ok((Some(Self { version: version.clone(), ..part }), version)),
            Err(error) => {
                tracing::warn!(%error, partition = pp, "the lake does not know how far it has lanes; looking through its manifests");
                Ok((None, version))
            }
        }
    }

    async fn write(&mut self, store: &Arc<dyn ObjectStore>, pp: u32) -> Result<(), LakeError> {
        let place = Self::place(pp);
        let bytes = serde_json::to_vec(self).map_err(|error| LakeError::damaged(&place, error))?;
        self.version = swap::swap(store, &place, bytes, &self.version).await?;
        Ok(())
    }

    fn put(&mut self, reach: LaneReach, now: Timestamp) {
        let known = Known { head: reach.head, missing: reach.missing, at: now.as_micros() };
        self.lanes.entry(reach.tenant_id).or_default().insert(reach.lane, known);
    }

    fn reach(&self, tenant: &TenantId, lane: &str) -> Option<LaneReach> {
        let none = LaneReach::none(tenant.clone(), lane.to_owned());
        match self.lanes.get(tenant).and_then(|lanes| lanes.get(lane)) {
            Some(known) => Some(LaneReach { head: known.head, missing: known.missing.clone(), ..none }),
            None => (!self.cut.contains(tenant)).then_some(none),
        }
    }

    fn reaches(&self) -> impl Iterator<Item = LaneReach> {
        self.lanes.iter().flat_map(move |(tenant, lanes)| lanes.keys().filter_map(move |lane| self.reach(tenant, lane)))
    }

    /// Gives up lanes that changed longest ago, of the tenant that has the most.
    fn keep_within(&mut self, most: usize) {
        loop {
            let count: usize = self.lanes.values().map(BTreeMap::len).sum();
            let Some(excess) = count.checked_sub(most).filter(|excess| *excess > 0) else { return };
            let Some((tenant, lanes)) = self.lanes.iter_mut().max_by_key(|(_, lanes)| lanes.len()) else { return };
            if self.cut.insert(tenant.clone()) {
                tracing::warn!(%tenant, "it has more lanes than the lake remembers; nothing more is confirmed of the oldest");
            }
            let mut by_age: Vec<(i64, String)> = lanes.iter().map(|(lane, known)| (known.at, lane.clone())).collect();
            by_age.sort_unstable();
            for (_, lane) in by_age.into_iter().take(excess.min(GO_AT_ONCE)) {
                lanes.remove(&lane);
            }
        }
    }

    /// What the manifests of these tenants say: of a lake from before lanes were remembered.
    async fn of_manifests(store: &Arc<dyn ObjectStore>, tenants: &[TenantId], now: Timestamp) -> Result<Self, LakeError> {
        let mut part = Self::default();
        for tenant in tenants {
            let mut of_lane: BTreeMap<String, Vec<(i64, i64)>> = BTreeMap::new();
            let mut is_whole = true;
            for hour in hours(store, tenant).await? {
                match manifest_of(store, &hour).await {
                    Ok(manifest) => {
                        for (lane, runs) in manifest.receipts() {
                            of_lane.entry(lane.to_owned()).or_default().extend_from_slice(runs);
                        }
                    }
                    Err(error @ LakeError::Damaged { .. }) => {
                        tracing::warn!(%tenant, %error, "what this hour of the lake has is not known: nothing is said of the tenant's lanes of before");
                        is_whole = false;
                    }
                    Err(error) => return Err(error),
                }
            }
            if !is_whole {
                // Shipped again, what it may have would only stand before the damaged hour.
                part.cut.insert(tenant.clone());
                continue;
            }
            for (lane, runs) in of_lane {
                part.put(of_runs(tenant, lane, runs), now);
            }
        }
        part.keep_within(MOST_LANES);
        Ok(part)
    }
}

/// An hour's manifest; one that the store lost is damaged.
async fn manifest_of(store: &Arc<dyn ObjectStore>, hour: &Hour) -> Result<Manifest, LakeError> {
    let manifest = Manifest::read(store, hour).await?;
    if manifest.generation == 0 {
        let there = store.list_with_delimiter(Some(&Path::from(hour.folder()))).await?.objects;
        if manifest.is_lost(there.iter().filter_map(|object| object.location.filename())) {
            return Err(LakeError::damaged(Manifest::place(hour), "it is gone, and files that it named are there"));
        }
    }
    Ok(manifest)
}

/// How far a lane is of which these runs, in any order, are there.
fn of_runs(tenant: &TenantId, lane: String, mut runs: Vec<(i64, i64)>) -> LaneReach {
    runs.sort_unstable();
    let mut reach = LaneReach::none(tenant.clone(), lane);
    for (first, last) in runs {
        if first > reach.head + 1 {
            if reach.missing.len() == MOST_MISSING {
                break;
            }
            reach.missing.push((reach.head + 1, first - 1));
        }
        reach.head = reach.head.max(last);
    }
    reach
}

/// How far the lake has lanes, for those outside of its thread.
#[derive(Debug, Default)]
pub struct LakeLanes(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    parts: BTreeMap<u32, Part>,
    /// They were read from the lake.
    is_read: bool,
    /// When it had everything that was published then.
    whole: Option<Instant>,
}

impl LakeLanes {
    fn part(&self, pp: u32) -> Part {
        self.0.lock().parts.get(&pp).cloned().unwrap_or_default()
    }

    fn put(&self, pp: u32, part: Part) {
        self.0.lock().parts.insert(pp, part);
    }
}

impl LanesInLake for LakeLanes {
    fn reach(&self, tenant: &TenantId, lane: &str) -> Option<LaneReach> {
        let state = self.0.lock();
        match state.parts.get(&partition_of(tenant)) {
            Some(part) => part.reach(tenant, lane),
            None => state.is_read.then(|| LaneReach::none(tenant.clone(), lane.to_owned())),
        }
    }

    fn behind(&self) -> Option<Duration> {
        self.0.lock().whole.map(|whole| whole.elapsed())
    }
}

/// What the lake's thread knows of lanes.
#[derive(Debug)]
pub(crate) struct Lanes {
    shared: Arc<LakeLanes>,
    gaps: Gaps,
    /// Receipts that were read and are not known to be written, by lane.
    read: HashMap<String, (TenantId, Vec<i64>)>,
    /// How many those are.
    count: usize,
}

impl Lanes {
    /// Takes up what an earlier one left in the store.
    pub(crate) async fn open(store: &Arc<dyn ObjectStore>, shared: &Arc<LakeLanes>, now: Timestamp) -> Result<Self, LakeError> {
        let mut of_part: BTreeMap<u32, Vec<TenantId>> = BTreeMap::new();
        for tenant in tenants(store).await? {
            of_part.entry(partition_of(&tenant)).or_default().push(tenant);
        }
        for object in store.list_with_delimiter(Some(&Path::from(FOLDER))).await?.objects {
            let number: Option<u32> = object.location.filename().and_then(|name| name.strip_suffix(".json")?.parse().ok());
            if let Some(pp) = number.filter(|pp| Part::place(*pp) == object.location) {
                of_part.entry(pp).or_default();
            }
        }
        let mut parts = BTreeMap::new();
        for (pp, of_part) in of_part {
            let (known, version) = Part::read(store, pp).await?;
            let part = match known {
                Some(part) => part,
                None => {
                    let mut part = Part { version, ..Part::of_manifests(store, &of_part, now).await? };
                    part.write(store, pp).await?;
                    part
                }
            };
            parts.insert(pp, part);
        }
        let mut gaps = Gaps::default();
        for part in parts.values() {
            part.reaches().filter(|reach| !reach.missing.is_empty()).for_each(|reach| gaps.begin(reach, now));
        }
        {
            let mut state = shared.0.lock();
            state.parts = parts;
            state.is_read = true;
        }
        Ok(Self { shared: Arc::clone(shared), gaps, read: HashMap::new(), count: 0 })
    }

    /// A proved receipt was read.
    pub(crate) fn read(&mut self, event: &SecurityEvent) {
        let (Some(lane), Some(seq)) = (&event.lane, event.seq) else { return };
        self.count += 1;
        match self.read.get_mut(lane) {
            Some((_, seqs)) => seqs.push(seq),
            None => drop(self.read.insert(lane.clone(), (event.tenant_id.clone(), vec![seq]))),
        }
    }

    /// True if it should be written now, and noted.
    pub(crate) const fn is_full(&self) -> bool {
        self.count >= MOST_READ
    }

    /// All that was read is written.
    pub(crate) async fn written(&mut self, store: &Arc<dyn ObjectStore>, now: Timestamp) -> Result<(), LakeError> {
        self.count = 0;
        for (lane, (tenant, mut seqs)) in std::mem::take(&mut self.read) {
            if !self.gaps.knows(&lane) {
                // Where some were given up, one is followed that is seen from its beginning on: of another nobody knows what it had.
                let begins = || seqs.contains(&1).then(|| LaneReach::none(tenant.clone(), lane.clone()));
                let Some(reach) = self.shared.reach(&tenant, &lane).or_else(begins) else { continue };
                self.gaps.begin(reach, now);
            }
            seqs.sort_unstable();
            seqs.into_iter().for_each(|seq| self.gaps.took(&lane, seq, now));
        }
        let mut changed: BTreeMap<u32, Part> = BTreeMap::new();
        for reach in self.gaps.changed() {
            let pp = partition_of(&reach.tenant_id);
            changed.entry(pp).or_insert_with(|| self.shared.part(pp)).put(reach, now);
        }
        for (pp, mut part) in changed {
            part.keep_within(MOST_LANES);
            part.write(store, pp).await?;
            self.shared.put(pp, part);
        }
        self.gaps.written();
        Ok(())
    }

    /// Asks for what is missing before lanes' heads.
    pub(crate) fn ask(&mut self, from: &dyn AskForMissing, now: Timestamp) {
        self.gaps.ask(from, now);
    }

    /// Stretches that are missing now.
    pub(crate) fn open_gaps(&self) -> usize {
        self.gaps.open()
    }

    /// Everything that was published at a moment is in the lake.
    pub(crate) fn is_whole(&self, as_of: Instant) {
        let mut state = self.shared.0.lock();
        state.whole = state.whole.max(Some(as_of));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use aegis_model::EventKind;
    use object_store::memory::InMemory;
    use proptest::prelude::*;

    use super::*;
    use crate::writer::{Writer, WriterLimits};

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).unwrap()
    }

    fn receipt(of: &str, lane: &str, seq: i64) -> SecurityEvent {
        let ts = Timestamp::parse_rfc3339("2026-11-26T10:00:00Z").unwrap().plus_seconds(seq * 600);
        let mut event = SecurityEvent::new(tenant(of), "e", "edge", EventKind::AuthorizeDecision, ts);
        (event.lane, event.seq, event.verified, event.bus_ts) = (Some(lane.to_owned()), Some(seq), true, Some(ts));
        event
    }

    async fn open(store: &Arc<dyn ObjectStore>) -> (Lanes, Arc<LakeLanes>) {
        let shared = Arc::new(LakeLanes::default());
        let lanes = Lanes::open(store, &shared, Timestamp::default()).await.unwrap();
        (lanes, shared)
    }

    fn known(shared: &LakeLanes, of: &str, lane: &str) -> (i64, i64, Vec<(i64, i64)>) {
        let reach = shared.reach(&tenant(of), lane).unwrap();
        (reach.through(), reach.head, reach.missing)
    }

    #[tokio::test]
    async fn what_was_read_counts_once_it_is_written_and_holes_do_not() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let unread = LakeLanes::default();
        assert_eq!(unread.reach(&tenant("a"), "a.e.1"), None, "before it was asked nothing is known");
        let (mut lanes, shared) = open(&store).await;
        for seq in [1, 2, 5] {
            lanes.read(&receipt("a", "a.e.1", seq));
        }
        assert_eq!(known(&shared, "a", "a.e.1"), (0, 0, Vec::new()));
        lanes.written(&store, Timestamp::default()).await.unwrap();
        assert_eq!(known(&shared, "a", "a.e.1"), (2, 5, vec![(3, 4)]));
        assert_eq!(lanes.open_gaps(), 1);
        // Read, and not written when the process died.
        lanes.read(&receipt("a", "a.e.1", 3));
        let (mut next, shared) = open(&store).await;
        assert_eq!(known(&shared, "a", "a.e.1"), (2, 5, vec![(3, 4)]));
        assert_eq!(next.open_gaps(), 1, "it is asked for again");
        for seq in [4, 3, 3] {
            next.read(&receipt("a", "a.e.1", seq));
        }
        next.written(&store, Timestamp::default()).await.unwrap();
        assert_eq!((known(&shared, "a", "a.e.1"), next.open_gaps()), ((5, 5, Vec::new()), 0));
    }

    #[tokio::test]
    async fn a_lake_of_before_says_what_its_manifests_say() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let mut writer = Writer::new(Arc::clone(&store), "s", [], WriterLimits::default());
        let seqs = [1, 2, 3, 9, 10, 14];
        for (place, seq) in (1..).zip(seqs) {
            writer.take(place, receipt("a", "a.e.1", seq), 100);
        }
        writer.flush().await.unwrap();
        for _ in 0..2 {
            let (lanes, shared) = open(&store).await;
            assert_eq!(known(&shared, "a", "a.e.1"), (3, 14, vec![(4, 8), (11, 13)]));
            assert_eq!(lanes.open_gaps(), 2);
        }
        // What lies there and cannot be read is made anew.
        let place = Part::place(partition_of(&tenant("a")));
        let (_, version) = swap::read(&store, &place).await.unwrap().unwrap();
        swap::swap(&store, &place, b"{".to_vec(), &version).await.unwrap();
        let (_, shared) = open(&store).await;
        assert_eq!(known(&shared, "a", "a.e.1").1, 14);
    }

    #[tokio::test]
    async fn where_an_hour_is_damaged_nothing_is_said_of_lanes_of_before() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let mut writer = Writer::new(Arc::clone(&store), "s", [], WriterLimits::default());
        writer.take(1, receipt("a", "a.e.1", 1), 100);
        writer.take(2, receipt("a", "a.e.1", 9), 100);
        writer.flush().await.unwrap();
        let place = Manifest::place(&Hour::of(&receipt("a", "a.e.1", 9)));
        let (_, version) = swap::read(&store, &place).await.unwrap().unwrap();
        swap::swap(&store, &place, b"{".to_vec(), &version).await.unwrap();
        let (mut lanes, shared) = open(&store).await;
        assert_eq!((shared.reach(&tenant("a"), "a.e.1"), lanes.open_gaps()), (None, 0));
        // Nor when it goes on; one that begins is followed.
        for event in [receipt("a", "a.e.1", 12), receipt("a", "a.e.2", 1)] {
            lanes.read(&event);
        }
        lanes.written(&store, Timestamp::default()).await.unwrap();
        assert_eq!(shared.reach(&tenant("a"), "a.e.1"), None);
        assert_eq!(known(&shared, "a", "a.e.2"), (1, 1, Vec::new()));
    }

    #[test]
    fn of_lanes_that_were_given_up_nothing_is_said() {
        let mut part = Part::default();
        let reach = |of: &str, n: i64| LaneReach { head: 7, ..LaneReach::none(tenant(of), format!("{of}.e.{n:04}")) };
        for n in 0..100 {
            // Those with the greatest numbers are the oldest.
            part.put(reach("a", n), Timestamp::from_micros(100 - n));
        }
        part.put(reach("b", 0), Timestamp::default());
        part.keep_within(20);
        assert_eq!(part.reach(&tenant("b"), "b.e.0000").map(|reach| reach.head), Some(7), "it has fewer");
        assert_eq!(part.reach(&tenant("a"), "a.e.0000").map(|reach| reach.head), Some(7), "the newest");
        assert_eq!(part.reach(&tenant("a"), "a.e.0099"), None, "nobody may take it for one that has not begun");
        let text = serde_json::to_vec(&part).unwrap();
        let part: Part = serde_json::from_slice(&text).unwrap();
        assert_eq!(part.reach(&tenant("a"), "a.e.0099"), None, "nor at the next start");
        let not_begun = LaneReach::none(tenant("b"), "b.e.0001".into());
        assert_eq!(
            part.reach(&tenant("b"), "b.e.0001"),
            Some(not_begun),
            "who has few lanes is told of each, however many another has"
        );
        assert_eq!(part.lanes.values().map(BTreeMap::len).sum::<usize>(), 20);
    }

    proptest! {
        #[test]
        fn runs_say_what_they_have_and_no_more(runs in prop::collection::vec((1i64..60, 0i64..6), 0..20)) {
            let runs: Vec<(i64, i64)> = runs.into_iter().map(|(first, more)| (first, first + more)).collect();
            let reach = of_runs(&tenant("a"), "a.e.1".into(), runs.clone());
            let has = |seq: i64| runs.iter().any(|(first, last)| (*first..=*last).contains(&seq));
            let is_missing = |seq: i64| reach.missing.iter().any(|(first, last)| (*first..=*last).contains(&seq));
            for seq in 1..70 {
                prop_assert_eq!(has(seq), seq <= reach.head && !is_missing(seq));
            }
            prop_assert!((1..=reach.through()).all(has));
        }
    }
}
