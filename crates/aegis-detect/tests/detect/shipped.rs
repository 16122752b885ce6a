//! The shipped rules load, pass their own tests, and run in the way that is cheap.

use std::path::PathBuf;

use aegis_detect::{RuleSet, Shape, lint_file, testing::run_rule_tests};
use aegis_model::RuleMode;

fn rules_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../rules")
}

#[test]
fn every_shipped_rule_passes_its_tests() {
    let report = run_rule_tests(&rules_dir()).unwrap();
    assert!(report.ok(), "{report}");
}

#[test]
fn the_rules_in_the_binary_are_those_in_the_folder() {
    let compiled: Vec<String> = RuleSet::shipped().unwrap().rules().map(|r| r.hash.clone()).collect();
    let on_disk: Vec<String> = RuleSet::load_dir(&rules_dir()).unwrap().rules().map(|r| r.hash.clone()).collect();
    assert_eq!(compiled, on_disk);
}

/// Rules that only tell until a person makes them active: they would contain somebody, or their number depends on the tenant.
const LOGGED_FIRST: [&str; 3] = ["denial-of-wallet", "mass-external-send", "runaway"];

#[test]
fn every_shipped_rule_has_a_runbook_and_is_active_or_logged_first() {
    for rule in RuleSet::shipped().unwrap().rules() {
        let runbook = rule.header.runbook.as_deref().expect("a runbook");
        assert_eq!(runbook, format!("docs/runbooks/{}.md", rule.header.name));
        assert!(rules_dir().join("..").join(runbook).is_file(), "{runbook}");
        let expected = if LOGGED_FIRST.contains(&rule.header.name.as_str()) { RuleMode::LogOnly } else { RuleMode::Active };
        assert_eq!(rule.header.mode, expected, "{}", rule.header.name);
    }
}

#[test]
fn shipped_rules_touch_only_the_keys_that_changed() {
    for rule in RuleSet::load_dir(&rules_dir()).unwrap().rules() {
        let lint = lint_file(&rule.file).unwrap();
        let name = &rule.header.name;
        assert_ne!(lint.shape, Shape::Stepped, "{name} runs once for each instant:\n{}", lint.plan);
        if lint.shape == Shape::Sliding {
            assert!(!lint.split_by.is_empty(), "{name} looks at all of a tenant's events for each new one:\n{}", lint.plan);
        }
    }
}

#[test]
fn the_shapes_of_the_first_rules_are_known() {
    for (name, shape) in [
        ("confused-deputy", Shape::Stateless),
        ("deny-storm", Shape::Sliding),
        ("read-sensitive-then-exfil", Shape::Sliding),
        ("receipt-chain-broken", Shape::Stateless),
        ("approve-then-swap", Shape::Stateless),
        ("clock-suspect", Shape::Stateless),
    ] {
        let lint = lint_file(&rules_dir().join(name).join("rule.sql")).unwrap();
        assert_eq!(lint.shape, shape, "{name}:\n{}", lint.plan);
        if shape == Shape::Sliding {
            assert_eq!(lint.split_by, ["agent_id"], "{name}");
        }
    }
}
