//! The members of an object by where they stand in its text: a few numbers each, that are kept or looked up later without another pass.
//! `inline`, because other crates go through all members of each event with them, and nothing links across crates.

use std::cmp::Ordering::{self, Equal, Greater, Less};

use crate::plain::has_backslash;

/// A member of an object, as slices of its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawMember<'text> {
    /// Without its quotes. Plain ASCII without escapes, so it is the key itself.
    pub key: &'text str,
    /// Text of the value.
    pub value: &'text str,
}

impl<'text> RawMember<'text> {
    /// The value as a string, if it is one and has no escapes.
    #[must_use]
    #[inline]
    pub fn as_plain_str(&self) -> Option<&'text str> {
        let content = self.value.strip_prefix('"')?.strip_suffix('"')?;
        (!has_backslash(content.as_bytes())).then_some(content)
    }

    /// The value as an integer, if it is one.
    #[must_use]
    #[inline]
    pub fn as_i64(&self) -> Option<i64> {
        self.value.parse().ok()
    }
}

/// Between the end of a key and its value: a quote and a colon.
const TO_VALUE: usize = 2;

/// Where a member stands in a text, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    key: u32,
    key_end: u32,
    end: u32,
}

impl Place {
    /// A member whose key and value these are. None: in a text that is too long.
    #[inline]
    pub(crate) fn new(key: usize, key_end: usize, end: usize) -> Option<Self> {
        let within = |place: usize| u32::try_from(place).ok();
        Some(Self { key: within(key)?, key_end: within(key_end)?, end: within(end)? })
    }

    /// Where its value begins.
    #[must_use]
    #[inline]
    pub const fn value(self) -> usize {
        self.key_end as usize + TO_VALUE
    }

    /// Where its value ends.
    #[must_use]
    #[inline]
    pub const fn end(self) -> usize {
        self.end as usize
    }

    /// The member, in the text in which it was found.
    #[must_use]
    #[inline]
    pub fn member(self, text: &str) -> Option<RawMember<'_>> {
        let key = text.get(self.key as usize..self.key_end as usize)?;
        let value = text.get(self.value()..self.end())?;
        Some(RawMember { key, value })
    }

    #[inline]
    fn key_of(self, text: &str) -> Option<&[u8]> {
        text.as_bytes().get(self.key as usize..self.key_end as usize)
    }
}

/// Some members of a text, in its order.
#[derive(Clone, Copy, Debug)]
pub struct Members<'a> {
    text: &'a str,
    places: &'a [Place],
}

impl<'a> Members<'a> {
    /// Those at these places of a text.
    #[must_use]
    #[inline]
    pub const fn new(text: &'a str, places: &'a [Place]) -> Self {
        Self { text, places }
    }

    /// How many there are.
    #[must_use]
    #[inline]
    pub const fn len(&self) -> usize {
        self.places.len()
    }

    /// True if there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// All of them.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = RawMember<'a>> + use<'a> {
        let text = self.text;
        self.places.iter().filter_map(move |place| place.member(text))
    }

    /// Keys and values of all as bytes, for who only compares: nobody looks where characters begin.
    #[inline]
    pub fn bytes(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let text = self.text;
        self.places.iter().filter_map(move |place| Some((place.key_of(text)?, text.as_bytes().get(place.value()..place.end())?)))
    }

    /// Of members whose keys ascend the one of this key, and the place where it is or would be. Looked for from a place on, or from the first one where it
    /// was passed there: whoever asks in the order of keys goes through them once, also for what is not there.
    #[must_use]
    #[inline]
    pub fn find(&self, from: usize, key: &str) -> (usize, Option<RawMember<'a>>) {
        let (key, from) = (key.as_bytes(), from.min(self.places.len()));
        let order_of = |place: &Place| place.key_of(self.text).map(|it| order(it, key));
        let is_passed =
            from.checked_sub(1).and_then(|last| self.places.get(last)).is_some_and(|last| order_of(last) != Some(Less));
        let mut place = if is_passed { 0 } else { from };
        for here in self.places.get(place..).unwrap_or_default() {
            match order_of(here) {
                Some(Less) => place += 1,
                Some(Equal) => return (place, here.member(self.text)),
                Some(Greater) | None => break,
            }
        }
        (place, None)
    }
}

/// How two keys compare. Most that are neighbours differ in their first byte already, which needs no call.
#[inline]
fn order(left: &[u8], right: &[u8]) -> Ordering {
    match (left.first(), right.first()) {
        (Some(left), Some(right)) if left != right => left.cmp(right),
        _ => left.cmp(right),
    }
}

/// How the members of an object lie in its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// Those of the object, in order; before a member of which its own were asked for, those.
    pub places: Vec<Place>,
    /// Which of `places` are the members of another: it stands behind them.
    pub within: Vec<std::ops::Range<usize>>,
    /// True if every value is canonical, but for the order of keys in those whose members were asked for; false where the keys of some object do not
    /// ascend, or stand twice.
    pub canonical: bool,
}
