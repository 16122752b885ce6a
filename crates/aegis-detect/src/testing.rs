//! Rule tests: YAML files beside a rule, run through the real engine (`docs/specs/detection-rule.md` describes the format).
//! Each test runs twice, as one batch and event by event; the alerts that stand must be the expected ones, and the same ones.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aegis_model::{Alert, EventId, EventKind, ManualClock, SecurityEvent, TenantId, Timestamp, external_event_id};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::alerts::with_sources;
use crate::engine::{Engine, EngineConfig};
use crate::error::{Place, RuleCode, RuleError, RuleErrors};
use crate::ruleset::{RULE_FILE, RuleSet, folders_of};
use crate::schema::{column_index, events_schema, is_side};

/// Time zero of every test: 2026-01-01T00:00:00Z.
const START: Timestamp = Timestamp::from_micros(1_767_225_600_000_000);

/// One test file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TestFile {
    /// What the test shows, as a sentence.
    name: String,
    /// Columns of every event that does not set them itself.
    #[serde(default)]
    defaults: Map<String, Value>,
    /// In the order in which they arrive.
    events: Vec<Map<String, Value>>,
    /// The alerts that stand in the end; empty: none may.
    expect: Vec<Expected>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    #[serde(default = "default_tenant")]
    tenant: String,
    /// The whole key.
    key: Map<String, Value>,
    /// Labels of the evidence, in event order; left out: not compared.
    #[serde(default)]
    evidence: Option<Vec<String>>,
    /// Some of the alert's fields; left out: not compared.
    #[serde(default)]
    fields: Map<String, Value>,
}

fn default_tenant() -> String {
    "t1".to_owned()
}

/// What came of all tests of a folder.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub rules: Vec<RuleReport>,
    pub passed: usize,
    pub failed: usize,
}

/// What came of one rule's tests.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RuleReport {
    pub rule: String,
    pub folder: PathBuf,
    /// What is wrong with the rule or with its set of tests.
    pub problems: Vec<String>,
    pub tests: Vec<TestReport>,
}

/// What came of one test.
#[derive(Clone, Debug, Serialize)]
pub struct TestReport {
    pub file: PathBuf,
    pub name: String,
    /// Number of alerts that the test expects.
    pub expects: usize,
    /// Empty: passed.
    pub failures: Vec<String>,
}

impl Report {
    fn of(rules: Vec<RuleReport>) -> Self {
        let tests = || rules.iter().flat_map(|rule| &rule.tests);
        let problems: usize = rules.iter().map(|rule| rule.problems.len()).sum();
        let failed = problems + tests().filter(|test| !test.failures.is_empty()).count();
        let passed = tests().filter(|test| test.failures.is_empty()).count();
        Self { rules, passed, failed }
    }

    /// True if nothing failed and there was something to test.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.failed == 0 && self.passed > 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for rule in &self.rules {
            writeln!(f, "{}", rule.rule)?;
            for problem in &rule.problems {
                writeln!(f, "  FAIL  {}", problem.replace('\n', "\n        "))?;
            }
            for test in &rule.tests {
                let verdict = if test.failures.is_empty() { "ok  " } else { "FAIL" };
                let fires = if test.expects == 0 { "silent" } else { "fires " };
                writeln!(f, "  {verdict}  {fires}  {}", test.name)?;
                for failure in &test.failures {
                    writeln!(f, "          {failure}  ({})", test.file.display())?;
                }
            }
        }
        write!(f, "rules: {} · checks: {} passed, {} failed", self.rules.len(), self.passed, self.failed)
    }
}

/// Runs the tests of the rules that a path names: a rule's file, its folder, or a folder of such folders. A path without a rule is an error.
pub fn run_rule_tests(path: &Path) -> Result<Report, RuleErrors> {
    let folders = folders_of(path).map_err(|e| RuleErrors(vec![e]))?;
    Ok(Report::of(folders.iter().map(|folder| run_folder(folder)).collect()))
}

