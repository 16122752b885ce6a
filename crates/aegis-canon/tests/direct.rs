//! The short way through the strict door: what it gives is what the long way gives, and what is refused there is refused here.
#![allow(clippy::unwrap_used)]

use aegis_canon::{Limits, MAX_DEPTH, parse_strict_with, read_as};
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

/// With all that a request is made of.
#[derive(Debug, PartialEq, serde::Deserialize, serde::Serialize)]
struct Request {
    #[serde(alias = "b")]
    a: String,
    #[serde(default)]
    flag: bool,
    #[serde(default)]
    inner: Option<Inner>,
    #[serde(default)]
    free: Map<String, Value>,
    #[serde(default)]
    id: Option<String>,
}

#[derive(Debug, PartialEq, serde::Deserialize, serde::Serialize)]
struct Inner {
    n: Option<i64>,
    #[serde(default)]
    items: Vec<Option<bool>>,
}

fn long_way<T: DeserializeOwned>(text: &[u8]) -> Option<T> {
    serde_json::from_value(parse_strict_with(text, Limits::default()).ok()?).ok()
}

fn short_way<T: DeserializeOwned>(text: &[u8]) -> Option<T> {
    read_as(text, Limits::default())
}

/// Whatever the short way gives, the long way gives, to the order of its keys and the last digit.
fn agree<T: DeserializeOwned + serde::Serialize>(text: &str) -> Result<(), TestCaseError> {
    if let Some(short) = short_way::<T>(text.as_bytes()) {
        let long = long_way::<T>(text.as_bytes());
        prop_assert_eq!(Some(json!(short).to_string()), long.map(|long| json!(long).to_string()), "{}", text);
    }
    Ok(())
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(Value::from),
        (-(1i64 << 53) + 1..1i64 << 53).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-c\"\\\\\n\u{1}é😀]{0,6}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec(("a|b|flag|inner|free|id|n|items|[a-cé]{0,2}", inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn request() -> impl Strategy<Value = Value> {
    let key = prop::sample::select(vec!["a", "b", "flag", "inner", "free", "id", "other"]);
    let own = prop_oneof![
        Just(json!("x")),
        Just(json!(true)),
        Just(json!({"n": 1, "items": [null, true]})),
        Just(json!({"n": null, "more": {"n": []}})),
        Just(json!({"x": {"y": [1, -1, 1.5, "é\n"]}})),
        value(),
    ];
    prop::collection::vec((key, own), 0..7)
        .prop_map(|members| Value::Object(members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()))
}

/// The text of a value with something put in, taken out, or doubled.
fn text_of(value: impl Strategy<Value = Value>) -> impl Strategy<Value = String> {
    let pieces = vec![
        "",
        "",
        "",
        " ",
        "\"",
        "\\",
        "0",
        "-0",
        "1e999",
        "9007199254740993",
        ",",
        ":",
        "{",
        "}",
        "[",
        "]",
        "\\ud800",
        "\n",
        "\"a\":\"x\",",
        "\"id\":1,",
        "\"inner\":null,",
        "\"free\":null,",
        "\"\\u0061\":1,",
        "null",
        "NaN",
    ];
    (value, any::<prop::sample::Index>(), 0usize..2, prop::sample::select(pieces)).prop_map(|(value, at, removed, piece)| {
        let characters: Vec<char> = value.to_string().chars().collect();
        let at = at.index(characters.len());
        let (before, after) = (&characters[..at], &characters[(at + removed).min(characters.len())..]);
        before.iter().copied().chain(piece.chars()).chain(after.iter().copied()).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn what_the_short_way_gives_the_long_way_gives(text in text_of(value()), of_request in text_of(request())) {
        agree::<Value>(&text)?;
        agree::<Map<String, Value>>(&text)?;
        agree::<Request>(&text)?;
        agree::<Request>(&of_request)?;
    }

    #[test]
    fn it_takes_what_has_no_escape_in_a_key(value in value()) {
        let text = value.to_string();
        prop_assert_eq!(short_way::<Value>(text.as_bytes()).map(|value| value.to_string()), Some(text));
    }
}

#[test]
fn a_request_takes_the_short_way_whatever_else_is_in_it() {
    let text = br#" {"a": "x\n", "other": [{"a": 1}], "flag": true, "inner": {"n": -3, "items": [null, true], "o": {}},
        "free": {"deep": [1, 2.5, {"k": null}]}, "id": null} "#;
    let read = read_as::<Request>(text, Limits::default()).unwrap();
    assert_eq!(Some(&read), long_way::<Request>(text).as_ref());
    assert_eq!((read.a.as_str(), read.free["deep"][1].as_f64()), ("x\n", Some(2.5)));
}

#[test]
fn what_is_refused_at_the_door_is_refused_wherever_it_stands() {
    let refused = [
        r#"{"a":"x","a":"x"}"#,
        r#"{"a":"x","b":"x"}"#,
        r#"{"a":"x","other":1,"other":1}"#,
        r#"{"a":"x","other":{"o":1,"o":1}}"#,
        r#"{"a":"x","free":{"k":1,"k":1}}"#,
        r#"{"a":"x","free":{"k":[{"k":1,"k":1}]}}"#,
        r#"{"a":"x","other":9007199254740993}"#,
        r#"{"a":"x","free":{"k":"\ud800"}}"#,
        r#"{"a":"x","free":null}"#,
        r#"{"a":"x","flag":null}"#,
        r#"{"a":"x","flag":"true"}"#,
        r#"{"a":"x","inner":{"n":1,"items":[true,]}}"#,
        r#"{"a":"x",}"#,
        r#"{"a":"x"} x"#,
        r#"{,"a":"x"}"#,
        r#"{"a" "x"}"#,
        r#"{"a":1}"#,
        r#"{}"#,
        r#"["x"]"#,
        "null",
        "",
    ];
    for text in refused {
        assert_eq!(short_way::<Request>(text.as_bytes()), None, "{text}");
    }
    let deep = |depth: usize| format!(r#"{{"a":"x","free":{{"k":{}{}}}}}"#, "[".repeat(depth), "]".repeat(depth));
    assert!(short_way::<Request>(deep(MAX_DEPTH - 2).as_bytes()).is_some());
    assert!(short_way::<Request>(deep(MAX_DEPTH - 1).as_bytes()).is_none());
    let limits = Limits { max_bytes: 8, ..Limits::default() };
    assert!(read_as::<Request>(br#"{"a":""}"#, limits).is_some());
    assert!(read_as::<Request>(br#"{"a":" "}"#, limits).is_none());
    assert!(read_as::<Request>(b"{\"a\":\"\xff\"}", Limits::default()).is_none());
}

#[test]
fn many_keys_are_told_apart_and_very_many_take_the_long_way() {
    let object = |count: usize, more: &str| {
        let members: Vec<String> = (0..count).map(|n| format!("\"k{n}\":{n}")).collect();
        format!("{{{}{more}}}", members.join(","))
    };
    for count in [15, 16, 17, 64] {
        let text = object(count, "");
        assert_eq!(short_way::<Value>(text.as_bytes()), long_way(text.as_bytes()), "{count}");
        for again in ["k0", "k7", &format!("k{}", count - 1)] {
            assert_eq!(short_way::<Value>(object(count, &format!(",\"{again}\":1")).as_bytes()), None, "{count}, {again}");
        }
    }
    assert_eq!(short_way::<Value>(object(65, "").as_bytes()), None);
}
