//! What a policy reads, the parameters it mentions, and the constants it compares labels with, taken from its JSON form (EST).
//! Errs on the safe side: a use it cannot follow counts as reading every parameter.

use std::collections::BTreeSet;

use serde_json::Value;

/// What a policy reads, `context.parameters` in particular.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mentions {
    /// Paths below `context.parameters`, each at least one name long, the parameter first.
    pub(crate) paths: BTreeSet<Vec<String>>,
    /// `context` or `context.parameters` is used as a whole, so anything in it may matter.
    pub(crate) whole: bool,
    /// Attribute paths such as `["context", "trust_level"]` with the string constants they are compared with.
    pub(crate) compared: BTreeSet<(Vec<String>, String)>,
    /// Every attribute path that is read or asked for, and every variable that is used as a whole (a path of one name).
    pub(crate) reads: BTreeSet<Vec<String>>,
}

impl Mentions {
    /// Walks a policy's JSON form. Iterative, because a policy may nest deeper than a thread's stack.
    pub(crate) fn of(policy: &Value) -> Self {
        let mut mentions = Self::default();
        let mut pending: Vec<&Value> = Vec::new();
        for variable in ["principal", "resource"] {
            // A scope names an entity, its type, or nothing; the type is the same for every call.
            let constraint = policy.get(variable).and_then(|scope| scope.get("op")).and_then(Value::as_str);
            if !matches!(constraint, Some("All")) {
                mentions.reads.insert(vec![variable.to_owned()]);
            }
        }
        for condition in policy.get("conditions").and_then(Value::as_array).into_iter().flatten() {
            pending.extend(condition.get("body"));
        }
        while let Some(node) = pending.pop() {
            mentions.visit(node, &mut pending);
        }
        mentions
    }

    fn visit<'a>(&mut self, node: &'a Value, pending: &mut Vec<&'a Value>) {
        let object = match node {
            Value::Object(object) => object,
            Value::Array(items) => {
                pending.extend(items);
                return;
            }
            _ => return,
        };
        // An expression is an object with one key, its operator.
        for (operator, operand) in object {
            match operator.as_str() {
                "Value" => {}
                "Record" => pending.extend(operand.as_object().into_iter().flat_map(|fields| fields.values())),
                "Var" => {
                    self.whole |= operand == "context";
                    // Not a name: nothing that can be followed.
                    self.reads.insert(operand.as_str().map(|name| vec![name.to_owned()]).unwrap_or_default());
                }
                "." | "has" => match attribute_path(operator, operand) {
                    Some(path) => self.note_path(operator == "has", path),
                    None => pending.extend(operand.get("left")),
                },
                _ => {
                    self.note_comparison(operator, operand);
                    match operand {
                        Value::Object(operands) => pending.extend(operands.values()),
                        other => pending.push(other),
                    }
                }
            }
        }
    }

    fn note_path(&mut self, is_has: bool, path: Vec<String>) {
        self.reads.insert(path.clone());
        if path[0] != "context" || path.get(1).is_none_or(|name| name != "parameters") {
            return;
        }
        match path.get(2..) {
            Some(below) if !below.is_empty() => {
                self.paths.insert(below.to_vec());
            }
            // `context has parameters` reads nothing; `context.parameters` as a value reads all of it.
            _ => self.whole |= !is_has,
        }
    }

    fn note_comparison(&mut self, operator: &str, operand: &Value) {
        let (Some(left), Some(right)) = (operand.get("left"), operand.get("right")) else { return };
        match operator {
            "==" | "!=" => {
                self.note_constants(left, right);
                self.note_constants(right, left);
            }
            // `["a", "b"].contains(context.x)`
            "contains" => self.note_constants(right, left),
            _ => {}
        }
    }

    fn note_constants(&mut self, attribute: &Value, constant: &Value) {
        let Some(path) = attribute.get(".").and_then(|operand| attribute_path(".", operand)) else { return };
        let mut constants = Vec::new();
        match (constant.get("Value"), constant.get("Set")) {
            (Some(value), _) => constants.extend(value.as_str()),
            (None, Some(Value::Array(items))) => {
                constants.extend(items.iter().filter_map(|item| item.get("Value").and_then(Value::as_str)))
            }
            _ => {}
        }
        self.compared.extend(constants.into_iter().map(|word| (path.clone(), word.to_owned())));
    }
}

