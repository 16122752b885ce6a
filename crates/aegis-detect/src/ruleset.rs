//! Sets of rules: the shipped ones, compiled into the binary, and those of a folder. A set loads whole or not at all.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aegis_model::{RuleInSet, RuleMode, TenantId};
use serde::Serialize;

use crate::alerts;
use crate::common::CommonVersion;
use crate::error::{RuleCode, RuleError, RuleErrors};
use crate::impaired::{IMPAIRED_NAME, IMPAIRED_RULE};
use crate::own::OwnRule;
use crate::pattern_run::PatternRun;
use crate::plan::{Filter, RulePlan};
use crate::readers::put_on_top;
use crate::rule::{Header, Rule};
use crate::schema::{column_name, is_side};
use crate::shape::Shape;

macro_rules! shipped_rules {
    ($($name:literal),+ $(,)?) => {
        /// The shipped rules: path and text.
        const SHIPPED: &[(&str, &str)] =
            &[$((concat!("rules/", $name, "/rule.sql"), include_str!(concat!("../../../rules/", $name, "/rule.sql")))),+];
    };
}

shipped_rules![
    "agent-in-two-environments",
    "allowed-after-policy-change",
    "allowed-without-outcome",
    "altered-request",
    "ambiguous-decision",
    "approve-then-swap",
    "automatic-cap-reached",
    "campaign",
    "canonicalization-skew",
    "clock-suspect",
    "confused-deputy",
    "cross-repository",
    "denial-of-wallet",
    "denied-until-allowed",
    "deny-spray",
    "deny-storm",
    "executed-unauthorized",
    "feed-not-believed",
    "first-use-of-a-tool",
    "freeze-evasion",
    "label-against-source",
    "mass-external-send",
    "nonce-across-edges",
    "rate-above-baseline",
    "read-sensitive-then-exfil",
    "receipt-chain-broken",
    "rejected-then-approved",
    "repeated-approval",
    "repeated-gaps",
    "replay",
    "risk-lowered-then-used",
    "rubber-stamp",
    "rules-not-believed",
    "run-rotation",
    "runaway",
    "self-approval",
    "sibling-evasion",
    "silent-edge",
    "slow-probing",
    "trust-escalation"
];

/// What a rule's file is called in its folder.
pub(crate) const RULE_FILE: &str = "rule.sql";

/// By these an event is known, in its place, in time or late, and somebody's.
const COLUMNS_OF_PLACE: [&str; 10] =
    ["event_id", "tenant_id", "ts", "lane", "seq", "kind", "verified", "agent_id", "bus_ts", "late"];
/// By these the side tables know what a use is, beside those above.
const COLUMNS_OF_USE: [&str; 4] = ["decision", "tool", "action", "user_id"];
/// And by these what control has registered of an agent, and whether it holds it.
const COLUMNS_OF_REGISTRY: [&str; 3] = ["reason", "status", "attributes"];

/// Rules that were checked and planned, ready for an engine.
#[derive(Debug, Default)]
pub struct RuleSet {
    rules: Vec<(Rule, RulePlan)>,
}

