//! The strict door: a JSON text (RFC 8259) to a value, refusing what I-JSON (RFC 7493) leaves ambiguous. Owns the grammar
//! and the place of every offence. Reads once, front to back, and stops at the first offence; nothing is repaired.
//!
//! Recursion is safe: every level is a container, and depth is checked before a container is entered.

use std::borrow::Cow;

use serde_json::map::Entry;
use serde_json::{Map, Value};

use crate::error::Reason;
use crate::number;
use crate::plain::plain_run;
use crate::{CanonError, Limits};

const ENDED_EARLY: &str = "the input ends in the middle of a value; send the whole of it";

pub(crate) fn document(input: &[u8], limits: Limits) -> Result<Value, CanonError> {
    let mut reader = Reader::open(input, limits)?;
    let value = reader.value(0)?;
    reader.end()?;
    Ok(value)
}

pub(crate) struct Reader<'input> {
    text: &'input str,
    /// The bytes of `text`.
    bytes: &'input [u8],
    /// INVARIANT: on a character boundary of `text`, for only ASCII is ever stepped over a byte at a time, except inside a
    /// string, whose ends are ASCII again.
    position: usize,
    max_depth: usize,
}

impl<'input> Reader<'input> {
    /// At the beginning of a text.
    pub(crate) fn open(input: &'input [u8], limits: Limits) -> Result<Self, CanonError> {
        if input.len() > limits.max_bytes {
            return Err(CanonError::at(
                limits.max_bytes,
                Reason::SizeExceeded,
                "the input is over the size limit; send less, or raise the limit",
            ));
        }
        let text = std::str::from_utf8(input).map_err(|error| {
            CanonError::at(error.valid_up_to(), Reason::InvalidUtf8, "the input is not UTF-8; encode it as UTF-8")
        })?;
        Ok(Reader { text, bytes: input, position: 0, max_depth: limits.depth() })
    }

    /// The text must end here.
    pub(crate) fn end(&mut self) -> Result<(), CanonError> {
        match self.next_significant() {
            Some(_) => Err(self.refuse(Reason::TrailingData, "something follows the value; send one JSON value")),
            None => Ok(()),
        }
    }