/// `context.a.b` as `["context", "a", "b"]`; none if the chain does not start at a variable.
fn attribute_path(operator: &str, operand: &Value) -> Option<Vec<String>> {
    let mut reversed: Vec<String> = Vec::new();
    let mut operator = operator;
    let mut operand = operand;
    loop {
        match operand.get("attr")? {
            Value::String(name) => reversed.push(name.clone()),
            // `has a.b.c`
            Value::Array(names) if operator == "has" => {
                for name in names.iter().rev() {
                    reversed.push(name.as_str()?.to_owned());
                }
            }
            _ => return None,
        }
        let left = operand.get("left")?.as_object()?;
        if let Some(variable) = left.get("Var") {
            reversed.push(variable.as_str()?.to_owned());
            reversed.reverse();
            return Some(reversed);
        }
        operand = left.get(".")?;
        operator = ".";
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(condition: &str) -> Mentions {
        let text = format!("permit (principal, action, resource) when {{ {condition} }};");
        let policy = cedar_policy::Policy::parse(None, text).unwrap();
        Mentions::of(&policy.to_json().unwrap())
    }

    fn paths(condition: &str) -> Vec<String> {
        let mentions = of(condition);
        assert!(!mentions.whole, "{condition}");
        mentions.paths.iter().map(|path| path.join(".")).collect()
    }

    #[test]
    fn every_way_to_name_a_parameter_is_seen() {
        assert_eq!(paths("context.parameters.a == 1"), ["a"]);
        assert_eq!(paths("context.parameters has a"), ["a"]);
        assert_eq!(paths("context.parameters has a.b"), ["a.b"]);
        assert_eq!(paths("context has parameters.a"), ["a"]);
        assert_eq!(paths("context[\"parameters\"][\"a b\"] like \"x*\""), ["a b"]);
        assert_eq!(paths("if context.parameters.a then [1].contains(context.parameters.b.c) else true"), ["a", "b.c"]);
        assert_eq!(paths("{x: context.parameters.a}.x == 1"), ["a"]);
        assert_eq!(paths("decimal(\"1.0\").lessThan(decimal(\"2.0\")) || context.parameters.a"), ["a"]);
        assert_eq!(paths("(if context.parameters.a then resource else resource).owner == \"x\""), ["a"]);
        assert!(paths("context.trust_level == \"context.parameters.a\"").is_empty());
        assert!(paths("context has parameters && {\"Var\": \"context\"}.Var == \"context\"").is_empty());
    }

    #[test]
    fn what_cannot_be_followed_reads_everything() {
        for condition in [
            "context.parameters == {a: 1}",
            "(if true then context else context).parameters.a == 1",
            "{c: context}.c.parameters.a == 1",
            "[context.parameters].isEmpty()",
        ] {
            assert!(of(condition).whole, "{condition}");
        }
    }

    #[test]
    fn everything_that_is_read_is_seen() {
        let reads = |condition: &str| of(condition).reads.iter().map(|path| path.join(".")).collect::<Vec<_>>().join(" ");
        assert_eq!(reads("context.trust_level == \"x\" && resource has owner"), "context.trust_level resource.owner");
        assert_eq!(reads("resource == Resource::\"a\" || principal in [Agent::\"b\"]"), "principal resource");
        assert_eq!(
            reads("(if context.mutates_state then resource else resource).owner == \"x\""),
            "context.mutates_state resource"
        );
        assert_eq!(reads("action in Action::\"read\" || {a: context.parameters.p}.a"), "action context.parameters.p");
        assert_eq!(reads("{c: context}.c.risk_level == \"low\""), "context");
        let scoped = |text: &str| Mentions::of(&cedar_policy::Policy::parse(None, text).unwrap().to_json().unwrap()).reads;
        assert!(scoped("permit (principal, action, resource);").is_empty());
        assert_eq!(scoped("permit (principal == Agent::\"a\", action, resource is Resource);").len(), 2);
    }

    #[test]
    fn constants_that_labels_are_compared_with_are_seen() {
        let mentions =
            of("context.trust_level == \"a\" || \"b\" != context.trust_level || [\"c\", \"d\"].contains(context.trust_level)");
        let words: Vec<&str> = mentions.compared.iter().map(|(_, word)| word.as_str()).collect();
        assert_eq!(words, ["a", "b", "c", "d"]);
        assert!(mentions.compared.iter().all(|(path, _)| path.join(".") == "context.trust_level"));
    }
}
