//! The different values of a frame, of which rows come and go. Promises their order, however many there are, and to take no memory of its own for one.

use std::collections::BTreeMap;

use super::Value;

/// Different values that are looked through one beside the other at most.
const FEW: usize = 16;

/// The different values of a frame in their order, each with how many rows have it. There is mostly one, which has no place of its own.
#[derive(Debug, Default)]
pub(super) enum Sorted {
    #[default]
    None,
    One(Value, u32),
    Few(Vec<(Value, u32)>),
    Many(Box<Times>),
}

/// How many rows have each value.
type Times = BTreeMap<Value, u32>;

impl Sorted {
    pub(super) fn add(&mut self, value: &Value) {
        match self {
            Self::None => *self = Self::One(value.clone(), 1),
            Self::One(there, times) if *there == *value => *times += 1,
            Self::One(..) => {
                let Self::One(there, times) = std::mem::take(self) else { return };
                let mut few = vec![(there, times), (value.clone(), 1)];
                few.sort_unstable();
                *self = Self::Few(few);
            }
            Self::Few(few) => match few.binary_search_by(|(there, _)| there.cmp(value)) {
                Ok(place) => few[place].1 += 1,
                Err(place) if few.len() < FEW => few.insert(place, (value.clone(), 1)),
                Err(_) => {
                    let mut many: Times = few.drain(..).collect();
                    many.insert(value.clone(), 1);
                    *self = Self::Many(Box::new(many));
                }
            },
            Self::Many(many) => *many.entry(value.clone()).or_insert(0) += 1,
        }
    }

    pub(super) fn remove(&mut self, value: &Value) {
        match self {
            Self::One(there, times) if *there == *value => {
                *times -= 1;
                if *times == 0 {
                    *self = Self::None;
                }
            }
            Self::None | Self::One(..) => {}
            Self::Few(few) => {
                let Ok(place) = few.binary_search_by(|(there, _)| there.cmp(value)) else { return };
                few[place].1 -= 1;
                if few[place].1 == 0 {
                    few.remove(place);
                }
                if few.is_empty() {
                    *self = Self::None;
                }
            }
            Self::Many(many) => {
                if let Some(times) = many.get_mut(value) {
                    *times -= 1;
                    if *times == 0 {
                        many.remove(value);
                    }
                }
                if many.is_empty() {
                    *self = Self::None;
                }
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(..) => 1,
            Self::Few(few) => few.len(),
            Self::Many(many) => many.len(),
        }
    }

    pub(super) fn first(&self) -> Option<&Value> {
        match self {
            Self::None => None,
            Self::One(value, _) => Some(value),
            Self::Few(few) => few.first().map(|(value, _)| value),
            Self::Many(many) => many.first_key_value().map(|(value, _)| value),
        }
    }

    pub(super) fn last(&self) -> Option<&Value> {
        match self {
            Self::None => None,
            Self::One(value, _) => Some(value),
            Self::Few(few) => few.last().map(|(value, _)| value),
            Self::Many(many) => many.last_key_value().map(|(value, _)| value),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// However many different values there are, or were.
        #[test]
        fn values_are_in_their_order_each_as_often_as_it_was_added(steps in prop::collection::vec((any::<bool>(), 0..40u8), 1..400)) {
            let (mut sorted, mut list) = (Sorted::default(), BTreeMap::<u8, u32>::new());
            for (adds, value) in steps {
                let stands_for = Value::Text(Arc::from(format!("{value:02}")));
                if adds {
                    sorted.add(&stands_for);
                    *list.entry(value).or_insert(0) += 1;
                } else if let Some(times) = list.get_mut(&value) {
                    sorted.remove(&stands_for);
                    *times -= 1;
                    list.retain(|_, times| *times > 0);
                }
                let text = |value: &u8| Value::Text(Arc::from(format!("{value:02}")));
                prop_assert_eq!(sorted.len(), list.len());
                prop_assert_eq!(sorted.first().cloned(), list.keys().next().map(text));
                prop_assert_eq!(sorted.last().cloned(), list.keys().next_back().map(text));
            }
        }
    }
}
