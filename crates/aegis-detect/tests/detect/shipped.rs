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
fn a_rule_is_tested_by_its_file_or_its_folder_and_a_path_without_a_rule_is_an_error() {
    let folder = rules_dir().join("campaign");
    for path in [folder.clone(), folder.join("rule.sql")] {
        let report = run_rule_tests(&path).unwrap();
        let tested: Vec<(&str, usize)> = report.rules.iter().map(|rule| (rule.rule.as_str(), rule.tests.len())).collect();
        assert!(report.ok(), "{report}");
        assert_eq!(tested, [("campaign", 2)], "{}", path.display());
    }
    let empty = tempfile::tempdir().unwrap();
    let refused = |path: &std::path::Path| run_rule_tests(path).unwrap_err().to_string();
    let said = refused(empty.path());
    assert!(said.contains("no rule is there: neither "), "{said}");
    for looked in ["rule.sql", "*/rule.sql"] {
        assert!(said.contains(&empty.path().join(looked).display().to_string()), "{said}");
    }
    let said = refused(&folder.join("tests/fires.yaml"));
    assert!(said.contains("the file is no rule"), "{said}");
    assert!(refused(&empty.path().join("nowhere")).contains("RULE_FILE: the folder cannot be read"));
}

/// `read-sensitive-then-exfil` as a row pattern: what it means is what its own tests say.
const EXFIL_AS_A_ROW_PATTERN: &str = "
WITH calls AS (
  SELECT ts, lane, seq, event_id, agent_id, tool, action, target,
         data_access = 'sensitive' AND NOT mutates_state AS reads,
         destination = 'external' AND mutates_state AS sends
  FROM events
  WHERE kind = 'authorize_decision'
    AND decision IN ('allow', 'require_approval')
    AND ((data_access = 'sensitive' AND NOT mutates_state) OR (destination = 'external' AND mutates_state))
)
SELECT * FROM calls MATCH_RECOGNIZE (
  PARTITION BY agent_id
  ORDER BY ts
  MEASURES s.tool AS tool, s.action AS action, s.target AS target, array_agg(r.event_id) AS read_ids,
           count(r.*) AS read_count, array_agg(event_id) AS event_ids
  PATTERN (r+ s)
  DEFINE r AS r.reads, s AS s.sends
)
";

#[test]
fn a_shipped_rule_rewritten_as_a_row_pattern_passes_the_same_tests() {
    let shipped = rules_dir().join("read-sensitive-then-exfil");
    let text = std::fs::read_to_string(shipped.join("rule.sql")).unwrap();
    let (header, _) = text.split_once("*/").unwrap();
    // A pattern spans the window; the shipped rule looks back five minutes twice.
    let header = header.replace("window: 10m", "window: 5m");
    let folder = tempfile::tempdir().unwrap();
    let rule = folder.path().join("read-sensitive-then-exfil");
    std::fs::create_dir_all(rule.join("tests")).unwrap();
    std::fs::write(rule.join("rule.sql"), format!("{header}*/{EXFIL_AS_A_ROW_PATTERN}")).unwrap();
    for test in std::fs::read_dir(shipped.join("tests")).unwrap() {
        let test = test.unwrap();
        // How many reads it lists is the shipped rule's own.
        if ["fires_after_many_reads.yaml", "fires_with_the_first_reads.yaml"].contains(&&*test.file_name().to_string_lossy()) {
            continue;
        }
        std::fs::copy(test.path(), rule.join("tests").join(test.file_name())).unwrap();
    }
    let report = run_rule_tests(folder.path()).unwrap();
    assert!(report.ok(), "{report}");
    let lint = lint_file(&rule.join("rule.sql")).unwrap();
    assert_eq!((lint.shape, lint.split_by), (Shape::Pattern, vec!["agent_id".to_owned()]), "{}", lint.plan);
}

