//! The writer: a value to its RFC 8785 bytes. Owns key order, escaping and the number form; promises the same bytes
//! whatever order the map keeps its keys in. Never emits more than the size limit, never recurses deeper than the depth.

use std::cmp::Ordering;

use serde_json::{Map, Number, Value};

use crate::error::Reason;
use crate::number::{NOT_FINITE, UNSAFE_INTEGER};
use crate::plain::plain_run;
use crate::{CanonError, Limits, MAX_SAFE_INTEGER};

pub(crate) struct Writer<'out> {
    out: &'out mut Vec<u8>,
    /// Where this canonical form begins in `out`, which may hold something else before it.
    start: usize,
    max_bytes: usize,
    max_depth: usize,
}

impl<'out> Writer<'out> {
    pub(crate) fn new(out: &'out mut Vec<u8>, limits: Limits) -> Self {
        let start = out.len();
        Writer { out, start, max_bytes: limits.max_bytes, max_depth: limits.depth() }
    }

    /// Writes `value`, which stands inside `depth` containers.
    pub(crate) fn value(&mut self, value: &Value, depth: usize) -> Result<(), CanonError> {
        match value {
            Value::Null => self.raw(b"null"),
            Value::Bool(true) => self.raw(b"true"),
            Value::Bool(false) => self.raw(b"false"),
            Value::Number(number) => self.number(number)?,
            Value::String(text) => self.string(text),
            Value::Array(items) => self.array(items, depth)?,
            Value::Object(members) => self.object(members, depth)?,
        }
        // Checked after every value, so that the excess in memory is never more than one string.
        self.check_size()
    }

    fn array(&mut self, items: &[Value], depth: usize) -> Result<(), CanonError> {
        let inside = self.enter(depth)?;
        self.out.push(b'[');
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            self.value(item, inside)?;
        }
        self.out.push(b']');
        Ok(())
    }

    fn object(&mut self, members: &Map<String, Value>, depth: usize) -> Result<(), CanonError> {
        let inside = self.enter(depth)?;
        self.out.push(b'{');
        if members.keys().is_sorted_by(|left, right| utf16_order(left, right).is_lt()) {
            self.members(members.iter(), inside)?;
        } else {
            let mut sorted: Vec<(&String, &Value)> = members.iter().collect();
            sorted.sort_unstable_by(|left, right| utf16_order(left.0, right.0));
            self.members(sorted.into_iter(), inside)?;
        }
        self.out.push(b'}');
        Ok(())
    }

    fn members<'value>(
        &mut self,
        sorted: impl Iterator<Item = (&'value String, &'value Value)>,
        depth: usize,
    ) -> Result<(), CanonError> {
        for (index, (key, value)) in sorted.enumerate() {
            if index > 0 {
                self.out.push(b',');
            }
            self.string(key);
            self.out.push(b':');
            self.value(value, depth)?;
        }
        Ok(())
    }

    fn enter(&self, depth: usize) -> Result<usize, CanonError> {
        if depth >= self.max_depth {
            return Err(CanonError::in_value(Reason::DepthExceeded, "the value is nested too deeply; flatten it"));
        }
        Ok(depth + 1)
    }

    /// Every number is written as the double it is: a safe integer is one exactly, so there is one form for both.
    fn number(&mut self, number: &Number) -> Result<(), CanonError> {
        let double = if let Some(integer) = number.as_i64() {
            if integer.unsigned_abs() > MAX_SAFE_INTEGER {
                return Err(CanonError::in_value(Reason::IntegerOutOfRange, UNSAFE_INTEGER));
            }
            integer as f64
        } else if number.is_f64() {
            // `is_finite` guards against a serde_json that keeps number literals as text (feature arbitrary_precision).
            match number.as_f64() {
                Some(double) if double.is_finite() => double,
                _ => return Err(CanonError::in_value(Reason::NonFiniteNumber, NOT_FINITE)),
            }
        } else {
            // Beyond i64, so beyond the safe range.
            return Err(CanonError::in_value(Reason::IntegerOutOfRange, UNSAFE_INTEGER));
        };
        self.raw(ryu_js::Buffer::new().format_finite(double).as_bytes());
        Ok(())
    }

    pub(crate) fn string(&mut self, text: &str) {
        write_string(self.out, text);
    }

    /// Bytes of this canonical form so far.
    pub(crate) fn written(&self) -> usize {
        self.out.len() - self.start
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    pub(crate) fn check_size(&self) -> Result<(), CanonError> {
        if self.written() > self.max_bytes {
            return Err(CanonError::in_value(
                Reason::SizeExceeded,
                "the canonical form is over the size limit; send less, or raise the limit",
            ));
        }
        Ok(())
    }
}

/// Appends a string to a JSON text, with its quotes: runs of plain bytes are copied whole, only what RFC 8785 names is escaped.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    let mut rest = text.as_bytes();
    loop {
        let (run, behind) = rest.split_at(plain_run(rest));
        out.extend_from_slice(run);
        let Some((&byte, behind)) = behind.split_first() else { break };
        escape(out, byte);
        rest = behind;
    }
    out.push(b'"');
}

