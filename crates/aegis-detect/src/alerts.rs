//! Rules on rules: the table `alerts`, of which a row is an alert that can no longer change.
//!
//! When a tenant's time has passed what a rule told, its alerts go to the rules that read them, these are looked at, and theirs go on to the next:
//! in the order of who reads whom, which is known when a set of rules loads. So what is told of alerts is final, a function of the log as those are,
//! and needs no retraction. Nothing here reads a clock but to count what a look costs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aegis_model::{EventId, EventKind, SecurityEvent, TenantId, Timestamp};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::logical_expr::LogicalPlan;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::bucket::{Bucket, bytes_of};
use crate::engine::{EngineConfig, TickOutput, emit, guarded, over_budget, stop_if_failed};
use crate::error::{Place, RuleCode, RuleError};
use crate::evaluate::RunningRule;
use crate::plan::RulePlan;
use crate::rule::{Header, Rule};
use crate::ruleset::{CommonRule, RULE_FILE, shipped_text};
use crate::schema::{ALERTS_TABLE, EventBatch};
use crate::shape::{self, Shape};
use crate::sql::SqlText;

/// About what a checkpoint has of a row beside its texts, in bytes.
const BYTES_OF_A_ROW: usize = 1024;

/// An alert that can no longer change, as its key tells of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Final {
    pub(crate) alert_id: String,
    pub(crate) first: EventId,
    /// The last evidence of the match that raises it.
    pub(crate) last: (Timestamp, EventId),
    pub(crate) receipt_hash: Option<String>,
}

/// Rows of the table that a rule was shown, of some time, its ends included; whether it lets them in or not.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) from: Timestamp,
    pub(crate) to: Timestamp,
    pub(crate) rows: Vec<Arc<SecurityEvent>>,
}

impl Shown {
    fn take(&mut self, rows: &[Arc<SecurityEvent>]) {
        self.rows.extend(rows.iter().filter(|row| self.from <= row.ts && row.ts <= self.to).cloned());
    }
}

/// Of which rules a rule reads the alerts: those that its WHERE names.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    ids: Option<BTreeSet<String>>,
    names: Option<BTreeSet<String>>,
}

impl Sources {
    pub(crate) fn has(&self, id: &str, name: &str) -> bool {
        self.ids.as_ref().is_none_or(|ids| ids.contains(id)) && self.names.as_ref().is_none_or(|names| names.contains(name))
    }

    /// What names them: mostly names.
    fn words(&self) -> impl Iterator<Item = &String> {
        self.names.iter().chain(&self.ids).flatten()
    }
}

/// True if a query reads `alerts`. Refused beside `events`, and in a rule that contains.
pub(crate) fn reads_alerts(plan: &LogicalPlan, rule: &Rule, sql: &SqlText) -> Result<bool, RuleError> {
    let (mut of_alerts, mut of_events) = (false, false);
    let walked = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node {
            let is_of_alerts = scan.table_name.table() == ALERTS_TABLE;
            of_alerts |= is_of_alerts;
            of_events |= !is_of_alerts;
        }
        Ok(TreeNodeRecursion::Continue)
    });
    walked.map_err(|error| sql.explain(&error))?;
    let refused =
        |message: &str, hint: &str| Err(RuleError::new(RuleCode::RuleTable, message).at(sql.place_of(ALERTS_TABLE)).hint(hint));
    match (of_alerts, of_events) {
        (true, _) if rule.header.contains() => refused(
            "a rule that contains may not read `alerts`",
            "what an alert rests on may be a score or a baseline, and nobody is contained on that; let the rule respond that saw the events",
        ),
        (true, true) => refused(
            "a rule reads `events` or `alerts`, and not both",
            "an alert's row has the key columns of its rule and the id of its last evidence",
        ),
        (of_alerts, _) => Ok(of_alerts),
    }
}

