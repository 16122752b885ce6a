//! Canonical text recognised as it stands: one pass, no value, nothing copied. For readers of much text that was canonical when it
//! was sealed. Promises never to accept a text that is not its own canonical form; it may refuse one that is (a key that is not
//! plain ASCII, a number with a fraction), for which the reader takes the long way.

use crate::plain::plain_run;
use crate::{MAX_DEPTH, MAX_SAFE_INTEGER};

/// A member of an object, as slices of its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawMember<'text> {
    /// Without its quotes. Plain ASCII without escapes, so it is the key itself.
    pub key: &'text str,
    /// Text of the value.
    pub value: &'text str,
    /// True if that text is canonical; false where the keys of some object in it do not ascend, or stand twice.
    pub canonical: bool,
    /// Where the value ends, in bytes from the start of the object's text.
    pub end: usize,
}

impl<'text> RawMember<'text> {
    /// The value as a string, if it is one and has no escapes.
    #[must_use]
    pub fn as_plain_str(&self) -> Option<&'text str> {
        let content = self.value.strip_prefix('"')?.strip_suffix('"')?;
        (!content.contains('\\')).then_some(content)
    }

    /// The value as an integer, if it is one.
    #[must_use]
    pub fn as_i64(&self) -> Option<i64> {
        self.value.parse().ok()
    }
}

/// True only if `text` is the canonical form of the value it reads as.
#[must_use]
pub fn is_canonical(text: &str) -> bool {
    let mut scan = Scan { bytes: text.as_bytes(), position: 0, ordered: true };
    scan.value(0).is_some() && scan.ordered && scan.position == text.len()
}

/// The members of an object whose text is plainly canonical but for the order of keys, in the order of the text. Which order is right,
/// and what of keys that stand twice, is the caller's to judge: objects that were extended at their end are read too.
#[must_use]
pub fn raw_members(text: &str) -> Option<Vec<RawMember<'_>>> {
    let mut scan = Scan { bytes: text.as_bytes(), position: 0, ordered: true };
    let mut members = Vec::with_capacity(48);
    scan.expect(b'{')?;
    if scan.peek()? != b'}' {
        loop {
            let (key_start, key_end) = scan.key()?;
            let value_start = scan.position;
            scan.ordered = true;
            scan.value(1)?;
            let end = scan.position;
            let (key, value) = (&text[key_start..key_end], &text[value_start..end]);
            members.push(RawMember { key, value, canonical: scan.ordered, end });
            if scan.peek()? != b',' {
                break;
            }
            scan.position += 1;
        }
    }
    scan.expect(b'}')?;
    (scan.position == text.len()).then_some(members)
}

struct Scan<'text> {
    bytes: &'text [u8],
    /// INVARIANT: on a character boundary wherever a slice of the text is taken, for those places are next to ASCII.
    position: usize,
    /// Whether the keys of every object so far ascend.
    ordered: bool,
}

