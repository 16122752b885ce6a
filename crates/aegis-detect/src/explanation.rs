//! What there is to say of a rule and an event, for a program and, a line each, for people.

use std::collections::BTreeMap;
use std::fmt;

use aegis_model::{EventId, EventKind, RuleMode, TenantId, Timestamp};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::condition::Judged;
use crate::pattern_run::PatternRun;
use crate::shape::Shape;

/// A row of the rule's query that is a match.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MatchedRow {
    pub instant: Timestamp,
    pub key: Map<String, Value>,
    pub fields: Map<String, Value>,
    /// How many events are listed as its evidence.
    pub evidence: usize,
    /// True if the event is one of them.
    pub is_evidence: bool,
    /// The alert that stands for it. None: there is none, because the rule stopped or a quota was full.
    pub alert: Option<JoinedAlert>,
}

/// The alert that a match belongs to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JoinedAlert {
    pub alert_id: String,
    /// Instant of the match that raised it.
    pub start: Timestamp,
    /// False: the match joined what an earlier one had begun.
    pub is_raised_by_it: bool,
}

/// An alert whose last evidence the event is, as a row that a rule on rules may read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RaisedAlert {
    pub alert_id: String,
    pub rule_id: String,
    pub rule_name: String,
    /// True if it passes the innermost WHERE.
    pub passes: bool,
    pub conditions: Vec<Judged>,
}

/// What there is to say of a rule and an event.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    pub event_id: EventId,
    pub tenant_id: TenantId,
    pub kind: EventKind,
    pub ts: Timestamp,
    pub verified: bool,
    pub rule_id: String,
    pub rule_name: String,
    pub rule_version: u32,
    /// As the file has it; a disabled rule is explained as if it ran.
    pub mode: RuleMode,
    /// Which way it is run.
    pub shape: Shape,
    /// Of a row pattern that is followed: how.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<PatternRun>,
    /// Of a stepped rule: why it is no row pattern that is followed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stepped_for: Option<&'static str>,
    /// True if the event passes the innermost WHERE; of a rule that reads alerts, one of those that it raised.
    pub passes: bool,
    /// The conditions of the innermost WHERE; without one, none. Of a rule that reads alerts what they make of the first of `raised` that passes, or
    /// of the first.
    pub conditions: Vec<Judged>,
    /// Of a rule that reads alerts those whose last evidence the event is, of all the rules that tell any. None: the rule reads events.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raised: Option<Vec<RaisedAlert>>,
    pub late: bool,
    /// The columns that split the rule's state, as they are in the event. An event with a null there is looked at for no key.
    pub split_by: BTreeMap<String, Option<String>>,
    pub window_s: i64,
    /// How much of the window lies behind the event: what its rule's frames end after.
    pub ahead_s: i64,
    /// Events with the same `split_by` that pass, in the window around the event that ends so long after it; the event is one of them.
    pub in_window: usize,
    /// Until when what follows the event counts, if its row is not decided yet.
    pub undecided: Option<Timestamp>,
    /// Matches at the event's instant.
    pub rows: Vec<MatchedRow>,
    /// The first match of a later instant that has the event as evidence.
    pub later: Option<MatchedRow>,
    /// Why the rule stopped before the end.
    pub stopped: Option<String>,
    /// Events that the rule's quotas refused or gave up.
    pub over_quota: u64,
    /// True if a match at the event's instant has it as evidence.
    pub fired: bool,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { event_id, tenant_id, kind, ts, rule_id, rule_name, rule_version, .. } = self;
        let verified = if self.verified { "verified" } else { "not verified" };
        writeln!(f, "event     {event_id}: {kind} of tenant {tenant_id} at {ts}, {verified}")?;
        let mode = match self.mode {
            RuleMode::Active => "active",
            RuleMode::LogOnly => "log_only: its alerts lead nowhere",
            RuleMode::Disabled => "disabled: it is not run, and this is what it would say",
        };
        writeln!(f, "rule      {rule_id} {rule_name} version {rule_version}, {mode}")?;
        match &self.raised {
            Some(raised) => write_raised(f, raised)?,
            None if self.conditions.is_empty() => {
                writeln!(f, "WHERE     there is none right above events: every event may matter")?;
            }
            None if self.passes => writeln!(f, "WHERE     passed")?,
            None => {
                for judged in failed(&self.conditions) {
                    writeln!(f, "WHERE     {}", not_passed(judged))?;
                }
            }
        }
        writeln!(f, "time      {}", if self.late { "late: the rule does not look at it" } else { "in time" })?;
        if self.passes && !self.late {
            self.write_matches(f)?;
        }
        if let Some(reason) = &self.stopped {
            writeln!(f, "STOPPED   {reason}")?;
        }
        if self.over_quota > 0 {
            writeln!(f, "quotas    {} events were more than the rule may keep", self.over_quota)?;
        }
        if let Some(until) = self.undecided {
            return write!(f, "not decided yet: what comes for the time until {until} may follow it");
        }
        match &self.later {
            _ if self.fired => write!(f, "fired"),
            Some(later) => write!(f, "not yet: the match that it is evidence of is complete at {}", later.instant),
            None => write!(f, "not fired"),
        }
    }
}