/// Of which rules a query over `alerts` reads: it has to say so, in the WHERE right above the table.
pub(crate) fn sources_of(optimized: &LogicalPlan, shape: Shape, sql: &SqlText) -> Result<Sources, RuleError> {
    let refused = |message: &str, hint: &str| {
        Err(RuleError::new(RuleCode::RuleUnsupported, message).at(sql.place_of(ALERTS_TABLE)).hint(hint))
    };
    if shape == Shape::Deferred {
        return refused(
            "a rule over `alerts` that waits for what follows is not run",
            "look back from the alert that comes later",
        );
    }
    let condition = shape::prefilter(optimized).map_err(|error| sql.explain(&error))?;
    let named = |column: &str| condition.as_ref().and_then(|condition| shape::passing(condition, column));
    let (ids, names) = (named("rule_id"), named("rule_name"));
    if ids.is_none() && names.is_none() {
        return refused(
            "the rule does not say whose alerts it reads",
            "WHERE rule_name IN ('…', '…'): a rule on rules names them, so that none stands on itself",
        );
    }
    Ok(Sources { ids, names })
}

/// Says of each rule how many stand below it, and whether it is read. What is wrong where that is not decided: a rule that is not there, one that is
/// told too late, and one that stands on itself.
pub(crate) fn put_in_order(rules: &mut [(Rule, RulePlan)]) -> Vec<RuleError> {
    let mut errors = Vec::new();
    let mut below: Vec<Vec<usize>> = Vec::with_capacity(rules.len());
    for (rule, plan) in rules.iter() {
        let Some(sources) = &plan.sources else {
            below.push(Vec::new());
            continue;
        };
        let read: Vec<usize> =
            (0..rules.len()).filter(|other| sources.has(&rules[*other].0.header.id, &rules[*other].0.header.name)).collect();
        let is_named = |header: &Header, word: &str| header.id == word || header.name == word;
        let is_there = |word: &str| read.iter().any(|other| is_named(&rules[*other].0.header, word));
        if let Some(missing) = sources.words().find(|word| !is_there(word.as_str())) {
            errors.push(not_there(rule, missing));
        }
        for (late, _) in read.iter().map(|other| &rules[*other]).filter(|(_, plan)| plan.shape == Shape::Deferred) {
            errors.push(too_late(rule, &late.header.id, &late.header.name));
        }
        below.push(read);
    }
    // A rule is one higher than the highest that it reads; whoever rises beyond the number of rules stands on itself.
    let mut levels = vec![0_usize; rules.len()];
    for _ in 0..=rules.len() {
        levels = below.iter().map(|read| read.iter().map(|other| levels[*other] + 1).max().unwrap_or(0)).collect();
    }
    let is_endless = |rule: usize| levels[rule] > rules.len();
    for rule in (0..rules.len()).filter(|rule| is_endless(*rule)) {
        let Some(path) = way_back(rule, &below) else { continue };
        let names: Vec<&str> = path.iter().map(|place| rules[*place].0.header.name.as_str()).collect();
        let message = format!("the rule stands on its own alerts: {}", names.join(" reads "));
        let place = path.get(1).and_then(|next| {
            let Header { id, name, .. } = &rules[*next].0.header;
            place_of_source(&rules[rule].0, id, name)
        });
        errors.push(RuleError::new(RuleCode::RuleUnsupported, message).at(place).in_file(&rules[rule].0.file));
    }
    if errors.is_empty() {
        let read: BTreeSet<usize> = below.into_iter().flatten().collect();
        for (place, (_, plan)) in rules.iter_mut().enumerate() {
            (plan.level, plan.is_read) = (levels[place], read.contains(&place));
        }
    }
    errors
}

/// The shortest way from a rule over those that it reads to itself, both ends named. None: there is none.
fn way_back(rule: usize, below: &[Vec<usize>]) -> Option<Vec<usize>> {
    let mut ways = vec![vec![rule]];
    let mut seen = BTreeSet::new();
    while !ways.is_empty() {
        let mut longer = Vec::new();
        for way in ways {
            for next in below[*way.last()?].iter().copied() {
                let longer_way: Vec<usize> = way.iter().copied().chain([next]).collect();
                if next == rule {
                    return Some(longer_way);
                }
                if seen.insert(next) {
                    longer.push(longer_way);
                }
            }
        }
        ways = longer;
    }
    None
}

