//! The names of buckets: of each event, and for all rules whose state is split by the same columns, written once, and kept once for all rules that have such a
//! bucket. Promises that two names are one exactly where their tenants and texts are; that they are the same piece of memory is never relied upon. What no rule has
//! any more is forgotten.

use std::borrow::Borrow;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock};

use aegis_model::{SecurityEvent, TenantId};
use indexmap::{Equivalent, IndexSet};
use parking_lot::Mutex;

use crate::begun::Beginnings;
use crate::bucket::bytes_of;
use crate::matter::Matter;
use crate::output::write_bucket;
use crate::plan::BucketColumn;
use crate::window::Numbers;

/// Names that are remembered at least before it is looked for those that nobody has, and what their texts take.
const LEAST_NAMES: usize = 4096;
const LEAST_BYTES: usize = 4 << 20;
/// Events of a batch of which lists are kept for others: of what a restart reads at once each rule makes its own, and lets go of it.
const MOST_LISTED: usize = 16_384;
/// It is looked for them once in so many checkpoints, also where no others come.
const CHECKPOINTS: u32 = 32;

/// A bucket's name. As one of its tenant's names it is its text alone.
#[derive(Clone, Debug)]
pub(crate) struct BucketName(Arc<Texts>);

#[derive(Debug)]
struct Texts {
    tenant: TenantId,
    text: Box<str>,
    /// The tenant's, where all names are known.
    number: Option<usize>,
    /// Of both.
    hash: u64,
}

/// The hash of a name: keyed anew in each process, for what stands in a key is the caller's to choose.
fn hash_of(tenant: &TenantId, text: &str) -> u64 {
    static HASHER: LazyLock<ahash::RandomState> = LazyLock::new(ahash::RandomState::new);
    HASHER.hash_one((tenant, text))
}

impl BucketName {
    pub(crate) fn new(tenant: &TenantId, text: &str) -> Self {
        Self::hashed(tenant, text, None, hash_of(tenant, text))
    }

    pub(crate) fn hashed(tenant: &TenantId, text: &str, number: Option<usize>, hash: u64) -> Self {
        Self(Arc::new(Texts { tenant: tenant.clone(), text: text.into(), number, hash }))
    }

    /// The tenant's number, if it is known.
    pub(crate) fn number(&self) -> Option<usize> {
        self.0.number
    }

    pub(crate) fn tenant(&self) -> &TenantId {
        &self.0.tenant
    }

    pub(crate) fn text(&self) -> &str {
        &self.0.text
    }

    /// True if the text is this one, mostly the very same piece of memory.
    pub(crate) fn has_text(&self, text: &str) -> bool {
        std::ptr::eq(self.text(), text) || self.text() == text
    }

    /// True if the text is this one's, and no other's.
    pub(crate) fn is_at(&self, text: &str) -> bool {
        !text.is_empty() && std::ptr::eq(self.text(), text)
    }

    /// True if it is the same tenant's bucket. Two of one hash are mostly one, and others are told apart by it.
    pub(crate) fn is(&self, other: &Self) -> bool {
        let is_alike = || self.whole_hash() == other.whole_hash() && self.text() == other.text();
        Arc::ptr_eq(&self.0, &other.0) || (is_alike() && self.tenant() == other.tenant())
    }

    /// By tenant and text.
    pub(crate) fn whole_hash(&self) -> u64 {
        self.0.hash
    }
}

impl PartialEq for BucketName {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.text() == other.text()
    }
}

impl Eq for BucketName {}

impl Hash for BucketName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text().hash(state);
    }
}

impl Borrow<str> for BucketName {
    fn borrow(&self) -> &str {
        self.text()
    }
}

/// What all rules share.
pub(crate) type SharedNames = Arc<Mutex<Names>>;

/// The names that rules have, each once, and how their queries begin.
#[derive(Debug)]
pub(crate) struct Names {
    known: IndexSet<Whole, ahash::RandomState>,
    /// Of all tenants.
    numbers: Numbers,
    /// What their texts take: how long one is, is the caller's to choose.
    bytes: usize,
    /// With so many, or so much, it is looked for those that nobody has.
    sweep_at: usize,
    sweep_at_bytes: usize,
    /// Checkpoints since it was looked for them behind one.
    checkpoints: u32,
    /// How rules' queries begin.
    pub(crate) beginnings: Beginnings,
}