fn escape(out: &mut Vec<u8>, byte: u8) {
    const HEX_DIGITS: &[u8; 16] = b"0123456789abcdef";
    let short_form = match byte {
        b'"' => b'"',
        b'\\' => b'\\',
        0x08 => b'b',
        b'\t' => b't',
        b'\n' => b'n',
        0x0c => b'f',
        b'\r' => b'r',
        _ => {
            out.extend_from_slice(b"\\u00");
            out.push(HEX_DIGITS[usize::from(byte >> 4)]);
            out.push(HEX_DIGITS[usize::from(byte & 0x0f)]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short_form]);
}

/// RFC 8785 section 3.2.3: keys compare by UTF-16 code units. UTF-8 bytes give the same order, except between the
/// characters beyond U+FFFF (surrogates, 0xD800 and up, in UTF-16) and those from U+E000 to U+FFFF.
fn utf16_order(left: &str, right: &str) -> Ordering {
    if left.is_ascii() && right.is_ascii() {
        return left.cmp(right);
    }
    left.encode_utf16().cmp(right.encode_utf16())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::canonicalize_value;
    use serde_json::json;

    fn written(value: Value) -> String {
        String::from_utf8(canonicalize_value(&value).unwrap()).unwrap()
    }

    #[test]
    fn keys_are_ordered_by_utf16_code_units() {
        // U+1F600 is the surrogates D83D DE00 and comes before U+E000 and U+FB33; in UTF-8 it would come last.
        let object = json!({"\u{fb33}": 1, "\u{1f600}": 2, "\u{e000}": 3, "ö": 4, "a": 5, "": 6, "aa": 7, "A": 8, "\r": 9});
        let expected = "{\"\":6,\"\\r\":9,\"A\":8,\"a\":5,\"aa\":7,\"ö\":4,\"\u{1f600}\":2,\"\u{e000}\":3,\"\u{fb33}\":1}";
        assert_eq!(written(object), expected);
    }

    #[test]
    fn a_prefix_comes_before_what_it_begins() {
        assert_eq!(utf16_order("é", "éa"), Ordering::Less);
        assert_eq!(utf16_order("a", "aé"), Ordering::Less);
        assert_eq!(utf16_order("\u{1f600}b", "\u{1f600}a"), Ordering::Greater);
    }

    #[test]
    fn only_quotes_backslashes_and_controls_are_escaped() {
        let every_control: String = (0u8..0x20).map(char::from).collect();
        let expected = concat!(
            r#""\u0000\u0001\u0002\u0003\u0004\u0005\u0006\u0007\b\t\n\u000b\f\r\u000e\u000f"#,
            r#"\u0010\u0011\u0012\u0013\u0014\u0015\u0016\u0017\u0018\u0019\u001a\u001b\u001c\u001d\u001e\u001f""#
        );
        assert_eq!(written(json!(every_control)), expected);
        assert_eq!(written(json!("\"\\/<>&'\u{7f}\u{2028}é😀")), "\"\\\"\\\\/<>&'\u{7f}\u{2028}é😀\"");
    }

    #[test]
    fn numbers_have_the_ecmascript_form() {
        let forms = [
            (json!(-0.0), "0"),
            (json!(1.0), "1"),
            (json!(1e21), "1e+21"),
            (json!(1e20), "100000000000000000000"),
            (json!(1e-6), "0.000001"),
            (json!(1e-7), "1e-7"),
            (json!(1e30), "1e+30"),
            (json!(5e-324), "5e-324"),
            (json!(f64::MAX), "1.7976931348623157e+308"),
            (json!(333_333_333.333_333_3), "333333333.3333333"),
            (json!(9_007_199_254_740_991_u64), "9007199254740991"),
            (json!(-9_007_199_254_740_991_i64), "-9007199254740991"),
        ];
        for (value, form) in forms {
            assert_eq!(written(value), form);
        }
    }

    #[test]
    fn an_unsafe_integer_is_rejected_as_a_value_too() {
        for integer in [json!(1u64 << 53), json!(-(1i64 << 53)), json!(u64::MAX), json!(i64::MIN), json!(i64::MAX)] {
            assert_eq!(canonicalize_value(&integer).unwrap_err().code(), "integer_out_of_range");
        }
    }

    #[test]
    fn the_canonical_form_may_fill_the_limit_and_not_exceed_it() {
        // The two quotes count.
        let fits = json!("x".repeat(crate::DEFAULT_MAX_BYTES - 2));
        assert_eq!(canonicalize_value(&fits).unwrap().len(), crate::DEFAULT_MAX_BYTES);
        let exceeds = json!("x".repeat(crate::DEFAULT_MAX_BYTES - 1));
        assert_eq!(canonicalize_value(&exceeds).unwrap_err().code(), "size_exceeded");
    }
}
