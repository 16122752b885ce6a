//! What is known of each of some names. Mostly they are a few, which are beside one another where the rest of it is: of very many tenants each place that is
//! looked at is far away. Promises to be found by its name as fast where somebody makes very many, and to stand in a checkpoint as any map does.

use std::collections::HashMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smallvec::SmallVec;

use crate::window::Hasher;

/// Names that are looked through one beside the other at most.
const FEW: usize = 4;

#[derive(Clone, Debug)]
pub(crate) enum ByName<V> {
    Few(SmallVec<[(Box<str>, V); 1]>),
    Many(HashMap<Box<str>, V, Hasher>),
}

impl<V> Default for ByName<V> {
    fn default() -> Self {
        Self::Few(SmallVec::new())
    }
}

impl<V> ByName<V> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Few(few) => few.len(),
            Self::Many(many) => many.len(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn get(&self, name: &str) -> Option<&V> {
        match self {
            Self::Few(few) => few.iter().find(|one| *one.0 == *name).map(|one| &one.1),
            Self::Many(many) => many.get(name),
        }
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut V> {
        match self {
            Self::Few(few) => few.iter_mut().find(|one| *one.0 == *name).map(|one| &mut one.1),
            Self::Many(many) => many.get_mut(name),
        }
    }

    /// What is known of a name, from now on.
    pub(crate) fn get_or_insert_with(&mut self, name: &str, fresh: impl FnOnce() -> V) -> &mut V {
        if let Self::Few(few) = self
            && few.len() >= FEW
            && few.iter().all(|one| *one.0 != *name)
        {
            let many = few.drain(..).collect();
            *self = Self::Many(many);
        }
        match self {
            Self::Few(few) => {
                let known = few.iter().position(|one| *one.0 == *name);
                let place = known.unwrap_or_else(|| {
                    few.push((name.into(), fresh()));
                    few.len() - 1
                });
                &mut few[place].1
            }
            Self::Many(many) => many.entry(name.into()).or_insert_with(fresh),
        }
    }

    /// Keeps what `stays` says so of; it may change it.
    pub(crate) fn retain(&mut self, mut stays: impl FnMut(&str, &mut V) -> bool) {
        match self {
            Self::Few(few) => few.retain(|one| stays(&one.0, &mut one.1)),
            Self::Many(many) => many.retain(|name, value| stays(name, value)),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &V)> {
        let (few, many) = match self {
            Self::Few(few) => (Some(few), None),
            Self::Many(many) => (None, Some(many)),
        };
        let few = few.into_iter().flatten().map(|one| (&*one.0, &one.1));
        few.chain(many.into_iter().flatten().map(|(name, value)| (&**name, value)))
    }
}

impl<V: Default> ByName<V> {
    pub(crate) fn get_or_default(&mut self, name: &str) -> &mut V {
        self.get_or_insert_with(name, V::default)
    }
}

impl<V: Serialize> Serialize for ByName<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for ByName<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let known = HashMap::<Box<str>, V, Hasher>::deserialize(deserializer)?;
        Ok(if known.len() <= FEW { Self::Few(known.into_iter().collect()) } else { Self::Many(known) })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// L-BYNAME: few or many, it is what a map is, and a checkpoint has it as one.
        #[test]
        fn l_byname_it_is_what_a_map_is(steps in prop::collection::vec((0..12u8, 0..12u8, any::<bool>()), 1..60)) {
            let (mut known, mut expected) = (ByName::<u8>::default(), BTreeMap::<String, u8>::new());
            for (number, value, goes) in steps {
                let name = number.to_string();
                if goes {
                    known.retain(|_, there| *there != value);
                    expected.retain(|_, there| *there != value);
                } else {
                    prop_assert_eq!(*known.get_or_insert_with(&name, || value), *expected.entry(name.clone()).or_insert(value));
                    *known.get_or_default(&name) = value;
                    expected.insert(name.clone(), value);
                }
                prop_assert_eq!((known.len(), known.is_empty()), (expected.len(), expected.is_empty()));
                for name in (0..12u8).map(|number| number.to_string()) {
                    prop_assert_eq!(known.get(&name), expected.get(&name));
                    prop_assert_eq!(known.get_mut(&name), expected.get_mut(&name));
                }
                let there: BTreeMap<String, u8> = known.iter().map(|(name, value)| (name.to_owned(), *value)).collect();
                prop_assert_eq!(&there, &expected);
                let saved = serde_json::to_value(&known).unwrap();
                prop_assert_eq!(&saved, &serde_json::to_value(&expected).unwrap());
                known = serde_json::from_value(saved).unwrap();
            }
        }
    }
}
