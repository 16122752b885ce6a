//! Arguments as policies see them: a Cedar type for each registered parameter, read from its JSON Schema, and the value of a call
//! under that type. What cannot be held is left out and named; nothing is rounded, cut or guessed.

use std::collections::BTreeMap;

use cedar_policy::RestrictedExpression;
use serde_json::{Map, Value, json};

/// How deep a parameter's type may nest, references included; deeper ones cannot be held. Bounds cyclic `$ref`s too.
const MAX_DEPTH: usize = 8;

/// The registered parameters of an action. `None`: registered, but with a type that policies cannot hold.
pub(crate) type Parameters = BTreeMap<String, Option<ParamType>>;

/// The Cedar type of a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ParamType {
    kind: Kind,
    /// A JSON null means "absent" rather than a wrong type.
    nullable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    /// Also for JSON Schema `number`: whole numbers are held, fractions are not.
    Integer,
    Boolean,
    Set(Box<ParamType>),
    /// Members of unknown type are left out.
    Record(BTreeMap<String, ParamType>),
}

/// The parameters that a JSON Schema of an action's arguments declares.
pub(crate) fn parameters_of(schema: &Value) -> Parameters {
    let mut node = schema;
    for _ in 0..MAX_DEPTH {
        match resolve(node, schema) {
            Some(target) => node = target,
            None => break,
        }
    }
    let properties = node.get("properties").and_then(Value::as_object).into_iter().flatten();
    properties.map(|(name, property)| (name.clone(), ParamType::read(property, schema, MAX_DEPTH))).collect()
}

/// The target of a local `$ref`.
fn resolve<'a>(node: &'a Value, root: &'a Value) -> Option<&'a Value> {
    root.pointer(node.get("$ref")?.as_str()?.strip_prefix('#')?)
}

impl ParamType {
    pub(crate) fn text() -> Self {
        Self { kind: Kind::Text, nullable: false }
    }

    fn read(node: &Value, root: &Value, depth: usize) -> Option<Self> {
        let depth = depth.checked_sub(1)?;
        if node.get("$ref").is_some() {
            return Self::read(resolve(node, root)?, root, depth);
        }
        for composed in ["anyOf", "oneOf"] {
            if let Some(Value::Array(options)) = node.get(composed) {
                return Self::one_of(options, root, depth);
            }
        }
        if let Some(Value::Array(parts)) = node.get("allOf") {
            let [only] = parts.as_slice() else { return None };
            return Self::read(only, root, depth);
        }
        let mut nullable = node.get("nullable") == Some(&Value::Bool(true));
        let mut words: Vec<&str> = Vec::new();
        match node.get("type") {
            Some(Value::String(word)) => words.push(word),
            Some(Value::Array(several)) => words.extend(several.iter().filter_map(Value::as_str)),
            _ => words = implied_types(node)?,
        }
        nullable |= words.contains(&"null");
        let mut kind = None;
        for word in words.into_iter().filter(|word| *word != "null") {
            let next = Kind::read(word, node, root, depth)?;
            if kind.get_or_insert_with(|| next.clone()) != &next {
                return None;
            }
        }
        Some(Self { kind: kind?, nullable })
    }

    fn one_of(options: &[Value], root: &Value, depth: usize) -> Option<Self> {
        let is_null = |option: &Value| option.get("type").and_then(Value::as_str) == Some("null");
        let mut found: Option<Self> = None;
        for option in options.iter().filter(|option| !is_null(option)) {
            let next = Self::read(option, root, depth)?;
            match &mut found {
                None => found = Some(next),
                Some(first) if first.kind == next.kind => first.nullable |= next.nullable,
                Some(_) => return None,
            }
        }
        let mut found = found?;
        found.nullable |= options.iter().any(is_null);
        Some(found)
    }

    /// The type in the JSON form of a Cedar schema.
    fn to_cedar(&self) -> Value {
        match &self.kind {
            Kind::Text => json!({"type": "String"}),
            Kind::Integer => json!({"type": "Long"}),
            Kind::Boolean => json!({"type": "Boolean"}),
            Kind::Set(element) => json!({"type": "Set", "element": element.to_cedar()}),
            Kind::Record(members) => record_type(members.iter()),
        }
    }

    /// The type below this one at a path of member names.
    fn member(&self, path: &[String]) -> Option<&Self> {
        let Some((first, rest)) = path.split_first() else { return Some(self) };
        match &self.kind {
            Kind::Record(members) => members.get(first)?.member(rest),
            _ => None,
        }
    }
}

impl Kind {
    fn read(word: &str, node: &Value, root: &Value, depth: usize) -> Option<Self> {
        match word {
            "string" => Some(Self::Text),
            "integer" | "number" => Some(Self::Integer),
            "boolean" => Some(Self::Boolean),
            "array" => Some(Self::Set(Box::new(ParamType::read(node.get("items")?, root, depth)?))),
            "object" => {
                let properties = node.get("properties").and_then(Value::as_object).into_iter().flatten();
                let held =
                    properties.filter_map(|(name, property)| Some((name.clone(), ParamType::read(property, root, depth)?)));
                Some(Self::Record(held.collect()))
            }
            _ => None,
        }
    }
}