/// Every step answers None where the text is not plainly canonical.
impl Scan<'_> {
    fn value(&mut self, depth: usize) -> Option<()> {
        match self.peek()? {
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            b'"' => self.string(),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            _ => self.integer(),
        }
    }

    /// Keys ascend strictly, so none stands twice. Among ASCII keys the order of bytes is that of RFC 8785.
    fn object(&mut self, depth: usize) -> Option<()> {
        self.enter(depth)?;
        if self.peek()? == b'}' {
            self.position += 1;
            return Some(());
        }
        let bytes = self.bytes;
        let mut last: Option<&[u8]> = None;
        loop {
            let (start, end) = self.key()?;
            let key = &bytes[start..end];
            self.ordered &= last.is_none_or(|last| last < key);
            last = Some(key);
            self.value(depth + 1)?;
            match self.peek()? {
                b',' => self.position += 1,
                _ => return self.expect(b'}'),
            }
        }
    }

    fn array(&mut self, depth: usize) -> Option<()> {
        self.enter(depth)?;
        if self.peek()? == b']' {
            self.position += 1;
            return Some(());
        }
        loop {
            self.value(depth + 1)?;
            match self.peek()? {
                b',' => self.position += 1,
                _ => return self.expect(b']'),
            }
        }
    }

    fn enter(&mut self, depth: usize) -> Option<()> {
        self.position += 1;
        (depth < MAX_DEPTH).then_some(())
    }

    /// A plain key with its colon; where its characters begin and end.
    fn key(&mut self) -> Option<(usize, usize)> {
        self.expect(b'"')?;
        let start = self.position;
        while matches!(self.peek()?, 0x20..=0x7e) && !matches!(self.peek()?, b'"' | b'\\') {
            self.position += 1;
        }
        let end = self.position;
        self.expect(b'"')?;
        self.expect(b':')?;
        Some((start, end))
    }

    fn string(&mut self) -> Option<()> {
        self.position += 1;
        loop {
            self.position += plain_run(&self.bytes[self.position..]);
            let byte = self.peek()?;
            self.position += 1;
            match byte {
                b'"' => return Some(()),
                b'\\' => self.escape()?,
                _ => return None,
            }
        }
    }

    /// RFC 8785 escapes what it must, in the one shortest way.
    fn escape(&mut self) -> Option<()> {
        let byte = self.peek()?;
        self.position += 1;
        match byte {
            b'"' | b'\\' | b'b' | b'f' | b'n' | b'r' | b't' => Some(()),
            b'u' => {
                let digits = self.bytes.get(self.position..self.position + 4)?;
                self.position += 4;
                let canonical = match digits {
                    [b'0', b'0', b'0', low] => matches!(low, b'0'..=b'7' | b'b' | b'e' | b'f'),
                    [b'0', b'0', b'1', low] => matches!(low, b'0'..=b'9' | b'a'..=b'f'),
                    _ => false,
                };
                canonical.then_some(())
            }
            _ => None,
        }
    }

    /// Integers in the safe range; whatever has a fraction or an exponent takes the long way.
    fn integer(&mut self) -> Option<()> {
        let negative = self.peek()? == b'-';
        self.position += usize::from(negative);
        let start = self.position;
        let mut number: u64 = 0;
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            number = number.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
            self.position += 1;
        }
        let digits = self.position - start;
        let plain = match self.bytes.get(start)? {
            b'0' => digits == 1 && !negative,
            _ => digits > 0 && number <= MAX_SAFE_INTEGER,
        };
        let ends = !matches!(self.peek(), Some(b'.' | b'e' | b'E'));
        (plain && ends).then_some(())
    }

    fn word(&mut self, word: &[u8]) -> Option<()> {
        let end = self.position + word.len();
        (self.bytes.get(self.position..end)? == word).then(|| self.position = end)
    }

    fn expect(&mut self, wanted: u8) -> Option<()> {
        (self.peek()? == wanted).then(|| self.position += 1)
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.position).copied()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{canonicalize_bytes, canonicalize_value, parse_strict};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    /// Texts near the border: canonical ones, and ones that differ from them in a byte.
    fn near_canonical() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just(json!(null)),
            any::<bool>().prop_map(Value::from),
            (-(1i64 << 53) + 1..1i64 << 53).prop_map(Value::from),
            (-3i64..12).prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[a-c\"\\\\\n\u{1}\u{7f}é😀]{0,4}".prop_map(Value::from),
        ];
        let value = leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec(("[a-cé\"]{0,2}", inner), 0..4).prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        });
        let piece = prop::sample::select(vec![
            "",
            " ",
            "\"",
            "\\",
            "0",
            "-",
            "-0",
            "1.0",
            "e1",
            ",",
            ":",
            "{",
            "}",
            "[",
            "]",
            "\\u0007",
            "\\u0008",
            "\\u000A",
            "\\/",
            "\n",
            "\"a\":1,",
            "é",
            "9007199254740992",
        ]);
        (value, any::<prop::sample::Index>(), 0usize..2, piece).prop_map(|(value, at, removed, piece)| {
            let canonical = String::from_utf8(canonicalize_value(&value).unwrap()).unwrap();
            let characters: Vec<char> = canonical.chars().collect();
            let at = at.index(characters.len());
            let (before, after) = (&characters[..at], &characters[(at + removed).min(characters.len())..]);
            before.iter().copied().chain(piece.chars()).chain(after.iter().copied()).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn nothing_is_accepted_that_is_not_its_own_canonical_form(text in near_canonical()) {
            if is_canonical(&text) {
                let canonical = canonicalize_bytes(text.as_bytes());
                prop_assert_eq!(canonical.as_deref(), Ok(text.as_bytes()));
            }
        }

        #[test]
        fn members_are_the_object_in_pieces(text in near_canonical()) {
            let Some(members) = raw_members(&text) else { return Ok(()) };
            let rebuilt: Vec<String> = members.iter().map(|m| format!("\"{}\":{}", m.key, m.value)).collect();
            prop_assert_eq!(format!("{{{}}}", rebuilt.join(",")), text.clone());
            for member in &members {
                prop_assert_eq!(is_canonical(member.value), member.canonical);
                prop_assert!(text[..member.end].ends_with(member.value));
            }
            let ascending = members.windows(2).all(|pair| pair[0].key < pair[1].key);
            prop_assert_eq!(ascending && members.iter().all(|m| m.canonical), is_canonical(&text));
            if let Ok(Value::Object(read)) = parse_strict(text.as_bytes()) {
                for member in &members {
                    prop_assert_eq!(member.as_plain_str().is_some_and(|s| Some(s) != read[member.key].as_str()), false);
                    prop_assert_eq!(member.as_i64(), read[member.key].as_i64());
                }
            }
        }
    }

    #[test]
    fn what_receipts_are_made_of_is_recognised() {
        let plain = [
            r#"{"a":null,"b":[true,false,{}],"c":{"x":"é \" \\ \n \u0001","y":-12},"d":[]}"#,
            "0",
            "9007199254740991",
            "-9007199254740991",
            r#""""#,
        ];
        for text in plain {
            assert!(is_canonical(text), "{text}");
            assert_eq!(canonicalize_bytes(text.as_bytes()).unwrap(), text.as_bytes());
        }
        let members = raw_members(r#"{"b":1,"a":"x"}"#).unwrap();
        assert_eq!((members[0].key, members[0].as_i64(), members[0].end), ("b", Some(1), 6));
        assert_eq!((members[1].key, members[1].as_plain_str(), members[1].end), ("a", Some("x"), 14));
        let members = raw_members(r#"{"a":{"c":1,"b":2},"d":{"c":1,"c":1},"e":{"b":{}}}"#).unwrap();
        assert_eq!(members.iter().map(|m| m.canonical).collect::<Vec<_>>(), [false, false, true]);
    }

    #[test]
    fn what_is_not_plainly_canonical_is_refused() {
        let refused = [
            "",
            " 1",
            "1 ",
            "01",
            "-0",
            "-",
            "1.0",
            "1e3",
            "9007199254740992",
            "tru",
            "nul",
            "[1,]",
            "[1 ,2]",
            "[,]",
            "[",
            "{",
            "{}x",
            r#"{"b":1,"a":2}"#,
            r#"{"a":1,"a":1}"#,
            r#"{"a" :1}"#,
            r#"{"a":1,}"#,
            r#"{"\u0061":1}"#,
            r#"{"é":1}"#,
            r#"{"a"}"#,
            r#""\/""#,
            r#""\u000a""#,
            r#""\u001F""#,
            r#""\u00e9""#,
            r#""\ud83d\ude00""#,
            "\"\n\"",
            r#""a"#,
            r#""\"#,
            r#""\u00"#,
        ];
        for text in refused {
            assert!(!is_canonical(text), "{text}");
        }
        assert!(raw_members("[]").is_none() && raw_members(r#"{"a":1}}"#).is_none() && raw_members("").is_none());
        let nested = |depth: usize| ["[".repeat(depth), "]".repeat(depth)].concat();
        assert!(is_canonical(&nested(MAX_DEPTH)) && !is_canonical(&nested(MAX_DEPTH + 1)));
        let inside = |depth: usize| format!("{{\"a\":{}}}", nested(depth));
        assert!(raw_members(&inside(MAX_DEPTH - 1)).is_some() && raw_members(&inside(MAX_DEPTH)).is_none());
    }
}
