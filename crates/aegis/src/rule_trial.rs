//! A rule's trial before it may stand: read, its tests, and a backtest over its tenant's history, or every tenant's. The same for control's API and on the
//! data folder.
//! Promises that the trial runs behind everything else and ends. A rule is a program that runs where all tenants' rules do: what a tenant's admin may
//! activate is of the cheap shapes, and what its expressions make of little is not bounded here.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aegis_control::{RuleTest, RuleTrialError, RuleTrials};
use aegis_detect::testing::run_tests_of;
use aegis_detect::{Backtest, BacktestReport, CommonRules, Header, RuleSet, Shape};
use aegis_model::{Clock, RuleMode, SecurityEvent, TenantId, Timestamp};
use aegis_store::{MAX_RULE_NOTE, MAX_RULE_TEXT, NewRuleVersion, StandingCommonRule, Store};
use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use crate::commands::backtest::History;

/// How far back the backtest of a trial reads, and of how many events at most.
const HISTORY_DAYS: i64 = 7;
const MOST_EVENTS: u64 = 1_000_000;
const DAY_MICROS: i64 = 24 * 3600 * 1_000_000;
/// The longest window of a rule that a tenant's admin activates: what a window needs, the bus keeps for all tenants. An operator may use all that a
/// rule may have.
const TENANT_WINDOW_S: i64 = 3600;
/// Rows of a page of the history, few: they are read on the threads that answer. And pages that wait for the trial.
const ROWS: u32 = 100;
const PAGES: usize = 8;
/// What takes longer is given up, and others' turn comes.
const LONGEST_TRIAL: Duration = Duration::from_secs(600);
/// Longest refusal, in characters.
const MAX_REFUSAL: usize = 4000;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// Whoever works on the data folder, and answers for the machine.
    Operator,
    /// An admin of the tenant.
    Tenant,
}

#[derive(Clone, Debug)]
pub(crate) struct RuleTrial {
    store: Store,
    data: PathBuf,
    common: CommonRules,
    by: By,
    clock: Arc<dyn Clock>,
}

/// What there was of the history.
struct Seen {
    /// False where there was more than a trial reads.
    is_whole: bool,
    gone: u64,
    /// From the first event to the last.
    span: Option<(Timestamp, Timestamp)>,
}

/// What the trial's thread came to: a report, or why the tests are not green.
type Tried = Result<BacktestReport, String>;

fn refused(code: &'static str, message: &impl ToString) -> RuleTrialError {
    RuleTrialError::Refused { code, message: message.to_string().chars().take(MAX_REFUSAL).collect() }
}

fn failed(cause: &impl ToString) -> RuleTrialError {
    RuleTrialError::Failed(cause.to_string())
}

impl RuleTrial {
    pub(crate) fn new(store: Store, data: &Path, common: CommonRules, by: By, clock: Arc<dyn Clock>) -> Self {
        Self { store, data: data.to_owned(), common, by, clock }
    }

    fn read_text(&self, text: &str) -> Result<NewRuleVersion, RuleTrialError> {
        if text.len() > MAX_RULE_TEXT {
            return Err(refused("invalid_rule", &format!("a tenant's own rule has at most {MAX_RULE_TEXT} bytes")));
        }
        let lint = self.common.lint_own(text, Path::new("rule.sql")).map_err(|error| refused("invalid_rule", &error))?;
        let (hash, header) = (lint.rule.hash, lint.rule.header);
        if self.by == By::Tenant && matches!(lint.shape, Shape::Stepped | Shape::Pattern | Shape::Sliding) {
            let why = "it is run over its whole window, or its matches, again and again, which others would wait for (`lint --json` says `stepped`, `pattern` or `sliding`): write \
                       it with count, min, max or array_agg over a RANGE frame, or have an operator activate it on the data folder";
            return Err(refused("rule_too_costly", &why));
        }
        if self.by == By::Tenant && header.window_s > TENANT_WINDOW_S {
            let why = format!("its window is longer than {TENANT_WINDOW_S} s; an operator may activate it on the data folder");
            return Err(refused("rule_too_costly", &why));
        }
        self.version_of(header, hash, text)
    }