fn not_there(rule: &Rule, missing: &str) -> RuleError {
    let message = format!("`{missing}` is no rule of this set, and so has no alerts that could be read");
    let error = RuleError::new(RuleCode::RuleUnreachable, message).at(place_of_word(rule, missing));
    error.hint("name rules of the same folder").in_file(&rule.file)
}

fn too_late(rule: &Rule, id: &str, name: &str) -> RuleError {
    let message = format!("`{name}` waits for what follows, and its alerts come too late to be read");
    RuleError::new(RuleCode::RuleUnsupported, message).at(place_of_source(rule, id, name)).in_file(&rule.file)
}

/// Puts an operator's version among the program's rules: in place of the one of its id, or as one more. Whoever reads whose alerts stays as it is with
/// the program's, whatever of them is changed: a version reads rules of the program that stand below its place, and who is read goes on telling in time.
pub(crate) fn put_among(rule: &Rule, plan: &mut RulePlan, program: &[CommonRule]) -> Result<(), RuleError> {
    let unsupported = |message: &str| RuleError::new(RuleCode::RuleUnsupported, message).in_file(&rule.file);
    let before = program.iter().find(|other| other.id == rule.header.id);
    plan.is_read = before.is_some_and(|before| before.is_read);
    if plan.is_read && plan.shape == Shape::Deferred {
        return Err(unsupported("another rule reads its alerts, which would come too late if it waited for what follows"));
    }
    let mut level = level_above(rule, plan, program)?;
    if let Some(before) = before {
        if level > before.level {
            return Err(unsupported("it reads alerts of rules that do not stand below the rule in whose place it is to come"));
        }
        level = before.level;
    }
    plan.level = level;
    Ok(())
}

/// One higher than the highest of the program's rules that it reads.
pub(crate) fn level_above(rule: &Rule, plan: &RulePlan, program: &[CommonRule]) -> Result<usize, RuleError> {
    let Some(sources) = &plan.sources else { return Ok(0) };
    let read: Vec<&CommonRule> = program.iter().filter(|other| sources.has(&other.id, &other.name)).collect();
    let is_there = |word: &str| read.iter().any(|other| other.id == word || other.name == word);
    if let Some(missing) = sources.words().find(|word| !is_there(word.as_str())) {
        return Err(not_there(rule, missing));
    }
    if let Some(late) = read.iter().find(|other| other.waits) {
        return Err(too_late(rule, &late.id, &late.name));
    }
    Ok(read.iter().map(|other| other.level + 1).max().unwrap_or(0))
}

pub(crate) fn place_of_source(rule: &Rule, id: &str, name: &str) -> Option<Place> {
    place_of_word(rule, name).or_else(|| place_of_word(rule, id))
}

fn place_of_word(rule: &Rule, word: &str) -> Option<Place> {
    SqlText::read(&rule.text).ok()?.place_of_text(word, "where")
}

/// A rule's text, and those of the rules that it stands on as far as they are there: beside its folder, or shipped.
pub(crate) fn with_sources(file: &Path, text: &str) -> Vec<(PathBuf, String)> {
    let mut texts = vec![(file.to_owned(), text.to_owned())];
    let mut known = BTreeSet::new();
    let mut place = 0;
    while let Some((file, text)) = texts.get(place).cloned() {
        place += 1;
        let Ok(rule) = Rule::parse(&text, &file) else { continue };
        known.extend([rule.header.id.clone(), rule.header.name.clone()]);
        let Some(sources) = RulePlan::load(&rule).ok().and_then(|plan| plan.sources) else { continue };
        for word in sources.words() {
            if known.insert(word.clone()) {
                texts.extend(beside(&file, word).or_else(|| shipped_text(word)));
            }
        }
    }
    texts
}

/// The rule of this name in the folder of rules that a rule's file stands in.
fn beside(file: &Path, name: &str) -> Option<(PathBuf, String)> {
    // A name leads nowhere else.
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_') {
        return None;
    }
    let folder = file.parent()?;
    let rules = if folder.file_name().is_some() { folder.parent()?.to_owned() } else { folder.join("..") };
    let other = rules.join(name).join(RULE_FILE);
    std::fs::read_to_string(&other).ok().map(|text| (other, text))
}