    /// Reads one value, with the whitespace before it, inside `depth` containers.
    pub(crate) fn value(&mut self, depth: usize) -> Result<Value, CanonError> {
        match self.next_significant() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => self.text().map(|text| Value::String(text.into_owned())),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true", Value::Bool(true)),
            Some(b'f') => self.word("false", Value::Bool(false)),
            Some(b'n') => self.word("null", Value::Null),
            Some(_) if self.non_finite() => Err(self.refuse(Reason::NonFiniteNumber, number::NOT_FINITE)),
            Some(_) => Err(self.syntax("a JSON value was expected here")),
            None => Err(self.syntax(ENDED_EARLY)),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, CanonError> {
        let inside = self.enter(depth)?;
        let mut members = Map::new();
        if self.next_significant() == Some(b'}') {
            self.position += 1;
            return Ok(Value::Object(members));
        }
        loop {
            if self.next_significant() != Some(b'"') {
                return Err(self.syntax_or_end("a key in double quotes was expected here"));
            }
            let key_position = self.position;
            let key = self.text()?.into_owned();
            let Entry::Vacant(member) = members.entry(key) else {
                return Err(CanonError::at(
                    key_position,
                    Reason::DuplicateKey,
                    "an object has this key twice; give each key once",
                ));
            };
            if self.next_significant() != Some(b':') {
                return Err(self.syntax_or_end("a colon was expected after the key"));
            }
            self.position += 1;
            member.insert(self.value(inside)?);
            match self.next_significant() {
                Some(b',') => self.position += 1,
                Some(b'}') => {
                    self.position += 1;
                    return Ok(Value::Object(members));
                }
                _ => return Err(self.syntax_or_end("a comma or a closing brace was expected here")),
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, CanonError> {
        let inside = self.enter(depth)?;
        let mut items = Vec::new();
        if self.next_significant() == Some(b']') {
            self.position += 1;
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value(inside)?);
            match self.next_significant() {
                Some(b',') => self.position += 1,
                Some(b']') => {
                    self.position += 1;
                    return Ok(Value::Array(items));
                }
                _ => return Err(self.syntax_or_end("a comma or a closing bracket was expected here")),
            }
        }
    }

    /// Steps over the opening bracket of a container that stands inside `depth` others.
    pub(crate) fn enter(&mut self, depth: usize) -> Result<usize, CanonError> {
        if depth >= self.max_depth {
            return Err(self.refuse(Reason::DepthExceeded, "the value is nested too deeply; flatten it"));
        }
        self.position += 1;
        Ok(depth + 1)
    }

    /// Reads a string from its opening quote. Most are one plain run, which is lent as it stands.
    pub(crate) fn text(&mut self) -> Result<Cow<'input, str>, CanonError> {
        self.position += 1;
        let whole = self.text;
        let mut content = String::new();
        loop {
            let run_start = self.position;
            self.position += plain_run(&self.bytes[run_start..]);
            let run = &whole[run_start..self.position];
            match self.peek() {
                Some(b'"') => {
                    self.position += 1;
                    // An escape is a character, so nothing was escaped.
                    if content.is_empty() {
                        return Ok(Cow::Borrowed(run));
                    }
                    content.push_str(run);
                    return Ok(Cow::Owned(content));
                }
                Some(b'\\') => {
                    content.push_str(run);
                    content.push(self.escape()?);
                }
                Some(_) => return Err(self.syntax("a control character in a string must be escaped")),
                None => return Err(self.syntax(ENDED_EARLY)),
            }
        }
    }

    /// Reads one escape from its backslash; a pair of surrogate escapes is one character.
    fn escape(&mut self) -> Result<char, CanonError> {
        let escape_position = self.position;
        self.position += 1;
        let character = match self.peek() {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode_escape(escape_position),
            _ => return Err(self.syntax_or_end("an escape is one of \\\" \\\\ \\/ \\b \\f \\n \\r \\t \\uXXXX")),
        };
        self.position += 1;
        Ok(character)
    }

    fn unicode_escape(&mut self, escape_position: usize) -> Result<char, CanonError> {
        let lone_surrogate = CanonError::at(
            escape_position,
            Reason::LoneSurrogate,
            "a surrogate escape stands alone; send both halves of the pair",
        );
        let first = self.code_unit()?;
        if let Some(character) = char::from_u32(first) {
            return Ok(character);
        }
        let is_low_half = first >= 0xdc00;
        if is_low_half || !self.bytes[self.position..].starts_with(b"\\u") {
            return Err(lone_surrogate);
        }
        self.position += 1;
        let second = self.code_unit()?;
        if !(0xdc00..=0xdfff).contains(&second) {
            return Err(lone_surrogate);
        }
        char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00)).ok_or(lone_surrogate)
    }

    /// Reads `uXXXX` from its `u`.
    fn code_unit(&mut self) -> Result<u32, CanonError> {
        let mut unit = 0;
        for _ in 0..4 {
            self.position += 1;
            let Some(digit) = self.peek().and_then(|byte| char::from(byte).to_digit(16)) else {
                return Err(self.syntax_or_end("four hex digits were expected after \\u"));
            };
            unit = unit * 16 + digit;
        }
        self.position += 1;
        Ok(unit)
    }