impl RuleSet {
    /// The rules that come with the binary.
    pub fn shipped() -> Result<Self, RuleErrors> {
        Self::from_texts(SHIPPED.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())))
    }

    /// The rules of a folder: each sub-folder with a `rule.sql` is one, named like its folder.
    pub fn load_dir(path: &Path) -> Result<Self, RuleErrors> {
        let folders = rule_folders(path).map_err(|e| RuleErrors(vec![e]))?;
        let mut texts = Vec::new();
        let mut errors = Vec::new();
        for folder in folders {
            let file = folder.join(RULE_FILE);
            match read(&file) {
                Ok(text) => texts.push((file, text)),
                Err(error) => errors.push(error),
            }
        }
        match Self::from_texts(texts) {
            Ok(set) if errors.is_empty() => {
                let misnamed = set.rules().filter_map(|rule| {
                    let folder = rule.file.parent().and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned());
                    (folder.as_deref() != Some(&rule.header.name)).then(|| {
                        let message = format!("the rule's name is `{}`, its folder has another", rule.header.name);
                        RuleError::new(RuleCode::RuleHeader, message).at(rule.header_place("name")).in_file(&rule.file)
                    })
                });
                let misnamed: Vec<RuleError> = misnamed.collect();
                if misnamed.is_empty() { Ok(set) } else { Err(RuleErrors(misnamed)) }
            }
            Ok(_) => Err(RuleErrors(errors)),
            Err(RuleErrors(more)) => {
                errors.extend(more);
                Err(RuleErrors(errors))
            }
        }
    }

    /// Rules from texts; the paths are only named in errors.
    pub fn from_texts(texts: impl IntoIterator<Item = (PathBuf, String)>) -> Result<Self, RuleErrors> {
        let mut rules: Vec<(Rule, RulePlan)> = Vec::new();
        let mut errors = Vec::new();
        let own = [("id", IMPAIRED_RULE), ("name", IMPAIRED_NAME)];
        let mut seen: HashMap<String, PathBuf> =
            own.into_iter().map(|(key, word)| (format!("{key}:{word}"), PathBuf::from("detection itself"))).collect();
        for (file, text) in texts {
            let loaded = Rule::parse(&text, &file).and_then(|rule| RulePlan::load(&rule).map(|plan| (rule, plan)));
            let (rule, plan) = match loaded {
                Ok(loaded) => loaded,
                Err(error) => {
                    errors.push(error);
                    continue;
                }
            };
            for (key, word) in [("id", &rule.header.id), ("name", &rule.header.name)] {
                if let Some(other) = seen.insert(format!("{key}:{word}"), file.clone()) {
                    let message = format!("{key} `{word}` is also that of {}", other.display());
                    errors.push(RuleError::new(RuleCode::RuleDuplicate, message).at(rule.header_place(key)).in_file(&file));
                }
            }
            rules.push((rule, plan));
        }
        if errors.is_empty() {
            errors = alerts::put_in_order(&mut rules);
        }
        if errors.is_empty() { Ok(Self { rules }) } else { Err(RuleErrors(errors)) }
    }

    /// Rules that were checked before, each by itself: none of them reads another's alerts.
    pub(crate) fn of(rules: Vec<(Rule, RulePlan)>) -> Self {
        Self { rules }
    }

    /// What is to be known of the rules that every tenant has where a tenant adds its own.
    #[must_use]
    pub fn common(&self) -> CommonRules {
        let known = |(rule, plan): &(Rule, RulePlan)| {
            let Header { id, name, version, mode, .. } = &rule.header;
            CommonRule {
                id: id.clone(),
                name: name.clone(),
                version: *version,
                mode: *mode,
                hash: rule.hash.clone(),
                text: rule.text.clone(),
                level: plan.level,
                is_read: plan.is_read,
                waits: plan.shape == Shape::Deferred,
            }
        };
        CommonRules(self.rules.iter().map(known).collect())
    }

    /// The rules, in the order they were loaded.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().map(|(rule, _)| rule)
    }

    /// Number of rules.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// True without rules.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// How far back rules look, in seconds: windows of rules that stand on each other add up.
    pub(crate) fn looks_back_s(&self) -> i64 {
        let longest_of = |level: usize| {
            let of_level = self.rules.iter().filter(|(_, plan)| plan.level == level);
            of_level.map(|(rule, _)| rule.header.window_s).max().unwrap_or(0)
        };
        (0..self.levels()).map(longest_of).sum()
    }

    /// How many rules stand on each other at most.
    pub(crate) fn levels(&self) -> usize {
        self.rules.iter().map(|(_, plan)| plan.level + 1).max().unwrap_or(0)
    }

    /// The furthest that a frame of a rule ends after its row, in microseconds.
    pub(crate) fn reaches_ahead(&self) -> i64 {
        self.rules.iter().map(|(_, plan)| plan.reach.ahead).max().unwrap_or(0)
    }

    /// True if a rule reads a column of a side table.
    pub(crate) fn reads_sides(&self) -> bool {
        self.rules.iter().any(|(_, plan)| plan.reads_sides)
    }

    /// The columns of the table `events` that these rules read, and those by which an event has its place in a log: what is to be read of rows that
    /// are kept column by column.
    #[must_use]
    pub fn columns_read(&self) -> BTreeSet<&'static str> {
        let (of_sides, of_rows): (BTreeSet<usize>, BTreeSet<usize>) =
            self.rules.iter().flat_map(|(_, plan)| plan.columns()).partition(|column| is_side(*column));
        let mut columns: BTreeSet<&'static str> = of_rows.into_iter().map(column_name).collect();
        columns.extend(COLUMNS_OF_PLACE);
        if self.reads_sides() {
            columns.extend(COLUMNS_OF_USE);
        }
        if of_sides.into_iter().any(|column| column_name(column).starts_with("registry_")) {
            columns.extend(COLUMNS_OF_REGISTRY);
        }
        columns
    }

    /// Of each rule what decides whether an event can matter to it; one that reads alerts is shown none.
    pub(crate) fn filters(&self) -> impl Iterator<Item = Option<Filter>> {
        self.rules.iter().filter(|(_, plan)| plan.sources.is_none()).map(|(_, plan)| plan.filter())
    }

    /// Makes disabled rules run: their tests count too.
    pub(crate) fn enable_all(&mut self) {
        self.rules.iter_mut().for_each(|(rule, _)| enable(rule));
    }

    /// The same of one rule alone: what it reads of others is what they tell.
    pub(crate) fn enable_only(&mut self, id: &str) {
        self.rules.iter_mut().filter(|(rule, _)| rule.header.id == id).for_each(|(rule, _)| enable(rule));
    }

    pub(crate) fn into_planned(self) -> impl Iterator<Item = (Rule, RulePlan)> {
        self.rules.into_iter()
    }
}