/// What `enum`, `const`, `properties` or `items` say about a schema without `type`.
fn implied_types(node: &Value) -> Option<Vec<&'static str>> {
    if node.get("properties").is_some() {
        return Some(vec!["object"]);
    }
    if node.get("items").is_some() {
        return Some(vec!["array"]);
    }
    let values = match (node.get("enum"), node.get("const")) {
        (Some(Value::Array(values)), _) => values.as_slice(),
        (_, Some(value)) => std::slice::from_ref(value),
        _ => return None,
    };
    let mut words: Vec<&'static str> = Vec::new();
    for value in values {
        let word = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) | Value::Object(_) => return None,
        };
        if !words.contains(&word) {
            words.push(word);
        }
    }
    Some(words)
}

fn record_type<'a>(members: impl Iterator<Item = (&'a String, &'a ParamType)>) -> Value {
    let mut attributes = Map::new();
    for (name, member) in members {
        let mut attribute = member.to_cedar();
        // Whatever the JSON Schema requires: a caller can leave anything out.
        attribute["required"] = Value::Bool(false);
        attributes.insert(name.clone(), attribute);
    }
    json!({"type": "Record", "attributes": attributes})
}

/// The Cedar type of `context.parameters`.
pub(crate) fn parameters_type(parameters: &Parameters) -> Value {
    record_type(parameters.iter().filter_map(|(name, held)| Some((name, held.as_ref()?))))
}

/// What is known of a path below `context.parameters`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Known {
    No,
    /// Registered with a type that policies cannot hold.
    NotHeld,
    Held,
}

pub(crate) fn lookup(parameters: &Parameters, path: &[String]) -> Known {
    let Some((name, below)) = path.split_first() else { return Known::No };
    match parameters.get(name) {
        None => Known::No,
        Some(None) => Known::NotHeld,
        Some(Some(held)) => {
            if held.member(below).is_some() {
                Known::Held
            } else {
                Known::No
            }
        }
    }
}

/// The arguments of a call as policies see them.
#[derive(Debug, Default)]
pub(crate) struct Represented<'a> {
    /// `context.parameters`
    pub(crate) fields: Vec<(String, RestrictedExpression)>,
    /// `context.unrepresentable`: names of what was left out, `parameter` or `parameter.member`.
    pub(crate) unrepresentable: Vec<String>,
    /// The parameters that are left out in whole or in part.
    pub(crate) incomplete: Vec<&'a str>,
}

/// Holds each argument under its registered type; an argument that is not registered cannot be held.
pub(crate) fn represent<'a>(arguments: &'a Map<String, Value>, parameters: &Parameters) -> Represented<'a> {
    let mut represented = Represented::default();
    for (name, value) in arguments {
        let left_out_before = represented.unrepresentable.len();
        let declared = parameters.get(name).and_then(Option::as_ref);
        if value.is_null() && declared.is_some_and(|declared| declared.nullable) {
            continue;
        }
        match declared.and_then(|declared| hold(declared, value, name, &mut represented.unrepresentable)) {
            Some(held) => represented.fields.push((name.clone(), held)),
            None => represented.unrepresentable.push(name.clone()),
        }
        if represented.unrepresentable.len() > left_out_before {
            represented.incomplete.push(name);
        }
    }
    represented
}

/// A value under its type, or none if it cannot be held at all. Members that had to be left out are added to `left_out`.
fn hold(declared: &ParamType, value: &Value, path: &str, left_out: &mut Vec<String>) -> Option<RestrictedExpression> {
    match (&declared.kind, value) {
        (Kind::Text, Value::String(text)) => Some(RestrictedExpression::new_string(text.clone())),
        (Kind::Boolean, Value::Bool(truth)) => Some(RestrictedExpression::new_bool(*truth)),
        (Kind::Integer, Value::Number(number)) => whole_number(number).map(RestrictedExpression::new_long),
        (Kind::Set(element), Value::Array(items)) => {
            // All or nothing: a set that lacks an element would answer `contains` and `containsAll` wrongly.
            let mut incomplete = Vec::new();
            let held: Option<Vec<_>> = items.iter().map(|item| hold(element, item, path, &mut incomplete)).collect();
            held.filter(|_| incomplete.is_empty()).map(RestrictedExpression::new_set)
        }
        (Kind::Record(members), Value::Object(object)) => {
            let mut fields = Vec::with_capacity(object.len());
            for (name, member) in object {
                let declared = members.get(name);
                if member.is_null() && declared.is_some_and(|declared| declared.nullable) {
                    continue;
                }
                let member_path = format!("{path}.{name}");
                match declared.and_then(|declared| hold(declared, member, &member_path, left_out)) {
                    Some(held) => fields.push((name.clone(), held)),
                    None => left_out.push(member_path),
                }
            }
            RestrictedExpression::new_record(fields).ok()
        }
        _ => None,
    }
}