/// A name beside those of all tenants.
#[derive(Debug)]
struct Whole(BucketName);

impl PartialEq for Whole {
    fn eq(&self, other: &Self) -> bool {
        self.0.is(&other.0)
    }
}

impl Eq for Whole {}

impl Hash for Whole {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.whole_hash());
    }
}

/// One that is looked for.
struct Sought<'a> {
    tenant: &'a TenantId,
    text: &'a str,
    hash: u64,
}

impl Hash for Sought<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl Equivalent<Whole> for Sought<'_> {
    fn equivalent(&self, known: &Whole) -> bool {
        self.hash == known.0.whole_hash() && self.text == known.0.text() && self.tenant == known.0.tenant()
    }
}

impl Default for Names {
    fn default() -> Self {
        let (known, numbers, beginnings) = (IndexSet::default(), Numbers::default(), Beginnings::default());
        Self { known, numbers, bytes: 0, sweep_at: LEAST_NAMES, sweep_at_bytes: LEAST_BYTES, checkpoints: 0, beginnings }
    }
}

impl Names {
    /// The name, as others have it.
    pub(crate) fn of(&mut self, tenant: &TenantId, text: &str) -> BucketName {
        let hash = hash_of(tenant, text);
        if let Some(known) = self.known.get(&Sought { tenant, text, hash }) {
            return known.0.clone();
        }
        if self.known.len() >= self.sweep_at || self.bytes >= self.sweep_at_bytes {
            self.sweep();
        }
        let name = BucketName::hashed(tenant, text, Some(self.numbers.of(tenant)), hash);
        self.bytes += text.len();
        self.known.insert(Whole(name.clone()));
        name
    }

    pub(crate) const fn numbers(&mut self) -> &mut Numbers {
        &mut self.numbers
    }

    /// A checkpoint was made: the names of what has left the windows go now and then, also where no others come.
    pub(crate) fn note_checkpoint(&mut self) {
        self.checkpoints += 1;
        if self.checkpoints >= CHECKPOINTS {
            self.checkpoints = 0;
            self.sweep();
        }
    }

    /// Forgets the names that nobody has. As many, or as much, must come again before it is done the next time as are left.
    fn sweep(&mut self) {
        self.known.retain(|name| Arc::strong_count(&name.0.0) > 1);
        self.bytes = self.known.iter().map(|name| name.0.text().len()).sum();
        self.sweep_at = (2 * self.known.len()).max(LEAST_NAMES);
        self.sweep_at_bytes = (2 * self.bytes).max(LEAST_BYTES);
        self.known.shrink_to(self.sweep_at);
    }
}

/// An event that matters to a rule.
#[derive(Clone, Debug)]
pub(crate) struct Relevant {
    pub(crate) event: Arc<SecurityEvent>,
    /// None where a key column is null: no match has it, or rests on it; and where a rule keeps no events.
    pub(crate) bucket: Option<BucketName>,
    /// What its texts take, where they are kept.
    pub(crate) bytes: usize,
    /// False of one that a match does not need: see [`crate::seed`].
    pub(crate) is_seed: bool,
}

impl Relevant {
    /// One to be kept.
    pub(crate) fn of(event: &Arc<SecurityEvent>, bucket: Option<BucketName>) -> Self {
        Self { event: Arc::clone(event), bucket, bytes: bytes_of(event), is_seed: true }
    }

    /// One that is looked at by itself, and not kept.
    pub(crate) fn alone(event: &Arc<SecurityEvent>) -> Self {
        Self { event: Arc::clone(event), bucket: None, bytes: 0, is_seed: true }
    }
}

/// What rules asked of the events of a batch, for the next rule that asks the same.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    of_columns: Vec<OfColumns>,
    /// What the texts of each event take.
    bytes: Vec<Option<usize>>,
    /// Of rules with one filter and one key.
    lists: Vec<List>,
}

/// Some of the events, with their buckets by some columns.
#[derive(Debug)]
struct List {
    places: Arc<[usize]>,
    seeds: Option<Arc<[usize]>>,
    columns: Vec<usize>,
    events: Arc<Matter>,
}

/// The buckets by some columns of events.
#[derive(Debug)]
struct OfColumns {
    columns: Vec<usize>,
    of_each: Vec<Answer>,
}

#[derive(Clone, Debug)]
enum Answer {
    NotAsked,
    Is(Option<BucketName>),
}