    /// Reads `-? (0 | [1-9][0-9]*) (. [0-9]+)? ([eE] [+-]? [0-9]+)?`.
    fn number(&mut self) -> Result<Value, CanonError> {
        let start = self.position;
        if self.non_finite() {
            return Err(self.refuse(Reason::NonFiniteNumber, number::NOT_FINITE));
        }
        let negative = self.skip_if(|byte| byte == b'-');
        let digits_start = self.position;
        let leading_zero = self.peek() == Some(b'0');
        self.digits()?;
        if leading_zero && self.position > digits_start + 1 {
            self.position = digits_start + 1;
            return Err(self.syntax("a number has no leading zeros"));
        }
        let digits = &self.text[digits_start..self.position];

        let has_fraction = self.skip_if(|byte| byte == b'.');
        if has_fraction {
            self.digits()?;
        }
        let has_exponent = self.skip_if(|byte| matches!(byte, b'e' | b'E'));
        if has_exponent {
            self.skip_if(|byte| matches!(byte, b'+' | b'-'));
            self.digits()?;
        }

        let number = if has_fraction || has_exponent {
            number::double(&self.text[start..self.position])
        } else {
            number::integer(negative, digits)
        };
        match number {
            Ok(number) => Ok(Value::Number(number)),
            Err((reason, what)) => Err(CanonError::at(start, reason, what)),
        }
    }

    fn digits(&mut self) -> Result<(), CanonError> {
        if !self.skip_if(|byte| byte.is_ascii_digit()) {
            return Err(self.syntax_or_end("a digit was expected here"));
        }
        while self.skip_if(|byte| byte.is_ascii_digit()) {}
        Ok(())
    }

    /// NaN and the infinities are no JSON, but several languages write them: they have a reason of their own.
    fn non_finite(&self) -> bool {
        let rest = &self.bytes[self.position..];
        rest.starts_with(b"NaN") || rest.starts_with(b"Infinity") || rest.starts_with(b"-Infinity")
    }

    fn word(&mut self, word: &str, value: Value) -> Result<Value, CanonError> {
        for &expected in word.as_bytes() {
            if !self.skip_if(|byte| byte == expected) {
                return Err(self.syntax_or_end("a JSON value was expected here"));
            }
        }
        Ok(value)
    }

    /// Skips JSON whitespace, which is these four characters only, and looks at what follows.
    pub(crate) fn next_significant(&mut self) -> Option<u8> {
        while self.skip_if(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')) {}
        self.peek()
    }

    /// Steps over the byte that was just looked at.
    pub(crate) fn step(&mut self) {
        self.position += 1;
    }

    fn skip_if(&mut self, wanted: impl Fn(u8) -> bool) -> bool {
        let found = self.peek().is_some_and(wanted);
        if found {
            self.position += 1;
        }
        found
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.position).copied()
    }

    fn refuse(&self, reason: Reason, what: &'static str) -> CanonError {
        CanonError::at(self.position, reason, what)
    }

    fn syntax(&self, what: &'static str) -> CanonError {
        self.refuse(Reason::Syntax, what)
    }

