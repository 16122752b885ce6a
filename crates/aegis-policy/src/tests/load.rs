//! What does not load, and how the refusal helps.

use aegis_model::{DataAccess, DefaultDecision, Destination, RiskLevel, ToolRecord};

use super::{bank, load, source};
use crate::{PolicyBundle, PolicyProblem, Position, default_pack, github_pack};

#[track_caller]
fn problem(text: &str) -> PolicyProblem {
    let error = load(text).expect_err("must not load");
    assert_eq!(error.problems().len(), 1, "{error}");
    let problem = error.problems()[0].clone();
    assert_eq!(problem.source, "test.cedar", "{error}");
    problem
}

/// `text` has one problem, at `place` (a part of the text; its first occurrence).
#[track_caller]
fn refused(text: &str, place: &str, message: &str, hint: &str) {
    let problem = problem(text);
    let before = &text[..text.find(place).expect("place is part of the text")];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let position = Position {
        line: before.lines().count().max(1) + usize::from(before.ends_with('\n')),
        column: before[line_start..].chars().count() + 1,
    };
    assert_eq!(problem.position, Some(position), "{problem}");
    assert!(problem.message.contains(message), "{problem}");
    assert!(problem.hint.as_deref().unwrap_or_default().contains(hint), "{problem}");
}

#[test]
fn a_parameter_that_no_action_in_scope_has_is_refused_with_its_place() {
    let text = "@id(\"ok\") permit (principal, action, resource);\n@id(\"typo\")\nforbid (principal, action == Action::\"github/merge_pull_request\", resource)\nwhen { context.parameters has base_brnach && context.parameters.base_brnach == \"main\" };";
    refused(text, "base_brnach", "the parameter `base_brnach`", "did you mean `base_branch`?");
    let shown = load(text).unwrap_err().to_string();
    assert!(
        shown.starts_with("test.cedar:4:31: no registered action")
            && shown.contains("(policy `typo`)")
            && shown.contains("\n4 | when {"),
        "{shown}"
    );
}

#[test]
fn the_scope_counts_not_the_whole_registry() {
    let text =
        "@id(\"x\") forbid (principal, action == Action::\"bank/pay\", resource) when { context.parameters has base_branch };";
    refused(text, "base_branch", "the parameter `base_branch`", "registered there: `amount`");
    let text =
        "@id(\"x\") forbid (principal, action == Action::\"bank/balance\", resource) when { context.parameters has amount };";
    refused(text, "amount", "the parameter `amount`", "registered without parameters");
    let text =
        "@id(\"x\") forbid (principal, action == Action::\"bank/pay\", resource) when { context.parameters has anything };";
    refused(text, "anything", "a type that policies cannot hold", "register it as string");
    let text =
        "@id(\"x\") forbid (principal, action == Action::\"bank/pay\", resource) when { context.parameters has to.county };";
    refused(text, "county", "the parameter `to.county`", "");
}

#[test]
fn every_policy_has_its_own_id() {
    refused("permit (principal, action, resource);", "permit", "no `@id`", "@id(");
    refused(
        "@id(\"a\") permit (principal, action, resource);\n@id(\"a\") forbid (principal, action, resource);",
        "@id(\"a\") forbid",
        "`a` is used twice",
        "test.cedar",
    );
    refused("@id(\"a b\") permit (principal, action, resource);", "@id", "`@id`", "characters");
}

#[test]
fn annotations_are_checked() {
    let permit = |annotation: &str| format!("@id(\"a\")\n{annotation}\npermit (principal, action, resource);");
    let approval = "@decision(\"require_approval\")";
    refused(&permit("@reasons(\"x\")"), "@reasons", "unknown annotation `@reasons`", "@reason");
    refused(&permit("@decision(\"allow\")"), "@decision", "`@decision` is \"allow\"", "require_approval");
    refused(&permit("@approver_group(\"x\")"), "@approver_group", "without `@decision`", "add @decision");
    refused(&permit("@reason"), "@reason", "`@reason` is empty", "characters");
    for bad in ["0", "11", "+2", "2.0", "", "two", "99999999999"] {
        refused(&permit(&format!("{approval}@approvals(\"{bad}\")")), "@approvals", "`@approvals` is", "from 1 to 10");
    }
    refused(
        "@id(\"a\")\n@decision(\"require_approval\")\nforbid (principal, action, resource);",
        "@decision",
        "a forbid cannot carry",
        "permit",
    );
}