#[test]
fn the_rules_in_the_binary_are_those_in_the_folder() {
    let compiled: Vec<String> = RuleSet::shipped().unwrap().rules().map(|r| r.hash.clone()).collect();
    let on_disk: Vec<String> = RuleSet::load_dir(&rules_dir()).unwrap().rules().map(|r| r.hash.clone()).collect();
    assert_eq!(compiled, on_disk);
}

/// Rules that only tell until a person makes them active: they would contain somebody, or what is right depends on the tenant.
const LOGGED_FIRST: [&str; 6] = [
    "allowed-without-outcome",
    "denial-of-wallet",
    "first-use-of-a-tool",
    "mass-external-send",
    "rate-above-baseline",
    "runaway",
];

#[test]
fn every_shipped_rule_has_a_runbook_and_is_active_or_logged_first() {
    for rule in RuleSet::shipped().unwrap().rules() {
        let runbook = rule.header.runbook.as_deref().expect("a runbook");
        assert_eq!(runbook, format!("docs/runbooks/{}.md", rule.header.name));
        assert!(rules_dir().join("..").join(runbook).is_file(), "{runbook}");
        let expected = match rule.header.name.as_str() {
            name if LOGGED_FIRST.contains(&name) => RuleMode::LogOnly,
            _ => RuleMode::Active,
        };
        assert_eq!(rule.header.mode, expected, "{}", rule.header.name);
    }
}

/// `AML.T0012`, and `AML.T0010.001` for a technique of a technique.
fn is_of_atlas(tag: &str) -> bool {
    let digits = |text: &str, count: usize| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    let Some(number) = tag.strip_prefix("AML.T") else { return false };
    let (technique, below) = number.split_once('.').unwrap_or((number, "000"));
    digits(technique, 4) && digits(below, 3)
}

/// `LLM01` to `LLM10`.
fn is_of_owasp(tag: &str) -> bool {
    (1..=10).any(|number| tag == format!("LLM{number:02}"))
}

#[test]
fn every_shipped_rule_names_a_technique_of_atlas_and_an_entry_of_owasp() {
    for rule in RuleSet::shipped().unwrap().rules() {
        let header = &rule.header;
        assert!(
            !header.atlas.is_empty() && header.atlas.iter().all(|tag| is_of_atlas(tag)),
            "{}: {:?}",
            header.name,
            header.atlas
        );
        assert!(
            !header.owasp.is_empty() && header.owasp.iter().all(|tag| is_of_owasp(tag)),
            "{}: {:?}",
            header.name,
            header.owasp
        );
    }
}

#[test]
fn shipped_rules_touch_only_the_keys_that_changed() {
    for rule in RuleSet::load_dir(&rules_dir()).unwrap().rules() {
        let lint = lint_file(&rule.file).unwrap();
        let name = &rule.header.name;
        assert!(
            matches!(lint.shape, Shape::Stateless | Shape::Incremental | Shape::Deferred | Shape::Pattern),
            "{name} is {:?}, and costs its whole window each time:\n{}",
            lint.shape,
            lint.plan
        );
        if lint.shape != Shape::Stateless {
            assert!(!lint.split_by.is_empty(), "{name} looks at all of a tenant's events for each new one:\n{}", lint.plan);
        }
    }
}

#[test]
fn the_shapes_of_the_first_rules_are_known() {
    for (name, shape) in [
        ("confused-deputy", Shape::Stateless),
        ("deny-storm", Shape::Incremental),
        ("read-sensitive-then-exfil", Shape::Incremental),
        ("receipt-chain-broken", Shape::Stateless),
        ("approve-then-swap", Shape::Stateless),
        ("clock-suspect", Shape::Stateless),
        ("allowed-without-outcome", Shape::Deferred),
    ] {
        let lint = lint_file(&rules_dir().join(name).join("rule.sql")).unwrap();
        assert_eq!(lint.shape, shape, "{name}:\n{}", lint.plan);
        if shape != Shape::Stateless {
            assert_eq!(lint.split_by, ["agent_id"], "{name}");
        }
    }
}
