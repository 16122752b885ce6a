//! Canonical text recognised as it stands: one pass, no value, nothing copied. For readers of much text that was canonical when it
//! was sealed. Promises never to accept a text that is not its own canonical form; it may refuse one that is (a key that is not
//! plain ASCII, a number with a fraction), for which the reader takes the long way.

use crate::members::{Outline, Place};
use crate::plain::{key_run, plain_run};
use crate::{MAX_DEPTH, MAX_SAFE_INTEGER};

/// Members of a sealed event, its receipt and its proof together, about.
const USUAL_MEMBERS: usize = 80;

/// True only if `text` is the canonical form of the value it reads as.
#[must_use]
pub fn is_canonical(text: &str) -> bool {
    let mut scan = Scan { bytes: text.as_bytes(), position: 0, ordered: true };
    scan.value(0).is_some() && scan.ordered && scan.position == text.len()
}

/// The members of an object whose text is plainly canonical but for the order of keys, in the order of the text, in one pass; and the members of those
/// that `within` names and that are objects. Which order is right, and what of keys that stand twice, is the caller's to judge: objects that were
/// extended at their end are read too.
#[must_use]
pub fn outline(text: &str, within: &[&str]) -> Option<Outline> {
    let mut scan = Scan { bytes: text.as_bytes(), position: 0, ordered: true };
    let mut outline =
        Outline { places: Vec::with_capacity(USUAL_MEMBERS), within: Vec::with_capacity(within.len()), canonical: false };
    scan.members(0, within, &mut outline)?;
    outline.canonical = scan.ordered;
    (scan.position == text.len()).then_some(outline)
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

    /// Notes where the members of the object here stand, whose order is not judged, and before one that `within` names, if it is an object, its own.
    fn members(&mut self, depth: usize, within: &[&str], outline: &mut Outline) -> Option<()> {
        if self.peek()? != b'{' {
            return None;
        }
        self.enter(depth)?;
        if self.peek()? == b'}' {
            self.position += 1;
            return Some(());
        }
        let bytes = self.bytes;
        loop {
            let (start, end) = self.key()?;
            if self.peek()? == b'{' && within.iter().any(|name| name.as_bytes() == &bytes[start..end]) {
                let first = outline.places.len();
                self.members(depth + 1, &[], outline)?;
                outline.within.push(first..outline.places.len());
            } else {
                self.value(depth + 1)?;
            }
            outline.places.push(Place::new(start, end, self.position)?);
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
        let end = start + key_run(self.bytes.get(start..)?);
        self.position = end;
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
    use crate::{Members, RawMember, canonicalize_bytes, canonicalize_value, parse_strict};
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
        fn members_are_the_object_in_pieces(text in near_canonical(), within in prop::sample::subsequence(vec!["", "a", "b"], 0..=3)) {
            let Some(outline) = outline(&text, &within) else { return Ok(()) };
            let is_inner = |place: usize| outline.within.iter().any(|range| range.contains(&place));
            let tops: Vec<Place> = (0..outline.places.len()).filter(|place| !is_inner(*place)).map(|place| outline.places[place]).collect();
            let pieces = |text: &str, places: &[Place]| {
                let members: Vec<String> = Members::new(text, places).iter().map(|m| format!("\"{}\":{}", m.key, m.value)).collect();
                format!("{{{}}}", members.join(","))
            };
            prop_assert_eq!(pieces(&text, &tops), text.clone());
            let mut expected = Vec::new();
            for place in &tops {
                let member = place.member(&text).unwrap();
                prop_assert!(text[..place.end()].ends_with(member.value) && text[place.value()..].starts_with(member.value));
                if within.contains(&member.key) && member.value.starts_with('{') {
                    expected.push(member.value);
                }
            }
            let inner: Vec<String> = outline.within.iter().map(|range| pieces(&text, &outline.places[range.clone()])).collect();
            prop_assert_eq!(inner, expected);
            for range in &outline.within {
                prop_assert!(within.contains(&outline.places[range.end].member(&text).unwrap().key));
            }

            let ascending = |places: &[Place]| {
                Members::new(&text, places).iter().zip(Members::new(&text, places).iter().skip(1)).all(|(one, next)| one.key < next.key)
            };
            let all_ascend = ascending(&tops) && outline.within.iter().all(|range| ascending(&outline.places[range.clone()]));
            prop_assert_eq!(all_ascend && outline.canonical, is_canonical(&text));
            if let Ok(Value::Object(read)) = parse_strict(text.as_bytes()) {
                for member in Members::new(&text, &tops).iter() {
                    prop_assert_eq!(member.as_plain_str().is_some_and(|s| Some(s) != read[member.key].as_str()), false);
                    prop_assert_eq!(member.as_i64(), read[member.key].as_i64());
                }
            }
        }

        #[test]
        fn a_member_is_found_from_wherever_it_is_looked_for(text in near_canonical(), from in 0usize..6) {
            let Some(outline) = outline(&text, &[]) else { return Ok(()) };
            let members = Members::new(&text, &outline.places);
            let all: Vec<RawMember<'_>> = members.iter().collect();
            prop_assert_eq!(all.len(), members.len());
            let bytes: Vec<(&[u8], &[u8])> = all.iter().map(|member| (member.key.as_bytes(), member.value.as_bytes())).collect();
            prop_assert_eq!(members.bytes().collect::<Vec<_>>(), bytes);
            if !all.is_sorted_by(|one, next| one.key < next.key) {
                return Ok(());
            }
            // Once from there, and then as who asks for one after the other.
            let mut last = from;
            for key in ["", "a", "aa", "ab", "b", "c", "no such key", "b", "a"] {
                let expected = all.iter().find(|member| member.key == key).copied();
                prop_assert_eq!(members.find(from, key).1, expected);
                let (place, found) = members.find(last, key);
                prop_assert_eq!(found, expected);
                last = place;
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
        let text = r#"{"b":1,"a":"x"}"#;
        let places = outline(text, &[]).unwrap().places;
        let members: Vec<RawMember<'_>> = Members::new(text, &places).iter().collect();
        assert_eq!((members[0].key, members[0].as_i64(), places[0].end()), ("b", Some(1), 6));
        assert_eq!((members[1].key, members[1].as_plain_str(), places[1].end()), ("a", Some("x"), 14));
        let extended = |value: &str| outline(&format!(r#"{{"a":{value},"e":{{"b":{{}}}}}}"#), &["a"]).unwrap();
        for (value, is_canonical) in [
            (r#"{"c":1,"b":2}"#, true),
            (r#"{"c":1,"c":1}"#, true),
            (r#"{"x":{"c":1,"b":2}}"#, false),
            (r#"[{"c":1,"c":1}]"#, false),
        ] {
            assert_eq!(extended(value).canonical, is_canonical, "{value}");
        }
        let both = extended(r#"{"c":1,"b":2}"#);
        assert_eq!((both.places.len(), both.within.len(), both.within.first()), (4, 1, Some(&(0..2))));
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
        assert!(outline("[]", &[]).is_none() && outline(r#"{"a":1}}"#, &[]).is_none() && outline("", &[]).is_none());
        let nested = |depth: usize| ["[".repeat(depth), "]".repeat(depth)].concat();
        assert!(is_canonical(&nested(MAX_DEPTH)) && !is_canonical(&nested(MAX_DEPTH + 1)));
        let inside = |depth: usize| format!("{{\"a\":{}}}", nested(depth));
        assert!(outline(&inside(MAX_DEPTH - 1), &[]).is_some() && outline(&inside(MAX_DEPTH), &[]).is_none());
        let objects = |depth: usize| ["{\"a\":".repeat(depth), "1".to_owned(), "}".repeat(depth)].concat();
        for within in [vec![], vec!["a"]] {
            assert!(outline(&objects(MAX_DEPTH), &within).is_some() && outline(&objects(MAX_DEPTH + 1), &within).is_none());
        }
    }
}
