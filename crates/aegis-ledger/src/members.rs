//! The members of one object of canonical text, looked up by their keys without making a value of it.

use std::cell::Cell;

use aegis_canon::RawMember;

/// Members of one object, each key once. Looked up from where the last one was found: whoever asks in the order of the text, which is
/// that of the keys, compares one key or two a question.
pub(crate) struct Members<'a> {
    members: &'a [RawMember<'a>],
    next: Cell<usize>,
}

impl<'a> Members<'a> {
    pub(crate) const fn new(members: &'a [RawMember<'a>]) -> Self {
        Self { members, next: Cell::new(0) }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&'a RawMember<'a>> {
        let (before, from_here) = self.members.split_at(self.next.get());
        let place = match from_here.iter().position(|member| member.key == key) {
            Some(place) => before.len() + place,
            None => before.iter().position(|member| member.key == key)?,
        };
        self.next.set(place + 1);
        Some(&self.members[place])
    }

    pub(crate) fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key)?.as_plain_str()
    }

    /// The value's text; what is absent counts as null.
    pub(crate) fn value(&self, key: &str) -> &'a str {
        self.get(key).map_or("null", |member| member.value)
    }
}
