//! A tenant's buckets under a rule, each at its place: one beside the other, and found by their names where they are more than a few. Most tenants have one,
//! which is where the tenant's state is. Promises that a name is there once, and that the others keep their order where some go.

use indexmap::IndexSet;
use smallvec::SmallVec;

use super::Hasher;
use crate::bucket::Bucket;
use crate::name::BucketName;

/// Buckets that are looked through one beside the other at most.
const FEW: usize = 4;

#[derive(Debug, Default)]
pub(crate) struct Buckets {
    all: SmallVec<[(BucketName, Bucket); 1]>,
    /// Where they are more than a few, or were: the names, in the same order.
    names: Option<Box<IndexSet<BucketName, Hasher>>>,
}

impl Buckets {
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Where the bucket of a name stands.
    pub(crate) fn place_of(&self, name: &BucketName) -> Option<usize> {
        match &self.names {
            Some(names) => names.get_index_of(name),
            None => self.all.iter().position(|(known, _)| known.is(name)),
        }
    }

    /// The same, looked for first where it may stand.
    pub(crate) fn place_by(&self, name: &BucketName, may_stand: usize) -> Option<usize> {
        let is_there = self.all.get(may_stand).is_some_and(|one| one.0.is(name));
        if is_there { Some(may_stand) } else { self.place_of(name) }
    }

    /// The same of a name's text.
    pub(crate) fn place_of_text(&self, text: &str) -> Option<usize> {
        match &self.names {
            Some(names) => names.get_index_of(text),
            None => self.all.iter().position(|(known, _)| known.has_text(text)),
        }
    }

    /// What stands at a place.
    pub(crate) fn at(&self, place: usize) -> Option<(&BucketName, &Bucket)> {
        self.all.get(place).map(|one| (&one.0, &one.1))
    }

    pub(crate) fn at_mut(&mut self, place: usize) -> Option<&mut Bucket> {
        self.all.get_mut(place).map(|one| &mut one.1)
    }

    pub(crate) fn get(&self, text: &str) -> Option<&Bucket> {
        self.at(self.place_of_text(text)?).map(|(_, bucket)| bucket)
    }

    pub(crate) fn get_mut(&mut self, text: &str) -> Option<&mut Bucket> {
        self.at_mut(self.place_of_text(text)?)
    }

    /// Adds one whose name is not there, and answers where it stands.
    pub(crate) fn add(&mut self, name: BucketName, bucket: Bucket) -> usize {
        let place = self.all.len();
        match &mut self.names {
            Some(names) => {
                names.insert(name.clone());
            }
            None if place >= FEW => {
                let names = self.all.iter().map(|one| &one.0).chain([&name]).cloned();
                self.names = Some(Box::new(names.collect()));
            }
            None => {}
        }
        if place == self.all.capacity() {
            // They are large: by half of what there is, and not by all of it.
            self.all.reserve_exact((place / 2).max(1));
        }
        self.all.push((name, bucket));
        place
    }

    /// Keeps those of which `stays` says so; it may change what is in them.
    pub(crate) fn retain(&mut self, mut stays: impl FnMut(&BucketName, &mut Bucket) -> bool) {
        let Some(names) = &mut self.names else {
            self.all.retain(|one| stays(&one.0, &mut one.1));
            return;
        };
        let mut stayed = Vec::with_capacity(self.all.len());
        self.all.retain(|one| {
            let stays = stays(&one.0, &mut one.1);
            stayed.push(stays);
            stays
        });
        if self.all.len() < stayed.len() {
            let mut stayed = stayed.into_iter();
            names.retain(|_| stayed.next().unwrap_or_default());
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&BucketName, &Bucket)> {
        self.all.iter().map(|one| (&one.0, &one.1))
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &Bucket> {
        self.all.iter().map(|one| &one.1)
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut Bucket> {
        self.all.iter_mut().map(|one| &mut one.1)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use aegis_model::TenantId;
    use proptest::prelude::*;

    /// What is done to some buckets.
    #[derive(Clone, Debug)]
    enum Step {
        Add(u8),
        /// Those go whose number has none of these bits.
        Retain(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![4 => (0..16u8).prop_map(Step::Add), 1 => (0..16u8).prop_map(Step::Retain)]
    }

    proptest! {
        /// L-BUCKETS: few or many, and however many there were, each is found where it stands, by its name and by its text, and nothing else is.
        #[test]
        fn l_buckets_each_is_found_where_it_stands(steps in prop::collection::vec(step(), 1..80)) {
            let tenant = TenantId::new("a").unwrap();
            let (mut buckets, mut expected) = (Buckets::default(), Vec::<u8>::new());
            for step in steps {
                match step {
                    Step::Add(number) if expected.contains(&number) => {}
                    Step::Add(number) => {
                        let place = buckets.add(BucketName::new(&tenant, &number.to_string()), Bucket::default());
                        prop_assert_eq!(place, expected.len());
                        buckets.at_mut(place).unwrap().bytes = number.into();
                        expected.push(number);
                    }
                    Step::Retain(bits) => {
                        buckets.retain(|name, bucket| {
                            assert_eq!(name.text(), bucket.bytes.to_string());
                            bucket.bytes & usize::from(bits) != 0
                        });
                        expected.retain(|number| number & bits != 0);
                    }
                }
                prop_assert_eq!((buckets.len(), buckets.is_empty()), (expected.len(), expected.is_empty()));
                let there: Vec<usize> = buckets.values().map(|bucket| bucket.bytes).collect();
                prop_assert_eq!(there, expected.iter().map(|number| usize::from(*number)).collect::<Vec<_>>());
                for number in 0..16u8 {
                    let (place, text) = (expected.iter().position(|known| *known == number), number.to_string());
                    prop_assert_eq!(buckets.place_of(&BucketName::new(&tenant, &text)), place);
                    prop_assert_eq!(buckets.place_of_text(&text), place);
                    for may_stand in 0..=expected.len() {
                        prop_assert_eq!(buckets.place_by(&BucketName::new(&tenant, &text), may_stand), place);
                    }
                    let found = place.and_then(|place| buckets.at(place));
                    prop_assert_eq!(found.map(|(name, _)| name.text().to_owned()), place.map(|_| text.clone()));
                    prop_assert_eq!(buckets.get(&text).map(|bucket| bucket.bytes), place.map(|_| usize::from(number)));
                    prop_assert_eq!(buckets.get_mut(&text).map(|bucket| bucket.bytes), place.map(|_| usize::from(number)));
                }
                prop_assert!(buckets.iter().all(|(name, bucket)| name.text() == bucket.bytes.to_string()));
                prop_assert_eq!(buckets.values_mut().count(), expected.len());
            }
        }
    }
}