/// Runs a rule's tests: each the name of a file, and what stands in it.
#[must_use]
pub fn run_tests_of(rule_file: &Path, text: &str, tests: Vec<(PathBuf, String)>) -> Report {
    let report = RuleReport { rule: rule_file.display().to_string(), ..RuleReport::default() };
    Report::of(vec![run_all(report, rule_file, text, tests.into_iter().map(|(file, test)| (file, Ok(test))).collect())])
}

/// Test files with what was read of them.
type TestTexts = Vec<(PathBuf, Result<String, RuleError>)>;

fn run_folder(folder: &Path) -> RuleReport {
    // `.` and `..` are no names.
    let full = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let name = folder.file_name().or_else(|| full.file_name()).map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let mut report = RuleReport { rule: name, folder: folder.to_owned(), ..RuleReport::default() };
    let rule_file = folder.join(RULE_FILE);
    let text = match std::fs::read_to_string(&rule_file) {
        Ok(text) => text,
        Err(error) => {
            report.problems.push(format!("{} cannot be read: {error}", rule_file.display()));
            return report;
        }
    };
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder.join("tests"))
        .map(|entries| entries.filter_map(|e| e.ok().map(|e| e.path())).collect())
        .unwrap_or_default();
    files.retain(|f| f.extension().is_some_and(|e| e == "yaml" || e == "yml"));
    files.sort();
    let tests = files.into_iter().map(|file| (file.clone(), read_file(&file))).collect();
    run_all(report, &rule_file, &text, tests)
}

fn run_all(mut report: RuleReport, rule_file: &Path, text: &str, tests: TestTexts) -> RuleReport {
    if let Err(errors) = RuleSet::from_texts(with_sources(rule_file, text)) {
        report.problems.push(errors.to_string());
        return report;
    }
    for (file, test) in tests {
        report.tests.push(run_file(rule_file, text, &file, test));
    }
    if !report.tests.iter().any(|t| t.expects > 0) {
        report.problems.push("no test in tests/ must fire: a rule that never matched is not known to work".into());
    }
    if !report.tests.iter().any(|t| t.expects == 0) {
        report.problems.push("no test in tests/ must stay silent: a rule that always matches is not known to work".into());
    }
    report
}

fn run_file(rule_file: &Path, rule_text: &str, file: &Path, text: Result<String, RuleError>) -> TestReport {
    let mut report = TestReport { file: file.to_owned(), name: file.display().to_string(), expects: 0, failures: Vec::new() };
    let result = text.and_then(|text| read_test(file, &text)).and_then(|test| {
        report.name.clone_from(&test.name);
        report.expects = test.expect.len();
        let events = build_events(&test).map_err(|message| RuleError::new(RuleCode::RuleTest, message).in_file(file))?;
        Ok((test, events))
    });
    let (test, events) = match result {
        Ok(read) => read,
        Err(error) => {
            report.failures.push(error.to_string());
            return report;
        }
    };
    let labels: BTreeMap<EventId, String> = events.iter().map(|(label, e)| (e.event_id, label.clone())).collect();
    let log: Vec<SecurityEvent> = events.into_iter().map(|(_, event)| event).collect();
    let run = |batches: Vec<Vec<SecurityEvent>>| standing_alerts(rule_file, rule_text, batches);
    let at_once = run(vec![log.clone()]);
    let one_by_one = run(log.into_iter().map(|event| vec![event]).collect());
    let (at_once, one_by_one) = match (at_once, one_by_one) {
        (Ok(a), Ok(b)) => (a, b),
        (Err(failure), _) | (_, Err(failure)) => {
            report.failures.push(failure);
            return report;
        }
    };
    let ids = |alerts: &[Alert]| alerts.iter().map(|a| a.alert_id.clone()).collect::<BTreeSet<_>>();
    if ids(&at_once) != ids(&one_by_one) {
        report.failures.push("event by event the rule finds other alerts than in one batch".into());
    }
    report.failures.extend(compare(&test.expect, &at_once, &labels));
    report
}