impl Asked {
    /// Some of the rows, with their buckets, and which of them are seeds, if not all may be: the same list for all that have these very places from the same
    /// filters.
    pub(crate) fn matter(
        &mut self,
        rows: &[Arc<SecurityEvent>],
        (places, seeds): (&Arc<[usize]>, Option<&Arc<[usize]>>),
        columns: &[BucketColumn],
        names: &SharedNames,
    ) -> Arc<Matter> {
        let wanted = || columns.iter().map(|column| column.event_column);
        let has_seeds = |list: &List| match (&list.seeds, seeds) {
            (Some(known), Some(seeds)) => Arc::ptr_eq(known, seeds),
            (None, None) => true,
            _ => false,
        };
        let is_it =
            |list: &&List| Arc::ptr_eq(&list.places, places) && has_seeds(list) && list.columns.iter().copied().eq(wanted());
        if let Some(list) = self.lists.iter().find(is_it) {
            return Arc::clone(&list.events);
        }
        let mut relevant = self.relevant(rows, places, columns, names);
        if let Some(seeds) = seeds {
            relevant.iter_mut().zip(places.iter()).for_each(|(one, place)| one.is_seed = seeds.binary_search(place).is_ok());
        }
        let events = Arc::new(Matter::of(relevant));
        if rows.len() > MOST_LISTED {
            return events;
        }
        let (places, seeds, columns) = (Arc::clone(places), seeds.cloned(), wanted().collect());
        self.lists.push(List { places, seeds, columns, events: Arc::clone(&events) });
        events
    }