/// The program's rules, which every tenant has, as far as a tenant's own rule and an operator's change have to do with them.
#[derive(Clone, Debug, Default)]
pub struct CommonRules(Arc<[CommonRule]>);

#[derive(Debug)]
pub(crate) struct CommonRule {
    pub(crate) id: String,
    pub(crate) name: String,
    version: u32,
    mode: RuleMode,
    hash: String,
    text: String,
    /// How many rules stand below it, and whether one reads its alerts.
    pub(crate) level: usize,
    pub(crate) is_read: bool,
    /// True if it waits for what follows.
    pub(crate) waits: bool,
}

impl CommonRules {
    /// Version and mode of the rule of this id.
    #[must_use]
    pub fn standing(&self, id: &str) -> Option<(u32, RuleMode)> {
        self.0.iter().find(|rule| rule.id == id).map(|rule| (rule.version, rule.mode))
    }

    /// All of them, by id.
    #[must_use]
    pub fn set(&self) -> Vec<RuleInSet> {
        let of = |rule: &CommonRule| RuleInSet {
            rule_id: rule.id.clone(),
            name: rule.name.clone(),
            version: rule.version,
            mode: rule.mode,
            hash: rule.hash.clone(),
        };
        let mut set: Vec<RuleInSet> = self.0.iter().map(of).collect();
        set.sort_by(|one, other| one.rule_id.cmp(&other.rule_id));
        set
    }

    /// The text of the program's rule of this id, and its hash.
    #[must_use]
    pub fn text(&self, id: &str) -> Option<(&str, &str)> {
        self.0.iter().find(|rule| rule.id == id).map(|rule| (rule.text.as_str(), rule.hash.as_str()))
    }