/// An alert as a row: at the time of its last evidence, with what of its key is a column of events.
pub(crate) fn row_of(rule: &Rule, tenant: &TenantId, key: &Map<String, Value>, told: &Final) -> SecurityEvent {
    let header = &rule.header;
    let (ts, event_id) = told.last;
    // The table has no column that says of what kind its rows are.
    let kind = EventKind::ReceiptChainBroken;
    let mut row = SecurityEvent::with_id(event_id, tenant.clone(), ALERTS_TABLE, ALERTS_TABLE, kind, ts);
    // Several alerts may have one last evidence: this tells them apart.
    row.lane = Some(told.alert_id.clone());
    let text = |name: &str| key.get(name).and_then(Value::as_str).map(str::to_owned);
    row.agent_id = text("agent_id");
    row.token_id = text("token_id");
    row.user_id = text("user_id");
    row.run_id = text("run_id");
    row.trace_id = text("trace_id");
    row.environment = text("environment");
    row.tool = text("tool");
    row.action = text("action");
    row.resource = text("resource");
    row.target = text("target");
    row.approver = text("approver");
    row.receipt_hash.clone_from(&told.receipt_hash);
    row.matched_policies = vec![
        told.alert_id.clone(),
        header.id.clone(),
        header.name.clone(),
        header.severity.to_string(),
        header.mode.to_string(),
        told.first.to_string(),
        Value::Object(key.clone()).to_string(),
    ];
    row
}

impl RunningRule {
    /// Looks at alerts of one tenant that became final.
    pub(crate) fn take_alerts(&mut self, alerts: &[Arc<SecurityEvent>], config: &EngineConfig, output: &mut TickOutput) {
        let Some(tenant) = alerts.first().map(|alert| &alert.tenant_id).filter(|_| self.stats.quarantined.is_none()) else {
            return;
        };
        if let Some(shown) = &mut self.shown {
            shown.take(alerts);
        }
        let clock = config.clock.as_ref();
        let batch = Arc::new(EventBatch::new(alerts.to_vec()));
        let (result, micros) = self.timed(clock, |running| {
            guarded(running, |running| {
                let relevant = running.relevant(&batch)?;
                running.stats.relevant += relevant.events().len() as u64;
                if relevant.is_empty() {
                    return Ok(());
                }
                let keys = running.evaluate(&relevant, config.quotas)?;
                emit(running, keys, config.quotas, clock.now(), output)
            })
        });
        // It was one tenant's look, so that the others' go on.
        let result = match over_budget(self, micros, config.rule_budget_ms).filter(|_| result.is_ok()) {
            Some(error) => self.set_aside(tenant, error, None),
            None => result,
        };
        stop_if_failed(self, result, 0, config.rule_budget_ms, output);
    }

    /// The rows of alerts that it has.
    fn rows(&self) -> impl Iterator<Item = (&TenantId, &Arc<SecurityEvent>)> {
        let has_rows = self.plan.sources.is_some();
        let tenants = self.state.tenants.iter().filter(move |_| has_rows);
        tenants.flat_map(|(tenant, state)| {
            let events = state.buckets.values().flat_map(Bucket::events);
            events.map(move |row| (tenant, row))
        })
    }

    /// About what a checkpoint has of them, for each tenant.
    pub(crate) fn alert_bytes(&self) -> impl Iterator<Item = (&TenantId, usize)> {
        self.rows().map(|(tenant, row)| (tenant, BYTES_OF_A_ROW + bytes_of(row)))
    }
}

/// The rows that rules have, each once, in their order; without those of some tenants.
pub(crate) fn alerts_of(rules: &[RunningRule], left_out: &BTreeSet<TenantId>) -> Vec<SecurityEvent> {
    let rows = rules.iter().flat_map(|running| running.rows()).filter(|(tenant, _)| !left_out.contains(*tenant));
    let each: BTreeMap<_, _> = rows.map(|(tenant, row)| ((tenant, row.order_key()), row)).collect();
    each.into_values().map(|row| (**row).clone()).collect()
}

#[cfg(test)]
mod tests;