    /// Some of the rows, with their buckets.
    fn relevant(
        &mut self,
        rows: &[Arc<SecurityEvent>],
        places: &[usize],
        columns: &[BucketColumn],
        names: &SharedNames,
    ) -> Vec<Relevant> {
        let Self { of_columns, bytes, .. } = self;
        let wanted = || columns.iter().map(|column| column.event_column);
        let known = of_columns.iter().position(|of| of.columns.iter().copied().eq(wanted()));
        let known = known.unwrap_or_else(|| {
            of_columns.push(OfColumns { columns: wanted().collect(), of_each: vec![Answer::NotAsked; rows.len()] });
            of_columns.len() - 1
        });
        let of_each = &mut of_columns[known].of_each;
        bytes.resize(rows.len(), None);
        let (mut names, mut text) = (names.lock(), String::new());
        let mut relevant = Vec::with_capacity(places.len());
        for place in places {
            let event = &rows[*place];
            if matches!(of_each[*place], Answer::NotAsked) {
                text.clear();
                let is_there = write_bucket(event, columns, &mut text);
                of_each[*place] = Answer::Is(is_there.then(|| names.of(&event.tenant_id, &text)));
            }
            let bucket = match &of_each[*place] {
                Answer::Is(bucket) => bucket.clone(),
                Answer::NotAsked => None,
            };
            let bytes = *bytes[*place].get_or_insert_with(|| bytes_of(event));
            relevant.push(Relevant { event: Arc::clone(event), bucket, bytes, is_seed: true });
        }
        relevant
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::schema::column_index;
    use aegis_model::{EventKind, Timestamp};
    use proptest::prelude::*;

    fn event(tenant: u8, agent: Option<u8>, tool: Option<u8>) -> Arc<SecurityEvent> {
        let tenant = TenantId::new(&format!("t-{tenant}")).unwrap();
        let mut event = SecurityEvent::new(tenant, "e", "edge", EventKind::AuthorizeDecision, Timestamp::from_micros(7));
        event.agent_id = agent.map(|agent| format!("agent-{agent}"));
        event.tool = tool.map(|tool| format!("tool-{tool}"));
        Arc::new(event)
    }

    fn columns(names: &[&str]) -> Vec<BucketColumn> {
        let column =
            |(key_position, name): (usize, &&str)| BucketColumn { key_position, event_column: column_index(name).unwrap() };
        names.iter().enumerate().map(column).collect()
    }

    proptest! {
        /// L-NAMES: whoever asked before, and for which events, an event's bucket is what its columns say, and its tenant's.
        #[test]
        fn l_names_a_bucket_is_what_the_columns_of_its_event_say(
            events in prop::collection::vec((0..2u8, prop::option::of(0..3u8), prop::option::of(0..2u8)), 1..20),
            asks in prop::collection::vec((0..4usize, any::<u32>()), 1..8),
        ) {
            let rows: Vec<_> = events.into_iter().map(|(tenant, agent, tool)| event(tenant, agent, tool)).collect();
            let split = [columns(&["agent_id"]), columns(&["agent_id", "tool"]), columns(&["tool", "agent_id"]), columns(&[])];
            let (mut asked, names) = (Asked::default(), SharedNames::default());
            let mut given: Vec<BucketName> = Vec::new();
            for (by, some) in asks {
                let places: Vec<usize> = (0..rows.len()).filter(|place| (some >> *place) & 1 == 1).collect();
                let places: Arc<[usize]> = places.into();
                let seeds = (some % 3 > 0).then(|| places.iter().copied().filter(|place| place % 2 == 0).collect::<Arc<[usize]>>());
                let of = (&places, seeds.as_ref());
                let listed = asked.matter(&rows, of, &split[by], &names);
                prop_assert!(Arc::ptr_eq(&listed, &asked.matter(&rows, of, &split[by], &names)));
                let others = asked.matter(&rows, (&places, None), &split[by], &names);
                prop_assert!(others.events().iter().all(|one| one.is_seed));
                let relevant = listed.events();
                prop_assert_eq!(relevant.len(), places.len());
                for (place, one) in places.iter().zip(relevant) {
                    let mut text = String::new();
                    let is_there = write_bucket(&rows[*place], &split[by], &mut text);
                    prop_assert!(Arc::ptr_eq(&one.event, &rows[*place]) && one.bytes == bytes_of(&rows[*place]));
                    prop_assert_eq!(one.bucket.as_ref().map(BucketName::text), is_there.then_some(text.as_str()));
                    prop_assert!(one.bucket.as_ref().is_none_or(|name| *name.tenant() == rows[*place].tenant_id));
                    prop_assert_eq!(one.is_seed, seeds.is_none() || place % 2 == 0);
                    given.extend(one.bucket.clone());
                }
            }
            for (one, other) in given.iter().zip(given.iter().skip(1)) {
                prop_assert_eq!(one.is(other), (one.tenant(), one.text()) == (other.tenant(), other.text()));
                prop_assert_eq!(one.is(other), Arc::ptr_eq(&one.0, &other.0), "each is kept once");
            }
        }
    }

    #[test]
    fn names_that_nobody_has_are_forgotten_and_those_that_somebody_has_stay() {
        let (mut names, tenant) = (Names::default(), TenantId::new("a").unwrap());
        let held: Vec<BucketName> = (0..10).map(|n| names.of(&tenant, &format!("held-{n}"))).collect();
        for n in 0..10 * LEAST_NAMES {
            names.of(&tenant, &format!("junk-{n}"));
            assert!(names.known.len() <= LEAST_NAMES);
        }
        for (n, held) in held.iter().enumerate() {
            assert!(Arc::ptr_eq(&names.of(&tenant, &format!("held-{n}")).0, &held.0));
        }
        let other = TenantId::new("b").unwrap();
        assert!(!names.of(&other, "held-0").is(&held[0]), "another tenant's is another");
    }

    #[test]
    fn long_names_that_nobody_has_are_forgotten_before_they_are_many() {
        let (mut names, tenant) = (Names::default(), TenantId::new("a").unwrap());
        let long = "x".repeat(64 << 10);
        let held: Vec<BucketName> =
            (0..LEAST_BYTES / long.len() * 2).map(|n| names.of(&tenant, &format!("held-{n}-{long}"))).collect();
        let most = 2 * held.iter().map(|name| name.text().len()).sum::<usize>() + long.len() + 32;
        for n in 0..1000 {
            names.of(&tenant, &format!("junk-{n}-{long}"));
            let bytes: usize = names.known.iter().map(|name| name.0.text().len()).sum();
            assert!(names.bytes == bytes && bytes <= most, "{bytes} of {most}");
        }
        assert!(held.iter().all(|held| Arc::ptr_eq(&names.of(&tenant, held.text()).0, &held.0)));
        drop(held);
        (1..CHECKPOINTS).for_each(|_| names.note_checkpoint());
        assert!(!names.known.is_empty());
        names.note_checkpoint();
        assert!(names.known.is_empty() && names.bytes == 0 && names.sweep_at_bytes == LEAST_BYTES);
    }
}