    /// A rule as a version of one that every tenant has, or as one more of them. One that is disabled only has to say so: what stops a rule must not fail
    /// for want of a query. `file` is only named in errors.
    pub fn version(&self, text: &str, file: &Path) -> Result<CommonVersion, RuleError> {
        let rule = Rule::parse(text, file)?;
        let Header { id, name, mode, .. } = &rule.header;
        let before = self.0.iter().find(|other| other.id == *id);
        let has_name = self.0.iter().any(|other| other.name == *name && other.id != *id);
        if has_name || id == IMPAIRED_RULE || name == IMPAIRED_NAME {
            return Err(name_taken(&rule));
        }
        if let Some(before) = before.filter(|before| before.name != *name) {
            let message =
                format!("rule `{id}` is called `{}`, and keeps its name: others may read its alerts by it", before.name);
            return Err(RuleError::new(RuleCode::RuleHeader, message).at(rule.header_place("name")).in_file(&rule.file));
        }
        let is_of_program = before.is_some_and(|before| before.hash == rule.hash);
        if *mode == RuleMode::Disabled {
            return Ok(CommonVersion { rule, plan: None, is_of_program });
        }
        let mut plan = RulePlan::load(&rule)?;
        alerts::put_among(&rule, &mut plan, &self.0)?;
        Ok(CommonVersion { rule, plan: Some(plan), is_of_program })
    }

    /// A version as a set that can be run by itself: one that reads alerts, with the program's rules, whose alerts these are.
    pub fn set_of(&self, text: &str, file: &Path) -> Result<RuleSet, RuleErrors> {
        let one = |error| RuleErrors(vec![error]);
        let rule = Rule::parse(text, file).map_err(one)?;
        let reads_alerts = RulePlan::load(&rule).map_err(one)?.sources.is_some();
        let others = self.0.iter().filter(|other| reads_alerts && other.id != rule.header.id);
        let others = others.map(|other| (PathBuf::from(&other.name).join("rule.sql"), other.text.clone()));
        RuleSet::from_texts([(file.to_owned(), text.to_owned())].into_iter().chain(others))
    }

    /// What stands of a rule by an operator's change: the text as a version; without one, the program's. None: there is no such rule.
    pub(crate) fn standing_by(&self, id: &str, text: &str) -> Result<Option<CommonVersion>, RuleError> {
        let text = if text.is_empty() { self.text(id).map(|(text, _)| text) } else { Some(text) };
        text.map(|text| self.version(text, Path::new("rule.sql"))).transpose()
    }

    /// Checks a rule that is to be a tenant's own. `file` is only named in errors.
    pub fn lint_own(&self, text: &str, file: &Path) -> Result<LintReport, RuleError> {
        let (rule, plan) = self.load_own(text, file)?;
        Ok(report_of(rule, &plan))
    }

    /// A rule as a tenant's own.
    pub fn own(&self, tenant: &TenantId, text: &str) -> Result<OwnRule, RuleError> {
        let (rule, plan) = self.load_own(text, Path::new("rule.sql"))?;
        Ok(OwnRule { tenant: tenant.clone(), rule, plan })
    }

    fn load_own(&self, text: &str, file: &Path) -> Result<(Rule, RulePlan), RuleError> {
        let rule = Rule::parse(text, file)?;
        let mut plan = RulePlan::load(&rule)?;
        let Header { id, name, .. } = &rule.header;
        let has_name = self.0.iter().any(|other| other.name == *name && other.id != *id);
        if has_name || id == IMPAIRED_RULE || name == IMPAIRED_NAME {
            return Err(name_taken(&rule));
        }
        put_on_top(&rule, &mut plan, &self.0)?;
        Ok((rule, plan))
    }
}

fn enable(rule: &mut Rule) {
    if rule.header.mode == RuleMode::Disabled {
        rule.header.mode = RuleMode::LogOnly;
    }
}

fn name_taken(rule: &Rule) -> RuleError {
    let Header { id, name, .. } = &rule.header;
    let message = format!("id `{id}` or name `{name}` is also that of another rule");
    RuleError::new(RuleCode::RuleDuplicate, message).at(rule.header_place("name")).in_file(&rule.file)
}

