//! The laws of the canonical form, L-CANON among them, over generated values, spellings and damage.
#![allow(clippy::unwrap_used, clippy::panic)]

use aegis_canon::{
    MAX_SAFE_INTEGER, action_hash, canonicalize_bytes, canonicalize_value, canonicalize_value_into, hash_value, parse_strict,
};
use proptest::prelude::*;
use serde_json::{Number, Value, json};

// --- values ---

/// Strings around every border: ASCII, escapes, the ends of the UTF-8 lengths, private use, astral.
fn text() -> impl Strategy<Value = String> {
    let character = prop_oneof![
        4 => proptest::char::range('a', 'f'),
        2 => proptest::char::range('\u{0}', '\u{7f}'),
        1 => proptest::sample::select(vec!['"', '\\', '/', '\u{80}', '\u{7ff}', '\u{800}', '\u{d7ff}', '\u{e000}', '\u{ffff}']),
        1 => proptest::char::range('\u{e000}', '\u{ffff}'),
        1 => proptest::char::range('\u{10000}', '\u{10ffff}'),
        1 => any::<char>(),
    ];
    proptest::collection::vec(character, 0..8).prop_map(String::from_iter)
}

fn finite_double() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<u64>().prop_map(f64::from_bits),
        any::<i32>().prop_map(|hundredths| f64::from(hundredths) / 100.0),
        (0u64..1 << 54).prop_map(|integer| integer as f64),
        // Eighths near 2^47, many of which lie exactly between their two shortest spellings.
        (1i64 << 50..1 << 51).prop_map(|eighths| eighths as f64 / 8.0),
        (-330i32..310).prop_map(|exponent| 10f64.powi(exponent)),
    ]
    .prop_filter("finite", |double| double.is_finite())
}

fn scalar() -> impl Strategy<Value = Value> {
    let safe = MAX_SAFE_INTEGER as i64;
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        (-safe..=safe).prop_map(Value::from),
        (-1000i64..1000).prop_map(Value::from),
        finite_double().prop_map(|double| Value::Number(Number::from_f64(double).unwrap())),
        text().prop_map(Value::String),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    scalar().prop_recursive(5, 64, 8, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..8).prop_map(Value::Array),
            proptest::collection::vec((text(), inner), 0..8).prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

// --- spellings: one of the many JSON texts of a value, chosen by a stream of bytes ---

struct Speller<'choices> {
    choices: std::iter::Cycle<std::slice::Iter<'choices, u8>>,
    out: String,
}

fn spelled(value: &Value, choices: &[u8]) -> String {
    let mut speller = Speller { choices: choices.iter().cycle(), out: String::new() };
    speller.value(value);
    speller.out
}