#[test]
fn a_label_that_never_occurs_is_refused() {
    refused(
        "@id(\"a\") forbid (principal, action, resource)\nwhen { [\"untrusted_externel\"].contains(context.trust_level) };",
        "\"untrusted_externel\"",
        "`context.trust_level` is never \"untrusted_externel\"",
        "did you mean \"untrusted_external\"?",
    );
    refused(
        "@id(\"a\") forbid (principal, action, resource) when { resource.visibility == \"secret\" };",
        "\"secret\"",
        "is never \"secret\"",
        "public, private",
    );
}

#[test]
fn cedar_s_own_findings_keep_their_place() {
    refused("@id(\"a\") permit (principal, action, resource);\npermit (principal action);", "action);", "unexpected token", "");
    refused(
        "@id(\"a\") permit (principal, action, resource)\nwhen { context.trust == \"x\" };",
        "context.trust",
        "`trust`",
        "did you mean",
    );
    refused(
        "@id(\"a\") permit (principal, action == Action::\"bank/pay\", resource)\nwhen { context.parameters.amount > 3 };",
        "context.parameters.amount",
        "amount",
        "has",
    );
    refused(
        "@id(\"a\") permit (principal, action == Action::\"bank/pays\", resource);",
        "Action::\"bank/pays\"",
        "bank/pays",
        "register the action first",
    );
    refused(
        "@id(\"a\") permit (principal, action, resource)\nwhen { context.parameters has amount && context.parameters.amount == \"5\" };",
        "context.parameters.amount == ",
        "types",
        "",
    );
    let template = load("@id(\"a\") permit (principal == ?principal, action, resource);").unwrap_err();
    assert!(template.to_string().contains("templates are not supported"), "{template}");
}

#[test]
fn all_problems_are_told_at_once() {
    let text = "@id(\"a\") permit (principal, action, resource) when { context.nothing };\n@id(\"b\") permit (principal, action, resource) when { resource.nothing };";
    let error = load(text).unwrap_err();
    let lines: Vec<_> =
        error.problems().iter().map(|problem| (problem.policy_id.as_deref().unwrap(), problem.position.unwrap().line)).collect();
    assert_eq!(lines, [("a", 1), ("b", 2)]);
}

#[test]
fn bounds_hold() {
    assert!(PolicyBundle::load(&[], &[]).unwrap_err().to_string().contains("no policy"));
    assert!(load("// nothing\n").unwrap_err().to_string().contains("no policy"));
    assert!(load(&" ".repeat(300 * 1024)).unwrap_err().to_string().contains("bytes"));
    assert!(PolicyBundle::load(&[default_pack(), default_pack()], &[]).unwrap_err().to_string().contains("two sources"));
    assert!(PolicyBundle::load(&[default_pack()], &[bank(), bank()]).unwrap_err().to_string().contains("registered twice"));
}