    fn version_of(&self, header: Header, hash: String, text: &str) -> Result<NewRuleVersion, RuleTrialError> {
        let line = header.changelog.iter().find(|change| change.version == header.version);
        let note = line.map(|change| change.note.clone()).unwrap_or_default();
        if note.trim().is_empty() {
            return Err(refused("invalid_rule", &format!("the changelog says nothing of version {}", header.version)));
        }
        if note.len() > MAX_RULE_NOTE {
            return Err(refused("invalid_rule", &format!("a line of the changelog has at most {MAX_RULE_NOTE} bytes")));
        }
        Ok(NewRuleVersion {
            common: self.common.standing(&header.id).map(|(version, mode)| (i64::from(version), mode)),
            rule_id: header.id,
            name: header.name,
            version: i64::from(header.version),
            mode: header.mode,
            hash,
            text: text.to_owned(),
            note,
            backtest: None,
        })
    }

    /// What a text would be as an operator's version of a rule that every tenant has; not tried yet. `file` is only named in errors.
    pub(crate) fn read_common(&self, text: &str, file: &Path) -> Result<NewRuleVersion, RuleTrialError> {
        if text.len() > MAX_RULE_TEXT {
            return Err(refused(
                "invalid_rule",
                &format!("a rule that comes while the program runs has at most {MAX_RULE_TEXT} bytes"),
            ));
        }
        let version = self.common.version(text, file).map_err(|error| refused("invalid_rule", &error))?;
        let rule = version.rule();
        self.version_of(rule.header.clone(), rule.hash.clone(), text)
    }

    /// The same with its backtest, once its tests are green and it has run over every tenant's history. Without tests where it is a query of which that is
    /// known.
    pub(crate) async fn try_common(
        &self,
        version: NewRuleVersion,
        file: &Path,
        tests: Option<&[RuleTest]>,
    ) -> Result<NewRuleVersion, RuleTrialError> {
        if version.mode == RuleMode::Disabled {
            return Ok(version);
        }
        let tenants = self.store.list_tenants().await.map_err(|error| failed(&error))?;
        let rules = self.common.set_of(&version.text, file).map_err(|errors| refused("invalid_rule", &errors))?;
        self.try_over(&tenants, version, rules, file, tests).await
    }

    /// Runs a version's tests, and it over the history of some tenants.
    async fn try_over(
        &self,
        tenants: &[TenantId],
        mut version: NewRuleVersion,
        rules: RuleSet,
        file: &Path,
        tests: Option<&[RuleTest]>,
    ) -> Result<NewRuleVersion, RuleTrialError> {
        let from = self.clock.now().plus_micros(-HISTORY_DAYS * DAY_MICROS);
        let needed = Backtest::needs_from(&rules, Arc::clone(&self.clock), from);
        let (pages, waiting) = mpsc::channel(PAGES);
        let (told, hears) = oneshot::channel::<Tried>();
        let tests = tests.map(|tests| tests.iter().map(|test| (PathBuf::from(&test.name), test.text.clone())).collect());
        let (file, text, clock) = (file.to_owned(), version.text.clone(), Arc::clone(&self.clock));
        let work = move || async move {
            let _nobody_waits = told.send(run(&file, &text, tests, rules, waiting, clock, from).await);
        };
        let _ends_by_itself = aegis_threads::spawn("aegis-rule-trial", work).map_err(|error| failed(&error))?;
        let trial = async { (self.read_history(tenants, needed, pages).await, hears.await) };
        let Ok((read, tried)) = tokio::time::timeout(LONGEST_TRIAL, trial).await else {
            return Err(refused("rule_too_costly", &format!("its trial takes longer than {} s", LONGEST_TRIAL.as_secs())));
        };
        let tried = tried.map_err(|_| failed(&"the trial of a rule panicked"))?;
        let report = tried.map_err(|report| refused("rule_tests_failed", &report))?;
        let seen = read.map_err(|error| failed(&format!("{error:#}")))?;
        version.backtest = Some(summary(&report, &version.rule_id, &seen, from)?);
        Ok(version)
    }