/// What lint says about a rule that is in order.
#[derive(Clone, Debug, Serialize)]
pub struct LintReport {
    pub rule: Rule,
    pub shape: Shape,
    /// Columns of events by which the rule's state is split: only touched parts are evaluated again.
    pub split_by: Vec<String>,
    /// Of a row pattern that is followed: how.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<PatternRun>,
    /// Of a stepped rule: why it is no row pattern that is followed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stepped_for: Option<&'static str>,
    /// The physical plan, one operator a line.
    pub plan: String,
}

/// The text of a shipped rule, by id or name.
pub(crate) fn shipped_text(word: &str) -> Option<(PathBuf, String)> {
    let is_it = |text: &str| text.lines().any(|line| line.strip_prefix("id: ").or(line.strip_prefix("name: ")) == Some(word));
    SHIPPED.iter().find(|(_, text)| is_it(text)).map(|(path, text)| (PathBuf::from(path), (*text).to_owned()))
}

/// Checks one rule file, as loading would.
pub fn lint_file(path: &Path) -> Result<LintReport, RuleError> {
    lint_text(&read(path)?, path)
}

/// The same of each rule that comes with the binary.
#[must_use]
pub fn lint_shipped() -> Vec<(PathBuf, Result<LintReport, RuleError>)> {
    SHIPPED.iter().map(|(path, text)| (PathBuf::from(path), lint_text(text, Path::new(path)))).collect()
}

fn lint_text(text: &str, path: &Path) -> Result<LintReport, RuleError> {
    let rule = Rule::parse(text, path)?;
    let plan = RulePlan::load(&rule)?;
    Ok(report_of(rule, &plan))
}

fn report_of(rule: Rule, plan: &RulePlan) -> LintReport {
    let split_by = plan.buckets.iter().map(|b| rule.header.key[b.key_position].clone()).collect();
    let (pattern, stepped_for) = (PatternRun::of(plan), plan.stepped_for);
    LintReport { shape: plan.shape, split_by, pattern, stepped_for, plan: plan.display(), rule }
}

/// The folders of the rules that a path names: that of a `rule.sql`, the one that has it, or each sub-folder that does. Where there is none, that is an
/// error, which says where it was looked.
pub(crate) fn folders_of(path: &Path) -> Result<Vec<PathBuf>, RuleError> {
    let refused = |message: String| {
        let error = RuleError::new(RuleCode::RuleFile, message).in_file(path);
        error.hint("name a rule.sql, its folder, or a folder that has one folder per rule")
    };
    if path.is_file() {
        let is_rule = path.file_name().is_some_and(|name| name == RULE_FILE);
        let folder = path.parent().map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder });
        return match folder.filter(|_| is_rule) {
            Some(folder) => Ok(vec![folder.to_owned()]),
            None => Err(refused(format!("the file is no rule: a rule's file is called {RULE_FILE}"))),
        };
    }
    if path.join(RULE_FILE).is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let folders = rule_folders(path)?;
    if folders.is_empty() {
        let (own, below) = (path.join(RULE_FILE), path.join("*").join(RULE_FILE));
        return Err(refused(format!("no rule is there: neither {} nor {}", own.display(), below.display())));
    }
    Ok(folders)
}

/// The sub-folders that hold a rule, sorted by name.
pub(crate) fn rule_folders(path: &Path) -> Result<Vec<PathBuf>, RuleError> {
    let unreadable = |e: std::io::Error| {
        let error = RuleError::new(RuleCode::RuleFile, format!("the folder cannot be read: {e}")).in_file(path);
        error.hint("name a folder that has one folder per rule, each with a rule.sql")
    };
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let folder = entry.map_err(unreadable)?.path();
        if folder.join(RULE_FILE).is_file() {
            folders.push(folder);
        }
    }
    folders.sort();
    Ok(folders)
}

fn read(path: &Path) -> Result<String, RuleError> {
    std::fs::read_to_string(path)
        .map_err(|e| RuleError::new(RuleCode::RuleFile, format!("the file cannot be read: {e}")).in_file(path))
}