impl Speller<'_> {
    fn choose(&mut self, among: usize) -> usize {
        usize::from(*self.choices.next().unwrap()) % among
    }

    fn gap(&mut self) {
        let gaps = ["", "", "", " ", "\n", "\t ", "\r\n"];
        let choice = self.choose(gaps.len());
        self.out.push_str(gaps[choice]);
    }

    fn value(&mut self, value: &Value) {
        self.gap();
        match value {
            Value::Null | Value::Bool(_) => self.out.push_str(&value.to_string()),
            Value::Number(number) if number.is_f64() => self.double(number.as_f64().unwrap()),
            Value::Number(number) => self.integer(number.as_i64().unwrap()),
            Value::String(text) => self.string(text),
            Value::Array(items) => {
                self.out.push('[');
                for (index, item) in items.iter().enumerate() {
                    self.comma(index);
                    self.value(item);
                }
                self.gap();
                self.out.push(']');
            }
            Value::Object(members) => {
                let mut members: Vec<(&String, &Value)> = members.iter().collect();
                for unplaced in (1..members.len()).rev() {
                    let chosen = self.choose(unplaced + 1);
                    members.swap(unplaced, chosen);
                }
                self.out.push('{');
                for (index, (key, member)) in members.into_iter().enumerate() {
                    self.comma(index);
                    self.gap();
                    self.string(key);
                    self.gap();
                    self.out.push(':');
                    self.value(member);
                }
                self.gap();
                self.out.push('}');
            }
        }
        self.gap();
    }

    fn comma(&mut self, index: usize) {
        if index > 0 {
            self.out.push(',');
        }
    }

    fn double(&mut self, double: f64) {
        let literal = match self.choose(3) {
            0 => format!("{double:e}"),
            1 => format!("{double:.20E}"),
            _ => format!("{double:.1100}"),
        };
        self.out.push_str(&literal);
    }

    fn integer(&mut self, integer: i64) {
        let suffix = ["", "", ".0", "e0", ".000E+00"][self.choose(5)];
        self.out.push_str(&format!("{integer}{suffix}"));
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            let must_escape = character < ' ' || character == '"' || character == '\\';
            match self.choose(4) {
                0 => self.unicode_escapes(character),
                1 if character == '/' => self.out.push_str("\\/"),
                1 if character == '\n' => self.out.push_str("\\n"),
                _ if must_escape => self.unicode_escapes(character),
                _ => self.out.push(character),
            }
        }
        self.out.push('"');
    }

    fn unicode_escapes(&mut self, character: char) {
        let upper = self.choose(2) == 0;
        for unit in character.encode_utf16(&mut [0; 2]) {
            self.out.push_str(&if upper { format!("\\u{unit:04X}") } else { format!("\\u{unit:04x}") });
        }
    }
}

// --- an oracle: the canonical form by the letter of RFC 8785, sharing no code with the crate ---

fn oracle(value: &Value) -> String {
    match value {
        Value::Null | Value::Bool(_) => value.to_string(),
        Value::Number(number) => ecmascript(number.as_f64().unwrap()),
        // serde_json escapes exactly what RFC 8785 names, in the same forms.
        Value::String(text) => serde_json::to_string(text).unwrap(),
        Value::Array(items) => format!("[{}]", items.iter().map(oracle).collect::<Vec<_>>().join(",")),
        Value::Object(members) => {
            let mut sorted: Vec<(&String, &Value)> = members.iter().collect();
            sorted.sort_by_key(|(key, _)| key.encode_utf16().collect::<Vec<u16>>());
            let members: Vec<String> = sorted
                .into_iter()
                .map(|(key, member)| format!("{}:{}", serde_json::to_string(key).unwrap(), oracle(member)))
                .collect();
            format!("{{{}}}", members.join(","))
        }
    }
}

/// ECMA-262 Number::toString, its digits from the Rust library.
fn ecmascript(double: f64) -> String {
    if double == 0.0 {
        return "0".to_owned();
    }
    let shortest = format!("{:e}", double.abs());
    // Where two spellings of this length are equally near, Rust's shortest rounds up, but its exact form takes the even
    // digit, as ECMAScript does. Beside a power of two the nearest may not be the one that reads back; then it is not taken.
    let decimals = shortest.split_once('e').unwrap().0.len().saturating_sub("0.".len());
    let nearest = format!("{:.decimals$e}", double.abs());
    let chosen = if nearest.parse() == Ok(double.abs()) { nearest } else { shortest };
    let (mantissa, exponent) = chosen.split_once('e').unwrap();
    let digits = mantissa.replace('.', "");
    let count = digits.len() as i32;
    // As in ECMA-262: the value is 0.digits × 10^point.
    let point = exponent.parse::<i32>().unwrap() + 1;
    let zeros = |count: i32| "0".repeat(usize::try_from(count).unwrap());
    let magnitude = if count <= point && point <= 21 {
        format!("{digits}{}", zeros(point - count))
    } else if 0 < point && point <= 21 {
        let (whole, fraction) = digits.split_at(usize::try_from(point).unwrap());
        format!("{whole}.{fraction}")
    } else if -6 < point && point <= 0 {
        format!("0.{}{digits}", zeros(-point))
    } else {
        let sign = if point > 0 { "+" } else { "-" };
        let (first, rest) = digits.split_at(1);
        let fraction = if rest.is_empty() { String::new() } else { format!(".{rest}") };
        format!("{first}{fraction}e{sign}{}", (point - 1).abs())
    };
    if double < 0.0 { format!("-{magnitude}") } else { magnitude }
}