    /// Gives the tenants' events since `from` to the trial, one tenant's after the other's. Each has the same part of what is read at most.
    async fn read_history(
        &self,
        tenants: &[TenantId],
        from: Timestamp,
        pages: mpsc::Sender<Vec<SecurityEvent>>,
    ) -> anyhow::Result<Seen> {
        let mut history = History::new(&self.store, &self.data).with_rows(ROWS);
        let span = (from, Timestamp::from_micros(i64::MAX));
        let mut seen = Seen { is_whole: true, gone: 0, span: None };
        let most = MOST_EVENTS / tenants.len().max(1) as u64;
        'tenants: for tenant in tenants {
            let (mut after, mut events) = (0, 0);
            while let Some(page) = history.page(tenant, &mut after, span).await? {
                events += page.len() as u64;
                if events > most {
                    seen.is_whole = false;
                    break;
                }
                for event in &page {
                    let (first, last) = seen.span.unwrap_or((event.ts, event.ts));
                    seen.span = Some((first.min(event.ts), last.max(event.ts)));
                }
                if pages.send(page).await.is_err() {
                    // It came to its end without them, and says why.
                    break 'tenants;
                }
            }
        }
        seen.gone = history.gone;
        Ok(seen)
    }
}

/// What an operator made of the rules that every tenant has, as far as a tenant's own version has to do with it.
fn among_common(mut version: NewRuleVersion, changed: &[StandingCommonRule]) -> Result<NewRuleVersion, RuleTrialError> {
    let mut stand = changed.iter().filter(|rule| !rule.is_of_program());
    if let Some(other) = stand.clone().find(|other| other.name == version.name && other.rule_id != version.rule_id) {
        let why = format!("the name is that of rule {}, which every tenant has; take another", other.rule_id);
        return Err(refused("invalid_rule", &why));
    }
    if let Some(standing) = stand.find(|other| other.rule_id == version.rule_id) {
        version.common = Some((standing.version, standing.mode));
    }
    Ok(version)
}

#[async_trait]
impl RuleTrials for RuleTrial {
    async fn read(&self, text: &str) -> Result<NewRuleVersion, RuleTrialError> {
        let (trial, text) = (self.clone(), text.to_owned());
        let read = tokio::task::spawn_blocking(move || trial.read_text(&text)).await.map_err(|error| failed(&error))?;
        let changed = self.store.standing_common_rules().await.map_err(|error| failed(&error))?;
        among_common(read?, &changed)
    }

    async fn try_out(
        &self,
        tenant: &TenantId,
        version: NewRuleVersion,
        tests: &[RuleTest],
    ) -> Result<NewRuleVersion, RuleTrialError> {
        // What stops a rule waits for nothing.
        if version.mode == RuleMode::Disabled {
            return Ok(version);
        }
        let file = PathBuf::from(&version.name).join("rule.sql");
        // One that reads alerts, with the rules that it reads.
        let rules = self.common.set_of(&version.text, &file).map_err(|errors| refused("invalid_rule", &errors))?;
        self.try_over(std::slice::from_ref(tenant), version, rules, &file, Some(tests)).await
    }
}

/// The tests, and then the history as it comes.
async fn run(
    file: &Path,
    text: &str,
    tests: Option<Vec<(PathBuf, String)>>,
    rules: RuleSet,
    mut waiting: mpsc::Receiver<Vec<SecurityEvent>>,
    clock: Arc<dyn Clock>,
    from: Timestamp,
) -> Tried {
    if let Some(tested) = tests.map(|tests| run_tests_of(file, text, tests)).filter(|tested| !tested.ok()) {
        return Err(tested.to_string());
    }
    let mut backtest = Backtest::new(rules, clock, Some(from), None);
    let mut tenant: Option<TenantId> = None;
    while let Some(events) = waiting.recv().await {
        let next = events.first().map(|event| &event.tenant_id).filter(|next| tenant.as_ref() != Some(*next));
        if let Some(next) = next
            && let Some(before) = tenant.replace(next.clone())
        {
            // Nothing of it follows.
            backtest.end_of(&before);
        }
        events.into_iter().for_each(|event| backtest.take(event));
    }
    Ok(backtest.finish())
}

