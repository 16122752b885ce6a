//! One object written straight to its canonical text, member by member, where a program knows the keys and their order. Owns the
//! form of what it writes; the order is the caller's promise, checked in debug builds.

use std::sync::Arc;

use crate::MAX_SAFE_INTEGER;
use crate::write::write_string;

/// The canonical text of one object, while it is being written.
///
/// ```
/// let mut object = aegis_canon::ObjectText::with_capacity(64);
/// object.text("action", "merge");
/// object.flag("mutates_state", true);
/// object.raw("parameters", r#"{"n":1}"#);
/// assert_eq!(object.finish(), r#"{"action":"merge","mutates_state":true,"parameters":{"n":1}}"#);
/// ```
#[derive(Debug)]
pub struct ObjectText {
    text: Vec<u8>,
    #[cfg(debug_assertions)]
    last: Option<&'static str>,
}

impl ObjectText {
    /// An object whose text will have about `bytes` bytes.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self::begun_in(Vec::with_capacity(bytes))
    }

    /// An object that is written where another was: what `room` holds is gone, its capacity is used. Given back by `finish_in`.
    ///
    /// ```
    /// let mut room = Vec::new();
    /// for number in 0..3 {
    ///     let mut object = aegis_canon::ObjectText::in_room(&mut room);
    ///     object.integer("n", number);
    ///     assert_eq!(*object.finish_in(&mut room), *format!(r#"{{"n":{number}}}"#));
    /// }
    /// ```
    #[must_use]
    pub fn in_room(room: &mut Vec<u8>) -> Self {
        let mut text = std::mem::take(room);
        text.clear();
        Self::begun_in(text)
    }

    fn begun_in(mut text: Vec<u8>) -> Self {
        text.push(b'{');
        Self {
            text,
            #[cfg(debug_assertions)]
            last: None,
        }
    }

    /// A member that is a string.
    pub fn text(&mut self, key: &'static str, value: &str) {
        self.key(key);
        write_string(&mut self.text, value);
    }

    /// A member that is true or false.
    pub fn flag(&mut self, key: &'static str, value: bool) {
        self.raw(key, if value { "true" } else { "false" });
    }

    /// A member that is an integer. One outside the safe range has no canonical form; it is written as the string of its digits,
    /// which no reader takes for a number.
    pub fn integer(&mut self, key: &'static str, value: i64) {
        debug_assert!(value.unsigned_abs() <= MAX_SAFE_INTEGER, "{key} is outside the safe range");
        let mut buffer = [0; DIGITS];
        let digits = decimal(value, &mut buffer);
        if value.unsigned_abs() <= MAX_SAFE_INTEGER { self.raw(key, digits) } else { self.text(key, digits) }
    }

    /// A member that is an array of strings.
    pub fn texts<'value>(&mut self, key: &'static str, values: impl IntoIterator<Item = &'value str>) {
        self.key(key);
        self.text.push(b'[');
        for (index, value) in values.into_iter().enumerate() {
            if index > 0 {
                self.text.push(b',');
            }
            write_string(&mut self.text, value);
        }
        self.text.push(b']');
    }

    /// A member whose value's text is canonical already.
    pub fn raw(&mut self, key: &'static str, canonical: &str) {
        self.key(key);
        self.text.extend_from_slice(canonical.as_bytes());
    }

    /// The whole object.
    #[must_use]
    pub fn finish(mut self) -> String {
        self.text.push(b'}');
        // Only whole strings were put in, so it is UTF-8, and the second way is never taken.
        String::from_utf8(self.text).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }

    /// The whole object as a text of just its size, which can be shared. The capacity that it was written in goes back to `room`.
    #[must_use]
    pub fn finish_in(mut self, room: &mut Vec<u8>) -> Arc<str> {
        self.text.push(b'}');
        let text: Arc<str> = match std::str::from_utf8(&self.text) {
            Ok(text) => Arc::from(text),
            // Only whole strings were put in, so this way is never taken.
            Err(_) => Arc::from(String::from_utf8_lossy(&self.text)),
        };
        *room = self.text;
        text
    }

    fn key(&mut self, key: &'static str) {
        debug_assert!(key.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\'), "{key} needs escapes");
        #[cfg(debug_assertions)]
        {
            debug_assert!(self.last.is_none_or(|last| last < key), "{key} does not stand where RFC 8785 puts it");
            self.last = Some(key);
        }
        // With the comma, two quotes and the colon: what follows finds its room.
        self.text.reserve(key.len() + 4);
        if self.text.len() > 1 {
            self.text.push(b',');
        }
        self.text.push(b'"');
        self.text.extend_from_slice(key.as_bytes());
        self.text.extend_from_slice(b"\":");
    }
}

/// Digits and sign of any `i64`.
const DIGITS: usize = 20;

/// An integer as text, in the end of `buffer`.
fn decimal(value: i64, buffer: &mut [u8; DIGITS]) -> &str {
    let mut start = DIGITS;
    let mut rest = value.unsigned_abs();
    loop {
        start -= 1;
        buffer[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        start -= 1;
        buffer[start] = b'-';
    }
    std::str::from_utf8(&buffer[start..]).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::canonicalize_value;

    proptest! {
        #[test]
        fn it_writes_what_the_value_s_writer_writes(
            text in "[a-c\"\\\\\n\u{1}\u{7f}é😀]{0,40}",
            flag: bool,
            number in -(1i64 << 53) + 1..1i64 << 53,
            texts in prop::collection::vec("[a\"\\\\\u{0}é]{0,20}", 0..4),
        ) {
            let mut object = ObjectText::with_capacity(0);
            object.flag("a", flag);
            object.integer("b", number);
            object.raw("c", "null");
            object.text("d", &text);
            object.texts("e", texts.iter().map(String::as_str));
            let value = json!({"a": flag, "b": number, "c": null, "d": text, "e": texts});
            prop_assert_eq!(object.finish().into_bytes(), canonicalize_value(&value).unwrap());
        }

        #[test]
        fn what_was_written_in_a_room_before_leaves_no_trace_in_the_next_object(
            texts in prop::collection::vec("[a-c\"\\\\\n\u{1}é😀]{0,40}", 1..6),
        ) {
            let mut room = b"before".to_vec();
            for text in &texts {
                let mut object = ObjectText::in_room(&mut room);
                object.text("a", text);
                let mut alone = ObjectText::with_capacity(0);
                alone.text("a", text);
                let (shared, alone) = (object.finish_in(&mut room), alone.finish());
                prop_assert_eq!(&*shared, alone.as_str());
                prop_assert!(room.capacity() > 0, "it is given back");
            }
        }
    }

    #[test]
    fn an_integer_has_the_digits_that_everyone_writes() {
        for value in [0, 1, -1, 9, 10, -10, 1_000_000_007, i64::MAX, i64::MIN] {
            assert_eq!(decimal(value, &mut [0; DIGITS]), value.to_string());
        }
    }

    #[test]
    fn an_empty_object_is_one() {
        assert_eq!(ObjectText::with_capacity(2).finish(), "{}");
    }
}