/// Whether a value holds a double that is written in plain digits and yet is no safe integer.
fn holds_unsafe_plain_double(value: &Value) -> bool {
    match value {
        Value::Number(number) => {
            number.is_f64()
                && number.as_f64().is_some_and(|double| (MAX_SAFE_INTEGER as f64) < double.abs() && double.abs() < 1e21)
        }
        Value::Array(items) => items.iter().any(holds_unsafe_plain_double),
        Value::Object(members) => members.values().any(holds_unsafe_plain_double),
        _ => false,
    }
}

/// What the strict door refuses beyond what any JSON parser must.
const STRICTER: [&str; 4] = ["duplicate_key", "integer_out_of_range", "depth_exceeded", "size_exceeded"];

/// The door takes nothing that `serde_json` refuses, and refuses nothing else without one of its own reasons.
fn agrees_with_serde_json(input: &[u8]) {
    let other: Result<serde::de::IgnoredAny, _> = serde_json::from_slice(input);
    // IgnoredAny skips over strings and numbers unread; a Value reads them.
    let other_value: Result<Value, _> = serde_json::from_slice(input);
    match parse_strict(input) {
        Ok(_) => assert!(other.is_ok() && other_value.is_ok(), "only the strict door takes {}", input.escape_ascii()),
        Err(rejection) => {
            assert!(rejection.offset().unwrap() <= input.len());
            let refused_by_both = other_value.is_err() || STRICTER.contains(&rejection.code());
            assert!(refused_by_both, "{} is refused: {rejection}", input.escape_ascii());
        }
    }
    assert_eq!(canonicalize_bytes(input).is_ok(), parse_strict(input).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn the_value_path_writes_what_the_rfc_says(value in value()) {
        let canonical = canonicalize_value(&value).unwrap();
        prop_assert_eq!(String::from_utf8(canonical).unwrap(), oracle(&value));
    }

    /// L-CANON: the byte path and the value path give the same bytes, however the value was spelled.
    #[test]
    fn every_spelling_of_a_value_has_one_form_on_both_paths(value in value(), choices in proptest::collection::vec(any::<u8>(), 1..64)) {
        let text = spelled(&value, &choices);
        let from_value = canonicalize_value(&value).unwrap();
        prop_assert_eq!(&canonicalize_bytes(text.as_bytes()).unwrap(), &from_value, "{}", text);
        let read = parse_strict(text.as_bytes()).unwrap();
        prop_assert_eq!(&canonicalize_value(&read).unwrap(), &from_value, "{}", text);
    }

    #[test]
    fn a_canonical_form_is_its_own_canonical_form(value in value()) {
        let canonical = canonicalize_value(&value).unwrap();
        match canonicalize_bytes(&canonical) {
            Ok(again) => {
                prop_assert_eq!(&again, &canonical);
                prop_assert!(!holds_unsafe_plain_double(&value));
            }
            Err(rejection) => {
                prop_assert_eq!(rejection.code(), "integer_out_of_range");
                prop_assert!(holds_unsafe_plain_double(&value));
            }
        }
    }

    #[test]
    fn a_repeated_key_is_refused_wherever_it_stands(
        value in value(), key in text(), choices in proptest::collection::vec(any::<u8>(), 1..64), levels in 0usize..100,
    ) {
        let mut speller = Speller { choices: choices.iter().cycle(), out: "[".repeat(levels) };
        speller.out.push('{');
        speller.string(&key);
        speller.out.push(':');
        speller.value(&value);
        speller.out.push_str(",\"other than any generated key\":0,");
        let repeated_at = speller.out.len();
        speller.string(&key);
        speller.out.push_str(":0}");
        speller.out.push_str(&"]".repeat(levels));
        let rejection = parse_strict(speller.out.as_bytes()).unwrap_err();
        prop_assert_eq!((rejection.code(), rejection.offset()), ("duplicate_key", Some(repeated_at)));
    }

    #[test]
    fn a_number_literal_is_the_nearest_double(
        sign in "-?", whole in "0|[1-9][0-9]{0,25}", fraction in "[0-9]{1,30}", exponent in -340i32..320, zeros in 0usize..6000,
    ) {
        let literal = format!("{sign}{whole}.{fraction}e{exponent}");
        let nearest: f64 = literal.parse().unwrap();
        // The same number with the point moved a long way, and with digits that do not count behind it.
        let moved = format!("{sign}0.{}{whole}{fraction}E{}", "0".repeat(zeros), exponent + whole.len() as i32 + zeros as i32);
        let padded = format!("{sign}{whole}.{fraction}{}e{exponent}", "0".repeat(zeros));
        for spelling in [literal, moved, padded] {
            match parse_strict(spelling.as_bytes()) {
                Ok(read) => prop_assert_eq!(read.as_f64().unwrap().to_bits(), nearest.to_bits()),
                Err(rejection) => {
                    prop_assert_eq!(rejection.code(), "number_out_of_range");
                    prop_assert!(nearest.is_infinite());
                }
            }
        }
    }

    #[test]
    fn an_integer_literal_is_taken_exactly_if_it_is_safe(integer in any::<i128>(), shift in 0u32..128) {
        let integer = integer >> shift;
        let literal = integer.to_string();
        if integer.unsigned_abs() <= u128::from(MAX_SAFE_INTEGER) {
            prop_assert_eq!(canonicalize_bytes(literal.as_bytes()).unwrap(), literal.into_bytes());
        } else {
            prop_assert_eq!(canonicalize_bytes(literal.as_bytes()).unwrap_err().code(), "integer_out_of_range");
        }
    }

    #[test]
    fn a_double_survives_its_canonical_form(double in finite_double()) {
        let canonical = String::from_utf8(canonicalize_value(&json!(double)).unwrap()).unwrap();
        let read: f64 = canonical.parse().unwrap();
        prop_assert_eq!(read, double);
        prop_assert_eq!(canonical, ecmascript(double));
    }

    #[test]
    fn action_hash_is_the_hash_of_its_five_keys(
        tool in text(), action in text(), resource in proptest::option::of(text()), mutates_state in any::<bool>(), parameters in value(),
    ) {
        let whole = json!({
            "tool": tool, "action": action, "resource": resource, "mutates_state": mutates_state, "parameters": parameters,
        });
        let from_parts = action_hash(&tool, &action, resource.as_deref(), mutates_state, &parameters).unwrap();
        prop_assert_eq!(from_parts, hash_value(&whole).unwrap());
    }

    #[test]
    fn appending_keeps_what_was_there(before in proptest::collection::vec(any::<u8>(), 0..32), value in value()) {
        let mut buffer = before.clone();
        canonicalize_value_into(&value, &mut buffer).unwrap();
        prop_assert_eq!(&buffer[..before.len()], &before[..]);
        prop_assert_eq!(&buffer[before.len()..], &canonicalize_value(&value).unwrap()[..]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8192))]

    #[test]
    fn arbitrary_bytes_never_panic(input in proptest::collection::vec(any::<u8>(), 0..64)) {
        agrees_with_serde_json(&input);
    }

    #[test]
    fn arbitrary_json_punctuation_never_panics(input in r#"[\[\]{}:,"\\ \n0-9eE.+\-tfnulrasNIDdcu]{0,40}"#) {
        agrees_with_serde_json(input.as_bytes());
    }

    #[test]
    fn a_damaged_text_never_panics(
        value in value(), choices in proptest::collection::vec(any::<u8>(), 1..32),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..4, any::<u8>()), 1..4),
    ) {
        let mut input = spelled(&value, &choices).into_bytes();
        for (place, kind, byte) in damage {
            let place = place.index(input.len() + 1);
            match kind {
                0 => input.insert(place, byte),
                1 => input.truncate(place),
                _ if place == input.len() => input.push(byte),
                2 => input[place] = byte,
                _ => drop(input.remove(place)),
            }
        }
        agrees_with_serde_json(&input);
    }
}