/// What is kept of a backtest.
fn summary(report: &BacktestReport, rule_id: &str, seen: &Seen, from: Timestamp) -> Result<Value, RuleTrialError> {
    let Some(rule) = report.rules.iter().find(|rule| rule.rule_id == rule_id) else {
        return Err(failed(&"a backtest without its rule"));
    };
    if let Some(why) = &rule.quarantined {
        return Err(refused("rule_backtest_failed", &format!("it stopped on the history: {why}")));
    }
    let span = seen.span.map(|(first, last)| (first.max(from), last.max(from)));
    let micros = span.map_or(0, |(first, last)| last.as_micros().saturating_sub(first.as_micros()));
    // Of less than a day it is not known how many a whole day has.
    let days = (micros as f64 / DAY_MICROS as f64).max(1.0);
    Ok(json!({
        "from": span.map(|(first, _)| first), "to": span.map(|(_, last)| last), "days": two_places(days), "events": report.events,
        "whole": seen.is_whole, "gone": seen.gone, "late": report.late, "alerts": rule.alerts, "retracted": rule.retracted,
        "alerts_per_day": two_places(rule.alerts as f64 / days), "by_day": rule.by_day, "over_quota": rule.over_quota,
        "undecided": rule.undecided,
    }))
}

fn two_places(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use aegis_model::SystemClock;

    const HEADER: &str = "/* rule\nid: T-1\nname: t\nversion: 2\nseverity: low\nwindow: 10m\nkey: [agent_id]\nmode: log_only\nowner: o\n\
        description: d\nfalse_positives: f\nchangelog:\n  - {version: 2, date: 2026-11-26, note: fewer}\n  - {version: 1, date: 2026-11-25, note: first}\n*/\n";
    const QUERY: &str = "SELECT agent_id, event_id FROM events WHERE decision = 'deny'";
    const STEPPED: &str =
        "SELECT agent_id, array_agg(event_id) AS event_ids FROM events WHERE decision = 'deny' GROUP BY agent_id";
    const PATTERN: &str = "SELECT * FROM events MATCH_RECOGNIZE (PARTITION BY agent_id ORDER BY ts MEASURES array_agg(event_id) AS event_ids \
                           PATTERN (d+) DEFINE d AS d.decision = 'deny')";

    async fn trial(folder: &Path, by: By) -> RuleTrial {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let store = Store::open(&folder.join("store.db"), clock.clone()).await.unwrap();
        RuleTrial::new(store, folder, RuleSet::shipped().unwrap().common(), by, clock)
    }

    fn code(result: Result<NewRuleVersion, RuleTrialError>) -> &'static str {
        match result.unwrap_err() {
            RuleTrialError::Refused { code, .. } => code,
            RuleTrialError::Failed(why) => unreachable!("{why}"),
        }
    }

    #[tokio::test]
    async fn what_costs_others_is_an_operator_s_to_activate() {
        let folder = tempfile::tempdir().unwrap();
        let long = format!("{HEADER}{QUERY}").replace("10m", "2h");
        for text in [format!("{HEADER}{STEPPED}"), format!("{HEADER}{PATTERN}"), long] {
            assert_eq!(code(trial(folder.path(), By::Tenant).await.read(&text).await), "rule_too_costly");
            assert_eq!(trial(folder.path(), By::Operator).await.read(&text).await.unwrap().version, 2);
        }
        let read = trial(folder.path(), By::Tenant).await.read(&format!("{HEADER}{QUERY}")).await.unwrap();
        assert_eq!((read.note.as_str(), read.mode, read.common), ("fewer", RuleMode::LogOnly, None));
    }

    #[tokio::test]
    async fn no_rule_passes_without_green_tests_but_one_that_stops() {
        let folder = tempfile::tempdir().unwrap();
        let (trial, tenant) = (trial(folder.path(), By::Tenant).await, TenantId::new("acme").unwrap());
        let version = trial.read(&format!("{HEADER}{QUERY}")).await.unwrap();
        let test = |name: &str, text: &str| RuleTest { name: name.to_owned(), text: text.to_owned() };
        let fires = test(
            "fires.yaml",
            "name: fires\nevents:\n  - {id: one, at: 0s, kind: authorize_decision, agent_id: a, decision: deny}\nexpect:\n  - key: {agent_id: a}\n",
        );
        let silent = test(
            "silent.yaml",
            "name: silent\nevents:\n  - {id: one, at: 0s, kind: authorize_decision, agent_id: a, decision: allow}\nexpect: []\n",
        );
        let red = test("silent.yaml", &silent.text.replace("decision: allow", "decision: deny"));
        for tests in [vec![], vec![fires.clone()], vec![silent.clone()], vec![fires.clone(), red]] {
            assert_eq!(code(trial.try_out(&tenant, version.clone(), &tests).await), "rule_tests_failed");
        }
        let tried = trial.try_out(&tenant, version.clone(), &[fires, silent]).await.unwrap();
        let backtest = tried.backtest.unwrap();
        assert_eq!((&backtest["events"], &backtest["alerts"], &backtest["whole"]), (&json!(0), &json!(0), &json!(true)));
        let off = NewRuleVersion { mode: RuleMode::Disabled, ..version };
        assert_eq!(trial.try_out(&tenant, off.clone(), &[]).await.unwrap(), off);
    }

    #[tokio::test]
    async fn a_tenant_s_own_rule_that_reads_alerts_is_tried_with_the_rules_that_it_reads() {
        let folder = tempfile::tempdir().unwrap();
        let (trial, tenant) = (trial(folder.path(), By::Tenant).await, TenantId::new("acme").unwrap());
        let over = |name: &str| format!("{HEADER}SELECT agent_id, event_id FROM alerts WHERE rule_name = '{name}'");
        assert_eq!(code(trial.read(&over("nobody")).await), "invalid_rule");
        let version = trial.read(&over("deny-storm")).await.unwrap();
        let denies: Vec<String> = (0..5).map(|n| format!("  - {{at: {n}s, agent_id: a, decision: deny}}\n")).collect();
        let test = |name: &str, events: &str, expect: &str| RuleTest {
            name: format!("{name}.yaml"),
            text: format!("name: {name}\nevents:\n{events}expect: {expect}\n"),
        };
        let fires = test("fires", &denies.concat(), "[{key: {agent_id: a}}]");
        let silent = test("silent", &denies[1..].concat(), "[]");
        let tried = trial.try_out(&tenant, version, &[fires, silent]).await.unwrap();
        assert_eq!(tried.backtest.unwrap()["alerts"], json!(0));
    }

    #[tokio::test]
    async fn an_operator_s_version_keeps_the_rule_s_name_and_one_that_reads_alerts_is_tried_with_those_that_it_reads() {
        let folder = tempfile::tempdir().unwrap();
        let trial = trial(folder.path(), By::Operator).await;
        let file = Path::new("campaign/rule.sql");
        let shipped = RuleSet::shipped().unwrap();
        let campaign = shipped.rules().find(|rule| rule.header.name == "campaign").unwrap();
        let next = i64::from(campaign.header.version) + 1;
        let version = u32::try_from(next).unwrap();
        let quiet = aegis_detect::switched(&campaign.text, version, RuleMode::LogOnly, "2026-11-27", "too loud").unwrap();
        let read = trial.read_common(&quiet, file).unwrap();
        assert_eq!((read.version, read.mode, read.note.as_str()), (next, RuleMode::LogOnly, "too loud"));
        assert_eq!(read.common.map(|(version, _)| version), Some(next - 1));
        let tried = trial.try_common(read, file, None).await.unwrap();
        assert_eq!(tried.backtest.unwrap()["alerts"], json!(0));
        let renamed = quiet.replace("name: campaign", "name: crusade");
        assert_eq!(code(trial.read_common(&renamed, file)), "invalid_rule");
        let no_tests = trial.read_common(&format!("{HEADER}{QUERY}"), file).unwrap();
        assert_eq!(code(trial.try_common(no_tests, file, Some(&[])).await), "rule_tests_failed");
    }

    #[tokio::test]
    async fn a_tenant_s_own_version_follows_what_an_operator_made_of_the_rule() {
        let folder = tempfile::tempdir().unwrap();
        let trial = trial(folder.path(), By::Tenant).await;
        let version = trial.read(&format!("{HEADER}{QUERY}")).await.unwrap();
        let standing = |rule_id: &str, name: &str, text: &str| StandingCommonRule {
            rule_id: rule_id.to_owned(),
            name: name.to_owned(),
            version: 7,
            mode: RuleMode::Disabled,
            text: text.to_owned(),
            hash: String::new(),
            program_hash: None,
            changed_at: Timestamp::from_micros(0),
            revision: 1,
        };
        let follows = |changed: &[StandingCommonRule]| among_common(version.clone(), changed).map(|version| version.common);
        assert_eq!(follows(&[standing("T-1", "t", "x")]), Ok(Some((7, RuleMode::Disabled))));
        assert_eq!(follows(&[standing("T-1", "t", "")]), Ok(None), "what is the program's again is told by the program");
        assert!(follows(&[standing("T-2", "t", "x")]).is_err(), "a name that every tenant's rule has");
    }
}