/// On the stack of a network thread: at the bounds a policy loads or is refused, past them it is refused, and nothing overflows.
#[test]
fn deeply_nested_policies_never_overflow_the_stack() {
    let shapes: [fn(usize, usize) -> String; 7] = [
        |operators, _| format!("{}true", "true || ".repeat(operators)),
        |operators, _| format!("0{} == 0", " + 0".repeat(operators)),
        |operators, _| format!("resource{} == 0", ".a".repeat(operators)),
        |operators, _| format!("{}true", "if true then true else ".repeat(operators)),
        |_, brackets| format!("{}true{}", "(".repeat(brackets), ")".repeat(brackets)),
        |_, brackets| format!("{}1{}.isEmpty()", "[".repeat(brackets), "]".repeat(brackets)),
        |operators, brackets| {
            format!("{}true{}", format!("({}", "true && ".repeat(operators / brackets)).repeat(brackets), ")".repeat(brackets))
        },
    ];
    let thread = std::thread::Builder::new().stack_size(2 * 1024 * 1024).spawn(move || {
        for shape in shapes {
            let text = |operators, brackets| {
                format!("@id(\"deep\") permit (principal, action, resource) when {{ {} }};", shape(operators, brackets))
            };
            let _loaded_or_refused = load(&text(999, 31));
            let error = load(&text(8_000, 4_000)).unwrap_err().to_string();
            assert!(error.contains("split the policy"), "{error}");
        }
    });
    thread.unwrap().join().unwrap();
}

#[test]
fn the_digest_names_sources_and_registry_and_not_their_order() {
    let digest =
        |sources: &[crate::PolicySource], tools: &[ToolRecord]| PolicyBundle::load(sources, tools).unwrap().digest().to_owned();
    let first = digest(&[default_pack(), github_pack()], &[bank()]);
    assert_eq!(first.len(), 64);
    assert_eq!(first, digest(&[github_pack(), default_pack()], &[bank()]));
    assert_ne!(first, digest(&[default_pack(), github_pack()], &[]));
    assert_ne!(first, digest(&[default_pack()], &[bank()]));
    assert_ne!(
        first,
        digest(&[default_pack(), github_pack(), source("more", "@id(\"m\") forbid (principal, action, resource);")], &[bank()])
    );
}

#[test]
fn the_digest_names_all_of_a_registration_that_a_decision_depends_on_and_nothing_else() {
    let of = |change: &dyn Fn(&mut ToolRecord)| {
        let mut tool = bank();
        change(&mut tool);
        PolicyBundle::load(&[default_pack()], &[tool]).unwrap().digest().to_owned()
    };
    let deciding: [&dyn Fn(&mut ToolRecord); 8] = [
        &|tool| tool.actions[0].risk = RiskLevel::Critical,
        &|tool| tool.actions[0].approval_required = true,
        &|tool| tool.actions[0].default_decision = DefaultDecision::Deny,
        &|tool| tool.actions[0].data_access = DataAccess::Sensitive,
        &|tool| tool.actions[0].destination = Destination::External,
        &|tool| tool.actions[0].mutates_state = false,
        &|tool| tool.actions[0].parameters = None,
        &|tool| drop(tool.actions.pop()),
    ];
    let mut digests: Vec<String> = deciding.iter().map(|change| of(*change)).collect();
    digests.push(of(&|_| {}));
    let different: std::collections::BTreeSet<&String> = digests.iter().collect();
    assert_eq!(different.len(), digests.len(), "{digests:?}");
    let unchanged: [&dyn Fn(&mut ToolRecord); 5] = [
        &|tool| "Another name".clone_into(&mut tool.name),
        &|tool| tool.default_risk = RiskLevel::Critical,
        &|tool| tool.actions[0].description = Some("pays".to_owned()),
        &|tool| tool.actions[0].target_parameter = Some("to".to_owned()),
        // Neither widens what policies say.
        &|tool| tool.actions[0].default_decision = DefaultDecision::Allow,
    ];
    for (number, change) in unchanged.iter().enumerate() {
        assert_eq!(Some(&of(*change)), digests.last(), "{number}");
    }
}

#[test]
fn the_readme_s_example_loads_and_its_misspelling_fails_as_shown() {
    let readme = include_str!("../../../../policies/README.md");
    let block = |fence: &str| readme.split_once(fence).unwrap().1.split_once("```").unwrap().0;
    let policy = block("```cedar\n");
    let load = |text: &str| PolicyBundle::load(&[source("payments.cedar", text)], &[bank()]);
    load(policy).unwrap();
    let shown = load(&policy.replace("amount", "amuont")).unwrap_err().to_string();
    assert_eq!(block("does not load:\n\n```\n").trim_end(), shown);
}