/// The alerts that stand after a log: emitted and not retracted.
fn standing_alerts(rule_file: &Path, rule_text: &str, batches: Vec<Vec<SecurityEvent>>) -> Result<Vec<Alert>, String> {
    // With a rule that reads alerts go those that raise them; what is compared is its own.
    let mut rule = RuleSet::from_texts(with_sources(rule_file, rule_text)).map_err(|e| e.to_string())?;
    rule.enable_all();
    let own = rule.rules().next().map(|rule| rule.header.id.clone());
    let mut engine = Engine::new(rule, EngineConfig::new(Arc::new(ManualClock::new(START))));
    let mut alerts: BTreeMap<String, Alert> = BTreeMap::new();
    let ticks = batches.into_iter().map(Some).chain([None]).collect::<Vec<_>>();
    for tick in ticks {
        let output = match tick {
            Some(events) => engine.tick(events),
            None => engine.finish(),
        };
        if let Some(error) = output.quarantined.first() {
            return Err(error.to_string());
        }
        // Not what the engine says of itself: a test is about its rule.
        let of_rule = output.alerts.into_iter().filter(|alert| Some(&alert.rule_id) == own.as_ref());
        alerts.extend(of_rule.map(|alert| (alert.alert_id.clone(), alert)));
        for retraction in output.retractions {
            alerts.remove(&retraction.alert_id);
        }
    }
    let mut alerts: Vec<Alert> = alerts.into_values().collect();
    alerts.sort_by(|a, b| (a.first_ts, &a.alert_id).cmp(&(b.first_ts, &b.alert_id)));
    Ok(alerts)
}

fn compare(expected: &[Expected], alerts: &[Alert], labels: &BTreeMap<EventId, String>) -> Vec<String> {
    let label = |id: &EventId| labels.get(id).cloned().unwrap_or_else(|| id.to_string());
    let evidence = |alert: &Alert| alert.event_ids.iter().map(label).collect::<Vec<_>>();
    let mut rest: Vec<&Alert> = alerts.iter().collect();
    let mut failures = Vec::new();
    for want in expected {
        let fits = |alert: &&Alert| {
            alert.tenant_id.as_str() == want.tenant
                && alert.key == want.key
                && want.evidence.as_ref().is_none_or(|labels| *labels == evidence(alert))
                && want.fields.iter().all(|(name, value)| alert.fields.get(name) == Some(value))
        };
        match rest.iter().position(fits) {
            Some(at) => {
                rest.remove(at);
            }
            None => failures.push(format!(
                "expected and not found: tenant {}, key {}, evidence {:?}",
                want.tenant,
                Value::Object(want.key.clone()),
                want.evidence.clone().unwrap_or_default()
            )),
        }
    }
    for alert in rest {
        let key = Value::Object(alert.key.clone());
        failures.push(format!("found and not expected: tenant {}, key {key}, evidence {:?}", alert.tenant_id, evidence(alert)));
    }
    failures
}

fn read_file(file: &Path) -> Result<String, RuleError> {
    let refuse = |message: String| RuleError::new(RuleCode::RuleTest, message).in_file(file);
    std::fs::read_to_string(file).map_err(|e| refuse(format!("the test cannot be read: {e}")))
}

fn read_test(file: &Path, text: &str) -> Result<TestFile, RuleError> {
    let refuse = |message: String| RuleError::new(RuleCode::RuleTest, message).in_file(file);
    serde_saphyr::from_str(text).map_err(|error| {
        let error = error.without_snippet();
        let place = error.location().map(|l| Place { line: l.line(), column: l.column() });
        refuse(error.to_string()).at(place)
    })
}