impl Explanation {
    fn write_matches(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((name, _)) = self.split_by.iter().find(|(_, value)| value.is_none()) {
            return writeln!(f, "key       {name} is null: a row without its key is no match");
        }
        let same: Vec<String> =
            self.split_by.iter().map(|(name, value)| format!("{name} {:?}", value.as_deref().unwrap_or(""))).collect();
        let of = if same.is_empty() { "of the tenant".to_owned() } else { format!("of {}", same.join(", ")) };
        let (before, after) = (self.window_s - self.ahead_s, self.ahead_s);
        let rows = if self.raised.is_some() { "alerts" } else { "events" };
        write!(f, "window    {} {rows} {of} that passed in the {before} s up to it", self.in_window)?;
        if after > 0 {
            write!(f, " and the {after} s after it")?;
        }
        writeln!(f, ", this one counted")?;
        if self.undecided.is_none() && self.rows.is_empty() {
            writeln!(f, "rows      none at its instant: what comes after the WHERE leaves none that is a match")?;
        }
        for (what, row) in self.rows.iter().map(|row| ("row", row)).chain(self.later.iter().map(|row| ("later", row))) {
            let (key, fields) = (Value::Object(row.key.clone()), Value::Object(row.fields.clone()));
            let among = if row.is_evidence { "this one among them" } else { "without this one" };
            writeln!(f, "{what:<9} {key} {fields}, a match at {}: {} events of evidence, {among}", row.instant, row.evidence)?;
            match &row.alert {
                Some(alert) if alert.is_raised_by_it => writeln!(f, "alert     {} is raised by it", alert.alert_id)?,
                Some(alert) => writeln!(f, "alert     it joins {}, which began at {}", alert.alert_id, alert.start)?,
                None => writeln!(f, "alert     none stands for it")?,
            }
        }
        Ok(())
    }
}

/// The conditions that do not hold.
fn failed(conditions: &[Judged]) -> impl Iterator<Item = &Judged> {
    conditions.iter().filter(|judged| judged.holds != Some(true))
}

fn not_passed(judged: &Judged) -> String {
    let verdict = if judged.holds.is_some() { "false" } else { "null" };
    let values: Vec<String> = judged.values.iter().map(|(name, value)| format!("{name} is {value}")).collect();
    format!("not passed: {} is {verdict}: {}", judged.condition, values.join(", "))
}

fn write_raised(f: &mut fmt::Formatter<'_>, raised: &[RaisedAlert]) -> fmt::Result {
    if raised.is_empty() {
        writeln!(f, "raised    no alert that a rule reads: none stands whose last evidence it is")?;
    }
    for one in raised {
        let said: Vec<String> = failed(&one.conditions).map(not_passed).collect();
        let said = if one.passes { "passed".to_owned() } else { said.join("; ") };
        writeln!(f, "raised    {} of {} {}: {said}", one.alert_id, one.rule_id, one.rule_name)?;
    }
    Ok(())
}