    fn syntax_or_end(&self, what: &'static str) -> CanonError {
        self.syntax(if self.position < self.bytes.len() { what } else { ENDED_EARLY })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::{Limits, parse_strict, parse_strict_with};
    use serde_json::json;

    fn rejection(input: impl AsRef<[u8]>) -> (&'static str, usize) {
        let error = parse_strict(input.as_ref()).unwrap_err();
        (error.code(), error.offset().unwrap())
    }

    #[test]
    fn a_document_is_read_whole() {
        let text = br#" {"a" : [1, -2.5e3, true, false, null, {}, [ ]], "b\u00e9\ud83d\ude00\/" : "x\ny" } "#;
        let expected = json!({"a": [1, -2500.0, true, false, null, {}, []], "bé😀/": "x\ny"});
        assert_eq!(parse_strict(text).unwrap(), expected);
        for scalar in ["1", "\"\"", "null", "\t\r\n true "] {
            assert!(parse_strict(scalar.as_bytes()).is_ok());
        }
    }

    #[test]
    fn an_error_points_at_the_offence() {
        let cases: [(&[u8], &str, usize); 35] = [
            (b"", "syntax", 0),
            (b" \n", "syntax", 2),
            (b"\xef\xbb\xbf1", "syntax", 0),
            (b"[1,]", "syntax", 3),
            (b"[1", "syntax", 2),
            (b"[1 2]", "syntax", 3),
            (b"{\"a\" 1}", "syntax", 5),
            (b"{\"a\":1,}", "syntax", 7),
            (b"{a:1}", "syntax", 1),
            (b"'a'", "syntax", 0),
            (b"01", "syntax", 1),
            (b"-01", "syntax", 2),
            (b"+1", "syntax", 0),
            (b".5", "syntax", 0),
            (b"1.", "syntax", 2),
            (b"1e", "syntax", 2),
            (b"-", "syntax", 1),
            (b"trve", "syntax", 2),
            (b"\"a\x00\"", "syntax", 2),
            (b"\"a\nb\"", "syntax", 2),
            (b"\"\\x\"", "syntax", 2),
            (b"\"\\u12g4\"", "syntax", 5),
            (b"\"abc", "syntax", 4),
            (b"1 1", "trailing_data", 2),
            (b"{}}", "trailing_data", 2),
            (b"NaN", "non_finite_number", 0),
            (b"[-Infinity]", "non_finite_number", 1),
            (b"[\"\\ud83d\"]", "lone_surrogate", 2),
            (b"[\"\\ude00\\ud83d\"]", "lone_surrogate", 2),
            (b"[\"\\ud83d\\u0041\"]", "lone_surrogate", 2),
            (b"\"\\udc00\\uzzzz\"", "lone_surrogate", 1),
            (b"[1,\"\xff\"]", "invalid_utf8", 4),
            (b"[9007199254740992]", "integer_out_of_range", 1),
            (b"[1, -1e400]", "number_out_of_range", 4),
            (b"{\"a\":{\"b\":1,\"\\u0062\":2}}", "duplicate_key", 12),
        ];
        for (input, code, offset) in cases {
            assert_eq!(rejection(input), (code, offset), "{}", input.escape_ascii());
        }
    }

    #[test]
    fn depth_is_counted_in_open_containers() {
        let arrays = |depth: usize| ["[".repeat(depth), "]".repeat(depth)].concat();
        assert!(parse_strict(arrays(128).as_bytes()).is_ok());
        assert_eq!(rejection(arrays(129)), ("depth_exceeded", 128));
        let objects = |depth: usize| ["{\"\":".repeat(depth), "1".to_owned(), "}".repeat(depth)].concat();
        assert!(parse_strict(objects(128).as_bytes()).is_ok());
        assert_eq!(rejection(objects(129)), ("depth_exceeded", 512));
        assert_eq!(rejection("[".repeat(1 << 20)), ("depth_exceeded", 128));
    }

    #[test]
    fn a_caller_may_tighten_the_depth_and_not_loosen_it() {
        let tight = Limits { max_depth: 1, ..Limits::default() };
        assert!(parse_strict_with(b"[1]", tight).is_ok());
        assert_eq!(parse_strict_with(b"[[1]]", tight).unwrap_err().code(), "depth_exceeded");
        let loose = Limits { max_depth: usize::MAX, ..Limits::default() };
        let deep = "[".repeat(1 << 20);
        assert_eq!(parse_strict_with(deep.as_bytes(), loose).unwrap_err().offset(), Some(128));
    }

    #[test]
    fn size_comes_first_then_utf8_then_the_text() {
        let limits = Limits { max_bytes: 4, ..Limits::default() };
        assert!(parse_strict_with(b"[12]", limits).is_ok());
        assert_eq!(parse_strict_with(b"[12\xff]", limits).unwrap_err().code(), "size_exceeded");
        assert_eq!(parse_strict_with(b"]1\xff", limits).unwrap_err().code(), "invalid_utf8");
    }
}