/// The events of a test with their labels, defaults filled in.
fn build_events(test: &TestFile) -> Result<Vec<(String, SecurityEvent)>, String> {
    let mut events: Vec<(String, SecurityEvent)> = Vec::new();
    let mut named = Vec::new();
    let mut seqs: BTreeMap<String, i64> = BTreeMap::new();
    for (index, written) in test.events.iter().enumerate() {
        let mut columns = test.defaults.clone();
        columns.extend(written.clone());
        let label = match columns.remove("id") {
            Some(Value::String(label)) => label,
            Some(other) => return Err(format!("event {}: id must be text, not {other}", index + 1)),
            None => format!("e{}", index + 1),
        };
        let about = match columns.remove("ref") {
            Some(Value::String(about)) => Some(about),
            Some(other) => return Err(format!("event `{label}`: ref must be the id of an event of the test, not {other}")),
            None => None,
        };
        let event = build_event(columns, &label, about.as_deref(), &mut seqs);
        named.extend(about);
        events.push((label.clone(), event.map_err(|message| format!("event `{label}`: {message}"))?));
    }
    match named.iter().find(|about| !events.iter().any(|(label, _)| label == *about)) {
        Some(unknown) => Err(format!("ref: no event of the test has the id `{unknown}`")),
        None => Ok(events),
    }
}

/// `about` is the label of the event that this one is about.
fn build_event(
    mut columns: Map<String, Value>,
    label: &str,
    about: Option<&str>,
    seqs: &mut BTreeMap<String, i64>,
) -> Result<SecurityEvent, String> {
    let id_of = |tenant_id: &TenantId, label: &str| Value::from(external_event_id(tenant_id, "rule-test", label).to_string());
    let at = columns.remove("at");
    let offset = at.as_ref().and_then(Value::as_str).and_then(parse_offset);
    let offset = offset.ok_or("`at` must be a time since the start of the test: a whole number and ms, s, m or h")?;
    let schema = events_schema();
    if let Some(unknown) = columns.keys().find(|name| schema.field_with_name(name).is_err()) {
        let is_computed = column_index(unknown).is_some_and(is_side);
        let what = if is_computed { "is told from the events before, and cannot be set" } else { "is no column of events" };
        return Err(format!("`{unknown}` {what}"));
    }
    let mut default = |name: &str, value: Value| {
        columns.entry(name.to_owned()).or_insert(value);
    };
    default("tenant_id", Value::from(default_tenant()));
    default("edge_id", Value::from("edge-1"));
    default("source", Value::from("edge"));
    default("kind", Value::from(EventKind::AuthorizeDecision.as_str()));
    let text = |name: &str| columns.get(name).and_then(Value::as_str).map(str::to_owned).unwrap_or_default();
    let (tenant, edge) = (text("tenant_id"), text("edge_id"));
    let tenant_id = TenantId::new(&tenant).map_err(|e| e.to_string())?;
    // Like a real event: an observation has no lane and is never verified, all others have both.
    let external = text("kind").parse::<EventKind>().is_ok_and(EventKind::is_external);
    if !external {
        let lane = format!("{tenant}.{edge}.1");
        let seq = seqs.entry(lane.clone()).or_insert(0);
        *seq += 1;
        columns.entry("lane").or_insert(Value::from(lane));
        columns.entry("seq").or_insert(Value::from(*seq));
    }
    columns.entry("verified").or_insert(Value::from(!external));
    columns.insert("event_id".into(), id_of(&tenant_id, label));
    if let Some(about) = about {
        columns.insert("ref_event_id".into(), id_of(&tenant_id, about));
    }
    columns.insert("ts".into(), Value::from(START.plus_micros(offset).to_rfc3339()));
    serde_json::from_value(Value::Object(columns)).map_err(|e| e.to_string())
}

/// `10s` after the start, in microseconds.
fn parse_offset(text: &str) -> Option<i64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let micros = match unit {
        "ms" => 1_000,
        "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        _ => return None,
    };
    number.parse::<i64>().ok()?.checked_mul(micros)
}