/// The number as Cedar's Long. `1.0` is 1: canonical JSON writes both alike, so both must be decided alike.
fn whole_number(number: &serde_json::Number) -> Option<i64> {
    /// 2^63, exact as f64; the first value above what i64 holds.
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    if let Some(whole) = number.as_i64() {
        return Some(whole);
    }
    let float = number.as_f64().filter(|_| number.is_f64())?;
    let fits = float.fract() == 0.0 && (-LIMIT..LIMIT).contains(&float);
    // Exact: the value is whole and in range.
    fits.then_some(float as i64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names(schema: &Value, arguments: Value) -> (Vec<String>, Vec<String>) {
        let arguments = arguments.as_object().unwrap().clone();
        let represented = represent(&arguments, &parameters_of(schema));
        (represented.fields.iter().map(|(name, _)| name.clone()).collect(), represented.unrepresentable)
    }

    #[test]
    fn types_are_read_from_the_schema_forms_tools_use() {
        let schema = json!({
            "type": "object",
            "$defs": {"Name": {"type": "string"}, "Loop": {"$ref": "#/$defs/Loop"}},
            "properties": {
                "s": {"type": "string", "maxLength": 3}, "n": {"type": "number"}, "i": {"type": ["integer", "null"]},
                "b": {"type": "boolean"}, "e": {"enum": ["x", "y"]}, "c": {"const": 3}, "r": {"$ref": "#/$defs/Name"},
                "o": {"anyOf": [{"type": "string"}, {"type": "null"}]}, "l": {"type": "array", "items": {"type": "string"}},
                "any": {}, "mixed": {"anyOf": [{"type": "string"}, {"type": "integer"}]}, "loop": {"$ref": "#/$defs/Loop"},
                "untyped": {"type": "array"}, "d": {"type": "object", "properties": {"x": {"type": "string"}, "y": {}}}
            }
        });
        let parameters = parameters_of(&schema);
        let held: Vec<&str> = parameters.iter().filter(|(_, held)| held.is_some()).map(|(name, _)| name.as_str()).collect();
        assert_eq!(held, ["b", "c", "d", "e", "i", "l", "n", "o", "r", "s"]);
        assert_eq!(parameters.len(), 14);
        let path = |path: &[&str]| path.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(lookup(&parameters, &path(&["d", "x"])), Known::Held);
        assert_eq!(lookup(&parameters, &path(&["d", "y"])), Known::No);
        assert_eq!(lookup(&parameters, &path(&["any"])), Known::NotHeld);
        assert_eq!(lookup(&parameters, &path(&["nothing"])), Known::No);
    }

    #[test]
    fn what_cannot_be_held_is_absent_and_named() {
        let schema = json!({"properties": {
            "n": {"type": "number"}, "s": {"type": "string"}, "maybe": {"type": ["string", "null"]},
            "l": {"type": "array", "items": {"type": "integer"}},
            "d": {"type": "object", "properties": {"x": {"type": "integer"}, "z": {"type": "string"}}}
        }});
        let none: Vec<String> = Vec::new();
        assert_eq!(names(&schema, json!({"n": 1.0, "maybe": null})), (vec!["n".into()], none.clone()));
        assert_eq!(names(&schema, json!({"n": 1.5})).1, ["n"]);
        assert_eq!(names(&schema, json!({"n": 1e30})).1, ["n"]);
        assert_eq!(names(&schema, json!({"n": u64::MAX})).1, ["n"]);
        assert_eq!(names(&schema, json!({"n": i64::MIN})).1, none);
        assert_eq!(names(&schema, json!({"s": null})).1, ["s"]);
        assert_eq!(names(&schema, json!({"s": 5, "extra": "x"})).1, ["s", "extra"]);
        assert_eq!(names(&schema, json!({"l": [1, 2.5]})), (vec![], vec!["l".into()]));
        assert_eq!(
            names(&schema, json!({"d": {"x": 0.5, "z": "ok", "w": 1}})),
            (vec!["d".into()], vec!["d.x".into(), "d.w".into()])
        );
    }

    #[test]
    fn numbers_that_are_canonically_equal_are_held_alike() {
        let number = |text: &str| whole_number(&serde_json::from_str(text).unwrap());
        assert_eq!(number("1000"), number("1e3"));
        assert_eq!(number("-0.0"), Some(0));
        assert_eq!(number("-9223372036854775808"), Some(i64::MIN));
        assert_eq!(number("9223372036854775808"), None);
        assert_eq!(number("0.1"), None);
    }
}
