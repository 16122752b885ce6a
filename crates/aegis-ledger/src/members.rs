//! The members of one object of canonical text, looked up by their keys without making a value of it.

use std::cell::Cell;

use aegis_canon::{Members, RawMember};

/// Members of one object whose keys ascend. Looked up from where the last one was, or would have been: whoever asks in the order of keys
/// compares one key or two a question.
pub(crate) struct InOrder<'a> {
    members: Members<'a>,
    next: Cell<usize>,
}

impl<'a> InOrder<'a> {
    pub(crate) const fn new(members: Members<'a>) -> Self {
        Self { members, next: Cell::new(0) }
    }

    pub(crate) fn get(&self, key: &str) -> Option<RawMember<'a>> {
        let (place, member) = self.members.find(self.next.get(), key);
        self.next.set(place);
        member
    }

    pub(crate) fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key)?.as_plain_str()
    }

    /// The value's text; what is absent counts as null.
    pub(crate) fn value(&self, key: &str) -> &'a str {
        self.get(key).map_or("null", |member| member.value)
    }
}
